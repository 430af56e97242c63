//! One worker: its instances, and a batch's way through all plugins.
//!
//! Every entry first takes its hop by namespace; what a plugin wants to see waits for it, is shown in one call and
//! goes on from there. Order is kept: entries never move, they are only marked, and what was dropped is taken out at
//! the end. The faults that a plugin can make are handled in `faults`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::{Change, ChangeBatch, NamespaceId, Operation};
use oplogue_engine::plugin::{ChainReport, Met};

use super::ddl::is_of_a_view;
use super::routes::{Hop, Routes};
use super::{Active, Chain, lock, plugin_fault};
use crate::columns::{Body, Columns, Pending};
use crate::dead_letter::DeadLetter;
use crate::edits::{Checked, Outcome, check_namespace};
use crate::generation::{Decision, Generation};
use crate::instance::{Fault, Guest, GuestRoute, Request};
use crate::manifest::{Kind as PluginKind, Wants};

/// What became of an entry, as bits.
pub(super) mod fate {
    pub(in crate::chain) const DROPPED: u8 = 1;
    /// The first or only namespace of a DDL does not pass.
    pub(in crate::chain) const FIRST_OUT: u8 = 2;
    /// The second one.
    pub(in crate::chain) const SECOND_OUT: u8 = 4;
    pub(in crate::chain) const DEAD: u8 = 8;
    pub(in crate::chain) const DELAYED: u8 = 16;
    /// Other changes take its place.
    pub(in crate::chain) const EXPANDED: u8 = 32;
}

/// Entries shown in one call; more only cost memory.
const SHOWN_MAX: usize = 4096;
/// The part of a guest's memory that one call's documents may take: input, output and the guest's own copy must fit.
const ARENA_SHARE: usize = 16;

/// Why a batch stopped half-way.
pub(super) enum Halt {
    Error(Error),
    /// A generation was rolled back: run the batch again from its start.
    Again,
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// A plugin's place in this worker.
pub(super) struct Seat {
    pub(super) generation: Arc<Generation>,
    /// Taken away by a fault and made again at the next call.
    pub(super) guest: Option<Guest>,
    /// Entries in a row that the plugin could not handle.
    pub(super) poisoned_in_a_row: u32,
    /// The last call was the first one of its instance.
    pub(super) fresh: bool,
    /// It had a part in the batch at hand.
    took_part: bool,
}

impl Seat {
    fn new(generation: &Arc<Generation>) -> Self {
        Self { generation: Arc::clone(generation), guest: None, poisoned_in_a_row: 0, fresh: false, took_part: false }
    }
}

/// One worker's state. The chain is handed to every call, so that the chain itself can own a worker.
pub(super) struct Worker {
    pub(super) active: Arc<Active>,
    pub(super) seats: Vec<Seat>,
    routes: Routes,
    columns: Columns,
    pub(super) fates: Vec<u8>,
    pub(super) pending: Vec<Vec<Pending>>,
    slow: Vec<usize>,
    /// Changes that take the place of a DDL, by its index.
    pub(super) expansions: Vec<(usize, Vec<Change>)>,
}

impl Worker {
    pub(super) fn new(chain: &Chain) -> Result<Self> {
        let active = chain.active();
        let mut worker = Self {
            active: Arc::clone(&active),
            seats: Vec::new(),
            routes: Routes::default(),
            columns: Columns::default(),
            fates: Vec::new(),
            pending: Vec::new(),
            slow: Vec::new(),
            expansions: Vec::new(),
        };
        worker.take_seats(active);
        for plugin in 0..worker.seats.len() {
            if let Some(fault) = worker.guest(plugin).err() {
                return Err(plugin_fault(worker.describe(plugin, &fault)));
            }
        }
        Ok(worker)
    }

    /// Runs a batch through the chain. See `ChainWorker::process`.
    pub(super) fn process(&mut self, chain: &Chain, batch: &mut ChangeBatch) -> Result<ChainReport> {
        loop {
            self.refresh(chain);
            let backup = self.active.trial.then(|| (batch.changes.clone(), lock(&chain.sources).clone()));
            match self.run(chain, batch) {
                Ok(report) => {
                    if backup.is_some() {
                        chain.count_trial(self.active.version, |plugin| {
                            self.seats.get(plugin).is_some_and(|seat| seat.took_part)
                        });
                    }
                    return Ok(report);
                }
                Err(Halt::Error(error)) => return Err(error),
                Err(Halt::Again) => {
                    let (changes, met) = backup.unwrap_or_default();
                    batch.changes = changes;
                    // What the first try saw the end of is there again.
                    lock(&chain.sources).extend(met);
                }
            }
        }
    }

