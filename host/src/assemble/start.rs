//! Where a run begins: what the store holds and what the configuration asks for, weighed in one place.
//!
//! The rules follow MongoShake's (a stored position always wins over `checkpoint.start_position`; `all` without one
//! copies first) with two differences: a copy that was interrupted keeps the position noted before its first read,
//! and a position that left the oplog is a fault with the window in it, never a silent second copy. Nothing here
//! writes: it decides, and the assembly acts.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use oplogue_connectors::mongodb::oplog::{date_start, window_text};
use oplogue_engine::checkpoint::{Found, Stage, ViewPair};
use oplogue_engine::config::Config;
use oplogue_engine::config::checked::SyncMode;
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::ddl::is_capped;
use oplogue_engine::model::{CollectionUuid, Namespace, NamespaceId, Namespaces, OpTime, Position};
use oplogue_engine::pipeline::state::keeps_order;
use oplogue_engine::plugin::{Met, PluginChain};
use oplogue_engine::source::{SnapshotReader, Window};

/// What to do first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begin {
    /// The full copy; `resume` is the position that an interrupted one had noted.
    Copy { resume: Option<Position> },
    /// Incremental from here.
    Follow { position: Position, stage: Stage },
}

/// Weighs what was found against `sync_mode`.
///
/// # Errors
/// `Misconfigured` when `sync_mode = incr` meets an unfinished copy: changes would be applied to half of the data.
pub fn decide(config: &Config, found: Found) -> Result<Begin> {
    match (config.sync_mode, found) {
        (SyncMode::Full, Found::Ours(at)) if at.stage == Stage::FullSync => {
            Ok(Begin::Copy { resume: Some(at.position) })
        }
        (SyncMode::Full, Found::Nothing | Found::Ours(_) | Found::MongoShake(_)) => Ok(Begin::Copy { resume: None }),
        (SyncMode::All, Found::Nothing) => Ok(Begin::Copy { resume: None }),
        (SyncMode::All, Found::Ours(at)) if at.stage == Stage::FullSync => {
            tracing::warn!(position = %at.position, "an earlier full sync did not finish: it is done again");
            Ok(Begin::Copy { resume: Some(at.position) })
        }
        (SyncMode::Incr, Found::Ours(at)) if at.stage == Stage::FullSync => Err(Error::new(
            Side::Config,
            Kind::Misconfigured,
            "sync_mode = incr, but the stored checkpoint is of a full sync that did not finish; \
             run with sync_mode = all, or remove it with `oplogue checkpoint reset`",
        )),
        (SyncMode::All | SyncMode::Incr, Found::Ours(at)) => {
            Ok(Begin::Follow { position: at.position, stage: at.stage })
        }
        (SyncMode::All | SyncMode::Incr, Found::MongoShake(position)) => {
            tracing::info!(%position, "a MongoShake checkpoint is taken over");
            Ok(Begin::Follow { position, stage: Stage::Incremental })
        }
        (SyncMode::Incr, Found::Nothing) => {
            let position = date_start(config.checkpoint.start_position.unwrap_or_default());
            Ok(Begin::Follow { position, stage: Stage::Incremental })
        }
    }
}

/// Refuses to go on with a copy whose noted position the oplog no longer holds.
///
/// # Errors
/// `HistoryLost` with the window.
pub fn refuse_outside_window(position: &Position, window: &Window) -> Result<()> {
    if position.time().ts() >= window.oldest.ts() {
        return Ok(());
    }
    let text = format!(
        "the full sync noted {position} before its first read, but {}; remove the checkpoint with \
         `oplogue checkpoint reset` to copy from the beginning",
        window_text(window)
    );
    Err(Error::new(Side::Source, Kind::HistoryLost, text))
}

/// Up to where changes may meet documents that contain them: what an earlier run of this process has read, where this
/// run begins, and the newest entry that the source's primary has. That one alone is enough for a fresh process: what a
/// killed one had read a majority of the source had, and so has every primary that was elected since. What a majority
/// is known to have would not do, since a new primary may learn that last.
#[must_use]
pub fn overlap_mark(known: [OpTime; 3]) -> OpTime {
    known.into_iter().max_by_key(|time| time.ts()).unwrap_or_default()
}

