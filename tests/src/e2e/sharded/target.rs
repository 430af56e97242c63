//! From a cluster into a cluster: what is sharded on the target, and what is compared.
//!
//! The target is a real server that is dressed as a `mongos`; commands that only a cluster knows are seen by the proxy in
//! front of it. Where chunks are on the target is nobody's affair here.

use anyhow::Result;
use bson::{Document, doc};
use oplogue_tests::collector::{Collector, HAND_OVER};
use oplogue_tests::dressed::{Dressed, enter_sharded};
use oplogue_tests::servers::Options;

use super::rig::{PATIENCE, Rig, USERS};

#[tokio::test]
async fn a_sharded_source_is_sharded_alike_on_the_target() -> Result<()> {
    let rig = Rig::start(Options::default()).await?;
    let mongos = Dressed::start(rig.target.port(0)).await?;
    let uri = mongos.uri(None);
    mongos.referee(USERS, &doc! { "k": 1 });
    rig.insert_users((0..1000).step_by(20)).await?;
    let config = rig.config()?.set("tunnel.address", uri.as_str()).set("checkpoint.storage.url", uri.as_str());
    let mut collector = Collector::start(&config)?;
    collector.wait_log(HAND_OVER, PATIENCE).await?;
    rig.insert_users((1..1000).step_by(40)).await?;
    rig.equal(&[USERS], &mut collector).await?;
    let commands = mongos.seen().sharding;
    let expected =
        [doc! { "enableSharding": "shop" }, doc! { "shardCollection": USERS, "key": { "k": 1 }, "unique": false }];
    anyhow::ensure!(commands == expected, "{commands:?}");
    rig.finish(&[USERS], collector, &[]).await?;
    anyhow::ensure!(mongos.seen().violations.is_empty(), "{:?}", mongos.seen().violations);

    // A collection that stays: compared, unless it is named. The checkpoint's end is the copy's begin again.
    let target = rig.target.client();
    let empty = async || -> Result<()> {
        target.database("mongoshake").drop().await?;
        target.database("shop").collection::<Document>("users").delete_many(doc! {}).await?;
        Ok(())
    };
    enter_sharded(&target, USERS, &doc! { "k": "hashed" }).await?;
    empty().await?;
    let kept = config.set("full_sync.collection_exist_drop", false);
    let mut collector = Collector::start(&kept)?;
    let status = collector.wait(PATIENCE).await?;
    anyhow::ensure!(status.code() == Some(2), "exit {status}:\n{}", collector.log_end());
    anyhow::ensure!(collector.log_end().contains("skip.nsshardkey.verify"), "{}", collector.log_end());
    empty().await?;
    let named = toml::Value::Array(vec![USERS.into()]);
    let mut collector = Collector::start(&kept.set("skip.nsshardkey.verify", named))?;
    collector.wait_log(HAND_OVER, PATIENCE).await?;
    anyhow::ensure!(mongos.seen().sharding.len() == 2, "{:?}", mongos.seen().sharding);
    rig.finish(&[USERS], collector, &[]).await
}

#[tokio::test]
async fn a_cluster_target_stays_unsharded_when_the_settings_say_so() -> Result<()> {
    let rig = Rig::start(Options::default()).await?;
    let mongos = Dressed::start(rig.target.port(0)).await?;
    rig.insert_users((0..1000).step_by(50)).await?;
    let uri = mongos.uri(None);
    let config = rig.config()?.set("tunnel.address", uri.as_str()).set("checkpoint.storage.url", uri.as_str());
    let mut collector = Collector::start(&config.set("full_sync.do_not_shard_destination", true))?;
    collector.wait_log(HAND_OVER, PATIENCE).await?;
    rig.equal(&[USERS], &mut collector).await?;
    anyhow::ensure!(mongos.seen().sharding.is_empty(), "{:?}", mongos.seen().sharding);
    rig.finish(&[USERS], collector, &[]).await
}
