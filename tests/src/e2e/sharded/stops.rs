//! What a run refuses or stops at, with a message that says what to do.
//!
//! Both cases would lose documents without a word if they went on. The target is looked at as well: nothing may have
//! been dropped before the stop.

use anyhow::Result;
use bson::{Bson, Document, doc};
use oplogue_tests::collector::{Collector, HAND_OVER};
use oplogue_tests::servers::cluster::ORPHANS_KEPT;
use oplogue_tests::servers::wire::check;
use oplogue_tests::servers::{Options, User};

use super::rig::{PATIENCE, Rig, USERS};

#[tokio::test]
async fn a_database_that_changes_its_primary_shard_stops_the_run_before_its_drop() -> Result<()> {
    let rig = Rig::start(Options::default()).await?;
    let mut router = rig.cluster.router(&rig.gossip);
    rig.cluster.create_database("stock", 0).await?;
    let insert =
        doc! { "insert": "items", "documents": [{ "_id": 1 }, { "_id": 2 }], "writeConcern": { "w": "majority" } };
    check(router.run(0, "stock", insert).await?)?;
    let mut collector = Collector::start(&rig.config()?)?;
    collector.wait_log(HAND_OVER, PATIENCE).await?;
    let (_, version) = rig.cluster.database("stock").await?;
    let majority = doc! { "w": "majority" };
    let moving =
        doc! { "_shardsvrMovePrimary": "stock", "to": "s2", "databaseVersion": version, "writeConcern": majority };
    rig.cluster.command(&rig.cluster.shards[0], "admin", moving).await?;
    let status = collector.wait(PATIENCE).await?;
    anyhow::ensure!(status.code() == Some(1), "{status}:\n{}", collector.log_end());
    anyhow::ensure!(collector.log().contains("movePrimary"), "{}", collector.log_end());
    let left = super::rig::documents(&rig.target.client(), "stock.items").await?;
    anyhow::ensure!(left.len() == 2, "the drop was applied");
    Ok(())
}

/// Before 6.0 a shard logs writes to leftovers of moved chunks like any others.
#[tokio::test]
async fn a_running_balancer_is_refused_where_leftovers_are_not_told_apart() -> Result<()> {
    // Nobody but the servers' own users may ask for the version.
    let user = User::new("reader", "password", &[("readAnyDatabase", "admin"), ("read", "local"), ("read", "config")]);
    let rig = Rig::start(Options { users: vec![user], ..Options::default() }).await?;
    let settings = rig.cluster.config.client().database("config").collection::<Document>("settings");
    let balancer = async |off: bool| {
        let mode = doc! { "$set": { "mode": if off { "off" } else { "full" }, "stopped": off } };
        settings.update_one(doc! { "_id": "balancer" }, mode).await.map(drop)
    };
    balancer(false).await?;
    let older = doc! { "setFeatureCompatibilityVersion": "5.0", "writeConcern": { "w": "majority" } };
    rig.cluster.command(&rig.cluster.config, "admin", older).await?;
    let mut collector = Collector::start(&rig.config()?)?;
    let status = collector.wait(PATIENCE).await?;
    anyhow::ensure!(status.code() == Some(1) || status.code() == Some(2), "{status}:\n{}", collector.log_end());
    anyhow::ensure!(collector.log().contains("sh.stopBalancer()"), "{}", collector.log_end());
    balancer(true).await?;
    collector.run()?;
    collector.wait_log(HAND_OVER, PATIENCE).await?;
    rig.finish(&["shop.users"], collector, &["the balancer of this cluster may run"]).await
}

/// There, somebody moves chunks by hand: of a collection that does not pass, and then of one that does.
#[tokio::test]
async fn a_chunk_that_moves_where_leftovers_are_not_told_apart_stops_the_run() -> Result<()> {
    let kept = Options { parameters: vec![(ORPHANS_KEPT.to_owned(), "3600".to_owned())], ..Options::default() };
    let rig = Rig::start(kept).await?;
    rig.cluster.shard_collection("shop.visits", doc! { "k": 1 }, 1).await?;
    let visit = doc! { "insert": "visits", "documents": [{ "_id": 1, "k": 1 }], "writeConcern": { "w": "majority" } };
    check(rig.cluster.router(&rig.gossip).write("shop.visits", 1.0, visit).await?)?;
    let older = doc! { "setFeatureCompatibilityVersion": "5.0", "writeConcern": { "w": "majority" } };
    rig.cluster.command(&rig.cluster.config, "admin", older).await?;
    let mut collector = Collector::start(&rig.config()?.set("filter.namespace.black", "shop.visits"))?;
    collector.wait_log(HAND_OVER, PATIENCE).await?;
    let (least, most) = (doc! { "k": Bson::MinKey }, doc! { "k": Bson::MaxKey });
    rig.cluster.move_range("shop.visits", least, most, 1, false).await?;
    rig.insert_users(0..20).await?;
    rig.equal(&[USERS], &mut collector).await?;
    rig.move_users(0, 500.0, 1, false).await?;
    let status = collector.wait(PATIENCE).await?;
    anyhow::ensure!(status.code() == Some(1), "{status}:\n{}", collector.log_end());
    anyhow::ensure!(collector.log().contains("documents of shop.users were moved"), "{}", collector.log_end());
    anyhow::ensure!(rig.differences(USERS).await?.is_empty(), "something was lost");
    collector.run()?;
    let status = collector.wait(PATIENCE).await?;
    anyhow::ensure!(!status.success(), "{status}:\n{}", collector.log_end());
    anyhow::ensure!(collector.log().contains("leftovers of a chunk of shop.users"), "{}", collector.log_end());
    Ok(())
}

#[tokio::test]
async fn a_shard_that_is_not_configured_is_refused_by_name() -> Result<()> {
    let rig = Rig::start(Options::default()).await?;
    let only = rig.cluster.shards[0].uri();
    let mut collector = Collector::start(&rig.config()?.set("mongo_urls", only))?;
    let status = collector.wait(PATIENCE).await?;
    anyhow::ensure!(status.code() == Some(1) || status.code() == Some(2), "{status}:\n{}", collector.log_end());
    anyhow::ensure!(collector.log().contains("the cluster has the shard s2"), "{}", collector.log_end());
    Ok(())
}
