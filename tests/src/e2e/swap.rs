//! Replacing a plugin's file while changes stream through it.
//!
//! The example plugin masks a field; its second version masks it differently. Every document on the target must
//! have been through one of the two, everything else in it must be equal, and from the swap on only the second
//! version speaks. That a kill during a swap lets no unmasked value through is shown by `crash`.

use anyhow::Result;
use bson::{Document, doc};
use oplogue_tests::collector::Collector;
use oplogue_tests::example::{self, FIELD, MaskField};

use super::rig::{PATIENCE, Rig, handed_over};

#[tokio::test]
async fn a_swapped_plugin_takes_over_at_a_batch_boundary() -> Result<()> {
    let rig = Rig::start().await?;
    rig.fill(60).await?;
    let plugin = MaskField::install(rig.source.dir())?;
    let config = plugin.join(rig.config()?);
    let mut load = rig.start_load();
    let mut collector = Collector::start(&config)?;
    handed_over(&mut collector).await?;
    let first = mask_of_a_new_document(&rig, "first").await?;
    plugin.put(2)?;
    let second = wait_for_another_mask(&rig, &first).await?;
    let done = load.totals().done;
    load.reach(done + 1_000, PATIENCE).await?;
    assert_eq!(mask_of_a_new_document(&rig, "last").await?, second);
    load.stop().await?;
    finish(&rig, collector, &[]).await
}

async fn mask_of_a_new_document(rig: &Rig, id: &str) -> Result<String> {
    let document = doc! { "_id": format!("probe-{id}"), FIELD: "probe@example.test" };
    let filter = doc! { "_id": document.get_str("_id")? };
    rig.source.client().database("shop").collection("c02").insert_one(document).await?;
    let target = rig.target.client().database("shop").collection::<Document>("c02");
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = target.find_one(filter.clone()).await? {
            return Ok(found.get(FIELD).map(ToString::to_string).unwrap_or_default());
        }
        anyhow::ensure!(std::time::Instant::now() < deadline, "the probe {id} never came");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

async fn wait_for_another_mask(rig: &Rig, first: &str) -> Result<String> {
    let deadline = std::time::Instant::now() + PATIENCE;
    for number in 0_u32.. {
        let mask = mask_of_a_new_document(rig, &number.to_string()).await?;
        if mask != first {
            return Ok(mask);
        }
        anyhow::ensure!(std::time::Instant::now() < deadline, "the second version never took over");
    }
    anyhow::bail!("out of numbers")
}

/// Equal but for the masked field, and nothing unmasked.
pub(super) async fn finish(rig: &Rig, collector: Collector, allowed: &[&str]) -> Result<()> {
    let comparison = rig.comparison().ignoring_field(FIELD);
    rig.finish(comparison, collector, allowed).await?;
    for namespace in &rig.load.namespaces {
        let unmasked = example::unmasked(&rig.target.client(), namespace).await?;
        anyhow::ensure!(unmasked == 0, "{unmasked} unmasked documents in {namespace}");
    }
    Ok(())
}
