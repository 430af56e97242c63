//! A sharded cluster without `mongos`: config servers, shards, and a hand that does what `mongos` would do.
//!
//! Config servers and shards are real; what is theirs is real: chunks, versions, migrations, the entries of both oplogs.
//! The commands are the ones that servers send each other, tried on MongoDB 6.0.5 and 6.0.27. Writes carry the shard's
//! version, as a router's do, so that a shard refuses one that came too late and the routing table is read again. The
//! balancer is off: a test moves what it wants moved.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use bson::{Bson, Document, doc};
use futures_util::TryStreamExt as _;
use mongodb::Client;
use mongodb::options::ReadConcern;

use super::wire::{Gossip, Wire, check, fault};
use super::{Options, ReplicaSet, User};

/// A user that may do what servers do among themselves.
const SYSTEM: (&str, &str) = ("system", "system-password");

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    pub config: ReplicaSet,
    pub shards: Vec<ReplicaSet>,
    /// The servers ask for a login: [`Router`] has none.
    with_users: bool,
}

/// A range of a sharded collection.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    pub min: Document,
    pub max: Document,
    /// Number of the shard.
    pub shard: usize,
}

impl Cluster {
    /// Starts config servers and that many shards of `options.members` members each, `s1`, `s2`, …. With users in
    /// `options` all of them ask for a login.
    ///
    /// # Errors
    /// As [`ReplicaSet::start`], and what the config servers answer.
    pub async fn start(options: &Options, shards: usize) -> Result<Self> {
        let of_config = Options { members: 1, ..Self::options(options, "cfg", "--configsvr") };
        let config = ReplicaSet::start(of_config).await?;
        let mut started = Vec::new();
        for number in 1..=shards {
            started.push(ReplicaSet::start(Self::options(options, &format!("s{number}"), "--shardsvr")).await?);
        }
        let cluster = Self { config, shards: started, with_users: !options.users.is_empty() };
        let off = doc! { "$set": { "mode": "off", "stopped": true } };
        let settings = cluster.config.client().database("config").collection::<Document>("settings");
        settings.update_one(doc! { "_id": "balancer" }, off).upsert(true).await.context("stop the balancer")?;
        for number in 0..shards {
            cluster.add_shard(number).await?;
        }
        Ok(cluster)
    }

    fn options(options: &Options, name: &str, role: &str) -> Options {
        let mut options = options.clone().named(name);
        options.arguments.push(role.to_owned());
        options.parameters.push(("disableLogicalSessionCacheRefresh".to_owned(), "true".to_owned()));
        if !options.parameters.iter().any(|(name, _)| name == ORPHANS_KEPT) {
            options.parameters.push((ORPHANS_KEPT.to_owned(), "1".to_owned()));
        }
        if !options.users.is_empty() {
            options.users.push(User::new(SYSTEM.0, SYSTEM.1, &[("__system", "admin")]));
        }
        options
    }

    async fn add_shard(&self, number: usize) -> Result<()> {
        let shard = self.shards.get(number).context("no such shard")?;
        let name = format!("s{}", number + 1);
        let address = format!("{name}/127.0.0.1:{}", shard.port(0));
        let add = doc! { "_configsvrAddShard": address, "name": name, "writeConcern": { "w": "majority" } };
        self.configure(add).await.map(|_| ())
    }

    /// The connection strings of the shards as `mongo_urls` wants them, of the first user where there is one.
    #[must_use]
    pub fn urls(&self) -> String {
        self.shards.iter().map(ReplicaSet::uri_as_user).collect::<Vec<_>>().join(";")
    }

    /// Runs a command on the config servers.
    ///
    /// # Errors
    /// What they answer.
    pub async fn configure(&self, command: Document) -> Result<Document> {
        self.command(&self.config, "admin", command).await
    }

    /// Runs a command on a shard's primary as another server would.
    ///
    /// # Errors
    /// What it answers.
    pub async fn command(&self, set: &ReplicaSet, database: &str, command: Document) -> Result<Document> {
        let uri = if self.with_users { set.uri_as(SYSTEM.0, SYSTEM.1) } else { set.uri() };
        let client = super::connect(&uri).await?;
        let text = command.to_string();
        let answer = client.database(database).run_command(command).await;
        client.shutdown().immediate(true).await;
        answer.with_context(|| format!("run {text}"))
    }

    /// Makes a database whose primary shard is `shard`.
    ///
    /// # Errors
    /// What the config servers answer.
    pub async fn create_database(&self, name: &str, shard: usize) -> Result<()> {
        let primary = format!("s{}", shard + 1);
        let majority = doc! { "w": "majority" };
        // 4.4 chooses the shard itself when it creates one, but not when it is told to shard in it.
        let create = if self.config.series() < (5, 0) {
            doc! { "_configsvrEnableSharding": name, "primaryShard": primary, "writeConcern": majority }
        } else {
            doc! { "_configsvrCreateDatabase": name, "primaryShardId": primary, "writeConcern": majority }
        };
        self.configure(create).await.map(|_| ())
    }

