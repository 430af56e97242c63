//! How far a target has come that somebody else brought here.
//!
//! Incremental may begin on a target that this job has not copied: from a date, or from the checkpoint of MongoShake, which
//! lies behind what it has written. Drops and renames since then may be done or not, and a name alone does not tell: after
//! `rename staging → live` the name `live` means another collection, and a repeated drop of its predecessor would take it.
//! So the moves since the start are looked through before anything is applied, each group of names that moves connect by
//! itself. Between two moves the source had certain names, and the target's say between which two it stands. Where that is
//! not before all of them, the pairs of `identity.rs` are recorded as they would be by whoever had executed the moves: what
//! is repeated then is recognised. A target that stands before all moves needs nothing.
//!
//! Several places may fit, when a name was given up and taken again. What counts are collections that are older than the
//! start: nothing in the stream brings their documents back. A place is taken when every other one that fits has the same
//! old collection under each name; otherwise the run stops, for nobody can know. It stops as well where no place fits and
//! one of the names stands: a repeated rename would drop what the first one brought there. Nothing here tells an old
//! collection that was empty, and that the target never had for that, from one that was renamed there.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::{CollectionUuid, Namespace, OpTime};

use super::MongoSink;
use crate::mongodb::identity;

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

/// Stands in the pairs of a job that has taken its target over, beside the time of the start; no UUID of version 4 looks
/// like it.
const ADOPTED: CollectionUuid = *b"target taken up:";

/// Stands beside it until all pairs are recorded.
const UNFINISHED: CollectionUuid = [0xff; 16];

