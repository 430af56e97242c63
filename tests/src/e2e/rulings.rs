//! What becomes of a change that the target refuses, ruled by a plugin or by the strategy for duplicate keys.
//!
//! The plugin is the example of the repository, put in place with its own pipeline file. Somebody writes to the target
//! here, which makes the conflicts; what is compared at the end is the source against a target on which the source was
//! to win. The guide's user, who may not bypass validators, is the one who meets them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use bson::{Document, doc};
use futures_util::TryStreamExt as _;
use mongodb::options::{IndexOptions, WriteConcern};
use mongodb::{Client, Collection, IndexModel};
use oplogue_tests::collector::{Collector, PipelineConfig, program};
use oplogue_tests::paths;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::crash;
use super::rig::{PATIENCE, Rig, handed_over, passed, until};

const CONFLICT: &str = "conflict: the target refuses a change for good";
const AGAIN: &str = "an earlier run of this job";

/// A copied collection with a unique index, on both sides.
async fn start(change: impl FnOnce(&Rig, PipelineConfig) -> Result<PipelineConfig>) -> Result<(Rig, Collector)> {
    let rig = Rig::start().await?;
    let people = people(&rig.source.client());
    let unique = IndexOptions::builder().unique(true).build();
    people.create_index(IndexModel::builder().keys(doc! { "email": 1 }).options(unique).build()).await?;
    people.insert_many((0..50).map(|n| doc! { "_id": n, "email": format!("{n}@x"), "updatedAt": 10 })).await?;
    rig.source.client().database("shop").create_collection("c00").await?;
    let mut collector = Collector::start(&change(&rig, rig.config()?)?)?;
    handed_over(&mut collector).await?;
    collector.wait_log("overlap is over", PATIENCE).await?;
    Ok((rig, collector))
}

fn people(client: &Client) -> Collection<Document> {
    client.database("shop").collection("people")
}

async fn at(target: &Collection<Document>, id: i32) -> Result<Option<Document>> {
    Ok(target.find_one(doc! { "_id": id }).await?)
}

async fn recorded(rig: &Rig) -> Result<Vec<i32>> {
    let records = rig.target.client().database("mongoshake__conflict").collection::<Document>("conflicts");
    let all: Vec<Document> = records.find(doc! {}).await?.try_collect().await?;
    let mut ids: Vec<i32> = all.iter().map(|one| one.get_document("key")?.get_i32("_id")).collect::<Result<_, _>>()?;
    ids.sort_unstable();
    Ok(ids)
}

/// The example and its pipeline file.
fn example(name: &str) -> PathBuf {
    paths::root().join("examples/newest-wins").join(name)
}

/// Puts a plugin file in place with one rename.
fn put(built: &Path, file: &Path) -> Result<()> {
    let beside = file.with_extension("new");
    std::fs::copy(built, &beside).with_context(|| format!("copy {}", built.display()))?;
    Ok(std::fs::rename(&beside, file)?)
}

/// The pipeline of the example between the servers of this test, with another policy where one is given.
fn by_example(config: PipelineConfig, file: &Path, on_error: &str) -> Result<PipelineConfig> {
    let text = std::fs::read_to_string(example("pipeline.toml"))?;
    let (_, entry) = text.split_once("[[plugin]]").context("the example names its plugin")?;
    let entry = entry.replace("\"newest-wins.wasm\"", &format!("{:?}", file.to_string_lossy()));
    let entry = entry.replace("\"skip\"", &format!("{on_error:?}"));
    Ok(config.set("incr_sync.conflict_write_to", "sdk").table(&format!("[[plugin]]{entry}")))
}

