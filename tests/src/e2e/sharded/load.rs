//! Writers that play applications of a cluster: every document may change its shard at any moment.
//!
//! Each writer owns its `_id`s and knows what it wrote. It inserts, changes, replaces and deletes through the router, and
//! changes shard keys: in a retryable write where the owner stays the same, in a transaction across both shards where it
//! does not, prepared on both and committed in either order. A lost answer makes it forget a document. The shape of the
//! documents is of no matter here; other loads care for that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bson::{Document, doc};
use oplogue_tests::load::seed;
use oplogue_tests::servers::cluster::{Cluster, Router};
use oplogue_tests::servers::wire::fault;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;

use super::rig::{Rig, USERS};
use super::transactions::Transactions;

#[derive(Debug, Default)]
struct Counts {
    done: AtomicU64,
    refused: AtomicU64,
    lost: AtomicU64,
    across: AtomicU64,
}

pub(super) struct Load {
    seed: u64,
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
    writers: JoinSet<Result<()>>,
}

impl Load {
    pub(super) fn start(rig: &Rig, writers: usize) -> Self {
        let (seed, counts, stop) = (seed(), Arc::<Counts>::default(), Arc::<AtomicBool>::default());
        let mut tasks = JoinSet::new();
        for writer in 0..writers {
            let writer = Writer {
                rng: StdRng::seed_from_u64(seed + writer as u64),
                router: rig.cluster.router(&rig.gossip),
                transactions: Transactions::new(rig),
                known: Vec::new(),
                next_id: writer as i64,
                step: writers as i64,
                counts: Arc::clone(&counts),
            };
            tasks.spawn(writer.run(Arc::clone(&stop)));
        }
        Self { seed, counts, stop, writers: tasks }
    }

    pub(super) fn done(&self) -> u64 {
        self.counts.done.load(Ordering::Relaxed)
    }

    pub(super) async fn reach(&mut self, done: u64, within: Duration) -> Result<()> {
        let started = Instant::now();
        while self.done() < done {
            if let Some(ended) = self.writers.try_join_next() {
                ended?.with_context(|| self.story())?;
            }
            anyhow::ensure!(started.elapsed() < within, "{}: stuck", self.story());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    pub(super) fn story(&self) -> String {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counts { done, refused, lost, across } = &*self.counts;
        let (done, refused, lost, across) = (count(done), count(refused), count(lost), count(across));
        format!("seed {}: {done} done, {across} across shards, {refused} refused, {lost} lost", self.seed)
    }

    pub(super) async fn stop(mut self) -> Result<String> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.writers.join_next().await {
            ended?.with_context(|| self.story())?;
        }
        Ok(self.story())
    }
}

struct Writer {
    rng: StdRng,
    router: Router,
    transactions: Transactions,
    /// `_id` and shard key of documents that are there.
    known: Vec<(i64, i64)>,
    next_id: i64,
    step: i64,
    counts: Arc<Counts>,
}

impl Writer {
    async fn run(mut self, stop: Arc<AtomicBool>) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            let at = if self.known.is_empty() { None } else { Some(self.rng.random_range(0..self.known.len())) };
            let outcome = match (at, self.rng.random_range(0..100)) {
                (None, _) | (_, 0..30) => self.insert().await,
                (Some(at), 30..55) => self.update(at).await,
                (Some(at), 55..65) => self.replace(at).await,
                (Some(at), 65..75) => self.delete(at).await,
                (Some(at), _) => self.rekey(at).await,
            };
            match outcome {
                Ok(true) => self.counts.done.fetch_add(1, Ordering::Relaxed),
                Ok(false) => self.counts.refused.fetch_add(1, Ordering::Relaxed),
                // A primary went; what was on its way may be done or not, and the document is left alone.
                Err(_) => {
                    if let Some(at) = at.filter(|at| *at < self.known.len()) {
                        self.known.swap_remove(at);
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    self.counts.lost.fetch_add(1, Ordering::Relaxed)
                }
            };
        }
        Ok(())
    }

    fn key(&mut self) -> i64 {
        self.rng.random_range(0..1000)
    }

