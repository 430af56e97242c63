//! Which target collection a source collection became, and what stands on the target now.
//!
//! Names are reused: after `drop X; rename Y→X` the name `X` means another collection, and replaying the drop would
//! destroy it. Collections are therefore told apart by UUID (correctness.md §6). This module keeps the pairs
//! source UUID → target UUID, which the checkpoint store makes durable, and a cached catalogue of the target. It runs
//! no DDL; it only answers whether a name still holds what an entry means.
//!
//! A pair that is a copy has the time of that copy: what happened to the collection before it is in the copy. So a
//! collection that was renamed out of the filter and came back survives the replay of that rename, which is a drop.
//!
//! UUIDs alone are not enough: after `a → b`, `b → a` the collection has its old name again, and a replayed `a → b`
//! looks undone. So the time of the newest executed DDL is kept beside the pairs, under a key that is no UUID: every
//! earlier DDL is done.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bson::{Bson, Document, doc};
use futures_util::TryStreamExt as _;
use mongodb::Client;
use oplogue_engine::checkpoint::{CheckpointStore, Identity};
use oplogue_engine::error::{Result, Side};
use oplogue_engine::model::{CollectionUuid, Namespace, OpTime};

use super::classify;
use super::patience::answered;
use super::shard_key::ShardKey;

mod claim;
mod sharding;
mod views;

/// What a name of the target stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Collection,
    View,
    TimeSeries,
}

/// A collection or view of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CollectionInfo {
    pub(crate) uuid: Option<CollectionUuid>,
    pub(crate) shape: Shape,
    pub(crate) capped: bool,
    /// A default collation other than the simple one: ids that differ in bytes can be one key.
    pub(crate) collated: bool,
}

impl CollectionInfo {
    /// Whether writes to it must keep the order they came in.
    pub(crate) fn is_ordered(&self) -> bool {
        self.capped || self.collated
    }
}

/// Where a replayed change belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Whereabouts {
    /// Under the name it was met with.
    Here,
    /// A rename that is done already moved the collection.
    At(Namespace),
    /// The collection is dropped already, or the change is in its copy: nothing is to be done.
    Gone,
}

/// How a target name relates to a source collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It holds the very collection that the source collection became.
    Own(CollectionUuid),
    /// It holds a collection that no source collection is known to have become.
    Unclaimed(CollectionUuid),
    /// It holds another source collection's copy, or the source collection is known to be elsewhere or gone.
    Other,
    /// Nothing stands there, and nothing is known of the source collection.
    Absent,
    /// Nothing stands there, though the source collection had a copy: it was moved or dropped already.
    Gone,
    /// A view, or a collection without identity.
    Nameless,
}

#[derive(Default)]
struct State {
    /// The source collections whose moves to other databases were begun.
    moving: HashSet<CollectionUuid>,
    collections: HashMap<Namespace, CollectionInfo>,
    target_of: HashMap<CollectionUuid, CollectionUuid>,
    source_of: HashMap<CollectionUuid, CollectionUuid>,
    /// Shard keys, of collections whose documents are placed by more than their `_id`.
    shard_keys: HashMap<Namespace, Arc<ShardKey>>,
    /// Whether a collection has an index that lets documents expire, as far as anybody asked.
    expiring: HashMap<Namespace, bool>,
    /// Source collections that were dropped, and when.
    retired: HashMap<CollectionUuid, OpTime>,
    /// Source collections whose pair is a copy, and what time of the source it is not older than.
    copied: HashMap<CollectionUuid, OpTime>,
    /// Unknown source collections that were looked at once.
    met: HashSet<CollectionUuid>,
    /// What views of the source became: by the name on the source, the one on the target.
    views: HashMap<Namespace, Namespace>,
    /// The newest executed DDL.
    mark: OpTime,
}

/// Stands where a source UUID stands; a UUID of version 4 has another digit at its thirteenth place.
const MARK_KEY: CollectionUuid = *b"newest DDL done:";

/// A source collection's UUID differs by this from the key under which it is noted that its rename across databases was
/// begun. A replay may execute others before it meets that one.
const MOVING: CollectionUuid = *b"a move began of:";

