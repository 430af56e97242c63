//! `cargo xtask test`: every check and test of the repository, in the order in which a failure is cheapest.
//!
//! Formatting and lints first, then the servers, the binaries that the tests run, and the tests. Behind cargo's own
//! lines, which continuous integration counts, stand the seeds of the tests that draw lots (`seed: <test> <number>`)
//! and, once more, what the failed ones said.
//! Nothing is skipped silently: a step that cannot run on this machine says so.

mod failures;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use oplogue_tests::paths;
use oplogue_tests::seed::FILE_VARIABLE;

use failures::Failures;

use crate::{console, plugins, servers, steps, tidy, wasm_std};

/// Tests at once: each waits for its servers much of the time, so two cores carry four.
const THREADS: &str = "4";

/// Versions of source and target that the long run tries besides the default pair.
const PAIRS: [(&str, &str); 6] = [
    ("4.4.2", "4.4.2"),
    ("5.0.4", "5.0.4"),
    ("4.4.2", "6.0.27"),
    ("5.0.4", "6.0.27"),
    ("6.0.27", "5.0.4"),
    ("6.0.27", "4.4.2"),
];

/// What depends on a server's version: the source, the sink, and the collector between the two.
const OF_VERSIONS: [&str; 23] = [
    "sink::",
    "snapshot::",
    "oplog_source::",
    "change_stream::",
    "store::",
    "e2e::chaos",
    "e2e::conflicts",
    "e2e::crash",
    "e2e::ddl",
    "e2e::delay",
    "e2e::failover",
    "e2e::filters",
    "e2e::indexes",
    "e2e::missing",
    "e2e::modes",
    "e2e::network",
    "e2e::parking",
    "e2e::rulings",
    "e2e::silent_loss",
    "e2e::swap",
    "e2e::transactions",
    "e2e::two_way",
    "e2e::unique",
];

/// The pass of the long run that reads change streams, and the variable that asks for it.
const CHANGE_STREAM: &str = "change_stream";
const FETCH_METHOD: &str = "OPLOGUE_FETCH_METHOD";

/// A version whose change streams show DDL and split no large event, and what is tried of them.
const OLD_CHANGE_STREAM: &str = "6.0.5";
const OF_OLD_CHANGE_STREAM: [&str; 7] = [
    "change_stream::",
    "sink::update_oracle",
    "e2e::chaos::chaos_from_a_change_stream",
    "e2e::ddl::everything_from_6_0",
    "e2e::missing",
    "e2e::stream",
    "e2e::transactions::forms",
];

/// How much a long run does of what can be done more or less often, unless the environment says otherwise.
const LONG: [(&str, &str); 3] = [("OPLOGUE_KILLS", "50"), ("OPLOGUE_CHAOS", "20000"), ("OPLOGUE_CASES", "100000")];

/// The same for each further pair of versions.
const OF_EACH_PAIR: [(&str, &str); 2] = [("OPLOGUE_CHAOS", "600"), ("OPLOGUE_CASES", "5000")];

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Also the slow tests: more kills and cases, change streams, older servers (sets OPLOGUE_LONG=1, OPLOGUE_KILLS=50,
    /// OPLOGUE_CHAOS=20000 and OPLOGUE_CASES=100000 unless they are set)
    #[arg(long)]
    long: bool,
    /// Only this pass of the long run: `change_stream`, the same of an older server (`6.0.5`), or a source and a target
    /// such as `6.0.27-4.4.2`
    #[arg(long)]
    pass: Option<String>,
    /// Only the tests: no formatting, lints or tidy checks
    #[arg(long)]
    only_tests: bool,
    /// Run only tests whose name contains this
    filter: Option<String>,
}

/// Runs everything.
pub(crate) fn run(options: &Options) -> Result<()> {
    let everything = options.filter.is_none() && options.pass.is_none();
    if everything && !options.only_tests {
        check()?;
    }
    console::title("servers");
    servers::run(&versions(options.long || options.pass.is_some()))?;
    console::title("build");
    steps::run(&mut steps::cargo(&["build", "--workspace", "--bins"]))?;
    if everything && !options.only_tests {
        guests()?;
    }
    let seeds = paths::target().join("seeds.txt");
    std::fs::write(&seeds, "").context("empty the list of seeds")?;
    // A failure ends nothing: a run of hours says all that it finds.
    let mut failed = Vec::new();
    let mut pass = |title: &str, run: &mut dyn FnMut() -> Result<()>| {
        console::title(title);
        failed.extend(run().err().map(|error| format!("{title}: {error:#}")));
    };
    let mut failures = Failures::default();
    if options.pass.is_none() {
        pass("tests", &mut || every_test(options, &seeds, &mut failures));
    }
    if everything {
        pass("tests of the guests' own code", &mut plugins::test_sources);
    }
    for (title, mut command) in passes(options, &seeds)? {
        pass(&title, &mut || steps::run(&mut command));
    }
    say_seeds(&seeds)?;
    failures.say().iter().for_each(|line| console::say(line));
    anyhow::ensure!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
    Ok(())
}

