//! The full copy's reader of a cluster: each document once, from the shard that owns it.
//!
//! A shard holds more than it owns: leftovers of chunks that moved away and wait for their deletion, and parts of chunks
//! that are on their way in. So a sharded collection is read chunk by chunk from the chunk's owner, by bounds of the
//! shard key's index, and an unsharded one from its database's primary shard only. While that goes on the balancer may
//! move a chunk: what was read of it on its former owner may be half of it. When a collection is read, the chunks are
//! listed again; one whose owner does not own it since before the first list is read again there, until two lists agree.
//! A document that is read twice that way is no harm: all that happened to it since the copy's start is replayed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bson::{Bson, Document, RawDocumentBuf};
use bytes::Bytes;
use futures_util::future::try_join_all;
use mongodb::Client;
use oplogue_engine::budget::Budget;
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::{Namespace, OpTime};
use oplogue_engine::source::{CollectionPlan, Owned, Partition, ScanOrder, SnapshotCursor, SnapshotReader};

use super::merged::ShardClient;
use super::moment::Moment;
use super::routing::{Chunk, Routing, Sharded};
use crate::mongodb::snapshot::catalogue::stored_in;
use crate::mongodb::snapshot::{SnapshotOptions, SnapshotSource};

/// Reads a cluster's shards directly.
pub struct ShardedReader {
    shards: Vec<SnapshotSource>,
    clients: Vec<Client>,
    config_servers: Client,
    routing: Routing,
    /// A database that the user may read.
    database: String,
    /// Where each collection was when its reading began.
    lists: Mutex<HashMap<Namespace, List>>,
}

/// Where a collection is.
#[derive(Debug, Clone, PartialEq)]
enum List {
    /// On its database's primary shard.
    Home(Option<usize>),
    Chunks(Box<Sharded>, Vec<Chunk>),
}

impl ShardedReader {
    /// A reader whose replies take their memory from `budget`.
    #[must_use]
    pub fn new(
        shards: &[ShardClient],
        (config_servers, routing): (Client, Routing),
        options: &SnapshotOptions,
        budget: &Budget,
        database: &str,
    ) -> Self {
        let source = |shard: &ShardClient| SnapshotSource::new(shard.client.clone(), options.clone(), budget.clone());
        Self {
            shards: shards.iter().map(source).collect(),
            clients: shards.iter().map(|shard| shard.client.clone()).collect(),
            config_servers,
            routing,
            database: database.to_owned(),
            lists: Mutex::default(),
        }
    }

    fn shard(&self, number: usize) -> Result<&SnapshotSource> {
        let missing = || Error::new(Side::Internal, Kind::Bug, format!("no shard has number {number}"));
        self.shards.get(number).ok_or_else(missing)
    }

    /// Where a collection's documents are now, and a time at which they were.
    async fn list(&self, stored: &Namespace) -> Result<(List, OpTime)> {
        let list = match self.routing.sharded(stored).await? {
            Some(sharded) => {
                let chunks = self.routing.chunks(&sharded).await?;
                List::Chunks(Box::new(sharded), chunks)
            }
            None => List::Home(self.routing.home(stored.database()).await?),
        };
        let moment = Moment::of(&self.config_servers).await?;
        try_join_all(self.clients.iter().map(|client| moment.pass_on(client, &self.database, "local"))).await?;
        Ok((list, moment.time))
    }

    /// The plans of all shards for one name as one: the home's of an unsharded collection, the sum of a sharded one.
    async fn joined(&self, plans: Vec<(usize, CollectionPlan)>) -> Result<Option<CollectionPlan>> {
        let Some((_, first)) = plans.first() else { return Ok(None) };
        let stored = stored_in(first).unwrap_or_else(|| first.namespace.clone());
        if let Some(sharded) = self.routing.sharded(&stored).await? {
            let of_it = plans.into_iter().map(|(_, plan)| plan).filter(|plan| plan.uuid == sharded.uuid);
            return Ok(of_it.reduce(|sum, plan| CollectionPlan {
                documents: sum.documents + plan.documents,
                bytes: sum.bytes + plan.bytes,
                ..sum
            }));
        }
        let namespace = first.namespace.clone();
        let home = self.routing.home(namespace.database()).await?;
        let plan = plans.into_iter().find(|(shard, _)| Some(*shard) == home).map(|(_, plan)| plan);
        if plan.is_none() {
            tracing::info!(%namespace, "left out: the shard that has it is not its database's primary shard");
        }
        Ok(plan)
    }

