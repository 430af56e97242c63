//! A cluster, a target, a pipeline between them, and what "equal" means for the two.
//!
//! The source's documents are those that shards own by the routing table of the config servers; leftovers of chunks that
//! moved do not count. The shard key of these tests is one number, so that ownership is a comparison of numbers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bson::{Bson, Document, RawDocumentBuf, doc};
use futures_util::TryStreamExt as _;
use mongodb::Client;
use oplogue_tests::collector::{Collector, PipelineConfig};
use oplogue_tests::patience;
use oplogue_tests::servers::cluster::Cluster;
use oplogue_tests::servers::wire::{Gossip, check};
use oplogue_tests::servers::{Options, ReplicaSet};

/// Nothing in these tests may take longer.
pub(super) const PATIENCE: Duration = Duration::from_secs(240);

/// A sharded collection whose shard key is the number `k`.
pub(super) const USERS: &str = "shop.users";

pub(super) struct Rig {
    pub(super) cluster: Cluster,
    pub(super) target: ReplicaSet,
    pub(super) gossip: Gossip,
}

impl Rig {
    /// Two shards, a database `shop` at home on the first one, and `shop.users` with `k` below 500 there and the rest
    /// on the second one.
    pub(super) async fn start(options: Options) -> Result<Self> {
        let cluster = Cluster::start(&options, 2);
        let target = ReplicaSet::start(Options { name: "target".to_owned(), ..Options::default() });
        let (cluster, target) = tokio::join!(cluster, target);
        let rig = Self { cluster: cluster?, target: target?, gossip: Gossip::default() };
        rig.cluster.create_database("shop", 0).await?;
        rig.cluster.shard_collection(USERS, doc! { "k": 1 }, 1).await?;
        rig.move_users(500, f64::INFINITY, 1, true).await?;
        Ok(rig)
    }

    /// Moves users from `min` on, below `max`, to a shard.
    pub(super) async fn move_users(&self, min: i64, max: f64, to: usize, wait: bool) -> Result<()> {
        let max = if max.is_finite() { Bson::Int64(max as i64) } else { Bson::MaxKey };
        let (min, max) = (doc! { "k": min }, doc! { "k": max });
        self.cluster.move_range(USERS, min, max, to, wait).await
    }

    pub(super) fn config(&self) -> Result<PipelineConfig> {
        let config = PipelineConfig::new(&self.cluster.urls(), &self.target.uri())?;
        Ok(config
            .by_oplog_only("the shards of a cluster are read one by one")
            .set("mongo_cs_url", self.cluster.config.uri_as_user())
            .set("checkpoint.storage.url", self.target.uri())
            .set("filter.ddl_enable", true))
    }

    /// Inserts users with these keys, `_id` = `k`, through the router.
    pub(super) async fn insert_users(&self, keys: impl IntoIterator<Item = i64>) -> Result<()> {
        let mut router = self.cluster.router(&self.gossip);
        for k in keys {
            let user = doc! { "_id": k, "k": k, "name": format!("user {k}") };
            let insert = doc! { "insert": "users", "documents": [user], "writeConcern": { "w": "majority" } };
            check(router.write(USERS, k as f64, insert).await?)?;
        }
        Ok(())
    }