    /// Where a database is at home, and the version that commands to it carry.
    ///
    /// # Errors
    /// When there is no such database.
    pub async fn database(&self, name: &str) -> Result<(usize, Document)> {
        let found = self.config_documents("databases", doc! { "_id": name }).await?;
        let database = found.first().with_context(|| format!("no database {name}"))?;
        Ok((number(database.get_str("primary")?)?, database.get_document("version")?.clone()))
    }

    /// Runs one of the commands that a database's primary shard coordinates (`_shardsvr…`).
    ///
    /// # Errors
    /// What it answers.
    pub async fn coordinate(&self, database: &str, mut command: Document) -> Result<Document> {
        let (home, version) = self.database(database).await?;
        command.insert("databaseVersion", version);
        command.insert("writeConcern", doc! { "w": "majority" });
        let shard = self.shards.get(home).context("no such shard")?;
        self.command(shard, database, command).await
    }

    /// Makes a sharded collection. All of it is on the primary shard, except that a hashed one of several chunks is
    /// spread evenly.
    ///
    /// # Errors
    /// What the servers answer.
    pub async fn shard_collection(&self, namespace: &str, key: Document, chunks: i32) -> Result<()> {
        let (database, collection) = namespace.split_once('.').context("a namespace")?;
        let mut create = doc! { "_shardsvrCreateCollection": collection, "shardKey": key, "unique": false };
        if chunks > 1 {
            create.insert("numInitialChunks", i64::from(chunks));
        }
        self.coordinate(database, create).await.map(|_| ())
    }

    /// Moves a range to a shard and waits until its documents are gone from the former one, if asked to.
    ///
    /// # Errors
    /// What the servers answer.
    pub async fn move_range(&self, namespace: &str, min: Document, max: Document, to: usize, wait: bool) -> Result<()> {
        let command = doc! {
            "_configsvrMoveRange": namespace,
            "min": min,
            "max": max,
            "toShard": format!("s{}", to + 1),
            "waitForDelete": wait,
            "writeConcern": { "w": "majority" },
        };
        self.configure(command).await.map(|_| ())
    }

    /// Moves a range of numbers by asking the config servers behind `config`, for tasks that outlive no borrow.
    ///
    /// # Errors
    /// What they answer: that the range is there already, spans two chunks, or that another migration goes on.
    pub async fn try_move(config: &str, namespace: &str, (min, max): (i64, i64), to: usize) -> Result<()> {
        let client = super::connect(config).await?;
        let field = "k";
        let command = doc! {
            "_configsvrMoveRange": namespace,
            "min": { field: min },
            "max": { field: max },
            "toShard": format!("s{}", to + 1),
            "waitForDelete": true,
            "writeConcern": { "w": "majority" },
        };
        let answer = client.database("admin").run_command(command).await;
        client.shutdown().immediate(true).await;
        answer.map(|_| ()).map_err(Into::into)
    }

    /// How a collection is sharded: key, and the entry of `config.collections`; none when it is not.
    ///
    /// # Errors
    /// When the config servers do not answer.
    pub async fn sharded(&self, namespace: &str) -> Result<Option<Document>> {
        Ok(self.config_documents("collections", doc! { "_id": namespace }).await?.into_iter().next())
    }

    /// All chunks by their lower bounds.
    ///
    /// # Errors
    /// When the collection is not sharded.
    pub async fn chunks(&self, namespace: &str) -> Result<Vec<Chunk>> {
        let collection = self.sharded(namespace).await?.context("not sharded")?;
        let found = self.config_documents("chunks", doc! { "uuid": collection.get("uuid").cloned() }).await?;
        let chunk = |chunk: &Document| -> Result<Chunk> {
            let (min, max) = (chunk.get_document("min")?.clone(), chunk.get_document("max")?.clone());
            Ok(Chunk { min, max, shard: number(chunk.get_str("shard")?)? })
        };
        found.iter().map(chunk).collect()
    }

    async fn config_documents(&self, collection: &str, filter: Document) -> Result<Vec<Document>> {
        let from = self.config.client().database("config").collection::<Document>(collection);
        let found = from.find(filter).sort(doc! { "min": 1 }).read_concern(ReadConcern::majority()).await?;
        Ok(found.try_collect().await?)
    }

    /// A client of each shard with full rights.
    #[must_use]
    pub fn clients(&self) -> Vec<Client> {
        self.shards.iter().map(ReplicaSet::client).collect()
    }

    /// The hand that writes as `mongos` does; needs servers without users, of one member each.
    #[must_use]
    pub fn router(&self, gossip: &Gossip) -> Router {
        let wires = self.shards.iter().map(|shard| Wire::new(shard.port(0), gossip)).collect();
        let config = Wire::new(self.config.port(0), gossip);
        Router { wires, config, tables: HashMap::new() }
    }
}

