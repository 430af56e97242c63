//! A cluster as target, as far as it can be had: a real server that is dressed as a `mongos`.
//!
//! The server behind does all of the work, so what is shown is the collector's whole road - copy, follow, kills,
//! conflicts, durability by majority concern, the checkpoint - in the forms that a `mongos` asks for, which a referee in
//! the proxy holds against the manual. What is not shown is a router's own work: there is one shard, and nothing moves.

use anyhow::{Context as _, Result};
use bson::{Document, doc};
use futures_util::TryStreamExt as _;
use oplogue_tests::collector::{Collector, HAND_OVER, PipelineConfig};
use oplogue_tests::dressed::{Dressed, enter_sharded};
use oplogue_tests::servers::{Options, User};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::crash::{kills, pause};
use super::rig::{PATIENCE, Rig, SENTINEL, handed_over};

const TARGET_USER: (&str, &str) = ("cluster_target", "target-password");
const CONFLICT: &str = "conflict: the target refuses a change for good";
const FALLBACK: &str = "incr_sync.executor.immutable_shard_key_fallback";

/// The users that a cluster needs: the guide's, who may read `config` besides.
fn target() -> Options {
    let roles = [("readWriteAnyDatabase", "admin"), ("read", "config")];
    Options { users: vec![User::new(TARGET_USER.0, TARGET_USER.1, &roles)], ..Options::guide_target() }
}

async fn dressed(rig: &Rig) -> Result<Dressed> {
    Dressed::start(rig.target.port(0)).await
}

fn config(rig: &Rig, mongos: &Dressed) -> Result<PipelineConfig> {
    let uri = mongos.uri(Some(TARGET_USER));
    Ok(rig.config()?.set("tunnel.address", uri.as_str()).set("checkpoint.storage.url", uri.as_str()))
}

/// Makes the collector believe that a collection is sharded, and the referee judge it.
async fn shard(rig: &Rig, mongos: &Dressed, namespace: &str, key: &Document) -> Result<()> {
    mongos.referee(namespace, key);
    enter_sharded(&rig.target.client(), namespace, key).await
}

fn metric(text: &str, name: &str) -> u64 {
    let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
    line.and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or_default()
}

#[tokio::test]
async fn a_load_that_changes_shard_keys_is_copied_followed_and_killed() -> Result<()> {
    let rig = Rig::of(Options::guide_source(), target()).await?;
    let mongos = dressed(&rig).await?;
    for (namespace, key) in [
        ("shop.c00", doc! { "status": 1 }),
        ("shop.c01", doc! { "obj.a.b": "hashed" }),
        ("shop.c02", doc! { "n": 1, "obj.a.b": 1 }),
        ("shop.c03", doc! { "_id": "hashed" }),
        ("shop.unique", doc! { "u": 1 }),
    ] {
        shard(&rig, &mongos, namespace, &key).await?;
    }
    rig.fill(300).await?;
    let mut rng = StdRng::seed_from_u64(rig.load.seed);
    let load = rig.start_load();
    let config = config(&rig, &mongos)?
        .set(FALLBACK, true)
        .set("full_sync.executor.immutable_shard_key_fallback", true)
        .set("filter.ddl_enable", true);
    let mut collector = Collector::start(&config)?;
    for kill in 0..kills().min(6) {
        match kill % 3 {
            0 => pause(&mut rng, 100..600).await,
            1 if !collector.log().contains(HAND_OVER) => collector.wait_log(HAND_OVER, PATIENCE).await?,
            _ => pause(&mut rng, 500..2_000).await,
        }
        anyhow::ensure!(collector.is_running()?, "seed {}:\n{}", rig.load.seed, collector.log_end());
        collector.kill9();
        collector.run()?;
    }
    load.stop().await?;
    rig.comparison().wait(SENTINEL, PATIENCE).await.with_context(|| collector.log_end())?;
    let metrics = collector.get("/metrics").await?;
    let seen = mongos.seen();
    anyhow::ensure!(seen.violations.is_empty(), "{:#?}", seen.violations.iter().take(5).collect::<Vec<_>>());
    for what in ["upsert", "update by key", "delete by key"] {
        anyhow::ensure!(seen.statements.get(what).is_some_and(|count| *count > 0), "no {what}: {:?}", seen.statements);
    }
    println!(
        "{:?}, {} moved since the last kill",
        seen.statements,
        metric(&metrics, "oplogue_sink_moved_documents_total")
    );
    anyhow::ensure!(collector.log().contains("a cluster behind a mongos"), "{}", collector.log_end());
    let expected = ["going back to the last durable position", "an earlier full sync did not finish"];
    rig.finish(rig.comparison(), collector, &expected).await
}

