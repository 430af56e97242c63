//! One running guest: a store, its limits, and the three calls of the contract.
//!
//! An instance lives as long as its worker keeps it; a trap poisons it and it is made anew. Calls are synchronous and
//! happen on worker threads. The guest's memory and time are limited here and the limit is reported by its name.

use std::collections::HashMap;
use std::time::Duration;

use thiserror::Error;
use wasmtime::component::{ComponentType, Func, Instance, InstancePre, Lift, Linker, Lower, TypedFunc};
use wasmtime::{ResourceLimiter, Store, Trap, UpdateDeadline};

use crate::columns::{Body, Columns};
use crate::conflict::{GuestConflict, GuestRuling};
use crate::engine::TICK;
use crate::error::LoadError;
use crate::load::{CONFLICTS, LIFECYCLE, ROUTER, TRANSFORM};
use crate::manifest::Kind;
use crate::spec::Limits;

/// Elements of all tables of an instance; a compiled plugin has some hundreds.
const TABLE_ELEMENTS_MAX: usize = 1 << 20;
const COUNTERS_MAX: usize = 32;
const NAME_MAX: usize = 64;

/// The WIT variant `route`.
#[derive(Debug, Clone, PartialEq, Eq, ComponentType, Lift)]
#[component(variant)]
pub(crate) enum GuestRoute {
    #[component(name = "pass")]
    Pass,
    #[component(name = "drop")]
    Drop,
    #[component(name = "rename")]
    Rename(String),
    #[component(name = "inspect")]
    Inspect(Request),
}

/// The WIT record `request`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ComponentType, Lift)]
#[component(record)]
pub(crate) struct Request {
    pub(crate) body: Body,
    pub(crate) ops: u8,
}

/// The WIT record `edits`.
#[derive(Debug, Clone, Default, ComponentType, Lift)]
#[component(record)]
pub(crate) struct GuestEdits {
    pub(crate) verdict: Vec<u8>,
    pub(crate) arg: Vec<u32>,
    pub(crate) ns: Vec<u32>,
    pub(crate) namespaces: Vec<String>,
    pub(crate) out: Vec<u8>,
    pub(crate) notes: Vec<String>,
}

/// The WIT record `failure`.
#[derive(Debug, Clone, ComponentType, Lift)]
#[component(record)]
pub(crate) struct GuestFailure {
    pub(crate) message: String,
    #[component(name = "retry-after-ms")]
    pub(crate) retry_after_ms: Option<u32>,
    pub(crate) entry: Option<u32>,
}

#[derive(Debug, Clone, Copy, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code, reason = "the values come out of a guest's memory")]
enum Level {
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
}

/// Why a call gave no usable answer.
#[derive(Debug, Clone, Error)]
pub(crate) enum Fault {
    #[error("trapped: {0}")]
    Trap(String),
    #[error("time limit: the call took longer than {0:?}")]
    Time(Duration),
    #[error("memory limit: asked for {wanted} bytes, {limit} are allowed")]
    Memory { wanted: usize, limit: usize },
    #[error("answered what it must not: {0}")]
    Lie(String),
    #[error("failed: {}", .0.message)]
    Failure(GuestFailure),
    #[error("cannot be started again: {0}")]
    Restart(String),
}

impl Fault {
    /// Whether the instance must not be used again.
    pub(crate) fn poisons(&self) -> bool {
        match self {
            Self::Trap(_) | Self::Time(_) | Self::Memory { .. } | Self::Lie(_) | Self::Restart(_) => true,
            Self::Failure(_) => false,
        }
    }
}

#[derive(Debug, Clone, Copy, Error)]
#[error("memory limit")]
struct MemoryLimit {
    wanted: usize,
    limit: usize,
}

#[derive(Debug, Clone, Copy, Error)]
#[error("time limit")]
struct TimeLimit;

/// What the host keeps for an instance.
pub(crate) struct State {
    plugin: String,
    memory_bytes: usize,
    /// Ticks between the soft and the hard limit, while the soft one has not passed.
    grace: Option<u64>,
    slow: u64,
    /// The last error line: a Rust panic's text.
    last_error: Option<String>,
    counters: HashMap<String, u64>,
}

impl ResourceLimiter for State {
    fn memory_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        if desired > self.memory_bytes {
            return Err(MemoryLimit { wanted: desired, limit: self.memory_bytes }.into());
        }
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX)
    }
}

