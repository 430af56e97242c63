//! Changes that the target refuses for good: the stop at one, and the record of it.
//!
//! Somebody has written to the target, or put a validator there, so that a change of the source cannot be applied.
//! Without `conflict_write_to` the run stops there and says where; with `db` the change is recorded on the target with
//! all that is needed to decide about it, before its position moves, and everything else goes on. The guide's user,
//! who may not bypass validators, is the one who meets them.

use std::process::Command;

use anyhow::{Context as _, Result};
use bson::{Document, doc};
use futures_util::TryStreamExt as _;
use mongodb::options::{IndexOptions, WriteConcern};
use mongodb::{Client, Collection, IndexModel};
use oplogue_tests::collector::{Collector, program};

use super::rig::{PATIENCE, Rig, handed_over, passed};

const CONFLICT: &str = "conflict: the target refuses a change for good";

/// A copied collection with a unique index, on both sides.
async fn start(conflict_write_to: &str) -> Result<(Rig, Collector)> {
    let rig = Rig::start().await?;
    let people = people(&rig.source.client());
    let unique = IndexOptions::builder().unique(true).build();
    people.create_index(IndexModel::builder().keys(doc! { "email": 1 }).options(unique).build()).await?;
    people.insert_many((0..50).map(|n| doc! { "_id": n, "email": format!("{n}@x") })).await?;
    rig.source.client().database("shop").create_collection("checked").await?;
    rig.source.client().database("shop").create_collection("c00").await?;
    let mut collector = Collector::start(&rig.config()?.set("incr_sync.conflict_write_to", conflict_write_to))?;
    handed_over(&mut collector).await?;
    collector.wait_log("overlap is over", PATIENCE).await?;
    Ok((rig, collector))
}

fn people(client: &Client) -> Collection<Document> {
    client.database("shop").collection("people")
}

async fn records(rig: &Rig) -> Result<Vec<Document>> {
    let records = rig.target.client().database("mongoshake__conflict").collection::<Document>("conflicts");
    Ok(records.find(doc! {}).sort(doc! { "kind": 1 }).await?.try_collect().await?)
}

#[tokio::test]
async fn a_refused_change_is_recorded_and_everything_else_goes_on() -> Result<()> {
    let (rig, mut collector) = start("db").await?;
    let (source, target) = (people(&rig.source.client()), people(&rig.target.client()));
    target.insert_one(doc! { "_id": "theirs", "email": "taken@x" }).await?;
    target.insert_one(doc! { "_id": 1000, "email": "1000@there" }).await?;
    let strict = doc! { "collMod": "checked", "validator": { "n": { "$type": "int" } } };
    rig.target.client().database("shop").run_command(strict).await?;

    source.insert_one(doc! { "_id": 100, "email": "taken@x", "deep": { "$odd": 1 } }).await?;
    source.insert_one(doc! { "_id": 1000, "email": "1000@here" }).await?;
    let checked = rig.source.client().database("shop").collection::<Document>("checked");
    checked.insert_one(doc! { "_id": 1, "n": "no number" }).await?;
    checked.insert_one(doc! { "_id": 2, "n": 2 }).await?;
    source.update_one(doc! { "_id": 7 }, doc! { "$set": { "email": "7@y" } }).await?;
    collector.wait_log_times(CONFLICT, 3, PATIENCE).await?;
    passed(&rig, &collector).await?;

    let all = records(&rig).await?;
    let of = |kind: &str| {
        all.iter()
            .find(|one| one.get_str("kind").is_ok_and(|found| found == kind))
            .cloned()
            .context("no record")
            .unwrap()
    };
    assert_eq!(all.len(), 3, "{all:#?}");
    let unique = of("unique_key");
    assert_eq!(unique.get_document("document")?, &doc! { "_id": 100, "email": "taken@x", "deep": { "$odd": 1 } });
    assert_eq!(unique.get_document("winner")?, &doc! { "_id": "theirs", "email": "taken@x" });
    assert_eq!((unique.get_str("namespace")?, unique.get_i32("code")?), ("shop.people", 11000));
    let duplicate = of("duplicate_id");
    assert_eq!(duplicate.get_document("document")?, &doc! { "_id": 1000, "email": "1000@here" });
    assert_eq!(duplicate.get_document("winner")?, &doc! { "_id": 1000, "email": "1000@there" });
    let invalid = of("validation");
    assert_eq!((invalid.get_str("operation")?, invalid.get_i32("code")?), ("insert", 121));
    assert_eq!(invalid.get_document("document")?, &doc! { "_id": 1, "n": "no number" });

    // The winners stand, the losers are not there, and what came after them is.
    assert_eq!(target.find_one(doc! { "_id": 100 }).await?, None);
    assert_eq!(target.find_one(doc! { "_id": 7 }).await?, Some(doc! { "_id": 7, "email": "7@y" }));
    let there = rig.target.client().database("shop").collection::<Document>("checked");
    assert_eq!(there.find_one(doc! { "_id": 2 }).await?, Some(doc! { "_id": 2, "n": 2 }));

    let page: serde_json::Value = serde_json::from_str(&collector.get("/conflicts").await?)?;
    assert_eq!(page["last"].as_array().map(Vec::len), Some(3), "{page:#}");
    assert!(page["counts"].as_array().is_some_and(|counts| counts.iter().all(|one| one["count"] == 1)), "{page:#}");
    let metrics = collector.get("/metrics").await?;
    assert!(metrics.contains("oplogue_sink_conflicts_total{kind=\"unique_key\"} 1\n"), "{metrics}");
    let listed = Command::new(program()?).args(["conflicts", "--limit", "10"]).current_dir(collector.dir()).output()?;
    let text = String::from_utf8(listed.stdout)?;
    assert!(text.contains("shop.people: unique_key") && text.contains("taken@x"), "{text}");

    assert!(collector.terminate(PATIENCE).await?.success(), "{}", collector.log_end());
    collector.assert_no_unexpected_warnings(&[CONFLICT])
}

