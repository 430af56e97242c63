//! Incremental on a target that somebody else has brought here, and further than the position says.
//!
//! A checkpoint of MongoShake lies behind what it has written, and so does a date that is chosen with care. What the
//! target has seen of the renames and drops since then is told by its names; the documents of a collection that is older
//! than the start come back from nowhere.

use anyhow::{Context as _, Result};
use bson::{Document, doc};
use futures_util::TryStreamExt as _;
use mongodb::Client;
use oplogue_tests::collector::{Collector, PipelineConfig};

use super::super::rig::{PATIENCE, Rig};
use super::{rig_of, source_version, with_ddl};

/// What the source does after the start: a new edition replaces one, and another one takes the place of one that is gone.
fn moves() -> Vec<(&'static str, Document)> {
    let rename = |from: &str, to: &str, drop_target: bool| doc! { "renameCollection": from, "to": to, "dropTarget": drop_target };
    vec![
        ("admin", rename("news.staging", "news.live", true)),
        ("news", doc! { "drop": "day" }),
        ("admin", rename("news.next", "news.day", false)),
    ]
}

async fn run(client: &Client, moves: &[(&str, Document)]) -> Result<()> {
    for (database, command) in moves {
        client.database(database).run_command(command.clone()).await?;
    }
    Ok(())
}

async fn names_in(client: &Client, database: &str) -> Result<Vec<String>> {
    let mut names = client.database(database).list_collection_names().await?;
    names.sort();
    Ok(names)
}

