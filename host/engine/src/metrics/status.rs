//! The state of a run, as an operator asks for it: stage, replica set, positions, last fault, plugins, copy.
//!
//! Exactly one `Status` exists a run; the stages that know a fact store it here and everybody else reads a snapshot.
//! It is written rarely (stage changes, faults, swaps) except for positions and the copy's counts, which are atomics.
//! Nothing in the engine decides anything by what stands here, and no secret is ever put in: faults come as the text
//! of [`Error`], whose makers redact connection strings.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use tokio::sync::watch;

use super::copy::{CopyNow, CopyProgress};
use super::labels::{Label, SyncStage};
use super::positions::{Positions, PositionsNow};
use super::shards::{ShardNow, Shards};
use crate::budget::Budget;
use crate::clock::Clock;
use crate::error::Error;
use crate::plugin::PluginStats;

/// Shared state of one run. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Status {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    clock: Clock,
    start_ms: i64,
    stage: AtomicU8,
    positions: Positions,
    shards: Shards,
    copy: CopyProgress,
    budget: OnceLock<Budget>,
    facts: RwLock<Facts>,
    plugins: Plugins,
    paused: watch::Sender<bool>,
}

/// Whom to ask what the plugins did.
#[derive(Default)]
struct Plugins(RwLock<Vec<AskPlugins>>);

type AskPlugins = Box<dyn Fn() -> Vec<PluginStats> + Send + Sync>;

impl Plugins {
    fn now(&self) -> Vec<PluginStats> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).iter().flat_map(|ask| ask()).collect()
    }
}

impl fmt::Debug for Plugins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.now().fmt(f)
    }
}

#[derive(Debug, Clone, Default)]
struct Facts {
    replset: String,
    trouble: Option<Trouble>,
    last_fault: Option<Trouble>,
    late: Vec<String>,
}

/// A fault as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Wall-clock milliseconds.
    pub at_ms: i64,
    /// What went wrong.
    pub text: String,
    /// What the operator should do about it.
    pub advice: &'static str,
}

/// Everything at one moment.
#[derive(Debug, Clone)]
pub struct StatusSnapshot {
    /// The job's `id`.
    pub name: String,
    pub stage: SyncStage,
    /// The source's replica set; empty until it is known.
    pub replset: String,
    /// Wall-clock milliseconds of this snapshot and of the start of the process.
    pub now_ms: i64,
    pub start_ms: i64,
    pub positions: PositionsNow,
    /// Where each shard stands; empty for a replica set.
    pub shards: Vec<ShardNow>,
    pub copy: CopyNow,
    /// A fault that is being retried at this moment.
    pub trouble: Option<Trouble>,
    /// The last fault, over or not.
    pub last_fault: Option<Trouble>,
    /// What each plugin did, in chain order, then the one that rules over conflicts.
    pub plugins: Vec<PluginStats>,
    /// Bytes held and the whole budget; `None` before the pipeline is built.
    pub budget: Option<(usize, usize)>,
}

impl Status {
    /// The status of a run that starts now. `name` is the configuration's `id`.
    #[must_use]
    pub fn new(name: impl Into<String>, clock: Clock) -> Self {
        Self {
            shared: Arc::new(Shared {
                name: name.into(),
                start_ms: clock.now_ms(),
                stage: AtomicU8::new(0),
                positions: Positions::new(clock.clone()),
                shards: Shards::default(),
                copy: CopyProgress::new(clock.clone()),
                budget: OnceLock::new(),
                facts: RwLock::default(),
                plugins: Plugins::default(),
                paused: watch::Sender::new(false),
                clock,
            }),
        }
    }

    /// The run enters a stage. `Fault` is final, and from `Stopping` only a fault leads on: a stage that begins while
    /// the shutdown is under way does not hide it.
    pub fn set_stage(&self, stage: SyncStage) {
        let next = |now: u8| match SyncStage::of_place(now) {
            SyncStage::Fault => None,
            SyncStage::Stopping if stage != SyncStage::Fault => None,
            SyncStage::Stopping | SyncStage::Starting | SyncStage::FullSync | SyncStage::Incremental => {
                Some(stage.place() as u8)
            }
        };
        let _kept = self.shared.stage.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    /// The stage the run is in.
    #[must_use]
    pub fn stage(&self) -> SyncStage {
        SyncStage::of_place(self.shared.stage.load(Ordering::Relaxed))
    }

    /// The source's replica set name, as its `hello` says.
    pub fn set_replset(&self, name: &str) {
        self.facts_mut(|facts| name.clone_into(&mut facts.replset));
    }

    /// Some plugins more, which are asked at each snapshot.
    pub fn add_plugins(&self, ask: impl Fn() -> Vec<PluginStats> + Send + Sync + 'static) {
        self.shared.plugins.0.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(ask));
    }

    /// The memory budget, to show what is held.
    pub fn set_budget(&self, budget: &Budget) {
        // A second pipeline of one process (a rewind) shares the budget of the first.
        self.shared.budget.get_or_init(|| budget.clone());
    }

    /// A fault that is being retried. Until [`Status::recovered`] the run counts as unhealthy.
    pub fn trouble(&self, error: &Error) {
        let trouble = self.shown(error);
        self.facts_mut(|facts| {
            facts.trouble = Some(trouble.clone());
            facts.last_fault = Some(trouble);
        });
    }

