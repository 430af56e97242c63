//! One `mongod` process: its command line, its port, its log, its end.
//!
//! It knows nothing of replica sets beyond the name on the command line. Its port lies below those that the system
//! gives to outgoing connections, so that no client takes it while the member is down. The process dies with its
//! handle (see `child`).

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::{Certificates, Options};
use crate::child::Guarded;
use crate::paths;
use crate::proxy::Proxy;

#[derive(Debug)]
pub(super) struct Member {
    /// Where the process listens.
    pub(super) port: u16,
    /// What stands before it, and is what the set's configuration names.
    pub(super) proxy: Option<Proxy>,
    dir: PathBuf,
    process: Option<Guarded>,
}

impl Member {
    pub(super) fn start(options: &Options, dir: PathBuf, key: Option<&Path>) -> Result<Self> {
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let mut member = Self { port: free_port()?, proxy: None, dir, process: None };
        member.restart(options, key)?;
        Ok(member)
    }

    pub(super) fn restart(&mut self, options: &Options, key: Option<&Path>) -> Result<()> {
        let program = program(&options.version)?;
        let mut command = Command::new(program);
        command.args(self.arguments(options, key)).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(Guarded::spawn(&mut command)?);
        Ok(())
    }

    /// The port that the set's configuration and connection strings name.
    pub(super) fn known_port(&self) -> u16 {
        self.proxy.as_ref().map_or(self.port, Proxy::port)
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Guarded::pid)
    }

    pub(super) fn kill(&mut self) {
        self.process = None;
    }

    pub(super) fn signal(&self, name: &str) -> Result<()> {
        self.process.as_ref().context("the member is not running")?.signal(name)
    }

    /// Waits until the port accepts a connection, or says why it never will.
    pub(super) async fn wait_up(&mut self, timeout: Duration) -> Result<()> {
        let started = Instant::now();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        loop {
            let process = self.process.as_mut().context("the member is not running")?;
            if let Some(status) = process.try_wait()? {
                anyhow::bail!("mongod on port {} ended with {status}:\n{}", self.port, self.log_end());
            }
            if TcpStream::connect_timeout(&address, Duration::from_millis(100)).is_ok() {
                return Ok(());
            }
            anyhow::ensure!(started.elapsed() < timeout, "mongod does not listen:\n{}", self.log_end());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn arguments(&self, options: &Options, key: Option<&Path>) -> Vec<OsString> {
        let mut list: Vec<OsString> = Vec::new();
        let mut pair = |name: &str, value: OsString| list.extend([OsString::from(name), value]);
        pair("--replSet", options.name.clone().into());
        pair("--port", self.port.to_string().into());
        pair("--bind_ip", "127.0.0.1".into());
        pair("--dbpath", self.dir.clone().into());
        pair("--logpath", self.dir.join("mongod.log").into());
        pair("--wiredTigerCacheSizeGB", options.cache_gb.to_string().into());
        pair("--setParameter", "enableTestCommands=1".into());
        pair("--setParameter", "diagnosticDataCollectionEnabled=false".into());
        // A transaction of many statements takes its time on a busy machine.
        pair("--setParameter", "transactionLifetimeLimitSeconds=600".into());
        for (name, value) in &options.parameters {
            pair("--setParameter", format!("{name}={value}").into());
        }
        if let Some(key) = key {
            pair("--keyFile", key.into());
        }
        if let Some(size) = options.oplog_mb {
            pair("--oplogSize", size.to_string().into());
        }
        list.extend(["--logappend", "--nounixsocket"].map(OsString::from));
        let tls = options.tls.as_ref().map(Certificates::arguments).unwrap_or_default();
        list.extend(options.arguments.iter().chain(&tls).map(OsString::from));
        list
    }

    fn log_end(&self) -> String {
        let log = std::fs::read_to_string(self.dir.join("mongod.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(12);
        lines.get(from..).unwrap_or_default().join("\n")
    }
}

/// Where test servers listen: below 32768, from where on Linux takes the ports of outgoing connections. Thousands of
/// those are open while the tests run, and each can take the port of a server that is being restarted.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// A port of 127.0.0.1 that nobody listens on now and that this process has not given away lately.
///
/// # Errors
/// When the machine has none left.
pub fn free_port() -> Result<u16> {
    static STEPS: AtomicU16 = AtomicU16::new(0);
    // Each test process goes its own way round, from a place that its number decides.
    let first = std::process::id().wrapping_mul(2_654_435_761) >> 16;
    let count = u32::from(PORTS.end - PORTS.start);
    for _ in 0..count {
        let step = u32::from(STEPS.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + u16::try_from((first + step) % count).context("a port has 16 bits")?;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no free port between {} and {}", PORTS.start, PORTS.end)
}

/// The server program: `MONGOD` in the environment, else the one that xtask installed.
fn program(version: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("MONGOD") {
        return Ok(PathBuf::from(path));
    }
    let path = paths::server(version).join("mongod");
    anyhow::ensure!(
        path.exists(),
        "no MongoDB server {version} at {}: run `cargo xtask servers {version}`",
        path.display()
    );
    Ok(path)
}
