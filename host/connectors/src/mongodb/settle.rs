//! Settles changes that collided on unique keys: final images of all of them, in one transaction.
//!
//! Two documents that swapped a unique value, or passed it round, cannot be written one after the other in any
//! order. So a group is reduced to one final image a document, and one transaction deletes all of the documents and
//! inserts the images (correctness.md §4). Images of updates are computed by the target itself, with the same stages
//! that an update would use. What collides even so is a conflict with a document outside of the group; it is
//! ruled over ([`overrule`]) and reported, and the rest is settled without it.

use std::collections::{BTreeMap, BTreeSet};

use bson::Document;
use bytes::Bytes;
use mongodb::ClientSession;
use mongodb::error::{Error as DriverError, TRANSIENT_TRANSACTION_ERROR};
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::{self, DocumentKey, Namespace, NamespaceId, OpTime};
use oplogue_engine::sink::{FlushReport, Write, newest_write};

use super::classify;
use super::command::{self, Manner, Statement, StatementError};
use super::patch::{self, modifiers, over};
use super::patience::answered;
use super::sink::sharded::{no_place, upsert_at};
use super::sink::{MongoSink, Obstacle, Original};
use super::transaction::{self, Broken, Committed, Transaction};
use super::writer::RawWriter;

mod image;
mod moment;
mod overrule;

use image::{Computed, Image, Origin};
pub(super) use overrule::Settlement;

/// Writes with their places, by collection and the cluster that they come from.
type Groups<'w> = BTreeMap<(NamespaceId, Option<model::Origin>), Vec<(usize, &'w Write)>>;

/// Each with the index of its image.
type Indexed<T> = Vec<(usize, T)>;

/// What one transaction does to one collection.
#[derive(Clone, Copy)]
struct Group<'g, 'a> {
    name: &'g Namespace,
    images: &'g [Image<'a>],
    /// Documents of others that stand in the way.
    obstacles: &'g [(DocumentKey, Obstacle)],
}

/// What one try came to.
enum Try {
    Settled(Option<OpTime>),
    /// The image with this index collides with something.
    Collides(usize, StatementError),
    /// The target cannot compute the image with this index.
    Uncomputed(usize),
    /// The server broke the transaction off; it can be tried again.
    Again(DriverError),
}

/// Why the images could not be written.
enum Unwritten {
    Broken(Broken),
    /// The server refused to compute the image with this index.
    Image(usize),
}

impl From<Original> for Computed {
    fn from(original: Original) -> Self {
        match original {
            Original::Document(document) => Self::Document(document),
            Original::Absent => Self::Absent,
            Original::Dropped => Self::Dropped,
        }
    }
}

impl From<Broken> for Unwritten {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

impl From<Error> for Unwritten {
    fn from(e: Error) -> Self {
        Self::Broken(Broken::Other(e))
    }
}

impl MongoSink {
    pub(super) async fn settle_group(&self, writes: &[Write], last_word: bool) -> Result<FlushReport> {
        one_origin_each(writes)?;
        // A transaction has one mark, so changes of different origins are settled apart.
        let mut groups: Groups<'_> = BTreeMap::new();
        for (index, write) in writes.iter().enumerate() {
            if let Some(destination) = self.destination(write) {
                groups.entry((destination, write.origin)).or_default().push((index, write));
            }
        }
        let mut report = FlushReport::default();
        for ((namespace, origin), all) in groups {
            let name = self.namespaces.name(namespace);
            let mut group = Vec::with_capacity(all.len());
            for (index, write) in all {
                if !self.superseded(&name, write).await? {
                    group.push((index, write));
                }
            }
            let part = self.settle_namespace(&name, &group, origin, last_word).await;
            let part = part.map_err(|e| e.context(format!("settle {name}")))?;
            report.refused.extend(part.refused);
            report.operation_time = newest_write(part.operation_time, report.operation_time);
        }
        report.refused.sort_by_key(|(index, _)| *index);
        Ok(report)
    }