#[tokio::test]
async fn the_newest_document_wins_and_a_swapped_plugin_rules_over_the_next_conflict() -> Result<()> {
    let checked = Command::new(program()?).arg("check").arg(example("pipeline.toml")).output()?;
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.status.success() && said.contains("conflicts are handed to:\n  newest-wins ("), "{said}");

    let (rig, mut collector) = start(|rig, config| {
        let file = rig.source.dir().join("judge.wasm");
        put(&example("newest-wins.wasm"), &file)?;
        by_example(config, &file, "skip")
    })
    .await?;
    let (source, target) = (people(&rig.source.client()), people(&rig.target.client()));
    target
        .insert_many([
            doc! { "_id": 900, "email": "older@x", "updatedAt": 1 },
            doc! { "_id": 901, "email": "newer@x", "updatedAt": 99 },
            doc! { "_id": 902, "email": "unsaid@x" },
            doc! { "_id": 101, "email": "101@there", "updatedAt": 1 },
        ])
        .await?;
    let won = doc! { "_id": 100, "email": "older@x", "updatedAt": 50, "deep": { "$odd": -0.0 } };
    source.insert_one(&won).await?;
    source.insert_one(doc! { "_id": 101, "email": "101@here", "updatedAt": 50 }).await?;
    source.insert_one(doc! { "_id": 102, "email": "newer@x", "updatedAt": 50 }).await?;
    source.insert_one(doc! { "_id": 103, "email": "unsaid@x", "updatedAt": 50 }).await?;
    source.update_one(doc! { "_id": 7 }, doc! { "$set": { "email": "7@y" } }).await?;
    passed(&rig, &collector).await?;
    collector.wait_log_times(CONFLICT, 4, PATIENCE).await?;
    until(&collector, "the overwrite", async || Ok(at(&target, 100).await?.is_some())).await?;
    until(&collector, "the replacement", async || Ok(at(&target, 101).await? == at(&source, 101).await?)).await?;
    until(&collector, "the record", async || Ok(recorded(&rig).await? == [103])).await?;
    assert_eq!((at(&target, 900).await?, at(&target, 100).await?), (None, Some(won)));
    assert_eq!(at(&target, 101).await?, at(&source, 101).await?, "a taken _id, changed earlier");
    assert!(at(&target, 901).await?.is_some() && at(&target, 102).await?.is_none(), "the target's is newer");
    assert!(at(&target, 902).await?.is_some() && at(&target, 103).await?.is_none());
    assert_eq!(at(&target, 7).await?, at(&source, 7).await?);
    assert_eq!(recorded(&rig).await?, [103], "who does not say when is for a person");

    let metrics = collector.get("/metrics").await?;
    for (ruling, count) in [("overwrite", 2), ("keep_target", 1), ("record", 1), ("stop", 0)] {
        let line = format!("oplogue_sink_rulings_total{{ruling=\"{ruling}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    }
    let page: serde_json::Value = serde_json::from_str(&collector.get("/conflicts").await?)?;
    let rulings: Vec<_> = page["last"].as_array().into_iter().flatten().map(|one| one["ruling"].clone()).collect();
    assert!(rulings.iter().any(|ruling| ruling == "overwrite") && rulings.len() == 4, "{page:#}");

    // Another version, which records whatever it is asked; a broken one before it changes nothing.
    let file = rig.source.dir().join("judge.wasm");
    put(&example("pipeline.toml"), &file)?;
    collector.wait_log("new plugin version refused", PATIENCE).await?;
    put(&paths::root().join("host/plugin-runtime/tests/guests/contrary/contrary.wasm"), &file)?;
    collector.wait_log("plugin swapped", PATIENCE).await?;
    target.insert_one(doc! { "_id": 904, "email": "later@x", "updatedAt": 1 }).await?;
    source.insert_one(doc! { "_id": 104, "email": "later@x", "updatedAt": 50 }).await?;
    until(&collector, "the second record", async || Ok(recorded(&rig).await? == [103, 104])).await?;
    assert!(at(&target, 904).await?.is_some());
    assert!(collector.terminate(PATIENCE).await?.success(), "{}", collector.log_end());
    collector.assert_no_unexpected_warnings(&[CONFLICT, "new plugin version refused"])
}

/// A plugin without a ruling stops the run; with a sound file in its place the same run goes on where it stopped.
#[tokio::test]
async fn a_plugin_that_gives_no_ruling_loses_nothing() -> Result<()> {
    let contrary = paths::root().join("host/plugin-runtime/tests/guests/contrary/contrary.wasm");
    let (rig, mut collector) = start(|rig, config| {
        let file = rig.source.dir().join("judge.wasm");
        put(&contrary, &file)?;
        let entry = format!(
            "[[plugin]]\nname = \"judge\"\npath = {:?}\nhandles = \"conflicts\"\nconfig = {{ rule = \"loop\" }}\n",
            file.to_string_lossy()
        );
        let config = config.set("incr_sync.conflict_write_to", "sdk").set("limits.guest_batch_time", "1s");
        Ok(config.table(&entry))
    })
    .await?;
    let (source, target) = (people(&rig.source.client()), people(&rig.target.client()));
    target.insert_one(doc! { "_id": 900, "email": "taken@x" }).await?;
    source.insert_one(doc! { "_id": 100, "email": "taken@x" }).write_concern(WriteConcern::majority()).await?;
    let status = collector.wait(PATIENCE).await?;
    assert_eq!(status.code(), Some(1), "{}", collector.log_end());
    for text in ["plugin judge (generation 1", "time limit", "insert of shop.people"] {
        assert!(collector.log_end().contains(text), "no {text:?} in\n{}", collector.log_end());
    }
    assert!(at(&target, 900).await?.is_some());
    target.delete_one(doc! { "_id": 900 }).await?;
    collector.run()?;
    rig.finish(rig.comparison(), collector, &[CONFLICT, "plugin judge", AGAIN]).await
}

/// A validator of the target, and a document that somebody broke there, which every update of it then meets.
#[tokio::test]
async fn an_overwritten_update_takes_the_whole_document_of_the_source() -> Result<()> {
    let contrary = paths::root().join("host/plugin-runtime/tests/guests/contrary/contrary.wasm");
    let (rig, mut collector) = start(|rig, config| {
        let file = rig.source.dir().join("judge.wasm");
        put(&contrary, &file)?;
        let entry = format!(
            "[[plugin]]\nname = \"judge\"\npath = {:?}\nhandles = \"conflicts\"\non_error = \"skip\"\n\
             config = {{ rule = \"overwrite\" }}\n",
            file.to_string_lossy()
        );
        Ok(config.set("incr_sync.conflict_write_to", "sdk").table(&entry))
    })
    .await?;
    let (source, target) = (people(&rig.source.client()), people(&rig.target.client()));
    target.update_one(doc! { "_id": 5 }, doc! { "$set": { "updatedAt": "broken" } }).await?;
    let strict = doc! { "collMod": "people", "validator": { "updatedAt": { "$type": "int" } } };
    rig.target.client().database("shop").run_command(strict).await?;
    source.update_one(doc! { "_id": 5 }, doc! { "$set": { "email": "5@y" } }).await?;
    source.insert_one(doc! { "_id": 100, "email": "100@x", "updatedAt": "never valid" }).await?;
    until(&collector, "the overwrite", async || Ok(at(&target, 5).await? == at(&source, 5).await?)).await?;
    // Nothing stands in its way that could go: that ruling was a lie.
    until(&collector, "the record", async || Ok(recorded(&rig).await? == [100])).await?;
    assert_eq!(at(&target, 100).await?, None);
    assert!(collector.terminate(PATIENCE).await?.success(), "{}", collector.log_end());
    collector.assert_no_unexpected_warnings(&[CONFLICT, "answered what it must not"])
}

#[tokio::test]
async fn delete_and_retry_makes_the_source_win_and_a_deleted_document_comes_back() -> Result<()> {
    let strategy =
        |_: &Rig, config: PipelineConfig| Ok(config.set("incr_sync.executor.dup_key_strategy", "delete_and_retry"));
    let (rig, collector) = start(strategy).await?;
    let (source, target) = (people(&rig.source.client()), people(&rig.target.client()));
    target.insert_one(doc! { "_id": 900, "email": "taken@x" }).await?;
    target.insert_one(doc! { "_id": 101, "email": "101@there", "old": true }).await?;
    target.update_one(doc! { "_id": 5 }, doc! { "$set": { "email": "stolen@x" } }).await?;
    source.update_one(doc! { "_id": 6 }, doc! { "$set": { "email": "taken@x" } }).await?;
    source.insert_one(doc! { "_id": 101, "email": "101@here" }).await?;
    source.insert_one(doc! { "_id": 100, "email": "stolen@x" }).await?;
    until(&collector, "the overwrite", async || Ok(at(&target, 6).await? == at(&source, 6).await?)).await?;
    until(&collector, "the other one", async || Ok(at(&target, 100).await?.is_some())).await?;
    assert_eq!((at(&target, 900).await?, at(&target, 5).await?), (None, None));
    // Deleted for another one's sake: its next update finds no document, and the source has it.
    source.update_one(doc! { "_id": 5 }, doc! { "$set": { "updatedAt": 11 } }).await?;
    rig.finish(rig.comparison(), collector, &[CONFLICT]).await
}

#[tokio::test]
async fn duplicates_of_a_named_index_are_given_up_and_a_taken_id_stops_the_run() -> Result<()> {
    let strategy = |_: &Rig, config: PipelineConfig| {
        let config = config.set("incr_sync.executor.dup_key_strategy", "skip");
        Ok(config.set("incr_sync.executor.dup_key_skip_rules", "shop.people:email_1"))
    };
    let (rig, mut collector) = start(strategy).await?;
    let (source, target) = (people(&rig.source.client()), people(&rig.target.client()));
    target.insert_one(doc! { "_id": 900, "email": "taken@x" }).await?;
    source.insert_one(doc! { "_id": 100, "email": "taken@x" }).await?;
    collector.wait_log(CONFLICT, PATIENCE).await?;
    passed(&rig, &collector).await?;
    assert_eq!((at(&target, 900).await?.is_some(), at(&target, 100).await?), (true, None));
    target.insert_one(doc! { "_id": 101, "email": "101@there" }).await?;
    source.insert_one(doc! { "_id": 101, "email": "101@here" }).write_concern(WriteConcern::majority()).await?;
    let status = collector.wait(PATIENCE).await?;
    assert_eq!(status.code(), Some(1), "{}", collector.log_end());
    assert!(collector.log_end().contains("does not name _id_ of shop.people"), "{}", collector.log_end());
    assert_eq!(at(&target, 101).await?, Some(doc! { "_id": 101, "email": "101@there" }));
    // What was given up stays given up; what stopped the run is applied.
    target.delete_one(doc! { "_id": 101 }).await?;
    target.delete_one(doc! { "_id": 900 }).await?;
    source.delete_one(doc! { "_id": 100 }).await?;
    collector.run()?;
    rig.finish(rig.comparison(), collector, &[CONFLICT, "does not name _id_", AGAIN]).await
}

/// Documents of somebody else take unique values on the target right before the source gives them to its own.
#[tokio::test]
async fn a_kill_around_an_overwrite_is_repaired_by_the_replay() -> Result<()> {
    let strategy =
        |_: &Rig, config: PipelineConfig| Ok(config.set("incr_sync.executor.dup_key_strategy", "delete_and_retry"));
    let (rig, mut collector) = start(strategy).await?;
    let (source, target) = (people(&rig.source.client()), people(&rig.target.client()));
    let mut rng = StdRng::seed_from_u64(rig.load.seed);
    for round in 0..i32::try_from(crash::kills().div_ceil(2))? {
        let taken = |n: i32| format!("{round}-{n}@taken");
        target.insert_many((0..20).map(|n| doc! { "_id": 10_000 + round * 100 + n, "email": taken(n) })).await?;
        for n in 0..10 {
            source.insert_one(doc! { "_id": 1_000 + round * 100 + n, "email": taken(n) }).await?;
            source.update_one(doc! { "_id": n }, doc! { "$set": { "email": taken(n + 10), "round": round } }).await?;
        }
        crash::pause(&mut rng, 0..700).await;
        collector.kill9();
        collector.run()?;
        crash::pause(&mut rng, 500..1_500).await;
    }
    // Every insert has displaced one; an update that a later one has overtaken in a replay never needed its value.
    let displaced = async || -> Result<bool> {
        let left: Vec<Document> = target.find(doc! { "_id": { "$gte": 10_000 } }).await?.try_collect().await?;
        Ok(!left.iter().any(|one| one.get_i32("_id").is_ok_and(|id| id % 100 < 10)))
    };
    until(&collector, "the overwriting", displaced).await?;
    collector.wait_log(CONFLICT, PATIENCE).await?;
    passed(&rig, &collector).await?;
    target.delete_many(doc! { "_id": { "$gte": 10_000 } }).await?;
    rig.finish(rig.comparison(), collector, &[CONFLICT, "going back to the last durable position"]).await
}