    /// The documents of a namespace that the shards own, by `_id`.
    pub(super) async fn owned(&self, namespace: &str) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut owned = BTreeMap::new();
        let chunks = match self.cluster.sharded(namespace).await? {
            Some(_) => Some(self.cluster.chunks(namespace).await?),
            None => None,
        };
        let (home, _) = self.cluster.database(namespace.split('.').next().unwrap_or_default()).await?;
        for (shard, client) in self.cluster.clients().iter().enumerate() {
            for document in documents(client, namespace).await? {
                let is_owner = match &chunks {
                    None => shard == home,
                    Some(chunks) => {
                        let k = number(document.get("k")?)?;
                        let chunk = chunks.iter().find(|chunk| in_range(&chunk.min, &chunk.max, k));
                        chunk.context("a gap in the routing table")?.shard == shard
                    }
                };
                if is_owner {
                    let former = owned.insert(id(&document)?, document.into_bytes());
                    anyhow::ensure!(former.is_none(), "{namespace}: two shards own one _id");
                }
            }
        }
        Ok(owned)
    }

    /// What differs between the source and the target, in words; empty when nothing does.
    pub(super) async fn differences(&self, namespace: &str) -> Result<Vec<String>> {
        let source = self.owned(namespace).await?;
        let mut target = BTreeMap::new();
        for document in documents(&self.target.client(), namespace).await? {
            target.insert(id(&document)?, document.into_bytes());
        }
        let mut found = Vec::new();
        for (id, bytes) in &source {
            match target.remove(id) {
                None => found.push(format!("missing {id}: {}", shown(bytes))),
                Some(other) if other != *bytes => {
                    found.push(format!("{id}: {} instead of {}", shown(&other), shown(bytes)));
                }
                Some(_) => {}
            }
        }
        found.extend(target.iter().map(|(id, bytes)| format!("too many {id}: {}", shown(bytes))));
        let source = self.cluster.clients();
        let at = self.home_of_catalogue(namespace).await?;
        let (left, right) =
            (catalogue(&source[at], namespace).await?, catalogue(&self.target.client(), namespace).await?);
        if left != right {
            found.push(format!("catalogue: {right:?} instead of {left:?}"));
        }
        found.truncate(10);
        Ok(found)
    }

    async fn all_differences(&self, namespaces: &[&str]) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for namespace in namespaces {
            found.extend(self.differences(namespace).await?.into_iter().map(|text| format!("{namespace}: {text}")));
        }
        Ok(found)
    }

    async fn home_of_catalogue(&self, namespace: &str) -> Result<usize> {
        if self.cluster.sharded(namespace).await?.is_some() {
            return Ok(self.cluster.chunks(namespace).await?.first().context("no chunk")?.shard);
        }
        Ok(self.cluster.database(namespace.split('.').next().unwrap_or_default()).await?.0)
    }

    /// Waits until the target equals the source in these namespaces.
    pub(super) async fn equal(&self, namespaces: &[&str], collector: &mut Collector) -> Result<()> {
        let (started, patience) = (Instant::now(), patience::at_most(PATIENCE));
        loop {
            // DDL that the collector still runs may break a read off.
            let outcome = self.all_differences(namespaces).await;
            if matches!(&outcome, Ok(found) if found.is_empty()) {
                return Ok(());
            }
            if started.elapsed() > patience {
                let found = outcome.with_context(|| collector.log_end())?.join("\n");
                anyhow::bail!("still different:\n{found}\nlog:\n{}", collector.log_end());
            }
            anyhow::ensure!(collector.is_running()?, "the collector ended:\n{}", collector.log_end());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits for equality, stops the collector, compares once more and looks at its log.
    pub(super) async fn finish(&self, namespaces: &[&str], mut collector: Collector, allowed: &[&str]) -> Result<()> {
        self.equal(namespaces, &mut collector).await?;
        let status = collector.terminate(PATIENCE).await?;
        anyhow::ensure!(status.success(), "exit {status}:\n{}", collector.log_end());
        for namespace in namespaces {
            let found = self.differences(namespace).await?;
            anyhow::ensure!(found.is_empty(), "{namespace} after the end:\n{}", found.join("\n"));
        }
        collector.assert_no_unexpected_warnings(allowed)
    }
}

pub(super) async fn documents(client: &Client, namespace: &str) -> Result<Vec<RawDocumentBuf>> {
    let (database, collection) = namespace.split_once('.').context("a namespace")?;
    let collection = client.database(database).collection::<RawDocumentBuf>(collection);
    Ok(collection.find(doc! {}).await?.try_collect().await?)
}

/// Options and indexes without what belongs to one server.
async fn catalogue(client: &Client, namespace: &str) -> Result<(Option<Document>, BTreeMap<String, Document>)> {
    let (database, collection) = namespace.split_once('.').context("a namespace")?;
    let database = client.database(database);
    let listed = database.run_cursor_command(doc! { "listCollections": 1, "filter": { "name": collection } }).await?;
    let listed: Vec<Document> = listed.try_collect().await?;
    let options = listed.first().and_then(|entry| entry.get_document("options").ok()).cloned();
    if options.is_none() {
        return Ok((None, BTreeMap::new()));
    }
    let indexes = database.run_cursor_command(doc! { "listIndexes": collection }).await?;
    let indexes: Vec<Document> = indexes.try_collect().await?;
    let named = indexes.into_iter().map(|index| Ok((index.get_str("name")?.to_owned(), index)));
    Ok((options, named.collect::<Result<_>>()?))
}

fn id(document: &RawDocumentBuf) -> Result<String> {
    Ok(format!("{:?}", document.get("_id")?.context("no _id")?))
}

fn number(value: Option<bson::RawBsonRef<'_>>) -> Result<f64> {
    let value = value.context("no shard key")?;
    let number = value.as_i64().map(|n| n as f64).or(value.as_i32().map(f64::from)).or(value.as_f64());
    number.context("a shard key that is no number")
}

fn in_range(min: &Document, max: &Document, k: f64) -> bool {
    let bound = |document: &Document| match document.values().next() {
        Some(Bson::MinKey) => f64::NEG_INFINITY,
        Some(Bson::MaxKey) => f64::INFINITY,
        Some(Bson::Int32(n)) => f64::from(*n),
        Some(Bson::Int64(n)) => *n as f64,
        Some(Bson::Double(n)) => *n,
        _ => f64::NAN,
    };
    bound(min) <= k && k < bound(max)
}

fn shown(bytes: &[u8]) -> String {
    Document::from_reader(bytes).map_or_else(|e| e.to_string(), |document| document.to_string())
}
