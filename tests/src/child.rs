//! A child process that cannot outlive us.
//!
//! A test that fails, panics or is itself killed must leave no server behind. Dropping the handle kills the
//! child by its pid; for the case in which nothing is dropped, a small shell waits on a pipe whose other end
//! only this process holds, and kills the child when the pipe closes. `PDEATHSIG` would be shorter but fires
//! when the *thread* that spawned dies, and test threads end early. No process is ever killed by name.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// A running child and its watchdog.
#[derive(Debug)]
pub struct Guarded {
    child: Child,
    watchdog: Child,
}

impl Guarded {
    /// Spawns the command, its stdin closed.
    ///
    /// # Errors
    /// When the program or the watchdog's `sh` cannot be started.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command.stdin(Stdio::null()).spawn().with_context(|| format!("start {program}"))?;
        let watchdog = Command::new("sh")
            .args(["-c", "trap '' INT TERM; read -r _; kill -KILL \"$1\" 2>/dev/null", "watchdog"])
            .arg(child.id().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match watchdog {
            Ok(watchdog) => Ok(Self { child, watchdog }),
            Err(error) => {
                child.kill().ok();
                child.wait().ok();
                Err(error).context("start the watchdog shell")
            }
        }
    }

    /// The child's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills the child with SIGKILL and reaps it; a child that has ended already is no error.
    pub fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }

    /// Sends a signal by name, such as `TERM`, `STOP` or `HUP`.
    ///
    /// # Errors
    /// When the child is gone.
    pub fn signal(&self, name: &str) -> Result<()> {
        let pid = self.pid().to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).stderr(Stdio::null()).status()?;
        anyhow::ensure!(status.success(), "send SIG{name} to process {pid}: it has ended");
        Ok(())
    }

    /// The exit status, if the child has ended.
    ///
    /// # Errors
    /// When the status cannot be read.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When the child still runs at the deadline.
    pub async fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            anyhow::ensure!(started.elapsed() < timeout, "process {} still runs after {timeout:?}", self.pid());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // The watchdog goes first: its child's pid may belong to somebody else once we have reaped it.
        self.watchdog.kill().ok();
        self.watchdog.wait().ok();
        self.kill();
    }
}