    async fn settle_namespace(
        &self,
        name: &Namespace,
        writes: &[(usize, &Write)],
        origin: Option<model::Origin>,
        last_word: bool,
    ) -> Result<FlushReport> {
        self.settle_all(name, Settlement::new(self.images_of(writes)?, last_word), origin).await
    }

    /// Puts images of one collection in place, or reports why not.
    ///
    /// # Errors
    /// When the outcome is unknown, or a ruling could not be carried out.
    pub(super) async fn settle_all(
        &self,
        name: &Namespace,
        mut open: Settlement<'_>,
        origin: Option<model::Origin>,
    ) -> Result<FlushReport> {
        let mut tries = transaction::Tries::new();
        while !open.images.is_empty() || !open.waiting.is_empty() {
            let group = Group { name, images: &open.images, obstacles: &open.obstacles };
            match self.settle_groups(&[group], origin).await? {
                Try::Settled(time) => {
                    open.report.operation_time = time.max(open.report.operation_time);
                    self.settled(name, &mut open)?;
                }
                Try::Collides(_, error) if self.to_one_moment(name, &mut open, &error).await? => {}
                Try::Collides(at, error) => self.collided(name, &mut open, at, &error).await?,
                Try::Uncomputed(at) => {
                    if let Some(image) = open.images.get_mut(at) {
                        image.from_source = true;
                    }
                }
                Try::Again(e) => {
                    if !tries.again().await {
                        return Err(classify::error(Side::Sink, "settle unique keys in a transaction", e));
                    }
                    tracing::debug!(namespace = %name, error = %e, "the settling transaction is tried again");
                }
            }
        }
        Ok(open.report)
    }

    /// One try at the images of all these groups in one transaction, which carries the mark of `origin`.
    async fn settle_groups(&self, groups: &[Group<'_, '_>], origin: Option<model::Origin>) -> Result<Try> {
        let manner = self.manner(self.target().await?, origin);
        let mut session = transaction::begin(&self.client, manner).await?;
        let mut rewritten = Ok(None);
        for group in groups {
            rewritten = self.rewrite(&mut session, group, manner).await;
            if !matches!(rewritten, Ok(None)) {
                break;
            }
        }
        match rewritten {
            Ok(None) => Ok(match transaction::commit(session).await? {
                Committed::At(time) => Try::Settled(time),
                Committed::Again(e) => Try::Again(e),
            }),
            Ok(Some((at, error))) => {
                transaction::abort(session).await;
                Ok(Try::Collides(at, error))
            }
            Err(unwritten) => {
                transaction::abort(session).await;
                match unwritten {
                    Unwritten::Image(at) => Ok(Try::Uncomputed(at)),
                    Unwritten::Broken(Broken::Driver(e)) if e.contains_label(TRANSIENT_TRANSACTION_ERROR) => {
                        Ok(Try::Again(e))
                    }
                    Unwritten::Broken(broken) => Err(broken.into_error("settle unique keys in a transaction")),
                }
            }
        }
    }

    /// Puts final images of all these writes, of whatever collections and all of `origin`, in place in one transaction.
    /// `None` = that is not possible: one collides with a document that is not among them, or has no image.
    ///
    /// # Errors
    /// When the outcome is unknown.
    pub(super) async fn settle_at_once(
        &self,
        writes: &[&Write],
        origin: Option<model::Origin>,
    ) -> Result<Option<OpTime>> {
        let mut groups: BTreeMap<NamespaceId, Vec<(usize, &Write)>> = BTreeMap::new();
        for (index, write) in writes.iter().enumerate() {
            if let Some(destination) = self.destination(write) {
                groups.entry(destination).or_default().push((index, write));
            }
        }
        let mut images = Vec::with_capacity(groups.len());
        for (namespace, group) in &groups {
            match self.images_of(group) {
                Ok(of_group) => images.push((self.namespaces.name(*namespace), of_group)),
                Err(e) if e.kind() == Kind::Unsupported => return Ok(None),
                Err(e) => return Err(e),
            }
        }
        let groups: Vec<Group<'_, '_>> =
            images.iter().map(|(name, images)| Group { name, images, obstacles: &[] }).collect();
        let mut tries = transaction::Tries::new();
        loop {
            match self.settle_groups(&groups, origin).await? {
                Try::Settled(time) => return Ok(Some(time.unwrap_or_default())),
                Try::Collides(..) | Try::Uncomputed(_) => return Ok(None),
                Try::Again(e) => tracing::debug!(error = %e, "the settling transaction is tried again"),
            }
            if !tries.again().await {
                return Ok(None);
            }
        }
    }

