//! Incremental from a cluster: one order over all shards, whatever moves between them.
//!
//! Chunks migrate, documents change their shard key in transactions across shards, primaries and the collector go, and
//! the target must equal what the shards own. Every test compares options and indexes too.

use std::time::Duration;

use anyhow::Result;
use bson::{Document, doc};
use oplogue_tests::collector::{Collector, HAND_OVER};
use oplogue_tests::servers::Options;
use oplogue_tests::servers::cluster::ORPHANS_KEPT;
use oplogue_tests::servers::wire::check;

use super::load::{Load, Movers};
use super::rig::{PATIENCE, Rig, USERS};

#[tokio::test]
async fn a_quiet_shard_holds_nothing_back() -> Result<()> {
    let rig = Rig::start(Options::default()).await?;
    let mut collector = Collector::start(&rig.config()?)?;
    collector.wait_log(HAND_OVER, PATIENCE).await?;
    // All on the first shard; the second one is silent.
    rig.insert_users(0..50).await?;
    rig.finish(&[USERS], collector, &[]).await
}

#[tokio::test]
async fn everything_moves_under_load_and_the_collector_is_killed() -> Result<()> {
    let rig = Rig::start(Options::default()).await?;
    let mut load = Load::start(&rig, 3);
    load.reach(300, PATIENCE).await?;
    let mut collector = Collector::start(&rig.config()?)?;
    let movers = Movers::start(&rig);
    for _ in 0..4 {
        let done = load.done();
        load.reach(done + 200, PATIENCE).await?;
        anyhow::ensure!(collector.is_running()?, "{}:\n{}", load.story(), collector.log_end());
        collector.kill9();
        collector.run()?;
    }
    collector.wait_log(HAND_OVER, PATIENCE).await?;
    let done = load.done();
    load.reach(done + 300, PATIENCE).await?;
    rig.cluster.shards[1].step_down().await?;
    let done = load.done();
    load.reach(done + 300, PATIENCE).await?;
    let moved = movers.stop().await?;
    let story = load.stop().await?;
    println!("{story}; {moved} moves");
    anyhow::ensure!(moved > 0, "nothing moved");
    rig.finish(&[USERS], collector, &["going back to the last durable position", "an earlier full sync did not finish"])
        .await
}

/// What a chunk left behind is older than the owner's document, and stands on the shard that is asked last.
#[tokio::test]
async fn a_document_that_is_read_for_one_change_is_its_owners() -> Result<()> {
    let kept = Options { parameters: vec![(ORPHANS_KEPT.to_owned(), "3600".to_owned())], ..Options::default() };
    let rig = Rig::start(kept).await?;
    rig.insert_users((0..1000).step_by(50)).await?;
    rig.move_users(700, 800.0, 0, false).await?;
    let mut collector = Collector::start(&rig.config()?)?;
    collector.wait_log("overlap is over", PATIENCE).await?;
    // Gone from the target, it is read whole for its next change.
    let there = rig.target.client().database("shop").collection::<Document>("users");
    anyhow::ensure!(there.delete_one(doc! { "_id": 750_i64 }).await?.deleted_count == 1, "750 was not copied");
    let update = doc! { "q": { "_id": 750_i64, "k": 750_i64 }, "u": { "$set": { "name": "moved" } } };
    let update = doc! { "update": "users", "updates": [update], "writeConcern": { "w": "majority" } };
    check(rig.cluster.router(&rig.gossip).write(USERS, 750.0, update).await?)?;
    rig.finish(&[USERS], collector, &[]).await
}

/// A document that moves from the shard that is asked last to the one that was asked first is on neither when asked.
#[tokio::test]
async fn a_document_that_moves_while_it_is_read_is_found() -> Result<()> {
    let rig = Rig::start(Options::default()).await?;
    rig.insert_users((0..1000).step_by(50)).await?;
    let mut collector = Collector::start(&rig.config()?)?;
    collector.wait_log("overlap is over", PATIENCE).await?;
    let there = rig.target.client().database("shop").collection::<Document>("users");
    anyhow::ensure!(there.delete_one(doc! { "_id": 750_i64 }).await?.deleted_count == 1, "750 was not copied");
    let slow = doc! {
        "failCommands": ["find"], "namespace": USERS, "appName": "oplogue", "blockConnection": true, "blockTimeMS": 6_000,
    };
    rig.cluster.shards[1].fail_command("alwaysOn", slow).await?;
    let update = doc! { "q": { "_id": 750_i64, "k": 750_i64 }, "u": { "$set": { "name": "moved" } } };
    let update = doc! { "update": "users", "updates": [update], "writeConcern": { "w": "majority" } };
    check(rig.cluster.router(&rig.gossip).write(USERS, 750.0, update).await?)?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    rig.move_users(700, 800.0, 0, false).await?;
    rig.cluster.shards[1].heal_commands().await?;
    rig.finish(&[USERS], collector, &[]).await
}