/// The key of a source collection whose rename across databases was begun.
fn moving_key(source: CollectionUuid) -> CollectionUuid {
    let mut key = MOVING;
    key.iter_mut().zip(source).for_each(|(byte, of_source)| *byte ^= of_source);
    key
}

impl State {
    fn pair(&mut self, source: CollectionUuid, target: CollectionUuid) {
        if let Some(former) = self.target_of.insert(source, target) {
            self.source_of.remove(&former);
        }
        self.source_of.insert(target, source);
        self.retired.remove(&source);
    }

    /// A collection that left the filter and came back was copied as it was then.
    fn is_in_copy(&self, source: CollectionUuid, time: OpTime) -> bool {
        self.copied.get(&source).is_some_and(|copied| time.ts() < copied.ts())
    }
}

/// The identity pairs and the target's catalogue.
pub(crate) struct Catalogue {
    client: Client,
    store: Arc<dyn CheckpointStore>,
    /// The target is a cluster behind a `mongos`: collections may be sharded.
    is_cluster: AtomicBool,
    state: RwLock<State>,
}

impl Catalogue {
    pub(crate) fn new(client: Client, store: Arc<dyn CheckpointStore>) -> Self {
        Self { client, store, is_cluster: AtomicBool::new(false), state: RwLock::default() }
    }

    /// Fails when another instance took the lease of the job.
    pub(crate) async fn still_held(&self) -> Result<()> {
        self.store.still_held().await
    }

    /// Reads the pairs from the store and the catalogue of every database of the target.
    pub(crate) async fn load(&self, is_cluster: bool) -> Result<()> {
        self.is_cluster.store(is_cluster, Ordering::Release);
        let identities = self.store.identities().await?;
        {
            let mut state = self.write();
            for Identity { source, target, copied } in identities {
                if source == MARK_KEY {
                    state.mark = unpack(target);
                } else if source == moving_key(target) {
                    state.moving.insert(target);
                } else {
                    state.pair(source, target);
                    state.copied.extend(copied.map(|time| (source, time)));
                }
            }
        }
        let names = answered(Side::Sink, "list the target's databases", self.client.list_database_names()).await?;
        for database in names.map_err(|e| classify::error(Side::Sink, "list the target's databases", e))? {
            if !matches!(database.as_str(), "local" | "config") {
                self.refresh_database(&database).await?;
            }
        }
        self.load_views().await
    }

    /// Reads the catalogue of one database again and returns its names.
    pub(crate) async fn refresh_database(&self, database: &str) -> Result<Vec<(Namespace, CollectionInfo)>> {
        let listed = self.list(database, Document::new()).await?;
        let keys = self.keys_of_database(database, &listed).await?;
        let mut state = self.write();
        state.shard_keys.retain(|name, _| name.database() != database);
        state.shard_keys.extend(keys);
        state.collections.retain(|name, _| name.database() != database);
        state.expiring.retain(|name, _| name.database() != database);
        state.collections.extend(listed.iter().cloned());
        Ok(listed)
    }

    /// Reads one name again.
    pub(crate) async fn refresh(&self, name: &Namespace) -> Result<Option<CollectionInfo>> {
        let listed = self.list(name.database(), doc! { "name": name.collection() }).await?;
        let found = listed.into_iter().next().map(|(_, info)| info);
        let key = self.key_of(name, found).await?;
        let mut state = self.write();
        match key {
            Some(key) => state.shard_keys.insert(name.clone(), Arc::new(key)),
            None => state.shard_keys.remove(name),
        };
        state.expiring.remove(name);
        match found {
            Some(info) => state.collections.insert(name.clone(), info),
            None => state.collections.remove(name),
        };
        Ok(found)
    }

    /// Whether the target removes documents of a collection by itself. Asked once, until a DDL concerns the name.
    pub(crate) async fn expires(&self, name: &Namespace) -> Result<bool> {
        if let Some(known) = self.read().expiring.get(name) {
            return Ok(*known);
        }
        let failed = |e| classify::error(Side::Sink, &format!("list the indexes of {name} (needs `listIndexes`)"), e);
        let command = doc! { "listIndexes": name.collection() };
        let database = self.client.database(name.database());
        let list = async { database.run_cursor_command(command).await?.try_collect::<Vec<Document>>().await };
        let expires = match answered(Side::Sink, &format!("list the indexes of {name}"), list).await? {
            Ok(listed) => listed.iter().any(|index| index.contains_key("expireAfterSeconds")),
            // NamespaceNotFound, CommandNotSupportedOnView.
            Err(e) if matches!(classify::code(&e), Some(26 | 166)) => false,
            Err(e) => return Err(failed(e)),
        };
        self.write().expiring.insert(name.clone(), expires);
        Ok(expires)
    }