    /// What of a collection is to be read where.
    async fn partitions(
        &self,
        plan: &CollectionPlan,
        list: &List,
        after: OpTime,
        bytes: u64,
    ) -> Result<Vec<Partition>> {
        match list {
            List::Home(None) => Ok(Vec::new()),
            List::Home(Some(shard)) => {
                let mut parts = self.shard(*shard)?.partition(plan, bytes).await?;
                for part in &mut parts {
                    part.owned = Some(Owned { shard: *shard, after, index: None, filter: None });
                }
                Ok(parts)
            }
            List::Chunks(sharded, chunks) => {
                let count = plan.bytes.div_ceil(bytes.max(1)).max(1);
                let count = usize::try_from(count).unwrap_or(usize::MAX).max(self.shards.len());
                let at_most = chunks.len().div_ceil(count);
                self.ranges(plan, sharded, &neighbours(chunks, at_most), after).await
            }
        }
    }

    async fn ranges(
        &self,
        plan: &CollectionPlan,
        sharded: &Sharded,
        chunks: &[Chunk],
        after: OpTime,
    ) -> Result<Vec<Partition>> {
        let Some(stored) = stored_in(plan) else { return Ok(Vec::new()) };
        let mut ranges = Vec::with_capacity(chunks.len() + 1);
        for chunk in chunks {
            let index = self.index(chunk.shard, &stored, &sharded.key).await?;
            let by_id = index.len() == 1 && index.get("_id").is_some_and(|kind| kind.as_str().is_none());
            let owned = |filter| -> Result<Owned> {
                let index = if by_id { None } else { Some(raw(&index)?) };
                Ok(Owned { shard: chunk.shard, after, index, filter })
            };
            let part = Partition {
                namespace: stored.clone(),
                min: bound(&index, &chunk.min, &Bson::MinKey)?,
                max: bound(&index, &chunk.max, &Bson::MaxKey)?,
                order: ScanOrder::Id,
                uuid: plan.uuid,
                owned: Some(owned(None)?),
            };
            if !by_id
                && part.max.is_none()
                && part.min.is_some()
                && let Some(filter) = at_the_end(&sharded.key)
            {
                let owned = Some(owned(Some(raw(&filter)?))?);
                ranges.push(Partition { min: None, max: None, owned, ..part.clone() });
            }
            ranges.push(part);
        }
        Ok(ranges)
    }

    /// The key pattern of an index by which the shard key's ranges can be read: its own, or one that begins with it.
    async fn index(&self, shard: usize, stored: &Namespace, key: &Document) -> Result<Document> {
        let specs = self.shard(shard)?.indexes(stored).await?;
        let specs = specs.iter().filter_map(|spec| bson::deserialize_from_slice::<Document>(spec).ok());
        let mut serving: Vec<Document> = specs.filter_map(|spec| serving(&spec, key)).collect();
        serving.sort_by_key(Document::len);
        serving.into_iter().next().ok_or_else(|| {
            let text = format!("copy {stored}: the shard has no index on the shard key {key} to read its chunks by");
            Error::new(Side::Source, Kind::CannotApply, text)
        })
    }

    fn remember(&self, stored: Namespace, list: List) -> Option<List> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner).insert(stored, list)
    }
}

#[async_trait]
impl SnapshotReader for ShardedReader {
    async fn collections(&self) -> Result<Vec<CollectionPlan>> {
        self.routing.check_shards().await?;
        let listed = try_join_all(self.shards.iter().map(SnapshotReader::collections)).await?;
        let mut by_name: std::collections::BTreeMap<String, Vec<_>> = std::collections::BTreeMap::new();
        for (shard, plans) in listed.into_iter().enumerate() {
            for plan in plans {
                by_name.entry(plan.namespace.as_str().to_owned()).or_default().push((shard, plan));
            }
        }
        let mut joined = Vec::new();
        for plans in by_name.into_values() {
            joined.extend(self.joined(plans).await?);
        }
        Ok(joined)
    }

    async fn partition(&self, plan: &CollectionPlan, partition_bytes: u64) -> Result<Vec<Partition>> {
        let Some(stored) = stored_in(plan) else { return Ok(Vec::new()) };
        let (list, after) = self.list(&stored).await?;
        let parts = self.partitions(plan, &list, after, partition_bytes).await?;
        self.remember(stored, list);
        Ok(parts)
    }