    /// The retried fault is over.
    pub fn recovered(&self) {
        self.facts_mut(|facts| facts.trouble = None);
    }

    /// The fault that ends the run.
    pub fn fault(&self, error: &Error) {
        let trouble = self.shown(error);
        self.facts_mut(|facts| {
            facts.trouble = None;
            facts.last_fault = Some(trouble);
        });
        self.set_stage(SyncStage::Fault);
    }

    /// Positions, to store them.
    #[must_use]
    pub fn positions(&self) -> &Positions {
        &self.shared.positions
    }

    /// Where the shards stand, to store it.
    #[must_use]
    pub fn shards(&self) -> &Shards {
        &self.shared.shards
    }

    /// Progress of the full copy, to announce collections.
    #[must_use]
    pub fn copy(&self) -> &CopyProgress {
        &self.shared.copy
    }

    /// Whom the run waits for: during a shutdown, or before what must not begin earlier.
    pub fn set_late(&self, late: Vec<String>) {
        self.facts_mut(|facts| facts.late = late);
    }

    /// Whom the run waits for at this moment; empty when for nobody.
    #[must_use]
    pub fn late(&self) -> Vec<String> {
        self.shared.facts.read().unwrap_or_else(PoisonError::into_inner).late.clone()
    }

    /// Stops or resumes reading the source (MongoShake's `Pause`). What was read goes on to the target.
    pub fn set_paused(&self, paused: bool) {
        self.shared.paused.send_replace(paused);
    }

    /// Whether reading is paused.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        *self.shared.paused.borrow()
    }

    /// Returns at once unless reading is paused, and else when it is resumed.
    pub async fn wait_while_paused(&self) {
        // The sender lives as long as this handle, so the wait cannot fail.
        let _resumed = self.shared.paused.subscribe().wait_for(|paused| !*paused).await.is_ok();
    }

    /// The clock of this run.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// The job's `id`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Everything at this moment.
    #[must_use]
    pub fn snapshot(&self) -> StatusSnapshot {
        let facts = self.shared.facts.read().unwrap_or_else(PoisonError::into_inner).clone();
        StatusSnapshot {
            name: self.shared.name.clone(),
            stage: self.stage(),
            replset: facts.replset,
            now_ms: self.shared.clock.now_ms(),
            start_ms: self.shared.start_ms,
            positions: self.shared.positions.now(),
            shards: self.shared.shards.now(),
            copy: self.shared.copy.now(),
            trouble: facts.trouble,
            last_fault: facts.last_fault,
            plugins: self.shared.plugins.now(),
            budget: self.shared.budget.get().map(|budget| (budget.held_bytes(), budget.bytes())),
        }
    }

    fn shown(&self, error: &Error) -> Trouble {
        Trouble { at_ms: self.shared.clock.now_ms(), text: error.to_string(), advice: error.kind().advice() }
    }

    fn facts_mut(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.shared.facts.write().unwrap_or_else(PoisonError::into_inner));
    }
}

impl StatusSnapshot {
    /// Why the run is not healthy; `None` when it is.
    #[must_use]
    pub fn unhealthy(&self) -> Option<String> {
        let shown = |trouble: &Trouble| format!("{}; {}", trouble.text, trouble.advice);
        match (self.stage, &self.trouble, &self.last_fault) {
            (SyncStage::Fault, _, Some(fault)) => Some(shown(fault)),
            (SyncStage::Fault, _, None) => Some("stopped by a fault".to_owned()),
            (SyncStage::Stopping, _, _) => Some("shutting down".to_owned()),
            (SyncStage::Starting | SyncStage::FullSync | SyncStage::Incremental, Some(trouble), _) => {
                Some(format!("being retried: {}", shown(trouble)))
            }
            (SyncStage::Starting | SyncStage::FullSync | SyncStage::Incremental, None, _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Kind, Side};

    #[test]
    fn a_shutdown_stays_visible_unless_it_faults() {
        let status = Status::new("job", Clock::System);
        status.set_stage(SyncStage::Stopping);
        status.set_stage(SyncStage::Incremental);
        assert_eq!(status.stage(), SyncStage::Stopping);
        status.fault(&Error::new(Side::Sink, Kind::Exhausted, "no disk"));
        assert_eq!(status.stage(), SyncStage::Fault);
    }

    #[test]
    fn a_fault_is_final_and_keeps_its_reason() {
        let status = Status::new("job", Clock::System);
        status.set_stage(SyncStage::Incremental);
        assert_eq!(status.snapshot().unhealthy(), None);
        status.trouble(&Error::new(Side::Source, Kind::Unavailable, "read oplog batch: no primary"));
        assert!(status.snapshot().unhealthy().unwrap().contains("no primary"));
        status.recovered();
        assert_eq!(status.snapshot().unhealthy(), None);
        status.fault(&Error::new(Side::Source, Kind::HistoryLost, "the oplog starts at 7"));
        status.set_stage(SyncStage::Stopping);
        assert_eq!(status.stage(), SyncStage::Fault);
        assert!(status.snapshot().unhealthy().unwrap().contains("starts at 7"));
    }
}
