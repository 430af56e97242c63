//! The loaded chain: its plugins, the generations that are active, and how one replaces another.
//!
//! A worker takes the active set between two batches, never inside one. A new generation is on trial for some
//! batches while the former one stands by; a fault in that time brings the former one back by itself. The chain never
//! touches an entry: that is its workers' business.

mod ddl;
mod faults;
mod routes;
mod worker;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::{ChangeBatch, NamespaceId, Namespaces};
use oplogue_engine::plugin::{ChainReport, ChainWorker, GenerationInfo, Met, PluginChain, PluginStats};

use crate::dead_letter::DeadLetterFile;
use crate::engine::Runtime;
use crate::error::LoadError;
use crate::generation::{Counts, Generation};
use crate::load::Module;
use crate::reload::{ReloadEvent, ReloadLog, ReloadOutcome, Watcher};
use crate::spec::{ChainOptions, OnError, PluginSpec};
use worker::Worker;

/// The generations that are active at one moment.
pub(crate) struct Active {
    pub(crate) version: u64,
    pub(crate) plugins: Vec<Arc<Generation>>,
    /// Whether a plugin is on trial, so that a batch may have to be run again.
    pub(crate) trial: bool,
}

struct Slot {
    spec: PluginSpec,
    next_number: u64,
    /// The former generation while the active one is on trial.
    standby: Option<Arc<Generation>>,
    trial_left: u64,
    /// Hash and reason of a version that was rolled back: the watcher must not load it again.
    rolled_back: Option<(String, String)>,
}

struct Swappable {
    active: Arc<Active>,
    slots: Vec<Slot>,
}

/// The chain of plugins of one pipeline. See [`PluginChain`].
pub struct Chain {
    runtime: Runtime,
    pub(crate) namespaces: Arc<Namespaces>,
    options: ChainOptions,
    state: Mutex<Swappable>,
    /// `Active::version`, readable without the lock: looked at once a batch.
    version: AtomicU64,
    /// One swap at a time.
    swapping: Mutex<()>,
    log: ReloadLog,
    pub(crate) dead_letters: Option<DeadLetterFile>,
    /// Namespaces that arrived from the source, as opposed to names that a plugin made.
    pub(crate) sources: Mutex<HashMap<NamespaceId, Met>>,
    router: Mutex<Option<Worker>>,
    watcher: Mutex<Option<Watcher>>,
}

impl Chain {
    /// Loads and verifies every plugin, in chain order.
    ///
    /// # Errors
    /// `Misconfigured` or `PluginFault` with the plugin's name and the reason, a [`LoadError`], as its cause.
    pub fn build(entries: Vec<PluginSpec>, namespaces: Arc<Namespaces>, options: ChainOptions) -> Result<Arc<Self>> {
        let runtime = Runtime::new().map_err(|e| e.into_error("runtime"))?;
        let dead_letters = options.dead_letter.as_deref().map(DeadLetterFile::open).transpose()?;
        let mut names = HashSet::new();
        let mut plugins = Vec::new();
        let mut slots = Vec::new();
        for spec in entries {
            let generation = first_generation(&runtime, &spec, &mut names, dead_letters.is_some())
                .map_err(|e| e.into_error(&spec.name))?;
            tracing::info!(
                plugin = spec.name,
                version = generation.module.manifest.version,
                sha256 = generation.module.sha256,
                "plugin loaded"
            );
            plugins.push(Arc::new(generation));
            slots.push(Slot { spec, next_number: 2, standby: None, trial_left: 0, rolled_back: None });
        }
        let active = Arc::new(Active { version: 1, plugins, trial: false });
        let chain = Arc::new(Self {
            runtime,
            namespaces,
            options,
            state: Mutex::new(Swappable { active, slots }),
            version: AtomicU64::new(1),
            swapping: Mutex::default(),
            log: ReloadLog::default(),
            dead_letters,
            sources: Mutex::default(),
            router: Mutex::default(),
            watcher: Mutex::default(),
        });
        if chain.options.watch {
            let watcher = Watcher::start(&chain)?;
            *lock(&chain.watcher) = watcher;
        }
        Ok(chain)
    }

    /// Loads the plugin's file again and, if it is sound, makes it active at the next batch boundary of each worker.
    /// The same bytes are not loaded twice.
    ///
    /// # Errors
    /// Why the new version was refused; the running generation is untouched. Also in [`Chain::reload_log`].
    pub fn reload(&self, plugin: &str) -> Result<GenerationInfo, LoadError> {
        self.swap(plugin, None, false)
    }