/// What happened to a collection's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moved {
    /// It is new, or was outside of the filter.
    Came {
        /// Its name.
        name: Namespace,
        /// The collection that had the name.
        replaced: Option<CollectionUuid>,
        /// It was outside of the filter: its documents come by a copy, under this name.
        over_border: bool,
    },
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
    fn before(moves: &[&Move]) -> Self {
        let (mut holders, mut seen) = (HashMap::new(), HashSet::new());
        for Move { collection, what, .. } in moves {
            let mut old = |name: &Namespace, collection| {
                if seen.insert(collection) {
                    holders.entry(name.clone()).or_insert(Holder { collection, is_old: true });
                }
            };
            match what {
                Moved::Came { name, replaced, .. } => {
                    if let Some(replaced) = replaced {
                        old(name, *replaced);
                    }
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
            Moved::Came { name, .. } => {
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
    /// The names that it is about.
    pub fn names(&self) -> impl Iterator<Item = &Namespace> {
        let (first, second) = match self {
            Self::Came { name, .. } | Self::Went(name) => (name, None),
            Self::Renamed { from, to, .. } => (from, Some(to)),
        };
        std::iter::once(first).chain(second)
    }

    fn replaced(&self) -> Option<CollectionUuid> {
        match self {
            Self::Went(_) => None,
            Self::Came { replaced, .. } | Self::Renamed { replaced, .. } => *replaced,
        }
    }
}

/// What connects moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Link<'a> {
    Name(&'a Namespace),
    Collection(CollectionUuid),
}

impl Move {
    fn links(&self) -> impl Iterator<Item = Link<'_>> {
        let collections = std::iter::once(self.collection).chain(self.what.replaced()).map(Link::Collection);
        self.what.names().map(Link::Name).chain(collections)
    }
}

/// Moves that have to do with each other, since a name or a collection connects them; each in the order of time.
fn groups(moves: &[Move]) -> Vec<Vec<&Move>> {
    let mut groups: Vec<Vec<&Move>> = Vec::new();
    let mut group_of: HashMap<Link<'_>, usize> = HashMap::new();
    for one in moves {
        let mut known: Vec<usize> = one.links().filter_map(|link| group_of.get(&link).copied()).collect();
        known.sort_unstable();
        known.dedup();
        let into = known.first().copied().unwrap_or_else(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        for other in known.into_iter().skip(1) {
            let joined = groups.get_mut(other).map(std::mem::take).unwrap_or_default();
            group_of.values_mut().filter(|group| **group == other).for_each(|group| *group = into);
            if let Some(group) = groups.get_mut(into) {
                group.extend(joined);
                // Moves come in the order of time, and the sort is stable.
                group.sort_by_key(|one| one.time.ts());
            }
        }
        group_of.extend(one.links().map(|link| (link, into)));
        if let Some(group) = groups.get_mut(into) {
            group.push(one);
        }
    }
    groups.retain(|group| !group.is_empty());
    groups
}

/// Calls `found` with each place between the moves at which the source had exactly the names of `standing`, and how many
/// moves lie before it, until it returns false. Returns the names of the last such place.
fn each_fitting(
    moves: &[&Move],
    standing: &HashSet<&Namespace>,
    mut found: impl FnMut(usize, &Names) -> bool,
) -> Names {
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

/// Where a target stands, of which `stands` says what names it has, and that the first `from` moves are done there: how many
/// are, and the names then. `None`: it has none of the names.
///
/// # Errors
/// The names that may be one old collection's or another's.
fn place(
    moves: &[&Move],
    from: usize,
    stands: impl Fn(&Namespace) -> bool,
) -> Result<Option<(usize, Names)>, Vec<Namespace>> {
    let involved = moves.iter().flat_map(|one| one.what.names());
    let standing: HashSet<&Namespace> = involved.filter(|name| stands(name)).collect();
    let (mut old, mut unclear) = (BTreeMap::new(), BTreeSet::new());
    let mut fits = false;
    each_fitting(moves, &standing, |at, names| {
        if at < from {
            return true;
        }
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
        let is_it = at >= from && old.iter().all(|(name, collection)| names.has(name, *collection));
        place = is_it.then_some(at);
        place.is_none()
    });
    match place {
        Some(0) => Ok(Some((0, names))),
        Some(done) => {
            // Whoever renamed it further may never have had what it held before it came over the border, and one that
            // stands there already is not copied.
            for one in moves.iter().take(done) {
                let Moved::Came { name: came, over_border: true, .. } = &one.what else { continue };
                let elsewhere = names.holders.iter().find(|(name, _)| *name != came && names.has(name, one.collection));
                unclear.extend(elsewhere.map(|(name, _)| name.clone()));
            }
            // A younger collection comes again, but not into what another one holds by then.
            let names_of: HashMap<_, _> =
                names.holders.iter().map(|(name, holder)| (holder.collection, name.clone())).collect();
            each_fitting(moves, &standing, |at, later| {
                let elsewhere = later.holders.iter().filter_map(|(name, holder)| {
                    let here = names_of.get(&holder.collection).filter(|here| at > done && *here != name)?;
                    Some([name.clone(), here.clone()])
                });
                unclear.extend(elsewhere.flatten());
                true
            });
            if unclear.is_empty() { Ok(Some((done, names))) } else { Err(unclear.into_iter().collect()) }
        }
        None if fits => Err(old.into_keys().collect()),
        None if standing.is_empty() => Ok(None),
        // One of these may hold what a rename brought there, which the repeated rename would drop.
        None => Err(standing.into_iter().cloned().collect::<BTreeSet<_>>().into_iter().collect()),
    }
}

/// What a target has seen of the moves: the pairs that are to be recorded.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    moves: usize,
    /// Collections that stand there, and under which name.
    standing: Vec<(CollectionUuid, Namespace)>,
    /// Collections that are gone there.
    gone: BTreeSet<CollectionUuid>,
}

/// What a target has seen of `moves`, of which `stands` says what names it has. Those at the very `start` it has: whoever
/// stored that position had applied what stands there. None of the others when `is_exact`, whatever the names are.
///
/// # Errors
/// The names that may be one old collection's or another's.
fn seen(
    moves: &[Move],
    start: OpTime,
    is_exact: bool,
    stands: impl Fn(&Namespace) -> bool,
) -> Result<Seen, Vec<Namespace>> {
    let mut seen = Seen::default();
    let mut unclear = Vec::new();
    for group in groups(moves) {
        // A tool that replays no DDL has passed a drop and not done it; to repeat one takes nothing that does not come again.
        let is_done = |one: &Move| !matches!(&one.what, Moved::Went(name) if stands(name));
        let from = group.iter().take_while(|one| one.time.ts() == start.ts() && is_done(one)).count();
        let placed = if is_exact {
            let mut names = Names::before(&group);
            group.iter().take(from).for_each(|one| names.apply(one));
            Ok(Some((from, names)))
        } else {
            place(&group, from, &stands)
        };
        match placed {
            // It stands at the start, or has none of the names.
            Ok(Some((0, _)) | None) => {}
            Ok(Some((done, names))) => {
                seen.moves += done;
                let of = |one: &Move| std::iter::once(one.collection).chain(one.what.replaced());
                let moved = group.iter().take(done).flat_map(|one| of(one));
                seen.gone.extend(moved.filter(|one| !names.named.contains(one)));
                let standing = names.holders.into_iter().filter(|(name, _)| stands(name));
                seen.standing.extend(standing.map(|(name, holder)| (holder.collection, name)));
            }
            Err(names) => unclear.extend(names),
        }
    }
    if unclear.is_empty() { Ok(seen) } else { Err(unclear) }
}

impl MongoSink {
    /// Takes a target over that this job has not copied: `moves` are those from `start` on, under the target's names. It is
    /// believed to have seen none of those behind the start when `is_exact`. What is broken off is done again by the next
    /// start.
    ///
    /// # Errors
    /// `Misconfigured` when it is not to be known which moves the target has seen; those of the target and of the store.
    pub async fn adopt(&self, start: OpTime, moves: &[Move], is_exact: bool) -> Result<()> {
        // A view holds nothing and has no identity.
        let stands = |name: &Namespace| self.catalogue.info(name).is_some_and(|info| info.uuid.is_some());
        let found = seen(moves, start, is_exact, stands).map_err(|names| unclear(&names))?;
        self.catalogue.record(ADOPTED, UNFINISHED).await?;
        for (source, name) in &found.standing {
            if let Some(target) = self.catalogue.info(name).and_then(|info| info.uuid) {
                self.catalogue.must_claim(name, *source, target).await?;
            }
        }
        for source in &found.gone {
            // Its changes go nowhere, and a repeated drop finds nothing of it.
            self.catalogue.record(*source, bson::Uuid::new().bytes()).await?;
        }
        if found.moves > 0 {
            tracing::info!(moves = found.moves, "the target has seen drops and renames that come once more");
        }
        self.catalogue.record(ADOPTED, identity::pack(start)).await
    }

    /// Whether this job has copied the target, `just_now` or earlier, and has not taken it over: single collections are
    /// copied by either. Known once the sink is loaded.
    #[must_use]
    pub fn was_copied(&self, just_now: bool) -> bool {
        (just_now || self.catalogue.has_any_copy()) && self.catalogue.paired_with(ADOPTED).is_none()
    }

    /// Whether the job knows which collections of the target are which: it has copied them, has executed a DDL, or has
    /// taken the target over at `start` or before.
    ///
    /// # Errors
    /// `Misconfigured` when the start lies before the one that the target was taken over at, and DDL has been executed since;
    /// those of the target and of the store.
    pub async fn knows_its_target(&self, start: OpTime) -> Result<bool> {
        self.target().await?;
        let adopted = match self.catalogue.paired_with(ADOPTED) {
            None => return Ok(self.catalogue.has_any_pair()),
            Some(UNFINISHED) => return Ok(false),
            Some(adopted) => identity::unpack(adopted),
        };
        if adopted.ts() > start.ts() && self.catalogue.has_mark() {
            let text = format!(
                "the checkpoint {start} lies before {adopted}, where this job took its target over; what the source has \
                 dropped and renamed between the two is not known any more. Begin anew there: `oplogue checkpoint reset`, \
                 then `oplogue checkpoint set TIME`"
            );
            return Err(Error::new(Side::Config, Kind::Misconfigured, text));
        }
        Ok(adopted.ts() <= start.ts())
    }
}

/// The fault of names that may be one collection's or another's.
fn unclear(names: &[Namespace]) -> Error {
    let names: Vec<&str> = names.iter().map(Namespace::as_str).collect();
    let text = format!(
        "since the start the source has dropped or renamed collections, and the names on the target do not tell how far it \
         has come: {} may hold one collection or another. If the target has seen none of the drops and renames behind \
         the start, say checkpoint.start_is_exact = true. If it has every change up to some later time, start there: \
         `oplogue checkpoint set TIME`. Else copy again: `oplogue checkpoint reset`, then sync_mode = all",
        names.join(", ")
    );
    Error::new(Side::Config, Kind::Misconfigured, text)
}

#[cfg(test)]
mod tests;
