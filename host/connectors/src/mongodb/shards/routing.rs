//! What the config servers say: which shards there are, where a database is at home, which shard owns which range.
//!
//! Read from `config.shards`, `config.databases`, `config.collections` and `config.chunks` (MongoDB 4.4 to 6.0; before
//! 5.0 chunks name their collection by namespace, later by UUID) with majority concern. Nothing is cached: who asks
//! twice compares two answers, and that is how a chunk that moved meanwhile is found. Needs `find` on `config`.

use std::sync::Arc;

use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, doc};
use futures_util::TryStreamExt as _;
use mongodb::options::{ReadConcern, ReadPreference, SelectionCriteria};
use mongodb::{Client, Collection};
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::{CollectionUuid, Namespace, OpTime};

use super::moment::Moment;
use crate::mongodb::snapshot::{INVALID_OPTIONS, UUID_MISMATCH};
use crate::mongodb::{classify, identity, topology};

/// The config servers of a cluster.
#[derive(Debug, Clone)]
pub struct Routing {
    client: Client,
    /// Replica sets of the shards, in the order of the streams' numbers.
    names: Arc<[Arc<str>]>,
    /// The clusters' own names for them (`config.shards._id`), in the same order.
    ids: Arc<[String]>,
}

/// A sharded collection.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sharded {
    pub(crate) uuid: Option<CollectionUuid>,
    /// The shard key's pattern, `{field: 1 | "hashed", …}`.
    pub(crate) key: Document,
    /// No two documents have one value of the key.
    pub(crate) unique: bool,
    chunks_of: Document,
}

/// A range of a sharded collection, as its owner has it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Chunk {
    pub(crate) min: Document,
    pub(crate) max: Document,
    /// Number of the shard.
    pub(crate) shard: usize,
    /// Since when this shard owns it.
    pub(crate) since: Option<OpTime>,
}

#[cfg(test)]
impl Sharded {
    /// A collection that is sharded by `key`, without chunks.
    pub(crate) fn for_test(key: Document, unique: bool) -> Self {
        Self { uuid: None, key, unique, chunks_of: Document::new() }
    }
}

impl Routing {
    /// Asks the config servers for the shards and compares them with `names`, the replica sets that are configured.
    ///
    /// # Errors
    /// `Misconfigured` when the two differ, `Unauthorized` without `find` on `config`.
    pub async fn of(client: Client, names: Vec<Arc<str>>) -> Result<Self> {
        let mut routing = Self { client, names: names.into(), ids: Arc::new([]) };
        let shards = routing.find("shards", doc! {}).await?;
        let mut ids = vec![String::new(); routing.names.len()];
        for shard in &shards {
            let (id, host) = (text(shard, "_id"), text(shard, "host"));
            let set = host.split('/').next().unwrap_or_default();
            match routing.names.iter().position(|name| **name == *set).and_then(|at| ids.get_mut(at)) {
                Some(place) => *place = id,
                None => {
                    return Err(other_shards(&format!(
                        "the cluster has the shard {id} ({host}), which mongo_urls does not name"
                    )));
                }
            }
        }
        if let Some((name, _)) = routing.names.iter().zip(&ids).find(|(_, id)| id.is_empty()) {
            return Err(other_shards(&format!(
                "mongo_urls names the replica set {name}, which is no shard of the cluster"
            )));
        }
        routing.ids = ids.into();
        Ok(routing)
    }

    /// Fails when the cluster's shards are no longer those of the start.
    ///
    /// # Errors
    /// As [`Routing::of`].
    pub async fn check_shards(&self) -> Result<()> {
        Self::of(self.client.clone(), self.names.to_vec()).await.map(|_| ())
    }

    /// Whether the oplogs of this cluster do not tell leftovers from documents: before 6.0 (the feature
    /// compatibility version counts), a write that goes to all shards, or the removal of what has expired, is logged by a
    /// shard for the leftover of a chunk that has moved away as it is for a document. The former owner's word would
    /// then be taken for the owner's, so no chunk may move.
    ///
    /// # Errors
    /// `Unsupported` when it is so and the balancer may run; `Unauthorized` without `find` on `config`.
    pub async fn has_unmarked_leftovers(&self) -> Result<bool> {
        let criteria = SelectionCriteria::ReadPreference(ReadPreference::Primary);
        let found = topology::inspect(Side::Source, &self.client, &criteria).await?;
        if found.at_least(6, 0) && self.is_compatible_with_6_0().await? {
            return Ok(false);
        }
        let balancer = self.find("settings", doc! { "_id": "balancer" }).await?;
        let is_off = balancer.first().is_some_and(|balancer| {
            balancer.get_bool("stopped").unwrap_or(false)
                || matches!(balancer.get_str("mode"), Ok("off" | "autoSplitOnly"))
        });
        if is_off {
            return Ok(true);
        }
        let text = format!(
            "the balancer of this cluster may run, and before 6.0 (this one is {}, its feature compatibility version perhaps an older one) the oplogs do \
             not tell writes to leftovers of moved chunks from others: stop it (sh.stopBalancer()), wait until \
             config.rangeDeletions is empty on every shard, and move no chunks until the end",
            found.version_text(),
        );
        Err(Error::new(Side::Source, Kind::Unsupported, text))
    }

