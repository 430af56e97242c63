//! Indexes that come, go and change their options while the copy is caught up with.
//!
//! Unique indexes and those that let documents expire are built at the overlap mark out of what the source has then,
//! which may be newer than the data on the target. The source here drops its unique index, breaks it, mends it and
//! makes it again with other options, over and over, from before the copy until after the mark.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use bson::doc;
use mongodb::Database;
use oplogue_tests::collector::Collector;
use oplogue_tests::servers::Options;

use super::ddl::target_admin;
use super::rig::{PATIENCE, Rig, handed_over};

#[tokio::test]
async fn indexes_turn_while_the_copy_is_caught_up_with() -> Result<()> {
    let rig = Rig::start().await?;
    rig.fill(300).await?;
    let shop = rig.source.client().database("shop");
    shop.collection("turn").insert_many((0..300).map(|number| doc! { "_id": number, "u": number })).await?;
    make(&shop, 0).await?;
    let mut collector = Collector::start(&rig.config()?.set("filter.ddl_enable", true))?;
    let stop = AtomicBool::new(false);
    let (turned, built) = tokio::join!(turn(&shop, &stop), async {
        let built = indexes_built(&mut collector).await;
        stop.store(true, Ordering::Relaxed);
        built
    });
    turned?;
    built?;
    for _ in 0..3 {
        one_turn(&shop, 1).await?;
    }
    rig.finish(rig.comparison(), collector, &[]).await
}

/// How long each list of indexes is held up where the tests act between two of them.
const BLOCKED: Duration = Duration::from_secs(2);

/// Three collections, of which `shop.turn` has indexes that wait for the mark; the lists of indexes are held up.
async fn with_slow_lists() -> Result<Rig> {
    let target = Options { users: vec![target_admin()], ..Options::guide_target() };
    let rig = Rig::of(Options::guide_source(), target).await?;
    let shop = rig.source.client().database("shop");
    shop.collection("turn").insert_many((0..30).map(|number| doc! { "_id": number, "u": number })).await?;
    shop.collection("aaa").insert_one(doc! { "_id": 1 }).await?;
    shop.collection("zzz").insert_one(doc! { "_id": 1 }).await?;
    make(&shop, 0).await?;
    let mut blocking = doc! { "failCommands": ["listIndexes"], "appName": "oplogue" };
    blocking.extend(doc! { "blockConnection": true, "blockTimeMS": i64::try_from(BLOCKED.as_millis())? });
    rig.source.fail_command("alwaysOn", blocking).await?;
    Ok(rig)
}

