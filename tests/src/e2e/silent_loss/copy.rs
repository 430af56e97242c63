//! What happens to a collection while it is being copied.
//!
//! The source's fail point holds the copy when a part of the documents is on the target and the rest is not, until the
//! test has acted, however long that takes. Every test makes sure that it did act in the middle.

use mongodb::options::ReadPreference;

use super::*;

const DOCUMENTS: i32 = 3_000;

async fn fill(rig: &Rig, name: &str) -> Result<()> {
    let pad = "p".repeat(2_000);
    shop(&rig.source, name).insert_many((0..DOCUMENTS).map(|id| doc! { "_id": id, "n": id, "pad": &pad })).await?;
    Ok(())
}

/// Holds every read of `shop.<name>` after the first one that the collector opens. That one is small and shows how large
/// documents are; the next one brings the others.
async fn hold(rig: &Rig, name: &str) -> Result<()> {
    let data = doc! {
        "failCommands": ["find"], "namespace": format!("shop.{name}"), "appName": "oplogue",
        "blockConnection": true, "blockTimeMS": 600_000,
    };
    and_none_held(rig, name, rig.source.fail_command(doc! { "skip": 1 }, data)).await
}

/// Lets go what `hold` holds.
async fn let_go(rig: &Rig, name: &str) -> Result<()> {
    and_none_held(rig, name, rig.source.heal_commands()).await
}

