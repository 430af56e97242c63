//! Namespaces and commands of the server's own.
//!
//! Some entries stand for what the server does for itself, and others for what a collection goes through that no replay
//! can follow. They are told by their names; each such name was seen in the oplog of a real server (4.4.2, 5.0.4 and
//! 6.0.27).

use super::ddl;
use super::oplog::Entry;
use super::options::MustStay;
use crate::error::{Error, Kind, Result, Side};

/// The collection that is filled while another is being resharded: the documents are those of the other one.
pub(super) fn is_of_resharding(ns: &str) -> bool {
    ns.split_once('.').is_some_and(|(_, collection)| collection.starts_with("system.resharding."))
}

/// Whether an entry is about what the server keeps for itself beside the collections of `admin` or `config`: users, keys,
/// sessions. A full copy leaves it out too, and a target has its own. Functions, views and time-series are users'.
pub(super) fn is_of_the_server(entry: &Entry) -> bool {
    let (database, collection) = entry.ns().split_once('.').unwrap_or((entry.ns(), ""));
    let named = if collection == "$cmd" { entry.command_collection() } else { Some(collection) };
    let of_users = |name: &str| matches!(name, "system.js" | ddl::VIEWS) || name.starts_with(ddl::BUCKETS);
    matches!(database, "admin" | "config") && named.is_some_and(|name| name.starts_with("system.") && !of_users(name))
}

/// The new form of a resharded collection takes the place of the old one as another collection, which no entry that is
/// applied introduces: its later changes could not be told from those of a stranger.
pub(super) fn refuse_resharding(entry: &Entry) -> Result<()> {
    if entry.op != b'c' || entry.command_name()? != b"renameCollection" {
        return Ok(());
    }
    match entry.command_collection().filter(|from| is_of_resharding(from)) {
        None => Ok(()),
        Some(_) => Err(Error::new(
            Side::Source,
            Kind::CannotApply,
            format!(
                "a collection of {} got a new shard key (reshardCollection), which is not followed; \
                 copy again after `oplogue checkpoint reset`",
                entry.database()
            ),
        )),
    }
}

/// A shard that took documents of another one left copies of them there, for a while. Where their owner does not mark
/// what it writes to those, a write that goes to all shards, or an expiry, would be taken for one of the documents.
pub(super) fn refuse_move(entry: &Entry, MustStay(must_stay): &MustStay) -> Result<()> {
    if entry.op != b'i' || !must_stay(entry.ns())? {
        return Ok(());
    }
    Err(Error::new(
        Side::Source,
        Kind::CannotApply,
        format!(
            "documents of {} were moved to this shard (moveChunk or movePrimary), and before the feature compatibility \
             version 6.0 the oplogs do not tell writes to what they leave behind from others: leave the balancer off, \
             wait until config.rangeDeletions is empty on every shard, and copy again after `oplogue checkpoint reset`",
            entry.ns()
        ),
    ))
}

/// Whether a namespace is where a database keeps its views. The server's own databases have none.
pub(super) fn is_of_views(ns: &str) -> bool {
    ns.strip_suffix(ddl::VIEWS).and_then(|database| database.strip_suffix('.')).is_some_and(|name| !name.contains('.'))
}

/// Whether a namespace is the temporary collection of a command that copies documents within a shard.
pub(super) fn is_local_copy(ns: &str) -> bool {
    let rest = ns.split_once('.').and_then(|(_, collection)| collection.strip_prefix("tmp"));
    rest.and_then(|rest| rest.split_once('.'))
        .is_some_and(|(_, what)| what == "renameCollection" || what.starts_with("convertToCapped."))
}
