//! Renames across the border of a white list, in both directions.
//!
//! What goes out is dropped on the target, what comes in is copied from the source while changes to it go on, and a
//! crash in the middle repeats the copy. `$out` and the like come in through the border too, since the temporary
//! collection that they rename has a name that no white list knows.

use anyhow::Result;
use bson::{Document, doc};
use mongodb::Client;
use mongodb::options::WriteConcern;
use oplogue_tests::collector::{Collector, PipelineConfig};

use super::super::crash::kills;
use super::super::rig::{PATIENCE, Rig, handed_over, passed};
use super::views::forget_views;
use super::{kill_now_and_then, rig_of, rig_with_members, source_version, with_ddl};

/// What the collector may say when a collection that comes in is renamed once more while it is read.
const EXPECTED: [&str; 1] = ["what is to be copied is listed again"];

fn config(rig: &Rig) -> Result<PipelineConfig> {
    let config = with_ddl(rig)?.set("filter.namespace.white", "shop;lists.keep;lists.also;gone.keep");
    Ok(config.set("transform.namespace", "lists.keep:lists.kept"))
}

fn passes(name: &str) -> bool {
    name.starts_with("shop.") || matches!(name, "lists.keep" | "lists.also" | "gone.keep")
}

async fn fill(client: &Client, name: &str, ids: std::ops::Range<i32>) -> Result<()> {
    let majority = mongodb::options::CollectionOptions::builder().write_concern(WriteConcern::majority()).build();
    let collection = client.database("lists").collection_with_options::<Document>(name, majority);
    let documents = ids.map(|id| doc! { "_id": id, "u": format!("{name}-{id}"), "n": 0, "pad": "x".repeat(200) });
    collection.insert_many(documents).await?;
    Ok(())
}

async fn rename(client: &Client, from: &str, to: &str, drop_target: bool) -> Result<()> {
    let command = doc! {
        "renameCollection": format!("lists.{from}"), "to": format!("lists.{to}"), "dropTarget": drop_target,
    };
    client.database("admin").run_command(command).await?;
    Ok(())
}

/// Changes to a collection that never stop while it is copied.
async fn stir(client: &Client, name: &str, first: i32) -> Result<()> {
    let collection = client.database("lists").collection::<Document>(name);
    for id in first..first + 40 {
        collection.update_one(doc! { "_id": id }, doc! { "$inc": { "n": 1 }, "$push": { "p": id } }).await?;
        collection.delete_one(doc! { "_id": id + 100 }).await?;
        collection.insert_one(doc! { "_id": 10_000 + id, "u": format!("late-{name}-{id}") }).await?;
    }
    Ok(())
}

/// In, out, in again over what is there, and everything that the server makes by a rename.
async fn cross(client: &Client) -> Result<()> {
    let lists = client.database("lists");
    let run = async |command: Document| lists.run_command(command).await.map(drop);
    fill(client, "one", 0..2_000).await?;
    run(doc! { "createIndexes": "one", "indexes": [
        { "key": { "u": 1 }, "name": "u", "unique": true }, { "key": { "n": 1 }, "name": "n" },
    ] })
    .await?;
    rename(client, "one", "keep", false).await?;
    stir(client, "keep", 0).await?;
    fill(client, "two", 0..500).await?;
    rename(client, "two", "keep", true).await?;
    stir(client, "keep", 200).await?;
    // Out, and the name taken by another collection.
    rename(client, "keep", "away", false).await?;
    fill(client, "keep", 0..50).await?;
    rename(client, "away", "also", true).await?;
    stir(client, "also", 300).await?;
    // Within, at once after it came in.
    rename(client, "also", "keep", true).await?;
    stir(client, "keep", 400).await?;
    for match_from in [0, 250] {
        run(doc! { "aggregate": "keep", "pipeline": [{ "$match": { "_id": { "$gt": match_from } } }, { "$out": "also" }], "cursor": {} })
            .await?;
        stir(client, "also", match_from + 260).await?;
    }
    run(doc! { "convertToCapped": "also", "size": 4_194_304 }).await?;
    fill(client, "also", 50_000..50_020).await?;
    // In, and gone before anybody could copy it.
    fill(client, "three", 0..100).await?;
    rename(client, "three", "gone", false).await?;
    let command = doc! { "renameCollection": "lists.gone", "to": "gone.keep" };
    client.database("admin").run_command(command).await?;
    client.database("gone").run_command(doc! { "drop": "keep" }).await?;
    Ok(())
}