/// Changes the fail point and ends the reads that stand in it: a server changes one only when nobody stands in it.
async fn and_none_held(rig: &Rig, name: &str, change: impl Future<Output = Result<()>>) -> Result<()> {
    let primary = rig.source.primary().await?;
    let held = doc! { "currentOp": 1, "appName": "oplogue", "command.find": name };
    let end_held = async || {
        let found = rig.source.admin(primary, held.clone()).await?;
        for operation in found.get_array("inprog")?.iter().filter_map(Bson::as_document) {
            rig.source.admin(primary, doc! { "killOp": 1, "op": operation.get("opid").context("no opid")? }).await?;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        anyhow::Ok(())
    };
    let mut change = std::pin::pin!(change);
    loop {
        tokio::select! {
            changed = &mut change => return changed,
            ended = end_held() => ended?,
        }
    }
}

/// What the collector says of the read that is killed to let it go.
const LET_GO: &str = "operation was interrupted";

/// Starts a collector whose copy of `shop.<name>` is in the middle when this returns, and stays there until `let_go`.
async fn in_the_middle(rig: &Rig, config: &oplogue_tests::collector::PipelineConfig, name: &str) -> Result<Collector> {
    hold(rig, name).await?;
    let collector = Collector::start(config)?;
    let copied = shop(&rig.target, name);
    until(&collector, "a part of the copy", async || Ok(copied.estimated_document_count().await? > 0)).await?;
    let now = copied.estimated_document_count().await?;
    anyhow::ensure!(now < u64::try_from(DOCUMENTS)?, "nothing held the copy");
    Ok(collector)
}

#[tokio::test]
async fn a_change_inside_the_range_that_is_copied_now() -> Result<()> {
    let rig = Rig::start().await?;
    fill(&rig, "c00").await?;
    let collector = in_the_middle(&rig, &rig.config()?, "c00").await?;
    let changed = shop(&rig.source, "c00");
    // What was read and what was not, in every way, some of it more than once.
    let every = |rest: i32| doc! { "_id": { "$mod": [11, rest] } };
    changed.update_many(every(0), doc! { "$mul": { "n": -1 }, "$set": { "late": [1, 2] } }).await?;
    changed.delete_many(doc! { "$or": [every(1), every(2)] }).await?;
    let between = (0..DOCUMENTS).step_by(11).map(|id| doc! { "_id": f64::from(id) + 0.5, "between": true });
    changed.insert_many(between).await?;
    let again = (2..i64::from(DOCUMENTS)).step_by(11).map(|id| doc! { "_id": id, "again": true });
    changed.insert_many(again).await?;
    changed.update_many(every(0), doc! { "$push": { "late": { "$each": [3], "$slice": -2 } } }).await?;
    anyhow::ensure!(!collector.log().contains(HAND_OVER), "the copy was over before the changes");
    let_go(&rig, "c00").await?;
    rig.finish(rig.comparison(), collector, &[LET_GO]).await
}

#[tokio::test]
async fn shapes_that_change_during_the_copy() -> Result<()> {
    shapes_change(false).await
}

/// The copy is done again, and what it prepared before keeps the options of its first look.
#[tokio::test]
async fn shapes_that_change_during_a_copy_that_is_killed() -> Result<()> {
    shapes_change(true).await
}

async fn shapes_change(killed: bool) -> Result<()> {
    let rig = Rig::start().await?;
    fill(&rig, "c00").await?;
    let db = rig.source.client().database("shop");
    let run = |command: Document| async { db.run_command(command).await };
    for name in ["case", "gone", "moved", "stays", "remade"] {
        shop(&rig.source, name).insert_many((0..300).map(|id| doc! { "_id": id, "n": id })).await?;
    }
    run(doc! { "createIndexes": "stays", "indexes": [{ "key": { "n": -1 }, "name": "old" }] }).await?;
    // `collMod` needs more than the guide's rights.
    let config = rig.config()?.set("filter.ddl_enable", true).set("tunnel.address", rig.target.uri());
    // The largest collection is read first: alone, it keeps the others from being read before they change.
    let config = if killed { config } else { config.set("full_sync.reader.collection_parallel", 1) };
    let mut collector = in_the_middle(&rig, &config, "c00").await?;
    let read = shop(&rig.target, "stays").estimated_document_count().await?;
    anyhow::ensure!(killed || read == 0, "{read} documents were read before they could change");
    run(doc! { "createIndexes": "stays", "indexes": [{ "key": { "n": 1 }, "name": "short_lived" }] }).await?;
    run(doc! { "dropIndexes": "stays", "index": "short_lived" }).await?;
    run(doc! { "dropIndexes": "stays", "index": "old" }).await?;
    run(doc! { "collMod": "stays", "validator": { "n": { "$exists": true } }, "validationAction": "warn" }).await?;
    run(doc! { "drop": "case" }).await?;
    run(doc! { "create": "CASE", "collation": { "locale": "en", "strength": 2 } }).await?;
    shop(&rig.source, "CASE").insert_one(doc! { "_id": "x" }).await?;
    run(doc! { "drop": "gone" }).await?;
    run(doc! { "drop": "remade" }).await?;
    let mut remade = doc! { "create": "remade", "validator": { "n": { "$gte": 0 } } };
    if rig.source.has("pre-images", (6, 0)) && rig.target.has("pre-images", (6, 0)) {
        remade.insert("changeStreamPreAndPostImages", doc! { "enabled": true });
    }
    run(remade).await?;
    shop(&rig.source, "remade").insert_one(doc! { "_id": 1, "n": 7 }).await?;
    run(doc! { "create": "ring", "capped": true, "size": 65_536 }).await?;
    shop(&rig.source, "ring").insert_many((0..40).rev().map(|id| doc! { "_id": id })).await?;
    let rename = doc! { "renameCollection": "shop.moved", "to": "shop.there" };
    rig.source.client().database("admin").run_command(rename).await?;
    shop(&rig.source, "there").update_many(doc! {}, doc! { "$inc": { "n": 1 } }).await?;
    anyhow::ensure!(!collector.log().contains(HAND_OVER), "the copy was over before the changes");
    if killed {
        collector.kill9();
        collector.run()?;
    }
    let_go(&rig, "c00").await?;
    rig.finish(rig.comparison(), collector, &["an earlier full sync did not finish", LET_GO]).await
}

#[tokio::test]
async fn killed_in_the_copy_of_ids_of_every_type() -> Result<()> {
    let rig = Rig::start().await?;
    let pad = "p".repeat(2_000);
    let mixed = (0..500_i32).flat_map(|n| {
        let ids: [Bson; 6] = [
            n.into(),
            n.to_string().into(),
            (f64::from(n) + 0.5).into(),
            doc! { "n": n }.into(),
            bson::DateTime::from_millis(i64::from(n)).into(),
            Bson::Binary(bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: n.to_be_bytes().to_vec() }),
        ];
        ids.map(|id| doc! { "_id": id, "n": n, "pad": &pad })
    });
    shop(&rig.source, "c00").insert_many(mixed).await?;
    rig.source.client().database("shop").create_collection("ring").capped(true).size(1 << 20).await?;
    let ring = shop(&rig.source, "ring");
    ring.insert_many((0..400).rev().map(|id| doc! { "_id": id, "pad": &pad[..1_000] })).await?;
    let mut collector = in_the_middle(&rig, &rig.config()?, "c00").await?;
    for round in 0..3 {
        shop(&rig.source, "c00").delete_one(doc! { "_id": round.to_string() }).await?;
        shop(&rig.source, "c00").update_one(doc! { "_id": 400 + round }, doc! { "$set": { "n": "new" } }).await?;
        ring.insert_one(doc! { "_id": 1_000 + round }).await?;
        collector.kill9();
        // Each start comes as far as the first one.
        hold(&rig, "c00").await?;
        collector.run()?;
        let starts = usize::try_from(round)? + 1;
        collector.wait_log_times("an earlier full sync did not finish", starts, PATIENCE).await?;
    }
    anyhow::ensure!(!collector.log().contains(HAND_OVER), "nothing held the copy");
    let_go(&rig, "c00").await?;
    rig.finish(rig.comparison(), collector, &["an earlier full sync did not finish", LET_GO]).await
}

