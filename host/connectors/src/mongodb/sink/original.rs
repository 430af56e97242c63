//! Documents as the source has them now, for what cannot be written without.
//!
//! What is read here is majority-committed and not older than the change that asked for it, and has passed the plugins.
//! It may contain changes that are still on their way, so the document counts as overlapping until the stream has passed
//! the moment of the reading ([`super::future`]). Nothing is written here.

use std::collections::HashMap;

use bytes::Bytes;
use mongodb::Client;
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::{DocumentKey, Namespace, NamespaceId, OpTime, raw};
use oplogue_engine::sink::Write;

use super::MongoSink;
use super::mend::{among, batches, documents};
use crate::mongodb::command;
use crate::mongodb::originals::Originals;
use crate::mongodb::writer::RawWriter;

/// How often a document of a cluster is looked for while chunks of its collection move: each time takes milliseconds, and
/// a chunk takes seconds.
const READS_MAX: usize = 20;

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

/// Documents by their `_id`, and the time of the reading.
struct Together {
    documents: HashMap<DocumentKey, Bytes>,
    read_at: Option<OpTime>,
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
        let found = find_since(client, &name, newest, among).await?;
        // Its collection may have moved since: they are looked for one by one.
        if let (Some(uuid), Some(source)) = (first.collection, &self.source)
            && source.name_now(&name, uuid).await?.as_ref() != Some(&name)
        {
            return Ok(None);
        }
        Ok(Some(found))
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
        let (mut document, mut read_at) = fetch(source, &name, write).await?;
        // Its collection may have moved since, and something else may stand under its name.
        while let Some(uuid) = write.collection {
            match source.name_now(&name, uuid).await? {
                Some(now) if now == name => break,
                Some(now) => {
                    name = now;
                    (document, read_at) = fetch(source, &name, write).await?;
                }
                None => {
                    document = None;
                    break;
                }
            }
        }
        let passed = match document {
            Some(document) => Original::of_passed(self.passage.take(write, document).await?),
            None => Original::Absent,
        };
        Ok((passed, read_at))
    }
}

/// The document and the time of the reading. Of a cluster the owner's is taken. A document that moves while the shards
/// are asked one after the other may be met nowhere: they are asked again.
async fn fetch(source: &Originals, name: &Namespace, write: &Write) -> Result<(Option<Bytes>, Option<OpTime>)> {
    for _ in 0..READS_MAX {
        let ownership = source.ownership(name).await?;
        let since = source.all_at(name.database()).await?.max(Some(write.time)).unwrap_or_default();
        let (mut found, mut read_at) = (None, None);
        for place in source.places(name).await?.iter() {
            let (document, time) = fetch_from(place.client, name, write, since).await?;
            read_at = time.max(read_at);
            if let Some(document) = document
                && place.owns(name, &document).await?
            {
                found = Some(document);
            }
        }
        if source.ownership(name).await? == ownership {
            return Ok((found, read_at));
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
) -> Result<(Option<Bytes>, Option<OpTime>)> {
    let found = find_since(source, name, since, |w| {
        command::selector(w, "filter", &write.key);
        w.int("limit", 1);
        w.boolean("singleBatch", true);
    });
    let Together { documents, read_at } = found.await?;
    Ok((documents.into_values().next(), read_at))
}

/// What a `find` returns, majority-committed and not older than `since`; `question` is its filter and its options.
async fn find_since(
    source: &Client,
    name: &Namespace,
    since: OpTime,
    question: impl FnOnce(&mut RawWriter),
) -> Result<Together> {
    let mut w = RawWriter::with_capacity(512);
    w.string("find", name.collection());
    question(&mut w);
    w.document("readConcern", |w| {
        w.string("level", "majority");
        if since.ts() > 0 {
            w.value("afterClusterTime", raw::kind::TIMESTAMP, &since.ts().to_le_bytes());
        }
    });
    let mut found = Together { documents: HashMap::new(), read_at: None };
    for reply in batches(source, name, Side::Source, "read whole documents", w).await? {
        if let Some(time) = raw::find(&reply, "operationTime")? {
            let time = OpTime::from_ts(raw::read_i64(time.value, 0)?.cast_unsigned());
            found.read_at = found.read_at.max(Some(time));
        }
        for document in documents(&reply)? {
            found.documents.insert(DocumentKey::of_document(document)?, Bytes::copy_from_slice(document));
        }
    }
    Ok(found)
}
