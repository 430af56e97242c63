//! A DDL's way through the chain: both names of a rename, and the databases of which only a part passes.
//!
//! The rules are those of the filter's border: inside to inside is renamed, inside to outside becomes a drop on the
//! target, outside to inside becomes a copy of that collection, and `dropDatabase` never drops more than what passes.
//! A DDL never has a wider effect on the target than the source's had on what passes: where several source
//! collections are written to one target collection, what would destroy or change that one as a whole is refused.

use std::collections::HashSet;

use bytes::Bytes;
use oplogue_engine::error::Error;
use oplogue_engine::model::ddl::Routed;
use oplogue_engine::model::{Change, Ddl, NamespaceId, Operation, raw, view};
use oplogue_engine::plugin::Met;

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
        let whole_database = matches!(**ddl, Ddl::DropDatabase { .. } | Ddl::DropViews { .. });
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
        forget_gone(chain, ddl);
        if let Ddl::DropView { namespace } = ddl
            && self.sharer(chain, *namespace, &[*namespace], &[Met::View])?.is_some()
        {
            self.mark(at, fate::DROPPED);
            return Ok(());
        }
        let outside = match ddl {
            Ddl::DropDatabase { database } | Ddl::DropViews { database } => {
                let database = *database;
                let views_only = matches!(ddl, Ddl::DropViews { .. });
                self.drop_database(chain, change, at, database, first_out)?;
                if !views_only {
                    forget_database(chain, database);
                }
                return Ok(());
            }
            Ddl::Rename { .. } => first_out && second_out,
            Ddl::Create { .. }
            | Ddl::Drop { .. }
            | Ddl::CreateIndexes { .. }
            | Ddl::DropIndexes { .. }
            | Ddl::CollMod { .. }
            | Ddl::ConvertToCapped { .. }
            | Ddl::EmptyCapped { .. }
            | Ddl::DropView { .. }
            | Ddl::CopyIn { .. }
            | Ddl::Refused { .. } => first_out,
        };
        if outside {
            self.mark(at, fate::DROPPED);
            return Ok(());
        }
        if let Ddl::Rename { from, to, drop_target } = ddl
            && (first_out || second_out)
        {
            let across = if second_out {
                Ddl::Drop { namespace: *from }
            } else {
                Ddl::CopyIn { namespace: *to, drop_target: *drop_target }
            };
            change.target = across.namespaces().first().map_or(change.target, |routed| routed.target);
            if let Ddl::Drop { namespace } = &across {
                change.body = drop_command(chain, namespace.source);
            }
            change.ddl = Some(Box::new(across));
        }
        self.narrow(chain, change)
    }

    /// Turns a DDL into one that fits the target's names, or into a refusal.
    fn narrow(&mut self, chain: &Chain, change: &mut Change) -> Result<(), Halt> {
        let ddl = change.ddl.as_deref().ok_or_else(|| bug("a DDL entry has no command"))?;
        let narrowed = if let Ddl::Create { namespace, options } = ddl {
            self.view_follows(chain, *namespace, options)?
        } else if let Ddl::Rename { from, to, .. } = ddl
            && from.target == to.target
        {
            Some(refusal(ddl, *to, "both of its names go to one collection of the target"))
        } else if ddl.is_destructive() {
            let names = ddl.namespaces();
            let mut shared = None;
            for routed in &names {
                if let Some(other) = self.sharer(chain, *routed, &names, &[Met::Collection, Met::View])? {
                    let other = chain.namespaces.name(other);
                    shared = Some(refusal(
                        ddl,
                        *routed,
                        &format!("{other} is written to the same collection of the target"),
                    ));
                }
            }
            shared
        } else {
            None
        };
        if let Some(narrowed) = narrowed {
            change.ddl = Some(Box::new(narrowed));
        }
        Ok(())
    }

    /// Another name of the source, known as one `of` these, that goes to the target of `routed`.
    fn sharer(
        &mut self,
        chain: &Chain,
        routed: Routed,
        own: &[Routed],
        of: &[Met],
    ) -> Result<Option<NamespaceId>, Halt> {
        for (id, met) in known(chain) {
            let is_own = !of.contains(&met) || own.iter().any(|routed| routed.source == id);
            if !is_own && self.walk(chain, id)? == Some(routed.target) {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// A view reads from collections of its database: their new names stand in its definition, and all must go to the
    /// database that the view goes to. One that does not pass keeps its name; the view then finds it empty.
    fn view_follows(&mut self, chain: &Chain, namespace: Routed, options: &Bytes) -> Result<Option<Ddl>, Halt> {
        let sources = view::sources(options).map_err(Error::from)?;
        let name = |id: NamespaceId| chain.namespaces.name(id);
        let (database, target) = (name(namespace.source), name(namespace.target));
        let mut moved = std::collections::HashMap::new();
        for source in sources {
            let id = chain.namespaces.intern(&format!("{}.{source}", database.database()));
            let Some(goes) = self.walk(chain, id)?.map(name) else { continue };
            if goes.database() != target.database() {
                let why = format!("it reads from {}, which goes to another database, as {goes}", name(id));
                return Ok(Some(Ddl::Refused { command: "create (of a view)", namespace, why }));
            }
            moved.insert(source, goes.collection().to_owned());
        }
        if moved.iter().all(|(from, to)| from == to) {
            return Ok(None);
        }
        let renamed = |name: &str| moved.get(name).cloned().unwrap_or_else(|| name.to_owned());
        let options = view::with_sources(options, renamed).map_err(Error::from)?;
        Ok(Some(Ddl::Create { namespace, options }))
    }

    /// `dropDatabase`, or the drop of all views, goes on as it is only if everything of that database, and nothing else, goes to the target
    /// database. Otherwise the collections that pass are dropped one by one.
    ///
    /// A server logs a drop of every collection before its `dropDatabase`, so collections that this process has never
    /// seen are gone already. What a collection or view of another database goes to as well stays, since nobody can tell
    /// whose it is; but a view does not stay for a collection, which could not be there beside it.
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
        let mut passing = Vec::new();
        let (mut shared, mut shared_views) = (HashSet::new(), HashSet::new());
        let mut whole = !routed_out;
        for (id, met) in known(chain) {
            let namespace = name(id);
            let to = self.walk(chain, id)?;
            let goes_there = to.is_some_and(|to| name(to).database() == target.database());
            if namespace.database() == source.database() {
                whole &= goes_there;
                passing.extend(to.map(|target| (Routed { source: id, target }, met)));
            } else {
                shared.extend(to.filter(|_| met != Met::Past));
                shared_views.extend(to.filter(|_| met == Met::View));
                whole &= !goes_there;
            }
        }
        if whole {
            return Ok(());
        }
        let views_only = matches!(change.ddl.as_deref(), Some(Ddl::DropViews { .. }));
        let mut drops = Vec::with_capacity(passing.len());
        for (namespace, met) in passing {
            let view = views_only || met == Met::Past;
            let shared = if view { &shared_views } else { &shared };
            if shared.contains(&namespace.target) {
                continue;
            }
            let ddl = if view { Ddl::DropView { namespace } } else { Ddl::Drop { namespace } };
            drops.push(Change {
                source: namespace.source,
                target: namespace.target,
                body: drop_command(chain, namespace.source),
                collection: None,
                ddl: Some(Box::new(ddl)),
                ..change.clone()
            });
        }
        if drops.is_empty() {
            self.mark(at, fate::DROPPED);
            return Ok(());
        }
        self.expansions.push((at, drops));
        self.mark(at, fate::EXPANDED);
        Ok(())
    }
}

/// The collections and views of the source that this process has met, in a fixed order.
fn known(chain: &Chain) -> Vec<(NamespaceId, Met)> {
    let mut known: Vec<(NamespaceId, Met)> = lock(&chain.sources).iter().map(|(id, met)| (*id, *met)).collect();
    known.retain(|(id, _)| !chain.namespaces.name(*id).is_command());
    known.sort_unstable_by_key(|(id, _)| *id);
    known
}

/// A name that the source has no more is met again with whatever takes it.
fn forget_gone(chain: &Chain, ddl: &Ddl) {
    if let Ddl::Drop { namespace } | Ddl::DropView { namespace } | Ddl::Rename { from: namespace, .. } = ddl {
        lock(&chain.sources).remove(&namespace.source);
    }
}

/// What is still known of a database that was dropped are views, whose ends nothing has named, and what the list at the
/// start knew of a later one, which its entries bring back.
fn forget_database(chain: &Chain, database: Routed) {
    let name = |id: NamespaceId| chain.namespaces.name(id);
    let gone = name(database.source);
    for (id, met) in lock(&chain.sources).iter_mut() {
        if name(*id).database() == gone.database() {
            *met = Met::Past;
        }
    }
}

/// Whether a DDL says of its name that it is a view.
pub(super) fn is_of_a_view(ddl: &Ddl) -> bool {
    match ddl {
        // What is malformed is met as such where it is read.
        Ddl::Create { options, .. } => raw::find(options, "viewOn").is_ok_and(|on| on.is_some()),
        Ddl::DropView { .. } => true,
        Ddl::Drop { .. }
        | Ddl::DropDatabase { .. }
        | Ddl::DropViews { .. }
        | Ddl::Rename { .. }
        | Ddl::CreateIndexes { .. }
        | Ddl::DropIndexes { .. }
        | Ddl::CollMod { .. }
        | Ddl::ConvertToCapped { .. }
        | Ddl::EmptyCapped { .. }
        | Ddl::CopyIn { .. }
        | Ddl::Refused { .. } => false,
    }
}

fn refusal(ddl: &Ddl, namespace: Routed, why: &str) -> Ddl {
    Ddl::Refused { command: ddl.name(), namespace, why: why.to_owned() }
}

/// The command `{drop: "collection"}` as the server would log it.
fn drop_command(chain: &Chain, namespace: NamespaceId) -> Bytes {
    let mut command = bson::RawDocumentBuf::new();
    command.append(bson::cstr!("drop"), chain.namespaces.name(namespace).collection());
    Bytes::from(command.into_bytes())
}
