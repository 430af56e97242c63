//! `cargo xtask guards`: shows, for each guard against silent loss, the test that fails when the guard is taken out.
//!
//! A test that passes says little of a guard that it never needed, and a guard that no test needs is gone with the next
//! clean-up. So `tests/guards.toml` names the text of each guard and the tests that miss it, and this command takes one
//! guard after the other out of a copy of HEAD, builds, and demands that those tests fail; first it demands that all of
//! them pass while nothing is missing. It never touches a file of the checkout, and it ends no process that it did not
//! start.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};

use crate::{console, servers};

mod table;

mod copy;

mod trial;

use copy::{Copy, Program};
use table::Guard;
use trial::Verdict;

/// Which guards are tried.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only guards whose name contains one of these
    filters: Vec<String>,
}

/// Tries the guards, one after the other.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut guards = table::read()?;
    let wanted = |guard: &Guard| {
        options.filters.is_empty() || options.filters.iter().any(|filter| guard.name.contains(filter.as_str()))
    };
    guards.retain(wanted);
    anyhow::ensure!(!guards.is_empty(), "no guard of {} has such a name", table::FILE);
    // Side by side, the guards of one package cost no build of what lies below it.
    guards.sort_by(|a, b| (&a.package, &a.file).cmp(&(&b.package, &b.file)));
    servers::run(&[])?;
    let copy = Copy::of_head()?;
    // A stale entry shows at once, not after an hour.
    guards.iter().try_for_each(|guard| copy.find(guard))?;
    console::title(&format!("with all guards: {}", copy.commit()));
    let useless = control(&copy, &guards)?;
    console::title("without one guard");
    let mut missed = Vec::new();
    for guard in &guards {
        console::note(&format!("{} ({})", guard.name, guard.stands_for));
        for (test, verdict) in copy.without(guard, || try_tests(&copy, guard))? {
            let verdict = if useless.contains(&guard.shown(&test)) { Verdict::FailsAnyway } else { verdict };
            let caught = verdict.catches(guard);
            console::say(&line(guard, &test, &verdict, caught));
            if !caught {
                missed.push(format!("{}: {test}", guard.name));
            }
        }
    }
    let logs = copy.logs().display();
    anyhow::ensure!(missed.is_empty(), "{} not caught (logs are in {logs}):\n{}", missed.len(), missed.join("\n"));
    Ok(())
}

fn line(guard: &Guard, test: &str, verdict: &Verdict, caught: bool) -> String {
    let word = match (verdict, caught) {
        (Verdict::Hangs, true) => "fails without it (hangs)".to_owned(),
        (_, true) => "fails without it".to_owned(),
        (Verdict::Passes, false) => "NOT CAUGHT".to_owned(),
        (verdict, false) => format!("NOT CAUGHT: {verdict}"),
    };
    format!("{:<36}  {:<100}  {word}", guard.name, guard.shown(test))
}

/// Runs every named test while nothing is missing. Returns those that do not pass: they would show nothing.
fn control(copy: &Copy, guards: &[Guard]) -> Result<BTreeSet<String>> {
    let mut useless = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut built: Option<(Option<&str>, Program)> = None;
    for guard in guards {
        let package = guard.package.as_deref();
        let program = match built.take() {
            Some((of, program)) if of == package => program,
            Some(_) | None => copy.build(package, "with-all").context("build with all guards")?,
        };
        for test in guard.tests.iter().filter(|test| seen.insert(guard.shown(test))) {
            let verdict = trial::run(copy, &program, guard, test)?;
            if verdict == Verdict::Passes {
                console::note(&format!("{} passes", guard.shown(test)));
            } else {
                console::complain(&format!("{} {verdict} with all guards in place", guard.shown(test)));
                useless.insert(guard.shown(test));
            }
        }
        built = Some((package, program));
    }
    Ok(useless)
}

/// Builds and runs the tests of a guard that is missing now.
fn try_tests(copy: &Copy, guard: &Guard) -> Result<Vec<(String, Verdict)>> {
    let program = match copy.build(guard.package.as_deref(), &guard.name) {
        Ok(program) => program,
        Err(error) => {
            console::complain(&format!("{error:#}"));
            return Ok(guard.tests.iter().map(|test| (test.clone(), Verdict::NotBuilt)).collect());
        }
    };
    let run = |test: &String| Ok((test.clone(), trial::run(copy, &program, guard, test)?));
    guard.tests.iter().map(run).collect()
}
