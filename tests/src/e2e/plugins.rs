//! Bad plugins under a running collector: each says what is wrong with it, and no change is lost or doubled.
//!
//! Two kinds are tried. Files that must not load are put in the place of a running plugin, one after the other, while
//! changes stream. Plugins that load and then trap, loop, eat memory or lie stop a run before the entry; with the plugin
//! mended, the next run goes on from there. What each of them says to the chain itself is tested in `plugin-runtime`.

use std::process::Command;

use anyhow::{Context as _, Result};
use bson::{Document, doc};
use oplogue_tests::collector::{Collector, PipelineConfig, program};
use oplogue_tests::example::{self, FIELD, MaskField};
use oplogue_tests::paths;
use oplogue_tests::servers::Options;

use super::rig::{PATIENCE, Rig, SENTINEL, handed_over, passed, until};

#[path = "../../../host/plugin-runtime/tests/plugins/files.rs"]
mod files;

/// How the chain says that it keeps what runs.
const REFUSED: &str = "new plugin version refused, the running one goes on";

#[tokio::test]
async fn files_that_do_not_load_leave_the_running_plugin_alone() -> Result<()> {
    let rig = Rig::start().await?;
    rig.fill(60).await?;
    let plugin = MaskField::install(rig.source.dir())?;
    let place = rig.source.dir().join("mask-field.wasm");
    let mut load = rig.start_load();
    let mut collector = Collector::start(&plugin.join(rig.config()?))?;
    handed_over(&mut collector).await?;
    let broken = files::broken_files();
    anyhow::ensure!(broken.len() >= 15, "only {} broken files", broken.len());
    for (number, file) in broken.iter().enumerate() {
        put(&place, &file.bytes)?;
        collector.wait_log_times(REFUSED, number + 1, PATIENCE).await?;
        let said = collector.log().lines().filter(|line| line.contains(REFUSED)).nth(number).map(str::to_owned);
        let said = said.context("the line was there a moment ago")?;
        anyhow::ensure!(plain(&said).contains(&plain(file.says)), "{said:?} does not say {:?}", file.says);
        load.reach(load.totals().done + 20, PATIENCE).await?;
    }
    // A good one is taken after all of them.
    plugin.put(2)?;
    collector.wait_log("plugin swapped", PATIENCE).await?;
    load.stop().await?;
    let metrics = collector.get("/metrics").await?;
    for line in ["swaps_total{plugin=\"mask-field\"} 1\n", "faults_total{plugin=\"mask-field\"} 0\n"] {
        anyhow::ensure!(metrics.contains(&format!("oplogue_plugin_{line}")), "{line} is not in {metrics}");
    }
    rig.finish(rig.comparison().ignoring_field(FIELD), collector, &[REFUSED]).await?;
    for namespace in &rig.load.namespaces {
        anyhow::ensure!(example::unmasked(&rig.target.client(), namespace).await? == 0, "unmasked in {namespace}");
    }
    Ok(())
}

#[tokio::test]
async fn the_example_masks_as_its_pipeline_file_says() -> Result<()> {
    let folder = paths::root().join("examples/mask-field");
    let pipeline = folder.join("pipeline.toml");
    let checked = Command::new(program()?).arg("check").arg(&pipeline).output()?;
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    anyhow::ensure!(checked.status.success() && said.contains("mask-field"), "{said}");

    let rig = Rig::start().await?;
    let people = rig.source.client().database("crm").collection::<Document>("people");
    let person = |id: &str| doc! { "_id": id, "ssn": "123", "home": { "zip": "80331", "city": "M" } };
    people.insert_one(person("copied")).await?;
    let text = std::fs::read_to_string(&pipeline)?;
    let (_, entry) = text.split_once("[[plugin]]").context("the example names its plugin")?;
    let file = folder.join("mask-field.wasm");
    let entry = entry.replace("\"mask-field.wasm\"", &format!("{:?}", file.to_string_lossy()));
    let mut collector = Collector::start(&rig.config()?.table(&format!("[[plugin]]{entry}")))?;
    handed_over(&mut collector).await?;
    people.insert_one(person("followed")).await?;
    people.update_one(doc! { "_id": "copied" }, doc! { "$set": { "home.zip": "10115", "home.city": "B" } }).await?;
    passed(&rig, &collector).await?;
    let copied = rig.target.client().database("crm").collection::<Document>("people");
    for (id, city) in [("copied", "B"), ("followed", "M")] {
        let masked = doc! { "_id": id, "ssn": "***", "home": { "zip": "***", "city": city } };
        let masked = Some(masked);
        until(&collector, id, async || Ok(copied.find_one(doc! { "_id": id }).await? == masked)).await?;
    }
    anyhow::ensure!(collector.terminate(PATIENCE).await?.success(), "{}", collector.log_end());
    Ok(())
}