type Decide = TypedFunc<(String,), (GuestRoute,)>;
type Init = TypedFunc<(String,), (Result<(), GuestFailure>,)>;

/// A running guest.
pub(crate) struct Guest {
    store: Store<State>,
    calls: Calls,
    limits: Limits,
}

/// What a guest can be asked, by its kind.
struct Calls {
    decide: Option<Decide>,
    process: Option<Func>,
    resolve: Option<Func>,
}

impl Calls {
    /// Looks the functions up and checks their types, so that a wrong one is found before the first call.
    fn find(instance: &Instance, store: &mut Store<State>, kind: Kind) -> Result<(Init, Self), LoadError> {
        let mut function = |interface: &str, name: &str| {
            let outer = instance.get_export_index(&mut *store, None, interface);
            let inner = outer.and_then(|outer| instance.get_export_index(&mut *store, Some(&outer), name));
            let found = inner.and_then(|inner| instance.get_func(&mut *store, inner));
            found.ok_or_else(|| LoadError::Start(format!("the function {name} is missing")))
        };
        let init = function(LIFECYCLE, "init")?;
        let (decide, process, resolve) = match kind {
            Kind::Filter => (Some(function(ROUTER, "decide")?), None, None),
            Kind::Transform => (Some(function(ROUTER, "decide")?), Some(function(TRANSFORM, "process")?), None),
            Kind::Conflict => (None, None, Some(function(CONFLICTS, "resolve")?)),
        };
        let shape = |e: wasmtime::Error| LoadError::Start(format!("a function has another type: {e:#}"));
        let init: Init = init.typed(&*store).map_err(shape)?;
        let decide: Option<Decide> = decide.map(|decide| decide.typed(&*store)).transpose().map_err(shape)?;
        if let Some(process) = &process {
            process.typed::<(&Columns,), (Result<GuestEdits, GuestFailure>,)>(&*store).map_err(shape)?;
        }
        if let Some(resolve) = &resolve {
            resolve.typed::<(&GuestConflict,), (Result<GuestRuling, GuestFailure>,)>(&*store).map_err(shape)?;
        }
        Ok((init, Self { decide, process, resolve }))
    }
}

impl Guest {
    /// Instantiates and calls `init`.
    pub(crate) fn start(
        pre: &InstancePre<State>,
        plugin: &str,
        kind: Kind,
        limits: &Limits,
        config: &str,
    ) -> Result<Self, LoadError> {
        let mut store = Store::new(pre.engine(), State::new(plugin, limits));
        store.limiter(|state| state);
        store.epoch_deadline_callback(|mut context| match context.data_mut().grace.take() {
            Some(grace) => {
                context.data_mut().slow += 1;
                Ok(UpdateDeadline::Continue(grace))
            }
            None => Err(TimeLimit.into()),
        });
        arm(&mut store, limits, limits.hard);
        let instance = pre.instantiate(&mut store).map_err(|e| start_failed(&e, limits, &store))?;
        let (init, calls) = Calls::find(&instance, &mut store, kind)?;
        arm(&mut store, limits, limits.hard);
        match init.call(&mut store, (config.to_owned(),)) {
            Ok((Ok(()),)) => Ok(Self { store, calls, limits: *limits }),
            Ok((Err(failure),)) => Err(LoadError::Init(failure.message)),
            Err(e) => Err(start_failed(&e, limits, &store)),
        }
    }

    /// Asks for the route of a namespace.
    pub(crate) fn decide(&mut self, namespace: &str) -> Result<GuestRoute, Fault> {
        let Some(decide) = &self.calls.decide else {
            return Err(Fault::Lie("a conflict plugin has no routes".to_owned()));
        };
        arm(&mut self.store, &self.limits, self.limits.hard);
        match decide.call(&mut self.store, (namespace.to_owned(),)) {
            Ok((route,)) => Ok(route),
            Err(e) => Err(fault(&e, self.limits.hard, self.store.data())),
        }
    }

    /// Hands a batch over. `hard` replaces the configured limit while a fault is being searched for.
    pub(crate) fn process(&mut self, columns: &Columns, hard: Duration) -> Result<GuestEdits, Fault> {
        let Some(process) = self.calls.process else {
            return Err(Fault::Lie("a filter asked to inspect entries; only a transform can".to_owned()));
        };
        arm(&mut self.store, &self.limits, hard);
        let called = process
            .typed::<(&Columns,), (Result<GuestEdits, GuestFailure>,)>(&self.store)
            .and_then(|process| process.call(&mut self.store, (columns,)));
        match called {
            Ok((Ok(edits),)) => Ok(edits),
            Ok((Err(failure),)) => Err(Fault::Failure(failure)),
            Err(e) => Err(fault(&e, hard, self.store.data())),
        }
    }

