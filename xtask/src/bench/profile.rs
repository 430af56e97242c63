//! Where the collector's time goes: its own profiler, asked while it catches up.
//!
//! The stacks come collapsed from `system_profile_port`. Each sample belongs to the innermost frame of a package that is
//! listed here, so what the driver does for the sink counts as the driver's. The shares explain the processor time that
//! the table shows. Looking up the names costs the collector seconds of processor time and hundreds of megabytes, so the
//! table of a profiled run is for nothing else.

use std::collections::BTreeMap;

use anyhow::Result;
use oplogue_tests::collector::http_get;

use crate::console;

/// How long stacks are sampled: a catch-up of some hundred thousand operations takes about as long.
const SECONDS: u64 = 5;

/// Whose frames they are, by what their names contain; the first that fits counts.
const OWNERS: [(&str, &str); 14] = [
    ("oplogue_engine::decode", "decode oplog entries"),
    ("oplogue_plugin_runtime", "plugin chain"),
    ("wasmtime", "plugin chain"),
    ("oplogue_engine::schedule", "schedule and coalesce"),
    ("oplogue_engine::pipeline", "schedule and coalesce"),
    ("oplogue_engine::model::key", "schedule and coalesce"),
    ("oplogue_engine", "engine, other"),
    ("oplogue_connectors::mongodb::patch", "compile updates"),
    ("oplogue_connectors::mongodb::oplog", "read: ours"),
    ("oplogue_connectors", "write: ours"),
    ("mongodb::", "driver"),
    ("bson::", "driver"),
    ("tokio::", "runtime and sockets"),
    ("mio::", "runtime and sockets"),
];

/// Samples and prints the shares; nothing without a port.
pub(super) async fn take(port: Option<u16>) -> Result<()> {
    let Some(port) = port else { return Ok(()) };
    let stacks = http_get(port, &format!("/debug/profile?seconds={SECONDS}")).await?;
    let mut shares: BTreeMap<&str, u32> = BTreeMap::new();
    for line in stacks.lines() {
        let Some((stack, count)) = line.rsplit_once(' ') else { continue };
        *shares.entry(owner(stack)).or_default() += count.parse::<u32>().unwrap_or_default();
    }
    let total: u32 = shares.values().sum();
    let mut shares: Vec<_> = shares.into_iter().collect();
    shares.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    console::say(&format!("profile, {total} samples:"));
    for (name, count) in shares {
        console::say(&format!("  {:>5.1} %  {name}", f64::from(count) * 100.0 / f64::from(total.max(1))));
    }
    Ok(())
}

fn owner(stack: &str) -> &'static str {
    let frames = stack.rsplit(';');
    let known = frames.filter_map(|frame| OWNERS.iter().find(|(part, _)| frame.contains(part)));
    known.map(|(_, owner)| *owner).next().unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_belongs_to_the_innermost_known_frame() {
        assert_eq!(owner("oplogue;main;oplogue_connectors::mongodb::command::run;mongodb::client;memcpy"), "driver");
        assert_eq!(owner("oplogue;oplogue_engine::pipeline::run;oplogue_engine::decode::step"), "decode oplog entries");
        assert_eq!(owner("oplogue;start_thread"), "other");
    }
}
