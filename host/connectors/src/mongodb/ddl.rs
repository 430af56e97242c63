//! Executes a change of the catalogue on the target, at most once.
//!
//! Replaying a `drop` or a `renameCollection` destroys what stands under the name now, so a destructive command runs
//! only while the name holds the collection that the entry means, told by UUID (correctness.md §6). What turns out to
//! be done already is skipped with a line in the log. Nothing is ever widened: a `dropDatabase` drops collections one
//! by one and leaves those that a later entry made.

use std::sync::atomic::{AtomicBool, Ordering};

use bson::RawDocumentBuf;
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::ddl::Routed;
use oplogue_engine::model::raw::Elements;
use oplogue_engine::model::{Change, CollectionUuid, Ddl, Namespace, NamespaceId, OpTime};
use oplogue_engine::sink::DdlOutcome;

use super::command::Concern;
use super::identity::{CollectionInfo, Shape, Standing};
use super::patience::{self, Asked};
use super::primary;
use super::sink::MongoSink;
use super::writer::RawWriter;
use super::{classify, command};

mod border;
mod create;
mod index;
mod moving;
mod refused;
mod rename;
mod view;

pub use border::Arrival;
pub(super) use create::create_command;
pub use index::DroppedIndexes;
pub(super) use index::Postponed;
pub(super) use moving::Unplaced;
pub use refused::DdlRefused;

const ILLEGAL_OPERATION: i32 = 20;
const CANNOT_CONVERT_INDEX_TO_UNIQUE: i32 = 359;
pub(super) const NAMESPACE_NOT_FOUND: i32 = 26;
pub(super) const INDEX_NOT_FOUND: i32 = 27;
pub(super) const NAMESPACE_EXISTS: i32 = 48;

/// Collections behind time-series carry this in front of their name; commands want the name without it.
const BUCKETS: &str = "system.buckets.";

/// Whether a command is still to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Run,
    /// It was run before, or what it is about went on to something else.
    Done,
}

/// One DDL on its way.
pub(super) struct Executor<'a> {
    pub(super) sink: &'a MongoSink,
    /// The source collection's identity.
    pub(super) source: Option<CollectionUuid>,
    pub(super) overlap: bool,
    /// Source time of the entry.
    time: OpTime,
    pub(super) concern: Concern,
    /// A unique index of this DDL must wait for the overlap mark.
    postponed: AtomicBool,
}

impl MongoSink {
    /// Executes a DDL.
    ///
    /// # Errors
    /// `Unauthorized` with the privilege that is missing, `CannotApply` with the command and the server's reason.
    pub(super) async fn execute_ddl(&self, change: &Change, overlap: bool) -> Result<DdlOutcome> {
        let target = self.target().await?;
        let Some(ddl) = &change.ddl else {
            return Err(Error::new(Side::Internal, Kind::Bug, "a DDL change carries no command"));
        };
        let executor = Executor { time: change.time, ..Executor::new(self, change.collection, overlap, Concern::One) };
        if self.catalogue.is_before_mark(change.time) && !is_repeated(ddl) {
            skipped(ddl.name(), &self.namespaces.name(change.target));
            executor.bury(executor.ends(ddl)).await?;
            return Ok(DdlOutcome::Already);
        }
        // A mark that survived what it marks would lose it: nothing here may be rolled back.
        let concern = if target.is_replicated { Concern::Majority } else { self.concern(target) };
        let executor = Executor { concern, ..executor };
        let time = match executor.execute(ddl).await {
            Ok(time) => time,
            Err(error) => {
                self.refused(ddl.name(), &self.namespaces.name(change.target), change.time, error)?;
                self.executed(change.time).await?;
                // What waits for the mark beside what is left out must be met again after a restart.
                let waits = executor.postponed.load(Ordering::Relaxed);
                return Ok(if waits { DdlOutcome::Postponed } else { DdlOutcome::Refused });
            }
        };
        self.executed(change.time).await?;
        Ok(match (executor.postponed.load(Ordering::Relaxed), time) {
            (true, _) => DdlOutcome::Postponed,
            (false, Some(time)) => DdlOutcome::Done(Some(time)),
            (false, None) => DdlOutcome::Already,
        })
    }

    /// Moves the mark, unless a postponed index must be met again after a restart.
    async fn executed(&self, time: OpTime) -> Result<()> {
        if self.postponed.lock().await.is_empty() && self.unplaced.lock().await.is_empty() {
            self.catalogue.advance_mark(time).await?;
        }
        Ok(())
    }
}

