//! Transactions across the shards of a cluster, as a `mongos` would run them, and one that is large.
//!
//! A transaction begins on each shard with its first command there. On one shard it is committed as on any replica set;
//! on several it is prepared everywhere and then committed with the newest of the times, in an order of the caller's.

use std::time::{Duration, Instant};

use anyhow::Result;
use bson::{Document, Timestamp, doc};
use oplogue_tests::collector::{Collector, HAND_OVER};
use oplogue_tests::patience;
use oplogue_tests::servers::Options;
use oplogue_tests::servers::cluster::Router;
use oplogue_tests::servers::wire::{check, fault, session};

use super::rig::{PATIENCE, Rig, USERS};

/// One session of a cluster, and its transactions one after the other.
pub(super) struct Transactions {
    router: Router,
    session: Document,
    number: i64,
    /// The shards that take part in the present one.
    shards: Vec<usize>,
}

impl Transactions {
    pub(super) fn new(rig: &Rig) -> Self {
        Self { router: rig.cluster.router(&rig.gossip), session: session(), number: 0, shards: Vec::new() }
    }

    pub(super) fn begin(&mut self) {
        self.number += 1;
        self.shards.clear();
    }

    /// A command that changes one document. Returns whether it did.
    pub(super) async fn step(&mut self, shard: usize, database: &str, command: Document) -> Result<bool> {
        let answer = self.run(shard, database, command).await?;
        Ok(fault(&answer).is_none() && answer.get_i32("n").is_ok_and(|n| n == 1))
    }

    /// The same where it must.
    async fn must(&mut self, shard: usize, command: Document) -> Result<()> {
        let answer = check(self.run(shard, "shop", command).await?)?;
        anyhow::ensure!(answer.get_i32("n").is_ok_and(|n| n == 1), "{answer}");
        Ok(())
    }

    async fn run(&mut self, shard: usize, database: &str, mut command: Document) -> Result<Document> {
        if !self.shards.contains(&shard) {
            command.insert("startTransaction", true);
            self.shards.push(shard);
        }
        let command = self.of_transaction(command);
        self.router.run(shard, database, command).await
    }

    pub(super) async fn abort(&mut self) -> Result<()> {
        for shard in self.shards.clone() {
            let abort = self.of_transaction(doc! { "abortTransaction": 1 });
            self.router.run(shard, "admin", abort).await?;
        }
        Ok(())
    }

    /// `backwards`: the shard that began last commits first.
    pub(super) async fn commit(&mut self, backwards: bool) -> Result<()> {
        if let [alone] = self.shards[..] {
            self.until_done(alone, doc! { "commitTransaction": 1 }).await?;
            return Ok(());
        }
        let newest = self.prepare().await?;
        self.commit_prepared(newest, backwards).await
    }

    /// Prepares it on every shard. Returns the newest of the times.
    pub(super) async fn prepare(&mut self) -> Result<Timestamp> {
        let mut newest = Timestamp { time: 0, increment: 0 };
        for shard in self.shards.clone() {
            let prepare = doc! { "prepareTransaction": 1, "writeConcern": { "w": "majority" } };
            match self.until_done(shard, prepare).await {
                Ok(prepared) => newest = prepared.get_timestamp("prepareTimestamp")?.max(newest),
                Err(why) => {
                    // What is prepared outlives everything; the other part went with its primary.
                    for shard in self.shards.clone() {
                        self.until_done(shard, doc! { "abortTransaction": 1 }).await.ok();
                    }
                    return Err(why);
                }
            }
        }
        Ok(newest)
    }

    pub(super) async fn commit_prepared(&mut self, newest: Timestamp, backwards: bool) -> Result<()> {
        let mut order = self.shards.clone();
        if backwards {
            order.reverse();
        }
        for shard in order {
            self.commit_on(shard, newest).await?;
        }
        Ok(())
    }

    /// Commits one shard's part of what is prepared.
    async fn commit_on(&mut self, shard: usize, newest: Timestamp) -> Result<()> {
        self.until_done(shard, doc! { "commitTransaction": 1, "commitTimestamp": newest }).await.map(|_| ())
    }

    /// Gives a user another key: gone from one shard, there on another.
    async fn rekey(&mut self, id: i64, (from, to): (i64, i64), round: i64) -> Result<()> {
        let (shard, version) = self.router.route(USERS, from as f64).await?;
        let gone = doc! { "q": { "_id": id, "k": from }, "limit": 1 };
        let delete = doc! { "delete": "users", "deletes": [gone], "shardVersion": version };
        self.must(shard, delete).await?;
        let (shard, version) = self.router.route(USERS, to as f64).await?;
        let document = doc! { "_id": id, "k": to, "round": round };
        let insert = doc! { "insert": "users", "documents": [document], "shardVersion": version };
        self.must(shard, insert).await
    }