#[tokio::test]
async fn without_a_place_for_conflicts_the_run_stops_at_the_first() -> Result<()> {
    let (rig, mut collector) = start("none").await?;
    let (source, target) = (people(&rig.source.client()), people(&rig.target.client()));
    target.insert_one(doc! { "_id": "theirs", "email": "taken@x" }).await?;
    source.insert_one(doc! { "_id": 100, "email": "taken@x" }).await?;
    let status = collector.wait(PATIENCE).await?;
    assert_eq!(status.code(), Some(1), "{}", collector.log_end());
    for text in ["unique index email_1", "shop.people"] {
        assert!(collector.log_end().contains(text), "no {text:?} in\n{}", collector.log_end());
    }
    // The obstacle goes, and the same run goes on where it stopped: nothing was lost.
    target.delete_one(doc! { "_id": "theirs" }).await?;
    collector.run()?;
    rig.finish(rig.comparison(), collector, &[CONFLICT, "unique index email_1"]).await
}

/// The place for records takes nothing; each attempt goes back, whatever happens to the collector meanwhile.
#[tokio::test]
async fn a_position_never_passes_a_conflict_that_is_not_recorded() -> Result<()> {
    let (rig, mut collector) = start("db").await?;
    let (source, target) = (people(&rig.source.client()), people(&rig.target.client()));
    // No code of a member that steps down: the driver would wait for the member to say so, up to 10 s.
    let failing = doc! {
        "failCommands": ["insert"], "namespace": "mongoshake__conflict.conflicts", "errorCode": 89,
    };
    rig.target.fail_command("alwaysOn", failing).await?;
    target.insert_one(doc! { "_id": "theirs", "email": "taken@x" }).await?;
    let majority = WriteConcern::majority();
    source.insert_one(doc! { "_id": 100, "email": "taken@x" }).write_concern(majority).await?;
    source.insert_one(doc! { "_id": 101, "email": "101@x" }).await?;
    collector.wait_log_times("going back to the last durable position", 2, PATIENCE).await?;
    assert_eq!(records(&rig).await?, []);
    collector.kill9();
    rig.target.heal_commands().await?;
    collector.run()?;
    collector.wait_log(CONFLICT, PATIENCE).await?;
    passed(&rig, &collector).await?;
    let all = records(&rig).await?;
    let ids: Vec<_> = all.iter().map(|one| one.get_document("document").unwrap().get_i32("_id").unwrap()).collect();
    assert_eq!(ids, [100], "recorded once: {all:#?}\n{}", collector.log_end());
    assert_eq!(target.find_one(doc! { "_id": 101 }).await?, Some(doc! { "_id": 101, "email": "101@x" }));
    assert!(collector.terminate(PATIENCE).await?.success(), "{}", collector.log_end());
    collector.assert_no_unexpected_warnings(&[CONFLICT, "going back to the last durable position"])
}
