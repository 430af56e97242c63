//! Documents as the source has them now, for what cannot be written without.
//!
//! What is read here is majority-committed and not older than the change that asked for it, and has passed the plugins.
//! It may contain changes that are still on their way, so the document counts as overlapping until the stream has passed
//! the moment of the reading ([`super::future`]). Nothing is written here.

use std::collections::HashMap;

use bytes::Bytes;
use futures_util::StreamExt as _;
use mongodb::Client;
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::{CollectionUuid, DocumentKey, Namespace, NamespaceId, OpTime, raw};
use oplogue_engine::sink::Write;

use super::MongoSink;
use super::mend::{among, documents, open};
use crate::mongodb::originals::{Originals, uuid_of};
use crate::mongodb::patience::answered;
use crate::mongodb::snapshot::PLAN_KILLED;
use crate::mongodb::writer::RawWriter;
use crate::mongodb::{classify, command, reply};

/// How often a document of a cluster is looked for while chunks of its collection move: each time takes milliseconds, and
/// a chunk takes seconds.
const READS_MAX: usize = 20;

/// How often a collection may seem to be away that has its name: an index filter of the server takes the hint away by
/// which that is told.
const DOUBTS_MAX: usize = 3;

/// What the source has for a write.
#[derive(Debug)]
pub(in crate::mongodb) enum Original {
    /// The document, as the plugins make it.
    Document(Bytes),
    /// None: its delete is on its way.
    Absent,
    /// One that a plugin keeps from the target: what the target has of it stays.
    Dropped,
}

impl Original {
    fn of_passed(passed: Option<Bytes>) -> Self {
        passed.map_or(Self::Dropped, Self::Document)
    }
}

/// BadValue: a hint names an index that is not there.
const BAD_VALUE: i32 = 2;

/// What was found for one write.
#[derive(Default)]
struct Found {
    document: Option<Bytes>,
    /// Time of the reading.
    read_at: Option<OpTime>,
    /// It is of the write's own collection.
    is_proved: bool,
}

/// Documents by their `_id`, and the time of the reading.
struct Together {
    documents: HashMap<DocumentKey, Bytes>,
    read_at: Option<OpTime>,
    /// They are of the collection that was meant, which had the name all the time.
    is_proved: bool,
}

impl MongoSink {
    /// Reads a document from the source, majority-committed and not older than the write, and takes it through the plugins
    /// to put it on the target.
    pub(in crate::mongodb) async fn fetch(&self, write: &Write) -> Result<Original> {
        let (document, read_at) = self.read_original(write).await?;
        self.counters.one_refetched();
        self.future.note(write.target, &write.key, read_at.unwrap_or(write.time), write.time);
        Ok(document)
    }

    /// Whether a document of the target may be ahead of the stream, because it was read here.
    pub(in crate::mongodb) fn is_ahead(&self, namespace: NamespaceId, key: &DocumentKey) -> bool {
        self.future.holds(namespace, key)
    }

    /// [`Self::fetch`] for several documents, of one moment where one question can ask for all of them: they are of one
    /// collection of a replica set. Elsewhere one after the other.
    pub(in crate::mongodb) async fn fetch_all(&self, writes: &[&Write]) -> Result<Vec<Original>> {
        if let Some(mut found) = self.read_together(writes).await? {
            let mut all = Vec::with_capacity(writes.len());
            for write in writes {
                self.counters.one_refetched();
                self.future.note(write.target, &write.key, found.read_at.unwrap_or(write.time), write.time);
                all.push(match found.documents.remove(&DocumentKey::of_document(&write.key)?) {
                    Some(document) => Original::of_passed(self.passage.take(write, document).await?),
                    None => Original::Absent,
                });
            }
            return Ok(all);
        }
        let mut all = Vec::with_capacity(writes.len());
        for write in writes {
            all.push(self.fetch(write).await?);
        }
        Ok(all)
    }

    /// `None`: they cannot be asked for at once.
    async fn read_together(&self, writes: &[&Write]) -> Result<Option<Together>> {
        let (Some(Originals::ReplicaSet(client)), [first, _, ..]) = (&self.source, writes) else { return Ok(None) };
        if writes.iter().any(|write| (write.source, write.collection) != (first.source, first.collection)) {
            return Ok(None);
        }
        let name = self.namespaces.name(first.source);
        let newest = writes.iter().map(|write| write.time).max().unwrap_or_default();
        let among =
            |w: &mut RawWriter| w.document("filter", |w| among(w, writes.iter().map(|write| write.key.as_ref())));
        // Its collection may have moved: then they are looked for one by one.
        let found = find_since(client, &name, newest, first.collection, among).await?;
        Ok(found.filter(|found| found.is_proved || first.collection.is_none()))
    }

    /// [`Self::fetch`] only to look at the document.
    pub(super) async fn look_up(&self, write: &Write) -> Result<Option<Bytes>> {
        Ok(match self.read_original(write).await?.0 {
            Original::Document(document) => Some(document),
            Original::Absent | Original::Dropped => None,
        })
    }