impl<'a> Executor<'a> {
    /// An executor for one DDL of the source collection `source`.
    pub(super) fn new(sink: &'a MongoSink, source: Option<CollectionUuid>, overlap: bool, concern: Concern) -> Self {
        Self { sink, source, overlap, time: OpTime::default(), concern, postponed: AtomicBool::new(false) }
    }
}

impl Executor<'_> {
    async fn execute(&self, ddl: &Ddl) -> Result<Option<OpTime>> {
        if self.is_unplaced(ddl) {
            return self.leave_unplaced(ddl).await;
        }
        match ddl {
            Ddl::Create { namespace, options } => self.create(*namespace, options).await,
            Ddl::Drop { namespace } => self.drop(*namespace).await,
            Ddl::DropDatabase { database } => self.drop_database(&self.name(*database)).await,
            Ddl::Rename { from, to, drop_target } => {
                self.rename(&self.name(*from), &self.name(*to), *drop_target).await
            }
            Ddl::CreateIndexes { namespace, specs } => self.create_indexes(namespace.target, specs).await,
            Ddl::DropIndexes { namespace, name } => self.drop_index(&self.name(*namespace), name).await,
            Ddl::CollMod { namespace, options } => self.coll_mod(&self.name(*namespace), options).await,
            Ddl::ConvertToCapped { namespace, size_bytes } => {
                self.convert_to_capped(&self.name(*namespace), *size_bytes).await
            }
            Ddl::EmptyCapped { namespace } => self.empty_capped(&self.name(*namespace)).await,
            Ddl::DropView { namespace } => self.drop_view(&self.name(*namespace)).await,
            Ddl::DropViews { database } => self.drop_views(&self.name(*database)).await,
            Ddl::CopyIn { .. } => {
                Err(Error::new(Side::Internal, Kind::Bug, "a collection to be copied reached the sink"))
            }
            Ddl::Refused { command, namespace, why } => {
                let text = format!("{command} of {}: {why}", self.sink.namespaces.name(namespace.source));
                Err(Error::new(Side::Sink, Kind::CannotApply, text))
            }
        }
    }

    pub(super) fn name(&self, routed: Routed) -> Namespace {
        self.name_of(routed.target)
    }

    pub(super) fn name_of(&self, id: NamespaceId) -> Namespace {
        self.sink.namespaces.name(id)
    }

    /// Whether the entry is in the copy of its collection. What no entry asked for has no time and is in none.
    fn is_in_copy(&self) -> bool {
        self.time != OpTime::default()
            && self.source.is_some_and(|source| self.sink.catalogue.is_in_copy(source, self.time))
    }

    /// Whether `name` still holds what the entry means, looked up on the server now. An unknown source collection
    /// adopts a target collection that nobody else claims.
    pub(super) async fn turn(&self, name: &Namespace) -> Result<Turn> {
        let standing = self.sink.catalogue.refresh(name).await?;
        let Some(source) = self.source else {
            return Ok(if standing.is_some() { Turn::Run } else { Turn::Done });
        };
        if self.is_in_copy() {
            return Ok(Turn::Done);
        }
        Ok(match self.sink.catalogue.standing(name, source) {
            Standing::Own(_) | Standing::Nameless => Turn::Run,
            Standing::Unclaimed(uuid) => {
                self.sink.catalogue.must_claim(name, source, uuid).await?;
                Turn::Run
            }
            Standing::Other | Standing::Gone | Standing::Absent => Turn::Done,
        })
    }

    /// Drops what a DDL before the mark dropped on the source, where it stands even so: a copy may have met changes of
    /// a collection that was gone before it was listed. One that was copied itself was there again: it had only left the
    /// filter, and what it was until then is in the copy.
    async fn bury(&self, gone: Option<CollectionUuid>) -> Result<()> {
        let catalogue = &self.sink.catalogue;
        let Some((gone, place)) = gone.and_then(|gone| Some((gone, catalogue.place_of(gone)?))) else {
            return Ok(());
        };
        if !catalogue.is_copy(gone) {
            self.drop_now(&place).await?;
            catalogue.retire(gone, self.time);
        } else if !catalogue.is_copy_of(gone, self.time)
            && let Some(target) = catalogue.paired_with(gone)
        {
            catalogue.copying(gone, self.time);
            catalogue.record(gone, target).await?;
        }
        Ok(())
    }

    /// The collection whose end a DDL is.
    fn ends(&self, ddl: &Ddl) -> Option<CollectionUuid> {
        match ddl {
            Ddl::Drop { .. } => self.source,
            Ddl::Rename { drop_target, .. } | Ddl::CopyIn { drop_target, .. } => *drop_target,
            Ddl::Create { .. }
            | Ddl::DropDatabase { .. }
            | Ddl::CreateIndexes { .. }
            | Ddl::DropIndexes { .. }
            | Ddl::CollMod { .. }
            | Ddl::ConvertToCapped { .. }
            | Ddl::EmptyCapped { .. }
            | Ddl::DropView { .. }
            | Ddl::DropViews { .. }
            | Ddl::Refused { .. } => None,
        }
    }

    /// A collection that the source dropped never comes back, so its copy goes under whatever name it stands. One that
    /// was renamed out of the filter may come back, by a copy that is newer than this entry ([`Self::is_in_copy`]).
    async fn drop(&self, namespace: Routed) -> Result<Option<OpTime>> {
        let name = &self.name(namespace);
        let standing = self.sink.catalogue.refresh(name).await?;
        if self.is_in_copy() {
            return Ok(skipped("drop", name));
        }
        self.sink.dropped_indexes.lock().await.forget(self.source);
        if self.source.is_none() && standing.is_some_and(|info| self.is_claimed(name, info)) {
            // A part of a `dropDatabase`: the source logged the drop of each collection before it.
            return Ok(skipped("drop", name));
        }
        let turn = self.turn(name).await?;
        if turn == Turn::Run {
            self.refuse_moved(&self.name_of(namespace.source)).await?;
        }
        let elsewhere = self.source.and_then(|source| self.sink.catalogue.place_of(source));
        let time = match (turn, elsewhere) {
            (Turn::Run, _) => self.drop_now(name).await?,
            (Turn::Done, Some(place)) => self.drop_now(&place).await?,
            (Turn::Done, None) => skipped("drop", name),
        };
        if let Some(source) = self.source {
            self.sink.catalogue.retire(source, self.time);
        }
        Ok(time)
    }

    /// The former primary shard of a database drops what the new one has made anew. The documents are not in the stream
    /// a second time, so that drop must not be applied; and what is made anew is another collection to all that follows.
    async fn refuse_moved(&self, source: &Namespace) -> Result<()> {
        let Some((originals, uuid)) = self.sink.source.as_ref().zip(self.source) else { return Ok(()) };
        if !originals.moved_on(source, uuid, self.time).await? {
            return Ok(());
        }
        let text = format!(
            "{source} was moved to another primary shard with its database (movePrimary), which is not followed; \
             copy again after `oplogue checkpoint reset`"
        );
        Err(Error::new(Side::Source, Kind::CannotApply, text))
    }

    /// Drops whatever stands under `name`.
    pub(super) async fn drop_now(&self, name: &Namespace) -> Result<Option<OpTime>> {
        let time = self.take_away(name).await?;
        self.sink.catalogue.forget_views_at(name).await?;
        Ok(time)
    }

    /// The same where another view takes the place: it is still remembered what else was that view.
    async fn take_away(&self, name: &Namespace) -> Result<Option<OpTime>> {
        let mut w = self.command("drop", visible(name));
        command::write_concern(&mut w, self.concern);
        let time = self.run(name.database(), "drop", name, w, &[NAMESPACE_NOT_FOUND]).await?;
        self.forget_all_postponed(name).await;
        self.sink.catalogue.refresh(name).await?;
        Ok(time)
    }

    /// The server logs the drop of each collection before the `dropDatabase`, so those are gone already. What is left
    /// is dropped one by one: it needs no further privilege, and a collection that a later entry made stays.
    async fn drop_database(&self, database: &Namespace) -> Result<Option<OpTime>> {
        let mut time = None;
        let listed = self.sink.catalogue.refresh_database(database.database()).await?;
        // Views first: a time-series is listed beside its buckets and goes with them.
        let (views, others): (Vec<_>, Vec<_>) = listed.into_iter().partition(|(_, info)| info.shape == Shape::View);
        for (name, info) in views.into_iter().chain(others) {
            if name.collection().starts_with("system.") {
                continue;
            }
            if self.is_claimed(&name, info) {
                tracing::info!(namespace = %name, "kept in dropDatabase: a later entry made this collection");
                continue;
            }
            time = self.drop_now(&name).await?.max(time);
        }
        Ok(time)
    }

    fn is_claimed(&self, name: &Namespace, info: CollectionInfo) -> bool {
        let behind = (info.shape == Shape::TimeSeries).then(|| {
            self.sink.catalogue.info(&Namespace::of(name.database(), &format!("{BUCKETS}{}", name.collection())))
        });
        let uuid = info.uuid.or_else(|| behind.flatten().and_then(|buckets| buckets.uuid));
        uuid.is_some_and(|uuid| self.sink.catalogue.is_claimed(uuid))
    }

    async fn coll_mod(&self, name: &Namespace, options: &[u8]) -> Result<Option<OpTime>> {
        if self.turn(name).await? == Turn::Done {
            // One that was to become unique and waited for the mark waits again, under the name it has now.
            if let Some(place) = self.elsewhere(self.source)
                && !self.modify_postponed(&place, options).await?
                && index::makes_unique(options)?
            {
                self.convert_at_mark(&place, options).await?;
            }
            return Ok(skipped("collMod", name));
        }
        let _waits = self.modify_postponed(name, options).await?;
        let w = self.coll_mod_command(name, options);
        let doing = "collMod (needs the privilege `collMod`: role dbAdminAnyDatabase)";
        let tolerated: &[i32] = if self.overlap { &[NAMESPACE_NOT_FOUND] } else { &[] };
        let time = match self.try_run(name.database(), w).await? {
            Ok(time) => time,
            Err(e) if self.overlap && classify::code(&e) == Some(CANNOT_CONVERT_INDEX_TO_UNIQUE) => {
                self.convert_at_mark(name, options).await?;
                self.modify_all_but_the_index(name, options).await?
            }
            Err(e) if self.overlap && classify::code(&e) == Some(INDEX_NOT_FOUND) => {
                self.modify_all_but_the_index(name, options).await?
            }
            Err(e) if classify::code(&e).is_some_and(|code| tolerated.contains(&code)) => skipped("collMod", name),
            Err(e) => return Err(classify::error(Side::Sink, &format!("run {doing} on {name}"), e)),
        };
        self.sink.catalogue.forget_expiring(name);
        Ok(time)
    }

    fn coll_mod_command(&self, name: &Namespace, options: &[u8]) -> RawWriter {
        let mut w = self.command("collMod", visible(name));
        w.splice(options);
        command::write_concern(&mut w, self.concern);
        w
    }

    /// What a command asks for beside an index that cannot be changed before the mark: the server refuses all of it.
    async fn modify_all_but_the_index(&self, name: &Namespace, options: &[u8]) -> Result<Option<OpTime>> {
        let mut others = RawWriter::with_capacity(options.len());
        let mut any = false;
        for element in Elements::new(options)? {
            let element = element?;
            if element.name != b"index" {
                others.element(&element);
                any = true;
            }
        }
        if !any {
            return Ok(skipped("collMod", name));
        }
        let w = self.coll_mod_command(name, &others.finish());
        self.run(name.database(), "collMod", name, w, &[NAMESPACE_NOT_FOUND]).await
    }

    /// The conversion gives the collection a new UUID, which is recorded in place of the old one.
    async fn convert_to_capped(&self, name: &Namespace, size_bytes: i64) -> Result<Option<OpTime>> {
        let turn = self.turn(name).await?;
        let present = self.sink.catalogue.info(name);
        if turn == Turn::Run {
            let mut w = self.command("convertToCapped", name.collection());
            w.value("size", oplogue_engine::model::raw::kind::INT64, &size_bytes.to_le_bytes());
            command::write_concern(&mut w, self.concern);
            let time = self.run(name.database(), "convertToCapped", name, w, &[]).await?;
            self.adopt(name).await?;
            return Ok(time);
        }
        let converted = present.filter(|info| info.capped).and_then(|info| info.uuid);
        let converted = converted.filter(|uuid| !self.sink.catalogue.is_claimed(*uuid));
        if let Some((source, uuid)) = self.source.zip(converted) {
            self.sink.catalogue.must_claim(name, source, uuid).await?;
        }
        Ok(skipped("convertToCapped", name))
    }

    /// `emptycapped` is a test command of the server, which a target need not know: everything is deleted instead. Only
    /// servers before 5.0 delete nothing from a capped collection.
    async fn empty_capped(&self, name: &Namespace) -> Result<Option<OpTime>> {
        let moved = self.source.and_then(|source| self.sink.catalogue.place_of(source));
        let name = moved.as_ref().unwrap_or(name);
        if self.turn(name).await? == Turn::Done {
            return Ok(skipped("emptycapped", name));
        }
        let mut w = self.command("delete", name.collection());
        w.begin_array("deletes");
        w.document("", |w| {
            w.document("q", |_| {});
            w.int("limit", 0);
        });
        w.end();
        command::write_concern(&mut w, self.concern);
        let outcome = command::run(&self.sink.client, name, w.finish(), self.sink.primary()).await?;
        match outcome.errors.first() {
            None => Ok(outcome.operation_time),
            Some((_, error)) if error.code == ILLEGAL_OPERATION => {
                let mut w = self.command("emptycapped", name.collection());
                command::write_concern(&mut w, self.concern);
                self.run(name.database(), "emptycapped", name, w, &[]).await
            }
            Some((_, error)) => {
                let text = format!("delete everything from {name}: {} (code {})", error.message, error.code);
                Err(Error::new(Side::Sink, Kind::CannotApply, text))
            }
        }
    }

    /// Records what stands under `name` now as the source collection's copy.
    pub(super) async fn adopt(&self, name: &Namespace) -> Result<()> {
        let info = self.sink.catalogue.refresh(name).await?;
        match (self.source, info.and_then(|info| info.uuid)) {
            (Some(source), Some(uuid)) => self.sink.catalogue.record(source, uuid).await,
            _ => Ok(()),
        }
    }

    /// Starts a command `{name: collection}`.
    pub(super) fn command(&self, name: &str, collection: &str) -> RawWriter {
        let mut writer = RawWriter::with_capacity(256);
        writer.string(name, collection);
        writer
    }

    /// Runs a command. The codes in `tolerated` mean that it is done already.
    pub(super) async fn run(
        &self,
        database: &str,
        doing: &str,
        name: &Namespace,
        writer: RawWriter,
        tolerated: &[i32],
    ) -> Result<Option<OpTime>> {
        match self.try_run(database, writer).await? {
            Ok(time) => Ok(time),
            Err(e) if classify::code(&e).is_some_and(|code| tolerated.contains(&code)) => Ok(skipped(doing, name)),
            Err(e) => Err(classify::error(Side::Sink, &format!("run {doing} on {name}"), e)),
        }
    }

    /// Runs a command and hands the server's refusal back.
    pub(super) async fn try_run(
        &self,
        database: &str,
        mut writer: RawWriter,
    ) -> Result<std::result::Result<Option<OpTime>, mongodb::error::Error>> {
        // An index may take hours: what counts is that the server works on it, which it tells by the comment.
        let comment = patience::comment();
        writer.string("comment", &comment);
        let command: RawDocumentBuf = command::raw(writer.finish())?;
        let client = &self.sink.client;
        let database = client.database(database);
        let asked = database.run_raw_command(command);
        let own = Asked { side: Side::Sink, client, criteria: None, comment: &comment };
        let reply = primary::worked_on(self.sink.primary(), &own, "run a DDL", asked).await?;
        if let Ok(reply) = &reply
            && let Ok(concern) = reply.get_document("writeConcernError")
        {
            let text = concern.get_str("errmsg").unwrap_or_default();
            let text = format!("run a DDL: it is not majority-committed: {text}");
            return Err(Error::new(Side::Sink, Kind::Unavailable, text));
        }
        Ok(reply.map(|reply| command::operation_time(&reply)))
    }
}

/// Whether a command belongs to the documents: the inserts before it are repeated, and so is it.
fn is_repeated(ddl: &Ddl) -> bool {
    matches!(ddl, Ddl::EmptyCapped { .. })
}

/// Notes that a command has nothing left to do.
pub(super) fn skipped(command: &str, name: &Namespace) -> Option<OpTime> {
    tracing::info!(command, namespace = %name, "a DDL is done already");
    None
}

/// The name that commands of the catalogue want for a collection.
pub(super) fn visible(name: &Namespace) -> &str {
    let collection = name.collection();
    collection.strip_prefix(BUCKETS).unwrap_or(collection)
}