    /// Reads what must be read, deletes everything, writes the images. The first collision ends it.
    async fn rewrite(
        &self,
        open: &mut Transaction<'_>,
        &Group { name, images, obstacles }: &Group<'_, '_>,
        manner: Manner<'_>,
    ) -> Result<Option<(usize, StatementError)>, Unwritten> {
        let computed = self.compute_all(open, name, images).await?;
        let moving =
            || images.iter().zip(&computed).enumerate().filter(|(_, (image, computed))| !image.stays(computed));
        // What stands under the `_id` of a new document is somebody else's, and ruled over like any other conflict.
        let going = || moving().filter(|(_, (image, _))| !must_be_new(image));
        let deletes: Vec<Statement<'_>> =
            going().map(|(_, (image, _))| Statement::Delete { key: image.key() }).collect();
        if let Some((at, error)) = self.send_in(open, name, &deletes, manner).await? {
            return Ok(Some((going().nth(at).map_or(0, |(at, _)| at), error)));
        }
        let finals = match self.finals(name, moving())? {
            Ok(finals) => finals,
            Err(no_place) => return Ok(Some(no_place)),
        };
        // Nobody makes way for a document that does not come.
        let mut coming = BTreeSet::new();
        for (at, _) in &finals {
            let Some(image) = images.get(*at) else { continue };
            coming.insert(DocumentKey::of_document(image.key()).map_err(Error::from)?);
        }
        let ways = obstacles.iter().filter(|(owner, _)| coming.contains(owner));
        let ways: Vec<Statement<'_>> =
            ways.map(|(_, obstacle)| Statement::Delete { key: &obstacle.selector }).collect();
        if let Some((_, error)) = self.send_in(open, name, &ways, manner).await? {
            let kind = classify::of_code(error.code).unwrap_or(Kind::CannotApply);
            let text = format!("delete what stands in the way in {name}: {} (code {})", error.message, error.code);
            return Err(Error::new(Side::Sink, kind, text).into());
        }
        for run in finals.chunk_by(|a, b| a.1.verb() == b.1.verb()) {
            let statements: Vec<Statement<'_>> = run.iter().map(|(_, statement)| statement.clone()).collect();
            if let Some((at, error)) = self.send_in(open, name, &statements, manner).await? {
                return Ok(Some((run.get(at).map_or(0, |(at, _)| *at), error)));
            }
        }
        Ok(None)
    }