    /// Forgets whether a collection's documents expire: its indexes changed.
    pub(crate) fn forget_expiring(&self, name: &Namespace) {
        self.write().expiring.remove(name);
    }

    async fn list(&self, database: &str, filter: Document) -> Result<Vec<(Namespace, CollectionInfo)>> {
        let failed = |e| classify::error(Side::Sink, &format!("list the collections of {database}"), e);
        let command = doc! { "listCollections": 1, "filter": filter };
        let client = self.client.database(database);
        let list = async { client.run_cursor_command(command).await?.try_collect().await };
        let doing = &format!("list the collections of {database}");
        let all: Vec<Document> = answered(Side::Sink, doing, list).await?.map_err(failed)?;
        Ok(all.iter().filter_map(|listed| entry(database, listed)).collect())
    }

    /// What is known of a name, without asking the server.
    pub(crate) fn info(&self, name: &Namespace) -> Option<CollectionInfo> {
        self.read().collections.get(name).copied()
    }

    /// How the cached catalogue relates `name` to the source collection `source`.
    pub(crate) fn standing(&self, name: &Namespace, source: CollectionUuid) -> Standing {
        let state = self.read();
        let mapped = state.target_of.get(&source);
        let Some(info) = state.collections.get(name) else {
            return if mapped.is_some() { Standing::Gone } else { Standing::Absent };
        };
        let Some(uuid) = info.uuid else {
            return Standing::Nameless;
        };
        match (mapped, state.source_of.get(&uuid)) {
            (Some(target), _) if *target == uuid => Standing::Own(uuid),
            (None, None) => Standing::Unclaimed(uuid),
            _ => Standing::Other,
        }
    }

    /// Whether a target collection of this UUID stands under any name.
    pub(crate) fn stands_anywhere(&self, source: CollectionUuid) -> bool {
        let state = self.read();
        let Some(target) = state.target_of.get(&source) else {
            return false;
        };
        state.collections.values().any(|info| info.uuid == Some(*target))
    }

    /// Whether some source collection became the target collection `target`.
    pub(crate) fn is_claimed(&self, target: CollectionUuid) -> bool {
        self.read().source_of.contains_key(&target)
    }

    /// Stores the pair of a source collection and what became of it.
    pub(crate) async fn record(&self, source: CollectionUuid, target: CollectionUuid) -> Result<()> {
        let copied = self.read().copied.get(&source).copied();
        self.store.record_identity(Identity { source, target, copied }).await?;
        self.write().pair(source, target);
        Ok(())
    }

    /// Notes that a copy of a source collection is about to be made and recorded: of its state at `time` or later.
    pub(crate) fn copying(&self, source: CollectionUuid, time: OpTime) {
        let mut state = self.write();
        let known = state.copied.entry(source).or_insert(time);
        if known.ts() < time.ts() {
            *known = time;
        }
    }

    /// Whether what a source collection became is a copy, and did not grow out of its changes.
    pub(crate) fn is_copy(&self, source: CollectionUuid) -> bool {
        self.read().copied.contains_key(&source)
    }

    /// Whether the copy of a source collection was made for an entry of `time`, or a later one.
    pub(crate) fn is_copy_of(&self, source: CollectionUuid, time: OpTime) -> bool {
        self.read().copied.get(&source).is_some_and(|copied| copied.ts() >= time.ts())
    }

    /// The time that the copy of a source collection was made for.
    pub(crate) fn copied_at(&self, source: CollectionUuid) -> Option<OpTime> {
        self.read().copied.get(&source).copied()
    }

    /// Whether what happened to a source collection at `time` is in its copy.
    pub(crate) fn is_in_copy(&self, source: CollectionUuid, time: OpTime) -> bool {
        self.read().is_in_copy(source, time)
    }