    /// The same with a changed configuration: a new generation even if the file did not change.
    ///
    /// # Errors
    /// As [`Chain::reload`].
    pub fn reconfigure(&self, plugin: &str, config: serde_json::Value) -> Result<GenerationInfo, LoadError> {
        self.swap(plugin, Some(config), false)
    }

    /// What happened to swaps so far, oldest first (the last 256).
    #[must_use]
    pub fn reload_log(&self) -> Vec<ReloadEvent> {
        self.log.events()
    }

    pub(crate) fn options(&self) -> &ChainOptions {
        &self.options
    }

    pub(crate) fn active(&self) -> Arc<Active> {
        Arc::clone(&lock(&self.state).active)
    }

    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The entries of the chain as they are configured now.
    pub(crate) fn specs(&self) -> Vec<PluginSpec> {
        lock(&self.state).slots.iter().map(|slot| slot.spec.clone()).collect()
    }

    /// Loads and activates; `watched` refuses a version that was rolled back.
    pub(crate) fn swap(
        &self,
        plugin: &str,
        config: Option<serde_json::Value>,
        watched: bool,
    ) -> Result<GenerationInfo, LoadError> {
        let _one_at_a_time = lock(&self.swapping);
        let swapped = self.stage(plugin, config, watched);
        match &swapped {
            Ok((info, true)) => {
                tracing::info!(plugin, generation = info.generation, version = info.version, "plugin swapped");
                self.log.push(plugin, ReloadOutcome::Activated { generation: info.generation });
            }
            Ok((_, false)) => {}
            Err(error) => {
                let running = self.generations().into_iter().find(|g| g.plugin == plugin).map(|g| g.generation);
                tracing::warn!(plugin, running, reason = %error, "new plugin version refused, the running one goes on");
                self.log.push(plugin, ReloadOutcome::Refused { reason: error.to_string() });
            }
        }
        swapped.map(|(info, _)| info)
    }

    /// The swap itself; `false` = these bytes with this configuration run already.
    fn stage(
        &self,
        plugin: &str,
        config: Option<serde_json::Value>,
        watched: bool,
    ) -> Result<(GenerationInfo, bool), LoadError> {
        let unknown = || LoadError::Unknown(plugin.to_owned());
        let (mut spec, running, counts, number, rolled_back) = {
            let state = lock(&self.state);
            let at = state.slots.iter().position(|s| s.spec.name == plugin).ok_or_else(unknown)?;
            let slot = state.slots.get(at).ok_or_else(unknown)?;
            let running = state.active.plugins.get(at).ok_or_else(unknown)?;
            let counts = Arc::clone(&running.counts);
            (slot.spec.clone(), running.info(), counts, slot.next_number, slot.rolled_back.clone())
        };
        let reconfigured = config.is_some();
        spec.config = config.unwrap_or(spec.config);
        let bytes = spec.source.read()?;
        let hash = crate::load::sha256(&bytes);
        if !reconfigured && hash == running.sha256 {
            return Ok((running, false));
        }
        if let Some((bad, reason)) = rolled_back.filter(|(bad, _)| watched && *bad == hash) {
            tracing::debug!(plugin, sha256 = bad, "the file is the version that was rolled back");
            return Err(LoadError::RolledBack(reason));
        }
        let module = Module::load(&self.runtime, &spec, &bytes)?;
        let generation = Arc::new(Generation::new(plugin, number, module, spec.on_error, counts));
        let info = generation.info();
        self.activate(spec, generation);
        Ok((info, true))
    }

    fn activate(&self, spec: PluginSpec, generation: Arc<Generation>) {
        let mut state = lock(&self.state);
        let Some(at) = state.slots.iter().position(|s| s.spec.name == spec.name) else { return };
        let mut plugins = state.active.plugins.clone();
        let Some(place) = plugins.get_mut(at) else { return };
        generation.counts.swaps.fetch_add(1, Ordering::Relaxed);
        let former = std::mem::replace(place, generation);
        if let Some(slot) = state.slots.get_mut(at) {
            slot.next_number += 1;
            slot.spec = spec;
            // On trial a further version must not push out the last one that was known to be good.
            if slot.trial_left == 0 {
                slot.standby = Some(former);
            }
            slot.trial_left = self.options.trial_batches;
            if slot.trial_left == 0 {
                slot.standby = None;
            }
        }
        self.publish(&mut state, plugins);
    }