    async fn read_original(&self, write: &Write) -> Result<(Original, Option<OpTime>)> {
        let mut name = self.namespaces.name(write.source);
        let Some(source) = &self.source else {
            let text = format!("read a whole document of {name}: the sink was given no source to read from");
            return Err(Error::new(Side::Internal, Kind::Bug, text));
        };
        let (mut tries, mut doubts) = (0, 0);
        let Found { document, read_at, .. } = loop {
            let found = fetch(source, &name, write, doubts < DOUBTS_MAX).await?;
            let Some(uuid) = write.collection else { break found.unwrap_or_default() };
            if found.as_ref().is_some_and(|found| found.is_proved) {
                break found.unwrap_or_default();
            }
            // Its collection may have moved since, and something else may stand under its name.
            match (source.name_now(&name, uuid).await?, found) {
                (Some(now), Some(found)) if now == name => break found,
                (Some(now), found) => {
                    doubts += usize::from(found.is_none() && now == name);
                    name = now;
                }
                (None, found) => break Found { document: None, ..found.unwrap_or_default() },
            }
            tries += 1;
            if tries == READS_MAX {
                let text = format!("{name} was renamed each time when a document was to be read from it");
                return Err(Error::new(Side::Source, Kind::Unavailable, text));
            }
        };
        let passed = match document {
            Some(document) => Original::of_passed(self.passage.take(write, document).await?),
            None => Original::Absent,
        };
        Ok((passed, read_at))
    }
}

/// The document and the time of the reading; `None` when another collection, or none, had the name. Of a cluster the
/// owner's is taken. A document that moves while the shards are asked one after the other may be met nowhere: they are
/// asked again.
async fn fetch(source: &Originals, name: &Namespace, write: &Write, to_prove: bool) -> Result<Option<Found>> {
    for _ in 0..READS_MAX {
        let ownership = source.ownership(name).await?;
        let since = source.all_at(name.database()).await?.max(Some(write.time)).unwrap_or_default();
        let mut found = Found::default();
        for place in source.places(name).await?.iter() {
            // A shard without chunks of a collection need not have it.
            let meant = write.collection.filter(|_| to_prove && matches!(source, Originals::ReplicaSet(_)));
            let Some(here) = fetch_from(place.client, name, write, since, meant).await? else { return Ok(None) };
            (found.read_at, found.is_proved) = (here.read_at.max(found.read_at), here.is_proved);
            if let Some(document) = here.document
                && place.owns(name, &document).await?
            {
                found.document = Some(document);
            }
        }
        if source.ownership(name).await? == ownership {
            return Ok(Some(found));
        }
    }
    let text = format!("chunks of {name} moved each time when a document was to be read from it");
    Err(Error::new(Side::Source, Kind::Unavailable, text))
}

async fn fetch_from(
    source: &Client,
    name: &Namespace,
    write: &Write,
    since: OpTime,
    meant: Option<CollectionUuid>,
) -> Result<Option<Found>> {
    let found = find_since(source, name, since, meant, |w| {
        command::selector(w, "filter", &write.key);
        w.int("limit", 1);
    });
    let found = found.await?;
    Ok(found.map(|Together { documents, read_at, is_proved }| {
        let document = documents.into_values().next();
        Found { document, read_at, is_proved }
    }))
}

/// What a `find` returns, majority-committed and not older than `since`; `question` is its filter and its options. `None`
/// when `meant` did not have the name all the time: the cursor is opened without documents, and a rename or a drop before
/// its next reply kills it, as in the full copy (`snapshot/cursor.rs`). Where there is no index to hint at, nothing is proved.
async fn find_since(
    source: &Client,
    name: &Namespace,
    since: OpTime,
    meant: Option<CollectionUuid>,
    question: impl Fn(&mut RawWriter),
) -> Result<Option<Together>> {
    let doing = "read whole documents";
    let failed = |e| classify::error(Side::Source, &format!("{doing} of {name}"), e);
    let opening = |to_prove| open(source, name, Side::Source, doing, asked(name, since, to_prove, &question));
    let mut opened = opening(meant.is_some()).await?;
    let cannot = opened.as_ref().is_err_and(|e| meant.is_some() && classify::code(e) == Some(BAD_VALUE));
    if cannot {
        if uuid_of(source, name).await? != meant {
            return Ok(None);
        }
        opened = opening(false).await?;
    }
    let mut cursor = opened.map_err(failed)?;
    let is_proved = meant.is_some() && !cannot;
    if is_proved && uuid_of(source, name).await? != meant {
        return Ok(None);
    }
    let mut found = Together { documents: HashMap::new(), read_at: None, is_proved };
    let mut is_first = is_proved;
    while let Some(reply) = answered(Side::Source, doing, cursor.next()).await? {
        let reply = match reply {
            Err(e) if is_proved && classify::code(&e) == Some(PLAN_KILLED) => return Ok(None),
            reply => reply.map_err(failed)?,
        };
        if std::mem::take(&mut is_first) && reply::is_last(&reply)? {
            return Ok(None);
        }
        let reply = reply.as_raw_document().as_bytes();
        if let Some(time) = raw::find(reply, "operationTime")? {
            let time = OpTime::from_ts(raw::read_i64(time.value, 0)?.cast_unsigned());
            found.read_at = found.read_at.max(Some(time));
        }
        for document in documents(reply)? {
            found.documents.insert(DocumentKey::of_document(document)?, Bytes::copy_from_slice(document));
        }
    }
    Ok(Some(found))
}

/// The command of [`find_since`].
fn asked(name: &Namespace, since: OpTime, to_prove: bool, question: impl Fn(&mut RawWriter)) -> RawWriter {
    let mut w = RawWriter::with_capacity(512);
    w.string("find", name.collection());
    question(&mut w);
    if to_prove {
        w.int("batchSize", 0);
        // With several plans to choose from a server may come to the end before its first reply.
        w.document("hint", |w| w.int("_id", 1));
    }
    w.document("readConcern", |w| {
        w.string("level", "majority");
        if since.ts() > 0 {
            w.value("afterClusterTime", raw::kind::TIMESTAMP, &since.ts().to_le_bytes());
        }
    });
    w
}
