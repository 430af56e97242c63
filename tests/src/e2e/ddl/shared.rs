//! Several source collections that a rename sends to one target collection.
//!
//! The full copy refuses to begin, before it drops anything. Incremental merges their documents, but a command about
//! one of them never touches the merged collection as a whole: it is refused.

use anyhow::Result;
use bson::{Document, doc};
use oplogue_tests::collector::Collector;

use super::super::rig::{PATIENCE, passed, until};
use super::{rig_of, source_version, with_ddl};

const RULES: &str = "one.c:all.c;two.c:all.c";

#[tokio::test]
async fn a_copy_of_two_into_one_is_refused_before_anything_is_dropped() -> Result<()> {
    let rig = rig_of(&source_version()).await?;
    for db in ["one", "two"] {
        rig.source.client().database(db).collection("c").insert_one(doc! { "_id": db }).await?;
    }
    let there = rig.target.client().database("all").collection::<Document>("c");
    there.insert_one(doc! { "_id": "before" }).await?;
    let config = with_ddl(&rig)?.set("transform.namespace", RULES).set("full_sync.collection_exist_drop", true);
    let mut collector = Collector::start(&config)?;
    assert_ne!(collector.wait(PATIENCE).await?.code(), Some(0));
    assert!(collector.log().contains("would both be written to all.c"), "{}", collector.log_end());
    assert_eq!(there.count_documents(doc! {}).await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_drop_of_one_never_drops_the_other() -> Result<()> {
    let rig = rig_of(&source_version()).await?;
    let source = rig.source.client();
    let config = with_ddl(&rig)?.set("transform.namespace", RULES).set("sync_mode", "incr");
    let mut collector = Collector::start(&config)?;
    for db in ["one", "two"] {
        source.database(db).collection("c").insert_one(doc! { "_id": db }).await?;
    }
    let merged = rig.target.client().database("all").collection::<Document>("c");
    until(&collector, "both are merged", async || Ok(merged.count_documents(doc! {}).await? == 2)).await?;
    source.database("one").collection::<Document>("c").drop().await?;
    assert_eq!(collector.wait(PATIENCE).await?.code(), Some(1), "{}", collector.log_end());
    let text = "drop of one.c: two.c is written to the same collection of the target";
    assert!(collector.log().contains(text), "{}", collector.log_end());
    assert_eq!(merged.count_documents(doc! {}).await?, 2);
    let mut collector = Collector::start(&config.set("incr_sync.ddl_refused", "skip"))?;
    collector.wait_log("a DDL that the target refuses is skipped", PATIENCE).await?;
    source.database("two").collection("c").insert_one(doc! { "_id": "later" }).await?;
    passed(&rig, &collector).await?;
    assert_eq!(merged.count_documents(doc! {}).await?, 3);
    let status = collector.terminate(PATIENCE).await?;
    assert!(status.success(), "{}", collector.log_end());
    collector.assert_no_unexpected_warnings(&["a DDL that the target refuses is skipped"])
}