    fn publish(&self, state: &mut MutexGuard<'_, Swappable>, plugins: Vec<Arc<Generation>>) {
        let version = state.active.version + 1;
        let trial = state.slots.iter().any(|slot| slot.standby.is_some());
        state.active = Arc::new(Active { version, plugins, trial });
        self.version.store(version, Ordering::Release);
    }

    /// A fault of a generation. If it is on trial the former one becomes active again and the batch is to be run
    /// again: `true`. Also `true` when another worker did so already.
    pub(crate) fn roll_back(&self, faulty: &Arc<Generation>, reason: &str) -> bool {
        let mut state = lock(&self.state);
        let Some(at) = state.slots.iter().position(|s| s.spec.name == faulty.plugin) else { return false };
        let mut plugins = state.active.plugins.clone();
        match plugins.get_mut(at) {
            Some(active) if Arc::ptr_eq(active, faulty) => {
                let Some(slot) = state.slots.get_mut(at) else { return false };
                let Some(former) = slot.standby.take() else { return false };
                slot.trial_left = 0;
                slot.rolled_back = Some((faulty.module.sha256.clone(), reason.to_owned()));
                *active = former;
            }
            Some(_) => return true,
            None => return false,
        }
        faulty.counts.rollbacks.fetch_add(1, Ordering::Relaxed);
        let back_to = plugins.get(at).map_or(0, |g| g.number);
        self.publish(&mut state, plugins);
        drop(state);
        tracing::warn!(
            plugin = faulty.plugin,
            generation = faulty.number,
            back_to,
            reason,
            "new plugin version faulted and was rolled back"
        );
        let reason = reason.to_owned();
        self.log.push(&faulty.plugin, ReloadOutcome::RolledBack { from: faulty.number, to: back_to, reason });
        true
    }

    /// A batch went through generations that are on trial. It counts for the plugins, by their places in the chain, that
    /// took part in it.
    pub(crate) fn count_trial(&self, version: u64, took_part: impl Fn(usize) -> bool) {
        let mut state = lock(&self.state);
        if state.active.version != version {
            return;
        }
        let mut ended = false;
        for (plugin, slot) in state.slots.iter_mut().enumerate() {
            if slot.trial_left > 0 && took_part(plugin) {
                slot.trial_left -= 1;
                if slot.trial_left == 0 {
                    slot.standby = None;
                    ended = true;
                }
            }
        }
        if ended {
            let plugins = state.active.plugins.clone();
            self.publish(&mut state, plugins);
        }
    }
}

/// A worker as the pipeline holds it.
struct OwnedWorker {
    chain: Arc<Chain>,
    worker: Worker,
}

impl ChainWorker for OwnedWorker {
    fn process(&mut self, batch: &mut ChangeBatch) -> Result<ChainReport> {
        self.worker.process(&self.chain, batch)
    }
}

fn first_generation(
    runtime: &Runtime,
    spec: &PluginSpec,
    names: &mut HashSet<String>,
    dead_letters: bool,
) -> Result<Generation, LoadError> {
    if !names.insert(spec.name.clone()) {
        return Err(LoadError::NameTaken(spec.name.clone()));
    }
    if spec.on_error == OnError::DeadLetter && !dead_letters {
        return Err(LoadError::NoDeadLetter);
    }
    let module = Module::load(runtime, spec, &spec.source.read()?)?;
    Ok(Generation::new(&spec.name, 1, module, spec.on_error, Arc::new(Counts::default())))
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn plugin_fault(message: String) -> Error {
    Error::new(Side::Plugin, Kind::PluginFault, message)
}

impl PluginChain for Chain {
    fn worker(self: Arc<Self>) -> Result<Box<dyn ChainWorker>> {
        let worker = Worker::new(&self)?;
        Ok(Box::new(OwnedWorker { chain: self, worker }))
    }

    fn route(&self, source: NamespaceId) -> Result<Option<NamespaceId>> {
        let mut router = lock(&self.router);
        match router.as_mut() {
            Some(worker) => worker.route(self, source),
            None => router.insert(Worker::new(self)?).route(self, source),
        }
    }

    fn meet(&self, source: NamespaceId, met: Met) -> Result<Option<NamespaceId>> {
        {
            let mut known = lock(&self.sources);
            let is = known.entry(source).or_insert(met);
            if met != Met::Past {
                *is = met;
            }
        }
        self.route(source)
    }

    fn generations(&self) -> Vec<GenerationInfo> {
        self.active().plugins.iter().map(|g| g.info()).collect()
    }

    fn stats(&self) -> Vec<PluginStats> {
        self.active().plugins.iter().map(|g| g.stats()).collect()
    }
}