/// The secondary that is read has not seen the newest documents, nor the newest collection, when the copy begins. What
/// the copy does not see, no later entry brings.
#[tokio::test]
async fn a_secondary_that_lags_behind_the_start_of_the_copy() -> Result<()> {
    let source = Options { members: 3, non_voting: 2, ..Options::guide_source() };
    let rig = Rig::of(source, Options::guide_target()).await?;
    let primary = rig.source.primary().await?;
    let lagging: Vec<usize> = (0..3).filter(|member| *member != primary).collect();
    shop(&rig.source, "c00").insert_many((0..200).map(|id| doc! { "_id": id })).await?;
    for member in &lagging {
        rig.source.fail_point(*member, "rsSyncApplyStop", "alwaysOn", doc! {}).await?;
        // It looks there between two batches only.
        let stands = doc! { "waitForFailPoint": "rsSyncApplyStop", "timesEntered": 1, "maxTimeMS": 60_000 };
        rig.source.admin(*member, stands).await?;
    }
    for name in ["c00", "c01"] {
        shop(&rig.source, name).insert_many((200..600).map(|id| doc! { "_id": id })).await?;
    }
    let config = rig.config()?.set("mongo_connect_mode", "secondaryPreferred");
    let mut collector = Collector::start(&config)?;
    collector.wait_log("source is there", PATIENCE).await?;
    // A copy that does not wait for the secondary is over in a moment.
    tokio::time::sleep(Duration::from_secs(4)).await;
    for member in &lagging {
        let seen = rig.source.member_client(*member).await?.database("shop").collection::<Document>("c00");
        let seen =
            seen.find_one(doc! { "_id": 599 }).selection_criteria(ReadPreference::Nearest { options: None }.into());
        anyhow::ensure!(seen.await?.is_none(), "the secondary does not lag");
        rig.source.fail_point(*member, "rsSyncApplyStop", "off", doc! {}).await?;
    }
    handed_over(&mut collector).await?;
    let expected = ["going back to the last durable position", "an earlier full sync did not finish"];
    rig.finish(rig.comparison(), collector, &expected).await
}

/// A server lists what it has itself. A drop that only the primary knows when the copy is planned is taken back with the
/// primary, and no entry says so.
#[tokio::test]
async fn a_drop_that_only_the_primary_knows_of() -> Result<()> {
    let source = Options { members: 3, ..Options::guide_source() };
    let mut rig = Rig::of(source, Options::guide_target()).await?;
    let client = rig.source.client();
    for name in ["c00", "c01"] {
        shop(&rig.source, name).insert_many((0..50).map(|id| doc! { "_id": id })).await?;
    }
    let primary = rig.source.primary().await?;
    let secondaries = [(primary + 1) % 3, (primary + 2) % 3];
    rig.source.hold_back(&secondaries, true).await?;
    client.database("shop").run_command(doc! { "drop": "c01", "writeConcern": { "w": 1 } }).await?;
    let config = rig.config()?.set("mongo_connect_mode", "primary");
    let mut collector = Collector::start(&config.set("checkpoint.storage.url", rig.target.uri_as_user()))?;
    collector.wait_log("waiting until the source's majority has its catalogue", PATIENCE).await?;
    rig.source.kill(primary)?;
    rig.source.hold_back(&secondaries, false).await?;
    rig.source.primary().await?;
    rig.source.restart(primary).await?;
    let there = shop(&rig.source, "c01").count_documents(doc! {}).await?;
    anyhow::ensure!(there == 50, "the source did not take the drop back: {there} documents");
    handed_over(&mut collector).await?;
    rig.finish(rig.comparison(), collector, &["going back", "is tried again", "again"]).await
}