    fn document(&mut self, id: i64, k: i64) -> Document {
        doc! { "_id": id, "k": k, "n": self.rng.random_range(0..1_000_000), "list": [1, 2, 3], "sub": { "a": id } }
    }

    async fn insert(&mut self) -> Result<bool> {
        let (id, k) = (self.next_id, self.key());
        self.next_id += self.step;
        let document = self.document(id, k);
        let done = self.write(k, doc! { "insert": "users", "documents": [document] }).await?;
        if done {
            self.known.push((id, k));
        }
        Ok(done)
    }

    async fn update(&mut self, at: usize) -> Result<bool> {
        let (id, k) = self.known[at];
        let n = self.rng.random_range(0..100);
        let change = match n % 4 {
            0 => doc! { "$inc": { "n": 1 }, "$push": { "list": n } },
            1 => doc! { "$set": { "sub.b": n }, "$unset": { "list": 1 } },
            2 => doc! { "$set": { "list": [n, n], format!("f{n}"): n } },
            _ => doc! { "$unset": { "sub.a": 1 }, "$set": { "n": n } },
        };
        self.write(k, doc! { "update": "users", "updates": [{ "q": { "_id": id, "k": k }, "u": change }] }).await
    }

    async fn replace(&mut self, at: usize) -> Result<bool> {
        let (id, k) = self.known[at];
        let document = self.document(id, k);
        self.write(k, doc! { "update": "users", "updates": [{ "q": { "_id": id, "k": k }, "u": document }] }).await
    }

    async fn delete(&mut self, at: usize) -> Result<bool> {
        let (id, k) = self.known[at];
        let done = self.write(k, doc! { "delete": "users", "deletes": [{ "q": { "_id": id, "k": k }, "limit": 1 }] });
        let done = done.await?;
        if done {
            self.known.swap_remove(at);
        }
        Ok(done)
    }

    async fn write(&mut self, k: i64, command: Document) -> Result<bool> {
        let answer = self.router.write(USERS, k as f64, command).await?;
        match fault(&answer) {
            None => Ok(true),
            // Only an answer that says for sure that nothing was done is a refusal.
            Some((11000 | 112 | 24 | 20, _)) => Ok(false),
            Some((code, message)) => anyhow::bail!("{code}: {message}"),
        }
    }

    /// Changes a shard key: a delete and an insert in one transaction.
    async fn rekey(&mut self, at: usize) -> Result<bool> {
        let (id, from) = self.known[at];
        let to = self.key();
        let document = self.document(id, to);
        let (old, old_version) = self.router.route(USERS, from as f64).await?;
        let (new, new_version) = self.router.route(USERS, to as f64).await?;
        let delete = doc! { "delete": "users", "deletes": [{ "q": { "_id": id, "k": from }, "limit": 1 }], "shardVersion": old_version };
        let insert = doc! { "insert": "users", "documents": [document], "shardVersion": new_version };
        self.transactions.begin();
        let deleted = self.transactions.step(old, "shop", delete).await?;
        if !deleted || !self.transactions.step(new, "shop", insert).await? {
            self.transactions.abort().await?;
            self.router.forget(USERS);
            return Ok(false);
        }
        // Whoever commits first: the delete must not win because it was logged last.
        self.transactions.commit(self.rng.random_bool(0.5)).await?;
        self.counts.across.fetch_add(u64::from(old != new), Ordering::Relaxed);
        self.known[at] = (id, to);
        Ok(true)
    }
}

/// Moves ranges of users between the shards, one after the other, until it is stopped.
pub(super) struct Movers {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<u64>,
}

impl Movers {
    pub(super) fn start(rig: &Rig) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let asked = Arc::clone(&stop);
        let (config, mut rng) = (rig.cluster.config.uri(), StdRng::seed_from_u64(seed()));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut moved = 0;
            while !asked.load(Ordering::Relaxed) {
                let (min, to) = (rng.random_range(0..10_i64) * 100, rng.random_range(0..2_usize));
                moved += u64::from(Cluster::try_move(&config, USERS, (min, min + 100), to).await.is_ok());
            }
            moved
        });
        Self { stop, tasks }
    }

    pub(super) async fn stop(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.tasks.join_next().await.transpose()?.unwrap_or_default())
    }
}
