//! A DDL's way through the chain: both names of a rename, and the databases of which only a part passes.
//!
//! The rules are those of the filter's border: inside to inside is renamed, inside to outside becomes a drop on the
//! target, outside to inside cannot be done from the oplog alone and stops the run, and `dropDatabase` never drops
//! more than what passes. A DDL never has a wider effect on the target than the source's had on what passes.

use bytes::Bytes;
use oplogue_engine::error::{Error, Kind, Side};
use oplogue_engine::model::ddl::Routed;
use oplogue_engine::model::{Change, Ddl, NamespaceId, Operation};

use super::worker::{Halt, Worker, bug, fate};
use super::{Chain, lock};
use crate::columns::Pending;
use crate::generation::Decision;

const DDL_BIT: u8 = 1 << Operation::Ddl as u8;
const OUT: [u8; 2] = [fate::FIRST_OUT, fate::SECOND_OUT];

impl Worker {
    /// Moves a DDL on from `position`.
    pub(super) fn advance_ddl(
        &mut self,
        chain: &Chain,
        change: &mut Change,
        at: usize,
        position: usize,
    ) -> Result<(), Halt> {
        for plugin in position..self.active.plugins.len() {
            let Some(body) = self.decide_names(chain, change, at, plugin)? else { continue };
            self.wait_for(plugin, Pending { at, body });
            return Ok(());
        }
        self.finish_ddl(chain, change, at)
    }

    /// Asks one plugin for all names of a DDL; `Some` if it wants to see the entry.
    fn decide_names(
        &mut self,
        chain: &Chain,
        change: &mut Change,
        at: usize,
        plugin: usize,
    ) -> Result<Option<crate::columns::Body>, Halt> {
        let ddl = change.ddl.as_mut().ok_or_else(|| bug("a DDL entry has no command"))?;
        // Dropped by its route, it may still concern collections that pass by themselves.
        let whole_database = matches!(**ddl, Ddl::DropDatabase { .. });
        let mut shown = None;
        for (place, out) in ddl.namespaces_mut().into_iter().zip(OUT) {
            let is_out = self.fates.get(at).is_some_and(|fate| fate & out != 0);
            if is_out && !whole_database {
                continue;
            }
            match self.decision(chain, plugin, place.target)? {
                Decision::Pass => {}
                Decision::Drop => self.mark(at, out),
                Decision::Rename(to) => place.target = to,
                Decision::Inspect { body, ops } => {
                    if ops & DDL_BIT != 0 {
                        change.target = place.target;
                        shown = shown.max(Some(body));
                    }
                }
            }
        }
        Ok(shown)
    }

    /// What is left of a DDL at the end of the chain.
    fn finish_ddl(&mut self, chain: &Chain, change: &mut Change, at: usize) -> Result<(), Halt> {
        let fate = self.fates.get(at).copied().unwrap_or_default();
        let (first_out, second_out) = (fate & fate::FIRST_OUT != 0, fate & fate::SECOND_OUT != 0);
        let ddl = change.ddl.as_deref().ok_or_else(|| bug("a DDL entry has no command"))?;
        change.target = ddl.namespaces().first().map_or(change.target, |routed| routed.target);
        match ddl {
            Ddl::DropDatabase { database } => {
                let database = *database;
                self.drop_database(chain, change, at, database, first_out)
            }
            Ddl::Rename { from, to, .. } => match (first_out, second_out) {
                (false, false) if from.target == to.target => Err(border(chain, from, to, "both go to one target")),
                (false, false) => Ok(()),
                (true, true) => {
                    self.mark(at, fate::DROPPED);
                    Ok(())
                }
                (false, true) => {
                    let from = *from;
                    change.body = drop_command(chain, from.source);
                    change.ddl = Some(Box::new(Ddl::Drop { namespace: from }));
                    Ok(())
                }
                (true, false) => Err(border(chain, from, to, "only the new name passes")),
            },
            Ddl::Create { .. }
            | Ddl::Drop { .. }
            | Ddl::CreateIndexes { .. }
            | Ddl::DropIndexes { .. }
            | Ddl::CollMod { .. }
            | Ddl::ConvertToCapped { .. } => {
                if first_out {
                    self.mark(at, fate::DROPPED);
                }
                Ok(())
            }
        }
    }

    /// `dropDatabase` goes on as it is only if everything of that database, and nothing else, goes to the target
    /// database. Otherwise the collections that pass are dropped one by one.
    ///
    /// A server logs a drop of every collection before its `dropDatabase`, so collections that this process has never
    /// seen are gone already.
    fn drop_database(
        &mut self,
        chain: &Chain,
        change: &Change,
        at: usize,
        database: Routed,
        routed_out: bool,
    ) -> Result<(), Halt> {
        let name = |id: NamespaceId| chain.namespaces.name(id);
        let (source, target) = (name(database.source), name(database.target));
        let mut known: Vec<NamespaceId> = lock(&chain.sources).iter().copied().collect();
        known.sort_unstable();
        let mut passing = Vec::new();
        let mut whole = !routed_out;
        for id in known {
            let namespace = name(id);
            if namespace.is_command() {
                continue;
            }
            let to = self.walk(chain, id)?;
            let goes_there = to.is_some_and(|to| name(to).database() == target.database());
            if namespace.database() == source.database() {
                whole &= goes_there;
                passing.extend(to.map(|target| Routed { source: id, target }));
            } else {
                whole &= !goes_there;
            }
        }
        if whole {
            return Ok(());
        }
        if passing.is_empty() {
            self.mark(at, fate::DROPPED);
            return Ok(());
        }
        let drops = passing.into_iter().map(|namespace| Change {
            source: namespace.source,
            target: namespace.target,
            body: drop_command(chain, namespace.source),
            collection: None,
            ddl: Some(Box::new(Ddl::Drop { namespace })),
            ..change.clone()
        });
        self.expansions.push((at, drops.collect()));
        self.mark(at, fate::EXPANDED);
        Ok(())
    }
}

fn border(chain: &Chain, from: &Routed, to: &Routed, why: &str) -> Halt {
    let name = |routed: &Routed| chain.namespaces.name(routed.source);
    let message = format!("rename across the filter border: {} to {}, {why}", name(from), name(to));
    Halt::Error(Error::new(Side::Plugin, Kind::CannotApply, message))
}

/// The command `{drop: "collection"}` as the server would log it.
fn drop_command(chain: &Chain, namespace: NamespaceId) -> Bytes {
    let mut command = bson::RawDocumentBuf::new();
    command.append(bson::cstr!("drop"), chain.namespaces.name(namespace).collection());
    Bytes::from(command.into_bytes())
}
