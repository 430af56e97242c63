//! Views that leave the source while nobody is reading.
//!
//! After a start they are in no list of the source, and the entry that takes all views of a database away names none of
//! them. So the store remembers which view of the target came from where, also where a rename gave it another name or
//! several databases of the source go to one of the target. No data is compared: a view has none.

use anyhow::Result;
use bson::{Document, doc};
use mongodb::Client;
use mongodb::options::WriteConcern;
use oplogue_tests::collector::Collector;

use super::super::rig::{PATIENCE, handed_over, passed};
use super::{rig_of, source_version, with_ddl};

const RULES: &str = "left:both;right:both;lone.named:apart.other;lone.e:apart.e";

async fn view(client: &Client, database: &str, name: &str, on: &str) -> Result<()> {
    client.database(database).run_command(doc! { "create": name, "viewOn": on, "pipeline": [] }).await?;
    Ok(())
}

async fn fill(client: &Client, database: &str, name: &str) -> Result<()> {
    client.database(database).collection(name).insert_one(doc! { "_id": 1 }).await?;
    Ok(())
}

async fn names(client: &Client, database: &str) -> Result<Vec<String>> {
    let mut names = client.database(database).list_collection_names().await?;
    names.retain(|name| name != "system.views");
    names.sort();
    Ok(names)
}

/// Lets the job forget where its views came from, as a job that never knew.
pub(super) async fn forget_views(source: &Client) -> Result<()> {
    let majority = mongodb::options::CollectionOptions::builder().write_concern(WriteConcern::majority()).build();
    let stored = source.database("mongoshake").collection_with_options::<Document>("ckpt_default", majority);
    let deleted = stored.delete_many(doc! { "_id": { "$regex": "/view/" } }).await?;
    anyhow::ensure!(deleted.deleted_count > 0, "the job remembers no view");
    Ok(())
}

#[tokio::test]
async fn views_that_went_unseen_go_under_every_name() -> Result<()> {
    let rig = rig_of(&source_version()).await?;
    let (source, target) = (rig.source.client(), rig.target.client());
    for (database, name) in [("left", "c"), ("right", "d"), ("lone", "e"), ("lone", "f")] {
        fill(&source, database, name).await?;
    }
    view(&source, "left", "early", "c").await?;
    view(&source, "right", "stays", "d").await?;
    view(&source, "lone", "named", "e").await?;
    let config =
        with_ddl(&rig)?.set("filter.namespace.white", "shop;left;right;lone").set("transform.namespace", RULES);
    let mut collector = Collector::start(&config)?;
    handed_over(&mut collector).await?;
    view(&source, "left", "late", "c").await?;
    passed(&rig, &collector).await?;
    assert_eq!(names(&target, "both").await?, ["c", "d", "early", "late", "stays"]);
    assert_eq!(names(&target, "apart").await?, ["e", "other"]);
    assert_eq!(names(&target, "lone").await?, ["f"]);
    collector.terminate(PATIENCE).await?;
    for database in ["left", "lone"] {
        source.database(database).drop().await?;
    }
    collector.run()?;
    passed(&rig, &collector).await?;
    assert_eq!(names(&target, "both").await?, ["d", "stays"]);
    assert!(names(&target, "apart").await?.is_empty());
    assert!(names(&target, "lone").await?.is_empty());
    // Views that stand on both sides before anybody remembers them: at a first run, or where another tool made them.
    fill(&source, "left", "c").await?;
    view(&source, "left", "early", "c").await?;
    passed(&rig, &collector).await?;
    collector.terminate(PATIENCE).await?;
    forget_views(&source).await?;
    collector.run()?;
    passed(&rig, &collector).await?;
    assert_eq!(names(&target, "both").await?, ["c", "d", "early", "stays"]);
    collector.terminate(PATIENCE).await?;
    source.database("left").drop().await?;
    collector.run()?;
    passed(&rig, &collector).await?;
    assert_eq!(names(&target, "both").await?, ["d", "stays"]);
    // Another view of the source takes the name on the target meanwhile, before that one goes and after.
    for takes_it_first in [true, false] {
        fill(&source, "left", "c").await?;
        view(&source, "left", "early", "c").await?;
        passed(&rig, &collector).await?;
        collector.terminate(PATIENCE).await?;
        if takes_it_first {
            view(&source, "right", "early", "d").await?;
        }
        source.database("left").drop().await?;
        if !takes_it_first {
            view(&source, "right", "early", "d").await?;
        }
        collector.run()?;
        passed(&rig, &collector).await?;
        assert_eq!(names(&target, "both").await?, ["d", "early", "stays"]);
        source.database("right").run_command(doc! { "drop": "early" }).await?;
    }
    // And a collection, whose end is its own business.
    fill(&source, "right", "early").await?;
    fill(&source, "right", "brief").await?;
    source.database("right").run_command(doc! { "drop": "brief" }).await?;
    passed(&rig, &collector).await?;
    let of_both_sides = rig.comparison().only(|name| name.starts_with("shop.") || name.starts_with("right."));
    rig.finish(of_both_sides.rename("right", "both"), collector, &[]).await
}