/// Does something to `shop.turn` each time a mark has just listed its indexes, until overlap is over.
async fn behind_each_list(
    rig: &Rig,
    collector: &mut Collector,
    mut act: impl AsyncFnMut(&Database) -> Result<()>,
) -> Result<()> {
    let primary = rig.source.primary().await?;
    let shop = rig.source.client().database("shop");
    let acts = async {
        // The first three are asked for by the copy. The last of a mark's three follows `turn`, and the next mark's
        // first goes before it.
        for times in (6i64..).step_by(3) {
            let wait = doc! { "waitForFailPoint": "failCommand", "timesEntered": times, "maxTimeMS": 180_000 };
            rig.source.admin(primary, wait).await?;
            act(&shop).await?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        over = collector.wait_log("overlap is over", PATIENCE) => over?,
        acted = acts => acted?,
    }
    rig.source.heal_commands().await
}

/// Each time the marks list the indexes, one is dropped just behind the list's back and made again, in another form first,
/// after the position of the next mark: both lists show it as it was, and there it does not stand.
#[tokio::test]
async fn an_index_that_both_lists_show_and_the_mark_does_not_have_is_left_to_the_stream() -> Result<()> {
    let rig = with_slow_lists().await?;
    let mut collector = Collector::start(&rig.config()?.set("filter.ddl_enable", true))?;
    let dropped = async |shop: &Database| {
        let turn = shop.collection::<bson::Document>("turn");
        turn.drop_indexes().await?;
        tokio::time::sleep(BLOCKED + Duration::from_millis(500)).await;
        make(shop, 1).await?;
        turn.drop_indexes().await?;
        make(shop, 0).await
    };
    behind_each_list(&rig, &mut collector, dropped).await?;
    rig.finish(rig.comparison(), collector, &[]).await
}

#[tokio::test]
async fn an_index_that_is_modified_before_it_is_built() -> Result<()> {
    let rig = with_slow_lists().await?;
    let mut collector = Collector::start(&rig.config()?.set("filter.ddl_enable", true))?;
    let mut done = false;
    let modified = async |shop: &Database| {
        if !std::mem::replace(&mut done, true) {
            let index = doc! { "name": "at", "expireAfterSeconds": 5_000_000 };
            shop.run_command(doc! { "collMod": "turn", "index": index }).await?;
        }
        Ok(())
    };
    behind_each_list(&rig, &mut collector, modified).await?;
    rig.finish(rig.comparison(), collector, &[]).await
}

/// The build goes on while everything is copied and caught up with, and fails in the end.
#[tokio::test]
async fn an_index_that_is_being_built_is_none_yet() -> Result<()> {
    let rig = Rig::start().await?;
    let shop = rig.source.client().database("shop");
    shop.collection("turn").insert_many((0..30).map(|number| doc! { "_id": number, "u": number / 2 })).await?;
    shop.collection("c00").insert_one(doc! { "_id": "first" }).await?;
    let primary = rig.source.primary().await?;
    rig.source.fail_point(primary, "hangAfterStartingIndexBuild", "alwaysOn", doc! {}).await?;
    let caught_up = async {
        let begun = doc! { "waitForFailPoint": "hangAfterStartingIndexBuild", "timesEntered": 1, "maxTimeMS": 180_000 };
        rig.source.admin(primary, begun).await?;
        let mut collector = Collector::start(&rig.config()?.set("filter.ddl_enable", true))?;
        collector.wait_log("overlap is over", PATIENCE).await?;
        anyhow::Ok(collector)
    };
    let rest = async {
        let collector = caught_up.await;
        rig.source.fail_point(primary, "hangAfterStartingIndexBuild", "off", doc! {}).await?;
        collector
    };
    let (built, collector) = tokio::join!(make(&shop, 0), rest);
    let collector = collector?;
    anyhow::ensure!(built.is_err(), "the index holds");
    rig.finish(rig.comparison(), collector, &[]).await
}

async fn indexes_built(collector: &mut Collector) -> Result<()> {
    handed_over(collector).await?;
    collector.wait_log("indexes that waited are built", PATIENCE).await
}

/// Turns to the end of the turn in which it is told to stop: the server would go on with a command that is given up.
async fn turn(shop: &Database, stop: &AtomicBool) -> Result<()> {
    for number in (0..).take_while(|_| !stop.load(Ordering::Relaxed)) {
        one_turn(shop, number).await?;
    }
    Ok(())
}

/// Drops the indexes, breaks the unique one, mends the data and makes both again with other options.
async fn one_turn(shop: &Database, number: i32) -> Result<()> {
    let turn = shop.collection::<bson::Document>("turn");
    turn.drop_indexes().await?;
    turn.insert_one(doc! { "_id": "twice", "u": number % 300 }).await?;
    tokio::time::sleep(Duration::from_millis(20)).await;
    turn.delete_one(doc! { "_id": "twice" }).await?;
    make(shop, number).await?;
    tokio::time::sleep(Duration::from_millis(60)).await;
    Ok(())
}

async fn make(shop: &Database, number: i32) -> Result<()> {
    let unique = doc! { "key": { "u": 1 }, "name": "u", "unique": true, "sparse": number % 2 == 0 };
    let expiring = doc! { "key": { "at": 1 }, "name": "at", "expireAfterSeconds": 1_000_000 + number };
    shop.run_command(doc! { "createIndexes": "turn", "indexes": [unique, expiring] }).await?;
    Ok(())
}
