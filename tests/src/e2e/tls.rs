//! Encrypted connections on both sides, with an authority of their own.
//!
//! The servers take nothing but TLS, so that a run which ends equal proves that every connection was encrypted. An
//! authority that did not sign the server's certificate is named as the reason, on the source at once and on the
//! target while the run tries again.

use anyhow::Result;
use bson::doc;
use oplogue_tests::collector::{Collector, PipelineConfig};
use oplogue_tests::servers::{Certificates, Options};

use super::rig::{PATIENCE, Rig, handed_over};

/// The guide's way: the authority is a key of the file and stands in no connection string.
fn config(rig: &Rig, source: &Certificates, target: &Certificates) -> Result<PipelineConfig> {
    let bare = |uri: String| uri.split("&tls=").next().map(str::to_owned).unwrap_or_default();
    let path = |authority: &Certificates| authority.authority().display().to_string();
    let config = rig.config()?.set("mongo_urls", bare(rig.source.uri_as_user()));
    let config = config.set("checkpoint.storage.url", bare(rig.source.uri_as_user()));
    let config = config.set("tunnel.address", bare(rig.target.uri_as_user()));
    let config = config.set("mongo_ssl_root_ca_file", path(source));
    Ok(config.set("tunnel.mongo_ssl_root_ca_file", path(target)))
}

#[tokio::test]
async fn a_run_over_tls_and_one_with_a_wrong_authority() -> Result<()> {
    let (authority, other) = (Certificates::generate()?, Certificates::generate()?);
    let tls = Some(authority.clone());
    let rig =
        Rig::of(Options { tls: tls.clone(), ..Options::guide_source() }, Options { tls, ..Options::guide_target() })
            .await?;
    rig.fill(20).await?;

    let mut wrong = Collector::start(&config(&rig, &other, &authority)?)?;
    let status = wrong.wait(PATIENCE).await?;
    anyhow::ensure!(!status.success() && wrong.log_end().contains("certificate"), "{status}:\n{}", wrong.log_end());
    let mut wrong = Collector::start(&config(&rig, &authority, &other)?)?;
    wrong.wait_log("certificate", PATIENCE).await?;
    wrong.kill9();
    let untouched = rig.target.client().database("shop").list_collection_names().await?;
    anyhow::ensure!(untouched.is_empty(), "{untouched:?}");

    let mut load = rig.start_load();
    let mut collector = Collector::start(&config(&rig, &authority, &authority)?)?;
    handed_over(&mut collector).await?;
    load.reach(load.totals().done + 500, PATIENCE).await?;
    load.stop().await?;
    let here = rig.source.client().database("shop").collection("c00");
    here.insert_one(doc! { "_id": "the last one" }).await?;
    rig.finish(rig.comparison(), collector, &["an earlier full sync did not finish"]).await
}