/// What a plugin does at the document `{_id: "poison"}` or at any, and the words that the run ends with.
const FAULTS: [(&str, &str); 8] = [
    ("trap-on-poison", "poison found"),
    ("loop-on-poison", "time limit"),
    ("hog-on-poison", "memory limit"),
    ("refuse-poison", "poison refused"),
    ("long-verdict", "column verdict has"),
    ("body-too-long", "claims 200 bytes"),
    ("malformed-body", "malformed BSON"),
    ("changes-id", "changes _id"),
];

#[tokio::test]
async fn plugins_that_fault_stop_the_run_and_lose_nothing() -> Result<()> {
    let rig = Rig::of(Options::guide_source(), Options::guide_target()).await?;
    rig.fill(20).await?;
    let mut collector = Collector::start(&rig.config()?)?;
    handed_over(&mut collector).await?;
    rig.comparison().wait(SENTINEL, PATIENCE).await?;
    anyhow::ensure!(collector.terminate(PATIENCE).await?.success(), "{}", collector.log_end());

    let place = rig.source.dir().join("faulty.wasm");
    put(&place, &files::guest("faulty"))?;
    let before = doc! { "_id": "before" };
    let source = rig.source.client().database("shop").collection::<Document>("c00");
    source.insert_many([before, doc! { "_id": "poison", "poison": true }, doc! { "_id": "behind" }]).await?;
    for (fault, words) in FAULTS {
        let mut bad = Collector::start(&faulty(&rig, &place, fault)?)?;
        let status = bad.wait(PATIENCE).await?;
        anyhow::ensure!(status.code() == Some(1), "{fault}: exit {status}:\n{}", bad.log_end());
        anyhow::ensure!(plain(&bad.log_end()).contains(words), "{fault} does not say {words:?}:\n{}", bad.log_end());
        let passed = rig.target.client().database("shop").collection::<Document>("c00");
        let poison = passed.find_one(doc! { "_id": "poison" }).await?;
        anyhow::ensure!(poison.is_none(), "{fault}: the entry that could not be handled is on the target");
    }
    // Mended: the same file, told to behave.
    let collector = Collector::start(&faulty(&rig, &place, "keep")?)?;
    rig.finish(rig.comparison(), collector, &["are not those of the checkpoint"]).await
}

fn faulty(rig: &Rig, place: &std::path::Path, fault: &str) -> Result<PipelineConfig> {
    // What loops is stopped at its limit; the others must not meet it on a busy machine.
    let limit = if fault.starts_with("loop") { "200ms" } else { "60s" };
    let config = rig.config()?.set("limits.guest_batch_time", limit);
    Ok(config.plugin("faulty", place, &format!("process = \"{fault}\"")))
}

/// Replaces a file in one rename, as a deployment should.
fn put(place: &std::path::Path, bytes: &[u8]) -> Result<()> {
    let beside = place.with_extension("new");
    std::fs::write(&beside, bytes).context("write the plugin")?;
    std::fs::rename(&beside, place).context("put the plugin in place")
}

/// Text without what a log line adds to quotation marks and backslashes.
fn plain(text: &str) -> String {
    text.replace('\\', "")
}