    /// The route outside of a batch: entries that a plugin would inspect count as passing.
    pub(super) fn route(&mut self, chain: &Chain, source: NamespaceId) -> Result<Option<NamespaceId>> {
        loop {
            self.refresh(chain);
            match self.walk(chain, source) {
                Ok(route) => return Ok(route),
                Err(Halt::Error(error)) => return Err(error),
                Err(Halt::Again) => {}
            }
        }
    }

    /// Takes the newest generations, between two batches.
    fn refresh(&mut self, chain: &Chain) {
        if chain.version() != self.active.version {
            self.take_seats(chain.active());
        }
    }

    fn take_seats(&mut self, active: Arc<Active>) {
        let mut former = std::mem::take(&mut self.seats).into_iter();
        let mut changed = active.plugins.len() != former.len() || self.pending.is_empty();
        for generation in &active.plugins {
            let seat = match former.next() {
                Some(seat) if Arc::ptr_eq(&seat.generation, generation) => seat,
                Some(_) | None => {
                    changed = true;
                    Seat::new(generation)
                }
            };
            self.seats.push(seat);
        }
        if changed {
            self.routes.clear(self.seats.len());
            self.pending.resize_with(self.seats.len(), Vec::new);
        }
        self.active = active;
    }

    fn run(&mut self, chain: &Chain, batch: &mut ChangeBatch) -> Result<ChainReport, Halt> {
        self.fates.clear();
        self.fates.resize(batch.changes.len(), 0);
        self.slow.clear();
        self.expansions.clear();
        self.pending.iter_mut().for_each(Vec::clear);
        for seat in &mut self.seats {
            // A filter is asked for routes, which are remembered.
            seat.took_part = seat.generation.module.manifest.kind == PluginKind::Filter && !batch.changes.is_empty();
        }
        self.take_hops(&mut batch.changes);
        let slow = std::mem::take(&mut self.slow);
        for at in &slow {
            self.enter(chain, &mut batch.changes, *at)?;
        }
        self.slow = slow;
        for plugin in 0..self.seats.len() {
            self.consult(chain, batch, plugin)?;
        }
        Ok(self.settle(batch)?)
    }

    /// The fast path: entries whose way is known and needs nobody.
    fn take_hops(&mut self, changes: &mut [Change]) {
        let table = self.routes.start();
        for (at, (change, fate)) in changes.iter_mut().zip(&mut self.fates).enumerate() {
            let hop = match change.operation {
                Operation::Ddl => Hop::Unknown,
                Operation::Snapshot
                | Operation::Insert
                | Operation::Replace
                | Operation::UpdateDiff
                | Operation::UpdateModifiers
                | Operation::Delete => table.get(change.target.index()).copied().unwrap_or(Hop::Unknown),
            };
            match hop {
                Hop::Pass(target) => change.target = target,
                Hop::Drop => *fate = fate::DROPPED,
                Hop::Unknown | Hop::Inspect { .. } => self.slow.push(at),
            }
        }
    }

    /// An entry at the chain's start.
    fn enter(&mut self, chain: &Chain, changes: &mut [Change], at: usize) -> Result<(), Halt> {
        if let Some(change) = changes.get(at) {
            match &change.ddl {
                Some(ddl) => {
                    let met = if is_of_a_view(ddl) { Met::View } else { Met::Collection };
                    lock(&chain.sources).extend(ddl.namespaces().iter().map(|routed| (routed.source, met)));
                }
                None if self.routes.get(0, change.target) == Hop::Unknown => {
                    lock(&chain.sources).insert(change.target, Met::Collection);
                }
                None => {}
            }
        }
        self.advance(chain, changes, at, 0)
    }

    /// Moves an entry on from `position` to the next plugin that wants to see it, or to its end.
    pub(super) fn advance(
        &mut self,
        chain: &Chain,
        changes: &mut [Change],
        at: usize,
        position: usize,
    ) -> Result<(), Halt> {
        let Some(change) = changes.get_mut(at) else { return Ok(()) };
        if change.ddl.is_some() {
            return self.advance_ddl(chain, change, at, position);
        }
        let mut position = position;
        loop {
            match self.hop(chain, position, change.target)? {
                Hop::Pass(target) => {
                    change.target = target;
                    return Ok(());
                }
                Hop::Inspect { plugin, name, body, ops } => {
                    change.target = name;
                    if ops & (1 << change.operation as u8) != 0 {
                        self.wait_for(usize::from(plugin), Pending { at, body });
                        return Ok(());
                    }
                    position = usize::from(plugin) + 1;
                }
                Hop::Drop | Hop::Unknown => {
                    self.mark(at, fate::DROPPED);
                    return Ok(());
                }
            }
        }
    }

