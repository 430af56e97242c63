//! New generations while the stream runs: watching files, and the log of what became of each change.
//!
//! Directories are watched, not files, since a careful author replaces a file by renaming; a poll stands behind it
//! for file systems that send no notices. A file is loaded when its bytes stood still, on this thread, so compiling
//! never delays a batch. A refused file leaves the running generation alone and is not tried again until it changes.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use oplogue_engine::error::{Error, Kind, Result, Side};

use crate::chain::{Chain, lock};
use crate::load::sha256;
use crate::spec::PluginSource;

const EVENTS_MAX: usize = 256;

/// What became of a changed plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReloadOutcome {
    /// It runs, on trial at first.
    Activated { generation: u64 },
    /// It was not loaded; the running generation goes on.
    Refused { reason: String },
    /// It faulted on trial and the former generation came back.
    RolledBack { from: u64, to: u64, reason: String },
}

/// One line of the swap log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReloadEvent {
    /// Milliseconds since the Unix epoch.
    pub at_ms: i64,
    pub plugin: String,
    pub outcome: ReloadOutcome,
}

/// The newest events, oldest first.
#[derive(Debug, Default)]
pub(crate) struct ReloadLog(Mutex<VecDeque<ReloadEvent>>);

impl ReloadLog {
    pub(crate) fn push(&self, plugin: &str, outcome: ReloadOutcome) {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at_ms = i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX);
        let mut events = lock(&self.0);
        if events.len() >= EVENTS_MAX {
            events.pop_front();
        }
        events.push_back(ReloadEvent { at_ms, plugin: plugin.to_owned(), outcome });
    }

    pub(crate) fn events(&self) -> Vec<ReloadEvent> {
        lock(&self.0).iter().cloned().collect()
    }
}

/// Watches the plugin files of a chain until it is dropped.
pub(crate) struct Watcher {
    /// Dropping it ends the notices, and with them the thread.
    _notices: Option<RecommendedWatcher>,
    _keep: SyncSender<()>,
}

impl Watcher {
    /// Starts watching; `None` if no plugin of the chain is a file.
    pub(crate) fn start(chain: &Arc<Chain>) -> Result<Option<Self>> {
        let files: Vec<(String, PathBuf)> = chain
            .specs()
            .into_iter()
            .filter_map(|spec| match spec.source {
                PluginSource::Path(path) => Some((spec.name, path)),
                PluginSource::Embedded(_) | PluginSource::Bytes(_) => None,
            })
            .collect();
        if files.is_empty() {
            return Ok(None);
        }
        // One place: a notice that finds it taken adds nothing.
        let (sender, receiver) = sync_channel(1);
        let notices = notices(&files, sender.clone());
        let seen = chain.active().plugins.iter().map(|g| (g.plugin.clone(), g.module.sha256.clone())).collect();
        let watch = Watch { chain: Arc::downgrade(chain), files, seen };
        let (poll, settle) = (chain.options().poll, chain.options().settle);
        std::thread::Builder::new()
            .name("plugin-watch".to_owned())
            .spawn(move || watch.run(&receiver, poll, settle))
            .map_err(|e| Error::new(Side::Internal, Kind::Exhausted, "start the plugin watcher").caused_by(e))?;
        Ok(Some(Self { _notices: notices, _keep: sender }))
    }
}

/// Asks the system for notices. Without them the poll still sees every change.
fn notices(files: &[(String, PathBuf)], sender: SyncSender<()>) -> Option<RecommendedWatcher> {
    let wake = move |event: notify::Result<notify::Event>| {
        let is_read = event.is_ok_and(|event| event.kind.is_access());
        if !is_read && let Err(TrySendError::Disconnected(())) = sender.try_send(()) {
            tracing::debug!("a notice came after the plugin watcher ended");
        }
    };
    let started = notify::recommended_watcher(wake).and_then(|mut watcher| {
        for (_, file) in files {
            let parent = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            watcher.watch(parent, RecursiveMode::NonRecursive)?;
        }
        Ok(watcher)
    });
    match started {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::info!(%error, "no notices of changed plugin files from the system, polling only");
            None
        }
    }
}

struct Watch {
    chain: Weak<Chain>,
    files: Vec<(String, PathBuf)>,
    /// Hash of each plugin's file when it was last looked at: loaded, or refused.
    seen: HashMap<String, String>,
}

impl Watch {
    fn run(mut self, notices: &Receiver<()>, poll: Duration, settle: Duration) {
        loop {
            match notices.recv_timeout(poll) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let Some(chain) = self.chain.upgrade() else { return };
            self.look(&chain, settle);
        }
    }

    fn look(&mut self, chain: &Chain, settle: Duration) {
        for (plugin, path) in &self.files {
            let hash = || std::fs::read(path).ok().map(|bytes| sha256(&bytes));
            // A missing file is the moment between two names, or an operator's choice: nothing to load.
            let Some(mut now) = hash() else { continue };
            if self.seen.get(plugin) == Some(&now) {
                continue;
            }
            loop {
                std::thread::sleep(settle);
                match hash() {
                    Some(again) if again == now => break,
                    Some(again) => now = again,
                    None => break,
                }
            }
            self.seen.insert(plugin.clone(), now);
            if let Err(error) = chain.swap(plugin, None, true) {
                // The chain has logged it.
                tracing::debug!(plugin, %error, "the changed file was not loaded");
            }
        }
    }
}