    /// Whether the feature compatibility version is 6.0, which few may ask for: then `find` takes the identity of a
    /// collection, and says that this one is none of the sort.
    async fn is_compatible_with_6_0(&self) -> Result<bool> {
        let identity = Binary { subtype: BinarySubtype::Uuid, bytes: vec![0; 16] };
        let find = doc! { "find": "shards", "limit": 1, "singleBatch": true, "collectionUUID": identity };
        let config = self.client.database("config");
        let asked =
            config.run_command(find).selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary));
        match asked.await {
            Err(e) if classify::code(&e) == Some(INVALID_OPTIONS) => Ok(false),
            Err(e) if classify::code(&e) == Some(UUID_MISMATCH) => Ok(true),
            Err(e) => Err(unreadable("shards", e)),
            Ok(_) => Ok(true),
        }
    }

    /// The shard where the collections of a database are that are not sharded; none for a database that the cluster
    /// does not know.
    pub(crate) async fn home(&self, database: &str) -> Result<Option<usize>> {
        let found = self.find("databases", doc! { "_id": database }).await?;
        found.first().map(|database| self.number(&text(database, "primary"))).transpose()
    }

    /// How a collection is sharded; none when it is not.
    pub(crate) async fn sharded(&self, namespace: &Namespace) -> Result<Option<Sharded>> {
        let filter = doc! { "_id": namespace.as_str(), "dropped": { "$ne": true }, "unsplittable": { "$ne": true } };
        let found = self.find("collections", filter).await?;
        let Some(collection) = found.first() else { return Ok(None) };
        let uuid = collection.get("uuid").and_then(identity::uuid);
        let mut chunks_of = vec![doc! { "ns": namespace.as_str() }];
        if let Some(uuid) = uuid {
            let uuid = Binary { subtype: BinarySubtype::Uuid, bytes: uuid.to_vec() };
            chunks_of.push(doc! { "uuid": uuid });
        }
        let key = collection.get_document("key").cloned().map_err(|_| malformed("collections", "key"))?;
        let unique = collection.get_bool("unique").unwrap_or(false);
        Ok(Some(Sharded { uuid, key, unique, chunks_of: doc! { "$or": chunks_of } }))
    }

    /// All chunks of a collection, by their lower bounds.
    pub(crate) async fn chunks(&self, collection: &Sharded) -> Result<Vec<Chunk>> {
        let found = self.find("chunks", collection.chunks_of.clone()).await?;
        found.iter().map(|chunk| self.chunk(chunk)).collect()
    }

    /// The shard that owns a value of the shard key.
    pub(crate) async fn owner(&self, collection: &Sharded, key: &Document) -> Result<Option<usize>> {
        // Documents compare field by field across types, as the ranges of the cluster do.
        let range = doc! { "min": { "$lte": key }, "max": { "$gt": key } };
        let filter = doc! { "$and": [collection.chunks_of.clone(), range] };
        let found = self.find("chunks", filter).await?;
        found.first().map(|chunk| self.number(&text(chunk, "shard"))).transpose()
    }

    /// The chunk of a collection that was changed last, as it is written down. While two answers are equal no chunk has
    /// moved between them.
    pub(crate) async fn newest_chunk(&self, collection: &Sharded) -> Result<Option<Document>> {
        let chunks: Collection<Document> = self.client.database("config").collection("chunks");
        let find = chunks.find_one(collection.chunks_of.clone()).sort(doc! { "lastmod": -1 });
        let find = find.read_concern(ReadConcern::majority());
        find.selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary))
            .await
            .map_err(|e| unreadable("chunks", e))
    }

    /// The config servers' time, which is not older than anything they have told.
    pub(crate) async fn moment(&self) -> Result<Moment> {
        Moment::of(&self.client).await
    }

    fn chunk(&self, chunk: &Document) -> Result<Chunk> {
        let bound = |name| chunk.get_document(name).cloned().map_err(|_| malformed("chunks", name));
        let newest = chunk.get_array("history").ok().and_then(|history| history.first()?.as_document());
        let since = newest.and_then(|owner| owner.get_timestamp("validAfter").ok());
        Ok(Chunk {
            min: bound("min")?,
            max: bound("max")?,
            shard: self.number(&text(chunk, "shard"))?,
            since: since.map(|since| OpTime::new(since.time, since.increment, -1)),
        })
    }

    fn number(&self, id: &str) -> Result<usize> {
        let number = self.ids.iter().position(|shard| shard == id);
        number.ok_or_else(|| other_shards(&format!("the cluster has the shard {id}, which mongo_urls does not name")))
    }

    async fn find(&self, collection: &str, filter: Document) -> Result<Vec<Document>> {
        let failed = |e| unreadable(collection, e);
        let from: Collection<Document> = self.client.database("config").collection(collection);
        let find = from.find(filter).sort(doc! { "min": 1, "_id": 1 }).read_concern(ReadConcern::majority());
        let find = find.selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary));
        find.await.map_err(failed)?.try_collect().await.map_err(failed)
    }
}

fn unreadable(collection: &str, error: mongodb::error::Error) -> Error {
    let doing = format!("read config.{collection} of the config servers (needs `find` on `config`)");
    classify::error(Side::Source, &doing, error)
}

fn text(document: &Document, name: &str) -> String {
    document.get(name).and_then(Bson::as_str).unwrap_or_default().to_owned()
}

fn malformed(collection: &str, field: &str) -> Error {
    Error::new(Side::Source, Kind::Malformed, format!("a document of config.{collection} has no usable {field}"))
}

fn other_shards(what: &str) -> Error {
    let text = format!("{what}: every shard must be read, and no other; a shard that is not loses its documents");
    Error::new(Side::Config, Kind::Misconfigured, text)
}