fn every_test(options: &Options, seeds: &Path, failures: &mut Failures) -> Result<()> {
    let mut test = steps::cargo(&["test", "--workspace", "--no-fail-fast"]);
    if options.long {
        test.env("OPLOGUE_LONG", "1");
        set_unless_given(&mut test, &LONG);
    }
    test.arg("--").args(["--test-threads", THREADS]).args(&options.filter);
    steps::run_watched(test.env(FILE_VARIABLE, seeds), |line| {
        console::say(line);
        failures.line(line);
    })
}

/// The seeds of all tests that drew lots, the passed ones too: what a note on this run can name.
fn say_seeds(file: &Path) -> Result<()> {
    let text = std::fs::read_to_string(file).context("read the list of seeds")?;
    let lines: BTreeSet<&str> = text.lines().collect();
    lines.into_iter().for_each(console::say);
    Ok(())
}

/// What a long run does besides the ordinary tests, or the one pass of it that is asked for.
fn passes(options: &Options, seeds: &Path) -> Result<Vec<(String, Command)>> {
    let wanted = |name: &str| match &options.pass {
        Some(pass) => pass == name,
        None => options.long && options.filter.is_none(),
    };
    let mut found = Vec::new();
    if wanted(CHANGE_STREAM) {
        found.push(("end to end, by change stream".to_owned(), by_change_stream(options, seeds)));
    }
    for (source, target) in PAIRS {
        if wanted(&format!("{source}-{target}")) {
            let command = of_versions(options, (source, target), &OF_VERSIONS, seeds);
            found.push((format!("tests, MongoDB {source} to {target}"), command));
        }
    }
    if wanted(OLD_CHANGE_STREAM) {
        let version = OLD_CHANGE_STREAM;
        let mut command = of_versions(options, (version, version), &OF_OLD_CHANGE_STREAM, seeds);
        command.env(FETCH_METHOD, CHANGE_STREAM);
        found.push((format!("change streams of MongoDB {version}"), command));
    }
    if let Some(pass) = options.pass.as_ref().filter(|_| found.is_empty()) {
        anyhow::bail!("no pass {pass}: there are {CHANGE_STREAM}, {OLD_CHANGE_STREAM} and {PAIRS:?}");
    }
    Ok(found)
}

/// Every end-to-end test once more, with the other way of reading the source. Tests say what they read by oplog only.
fn by_change_stream(options: &Options, seeds: &Path) -> Command {
    let mut test = suite(seeds);
    test.env("OPLOGUE_LONG", "1").env(FETCH_METHOD, CHANGE_STREAM);
    set_unless_given(&mut test, &LONG);
    test.arg(options.filter.as_deref().unwrap_or("e2e::"));
    test
}

/// The part of the suite that a server's version could change, on other versions. Tests say what they leave out where
/// a server lacks it.
fn of_versions(options: &Options, (source, target): (&str, &str), tests: &[&str], seeds: &Path) -> Command {
    let mut test = suite(seeds);
    test.env("OPLOGUE_SOURCE_VERSION", source).env("OPLOGUE_TARGET_VERSION", target);
    test.env("OPLOGUE_MONGOD_VERSION", target);
    set_unless_given(&mut test, &OF_EACH_PAIR);
    match &options.filter {
        Some(filter) => test.arg(filter),
        None => test.args(tests),
    };
    test
}

/// The tests with servers. The whole workspace: a package alone would be built with other features.
fn suite(seeds: &Path) -> Command {
    let mut test = steps::cargo(&["test", "--workspace", "--test", "all"]);
    test.env(FILE_VARIABLE, seeds).arg("--").args(["--test-threads", THREADS, "--nocapture"]);
    test
}

fn set_unless_given(command: &mut Command, values: &[(&str, &str)]) {
    for (name, value) in values.iter().filter(|(name, _)| std::env::var_os(name).is_none()) {
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