    /// Asks for a ruling.
    pub(crate) fn resolve(&mut self, conflict: &GuestConflict) -> Result<GuestRuling, Fault> {
        let Some(resolve) = self.calls.resolve else {
            return Err(Fault::Lie("only a conflict plugin rules over conflicts".to_owned()));
        };
        let hard = self.limits.hard;
        arm(&mut self.store, &self.limits, hard);
        let called = resolve
            .typed::<(&GuestConflict,), (Result<GuestRuling, GuestFailure>,)>(&self.store)
            .and_then(|resolve| resolve.call(&mut self.store, (conflict,)));
        match called {
            Ok((Ok(ruling),)) => Ok(ruling),
            Ok((Err(failure),)) => Err(Fault::Failure(failure)),
            Err(e) => Err(fault(&e, hard, self.store.data())),
        }
    }

    /// Calls that passed the soft limit since the last question.
    pub(crate) fn take_slow(&mut self) -> u64 {
        std::mem::take(&mut self.store.data_mut().slow)
    }

    /// Counters that the guest added to since the last question.
    pub(crate) fn take_counters(&mut self) -> HashMap<String, u64> {
        std::mem::take(&mut self.store.data_mut().counters)
    }
}

impl State {
    fn new(plugin: &str, limits: &Limits) -> Self {
        Self {
            plugin: plugin.to_owned(),
            memory_bytes: limits.memory_bytes,
            grace: None,
            slow: 0,
            last_error: None,
            counters: HashMap::new(),
        }
    }
}

/// Sets the deadlines of the next call.
fn arm(store: &mut Store<State>, limits: &Limits, hard: Duration) {
    let ticks = |d: Duration| u64::try_from(d.as_millis() / TICK.as_millis()).unwrap_or(u64::MAX).max(1);
    let (soft, hard) = (ticks(limits.soft.min(hard)), ticks(hard));
    store.data_mut().grace = Some(hard.saturating_sub(soft).max(1));
    store.data_mut().last_error = None;
    store.set_epoch_deadline(soft);
}

fn fault(error: &wasmtime::Error, hard: Duration, state: &State) -> Fault {
    if let Some(limit) = error.downcast_ref::<MemoryLimit>() {
        return Fault::Memory { wanted: limit.wanted, limit: limit.limit };
    }
    if error.is::<TimeLimit>() {
        return Fault::Time(hard);
    }
    let reason = match error.downcast_ref::<Trap>() {
        Some(trap) => trap.to_string(),
        None => format!("{:#}", error.root_cause()),
    };
    Fault::Trap(match &state.last_error {
        Some(line) => format!("{line} ({reason})"),
        None => reason,
    })
}

fn start_failed(error: &wasmtime::Error, limits: &Limits, store: &Store<State>) -> LoadError {
    LoadError::Start(fault(error, limits.hard, store.data()).to_string())
}

/// Links the log: guest lines become tracing events that name the plugin.
pub(crate) fn link_log(linker: &mut Linker<State>, name: &str) -> wasmtime::Result<()> {
    linker.instance(name)?.func_wrap("write", |mut store, (level, message): (Level, String)| {
        let state: &mut State = store.data_mut();
        let plugin = state.plugin.as_str();
        match level {
            Level::Debug => tracing::debug!(plugin, "{message}"),
            Level::Info => tracing::info!(plugin, "{message}"),
            Level::Warn => tracing::warn!(plugin, "{message}"),
            Level::Error => {
                tracing::debug!(plugin, "{message}");
                state.last_error = Some(message);
            }
        }
        Ok(())
    })
}

/// Links the counters.
pub(crate) fn link_metrics(linker: &mut Linker<State>, name: &str) -> wasmtime::Result<()> {
    linker.instance(name)?.func_wrap("add", |mut store, (name, by): (String, u64)| {
        let counters: &mut HashMap<String, u64> = &mut store.data_mut().counters;
        let known = counters.contains_key(&name);
        if known || (counters.len() < COUNTERS_MAX && name.len() <= NAME_MAX) {
            let counter = counters.entry(name).or_default();
            *counter = counter.saturating_add(by);
        }
        Ok(())
    })
}
