//! How collections of a cluster are sharded, as its `config.collections` says.
//!
//! Read through the `mongos` (MongoDB 4.4 to 8.0) together with the catalogue, so that whatever looks a name up again
//! after a DDL learns its shard key as well. Elsewhere nothing is asked. Needs `find` on `config.collections`. Chunks are
//! the affair of the `mongos` and are never looked at here.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bson::{Document, doc};
use futures_util::TryStreamExt as _;
use mongodb::options::ReadConcern;
use oplogue_engine::error::{Result, Side};
use oplogue_engine::model::Namespace;

use super::{Catalogue, CollectionInfo};
use crate::mongodb::classify;
use crate::mongodb::shard_key::ShardKey;

impl Catalogue {
    /// The key by which a collection's documents are placed; none when it is not sharded, or by `_id` alone.
    pub(crate) fn shard_key(&self, name: &Namespace) -> Option<Arc<ShardKey>> {
        self.read().shard_keys.get(name).map(Arc::clone)
    }

    /// Reads how a collection is sharded again. Whether that is another way than was known.
    pub(crate) async fn is_sharded_anew(&self, name: &Namespace) -> Result<bool> {
        let known = self.shard_key(name);
        self.refresh(name).await?;
        Ok(self.shard_key(name).as_deref() != known.as_deref())
    }

    /// The pattern of a collection's shard key, whatever its fields are; none when it is not sharded.
    pub(crate) async fn shard_key_pattern(&self, name: &Namespace) -> Result<Option<Document>> {
        let found = self.sharded(doc! { "_id": name.as_str() }).await?;
        Ok(found.first().and_then(|entry| entry.get_document("key").ok()).cloned())
    }

    pub(super) async fn key_of(&self, name: &Namespace, info: Option<CollectionInfo>) -> Result<Option<ShardKey>> {
        let Some(info) = info else { return Ok(None) };
        Ok(self.shard_key_pattern(name).await?.and_then(|pattern| ShardKey::of(&pattern, info.collated)))
    }

    pub(super) async fn keys_of_database(
        &self,
        database: &str,
        listed: &[(Namespace, CollectionInfo)],
    ) -> Result<Vec<(Namespace, Arc<ShardKey>)>> {
        // All that begins with the database's name and a dot: the character behind the dot ends the range.
        let range = doc! { "_id": { "$gte": format!("{database}."), "$lt": format!("{database}/") } };
        let found = self.sharded(range).await?;
        let keys = found.iter().filter_map(|entry| {
            let name = Namespace::new(entry.get_str("_id").ok()?);
            let (_, info) = listed.iter().find(|(listed, _)| *listed == name)?;
            let key = ShardKey::of(entry.get_document("key").ok()?, info.collated)?;
            Some((name, Arc::new(key)))
        });
        Ok(keys.collect())
    }

    /// Entries of `config.collections`, without those that are dropped (4.4 keeps them) or only tracked (8.0).
    async fn sharded(&self, mut filter: Document) -> Result<Vec<Document>> {
        if !self.is_cluster.load(Ordering::Acquire) {
            return Ok(Vec::new());
        }
        filter.insert("dropped", doc! { "$ne": true });
        filter.insert("unsplittable", doc! { "$ne": true });
        let doing = "read how the target's collections are sharded (needs `find` on `config.collections`)";
        let failed = |e| classify::error(Side::Sink, doing, e);
        let collections = self.client.database("config").collection::<Document>("collections");
        let find = collections.find(filter).read_concern(ReadConcern::majority());
        find.await.map_err(failed)?.try_collect().await.map_err(failed)
    }
}