/// Collections whose changes must keep their order as a whole: capped ones and ones with a collation.
#[derive(Debug, Default)]
pub struct Ordered {
    /// By the name on the target.
    pub targets: HashSet<NamespaceId>,
    /// By the identity on the source, for changes logged under a former name, or before a rename brought the
    /// collection into the filter.
    pub collections: HashSet<CollectionUuid>,
    /// Those of them that are capped.
    pub capped: HashSet<CollectionUuid>,
    /// The views, and where they go.
    pub views: Vec<ViewPair>,
    /// By database of the target: the databases of the source that go there.
    databases: HashMap<String, BTreeSet<String>>,
    /// The names on the target that something on the source goes to.
    taken: HashSet<NamespaceId>,
}

/// Looks for them, and lets the chain meet every name that the source has.
///
/// # Errors
/// The reader's and the chain's.
pub async fn ordered_collections(
    reader: &dyn SnapshotReader,
    chain: &Arc<dyn PluginChain>,
    namespaces: &Namespaces,
) -> Result<Ordered> {
    let mut ordered = Ordered::default();
    for plan in reader.collections().await? {
        let met = Met::of(&plan);
        let target = chain.meet(namespaces.intern(plan.namespace.as_str()), met)?;
        if let Some(target) = target {
            let databases = ordered.databases.entry(namespaces.name(target).database().to_owned()).or_default();
            databases.insert(plan.namespace.database().to_owned());
            ordered.taken.insert(target);
            if met == Met::View {
                let target = namespaces.name(target);
                ordered.views.push(ViewPair { source: plan.namespace.clone(), target });
            }
        }
        if plan.kind == "collection" && keeps_order(&plan.options) {
            ordered.targets.extend(target);
            ordered.collections.extend(plan.uuid);
            ordered.capped.extend(plan.uuid.filter(|_| is_capped(&plan.options)));
        }
    }
    Ok(ordered)
}

impl Ordered {
    /// Lets the chain meet the views of the target under the names that they had on the source. One that went there while
    /// nobody was reading is in no list, and the entry that says so may name none (`drop` of `system.views`). One that went
    /// before a run could remember it has its name on the source guessed, unless it is not certain which database it came
    /// from.
    ///
    /// # Errors
    /// The chain's.
    pub fn meet_views(
        &self,
        views: &[Namespace],
        remembered: &[ViewPair],
        chain: &Arc<dyn PluginChain>,
        namespaces: &Namespaces,
    ) -> Result<()> {
        for pair in remembered {
            let source = namespaces.intern(pair.source.as_str());
            // Under other rules it goes elsewhere, and no entry about it reaches the view that it was.
            if chain.route(source)? == Some(namespaces.intern(pair.target.as_str())) {
                chain.meet(source, Met::Past)?;
            }
        }
        let explained: HashSet<&Namespace> = remembered.iter().map(|pair| &pair.target).collect();
        for view in views {
            if explained.contains(view) || self.taken.contains(&namespaces.intern(view.as_str())) {
                continue;
            }
            let database = match self.databases.get(view.database()) {
                None => view.database(),
                Some(databases) if databases.len() == 1 => databases.first().map_or("", String::as_str),
                Some(_) => continue,
            };
            chain.meet(namespaces.intern(Namespace::of(database, view.collection()).as_str()), Met::Past)?;
        }
        Ok(())
    }
}

/// Collections whose documents the server keeps under a name of its own (`system.buckets.…`, `system.js`), as far as the
/// chain lets them pass.
///
/// # Errors
/// The reader's and the chain's.
pub async fn system_collections(
    reader: &dyn SnapshotReader,
    chain: &Arc<dyn PluginChain>,
    namespaces: &Namespaces,
) -> Result<Vec<Namespace>> {
    let mut found = Vec::new();
    for plan in reader.collections().await? {
        let is_of_system = plan.kind == "timeseries" || plan.namespace.collection().starts_with("system.");
        if is_of_system && chain.route(namespaces.intern(plan.namespace.as_str()))?.is_some() {
            found.push(plan.namespace);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_before_an_election_is_in_overlap_after_it() {
        let begun = OpTime::new(6, 1, 1);
        let written_by_the_new_primary = OpTime::new(7, 1, 2);
        let read_from_the_former = OpTime::new(7, 5, 1);
        assert_eq!(overlap_mark([read_from_the_former, begun, written_by_the_new_primary]), read_from_the_former);
        let later = OpTime::new(8, 1, 2);
        assert_eq!(overlap_mark([read_from_the_former, begun, later]), later);
        assert_eq!(overlap_mark([OpTime::default(), begun, later]), later, "nothing was read in this process");
    }
}