    async fn place(&self, plan: &CollectionPlan) -> Result<Option<Namespace>> {
        let Some(stored) = stored_in(plan) else { return Ok(Some(plan.namespace.clone())) };
        if let Some(sharded) = self.routing.sharded(&stored).await?
            && sharded.uuid == plan.uuid
        {
            return Ok(Some(plan.namespace.clone()));
        }
        // Dropped, renamed or not sharded: any shard that has it knows its name.
        for shard in &self.shards {
            if let Some(name) = shard.place(plan).await? {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    async fn moved(&self, plan: &CollectionPlan) -> Result<Vec<Partition>> {
        let Some(stored) = stored_in(plan) else { return Ok(Vec::new()) };
        let (now, after) = self.list(&stored).await?;
        let Some(before) = self.remember(stored, now.clone()) else { return Ok(Vec::new()) };
        match (before, now) {
            (List::Chunks(was, before), List::Chunks(is, now)) if was.key == is.key && was.uuid == is.uuid => {
                let moved: Vec<Chunk> = now.into_iter().filter(|chunk| !was_there(&before, chunk)).collect();
                self.ranges(plan, &is, &moved, after).await
            }
            (List::Home(before), List::Home(now)) if before == now => Ok(Vec::new()),
            // Another database's primary, another shard key, sharded meanwhile or no longer: all of it again.
            (_, now) => self.partitions(plan, &now, after, u64::MAX).await,
        }
    }

    async fn open(&self, partition: &Partition, after: OpTime) -> Result<Box<dyn SnapshotCursor>> {
        let shard = partition.owned.as_ref().map_or(0, |owned| owned.shard);
        self.shard(shard)?.open(partition, after).await
    }

    async fn indexes(&self, namespace: &Namespace) -> Result<Vec<Bytes>> {
        let shard = match self.list(namespace).await?.0 {
            List::Home(home) => home,
            List::Chunks(_, chunks) => chunks.first().map(|chunk| chunk.shard),
        };
        match shard {
            Some(shard) => self.shard(shard)?.indexes(namespace).await,
            None => Ok(Vec::new()),
        }
    }
}

/// Whether the shard that owns a chunk owned it when the earlier list was made. Each move has a time of its own, which
/// splits keep.
fn was_there(before: &[Chunk], chunk: &Chunk) -> bool {
    before.iter().any(|earlier| match (earlier.since, chunk.since) {
        (Some(earlier_since), Some(since)) => earlier.shard == chunk.shard && earlier_since == since,
        _ => earlier == chunk,
    })
}

/// Chunks that stand side by side on one shard as one, at most `at_most` of them.
fn neighbours(chunks: &[Chunk], at_most: usize) -> Vec<Chunk> {
    let mut joined: Vec<(Chunk, usize)> = Vec::new();
    for chunk in chunks {
        match joined.last_mut() {
            Some((last, count)) if last.shard == chunk.shard && last.max == chunk.min && *count < at_most => {
                last.max = chunk.max.clone();
                *count += 1;
            }
            Some(_) | None => joined.push((chunk.clone(), 1)),
        }
    }
    joined.into_iter().map(|(chunk, _)| chunk).collect()
}

/// The key pattern of an index that has every document and begins with the shard key.
fn serving(spec: &Document, key: &Document) -> Option<Document> {
    let pattern = spec.get_document("key").ok()?;
    let is_partial = spec.contains_key("partialFilterExpression") || spec.get_bool("sparse").unwrap_or(false);
    let is_collated = spec.contains_key("collation");
    let begins = pattern.iter().zip(key).all(|((name, kind), (path, wanted))| name == path && same_kind(kind, wanted));
    (begins && pattern.len() >= key.len() && !is_partial && !is_collated).then(|| pattern.clone())
}

/// Directions of indexes come as any number.
fn same_kind(a: &Bson, b: &Bson) -> bool {
    match (a.as_str(), b.as_str()) {
        (None, None) => is_descending(a) == is_descending(b),
        (a, b) => a == b,
    }
}

#[allow(clippy::wildcard_enum_match_arm, reason = "BSON has twenty types and three of them are directions")]
fn is_descending(direction: &Bson) -> bool {
    match direction {
        Bson::Int32(n) => *n < 0,
        Bson::Int64(n) => *n < 0,
        Bson::Double(n) => *n < 0.0,
        _ => false,
    }
}

/// What the documents have in common that a range with a lower bound ends before, though the last chunk holds them: to
/// the server it ends at `MaxKey`. No hash is that.
fn at_the_end(key: &Document) -> Option<Document> {
    let (leading, kind) = key.iter().next()?;
    let mut filter = Document::new();
    filter.insert(leading.clone(), Bson::MaxKey);
    kind.as_str().is_none().then_some(filter)
}

/// A chunk's bound as one of an index that may have more fields; none where it is the end of everything.
fn bound(index: &Document, of_chunk: &Document, end: &Bson) -> Result<Option<Bytes>> {
    if of_chunk.values().all(|value| value == end) {
        return Ok(None);
    }
    let mut bound = Document::new();
    for (path, direction) in index {
        let first = if is_descending(direction) { Bson::MaxKey } else { Bson::MinKey };
        bound.insert(path.clone(), of_chunk.get(path).cloned().unwrap_or(first));
    }
    raw(&bound).map(Some)
}

fn raw(document: &Document) -> Result<Bytes> {
    let malformed = |e| Error::new(Side::Source, Kind::Malformed, "write a range of the shard key").caused_by(e);
    RawDocumentBuf::try_from(document).map(|raw| Bytes::from(raw.into_bytes())).map_err(malformed)
}

/// The routing of a cluster for [`ShardedReader::new`] and the sink.
///
/// # Errors
/// As [`Routing::of`].
pub async fn routing(config_servers: &Client, shards: &[ShardClient]) -> Result<Routing> {
    let names: Vec<Arc<str>> = shards.iter().map(|shard| Arc::clone(&shard.name)).collect();
    Routing::of(config_servers.clone(), names).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;

    fn chunk(min: i32, max: i32, shard: usize, since: u32) -> Chunk {
        Chunk { min: doc! { "k": min }, max: doc! { "k": max }, shard, since: Some(OpTime::new(since, 1, -1)) }
    }

    #[test]
    fn a_chunk_that_left_and_came_back_was_not_there() {
        let before = [chunk(0, 10, 0, 5), chunk(10, 20, 1, 5)];
        assert!(was_there(&before, &chunk(0, 4, 0, 5)), "split since");
        assert!(!was_there(&before, &chunk(0, 10, 1, 9)), "moved");
        assert!(!was_there(&before, &chunk(0, 10, 0, 12)), "moved there and back");
    }

    #[test]
    fn chunks_side_by_side_are_one_range() {
        let chunks = [chunk(0, 1, 0, 5), chunk(1, 2, 0, 7), chunk(2, 3, 1, 5), chunk(3, 4, 0, 5), chunk(4, 5, 0, 5)];
        let joined: Vec<_> = neighbours(&chunks, 10).into_iter().map(|c| (c.min, c.max, c.shard)).collect();
        let range = |min: i32, max: i32, shard| (doc! { "k": min }, doc! { "k": max }, shard);
        assert_eq!(joined, [range(0, 2, 0), range(2, 3, 1), range(3, 5, 0)]);
        assert_eq!(neighbours(&chunks, 1).len(), 5);
    }

    #[test]
    fn bounds_are_filled_up_to_the_index() {
        let index = doc! { "k": 1, "a": -1, "b": 1 };
        let filled = bound(&index, &doc! { "k": 7 }, &Bson::MinKey).unwrap().unwrap();
        let expected = doc! { "k": 7, "a": Bson::MaxKey, "b": Bson::MinKey };
        assert_eq!(bson::deserialize_from_slice::<Document>(&filled).unwrap(), expected);
        assert_eq!(bound(&index, &doc! { "k": Bson::MinKey }, &Bson::MinKey).unwrap(), None);
    }

    #[test]
    fn an_index_serves_when_it_has_every_document() {
        let key = doc! { "k": 1, "j": 1 };
        let serves = |spec: Document| serving(&spec, &key).is_some();
        assert!(serves(doc! { "key": { "k": 1.0, "j": 1_i64, "x": -1 } }));
        assert!(!serves(doc! { "key": { "j": 1, "k": 1 } }) && !serves(doc! { "key": { "k": 1 } }));
        assert!(!serves(doc! { "key": { "k": 1, "j": 1 }, "sparse": true }));
        assert!(!serves(doc! { "key": { "k": "hashed", "j": 1 } }));
    }
}
