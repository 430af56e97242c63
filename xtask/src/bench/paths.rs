//! What an update costs the target on the fast and on the exact path, and what decoding costs an entry.
//!
//! The measurement is an example of the connectors, run as a program of its own, because xtask links neither the sink
//! nor the decoder. Only the server is started here; the table is the example's.

use anyhow::{Context as _, Result};
use oplogue_tests::servers::{Options, ReplicaSet};

use crate::steps;

/// Builds and runs the measurement, optimised unless the bench itself is being tried.
pub(super) async fn run(debug: bool) -> Result<()> {
    let set = ReplicaSet::start(Options { cache_gb: 1.0, ..Options::default() }.named("paths")).await?;
    let pid = set.pid(0).context("the server runs")?.to_string();
    let uri = set.uri();
    let mut arguments = vec!["run", "--quiet", "-p", "oplogue-connectors", "--example", "paths"];
    arguments.extend((!debug).then_some("--release"));
    arguments.extend(["--", &uri, &pid]);
    let mut command = steps::cargo(&arguments);
    tokio::task::spawn_blocking(move || steps::run(&mut command)).await?
}