/// Copied documents of a collection that the target has sharded by `k`, and a collector behind the overlap.
async fn followed(settings: &[(&str, toml::Value)]) -> Result<(Rig, Dressed, Collector)> {
    let rig = Rig::of(Options::guide_source(), target()).await?;
    let mongos = dressed(&rig).await?;
    shard(&rig, &mongos, "shop.c00", &doc! { "k": 1 }).await?;
    let people = rig.source.client().database("shop").collection::<Document>("c00");
    people.insert_many((0..20).map(|n| doc! { "_id": n, "k": n, "x": 1 })).await?;
    let mut config = config(&rig, &mongos)?;
    for (key, value) in settings {
        config = config.set(key, value.clone());
    }
    let mut collector = Collector::start(&config)?;
    handed_over(&mut collector).await?;
    collector.wait_log("overlap is over", PATIENCE).await?;
    Ok((rig, mongos, collector))
}

#[tokio::test]
async fn a_changed_shard_key_is_written_whole_when_the_settings_say_so() -> Result<()> {
    let (rig, mongos, collector) = followed(&[(FALLBACK, true.into())]).await?;
    // Whoever sent the update itself would be refused.
    mongos.refuse_changed_keys();
    let source = rig.source.client().database("shop").collection::<Document>("c00");
    source.update_one(doc! { "_id": 7 }, doc! { "$set": { "k": 700 } }).await?;
    source.replace_one(doc! { "_id": 8 }, doc! { "k": 800 }).await?;
    source.update_one(doc! { "_id": 9 }, doc! { "$unset": { "k": "" } }).await?;
    source.update_one(doc! { "_id": 10 }, doc! { "$set": { "x": 2 } }).await?;
    source.delete_one(doc! { "_id": 11 }).await?;
    rig.comparison().wait(SENTINEL, PATIENCE).await.with_context(|| collector.log_end())?;
    let metrics = collector.get("/metrics").await?;
    anyhow::ensure!(metric(&metrics, "oplogue_sink_moved_documents_total") == 3, "{metrics}");
    anyhow::ensure!(metric(&metrics, "oplogue_sink_refetched_documents_total") == 2, "{metrics}");
    anyhow::ensure!(mongos.seen().violations.is_empty(), "{:?}", mongos.seen().violations);
    rig.finish(rig.comparison(), collector, &[]).await
}

#[tokio::test]
async fn a_changed_shard_key_is_otherwise_a_conflict_that_names_the_key() -> Result<()> {
    let (rig, mongos, mut collector) = followed(&[("incr_sync.conflict_write_to", "db".into())]).await?;
    mongos.refuse_changed_keys();
    let source = rig.source.client().database("shop").collection::<Document>("c00");
    source.update_one(doc! { "_id": 7 }, doc! { "$set": { "k": 700 } }).await?;
    collector.wait_log(CONFLICT, PATIENCE).await?;
    let records = rig.target.client().database("mongoshake__conflict").collection::<Document>("conflicts");
    let all: Vec<Document> = records.find(doc! {}).await?.try_collect().await?;
    let [record] = all.as_slice() else { anyhow::bail!("{all:#?}") };
    anyhow::ensure!(record.get_str("kind")? == "immutable_field", "{record:#?}");
    let line = collector.log();
    let line = line.lines().find(|line| line.contains(CONFLICT)).context("no line")?;
    for part in ["shard key", "\"k\": 1", FALLBACK] {
        anyhow::ensure!(line.replace('\\', "").contains(part), "{part:?} is not in: {line}");
    }
    // Everything else goes on, and the same document follows its next whole state.
    source.replace_one(doc! { "_id": 7 }, doc! { "k": 701 }).await?;
    rig.target.client().database("mongoshake__conflict").drop().await?;
    rig.finish(rig.comparison(), collector, &[CONFLICT]).await
}

