//! How far a target has come that somebody else brought here.
//!
//! Incremental may begin on a target that this job has not copied: from a date, or from the checkpoint of MongoShake, which
//! lies behind what it has written. Drops and renames since then may be done or not, and a name alone does not tell: after
//! `rename staging → live` the name `live` means another collection, and a repeated drop of its predecessor would take it.
//! So the moves since the start are looked through before anything is applied. Between two of them the source had certain
//! names, and the target's names say between which two it stands. From there on the identity pairs and the mark say the
//! rest, as they do after a copy (`identity.rs`).
//!
//! Several places may fit, when a name was given up and taken again. What counts are collections that are older than the
//! start: nothing in the stream brings their documents back. A place is taken when every other one that fits has the same
//! old collection under each name; otherwise the run stops, for nobody can know.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::{CollectionUuid, Namespace, OpTime};

use super::MongoSink;

/// A collection of the source that got, gave up or changed its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Source time of the entry.
    pub time: OpTime,
    /// The source collection.
    pub collection: CollectionUuid,
    /// What happened.
    pub what: Moved,
}

/// What happened to a collection's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moved {
    /// It is new, or was outside of the filter.
    Came(Namespace),
    /// It was dropped, or left the filter.
    Went(Namespace),
    /// It was renamed, and what had the new name before is gone.
    Renamed {
        /// The former name.
        from: Namespace,
        /// The new name.
        to: Namespace,
        /// The collection that had the new name.
        replaced: Option<CollectionUuid>,
    },
}

/// The collection that has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holder {
    collection: CollectionUuid,
    /// It is older than the start.
    is_old: bool,
}

/// The names of the source at one place between the moves.
#[derive(Debug)]
struct Names {
    holders: HashMap<Namespace, Holder>,
    /// Collections that have a name.
    named: HashSet<CollectionUuid>,
}

impl Names {
    /// The names at the start, as far as the moves speak of them.
    fn before(moves: &[Move]) -> Self {
        let (mut holders, mut seen) = (HashMap::new(), HashSet::new());
        for Move { collection, what, .. } in moves {
            let mut old = |name: &Namespace, collection| {
                if seen.insert(collection) {
                    holders.entry(name.clone()).or_insert(Holder { collection, is_old: true });
                }
            };
            match what {
                Moved::Came(_) => {
                    seen.insert(*collection);
                }
                Moved::Went(name) => old(name, *collection),
                Moved::Renamed { from, to, replaced } => {
                    old(from, *collection);
                    if let Some(replaced) = replaced {
                        old(to, *replaced);
                    }
                }
            }
        }
        let named = holders.values().map(|holder| holder.collection).collect();
        Self { holders, named }
    }

    /// Every shard of a cluster logs a move: the second time it changes nothing.
    fn apply(&mut self, Move { collection, what, .. }: &Move) {
        match what {
            Moved::Came(name) => {
                if self.named.insert(*collection) {
                    self.give(name, Holder { collection: *collection, is_old: false });
                }
            }
            Moved::Went(name) => {
                if self.has(name, *collection) {
                    self.holders.remove(name);
                    self.named.remove(collection);
                }
            }
            Moved::Renamed { from, to, .. } => {
                if self.has(from, *collection)
                    && let Some(holder) = self.holders.remove(from)
                {
                    self.give(to, holder);
                }
            }
        }
    }

    fn give(&mut self, name: &Namespace, holder: Holder) {
        if let Some(replaced) = self.holders.insert(name.clone(), holder) {
            self.named.remove(&replaced.collection);
        }
    }

    fn has(&self, name: &Namespace, collection: CollectionUuid) -> bool {
        self.holders.get(name).is_some_and(|holder| holder.collection == collection)
    }
}

impl Moved {
    fn names(&self) -> impl Iterator<Item = &Namespace> {
        let (first, second) = match self {
            Self::Came(name) | Self::Went(name) => (name, None),
            Self::Renamed { from, to, .. } => (from, Some(to)),
        };
        std::iter::once(first).chain(second)
    }
}

