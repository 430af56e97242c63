//! One loaded version of one plugin with its configuration, shared by all workers.
//!
//! It holds the routes that were asked so far, so that a namespace is asked once for each generation however many
//! workers there are, and the counters that metrics read. It never calls the plugin: instances belong to the workers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use oplogue_engine::model::NamespaceId;
use oplogue_engine::plugin::{GenerationInfo, PluginStats};

use crate::columns::Body;
use crate::load::Module;
use crate::spec::OnError;

/// A remembered route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    Pass,
    Drop,
    Rename(NamespaceId),
    Inspect { body: Body, ops: u8 },
}

/// A loaded version.
pub(crate) struct Generation {
    pub(crate) plugin: String,
    pub(crate) number: u64,
    pub(crate) module: Module,
    pub(crate) on_error: OnError,
    routes: RwLock<HashMap<NamespaceId, Decision>>,
    pub(crate) counts: Arc<Counts>,
}

/// What all generations of a plugin did so far.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) calls: AtomicU64,
    pub(crate) entries: AtomicU64,
    pub(crate) nanos: AtomicU64,
    pub(crate) faults: AtomicU64,
    pub(crate) slow: AtomicU64,
    pub(crate) swaps: AtomicU64,
    pub(crate) rollbacks: AtomicU64,
    custom: Mutex<BTreeMap<String, u64>>,
}

/// Names of a plugin's own counters, over all of its generations.
const CUSTOM_MAX: usize = 256;

impl Generation {
    pub(crate) fn new(plugin: &str, number: u64, module: Module, on_error: OnError, counts: Arc<Counts>) -> Self {
        Self { plugin: plugin.to_owned(), number, module, on_error, routes: RwLock::default(), counts }
    }

    pub(crate) fn info(&self) -> GenerationInfo {
        GenerationInfo {
            plugin: self.plugin.clone(),
            generation: self.number,
            version: self.module.manifest.version.clone(),
            sha256: self.module.sha256.clone(),
            configuration: self.module.config_sha256.clone(),
        }
    }

    pub(crate) fn known_route(&self, namespace: NamespaceId) -> Option<Decision> {
        self.routes.read().unwrap_or_else(PoisonError::into_inner).get(&namespace).copied()
    }

    /// Remembers a route; the first answer wins, so that all workers agree.
    pub(crate) fn remember(&self, namespace: NamespaceId, decision: Decision) -> Decision {
        *self.routes.write().unwrap_or_else(PoisonError::into_inner).entry(namespace).or_insert(decision)
    }

    pub(crate) fn count_call(&self, entries: usize, took: Duration) {
        self.counts.calls.fetch_add(1, Ordering::Relaxed);
        self.counts.entries.fetch_add(entries as u64, Ordering::Relaxed);
        self.counts.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn count_custom(&self, counters: HashMap<String, u64>) {
        if counters.is_empty() {
            return;
        }
        let mut custom = self.counts.custom.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, by) in counters {
            // A name a version, if somebody likes: a file that is swapped all day must not fill the memory.
            if custom.len() < CUSTOM_MAX || custom.contains_key(&name) {
                *custom.entry(name).or_default() += by;
            }
        }
    }

    pub(crate) fn stats(&self) -> PluginStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PluginStats {
            plugin: self.plugin.clone(),
            generation: self.number,
            version: self.module.manifest.version.clone(),
            calls: read(&self.counts.calls),
            entries: read(&self.counts.entries),
            nanos: read(&self.counts.nanos),
            faults: read(&self.counts.faults),
            slow: read(&self.counts.slow),
            swaps: read(&self.counts.swaps),
            rollbacks: read(&self.counts.rollbacks),
            custom: self.counts.custom.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}