#[tokio::test]
async fn without_a_record_the_run_stops_at_a_changed_shard_key() -> Result<()> {
    let (rig, mongos, mut collector) = followed(&[]).await?;
    mongos.refuse_changed_keys();
    let source = rig.source.client().database("shop").collection::<Document>("c00");
    source.update_one(doc! { "_id": 7 }, doc! { "$set": { "k": 700 } }).await?;
    let status = collector.wait(PATIENCE).await?;
    anyhow::ensure!(status.code() == Some(1), "exit {status}");
    anyhow::ensure!(collector.log_end().contains(FALLBACK), "{}", collector.log_end());
    Ok(())
}

#[tokio::test]
async fn a_mongos_that_cannot_be_the_target_is_refused_with_the_reason() -> Result<()> {
    let mut options = target();
    options.users.push(User::guide_target());
    let rig = Rig::of(Options::guide_source(), options).await?;
    rig.source.client().database("shop").collection("c00").insert_one(doc! { "_id": 1 }).await?;
    let mongos = dressed(&rig).await?;
    let fails = async |config: PipelineConfig, code: i32, parts: &[&str]| -> Result<()> {
        let mut collector = Collector::start(&config)?;
        let status = collector.wait(PATIENCE).await?;
        anyhow::ensure!(status.code() == Some(code), "exit {status}:\n{}", collector.log_end());
        for part in parts {
            anyhow::ensure!(collector.log_end().contains(part), "{part:?} is not in:\n{}", collector.log_end());
        }
        Ok(())
    };
    let guide = mongos.uri(Some(("guide_target", "target-password")));
    let config = config(&rig, &mongos)?;
    fails(config.clone().set("tunnel.address", guide), 1, &["`find` on config.collections", "role `read` on `config`"])
        .await?;
    let itself = format!("source/127.0.0.1:{}", rig.source.port(0));
    let shards = rig.target.client().database("config").collection::<Document>("shards");
    shards.insert_one(doc! { "_id": "s1", "host": itself }).await?;
    fails(config.clone(), 2, &["a mongos of the source's own cluster"]).await?;
    shards.delete_many(doc! {}).await?;
    let two = mongos.uri(Some(TARGET_USER)).replace("/?", ",127.0.0.1:1/?");
    let marked = config.set("tunnel.address", two).set("incr_sync.loop_prevention.origin", 1);
    fails(marked, 2, &["several mongos", "name one"]).await
}

#[tokio::test]
async fn a_collection_that_is_sharded_while_a_run_writes_to_it_is_met_with_its_key() -> Result<()> {
    let rig = Rig::of(Options::guide_source(), target()).await?;
    let mongos = dressed(&rig).await?;
    let source = rig.source.client().database("shop").collection::<Document>("c00");
    source.insert_many((0..20).map(|n| doc! { "_id": n, "k": n })).await?;
    let mut collector = Collector::start(&config(&rig, &mongos)?.set(FALLBACK, true))?;
    handed_over(&mut collector).await?;
    collector.wait_log("overlap is over", PATIENCE).await?;
    enter_sharded(&rig.target.client(), "shop.c00", &doc! { "k": 1 }).await?;
    mongos.referee("shop.c00", &doc! { "k": 1 });
    mongos.refuse_changed_keys();
    source.update_one(doc! { "_id": 7 }, doc! { "$set": { "k": 700 } }).await?;
    collector.wait_log("was sharded in another way meanwhile", PATIENCE).await?;
    collector.wait_log_times("incremental starts", 2, PATIENCE).await?;
    rig.comparison().wait(SENTINEL, PATIENCE).await.with_context(|| collector.log_end())?;
    rig.finish(rig.comparison(), collector, &["going back to the last durable position"]).await
}
