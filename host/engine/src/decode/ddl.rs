//! Command entries of the oplog that change the catalogue.
//!
//! The server logs each such command in a normal form (MongoDB 4.4 to 6.0): `create`, `drop`, `dropDatabase`,
//! `renameCollection`, `createIndexes` (one index an entry), `commitIndexBuild` (the finished two-phase build),
//! `dropIndexes`, `collMod`, `emptycapped`. `$out`, `mapReduce`, `convertToCapped`, `cloneCollectionAsCapped` and a
//! rename across databases are logged as a new collection, its inserts and a rename. Views are logged as documents of
//! `system.views` by all of these versions, and become commands here. A command that is not in the list stops the
//! run; it is never passed over.

use bytes::Bytes;

use super::oplog::{Entry, elements_from, missing, string, uuid, without};
use crate::error::{Error, Kind, Result, Side};
use crate::model::ddl::Routed;
use crate::model::raw::{self, Elements, kind};
use crate::model::{Change, Ddl, Namespaces, Operation};

/// Databases whose unknown commands are the server's own housekeeping.
const INTERNAL_DATABASES: [&str; 3] = ["admin", "config", "local"];

/// Where a database keeps its views.
pub(super) const VIEWS: &str = "system.views";

/// What the documents of a time-series collection stand in.
pub(super) const BUCKETS: &str = "system.buckets.";

/// The change of a command entry; `None` for an unknown command in one of the server's own databases, and for one that
/// concerns the store of the views itself.
pub(super) fn decode(entry: &Entry, namespaces: &Namespaces) -> Result<Option<Change>> {
    let command = entry.command()?;
    if entry.command_collection() == Some(VIEWS) {
        let database = Routed::same(namespaces.intern(entry.ns()));
        let drop = (command.name == b"drop").then_some(Ddl::DropViews { database });
        return Ok(drop.map(|ddl| Change { collection: None, ..change(entry, ddl, namespaces) }));
    }
    let named = |value: &[u8]| -> Result<Routed> {
        let collection = string(value).ok_or_else(|| missing("collection name"))?;
        Ok(Routed::same(namespaces.intern(&format!("{}.{collection}", entry.database()))))
    };
    let ddl = match command.name {
        b"create" => Ddl::Create { namespace: named(command.value)?, options: elements_from(&entry.o, command.end()) },
        b"drop" => Ddl::Drop { namespace: named(command.value)? },
        b"dropDatabase" => Ddl::DropDatabase { database: Routed::same(namespaces.intern(entry.ns())) },
        b"renameCollection" => rename(entry, command.value, namespaces)?,
        b"createIndexes" => {
            Ddl::CreateIndexes { namespace: named(command.value)?, specs: vec![elements_from(&entry.o, command.end())] }
        }
        b"commitIndexBuild" => Ddl::CreateIndexes { namespace: named(command.value)?, specs: built(entry)? },
        b"dropIndexes" | b"deleteIndexes" | b"dropIndex" | b"deleteIndex" => {
            let index = raw::find(&entry.o, "index")?.filter(|e| e.kind == kind::STRING);
            let name = index.and_then(|e| string(e.value)).ok_or_else(|| missing("index"))?;
            Ddl::DropIndexes { namespace: named(command.value)?, name: name.to_owned() }
        }
        b"collMod" => {
            Ddl::CollMod { namespace: named(command.value)?, options: elements_from(&entry.o, command.end()) }
        }
        b"convertToCapped" => {
            Ddl::ConvertToCapped { namespace: named(command.value)?, size_bytes: integer(&entry.o, "size")? }
        }
        b"emptycapped" => Ddl::EmptyCapped { namespace: named(command.value)? },
        _ if INTERNAL_DATABASES.contains(&entry.database()) => return Ok(None),
        other => {
            return Err(Error::new(
                Side::Source,
                Kind::CannotApply,
                format!("command {} on {} is not known", String::from_utf8_lossy(other), entry.database()),
            ));
        }
    };
    Ok(Some(change(entry, ddl, namespaces)))
}

/// The change of an entry in `system.views`; `None` for the view that a time-series collection shows itself through.
///
/// # Errors
/// `CannotApply` for an update by modifiers, which only a user's own write to `system.views` makes (MongoDB 4.4).
pub(super) fn decode_view(entry: &Entry, namespaces: &Namespaces) -> Result<Option<Change>> {
    let selector = if entry.op == b'u' { &entry.o2 } else { &entry.o };
    let id = raw::find(selector, "_id")?.filter(|id| id.kind == kind::STRING).and_then(|id| string(id.value));
    let namespace = Routed::same(namespaces.intern(id.ok_or_else(|| missing("_id of a view"))?));
    let ddl = if entry.op == b'd' {
        Ddl::DropView { namespace }
    } else {
        let on = raw::find(&entry.o, "viewOn")?.filter(|on| on.kind == kind::STRING).and_then(|on| string(on.value));
        let Some(on) = on else {
            let text = "an update of system.views by modifiers, which does not say what the view has become";
            return Err(Error::new(Side::Source, Kind::CannotApply, text));
        };
        if on.starts_with(BUCKETS) {
            return Ok(None);
        }
        Ddl::Create { namespace, options: without(&entry.o, b"_id")? }
    };
    Ok(Some(Change { collection: None, ..change(entry, ddl, namespaces) }))
}

fn change(entry: &Entry, ddl: Ddl, namespaces: &Namespaces) -> Change {
    let first = ddl.namespaces().first().map_or_else(|| namespaces.intern(entry.ns()), |routed| routed.source);
    Change {
        operation: Operation::Ddl,
        source: first,
        target: first,
        key: Bytes::new(),
        body: entry.o.clone(),
        time: entry.time,
        wall_ms: entry.wall_ms,
        collection: entry.collection,
        origin: entry.origin,
        not_before_ms: 0,
        moved: false,
        creates: false,
        ddl: Some(Box::new(ddl)),
    }
}

fn rename(entry: &Entry, from: &[u8], namespaces: &Namespaces) -> Result<Ddl> {
    let from = string(from).ok_or_else(|| missing("renameCollection"))?;
    let to = raw::find(&entry.o, "to")?.and_then(|e| string(e.value)).ok_or_else(|| missing("to"))?;
    let drop_target = raw::find(&entry.o, "dropTarget")?.filter(|e| e.kind == kind::BINARY).and_then(|e| uuid(e.value));
    Ok(Ddl::Rename {
        from: Routed::same(namespaces.intern(from)),
        to: Routed::same(namespaces.intern(to)),
        drop_target,
    })
}

/// The specifications in `commitIndexBuild.indexes`.
fn built(entry: &Entry) -> Result<Vec<Bytes>> {
    let array = raw::find(&entry.o, "indexes")?.filter(|e| e.kind == kind::ARRAY).ok_or_else(|| missing("indexes"))?;
    let bytes = entry.o.slice(array.offset..array.end());
    let mut specs = Vec::new();
    for element in Elements::new(&bytes)? {
        let element = element?;
        specs.push(bytes.slice(element.offset..element.end()));
    }
    Ok(specs)
}

fn integer(document: &[u8], name: &str) -> Result<i64> {
    let element = raw::find(document, name)?.ok_or_else(|| missing(name))?;
    match element.kind {
        kind::INT32 => Ok(i64::from(raw::read_i32(element.value, 0)?)),
        kind::INT64 => Ok(raw::read_i64(element.value, 0)?),
        kind::DOUBLE => Ok(f64::from_bits(raw::read_i64(element.value, 0)?.cast_unsigned()) as i64),
        _ => Err(missing(name)),
    }
}