/// The shard key gets another field under load: chunks get other bounds, and keys of deletes another form.
#[tokio::test]
async fn a_shard_key_is_refined() -> Result<()> {
    let rig = Rig::start(Options::default()).await?;
    rig.insert_users((0..1000).step_by(10)).await?;
    let mut collector = Collector::start(&rig.config()?)?;
    collector.wait_log(HAND_OVER, PATIENCE).await?;
    let mut router = rig.cluster.router(&rig.gossip);
    let key = doc! { "k": 1, "name": 1 };
    for shard in 0..2 {
        let index = doc! { "key": key.clone(), "name": "refined" };
        let create = doc! { "createIndexes": "users", "indexes": [index], "writeConcern": { "w": "majority" } };
        check(router.run(shard, "shop", create).await?)?;
    }
    for (round, refined) in [(0, true), (100, false)] {
        if refined {
            let refine = doc! { "_shardsvrRefineCollectionShardKey": "users", "newShardKey": key.clone() };
            rig.cluster.coordinate("shop", refine).await?;
        } else {
            let bound = |k: i64| doc! { "k": k, "name": bson::Bson::MinKey };
            rig.cluster.move_range(USERS, bound(500), bound(700), 0, true).await?;
        }
        router.forget(USERS);
        for k in (round..1000).step_by(200) {
            let set = doc! { "q": { "_id": k, "k": k }, "u": { "$set": { "round": round } } };
            let delete = doc! { "q": { "_id": k + 10, "k": k + 10 }, "limit": 1 };
            let insert = doc! { "_id": k + 5, "k": k + 5, "name": format!("late {k}") };
            for command in [
                doc! { "update": "users", "updates": [set] },
                doc! { "delete": "users", "deletes": [delete] },
                doc! { "insert": "users", "documents": [insert] },
            ] {
                check(router.write(USERS, k as f64, command).await?)?;
            }
        }
        collector.kill9();
        collector.run()?;
    }
    rig.finish(&[USERS], collector, &["an earlier run of this job"]).await
}

#[tokio::test]
async fn ddl_that_every_shard_logs_is_done_once() -> Result<()> {
    let rig = Rig::start(Options::default()).await?;
    rig.insert_users((0..1000).step_by(50)).await?;
    let mut collector = Collector::start(&rig.config()?)?;
    collector.wait_log(HAND_OVER, PATIENCE).await?;
    let mut router = rig.cluster.router(&rig.gossip);
    for name in ["kept", "dropped"] {
        for shard in 0..2 {
            let index = doc! { "key": { name: 1 }, "name": name };
            let create = doc! { "createIndexes": "users", "indexes": [index], "writeConcern": { "w": "majority" } };
            check(router.run(shard, "shop", create).await?)?;
        }
    }
    for shard in 0..2 {
        check(router.run(shard, "shop", doc! { "dropIndexes": "users", "index": "dropped" }).await?)?;
    }
    // Sharded collections that come, get documents on both shards, change their name and go.
    for name in ["shop.first", "shop.second"] {
        rig.cluster.shard_collection(name, doc! { "k": 1 }, 1).await?;
        let (min, max) = (doc! { "k": 0 }, doc! { "k": bson::Bson::MaxKey });
        rig.cluster.move_range(name, min, max, 1, true).await?;
        for k in [-1, 1] {
            let collection = name.trim_start_matches("shop.");
            let insert = doc! { "insert": collection, "documents": [{ "_id": k, "k": k }] };
            check(router.write(name, f64::from(k), insert).await?)?;
        }
    }
    let rename =
        doc! { "_shardsvrRenameCollection": "first", "to": "shop.third", "dropTarget": false, "stayTemp": false };
    rig.cluster.coordinate("shop", rename).await?;
    rig.cluster.coordinate("shop", doc! { "_shardsvrDropCollection": "second" }).await?;
    // And again under the dropped one's name.
    rig.cluster.shard_collection("shop.second", doc! { "k": 1 }, 1).await?;
    router.forget("shop.second");
    let insert = doc! { "insert": "second", "documents": [{ "_id": 7, "k": 7 }] };
    check(router.write("shop.second", 7.0, insert).await?)?;
    rig.finish(&[USERS, "shop.first", "shop.second", "shop.third"], collector, &[]).await
}
