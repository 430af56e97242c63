//! The full copy of a cluster: each document once, from its owner, whatever the balancer does meanwhile.
//!
//! Leftovers are made in both ways in which they come about: by chunks that moved and wait for their deletion, and by
//! writes past the router. What moves while it is copied is slowed down at the target, not at the source.

use std::time::Duration;

use anyhow::Result;
use bson::{RawDocumentBuf, doc};
use futures_util::TryStreamExt as _;
use mongodb::options::Hint;
use oplogue_tests::collector::Collector;
use oplogue_tests::servers::Options;
use oplogue_tests::servers::cluster::{Chunk, ORPHANS_KEPT};
use oplogue_tests::servers::wire::check;

use super::rig::{PATIENCE, Rig, USERS};

#[tokio::test]
async fn every_kind_of_collection_is_copied_from_its_owners() -> Result<()> {
    // Leftovers of moved chunks stay for the whole test.
    let kept = Options { parameters: vec![(ORPHANS_KEPT.to_owned(), "3600".to_owned())], ..Options::default() };
    let rig = Rig::start(kept).await?;
    rig.insert_users((0..1000).step_by(5)).await?;
    rig.move_users(100, 200.0, 1, false).await?;
    rig.move_users(700, 800.0, 0, false).await?;
    let mut router = rig.cluster.router(&rig.gossip);
    // What is left behind is older than what the owner has now.
    for k in [105, 110, 705] {
        let update = doc! { "q": { "_id": k, "k": k }, "u": { "$set": { "moved": true } } };
        let update = doc! { "update": "users", "updates": [update], "writeConcern": { "w": "majority" } };
        check(router.write(USERS, f64::from(k), update).await?)?;
    }
    let delete = doc! { "delete": "users", "deletes": [{ "q": { "_id": 120, "k": 120 }, "limit": 1 }] };
    check(router.write(USERS, 120.0, delete).await?)?;
    // Nobody's leftovers: documents that were written past the router.
    for (shard, k) in [(0, 600_i64), (1, 10), (1, 12)] {
        let orphan = doc! { "_id": k, "k": k, "orphan": true };
        let insert = doc! { "insert": "users", "documents": [orphan], "writeConcern": { "w": "majority" } };
        check(router.run(shard, "shop", insert).await?)?;
    }
    // An unsharded collection at home, one of the same name elsewhere, and a hashed one.
    let plain = |text: &str| doc! { "insert": "plain", "documents": [{ "_id": 1, "at": text }, { "_id": 2 }] };
    check(router.run(0, "shop", plain("home")).await?)?;
    check(router.run(1, "shop", plain("elsewhere")).await?)?;
    rig.cluster.shard_collection("shop.hashed", doc! { "h": "hashed" }, 4).await?;
    let hashed = hashed_with_leftovers(&rig).await?;
    let config = rig.config()?.set("sync_mode", "full");
    let mut collector = Collector::start(&config)?;
    let status = collector.wait(PATIENCE).await?;
    anyhow::ensure!(status.success(), "{status}:\n{}", collector.log_end());
    for namespace in [USERS, "shop.plain"] {
        let found = rig.differences(namespace).await?;
        anyhow::ensure!(found.is_empty(), "{namespace}: {found:?}");
    }
    let mut copied = super::rig::documents(&rig.target.client(), "shop.hashed").await?;
    copied.sort_by_key(|document| document.get_i32("_id").unwrap_or_default());
    anyhow::ensure!(copied == hashed, "{copied:?} instead of {hashed:?}");
    collector.assert_no_unexpected_warnings(&[])
}

/// Sixty documents, each on both shards. Returns the owners', found by the chunks of their hashes.
async fn hashed_with_leftovers(rig: &Rig) -> Result<Vec<RawDocumentBuf>> {
    let mut router = rig.cluster.router(&rig.gossip);
    for (shard, at) in [(0, "s1"), (1, "s2")] {
        let all: Vec<_> = (0..60).map(|n| doc! { "_id": n, "h": n, "at": at }).collect();
        let insert = doc! { "insert": "hashed", "documents": all, "writeConcern": { "w": "majority" } };
        check(router.run(shard, "shop", insert).await?)?;
    }
    let mut owned = Vec::new();
    for Chunk { min, max, shard } in rig.cluster.chunks("shop.hashed").await? {
        let collection = rig.cluster.clients()[shard].database("shop").collection::<RawDocumentBuf>("hashed");
        let find = collection.find(doc! {}).hint(Hint::Keys(doc! { "h": "hashed" })).min(min).max(max);
        owned.extend(find.await?.try_collect::<Vec<_>>().await?);
    }
    owned.sort_by_key(|document| document.get_i32("_id").unwrap_or_default());
    anyhow::ensure!(
        owned.len() == 60 && owned.iter().any(|document| document.get_str("at").is_ok_and(|at| at == "s2")),
        "{owned:?}"
    );
    Ok(owned)
}

#[tokio::test]
async fn ranges_that_move_while_they_are_copied_are_read_again() -> Result<()> {
    let rig = Rig::start(Options::default()).await?;
    rig.insert_users(0..1000).await?;
    // A slow copy: the target holds each insert for a while. One range is read after the other.
    let slow = doc! { "failCommands": ["insert"], "blockConnection": true, "blockTimeMS": 5_000 };
    rig.target.fail_command("alwaysOn", slow).await?;
    // Without incremental, which begins so early that it would bring these documents once more.
    let config = rig.config()?.set("sync_mode", "full").set("full_sync.reader.collection_parallel", 1);
    let mut collector = Collector::start(&config.set("full_sync.reader.document_batch_size", 20))?;
    collector.wait_log("full sync is planned", PATIENCE).await?;
    // In the middle of the first range: the second one is not read yet.
    let copied = async || anyhow::Ok(super::rig::documents(&rig.target.client(), USERS).await?.len());
    while copied().await? == 0 {
        anyhow::ensure!(collector.is_running()?, "{}", collector.log_end());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    rig.move_users(700, f64::INFINITY, 0, true).await?;
    anyhow::ensure!(copied().await? < 500, "the second range was begun before the move was over");
    // There and back, so that an owner is the same before and after.
    for (min, max, to) in [(0, 300.0, 1), (0, 150.0, 0), (700, 900.0, 1)] {
        rig.move_users(min, max, to, true).await?;
    }
    rig.target.heal_commands().await?;
    let status = collector.wait(PATIENCE).await?;
    anyhow::ensure!(status.success(), "{status}:\n{}", collector.log_end());
    let found = rig.differences(USERS).await?;
    anyhow::ensure!(found.is_empty(), "{found:?}");
    collector.assert_no_unexpected_warnings(&[])
}