    /// Notes that a source collection is gone since `time`. Its pair stays until [`Self::prune`], so that replayed
    /// changes of it are known for what they are.
    pub(crate) fn retire(&self, source: CollectionUuid, time: OpTime) {
        self.write().retired.insert(source, time);
    }

    /// Whether a source collection is known to be gone.
    pub(crate) fn is_retired(&self, source: CollectionUuid) -> bool {
        let state = self.read();
        !state.retired.is_empty() && state.retired.contains_key(&source)
    }

    /// Forgets the source collections that were gone before `durable`: no replay reaches back to them.
    pub(crate) async fn prune(&self, durable: OpTime) -> Result<()> {
        let gone: Vec<CollectionUuid> = {
            let state = self.read();
            state.retired.iter().filter(|(_, time)| time.ts() < durable.ts()).map(|(source, _)| *source).collect()
        };
        for source in gone {
            self.store.forget_identity(source).await?;
            let mut state = self.write();
            state.retired.remove(&source);
            state.copied.remove(&source);
            if let Some(target) = state.target_of.remove(&source) {
                state.source_of.remove(&target);
            }
        }
        Ok(())
    }

    /// Whether a DDL of `time` was executed before. One at the mark itself may have been.
    pub(crate) fn is_before_mark(&self, time: OpTime) -> bool {
        time.ts() < self.read().mark.ts()
    }

    /// Whether any DDL is known to be executed.
    pub(crate) fn has_mark(&self) -> bool {
        self.read().mark != OpTime::default()
    }

    /// What is recorded beside a source collection.
    pub(crate) fn paired_with(&self, source: CollectionUuid) -> Option<CollectionUuid> {
        self.read().target_of.get(&source).copied()
    }

    /// Whether a collection was copied.
    pub(crate) fn has_any_copy(&self) -> bool {
        !self.read().copied.is_empty()
    }

    /// Whether anything is known of which collection is which.
    pub(crate) fn has_any_pair(&self) -> bool {
        let state = self.read();
        state.mark != OpTime::default() || !state.target_of.is_empty()
    }

    /// Notes that every DDL up to `time` is executed.
    pub(crate) async fn advance_mark(&self, time: OpTime) -> Result<()> {
        if time.ts() <= self.read().mark.ts() {
            return Ok(());
        }
        self.store.record_identity(Identity { source: MARK_KEY, target: pack(time), copied: None }).await?;
        self.write().mark = time;
        Ok(())
    }

    /// Gives a source collection that no DDL and no copy introduced the target collection it is written to, if nobody
    /// else claims that. Looked at once.
    pub(crate) async fn meet(&self, name: &Namespace, source: CollectionUuid) -> Result<()> {
        if self.is_known(source) || !self.write().met.insert(source) {
            return Ok(());
        }
        self.refresh(name).await?;
        match self.standing(name, source) {
            Standing::Unclaimed(target) => {
                let claimed = self.claim(name, source, target).await?;
                // Where another one stands by now, a pair with this one would let the changes go nowhere.
                if !claimed && self.info(name).and_then(|info| info.uuid) == Some(target) {
                    // This sink ends with the primary that has it, and until then the two belong together: a drop that is
                    // known to be done must find what its collection's changes have made anew.
                    self.write().pair(source, target);
                }
                Ok(())
            }
            Standing::Own(_) | Standing::Other | Standing::Absent | Standing::Gone | Standing::Nameless => Ok(()),
        }
    }

    /// Notes that a source collection's copy is about to become another collection, in another database.
    pub(crate) async fn move_begins(&self, source: CollectionUuid) -> Result<()> {
        self.store.record_identity(Identity { source: moving_key(source), target: source, copied: None }).await?;
        self.write().moving.insert(source);
        Ok(())
    }

    /// It has, and what it became is recorded.
    pub(crate) async fn move_ended(&self, source: CollectionUuid) -> Result<()> {
        self.store.forget_identity(moving_key(source)).await?;
        self.write().moving.remove(&source);
        Ok(())
    }