    pub(super) fn wait_for(&mut self, plugin: usize, item: Pending) {
        if let Some(waiting) = self.pending.get_mut(plugin) {
            waiting.push(item);
        }
    }

    pub(super) fn mark(&mut self, at: usize, bits: u8) {
        if let Some(fate) = self.fates.get_mut(at) {
            *fate |= bits;
        }
    }

    /// Where a namespace ends up when every inspecting plugin lets it pass.
    pub(super) fn walk(&mut self, chain: &Chain, namespace: NamespaceId) -> Result<Option<NamespaceId>, Halt> {
        let (mut position, mut name) = (0, namespace);
        loop {
            match self.hop(chain, position, name)? {
                Hop::Pass(target) => return Ok(Some(target)),
                Hop::Drop | Hop::Unknown => return Ok(None),
                Hop::Inspect { plugin, name: renamed, .. } => {
                    position = usize::from(plugin) + 1;
                    name = renamed;
                }
            }
        }
    }

    /// The hop of a namespace, resolved now if nobody asked yet. Never `Unknown`.
    fn hop(&mut self, chain: &Chain, position: usize, namespace: NamespaceId) -> Result<Hop, Halt> {
        let known = self.routes.get(position, namespace);
        if known != Hop::Unknown {
            return Ok(known);
        }
        let mut name = namespace;
        let mut hop = None;
        for plugin in position..self.seats.len() {
            match self.decision(chain, plugin, name)? {
                Decision::Pass => {}
                Decision::Rename(to) => name = to,
                Decision::Drop => {
                    hop = Some(Hop::Drop);
                    break;
                }
                Decision::Inspect { body, ops } => {
                    hop = Some(Hop::Inspect { plugin: plugin as u16, name, body, ops });
                    break;
                }
            }
        }
        let hop = hop.unwrap_or(Hop::Pass(name));
        self.routes.set(position, namespace, hop);
        Ok(hop)
    }

    /// One plugin's answer about a namespace, asked once for each generation.
    pub(super) fn decision(&mut self, chain: &Chain, plugin: usize, namespace: NamespaceId) -> Result<Decision, Halt> {
        let seat = self.seats.get(plugin).ok_or_else(|| bug("a plugin has no seat"))?;
        let generation = Arc::clone(&seat.generation);
        if let Some(known) = generation.known_route(namespace) {
            return Ok(known);
        }
        let name = chain.namespaces.name(namespace);
        let mut last = None;
        // Twice, since the first fault may be another call's: a machine that stood still, a poisoned instance.
        for _ in 0..2 {
            let answer = self.guest(plugin).and_then(|guest| guest.decide(name.as_str()));
            match answer.and_then(|route| check_route(route, name.as_str(), &generation)) {
                Ok(Route::Rename(to)) => {
                    return Ok(generation.remember(namespace, Decision::Rename(chain.namespaces.intern(&to))));
                }
                Ok(Route::Other(decision)) => return Ok(generation.remember(namespace, decision)),
                Err(fault) => {
                    self.after_fault(plugin, &fault);
                    last = Some(fault);
                }
            }
        }
        let fault = last.unwrap_or_else(|| Fault::Trap("no answer".to_owned()));
        if self.active.trial && chain.roll_back(&generation, &fault.to_string()) {
            return Err(Halt::Again);
        }
        let message = format!("{}; it was asked for the route of {name}", self.describe(plugin, &fault));
        Err(Halt::Error(plugin_fault(message)))
    }

    fn guest(&mut self, plugin: usize) -> Result<&mut Guest, Fault> {
        let seat = self.seats.get_mut(plugin).ok_or_else(|| Fault::Restart("it has no seat".to_owned()))?;
        match &mut seat.guest {
            Some(guest) => Ok(guest),
            place @ None => {
                let guest = seat.generation.module.instantiate().map_err(|e| Fault::Restart(e.to_string()))?;
                Ok(place.insert(guest))
            }
        }
    }

