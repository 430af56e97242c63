//! `cargo xtask test`: every check and test of the repository, in the order in which a failure is cheapest.
//!
//! Formatting and lints first, then the servers, the binaries that the tests run, and the tests. Behind cargo's own
//! lines, which continuous integration counts, stand the seeds of the tests that draw lots (`seed: <test> <number>`).
//! Nothing is skipped silently: a step that cannot run on this machine says so.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result};
use oplogue_tests::paths;
use oplogue_tests::seed::FILE_VARIABLE;

use crate::{console, plugins, servers, steps, tidy, wasm_std};

/// Versions of source and target that the long run tries besides the default pair.
const PAIRS: [(&str, &str); 4] = [("4.4.2", "4.4.2"), ("5.0.4", "5.0.4"), ("4.4.2", "6.0.27"), ("6.0.27", "5.0.4")];

/// What depends on a server's version: the source, the sink, and the collector between the two.
const OF_VERSIONS: [&str; 7] =
    ["sink::", "snapshot::", "oplog_source::", "e2e::modes", "e2e::crash", "e2e::ddl", "e2e::missing"];

/// (document, update) pairs of the property test of updates in a long run, and for each further pair of versions.
const CASES: &str = "100000";
const CASES_OF_VERSIONS: &str = "5000";

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Also the slow tests: more kills and cases, older servers (sets OPLOGUE_LONG=1, OPLOGUE_KILLS=50,
    /// OPLOGUE_CHAOS=20000 and OPLOGUE_CASES=100000 unless they are set)
    #[arg(long)]
    long: bool,
    /// Only the tests: no formatting, lints or tidy checks
    #[arg(long)]
    only_tests: bool,
    /// Run only tests whose name contains this
    filter: Option<String>,
}

/// Runs everything.
pub(crate) fn run(options: &Options) -> Result<()> {
    let everything = !options.only_tests && options.filter.is_none();
    if everything {
        check()?;
    }
    console::title("servers");
    servers::run(&versions(options.long))?;
    console::title("build");
    steps::run(&mut steps::cargo(&["build", "--workspace", "--bins"]))?;
    if everything {
        guests()?;
    }
    console::title("tests");
    let mut test = steps::cargo(&["test", "--workspace", "--no-fail-fast"]);
    if options.long {
        test.env("OPLOGUE_LONG", "1");
        set_unless_given(&mut test, "OPLOGUE_KILLS", "50");
        set_unless_given(&mut test, "OPLOGUE_CHAOS", "20000");
        set_unless_given(&mut test, "OPLOGUE_CASES", CASES);
    }
    test.arg("--").args(["--test-threads", "2"]);
    test.args(&options.filter);
    let seeds = paths::target().join("seeds.txt");
    std::fs::write(&seeds, "").context("empty the list of seeds")?;
    let mut tested = steps::run(test.env(FILE_VARIABLE, &seeds));
    if tested.is_ok() && options.long && options.filter.is_none() {
        tested = by_change_stream(&seeds).and_then(|()| older_servers(&seeds));
    }
    say_seeds(&seeds)?;
    tested
}

/// The seeds of all tests that drew lots, the passed ones too: what a note on this run can name.
fn say_seeds(file: &Path) -> Result<()> {
    let text = std::fs::read_to_string(file).context("read the list of seeds")?;
    let lines: BTreeSet<&str> = text.lines().collect();
    lines.into_iter().for_each(console::say);
    Ok(())
}

/// Every end-to-end test once more, with the other way of reading the source.
fn by_change_stream(seeds: &Path) -> Result<()> {
    console::title("end to end, by change stream");
    let mut test = steps::cargo(&["test", "-p", "oplogue-tests", "--test", "all"]);
    test.env("OPLOGUE_LONG", "1").env("OPLOGUE_FETCH_METHOD", "change_stream").env(FILE_VARIABLE, seeds);
    test.arg("--").args(["--test-threads", "2", "e2e::"]);
    steps::run(&mut test)
}

/// The part of the suite that a server's version could change, on other versions. Tests say what they leave out where
/// a server lacks it.
fn older_servers(seeds: &Path) -> Result<()> {
    for (source, target) in PAIRS {
        console::title(&format!("tests, MongoDB {source} to {target}"));
        let mut test = steps::cargo(&["test", "-p", "oplogue-tests", "--test", "all"]);
        test.env("OPLOGUE_SOURCE_VERSION", source).env("OPLOGUE_TARGET_VERSION", target);
        test.env("OPLOGUE_MONGOD_VERSION", target).env(FILE_VARIABLE, seeds);
        set_unless_given(&mut test, "OPLOGUE_CASES", CASES_OF_VERSIONS);
        test.arg("--").args(["--test-threads", "2", "--nocapture"]).args(OF_VERSIONS);
        steps::run(&mut test)?;
    }
    Ok(())
}

fn set_unless_given(command: &mut std::process::Command, name: &str, value: &str) {
    if std::env::var_os(name).is_none() {
        command.env(name, value);
    }
}

fn check() -> Result<()> {
    console::title("tidy");
    tidy::run()?;
    console::title("format");
    steps::run(&mut steps::cargo(&["fmt", "--all", "--check"]))?;
    console::title("lints");
    let lints = ["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    steps::run(&mut steps::cargo(&lints))
}

/// Rebuilds the guests and tests the fresh files, where guests can be built; the committed ones are tested anyway.
fn guests() -> Result<()> {
    console::title("guests");
    match wasm_std::ensure() {
        Ok(_) => plugins::run(plugins::Options { check: true }),
        Err(error) => {
            console::note(&format!("not rebuilt, the committed files are tested: {error:#}"));
            Ok(())
        }
    }
}

fn versions(long: bool) -> Vec<String> {
    let all = if long { &["6.0.27", "5.0.4", "4.4.2", "6.0.5"][..] } else { &["6.0.27", "5.0.4", "4.4.2"] };
    all.iter().map(|version| (*version).to_owned()).collect()
}
