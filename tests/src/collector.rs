//! The real `oplogue` binary as a child of a test: started with a configuration, watched, killed, started again.
//!
//! Crashes, exit codes and log lines are only real in a process of its own. Its output goes to a file in a
//! scratch directory, across restarts, and a test that ends well must also find that file free of warnings
//! nobody expected. The harness never builds the binary: whoever runs the tests has done so.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::child::Guarded;
use crate::paths::{self, Scratch};
use crate::patience;

mod config;
mod http;

pub use config::{PipelineConfig, by_change_stream};
pub use http::get as http_get;
pub use http::post as http_post;

/// The line users of MongoShake look for at the hand-over.
pub const HAND_OVER: &str = "finish full sync, start incr sync";

/// What a run says when something takes longer than it usually does.
const SLOW: &str = "still waiting";

/// Warned of after a kill: on a busy machine the connections of the killed run outlive it for a while.
const EARLIER_RUN: &str = "an earlier run of this job";

/// A collector, running or not.
#[derive(Debug)]
pub struct Collector {
    program: PathBuf,
    process: Option<Guarded>,
    port: Option<u16>,
    arguments: Vec<String>,
    /// Some run of it was killed.
    killed: bool,
    // After the process, so that it is dead when its files go.
    scratch: Scratch,
}

impl Collector {
    /// Writes the configuration to a scratch directory and runs `oplogue run -c` on it.
    ///
    /// # Errors
    /// When the binary is not there or does not start. A refused configuration shows as an early exit.
    pub fn start(config: &PipelineConfig) -> Result<Self> {
        let mut collector = Self::prepare(&config.to_toml()?, config.incr_port())?;
        collector.run()?;
        Ok(collector)
    }