/// Calls `found` with each place between the moves at which the source had exactly the names of `standing`, and how many
/// moves lie before it, until it returns false. Returns the names of the last such place.
fn each_fitting(moves: &[Move], standing: &HashSet<&Namespace>, mut found: impl FnMut(usize, &Names) -> bool) -> Names {
    let mut names = Names::before(moves);
    let differs = |names: &Names, name: &Namespace| names.holders.contains_key(name) != standing.contains(name);
    let involved: HashSet<&Namespace> = moves.iter().flat_map(|one| one.what.names()).collect();
    let mut different: HashSet<&Namespace> = involved.into_iter().filter(|name| differs(&names, name)).collect();
    if different.is_empty() && !found(0, &names) {
        return names;
    }
    for (at, one) in moves.iter().enumerate() {
        names.apply(one);
        for name in one.what.names() {
            if differs(&names, name) {
                different.insert(name);
            } else {
                different.remove(name);
            }
        }
        if different.is_empty() && !found(at + 1, &names) {
            break;
        }
    }
    names
}

/// Where a target stands, of which `stands` says what names it has: how many moves are done there, and the names then.
/// `None`: it is at no place between the moves.
///
/// # Errors
/// The names that may be one old collection's or another's.
fn place(moves: &[Move], stands: impl Fn(&Namespace) -> bool) -> Result<Option<(usize, Names)>, Vec<Namespace>> {
    let involved = moves.iter().flat_map(|one| one.what.names());
    let standing: HashSet<&Namespace> = involved.filter(|name| stands(name)).collect();
    let (mut old, mut unclear) = (BTreeMap::new(), BTreeSet::new());
    let mut fits = false;
    each_fitting(moves, &standing, |_, names| {
        fits = true;
        for (name, holder) in names.holders.iter().filter(|(_, holder)| holder.is_old) {
            if *old.entry(name.clone()).or_insert(holder.collection) != holder.collection {
                unclear.insert(name.clone());
            }
        }
        true
    });
    if !unclear.is_empty() {
        return Err(unclear.into_iter().collect());
    }
    let mut place = None;
    let names = each_fitting(moves, &standing, |at, names| {
        place = old.iter().all(|(name, collection)| names.has(name, *collection)).then_some(at);
        place.is_none()
    });
    match place {
        Some(done) => Ok(Some((done, names))),
        None if fits => Err(old.into_keys().collect()),
        None => Ok(None),
    }
}

impl MongoSink {
    /// Takes a target over that this job has not copied: `moves` are those between the start and now, under the target's
    /// names. Does nothing when the job knows its target already.
    ///
    /// # Errors
    /// `CannotApply` when it is not to be known which moves the target has seen; those of the target and of the store.
    pub async fn adopt(&self, moves: &[Move]) -> Result<()> {
        self.target().await?;
        if moves.is_empty() || self.options.ddl_ignored || self.catalogue.has_mark() {
            return Ok(());
        }
        let found = place(moves, |name| self.catalogue.info(name).is_some()).map_err(|names| {
            let names: Vec<&str> = names.iter().map(Namespace::as_str).collect();
            let text = format!(
                "since the start the source has moved collections to and fro, and nothing tells how far the target has \
                 come: {} may hold one or another of them; copy again (sync_mode = all), or start from a time after \
                 these moves that the target has reached",
                names.join(", ")
            );
            Error::new(Side::Sink, Kind::CannotApply, text)
        })?;
        let Some((done, names)) = found else {
            tracing::info!("the target has other collections than the source had at any time since the start");
            return Ok(());
        };
        for (name, holder) in names.holders {
            if let Some(target) = self.catalogue.info(&name).and_then(|info| info.uuid) {
                self.catalogue.record(holder.collection, target).await?;
            }
        }
        if let Some(newest) = done.checked_sub(1).and_then(|last| moves.get(last)) {
            tracing::info!(moves = done, until = %newest.time, "drops and renames that the target has seen already");
            self.catalogue.advance_mark(newest.time).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
