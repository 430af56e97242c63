//! Events that change the catalogue, in the words of the oplog.
//!
//! The server makes such an event out of the command it has logged (MongoDB 6.0 and later with `showExpandedEvents`; drop,
//! rename and dropDatabase on all). Turned back into that command it takes the same way as an entry of the oplog, so that
//! there is one reading of each DDL. An operation that is not in the list stops the run; it is never passed over.

use bytes::Bytes;

use super::{Event, document, element, inside, name, text};
use crate::decode::ddl::BUCKETS;
use crate::decode::oplog::{Entry, missing, string};
use crate::error::{Error, Kind, Result, Side};
use crate::model::raw::{self, Elements, kind};

/// Events that tell something of the source's cluster or of an operation under way, and change no collection: sharding
/// goes by the target's own, and a finished index build has an event of its own.
const NOTICES: [&str; 9] = [
    "invalidate",
    "shardCollection",
    "refineCollectionShardKey",
    "migrateChunkToNewShard",
    "migrateLastChunkFromShard",
    "reshardBlockingWrites",
    "startIndexBuild",
    "abortIndexBuild",
    "endOfTransaction",
];

impl Event {
    /// The commands that the oplog holds for this event; none for a mere notice.
    ///
    /// # Errors
    /// `Malformed`; `CannotApply` for an operation that is not known.
    pub(in crate::decode) fn commands(&self) -> Result<Vec<Entry>> {
        let operation = self.operation();
        if NOTICES.contains(&operation) {
            return Ok(Vec::new());
        }
        let database = self.part("db")?;
        if operation == "dropDatabase" {
            let command = document(&[element(kind::INT32, b"dropDatabase", &1_i32.to_le_bytes())]);
            return Ok(vec![self.entry(&database, command)]);
        }
        let collection = self.part("coll")?;
        let described = inside(&self.command);
        let commands = match operation {
            "create" => vec![document(&[text("create", &collection), described.to_vec()])],
            "drop" => vec![document(&[text("drop", &collection)])],
            "modify" if self.view()?.is_some_and(|on| on.starts_with(BUCKETS)) => Vec::new(),
            // The event shows the whole view, as the oplog does.
            "modify" if self.view()?.is_some() => vec![document(&[text("create", &collection), described.to_vec()])],
            "modify" => vec![document(&[text("collMod", &collection), described.to_vec()])],
            "createIndexes" => {
                self.each_index(|spec| Ok(vec![text("createIndexes", &collection), inside(spec).to_vec()]))?
            }
            "dropIndexes" => self.each_index(|spec| {
                let name =
                    raw::find(spec, "name")?.and_then(|name| string(name.value)).ok_or_else(|| missing("name"))?;
                Ok(vec![text("dropIndexes", &collection), text("index", name)])
            })?,
            "rename" => vec![self.rename()?],
            other => {
                let text = format!("event {other} on {database}.{collection} is not known");
                return Err(Error::new(Side::Source, Kind::CannotApply, text));
            }
        };
        Ok(commands.into_iter().map(|command| self.entry(&database, command)).collect())
    }

    /// What a view is on. The one that a time-series shows itself through follows its buckets, whose change is an event of
    /// its own, and cannot be changed by itself.
    fn view(&self) -> Result<Option<&str>> {
        let on = if self.command.is_empty() { None } else { raw::find(&self.command, "viewOn")? };
        Ok(on.and_then(|on| string(on.value)))
    }

    fn part(&self, field: &str) -> Result<String> {
        let found = raw::find(&self.ns, field)?.and_then(|part| string(part.value));
        found.map(str::to_owned).ok_or_else(|| missing("ns"))
    }

    fn entry(&self, database: &str, command: Vec<u8>) -> Entry {
        let ns = format!("{database}.$cmd");
        Entry::of_command(ns, Bytes::from(command), self.collection, (self.time, self.wall_ms))
    }

    /// One command for each index that the event names.
    fn each_index(&self, command: impl Fn(&[u8]) -> Result<Vec<Vec<u8>>>) -> Result<Vec<Vec<u8>>> {
        let indexes = if self.command.is_empty() { None } else { raw::find(&self.command, "indexes")? };
        let indexes = indexes.filter(|list| list.kind == kind::ARRAY).ok_or_else(|| missing("indexes"))?;
        let specs = Elements::new(indexes.value)?;
        specs.map(|spec| Ok(document(&command(spec?.value)?))).collect()
    }

    fn rename(&self) -> Result<Vec<u8>> {
        let mut command = vec![text("renameCollection", &self.name()?), text("to", &name(&self.to)?)];
        if !self.command.is_empty()
            && let Some(replaced) = raw::find(&self.command, "dropTarget")?
        {
            command.push(element(replaced.kind, b"dropTarget", replaced.value));
        }
        Ok(document(&command))
    }
}
