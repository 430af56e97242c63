//! A deterministic write load against a source: every BSON type, every `_id` type, every kind of write.
//!
//! Tests of a replicator are as good as the writes they replicate, so one generator knows them all: inserts,
//! replacements, each update operator, pipelines, array filters, deletes, transactions, unique keys that move,
//! and DDL where asked. The same seed gives the same sequence of attempts; what a server refuses is counted,
//! and a fail-over is waited out. It writes to the source only and never judges the target.

#![allow(clippy::indexing_slicing, reason = "a generator: every index is drawn below the length")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use mongodb::Client;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;

pub mod chaos;
mod ddl;
mod operations;
mod shelf;
mod unique;
pub(crate) mod update;
pub mod values;

use operations::Worker;
use shelf::Shelf;

pub use crate::seed::seed;

/// What is written. Fill what matters and leave the rest to `..LoadOptions::default()`.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Seed of everything random; taken from `OPLOGUE_SEED` where set, else from the clock.
    pub seed: u64,
    /// Source namespaces that take the ordinary writes.
    pub namespaces: Vec<String>,
    /// Concurrent writers; each owns its share of the namespaces.
    pub workers: usize,
    /// Operations a second over all writers; unlimited when none.
    pub rate: Option<f64>,
    /// Length of the padding of a new document in bytes, at most.
    pub padding_max: usize,
    /// Transactions among the operations.
    pub transactions: bool,
    /// A collection `shop.unique` whose documents exchange values of a unique index.
    pub unique_swaps: bool,
    /// DDL in a database `ddl`, beside the ordinary writes.
    pub ddl: bool,
    /// `collMod` among the DDL; it needs more than `readWriteAnyDatabase` on the target.
    pub coll_mod: bool,
    /// Series of the oldest server that takes part, the target included: DDL that it lacks is left out.
    pub series: (u32, u32),
    /// Capped collections among what is created: every change of them that the source takes, the target takes too.
    pub capped: bool,
    /// Field names with dots and dollars, which the server takes in inserts and replacements.
    pub odd_names: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            seed: seed(),
            namespaces: default_namespaces(),
            workers: 4,
            rate: None,
            padding_max: 200,
            transactions: true,
            unique_swaps: true,
            ddl: false,
            coll_mod: false,
            series: (6, 0),
            capped: true,
            odd_names: false,
        }
    }
}

/// Twenty collections in three databases.
#[must_use]
pub fn default_namespaces() -> Vec<String> {
    let shop = (0..14).map(|number| format!("shop.c{number:02}"));
    let stock = (0..4).map(|number| format!("stock.item.s{number}"));
    let users = (0..2).map(|number| format!("users.u{number}"));
    shop.chain(stock).chain(users).collect()
}

/// What a load has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Operations the source accepted.
    pub done: u64,
    /// Operations the source refused, such as a `$inc` of a string or a duplicate key.
    pub refused: u64,
    /// Operations whose answer was lost in a fail-over.
    pub lost: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    done: AtomicU64,
    refused: AtomicU64,
    lost: AtomicU64,
}

impl Counters {
    fn totals(&self) -> Totals {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals { done: read(&self.done), refused: read(&self.refused), lost: read(&self.lost) }
    }
}

/// A running load. Dropping it stops the writers at once.
#[derive(Debug)]
pub struct Load {
    seed: u64,
    counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<Result<()>>,
}

impl Load {
    /// Creates the collections with `documents` each and returns when they are there. Nothing runs yet.
    ///
    /// # Errors
    /// When the source does not take them.
    pub async fn prepare(client: &Client, options: &LoadOptions, documents: usize) -> Result<()> {
        for mut shelf in shelves(client, options, 0, 1) {
            let mut rng = StdRng::seed_from_u64(options.seed ^ shelf.salt());
            shelf.create_indexes().await.with_context(|| format!("create indexes (seed {})", options.seed))?;
            shelf.fill(&mut rng, documents, options).await?;
        }
        if options.unique_swaps {
            unique::prepare(client).await?;
        }
        Ok(())
    }

    /// Starts writing. Documents of [`Load::prepare`] are found and changed too, given the same options.
    #[must_use]
    pub fn start(client: &Client, options: &LoadOptions) -> Self {
        let counters = Arc::new(Counters::default());
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        let workers = options.workers.max(1);
        for number in 0..workers {
            let salt = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(u64::try_from(number).unwrap_or_default() + 1);
            let worker = Worker {
                client: client.clone(),
                rng: StdRng::seed_from_u64(options.seed ^ salt),
                shelves: shelves(client, options, number, workers),
                unique: (options.unique_swaps && number == 0).then(|| unique::Swapper::new(client)),
                ddl: (options.ddl && number == workers - 1).then(|| ddl::Shaper::new(client, options)),
                pause: options.rate.map(|rate| Duration::from_secs_f64(f64::from(workers as u32) / rate)),
                options: options.clone(),
                counters: counters.clone(),
                stop: stop.clone(),
            };
            tasks.spawn(worker.run());
        }
        Self { seed: options.seed, counters, stop, tasks }
    }

    /// The seed that repeats this load.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// What has been done so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.counters.totals()
    }

    /// Waits until the source has accepted that many operations.
    ///
    /// # Errors
    /// When a writer failed, or they have not been reached in time.
    pub async fn reach(&mut self, done: u64, timeout: Duration) -> Result<()> {
        let started = std::time::Instant::now();
        while self.totals().done < done {
            if let Some(ended) = self.tasks.try_join_next() {
                ended.context("a writer of the load panicked")??;
            }
            anyhow::ensure!(
                started.elapsed() < timeout,
                "the load (seed {}) reached {:?} instead of {done} within {timeout:?}",
                self.seed,
                self.totals()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Stops the writers after their current operation and returns what was done.
    ///
    /// # Errors
    /// When a writer failed: the load was not what the test wanted.
    pub async fn stop(mut self) -> Result<Totals> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            let ended = ended.context("a writer of the load panicked")?;
            ended.with_context(|| format!("write load (seed {})", self.seed))?;
        }
        let totals = self.totals();
        let sound = totals.refused <= totals.done;
        anyhow::ensure!(sound, "the source refused most of the load (seed {}): {totals:?}", self.seed);
        Ok(totals)
    }
}

fn shelves(client: &Client, options: &LoadOptions, worker: usize, workers: usize) -> Vec<Shelf> {
    let own = options.namespaces.iter().enumerate().filter(|(number, _)| number % workers == worker);
    own.map(|(_, namespace)| Shelf::new(client, namespace)).collect()
}

/// A coin that shows heads once in `n`.
pub(crate) fn one_in(rng: &mut StdRng, n: u32) -> bool {
    rng.random_ratio(1, n)
}