    /// A step that must be done, however often it takes: a prepared transaction outlives its primary.
    async fn until_done(&mut self, shard: usize, command: Document) -> Result<Document> {
        let started = Instant::now();
        loop {
            let sent = self.of_transaction(command.clone());
            let why = match self.router.run(shard, "admin", sent).await.map(check) {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(why)) | Err(why) => why,
            };
            anyhow::ensure!(started.elapsed() < Duration::from_secs(60), "{why}");
            let aborted = ["error 251:", "error 225:"].iter().any(|code| why.to_string().starts_with(code));
            anyhow::ensure!(!aborted, "{why}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn of_transaction(&self, mut command: Document) -> Document {
        command.insert("lsid", self.session.clone());
        command.insert("txnNumber", self.number);
        command.insert("autocommit", false);
        command
    }
}

/// Large documents on both shards, several entries of each oplog, and documents that change places; more than may stay
/// in memory. The collector is killed between the preparing and the commits, which come in either order.
#[tokio::test]
async fn one_of_many_entries_on_both_shards() -> Result<()> {
    // The server takes no transaction that would fill too much of its cache.
    let rig = Rig::start(Options { cache_gb: 1.0, ..Options::default() }).await?;
    rig.insert_users((0..1000).step_by(20)).await?;
    let config = rig.config()?.set("limits.memory_bytes", "64MB").set("limits.transaction_bytes", "4MB");
    let mut collector = Collector::start(&config)?;
    collector.wait_log(HAND_OVER, PATIENCE).await?;
    let mut router = rig.cluster.router(&rig.gossip);
    let mut transactions = Transactions::new(&rig);
    for (round, backwards) in [(0, false), (1, true)] {
        transactions.begin();
        for n in 0..50 {
            for k in [n, 500 + n] {
                let (shard, version) = router.route(USERS, k as f64).await?;
                let document = doc! { "_id": format!("large {round} {k}"), "k": k, "x": "y".repeat(500_000) };
                let insert = doc! { "insert": "users", "documents": [document], "shardVersion": version };
                transactions.must(shard, insert).await?;
            }
        }
        // Everybody goes to the other shard, and back in the second round.
        for id in (0..1000_i64).step_by(20) {
            let (from, to) = if round == 0 { (id, (id + 500) % 1000) } else { ((id + 500) % 1000, id) };
            transactions.rekey(id, (from, to), round).await?;
        }
        let newest = transactions.prepare().await?;
        rig.insert_users([1 + round]).await?;
        collector.kill9();
        collector.run()?;
        transactions.commit_prepared(newest, backwards).await?;
    }
    rig.finish(&[USERS], collector, &[]).await
}

/// Writes something and waits until the stored position is behind it.
async fn store_a_position(rig: &Rig, k: i64) -> Result<()> {
    rig.insert_users([k]).await?;
    let shard = &rig.cluster.clients()[usize::from(k >= 500)];
    let now = shard.database("admin").run_command(doc! { "hello": 1 }).await?.get_timestamp("operationTime")?;
    let stored = rig.target.client().database("mongoshake").collection::<Document>("ckpt_default");
    let (started, patience) = (Instant::now(), patience::at_most(PATIENCE));
    while stored.find_one(doc! { "position.ts": { "$gte": now } }).await?.is_none() {
        anyhow::ensure!(started.elapsed() < patience, "no position behind {now} is stored");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Of two transactions that overlap the second one's beginning lies among the first one's entries, so no position is
/// before one of them and behind the other.
#[tokio::test]
async fn those_that_overlap_are_known_after_every_kill() -> Result<()> {
    let rig = Rig::start(Options::default()).await?;
    rig.insert_users((0..1000).step_by(20)).await?;
    let mut collector = Collector::start(&rig.config()?)?;
    collector.wait_log("overlap is over", PATIENCE).await?;
    let mut router = rig.cluster.router(&rig.gossip);
    let (mut first, mut second) = (Transactions::new(&rig), Transactions::new(&rig));
    first.begin();
    first.rekey(20, (20, 520), 0).await?;
    let first_time = first.prepare().await?;
    second.begin();
    second.rekey(40, (40, 540), 0).await?;
    second.rekey(560, (560, 60), 0).await?;
    let second_time = second.prepare().await?;
    store_a_position(&rig, 1).await?;
    collector.kill9();
    collector.run()?;
    // Where the user is from now on, and changes again; that it is gone from the other shard is told last.
    first.commit_on(1, first_time).await?;
    let change = doc! { "q": { "_id": 20, "k": 520 }, "u": { "$set": { "name": "later" } } };
    check(router.write(USERS, 520.0, doc! { "update": "users", "updates": [change] }).await?)?;
    store_a_position(&rig, 2).await?;
    collector.kill9();
    collector.run()?;
    first.commit_on(0, first_time).await?;
    store_a_position(&rig, 3).await?;
    collector.kill9();
    collector.run()?;
    second.commit_prepared(second_time, true).await?;
    rig.finish(&[USERS], collector, &[]).await
}
