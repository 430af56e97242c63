//! One run of one test, in a process of its own, with a time that it may take.
//!
//! Only an assertion that fails shows a guard, so what counts is the exit code that the test harness has for that and
//! its own count of tests; a crash, a name that nobody has, or silence is something else. A test that takes too long
//! is killed by its number. Its servers end with it, since each has a watchdog; what is left of its process group ends
//! then too, and no other process is looked at.

use std::fmt;
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use oplogue_tests::child::Guarded;
use oplogue_tests::patience;

use super::copy::{Copy, Program};
use super::table::Guard;

/// How a test binary ends when a test has failed.
const FAILED: i32 = 101;

/// Seconds that a test waits for equality and the like before it gives up, the same with and without the guard. Without
/// one most of them wait in vain.
const PATIENCE_S: &str = "45";

/// What the watchdogs of a killed test need to end its servers.
const WATCHDOGS: Duration = Duration::from_secs(1);

/// What became of a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Passes,
    Fails,
    /// It did not end in time.
    Hangs,
    /// The code does not compile without the guard.
    NotBuilt,
    /// It does not pass with all guards either.
    FailsAnyway,
    /// Something that says nothing about the guard.
    Odd(String),
}

impl Verdict {
    /// Whether it shows that the test needs the guard.
    pub(super) fn catches(&self, guard: &Guard) -> bool {
        match self {
            Self::Fails => true,
            Self::Hangs => guard.hangs,
            Self::Passes | Self::NotBuilt | Self::FailsAnyway | Self::Odd(_) => false,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passes => out.write_str("passes"),
            Self::Fails => out.write_str("fails"),
            Self::Hangs => out.write_str("does not end"),
            Self::NotBuilt => out.write_str("does not compile"),
            Self::FailsAnyway => out.write_str("fails with all guards too"),
            Self::Odd(what) => out.write_str(what),
        }
    }
}

/// Runs one test of a guard. Its output goes to the log `<guard>.<test>.log`.
pub(super) fn run(copy: &Copy, program: &Program, guard: &Guard, test: &str) -> Result<Verdict> {
    let path = copy.logs().join(format!("{}.{}.log", guard.name, test.replace("::", ".")));
    let log = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let mut command = Command::new(&program.path);
    command.args(["--exact", test, "--nocapture"]).current_dir(&program.directory);
    command.env("CARGO_TARGET_DIR", copy.target()).env(patience::VARIABLE, PATIENCE_S);
    // Another program has all guards.
    command.env_remove("OPLOGUE_BIN");
    command.stdout(Stdio::from(log.try_clone().context("share the log file")?)).stderr(Stdio::from(log));
    // A group of its own, so that what is left of it can be ended and nothing else is.
    let mut child = Guarded::spawn(command.process_group(0))?;
    let Some(status) = end(&mut child, Duration::from_secs(guard.timeout_s))? else {
        stop(copy, child);
        return Ok(Verdict::Hangs);
    };
    let output = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(verdict(status, &String::from_utf8_lossy(&output)))
}

fn end(child: &mut Guarded, within: Duration) -> Result<Option<ExitStatus>> {
    let started = Instant::now();
    while started.elapsed() < within {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(None)
}

/// Kills a test that takes too long, and what it started. It is not reaped before its group is gone: until then nobody
/// else can have its number.
fn stop(copy: &Copy, child: Guarded) {
    let pid = child.pid();
    child.signal("KILL").ok();
    std::thread::sleep(WATCHDOGS);
    Command::new("kill").args(["-s", "KILL", "--", &format!("-{pid}")]).stderr(Stdio::null()).status().ok();
    drop(child);
    let scratch = std::fs::read_dir(copy.target().join("test-servers")).into_iter().flatten().flatten();
    for dir in scratch.filter(|dir| dir.file_name().to_string_lossy().starts_with(&format!("{pid}-"))) {
        // What stays behind costs disk, never a result.
        std::fs::remove_dir_all(dir.path()).ok();
    }
}

fn verdict(status: ExitStatus, output: &str) -> Verdict {
    let counted = |line: &str| output.lines().any(|found| found.contains(line));
    if status.success() && counted("test result: ok. 1 passed;") {
        Verdict::Passes
    } else if status.code() == Some(FAILED) && counted("test result: FAILED. 0 passed; 1 failed;") {
        Verdict::Fails
    } else if counted("running 0 tests") {
        Verdict::Odd("is no test".to_owned())
    } else {
        Verdict::Odd(format!("ended with {status}"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn only_a_failed_assertion_shows_a_guard() {
        let code = |code: i32| ExitStatus::from_raw(code << 8);
        let failed = "running 1 test\ntest result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured";
        assert_eq!(verdict(code(101), failed), Verdict::Fails);
        assert_eq!(verdict(code(0), "running 1 test\ntest result: ok. 1 passed; 0 failed"), Verdict::Passes);
        let none = "running 0 tests\ntest result: ok. 0 passed; 0 failed";
        assert_eq!(verdict(code(0), none), Verdict::Odd("is no test".to_owned()));
        assert!(matches!(verdict(ExitStatus::from_raw(9), failed), Verdict::Odd(_)), "killed");
        assert!(matches!(verdict(code(101), "error: could not compile"), Verdict::Odd(_)));
    }
}
