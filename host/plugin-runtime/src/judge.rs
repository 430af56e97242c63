//! A plugin that rules over conflicts: one instance, asked about one conflict after the other.
//!
//! It is loaded, watched, swapped and rolled back as a chain of one plugin that no batch goes through, so that there is
//! one path for all of that. A ruling is asked for on a thread that may wait. A guest that gives none meets its policy:
//! the run stops, the change is recorded, or it is given up; none of the three loses it without a word.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use oplogue_engine::conflict::{Conflict, Judge, Ruling};
use oplogue_engine::error::Result;
use oplogue_engine::model::Namespaces;
use oplogue_engine::plugin::{GenerationInfo, PluginChain as _};

use crate::chain::{Chain, lock, plugin_fault};
use crate::conflict::{GuestConflict, checked};
use crate::generation::Generation;
use crate::instance::{Fault, Guest};
use crate::spec::{ChainOptions, Handles, OnError, PluginSpec};

/// A plugin that gives no ruling this many times in a row is not asked again: the run stops.
const FAULTS_MAX: u32 = 64;
/// How often `retry-after-ms` is honoured for one conflict, and the longest such pause.
const RETRIES_MAX: u32 = 10;
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);

/// The instance and the version that it is of.
#[derive(Default)]
struct Seat {
    generation: Option<Arc<Generation>>,
    /// Taken away by a fault and made again at the next question.
    guest: Option<Guest>,
    faults_in_a_row: u32,
}

/// The plugin behind `incr_sync.conflict_write_to = sdk`.
pub struct ConflictPlugin {
    chain: Arc<Chain>,
    /// One conflict at a time; they are rare, and a guest's memory is counted once.
    seat: Mutex<Seat>,
}

impl ConflictPlugin {
    /// Loads and verifies the plugin.
    ///
    /// # Errors
    /// `Misconfigured` or `PluginFault` with the reason.
    pub fn load(spec: PluginSpec, options: ChainOptions) -> Result<Self> {
        let spec = PluginSpec { handles: Handles::Conflicts, ..spec };
        let chain = Chain::build(vec![spec], Namespaces::shared(), options)?;
        Ok(Self { chain, seat: Mutex::default() })
    }

    /// Where it is reloaded, and where the log of its versions is.
    #[must_use]
    pub fn chain(&self) -> &Arc<Chain> {
        &self.chain
    }

    /// The active version.
    #[must_use]
    pub fn generation(&self) -> Option<GenerationInfo> {
        self.chain.generations().into_iter().next()
    }

    /// Asks the active version, until it answers or there is nothing left to wait for.
    fn ask(
        &self,
        seat: &mut Seat,
        generation: &Arc<Generation>,
        conflict: &Conflict,
        on_trial: bool,
    ) -> Result<Ruling, Fault> {
        let shown = GuestConflict::from(conflict);
        let mut retries = 0;
        loop {
            let fresh = seat.guest.is_none();
            let fault = match ask_once(seat, generation, &shown) {
                Ok(ruling) => match checked(conflict, ruling) {
                    Ok(ruling) => return Ok(ruling),
                    Err(lie) => Fault::Lie(lie),
                },
                Err(fault) => fault,
            };
            // An instance may be worn out by what it was shown before.
            if fault.poisons() && !fresh && !on_trial {
                seat.guest = None;
                generation.counts.faults.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let pause = match &fault {
                Fault::Failure(failure) if retries < RETRIES_MAX => failure.retry_after_ms,
                Fault::Failure(_)
                | Fault::Trap(_)
                | Fault::Time(_)
                | Fault::Memory { .. }
                | Fault::Lie(_)
                | Fault::Restart(_) => None,
            };
            let Some(pause) = pause else { return Err(fault) };
            retries += 1;
            std::thread::sleep(Duration::from_millis(u64::from(pause)).min(RETRY_PAUSE_MAX));
        }
    }

    /// What becomes of a conflict that the plugin has no ruling for.
    fn without_ruling(seat: &mut Seat, generation: &Generation, conflict: &Conflict, fault: &Fault) -> Result<Ruling> {
        seat.faults_in_a_row += 1;
        let message = format!(
            "plugin {} (generation {}, version {}) {fault}; conflict: {} of {} at {}",
            generation.plugin,
            generation.number,
            generation.module.manifest.version,
            conflict.operation.name(),
            conflict.namespace,
            conflict.time
        );
        if seat.faults_in_a_row >= FAULTS_MAX {
            return Err(plugin_fault(format!("{message}; {FAULTS_MAX} conflicts in a row, the breaker is open")));
        }
        // A limit that is too low says nothing about the change.
        let must_fail = matches!(fault, Fault::Memory { .. } | Fault::Restart(_));
        let ruling = match generation.on_error {
            OnError::Skip if !must_fail => Ruling::Record,
            OnError::Drop if !must_fail => Ruling::KeepTarget,
            OnError::Fail | OnError::Skip | OnError::Drop | OnError::DeadLetter => return Err(plugin_fault(message)),
        };
        tracing::warn!(plugin = generation.plugin, policy = ?generation.on_error, "{message}");
        Ok(ruling)
    }
}

fn ask_once(
    seat: &mut Seat,
    generation: &Arc<Generation>,
    shown: &GuestConflict,
) -> Result<crate::conflict::GuestRuling, Fault> {
    let guest = match &mut seat.guest {
        Some(guest) => guest,
        none => none.insert(generation.module.instantiate().map_err(|e| Fault::Restart(e.to_string()))?),
    };
    let begun = Instant::now();
    let answer = guest.resolve(shown);
    generation.count_call(1, begun.elapsed());
    generation.counts.slow.fetch_add(guest.take_slow(), Ordering::Relaxed);
    generation.count_custom(guest.take_counters());
    if answer.as_ref().is_err_and(Fault::poisons) {
        seat.guest = None;
    }
    answer
}

impl Judge for ConflictPlugin {
    fn rule(&self, conflict: &Conflict) -> Result<Ruling> {
        let mut seat = lock(&self.seat);
        loop {
            let active = self.chain.active();
            let Some(generation) = active.plugins.first() else {
                return Err(plugin_fault("there is no plugin to rule over conflicts".to_owned()));
            };
            if seat.generation.as_ref().is_none_or(|of| !Arc::ptr_eq(of, generation)) {
                seat.generation = Some(Arc::clone(generation));
                seat.guest = None;
            }
            match self.ask(&mut seat, generation, conflict, active.trial) {
                Ok(ruling) => {
                    seat.faults_in_a_row = 0;
                    if active.trial {
                        self.chain.count_trial(active.version, |_| true);
                    }
                    return Ok(ruling);
                }
                Err(fault) => {
                    generation.counts.faults.fetch_add(1, Ordering::Relaxed);
                    // A lie is found out only after the call: the instance is as suspect as after a trap.
                    if fault.poisons() {
                        seat.guest = None;
                    }
                    if active.trial && self.chain.roll_back(generation, &fault.to_string()) {
                        continue;
                    }
                    return Self::without_ruling(&mut seat, generation, conflict, &fault);
                }
            }
        }
    }
}