#[tokio::test]
async fn in_and_out_of_the_filter() -> Result<()> {
    let rig = rig_of(&source_version()).await?;
    fill(&rig.source.client(), "also", 0..10).await?;
    let mut collector = Collector::start(&config(&rig)?)?;
    handed_over(&mut collector).await?;
    cross(&rig.source.client()).await?;
    rig.finish(rig.comparison().only(passes).rename("lists.keep", "lists.kept"), collector, &EXPECTED).await
}

#[tokio::test]
async fn killed_at_the_border() -> Result<()> {
    let rig = rig_of(&source_version()).await?;
    let mut collector = Collector::start(&config(&rig)?)?;
    handed_over(&mut collector).await?;
    let client = rig.source.client();
    tokio::try_join!(cross(&client), kill_now_and_then(&mut collector, kills(), 100..1_500, rig.load.seed))?;
    rig.finish(rig.comparison().only(passes).rename("lists.keep", "lists.kept"), collector, &EXPECTED).await
}

/// A drop that only the source's primary has is not the end of what comes in: a fail-over takes it back.
#[tokio::test]
async fn what_comes_in_is_not_gone_while_only_the_primary_knows_of_its_drop() -> Result<()> {
    let mut rig = rig_with_members(&source_version(), 3).await?;
    let client = rig.source.client();
    fill(&client, "hidden", 0..200).await?;
    // The checkpoint before a DDL waits for the majority of where it is kept.
    let config = config(&rig)?.set("checkpoint.storage.url", rig.target.uri_as_user());
    let mut collector = Collector::start(&config)?;
    handed_over(&mut collector).await?;
    collector.signal("STOP")?;
    rename(&client, "hidden", "keep", false).await?;
    fill(&client, "keep", 200..201).await?;
    let primary = rig.source.primary().await?;
    let secondaries = [(primary + 1) % 3, (primary + 2) % 3];
    rig.source.hold_back(&secondaries, true).await?;
    client.database("lists").run_command(doc! { "drop": "keep", "writeConcern": { "w": 1 } }).await?;
    collector.signal("CONT")?;
    collector.wait_log("waiting until its majority agrees", PATIENCE).await?;
    rig.source.kill(primary)?;
    rig.source.hold_back(&secondaries, false).await?;
    rig.source.primary().await?;
    rig.source.restart(primary).await?;
    let there = client.database("lists").collection::<Document>("keep").count_documents(doc! {}).await?;
    anyhow::ensure!(there == 201, "the source did not take the drop back: {there} documents");
    let comparison = rig.comparison().only(passes).rename("lists.keep", "lists.kept");
    let expected = ["going back to the last durable position", "still waiting", "the target's majority is late"];
    rig.finish(comparison, collector, &expected).await
}

/// `dropDatabase` under a white list and a rename: what passes goes, and nothing else does.
#[tokio::test]
async fn a_dropped_database_takes_only_what_passes() -> Result<()> {
    let rig = rig_of(&source_version()).await?;
    let (source, target) = (rig.source.client(), rig.target.client());
    fill(&source, "keep", 0..20).await?;
    fill(&source, "hidden", 0..20).await?;
    source.database("lists").run_command(doc! { "create": "also", "viewOn": "keep", "pipeline": [] }).await?;
    let foreign = target.database("lists").collection::<Document>("foreign");
    let mut collector = Collector::start(&config(&rig)?)?;
    handed_over(&mut collector).await?;
    foreign.insert_one(doc! { "_id": "nobody's" }).await?;
    target.database("lists").run_command(doc! { "create": "view", "viewOn": "foreign", "pipeline": [] }).await?;
    source.database("lists").run_command(doc! { "dropDatabase": 1 }).await?;
    let comparison = rig.comparison().only(|name| name.starts_with("shop."));
    let left = async || {
        let mut names = target.database("lists").list_collection_names().await?;
        names.sort();
        anyhow::Ok(names)
    };
    passed(&rig, &collector).await?;
    assert_eq!(left().await?, ["foreign", "system.views", "view"]);
    // Once more, while nobody is reading: after the start no list has the view any more, no entry names it, and nobody
    // remembers it.
    fill(&source, "keep", 0..20).await?;
    source.database("lists").run_command(doc! { "create": "also", "viewOn": "keep", "pipeline": [] }).await?;
    passed(&rig, &collector).await?;
    assert_eq!(left().await?, ["also", "foreign", "kept", "system.views", "view"]);
    collector.terminate(PATIENCE).await?;
    forget_views(&source).await?;
    source.database("lists").run_command(doc! { "dropDatabase": 1 }).await?;
    collector.run()?;
    passed(&rig, &collector).await?;
    assert_eq!(left().await?, ["foreign", "system.views", "view"]);
    target.database("lists").drop().await?;
    rig.finish(comparison, collector, &[]).await
}
