//! Indexes that come, go and change their options while the copy is caught up with.
//!
//! Unique indexes and those that let documents expire are built at the overlap mark out of what the source has then,
//! which may be newer than the data on the target. The source here drops its unique index, breaks it, mends it and
//! makes it again with other options, over and over, from before the copy until after the mark.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use bson::doc;
use mongodb::Database;
use oplogue_tests::collector::Collector;

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
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    turn.delete_one(doc! { "_id": "twice" }).await?;
    make(shop, number).await?;
    tokio::time::sleep(std::time::Duration::from_millis(60)).await;
    Ok(())
}

async fn make(shop: &Database, number: i32) -> Result<()> {
    let unique = doc! { "key": { "u": 1 }, "name": "u", "unique": true, "sparse": number % 2 == 0 };
    let expiring = doc! { "key": { "at": 1 }, "name": "at", "expireAfterSeconds": 1_000_000 + number };
    shop.run_command(doc! { "createIndexes": "turn", "indexes": [unique, expiring] }).await?;
    Ok(())
}
