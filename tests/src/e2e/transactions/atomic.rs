//! `incr_sync.transaction = "atomic"`: nobody who reads the target sees half of a transaction.
//!
//! Money moves between accounts of two collections, in transactions of one entry and, now and then, of two. The sum is
//! the same at every moment of the source. A reader with snapshot reads adds up the target all the while.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use bson::{Document, doc};
use mongodb::error::TRANSIENT_TRANSACTION_ERROR;
use mongodb::{Client, ClientSession};
use oplogue_tests::collector::Collector;
use oplogue_tests::prepared::Transaction;
use oplogue_tests::servers::Options;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::super::rig::{PATIENCE, Rig, SENTINEL, handed_over};
use super::{CACHE_GB, THIRD_OF_AN_ENTRY, collection, rig};

const ACCOUNTS: i32 = 40;
const EACH: i64 = 1_000;

/// Transfers of the source that the reader must live through, and after how many the control gives up.
const TRANSFERS: u64 = 600;
const TRANSFERS_MAX: u64 = 20_000;

/// What the collector says when overlap is over: from here on transactions are whole.
const OVERLAP_OVER: &str = "overlap is over";

#[tokio::test]
async fn a_reader_never_sees_half_of_a_transfer() -> Result<()> {
    let rig = rig(&Options::guide_source().version, CACHE_GB).await?;
    if !rig.target.has("reads of one moment outside of transactions", (5, 0)) {
        return Ok(());
    }
    let half_seen = transfer(&rig, "atomic").await?;
    anyhow::ensure!(half_seen == 0, "{half_seen} sums were wrong");
    Ok(())
}

/// The control: the same reader does see halves when transactions are split.
#[tokio::test]
async fn the_same_reader_sees_halves_when_transactions_are_split() -> Result<()> {
    let rig = rig(&Options::guide_source().version, CACHE_GB).await?;
    if !rig.target.has("reads of one moment outside of transactions", (5, 0)) {
        return Ok(());
    }
    let half_seen = transfer(&rig, "split").await?;
    anyhow::ensure!(half_seen > 0, "the reader would not notice");
    Ok(())
}

/// Runs the load; how many wrong sums the reader saw.
async fn transfer(rig: &Rig, mode: &str) -> Result<u64> {
    let accounts = (0..ACCOUNTS).map(|n| doc! { "_id": n, "money": EACH });
    for name in ["c00", "c01"] {
        let things = collection(rig, name).clone();
        let accounts: Vec<Document> = accounts.clone().collect();
        things.insert_many(accounts).write_concern(mongodb::options::WriteConcern::majority()).await?;
    }
    // A unique value that documents exchange inside transactions, beside the money.
    let unique = mongodb::options::IndexOptions::builder().unique(true).sparse(true).build();
    let index = mongodb::IndexModel::builder().keys(doc! { "ticket": 1 }).options(unique).build();
    collection(rig, "c00").create_index(index).await?;
    let config = rig.config()?.by_oplog_only("a change stream does not show where a transaction ends");
    let mut collector = Collector::start(&config.set("incr_sync.transaction", mode))?;
    handed_over(&mut collector).await?;
    collector.wait_log(OVERLAP_OVER, PATIENCE).await?;
    let (stop, wrong) = (AtomicBool::new(false), AtomicU64::new(0));
    let client = rig.source.client();
    let load = async {
        let done = AtomicU64::new(0);
        // Of a split transaction a half is visible for a moment only: the control goes on until the reader met one.
        let enough = |done: u64| {
            done >= TRANSFERS && (mode == "atomic" || wrong.load(Ordering::Relaxed) > 0 || done >= TRANSFERS_MAX)
        };
        let writers = (0..3).map(|n| move_money(&client, rig.load.seed + n, &done, &enough));
        futures_util::future::try_join_all(writers).await?;
        large_transfer(rig).await?;
        let equal = rig.comparison().wait(SENTINEL, PATIENCE).await;
        stop.store(true, Ordering::Relaxed);
        equal.with_context(|| format!("seed {}:\n{}", rig.load.seed, collector.log_end()))
    };
    let ((), reads) = tokio::try_join!(load, add_up(rig.target.client(), &stop, &wrong))?;
    let wrong = wrong.load(Ordering::Relaxed);
    println!("{mode}: {reads} sums, {wrong} of them wrong; seed {}", rig.load.seed);
    anyhow::ensure!(reads > 10, "only {reads} sums were taken");
    let split = metric(&collector.get("/metrics").await?, "oplogue_schedule_split_transactions_total");
    anyhow::ensure!(split == 0, "{split} transactions were split");
    rig.finish(rig.comparison(), collector, &[]).await?;
    Ok(wrong)
}