    /// Shows a plugin everything that waits for it.
    fn consult(&mut self, chain: &Chain, batch: &mut ChangeBatch, plugin: usize) -> Result<(), Halt> {
        let Some(mut items) = self.pending.get_mut(plugin).map(std::mem::take).filter(|items| !items.is_empty()) else {
            return Ok(());
        };
        if !items.is_sorted_by_key(|item| item.at) {
            items.sort_unstable_by_key(|item| item.at);
        }
        let limits = self.seats.get(plugin).map(|seat| seat.generation.module.limits).unwrap_or_default();
        let mut rest = items.as_slice();
        while !rest.is_empty() {
            let (shown, later) = rest.split_at(portion(rest, &batch.changes, limits.memory_bytes / ARENA_SHARE));
            self.show(chain, batch, plugin, shown, limits.hard)?;
            rest = later;
        }
        items.clear();
        if let Some(place) = self.pending.get_mut(plugin) {
            *place = items;
        }
        Ok(())
    }

    /// Shows a plugin some entries and does what it says.
    pub(super) fn show(
        &mut self,
        chain: &Chain,
        batch: &mut ChangeBatch,
        plugin: usize,
        items: &[Pending],
        hard: Duration,
    ) -> Result<(), Halt> {
        match self.ask(chain, batch, plugin, items, hard) {
            Ok(checked) => self.apply(chain, batch, plugin, items, &checked),
            Err(fault) => self.faulted(chain, batch, plugin, items, fault, hard),
        }
    }

    pub(super) fn ask(
        &mut self,
        chain: &Chain,
        batch: &ChangeBatch,
        plugin: usize,
        items: &[Pending],
        hard: Duration,
    ) -> Result<Checked, Fault> {
        let missing = || Fault::Lie("an entry is missing".to_owned());
        self.columns.fill(batch.seq, items, &batch.changes, &chain.namespaces).ok_or_else(missing)?;
        let columns = std::mem::take(&mut self.columns);
        let started = Instant::now();
        if let Some(seat) = self.seats.get_mut(plugin) {
            seat.fresh = seat.guest.is_none();
            seat.took_part = true;
        }
        let guest = self.guest(plugin);
        let answer = guest.and_then(|guest| guest.process(&columns, hard));
        self.columns = columns;
        let seat = self.seats.get_mut(plugin).ok_or_else(missing)?;
        seat.generation.count_call(items.len(), started.elapsed());
        if let Some(guest) = &mut seat.guest {
            seat.generation.counts.slow.fetch_add(guest.take_slow(), std::sync::atomic::Ordering::Relaxed);
            seat.generation.count_custom(guest.take_counters());
        }
        let rekey = seat.generation.module.manifest.rekey;
        let checked = Checked::new(answer?, items, &batch.changes, &chain.namespaces, rekey).map_err(Fault::Lie)?;
        if checked.asks_for_dead_letters() && chain.dead_letters.is_none() {
            return Err(Fault::Lie("a dead letter, but no dead-letter file is configured".to_owned()));
        }
        seat.poisoned_in_a_row = 0;
        for note in checked.notes() {
            tracing::debug!(plugin = seat.generation.plugin, "{note}");
        }
        Ok(checked)
    }

    pub(super) fn apply(
        &mut self,
        chain: &Chain,
        batch: &mut ChangeBatch,
        plugin: usize,
        items: &[Pending],
        checked: &Checked,
    ) -> Result<(), Halt> {
        let mut outcomes = Vec::with_capacity(items.len());
        checked.apply(items, &mut batch.changes, |item, outcome| outcomes.push((item.at, outcome)));
        for (at, outcome) in outcomes {
            match outcome {
                Outcome::Kept => self.advance(chain, &mut batch.changes, at, plugin + 1)?,
                Outcome::Delayed => {
                    self.mark(at, fate::DELAYED);
                    self.advance(chain, &mut batch.changes, at, plugin + 1)?;
                }
                Outcome::Dropped => self.mark(at, fate::DROPPED),
                Outcome::Dead(reason) => self.bury(chain, batch, plugin, at, reason)?,
            }
        }
        Ok(())
    }

    /// Writes an entry to the dead-letter file.
    pub(super) fn bury(
        &mut self,
        chain: &Chain,
        batch: &ChangeBatch,
        plugin: usize,
        at: usize,
        reason: String,
    ) -> Result<(), Halt> {
        let (Some(change), Some(seat), Some(file)) =
            (batch.changes.get(at), self.seats.get(plugin), &chain.dead_letters)
        else {
            return Err(bug("a dead letter has no place to go").into());
        };
        file.write(&DeadLetter {
            plugin: seat.generation.plugin.clone(),
            generation: seat.generation.number,
            reason,
            operation: change.operation.name().to_owned(),
            namespace: chain.namespaces.name(change.source).as_str().to_owned(),
            ts: change.time.ts(),
            key: change.key.to_vec(),
            body: change.body.to_vec(),
        })?;
        self.mark(at, fate::DEAD);
        Ok(())
    }

