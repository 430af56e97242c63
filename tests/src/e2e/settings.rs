//! Settings of the guide whose effect is seen on the servers: the target's profiler tells how it was written to.
//!
//! Each setting here is one that an operator turns and then expects to see. What the status pages say of the same run is
//! read from the running job. Values that only have to be refused are tested with the configuration.

use anyhow::{Context as _, Result};
use bson::{Document, doc};
use futures_util::TryStreamExt as _;
use oplogue_tests::collector::{Collector, http_get};
use oplogue_tests::servers::ReplicaSet;

use super::rig::{PATIENCE, Rig, handed_over, passed};

/// Documents of a collection, more than one batch of the copy.
const DOCUMENTS: i32 = 100;

/// Largest batch of the copy that is allowed here.
const BATCH: i32 = 7;

async fn fill(set: &ReplicaSet, namespace: (&str, &str)) -> Result<()> {
    let collection = set.client().database(namespace.0).collection::<Document>(namespace.1);
    collection.insert_many((0..DOCUMENTS).map(|id| doc! { "_id": id, "u": id, "n": id % 5 })).await?;
    let indexes = doc! { "createIndexes": namespace.1, "indexes": [
        { "key": { "u": 1 }, "name": "u", "unique": true, "sparse": true }, { "key": { "n": 1 }, "name": "n" },
    ] };
    set.client().database(namespace.0).run_command(indexes).await?;
    Ok(())
}

/// What the profiler of `shop` on the target noted.
async fn profiled(target: &ReplicaSet, filter: Document) -> Result<Vec<Document>> {
    let profile = target.client().database("shop").collection::<Document>("system.profile");
    Ok(profile.find(filter).await?.try_collect().await?)
}

fn is_majority(operation: &Document) -> bool {
    let concern = operation.get_document("command").and_then(|command| command.get_document("writeConcern"));
    concern.and_then(|concern| concern.get_str("w")).is_ok_and(|w| w == "majority")
}

#[tokio::test]
async fn batches_concerns_indexes_and_black_lists() -> Result<()> {
    let rig = Rig::with_members(3, 1).await?;
    for namespace in [("shop", "c00"), ("shop", "hidden"), ("secret", "c00")] {
        fill(&rig.source, namespace).await?;
    }
    rig.target.client().database("shop").run_command(doc! { "profile": 2 }).await?;
    let config = rig.config()?.unset("mongo_connect_mode").set("filter.namespace.black", "shop.hidden;secret");
    let config = config.set("full_sync.reader.document_batch_size", i64::from(BATCH));
    let config = config.set("full_sync.reader.write_document_parallel", 2_i64);
    let config = config.set("full_sync.create_index", "background");
    let config = config.set("full_sync.executor.majority_enable", true).set("incr_sync.executor.majority_enable", true);
    let mut collector = Collector::start(&config)?;
    handed_over(&mut collector).await?;
    let passes = |name: &str| name.starts_with("shop.") && name != "shop.hidden";
    // What passes in overlap is an upsert, which the profiler shows without its command.
    collector.wait_log("overlap is over", PATIENCE).await?;
    passed(&rig, &collector).await?;

    let inserts = profiled(&rig.target, doc! { "op": "insert", "ns": "shop.c00", "ninserted": { "$gt": 1 } }).await?;
    let sizes: Vec<i32> = inserts.iter().filter_map(|insert| insert.get_i32("ninserted").ok()).collect();
    anyhow::ensure!(sizes.iter().sum::<i32>() >= DOCUMENTS - BATCH, "{sizes:?}");
    anyhow::ensure!(sizes.iter().all(|size| *size <= BATCH), "batches of more than {BATCH}: {sizes:?}");
    let followed = profiled(&rig.target, doc! { "op": "insert", "ns": "shop.c00", "ninserted": 1 }).await?;
    anyhow::ensure!(!followed.is_empty(), "no insert of incremental was profiled");
    let slack: Vec<&Document> = inserts.iter().chain(&followed).filter(|insert| !is_majority(insert)).collect();
    anyhow::ensure!(slack.is_empty(), "not written with majority: {slack:?}");
    pages(&mut collector).await?;
    rig.target.client().database("shop").run_command(doc! { "profile": 0 }).await?;
    rig.target.client().database("shop").collection::<Document>("system.profile").drop().await?;
    rig.finish(rig.comparison().only(passes), collector, &[]).await
}

/// The pages that MongoShake's scripts read, from the running job.
async fn pages(collector: &mut Collector) -> Result<()> {
    let port = collector.port().context("the status server has a port")?;
    let page =
        async |path: &str| -> Result<serde_json::Value> { Ok(serde_json::from_str(&http_get(port, path).await?)?) };
    let repl = page("/repl").await?;
    anyhow::ensure!(repl["replset"] == "source" && repl["logs_success"].as_u64() >= Some(1), "{repl}");
    for position in ["lsn", "lsn_ack", "lsn_ckpt"] {
        anyhow::ensure!(repl[position]["unix"].as_i64() > Some(0), "{position} in {repl}");
    }
    let progress = page("/progress").await?;
    anyhow::ensure!(progress["progress"] == "100.00%" && progress["total_collection_number"] == 1, "{progress}");
    anyhow::ensure!(http_get(port, "/healthz").await.is_ok(), "{}", collector.log_end());
    let metrics = http_get(port, "/metrics").await?;
    anyhow::ensure!(
        metrics.contains("oplogue_full_sync_copied_documents_total 100")
            || metrics.contains("oplogue_full_sync_copied_documents 100"),
        "{metrics}"
    );
    Ok(())
}

#[tokio::test]
async fn no_index_is_made_where_none_is_wanted() -> Result<()> {
    let rig = Rig::start().await?;
    fill(&rig.source, ("shop", "c00")).await?;
    let mut collector = Collector::start(&rig.config()?.set("full_sync.create_index", "none"))?;
    handed_over(&mut collector).await?;
    passed(&rig, &collector).await?;
    // Still none when overlap is over, which is when unique ones would come.
    let names = rig.target.client().database("shop").collection::<Document>("c00").list_index_names().await?;
    anyhow::ensure!(names == ["_id_"], "{names:?}");
    rig.finish(rig.comparison().without_indexes(), collector, &[]).await
}