    /// One image a document. Whether it must be new is asked before anything is read: what is read is ahead, and then
    /// nothing is new any more.
    fn images_of<'a>(&self, writes: &[(usize, &'a Write)]) -> Result<Vec<Image<'a>>> {
        let mut images = image::images(writes)?;
        for image in &mut images {
            let making = image.making().is_some_and(|write| !self.is_overlap(write));
            image.is_new = making && !self.options.insert_on_dup_update;
        }
        Ok(images)
    }

    /// What is written of these images, each with its index; the other way, the one of which nobody knows where to.
    fn finals<'i, 'a: 'i>(
        &self,
        name: &Namespace,
        moving: impl Iterator<Item = (usize, (&'i Image<'a>, &'i Computed))>,
    ) -> Result<Result<Indexed<Statement<'i>>, (usize, StatementError)>> {
        let shard_key = self.catalogue.shard_key(name);
        let mut finals: Vec<(usize, Statement<'_>)> = Vec::new();
        for (at, (image, computed)) in moving {
            let Some(statement) = image.statement(computed)? else { continue };
            match shard_key.as_deref().map(|key| upsert_at(key, statement.clone())) {
                None => finals.push((at, statement)),
                Some(Ok(routed)) => finals.push((at, routed)),
                Some(Err(why)) => return Ok(Err((at, no_place(&why)))),
            }
        }
        Ok(Ok(finals))
    }

    /// What all these images come to. Those that only the source has are read there, before the others are computed.
    async fn compute_all(
        &self,
        open: &mut Transaction<'_>,
        name: &Namespace,
        images: &[Image<'_>],
    ) -> Result<Vec<Computed>, Unwritten> {
        let of_source = images.iter().filter(|image| matches!(image.origin(), Origin::Source)).map(Image::last);
        let mut read = self.fetch_all(&of_source.collect::<Vec<_>>()).await?.into_iter();
        let mut all: Vec<Computed> = Vec::with_capacity(images.len());
        for (at, image) in images.iter().enumerate() {
            let mut origin = image.origin();
            if matches!(origin, Origin::Source) {
                let of_source = read.next().map_or(Computed::Absent, Computed::from);
                origin = image.own_origin();
                // A state that has passed the plugins stays the document's, though they drop a later one.
                let has_own =
                    matches!(origin, Origin::Known | Origin::Diffs(Some(_), _) | Origin::Modifiers(Some(_), _));
                if !matches!(of_source, Computed::Dropped) || !has_own {
                    all.push(of_source);
                    continue;
                }
            }
            let found = self.compute(open, name, image, origin).await;
            all.push(found.map_err(|broken| match broken {
                Broken::Driver(e) if is_about_the_document(&e) => Unwritten::Image(at),
                broken @ (Broken::Driver(_) | Broken::Other(_)) => Unwritten::Broken(broken),
            })?);
        }
        Ok(all)
    }

    /// The state of a document that is updated.
    async fn compute(
        &self,
        open: &mut Transaction<'_>,
        name: &Namespace,
        image: &Image<'_>,
        origin: Origin<'_>,
    ) -> Result<Computed, Broken> {
        let dialect = self.target().await?.dialect;
        match origin {
            Origin::Known => Ok(Computed::Nothing),
            Origin::Source => self.read_source(image).await,
            Origin::Diffs(Some(base), diffs) if let Some(known) = over::apply(base, diffs.iter().copied()) => {
                Ok(Computed::Document(Bytes::from(known)))
            }
            // An upsert must name the shard of what it makes, which a pipeline does not tell.
            Origin::Diffs(Some(_), _) if self.catalogue.shard_key(name).is_some() => self.read_source(image).await,
            Origin::Diffs(base, diffs) => match patch::pipeline(dialect, base, diffs) {
                Ok(stages) if base.is_some() => Ok(Computed::Stages(stages)),
                Ok(stages) => {
                    let found = self.read(open, name, image, &stages).await?;
                    self.or_absent(name, image, found).await
                }
                Err(patch::CompileError::Diff(e)) => {
                    Err(Error::new(Side::Source, Kind::CannotApply, "read a diff").caused_by(e).into())
                }
                Err(_) => self.read_source(image).await,
            },
            Origin::Modifiers(Some(base), updates) => self.modified(image, base, &updates).await,
            Origin::Modifiers(None, updates) => match self.read(open, name, image, EMPTY_ARRAY).await? {
                Some(found) => self.modified(image, &found, &updates).await,
                None => self.or_absent(name, image, None).await,
            },
        }
    }

    async fn modified(&self, image: &Image<'_>, base: &[u8], updates: &[&[u8]]) -> Result<Computed, Broken> {
        let mut document = base.to_vec();
        for update in updates {
            match modifiers::apply(&document, update) {
                Ok(next) => document = next,
                // The document is not in the state that the source had: in overlap it may be a newer one.
                Err(_) => return self.read_source(image).await,
            }
        }
        Ok(Computed::Document(Bytes::from(document)))
    }

    async fn read_source(&self, image: &Image<'_>) -> Result<Computed, Broken> {
        Ok(self.fetch(image.last()).await?.into())
    }

    /// One that the target does not have is read from the source: outside of overlap, where documents expire, and where
    /// it may have been taken out on its way to another shard.
    async fn or_absent(&self, name: &Namespace, image: &Image<'_>, found: Option<Bytes>) -> Result<Computed, Broken> {
        let on_its_way = self.catalogue.shard_key(name).is_some();
        match found {
            Some(document) => Ok(Computed::Document(document)),
            None if on_its_way => self.read_source(image).await,
            None if !image.last().overlap || self.catalogue.expires(name).await? => self.read_source(image).await,
            None => Ok(Computed::Nothing),
        }
    }

    /// What the target has, with `stages` (a raw array) over it.
    async fn read(
        &self,
        open: &mut Transaction<'_>,
        name: &Namespace,
        image: &Image<'_>,
        stages: &[u8],
    ) -> Result<Option<Bytes>, Broken> {
        let mut w = RawWriter::with_capacity(stages.len() + 256);
        w.string("aggregate", name.collection());
        w.array("pipeline", |w| {
            w.document("", |w| command::selector(w, "$match", image.key()));
            w.splice_values(stages);
        });
        w.document("cursor", |_| ());
        open.numbering().append(&mut w);
        let database = self.client.database(name.database());
        let command = command::raw(w.finish())?;
        let session = open.session()?;
        let read = async {
            let cursor = database.run_raw_cursor_command(command).session(&mut *session).await?;
            first(cursor, session).await
        };
        let doing = &format!("settle unique keys: read from {name}");
        answered(Side::Sink, doing, read).await?.map_err(Broken::Driver)
    }

    /// Sends statements of one verb inside the transaction; the first error and its index.
    async fn send_in(
        &self,
        open: &mut Transaction<'_>,
        name: &Namespace,
        statements: &[Statement<'_>],
        manner: Manner<'_>,
    ) -> Result<Option<(usize, StatementError)>, Broken> {
        let all: Vec<&Statement<'_>> = statements.iter().collect();
        let outcome = transaction::send(&self.client, open, name, &all, manner).await?;
        Ok(outcome.errors.into_iter().next())
    }
}

/// Whether nothing may stand under the document's `_id`, unless it was ruled that it goes.
fn must_be_new(image: &Image<'_>) -> bool {
    image.is_new && !image.overrules
}

/// An array without elements.
const EMPTY_ARRAY: &[u8] = &[5, 0, 0, 0, 0];

/// Whether the server computed and failed: everything that is not about the connection, the node or the transaction.
fn is_about_the_document(e: &DriverError) -> bool {
    let passing = e.contains_label(TRANSIENT_TRANSACTION_ERROR);
    let refused = |kind| matches!(kind, Kind::CannotApply | Kind::Unsupported);
    !passing && e.server_response().is_some() && refused(classify::kind(Side::Sink, e))
}

/// Refuses a document whose writes were made at different clusters: they cannot go into one marked transaction, nor
/// into two without leaving their order.
fn one_origin_each(writes: &[Write]) -> Result<()> {
    let mut origins: BTreeMap<(NamespaceId, DocumentKey), Option<model::Origin>> = BTreeMap::new();
    for write in writes {
        let key = (write.target, DocumentKey::of_document(&write.key)?);
        if *origins.entry(key).or_insert(write.origin) != write.origin {
            let text = "settle unique keys: several clusters changed one document at a time";
            return Err(Error::new(Side::Sink, Kind::Conflict, text));
        }
    }
    Ok(())
}

/// The first document of a cursor, raw.
async fn first(
    mut cursor: mongodb::SessionCursor<Document>,
    session: &mut ClientSession,
) -> std::result::Result<Option<Bytes>, DriverError> {
    let mut found = None;
    while cursor.advance(session).await? {
        found = Some(Bytes::copy_from_slice(cursor.current().as_bytes()));
    }
    Ok(found)
}