    /// Whether that had begun, and nothing is recorded yet.
    pub(crate) fn is_moving(&self, source: CollectionUuid) -> bool {
        self.read().moving.contains(&source)
    }

    /// Whether it is known what became of a source collection.
    pub(crate) fn is_known(&self, source: CollectionUuid) -> bool {
        self.read().target_of.contains_key(&source)
    }

    /// The name under which the copy of a source collection stands.
    pub(crate) fn place_of(&self, source: CollectionUuid) -> Option<Namespace> {
        let state = self.read();
        let target = state.target_of.get(&source)?;
        let found = state.collections.iter().find(|(_, info)| info.uuid.as_ref() == Some(target));
        found.map(|(name, _)| name.clone())
    }

    /// Where a change of `time` of the source collection `source`, met in overlap under `name`, belongs now. All
    /// changes of a collection must go the same way: if those under a former name were left out and those under the
    /// present one were repeated, a deleted document could come back.
    pub(crate) fn whereabouts(&self, name: &Namespace, source: CollectionUuid, time: OpTime) -> Whereabouts {
        let state = self.read();
        if state.is_in_copy(source, time) {
            return Whereabouts::Gone;
        }
        let Some(target) = state.target_of.get(&source) else {
            return Whereabouts::Here;
        };
        let is_it = |info: &CollectionInfo| info.uuid.as_ref() == Some(target);
        if state.collections.get(name).is_some_and(is_it) {
            return Whereabouts::Here;
        }
        let found = state.collections.iter().find(|(_, info)| is_it(info));
        found.map_or(Whereabouts::Gone, |(name, _)| Whereabouts::At(name.clone()))
    }

    /// Whether nothing introduced a source collection, and no DDL up to a mark later than `time` touched it, or it would be
    /// known; and another collection's copy has the name by now. It went before anybody looked, or both go there.
    pub(crate) fn may_have_gone(&self, name: &Namespace, source: CollectionUuid, time: OpTime) -> bool {
        let state = self.read();
        let standing = state.collections.get(name).and_then(|info| info.uuid);
        let is_taken = standing.is_some_and(|uuid| state.source_of.contains_key(&uuid));
        is_taken && !state.target_of.contains_key(&source) && time.ts() < state.mark.ts()
    }

    /// Whether `name` holds the copy of a source collection other than `source`.
    pub(crate) fn is_of_another(&self, name: &Namespace, source: CollectionUuid) -> bool {
        let state = self.read();
        let standing = state.collections.get(name).and_then(|info| info.uuid);
        standing.and_then(|uuid| state.source_of.get(&uuid)).is_some_and(|claimed_by| *claimed_by != source)
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn pack(time: OpTime) -> CollectionUuid {
    let mut packed = [0; 16];
    let (ts, term) = packed.split_at_mut(8);
    ts.copy_from_slice(&time.ts().to_be_bytes());
    term.copy_from_slice(&time.term.to_be_bytes());
    packed
}

pub(crate) fn unpack(packed: CollectionUuid) -> OpTime {
    let (ts, term) = packed.split_at(8);
    let number = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes).unwrap_or_default();
    OpTime { term: number(term).cast_signed(), ..OpTime::from_ts(number(ts)) }
}

fn entry(database: &str, listed: &Document) -> Option<(Namespace, CollectionInfo)> {
    let name = Namespace::of(database, listed.get_str("name").ok()?);
    let options = listed.get_document("options").ok();
    let uuid = listed.get_document("info").ok().and_then(|info| uuid(info.get("uuid")?));
    let locale = options.and_then(|o| o.get_document("collation").ok()).and_then(|c| c.get_str("locale").ok());
    Some((
        name,
        CollectionInfo {
            uuid,
            shape: match listed.get_str("type").unwrap_or_default() {
                "view" => Shape::View,
                "timeseries" => Shape::TimeSeries,
                _ => Shape::Collection,
            },
            capped: options.is_some_and(|o| o.get_bool("capped").unwrap_or(false)),
            collated: locale.is_some_and(|locale| locale != "simple"),
        },
    ))
}

pub(crate) fn uuid(value: &Bson) -> Option<CollectionUuid> {
    let Bson::Binary(binary) = value else {
        return None;
    };
    binary.bytes.as_slice().try_into().ok()
}