    /// Takes out what does not go on, puts in what takes its place, and checks the sum.
    fn settle(&mut self, batch: &mut ChangeBatch) -> Result<ChainReport> {
        if self.pending.iter().any(|waiting| !waiting.is_empty()) {
            return Err(bug("entries still wait for a plugin at the end of the chain"));
        }
        let mut report = ChainReport { seen: self.fates.len() as u64, ..ChainReport::default() };
        for fate in &self.fates {
            if fate & fate::DEAD != 0 {
                report.dead += 1;
            } else if fate & fate::DROPPED != 0 {
                report.dropped += 1;
            } else {
                report.kept += 1;
                report.delayed += u64::from(fate & fate::DELAYED != 0);
            }
        }
        let added: usize = self.expansions.iter().map(|(_, changes)| changes.len()).sum();
        let expected = report.kept as usize + added - self.expansions.len();
        if report.kept < report.seen || added > 0 {
            self.rebuild(batch);
        }
        if batch.changes.len() != expected || report.seen != report.kept + report.dropped + report.dead {
            return Err(bug("a batch's entries do not add up"));
        }
        Ok(report)
    }

    fn rebuild(&mut self, batch: &mut ChangeBatch) {
        let gone = |fate: u8| fate & (fate::DROPPED | fate::DEAD) != 0;
        if self.expansions.is_empty() {
            let mut fates = self.fates.iter().copied();
            batch.changes.retain(|_| !fates.next().is_some_and(gone));
            return;
        }
        let mut expansions: std::collections::HashMap<usize, Vec<Change>> = self.expansions.drain(..).collect();
        let changes = std::mem::take(&mut batch.changes);
        for (at, (change, fate)) in changes.into_iter().zip(&self.fates).enumerate() {
            if fate & fate::EXPANDED != 0 {
                batch.changes.extend(expansions.remove(&at).unwrap_or_default());
            } else if !gone(*fate) {
                batch.changes.push(change);
            }
        }
    }
}

/// How many of `items` go into one call: at least one.
fn portion(items: &[Pending], changes: &[Change], arena_max: usize) -> usize {
    let mut bytes = 0;
    let fits = items.iter().take(SHOWN_MAX).take_while(|item| {
        bytes += changes.get(item.at).map_or(0, |change| Columns::weight(change, item.body));
        bytes <= arena_max
    });
    fits.count().max(1)
}

/// A route that passed its checks; a new name is not interned yet.
enum Route {
    Rename(String),
    Other(Decision),
}

fn check_route(route: GuestRoute, name: &str, generation: &Generation) -> Result<Route, Fault> {
    let manifest = &generation.module.manifest;
    let lie = |text: String| Err(Fault::Lie(text));
    Ok(match route {
        GuestRoute::Pass => Route::Other(Decision::Pass),
        GuestRoute::Drop => Route::Other(Decision::Drop),
        GuestRoute::Rename(to) if to == name => Route::Other(Decision::Pass),
        GuestRoute::Rename(to) => {
            check_namespace(&to).map_err(Fault::Lie)?;
            if to.ends_with(".$cmd") != name.ends_with(".$cmd") {
                return lie(format!("{name} cannot be renamed to {to}: only one of them is a command namespace"));
            }
            Route::Rename(to)
        }
        GuestRoute::Inspect(Request { ops: 0, .. }) => Route::Other(Decision::Pass),
        GuestRoute::Inspect(request) => {
            let wanted = match request.body {
                Body::None => Wants::None,
                Body::Key => Wants::Key,
                Body::Full => Wants::Full,
                Body::PostImage => return lie("a route asks for post-image, which 0.1.0 does not support".to_owned()),
            };
            if manifest.kind == PluginKind::Filter {
                return lie("a filter asks to inspect entries; only a transform can".to_owned());
            }
            if wanted > manifest.wants {
                return lie(format!("a route asks for {wanted:?}, the manifest only for {:?}", manifest.wants));
            }
            Route::Other(Decision::Inspect { body: request.body, ops: request.ops })
        }
    })
}

pub(super) fn bug(message: &str) -> Error {
    Error::new(Side::Internal, Kind::Bug, message)
}
