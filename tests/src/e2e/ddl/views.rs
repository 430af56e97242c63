//! Views that leave the source while nobody is reading.
//!
//! After a start they are in no list of the source, and the entry that takes all views of a database away names none of
//! them. So the store remembers which view of the target came from where, also where a rename gave it another name or
//! several databases of the source go to one of the target. What other DDL makes of views is shown in `sink::ddl`, never
//! here.

use anyhow::Result;
use bson::{Document, doc};
use mongodb::Client;
use mongodb::options::WriteConcern;
use oplogue_tests::collector::Collector;
use oplogue_tests::compare::Comparison;

use super::super::rig::{PATIENCE, Rig, handed_over, passed};
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

/// Two databases of the source go to one of the target.
async fn two_into_one() -> Result<(Rig, Collector)> {
    let rig = rig_of(&source_version()).await?;
    let config = with_ddl(&rig)?.set("filter.namespace.white", "shop;left;right").set("transform.namespace", RULES);
    let mut collector = Collector::start(&config)?;
    handed_over(&mut collector).await?;
    Ok((rig, collector))
}

/// Makes a view that arrives at the target, and ends the collector.
async fn early_and_stop(rig: &Rig, collector: &mut Collector) -> Result<()> {
    let source = rig.source.client();
    fill(&source, "left", "c").await?;
    view(&source, "left", "early", "c").await?;
    passed(rig, collector).await?;
    collector.terminate(PATIENCE).await?;
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
    early_and_stop(&rig, &mut collector).await?;
    forget_views(&source).await?;
    collector.run()?;
    passed(&rig, &collector).await?;
    assert_eq!(names(&target, "both").await?, ["c", "d", "early", "stays"]);
    collector.terminate(PATIENCE).await?;
    source.database("left").drop().await?;
    collector.run()?;
    passed(&rig, &collector).await?;
    assert_eq!(names(&target, "both").await?, ["d", "stays"]);
    rig.finish(both_sides(&rig), collector, &[]).await
}

#[tokio::test]
async fn a_view_stays_while_another_one_goes_there() -> Result<()> {
    let (rig, mut collector) = two_into_one().await?;
    let (source, target) = (rig.source.client(), rig.target.client());
    fill(&source, "right", "d").await?;
    // Another view of the source takes the name on the target, before that one goes and after.
    for takes_it_first in [true, false] {
        early_and_stop(&rig, &mut collector).await?;
        if takes_it_first {
            view(&source, "right", "early", "d").await?;
        }
        source.database("left").drop().await?;
        if !takes_it_first {
            view(&source, "right", "early", "d").await?;
        }
        collector.run()?;
        passed(&rig, &collector).await?;
        assert_eq!(names(&target, "both").await?, ["d", "early"]);
        is_equal(&rig).await?;
        source.database("right").run_command(doc! { "drop": "early" }).await?;
        passed(&rig, &collector).await?;
        assert_eq!(names(&target, "both").await?, ["d"]);
    }
    // Both are there, go one after the other, and the one that is gone keeps nothing.
    for order in [["left", "right"], ["right", "left"]] {
        for (database, on) in [("left", "c"), ("right", "d")] {
            fill(&source, database, &format!("{on}{on}")).await?;
        }
        for database in order {
            view(&source, database, "early", "x").await?;
            view(&source, database, "named", "x").await?;
        }
        passed(&rig, &collector).await?;
        source.database("left").run_command(doc! { "drop": "named" }).await?;
        source.database("left").drop().await?;
        passed(&rig, &collector).await?;
        assert_eq!(names(&target, "both").await?, ["d", "dd", "early", "named"]);
        collector.terminate(PATIENCE).await?;
        source.database("right").drop().await?;
        collector.run()?;
        passed(&rig, &collector).await?;
        assert!(names(&target, "both").await?.is_empty());
        fill(&source, "right", "d").await?;
    }
    rig.finish(both_sides(&rig), collector, &[]).await
}

/// A collection takes the name of a view that went, and what is left of that view keeps nothing of it.
#[tokio::test]
async fn a_collection_takes_the_name_of_a_view_that_went_unseen() -> Result<()> {
    let (rig, mut collector) = two_into_one().await?;
    let (source, target) = (rig.source.client(), rig.target.client());
    early_and_stop(&rig, &mut collector).await?;
    source.database("left").drop().await?;
    fill(&source, "right", "early").await?;
    collector.run()?;
    passed(&rig, &collector).await?;
    is_equal(&rig).await?;
    source.database("right").run_command(doc! { "drop": "early" }).await?;
    passed(&rig, &collector).await?;
    assert!(names(&target, "both").await?.is_empty());
    // Once more, and by the next start it has become a view.
    early_and_stop(&rig, &mut collector).await?;
    source.database("left").drop().await?;
    fill(&source, "right", "early").await?;
    source.database("right").run_command(doc! { "drop": "early" }).await?;
    view(&source, "right", "early", "d").await?;
    collector.run()?;
    passed(&rig, &collector).await?;
    rig.finish(both_sides(&rig), collector, &[]).await
}

async fn is_equal(rig: &Rig) -> Result<()> {
    let found = both_sides(rig).run().await?;
    anyhow::ensure!(found.is_empty(), "{}", oplogue_tests::compare::report(&found));
    Ok(())
}

fn both_sides(rig: &Rig) -> Comparison {
    let comparison = rig.comparison().only(|name| name.starts_with("shop.") || name.starts_with("right."));
    comparison.rename("right", "both")
}