    /// Runs the collector on a configuration given as text.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_toml(toml: &str) -> Result<Self> {
        let mut collector = Self::prepare(toml, None)?;
        collector.run()?;
        Ok(collector)
    }

    /// Writes MongoShake's `key = value` form and runs `oplogue -conf=collector.conf -verbose` on it, as MongoShake's
    /// guide does. The log file of the configuration lies in [`Self::dir`]; [`Self::log`] is what goes to the screen.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_conf(conf: &str) -> Result<Self> {
        let scratch = Scratch::new("collector")?;
        std::fs::write(scratch.path().join("collector.conf"), conf).context("write collector.conf")?;
        let arguments = ["-conf=collector.conf", "-verbose"].map(str::to_owned).to_vec();
        let mut collector = Self { program: program()?, process: None, port: None, arguments, killed: false, scratch };
        collector.run()?;
        Ok(collector)
    }

    /// The same with another program, such as a release build.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_program(program: &Path, config: &PipelineConfig) -> Result<Self> {
        let mut collector = Self::prepare(&config.to_toml()?, config.incr_port())?;
        program.clone_into(&mut collector.program);
        collector.run()?;
        Ok(collector)
    }

    fn prepare(toml: &str, port: Option<u16>) -> Result<Self> {
        let scratch = Scratch::new("collector")?;
        let config = scratch.path().join("collector.toml");
        std::fs::write(&config, toml).context("write the collector's configuration")?;
        let arguments = vec!["run".to_owned(), "-c".to_owned(), config.to_string_lossy().into_owned()];
        Ok(Self { program: program()?, process: None, port, arguments, killed: false, scratch })
    }

    /// Starts the collector (again) with the same configuration; its log goes on in the same file.
    ///
    /// # Errors
    /// When it runs already or the program does not start.
    pub fn run(&mut self) -> Result<()> {
        anyhow::ensure!(self.process.is_none(), "the collector runs already");
        let log = OpenOptions::new().create(true).append(true).open(self.log_path()).context("open the log")?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).current_dir(self.scratch.path()).env("NO_COLOR", "1");
        command.stdout(Stdio::from(duplicate(&log)?)).stderr(Stdio::from(log));
        self.process = Some(Guarded::spawn(&mut command)?);
        Ok(())
    }

    /// Kills the collector with SIGKILL, as a power cut would.
    pub fn kill9(&mut self) {
        self.process = None;
        self.killed = true;
    }

    /// Asks the collector to stop (SIGTERM) and waits for its end.
    ///
    /// # Errors
    /// When it does not run, or still runs at the deadline; it is killed then.
    pub async fn terminate(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.signal("TERM")?;
        self.wait(timeout).await
    }

    /// Waits until the collector ends by itself.
    ///
    /// # Errors
    /// When it does not run, or still runs at the deadline; it is killed then.
    pub async fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let mut process = self.process.take().context("the collector does not run")?;
        process
            .wait(patience::at_most(timeout))
            .await
            .with_context(|| format!("its log ends with:\n{}", self.log_end()))
    }

    /// Sends a signal by name, such as `HUP`.
    ///
    /// # Errors
    /// When the collector does not run.
    pub fn signal(&self, name: &str) -> Result<()> {
        self.process.as_ref().context("the collector does not run")?.signal(name)
    }

    /// The process id while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Guarded::pid)
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When the process cannot be asked.
    pub fn is_running(&mut self) -> Result<bool> {
        match &mut self.process {
            Some(process) => Ok(process.try_wait()?.is_none()),
            None => Ok(false),
        }
    }

    /// Waits until the log contains the text, counting from the start of the file.
    ///
    /// # Errors
    /// When the collector ends first or the deadline passes; the message carries the end of the log.
    pub async fn wait_log(&mut self, text: &str, timeout: Duration) -> Result<()> {
        self.wait_log_times(text, 1, timeout).await
    }

    /// Waits until the log contains the text that often: after a restart the earlier lines are still there.
    ///
    /// # Errors
    /// As [`Self::wait_log`].
    pub async fn wait_log_times(&mut self, text: &str, times: usize, timeout: Duration) -> Result<()> {
        let (started, timeout) = (Instant::now(), patience::at_most(timeout));
        while self.log().matches(text).count() < times {
            let running = self.is_running()?;
            // One more look: the line may have been the last one before the end.
            if !running && self.log().matches(text).count() < times {
                anyhow::bail!("the collector ended without {text:?}:\n{}", self.log_end());
            }
            let waited = started.elapsed();
            anyhow::ensure!(waited < timeout, "no {text:?} within {timeout:?}:\n{}", self.log_end());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Everything logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(self.log_path()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The last lines of the log.
    #[must_use]
    pub fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n")
    }

    /// The file with the collector's stdout and stderr.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.scratch.path().join("collector.log")
    }

    /// A directory for the files of this run, such as plugins to swap.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// The port of the incremental monitor; none where the configuration was given as text.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Reads a page of the monitor, such as `/repl` or `/metrics`.
    ///
    /// # Errors
    /// When nobody listens or the answer is no 200.
    pub async fn get(&self, path: &str) -> Result<String> {
        http::get(self.port.context("the monitor has no port")?, path).await
    }

    /// Warnings, errors and panics in the log that contain none of the allowed texts. After [`Self::kill9`] a run may
    /// warn that it waits for the end of the earlier one. That something takes long is the machine's fault: what never ends
    /// meets a deadline.
    #[must_use]
    pub fn unexpected_warnings(&self, allowed: &[&str]) -> Vec<String> {
        let log = self.log();
        let quiet = |line: &str| line.contains(SLOW) || (self.killed && line.contains(EARLIER_RUN));
        let loud = log.lines().filter(|line| is_loud(line) && !quiet(line));
        loud.filter(|line| !allowed.iter().any(|text| line.contains(text))).map(str::to_owned).collect()
    }

    /// Fails on warnings, errors and panics in the log that contain none of the allowed texts.
    ///
    /// # Errors
    /// With the lines.
    pub fn assert_no_unexpected_warnings(&self, allowed: &[&str]) -> Result<()> {
        let found = self.unexpected_warnings(allowed);
        anyhow::ensure!(found.is_empty(), "unexpected in the collector's log:\n{}", found.join("\n"));
        Ok(())
    }
}

fn duplicate(file: &File) -> Result<File> {
    file.try_clone().context("share the log file")
}

/// A line of level WARN or ERROR in either log format, or a panic. In the text format the level stands in
/// brackets behind the time, and only the first words are looked at: a message may say the word.
fn is_loud(line: &str) -> bool {
    let level = line.split_whitespace().take(4).any(|word| matches!(word, "[WARN]" | "[ERROR]"));
    let json = ["WARN", "ERROR"].iter().any(|level| line.contains(&format!("\"level\":\"{level}\"")));
    level || json || line.contains("panicked at")
}

/// `OPLOGUE_BIN`, else the binary beside the running program (`target/<profile>`), else the dev build's.
///
/// # Errors
/// When none of them is there.
pub fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("OPLOGUE_BIN") {
        return Ok(PathBuf::from(path));
    }
    let own = std::env::current_exe().context("find the running program")?;
    let beside = own.ancestors().skip(1).take(2).map(|dir| dir.join("oplogue"));
    let dev = paths::target().join("debug").join("oplogue");
    let found = beside.chain([dev]).find(|path| path.is_file());
    found.context("no oplogue binary: run `cargo build --workspace --bins` or set OPLOGUE_BIN")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_seen_in_both_log_formats() {
        assert!(is_loud("[2026-01-01 00:00:00.000 UTC] [WARN] slow sink"));
        assert!(is_loud(r#"{"timestamp":"x","level":"ERROR","fields":{}}"#));
        assert!(is_loud("thread 'main' panicked at src/main.rs:1:1"));
        assert!(!is_loud("[2026-01-01 00:00:00.000 UTC] [INFO] said [WARN]"));
    }
}