fn metric(page: &str, name: &str) -> u64 {
    let line = page.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.trim().parse().ok()).unwrap_or_default()
}

/// One writer of small transfers, some of which also pass a unique value on.
async fn move_money(client: &Client, seed: u64, done: &AtomicU64, enough: &impl Fn(u64) -> bool) -> Result<()> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut session = client.start_session().await?;
    while !enough(done.load(Ordering::Relaxed)) {
        let (from, to) = (rng.random_range(0..ACCOUNTS), rng.random_range(0..ACCOUNTS));
        let amount = rng.random_range(1..50_i64);
        let swap = rng.random_bool(0.2);
        match try_transfer(&mut session, client, from, to, amount, swap).await {
            Ok(()) => {
                done.fetch_add(1, Ordering::Relaxed);
            }
            Err(e) if e.contains_label(TRANSIENT_TRANSACTION_ERROR) => {
                session.abort_transaction().await.ok();
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

async fn try_transfer(
    session: &mut ClientSession,
    client: &Client,
    from: i32,
    to: i32,
    amount: i64,
    swap: bool,
) -> mongodb::error::Result<()> {
    let shop = client.database("shop");
    let (left, right) = (shop.collection::<Document>("c00"), shop.collection::<Document>("c01"));
    session.start_transaction().await?;
    left.update_one(doc! { "_id": from }, doc! { "$inc": { "money": -amount } }).session(&mut *session).await?;
    if swap {
        // The holder of the ticket gives it to another one: in any other order it collides.
        let holder = doc! { "ticket": 1 };
        left.update_one(holder, doc! { "$unset": { "ticket": 1 } }).session(&mut *session).await?;
        left.update_one(doc! { "_id": to }, doc! { "$set": { "ticket": 1 } }).session(&mut *session).await?;
    }
    right.update_one(doc! { "_id": to }, doc! { "$inc": { "money": amount } }).session(&mut *session).await?;
    session.commit_transaction().await
}

/// A transfer whose entries the server has to chain.
async fn large_transfer(rig: &Rig) -> Result<()> {
    let mut transaction = Transaction::begin(&rig.source.client()).await?;
    let (left, right) = (transaction.collection("c00"), transaction.collection("c01"));
    let less = doc! { "$inc": { "money": -EACH } };
    left.update_one(doc! { "_id": 0 }, less).session(transaction.session()).await?;
    transaction.insert("c01", "ballast", 4, THIRD_OF_AN_ENTRY).await?;
    let more = doc! { "$inc": { "money": EACH } };
    right.update_one(doc! { "_id": 0 }, more).session(transaction.session()).await?;
    transaction.commit().await
}

/// Adds up the target again and again and counts the sums that are wrong; how many were taken.
async fn add_up(target: Client, stop: &AtomicBool, wrong: &AtomicU64) -> Result<u64> {
    let mut reads = 0;
    while !stop.load(Ordering::Relaxed) {
        if let Some(sum) = sum_at_once(&target).await? {
            reads += 1;
            wrong.fetch_add(u64::from(sum != i64::from(ACCOUNTS) * EACH * 2), Ordering::Relaxed);
        }
    }
    Ok(reads)
}

/// All the money of one moment; `None` when the server broke the read off.
async fn sum_at_once(target: &Client) -> Result<Option<i64>> {
    let mut session = target.start_session().snapshot(true).await?;
    let mut sum = 0;
    for name in ["c00", "c01"] {
        let all = doc! { "$group": { "_id": null, "sum": { "$sum": "$money" } } };
        let things = target.database("shop").collection::<Document>(name);
        let found = things.aggregate([all]).session(&mut session).await;
        let mut found = match found {
            Ok(found) => found,
            Err(_) => return Ok(None),
        };
        let group = found.next(&mut session).await.transpose()?;
        sum += group.and_then(|group| group.get_i64("sum").ok()).unwrap_or_default();
    }
    Ok(Some(sum))
}
