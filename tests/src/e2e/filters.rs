//! A white list, a rename and a delay in one pipeline, the three default plugins that a guide reader uses first.
//!
//! What the list excludes must be absent on the target, what it includes must be equal under its new name, and
//! the delay must hold every change back without losing one over a restart. The delay is proven by order, not
//! by a stop-watch: a change visible on the target is older than the delay by the source's own clock.

use std::time::Duration;

use anyhow::Result;
use bson::{DateTime, doc};
use oplogue_tests::collector::Collector;

use super::rig::{PATIENCE, Rig, handed_over, passed};

const DELAY_S: i64 = 3;

#[tokio::test]
async fn a_white_list_a_rename_and_a_delay() -> Result<()> {
    let rig = Rig::start().await?;
    rig.fill(60).await?;
    let config = rig.config()?.set("filter.namespace.white", "shop;stock.item.s1");
    let config = config.set("transform.namespace", "shop.c00:mall.first;stock:depot");
    let config = config.set("incr_sync.target_delay", DELAY_S);
    let mut load = rig.start_load();
    let mut collector = Collector::start(&config)?;
    handed_over(&mut collector).await?;
    let at_hand_over = load.totals().done;
    load.reach(at_hand_over + 1_500, PATIENCE).await?;
    // A clean restart in the middle of the delay: what is held back must come again.
    let status = collector.terminate(PATIENCE).await?;
    assert!(status.success(), "exit {status}:\n{}", collector.log_end());
    collector.run()?;
    load.reach(at_hand_over + 3_000, PATIENCE).await?;
    load.stop().await?;
    delay_holds(&rig).await?;
    let passes = |name: &str| name.starts_with("shop.") || name == "stock.item.s1";
    let comparison = rig.comparison().only(passes).rename("shop.c00", "mall.first").rename("stock", "depot");
    rig.finish(comparison, collector, &[]).await
}

#[tokio::test]
async fn a_list_that_changed_between_two_runs_is_said() -> Result<()> {
    const SAID: &str = "are not those of the checkpoint";
    let rig = Rig::start().await?;
    let white = |list: &str| Ok::<_, anyhow::Error>(rig.config()?.set("filter.namespace.white", list));
    let mut collector = Collector::start(&white("shop")?)?;
    handed_over(&mut collector).await?;
    rig.source.client().database("shop").collection("c00").insert_one(doc! { "_id": 0 }).await?;
    passed(&rig, &collector).await?;
    for (list, said) in [("shop", false), ("shop;stock", true)] {
        assert!(collector.terminate(PATIENCE).await?.success(), "{}", collector.log_end());
        collector = Collector::start(&white(list)?)?;
        rig.source.client().database("shop").collection("c00").insert_one(doc! { "list": list }).await?;
        passed(&rig, &collector).await?;
        assert_eq!(collector.log().contains(SAID), said, "{}", collector.log_end());
    }
    assert!(collector.log().contains("namespace-filter is configured otherwise"), "{}", collector.log_end());
    rig.finish(rig.comparison(), collector, &[SAID]).await
}

/// The guide's example: `admin` and the checkpoint's database pass, but for what the server and Oplogue keep there
/// themselves.
#[tokio::test]
async fn special_databases_pass_by_copy_and_by_stream() -> Result<()> {
    let rig = Rig::start().await?;
    let admin = rig.source.client().database("admin");
    admin.collection("notes").insert_one(doc! { "_id": "copied" }).await?;
    let notes = rig.source.client().database("mongoshake").collection("notes");
    notes.insert_one(doc! { "_id": "copied" }).await?;
    rig.source.client().database("shop").collection("c00").insert_one(doc! { "_id": 0 }).await?;
    let config = rig.config()?.by_oplog_only("a change stream shows nothing of admin");
    let mut collector = Collector::start(&config.set("filter.pass.special.db", "admin;mongoshake"))?;
    handed_over(&mut collector).await?;
    let user = |name: &str| doc! { "createUser": name, "pwd": "secret", "roles": [] };
    admin.run_command(user("somebody")).await?;
    admin.collection("notes").insert_one(doc! { "_id": "followed" }).await?;
    notes.insert_one(doc! { "_id": "followed" }).await?;
    passed(&rig, &collector).await?;
    let copy = rig.target.client().database("mongoshake");
    assert_eq!(copy.collection::<bson::Document>("notes").count_documents(doc! {}).await?, 2);
    assert_eq!(copy.list_collection_names().await?, ["notes"], "the checkpoints stay where they are");
    let copy = rig.target.client().database("admin");
    assert_eq!(copy.collection::<bson::Document>("notes").count_documents(doc! {}).await?, 2);
    let users = copy.run_command(doc! { "usersInfo": "somebody" }).await?;
    assert!(users.get_array("users")?.is_empty(), "each server has its own users");
    rig.finish(rig.comparison(), collector, &[]).await
}

async fn delay_holds(rig: &Rig) -> Result<()> {
    let source = rig.source.client().database("shop").collection("c01");
    let target = rig.target.client().database("shop").collection::<bson::Document>("c01");
    let written = DateTime::now();
    source.insert_one(doc! { "_id": "delayed", "at": written }).await?;
    let filter = doc! { "_id": "delayed" };
    let deadline = std::time::Instant::now() + PATIENCE;
    while target.find_one(filter.clone()).await?.is_none() {
        anyhow::ensure!(std::time::Instant::now() < deadline, "the delayed document never came");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The oplog's wall time may be later than `written`, never earlier.
    let waited_ms = DateTime::now().timestamp_millis() - written.timestamp_millis();
    anyhow::ensure!(waited_ms >= DELAY_S * 1_000, "the document came after {waited_ms} ms");
    Ok(())
}