/// Both sides as they are at the start, and the start in the words of the configuration.
async fn begun() -> Result<(Rig, String)> {
    let rig = rig_of(&source_version()).await?;
    let source = rig.source.client();
    for (name, documents) in [("live", 20), ("staging", 30), ("day", 40), ("next", 50)] {
        let all = (0..documents).map(|id| doc! { "_id": id, "in": name });
        source.database("news").collection::<Document>(name).insert_many(all).await?;
    }
    for (database, name) in [("news", "live"), ("news", "staging"), ("news", "day"), ("news", "next"), ("shop", "c00")]
    {
        let all: Vec<Document> = source.database(database).collection(name).find(doc! {}).await?.try_collect().await?;
        rig.target.client().database(database).collection::<Document>(name).insert_many(all).await?;
    }
    let second = || jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let filled = second();
    while second() == filled {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    Ok((rig, second()))
}

/// Incremental alone, from that start.
fn from(rig: &Rig, start: String) -> Result<PipelineConfig> {
    Ok(with_ddl(rig)?.set("sync_mode", "incr").set("checkpoint.start_position", start))
}

#[tokio::test]
async fn what_a_target_has_seen_of_renames_and_drops_is_told_by_its_names() -> Result<()> {
    for done in 0..=moves().len() {
        let (rig, start) = begun().await?;
        let (source, target) = (rig.source.client(), rig.target.client());
        let all = moves();
        run(&source, &all).await?;
        run(&target, all.get(..done).unwrap_or_default()).await?;
        source.database("news").collection("live").insert_one(doc! { "_id": "later" }).await?;
        source.database("news").collection::<Document>("day").delete_one(doc! { "_id": 1 }).await?;
        let config = from(&rig, start)?;
        let mut collector = Collector::start(&config)?;
        collector.wait_log("overlap is over", PATIENCE).await?;
        rig.finish(rig.comparison(), collector, &[]).await?;
        assert_eq!(names_in(&target, "news").await?, ["day", "live"], "{done} moves were done");
    }
    Ok(())
}

/// MongoShake stores the time of a DDL as its position before it goes on.
#[tokio::test]
async fn a_checkpoint_of_mongoshake_that_stands_on_a_rename() -> Result<()> {
    goes_on_from_a_rename(false).await?;
    // The entry at the start is done by whoever stored it, whatever is said of those behind it.
    goes_on_from_a_rename(true).await
}

async fn goes_on_from_a_rename(start_is_exact: bool) -> Result<()> {
    let (rig, _) = begun().await?;
    let (source, target) = (rig.source.client(), rig.target.client());
    let all = moves();
    run(&source, &all[..1]).await?;
    run(&target, &all[..1]).await?;
    let oplog = source.database("local").collection::<Document>("oplog.rs");
    let renamed = oplog.find_one(doc! { "o.renameCollection": "news.staging" }).await?.context("no rename")?;
    let at = renamed.get_timestamp("ts")?;
    let checkpoint = doc! { "name": "source", "ckpt": (i64::from(at.time) << 32) | i64::from(at.increment) };
    source.database("mongoshake").collection("ckpt_default").insert_one(checkpoint).await?;
    source.database("news").collection("live").insert_one(doc! { "_id": "later" }).await?;
    let mut collector = Collector::start(&with_ddl(&rig)?.set("checkpoint.start_is_exact", start_is_exact))?;
    collector.wait_log("overlap is over", PATIENCE).await?;
    rig.finish(rig.comparison(), collector, &[]).await
}

/// `news.next` was empty, so that nobody has brought it to the target: its names are those of no moment of the source.
#[tokio::test]
async fn where_no_moment_of_the_source_fits_nothing_is_replaced() -> Result<()> {
    let (rig, start) = begun().await?;
    let (source, target) = (rig.source.client(), rig.target.client());
    let rename = |from: &str, to: &str| ("admin", doc! { "renameCollection": from, "to": to, "dropTarget": true });
    source.database("news").create_collection("empty").await?;
    run(&source, &[rename("news.staging", "news.live"), rename("news.empty", "news.staging")]).await?;
    run(&target, &[rename("news.staging", "news.live")]).await?;
    let config = from(&rig, start)?;
    let mut collector = Collector::start(&config)?;
    assert!(!collector.wait(PATIENCE).await?.success(), "{}", collector.log_end());
    assert!(collector.log().contains("news.live may hold one collection or another"), "{}", collector.log_end());
    assert_eq!(target.database("news").collection::<Document>("live").count_documents(doc! {}).await?, 30);
    Ok(())
}

/// What a view is called says nothing of a collection that had the name before.
#[tokio::test]
async fn a_view_under_the_name_of_a_dropped_collection() -> Result<()> {
    let (rig, start) = begun().await?;
    let (source, target) = (rig.source.client(), rig.target.client());
    source.database("news").collection("day").insert_one(doc! { "_id": "last" }).await?;
    let view = doc! { "create": "day", "viewOn": "live", "pipeline": [] };
    for client in [&source, &target] {
        run(client, &[("news", doc! { "drop": "day" }), ("news", view.clone())]).await?;
    }
    let config = from(&rig, start)?;
    let mut collector = Collector::start(&config)?;
    collector.wait_log("overlap is over", PATIENCE).await?;
    rig.finish(rig.comparison(), collector, &[]).await
}

/// Change streams need no right to the oplog, which is where it stands what the target may have seen.
#[tokio::test]
async fn without_the_oplog_nobody_can_tell() -> Result<()> {
    let (rig, start) = begun().await?;
    let (source, target) = (rig.source.client(), rig.target.client());
    let user = doc! { "createUser": "reader", "pwd": "reader-password", "roles": ["readAnyDatabase"] };
    source.database("admin").run_command(user).await?;
    run(&source, &moves()).await?;
    run(&target, &moves()).await?;
    let config = from(&rig, start)?
        .set("mongo_urls", rig.source.uri_as("reader", "reader-password"))
        .set("checkpoint.storage.url", rig.target.uri_as_user())
        .set("incr_sync.mongo_fetch_method", "change_stream");
    let mut collector = Collector::start(&config)?;
    if !rig.source.has("DDL in change streams", (6, 0)) {
        let status = collector.wait(PATIENCE).await?;
        assert!(status.code() == Some(1) && collector.log().contains("show no create"), "{}", collector.log_end());
        return Ok(());
    }
    assert!(!collector.wait(PATIENCE).await?.success(), "{}", collector.log_end());
    assert!(collector.log().contains("give the source's user `read` on `local`"), "{}", collector.log_end());
    assert_eq!(target.database("news").collection::<Document>("live").count_documents(doc! {}).await?, 30);
    Ok(())
}

#[tokio::test]
async fn where_nobody_can_tell_the_run_stops_and_touches_nothing() -> Result<()> {
    let (rig, start) = begun().await?;
    let (source, target) = (rig.source.client(), rig.target.client());
    let rename = |from: &str, to: &str| ("admin", doc! { "renameCollection": from, "to": to });
    let swap = [rename("news.live", "news.t"), rename("news.day", "news.live"), rename("news.t", "news.day")];
    run(&source, &swap).await?;
    let config = from(&rig, start)?;
    let mut collector = Collector::start(&config)?;
    assert!(!collector.wait(PATIENCE).await?.success(), "{}", collector.log_end());
    let text = "news.day, news.live may hold one collection or another";
    assert!(collector.log().contains(text), "{}", collector.log_end());
    assert_eq!(names_in(&target, "news").await?, ["day", "live", "next", "staging"]);
    assert_eq!(target.database("news").collection::<Document>("live").count_documents(doc! {}).await?, 20);
    // It is as the source was at the start, and somebody says so.
    let mut collector = Collector::start(&config.set("checkpoint.start_is_exact", true))?;
    collector.wait_log("overlap is over", PATIENCE).await?;
    rig.finish(rig.comparison(), collector, &[]).await
}