/// Parameter of the servers: seconds for which leftovers of a chunk are kept.
pub const ORPHANS_KEPT: &str = "orphanCleanupDelaySecs";

/// Writes to the owners of documents, as `mongos` does.
#[derive(Debug)]
pub struct Router {
    wires: Vec<Wire>,
    config: Wire,
    tables: HashMap<String, Table>,
}

#[derive(Debug, Clone)]
struct Table {
    /// Lower bound, upper bound, shard; bounds as numbers.
    ranges: Vec<(f64, f64, usize)>,
    versions: Vec<Document>,
}

/// Errors after which a router reads its table again and repeats the command.
const STALE: [i32; 6] = [13388, 63, 249, 150, 290, 351];

impl Router {
    /// Runs a command on a shard.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn run(&mut self, shard: usize, database: &str, command: Document) -> Result<Document> {
        self.wires.get_mut(shard).context("no such shard")?.run(database, command).await
    }

    /// The owner of a value of a shard key of one number, and the version that commands to it carry.
    ///
    /// # Errors
    /// When the config servers do not answer.
    pub async fn route(&mut self, namespace: &str, key: f64) -> Result<(usize, Document)> {
        let table = self.table(namespace).await?;
        let found = table.ranges.iter().find(|(min, max, _)| *min <= key && key < *max);
        let (_, _, shard) = *found.context("a gap in the routing table")?;
        Ok((shard, table.versions.get(shard).cloned().unwrap_or_default()))
    }

    /// Forgets what is known of a collection.
    pub fn forget(&mut self, namespace: &str) {
        self.tables.remove(namespace);
    }

    /// Writes to the owner of a shard key, and again when the table was old. Returns the server's answer.
    ///
    /// # Errors
    /// When a connection breaks: the write may have been done or not.
    pub async fn write(&mut self, namespace: &str, key: f64, command: Document) -> Result<Document> {
        let (database, _) = namespace.split_once('.').context("a namespace")?;
        loop {
            let (shard, version) = self.route(namespace, key).await?;
            let mut versioned = command.clone();
            versioned.insert("shardVersion", version);
            let answer = self.run(shard, database, versioned).await?;
            match fault(&answer) {
                Some((code, _)) if STALE.contains(&code) => {
                    self.forget(namespace);
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
                _ => return Ok(answer),
            }
        }
    }

    async fn table(&mut self, namespace: &str) -> Result<Table> {
        if let Some(table) = self.tables.get(namespace) {
            return Ok(table.clone());
        }
        let collection = self.ask("collections", doc! { "_id": namespace }).await?;
        let collection = collection.first().context("not sharded")?.clone();
        let chunks = self.ask("chunks", doc! { "uuid": collection.get("uuid").cloned() }).await?;
        let mut ranges = Vec::new();
        let mut newest = vec![bson::Timestamp { time: 0, increment: 0 }; self.wires.len()];
        for chunk in &chunks {
            let shard = number(chunk.get_str("shard")?)?;
            let bound = |name| -> Result<f64> { first_number(chunk.get_document(name)?) };
            ranges.push((bound("min")?, bound("max")?, shard));
            if let Some(version) = newest.get_mut(shard) {
                *version = chunk.get_timestamp("lastmod")?.max(*version);
            }
        }
        let epoch = collection.get_object_id("lastmodEpoch")?;
        let time = collection.get_timestamp("timestamp")?;
        let versions = newest.into_iter().map(|newest| doc! { "t": time, "e": epoch, "v": newest }).collect();
        let table = Table { ranges, versions };
        self.tables.insert(namespace.to_owned(), table.clone());
        Ok(table)
    }

    async fn ask(&mut self, collection: &str, filter: Document) -> Result<Vec<Document>> {
        let find = doc! {
            "find": collection,
            "filter": filter,
            "readConcern": { "level": "majority" },
            "batchSize": 10_000,
            "singleBatch": true,
        };
        let answer = check(self.config.run("config", find).await?)?;
        let batch = answer.get_document("cursor")?.get_array("firstBatch")?;
        Ok(batch.iter().filter_map(Bson::as_document).cloned().collect())
    }
}

/// `s2` is number 1.
fn number(id: &str) -> Result<usize> {
    let number: usize = id.trim_start_matches('s').parse().with_context(|| format!("{id} is no shard"))?;
    number.checked_sub(1).context("shards count from s1")
}

fn first_number(bound: &Document) -> Result<f64> {
    match bound.values().next() {
        Some(Bson::MinKey) => Ok(f64::NEG_INFINITY),
        Some(Bson::MaxKey) => Ok(f64::INFINITY),
        Some(Bson::Int32(n)) => Ok(f64::from(*n)),
        Some(Bson::Int64(n)) => Ok(*n as f64),
        Some(Bson::Double(n)) => Ok(*n),
        other => anyhow::bail!("{other:?} is no number"),
    }
}
