//! What a guest answered, checked against the batch before anything of it takes effect.
//!
//! A column is empty or as long as the batch; indexes point somewhere; replaced bodies are whole, well-formed
//! documents that keep their `_id`. One wrong place refuses the whole answer: a guest that lies once is not believed
//! in part. Untouched bodies stay where they are, replaced ones become slices of the one buffer that came back.

use bytes::Bytes;
use oplogue_engine::model::{Change, NamespaceId, Namespaces, Operation};

use crate::bson;
use crate::columns::Pending;
use crate::instance::GuestEdits;

const KEEP: u8 = 0;
const DROP: u8 = 1;
const REPLACE: u8 = 2;
const DELAY: u8 = 3;
const PARK: u8 = 4;
const DEAD_LETTER: u8 = 5;
const MOVED: u8 = 0x10;

/// Longest namespace that any supported server accepts, in bytes.
const NAMESPACE_MAX: usize = 255;
const NOTES_MAX: usize = 4096;

/// What happens to an entry that a plugin decided about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Kept,
    Dropped,
    Delayed,
    Dead(String),
}

/// A checked answer.
pub(crate) struct Checked {
    edits: GuestEdits,
    namespaces: Vec<NamespaceId>,
    out: Bytes,
    /// Ends of the replaced documents in `out`: bodies, or keys and bodies for a rekeying plugin.
    cuts: Vec<usize>,
    rekey: bool,
    count: usize,
}

impl Checked {
    /// Checks an answer to `items`; the text says what is wrong with it.
    pub(crate) fn new(
        mut edits: GuestEdits,
        items: &[Pending],
        changes: &[Change],
        names: &Namespaces,
        rekey: bool,
    ) -> Result<Self, String> {
        let count = items.len();
        for (column, length) in [("verdict", edits.verdict.len()), ("arg", edits.arg.len()), ("ns", edits.ns.len())] {
            if length != 0 && length != count {
                return Err(format!("column {column} has {length} places for a batch of {count}"));
            }
        }
        if edits.notes.len() > NOTES_MAX {
            return Err(format!("{} notes are more than {NOTES_MAX}", edits.notes.len()));
        }
        let namespaces = edits.namespaces.iter().map(|n| check_namespace(n).map(|()| names.intern(n)));
        let namespaces = namespaces.collect::<Result<Vec<_>, _>>()?;
        let mut cuts = Vec::new();
        let mut at = 0;
        for (place, item) in items.iter().enumerate() {
            let Some(change) = changes.get(item.at) else { return Err("an entry is missing".to_owned()) };
            let verdict = edits.verdict.get(place).copied().unwrap_or(KEEP);
            check_verdict(verdict, place, change, &edits)?;
            if verdict & !MOVED == REPLACE {
                at = cut_replaced(&edits.out, at, change, rekey, &mut cuts)
                    .map_err(|e| format!("entry {place}: {e}"))?;
            }
        }
        if at != edits.out.len() {
            return Err(format!("edits.out has {} bytes behind the last replaced body", edits.out.len() - at));
        }
        let out = Bytes::from(std::mem::take(&mut edits.out));
        Ok(Self { edits, namespaces, out, cuts, rekey, count })
    }

    /// Applies the answer, entry by entry, and tells what became of each.
    pub(crate) fn apply(&self, items: &[Pending], changes: &mut [Change], mut done: impl FnMut(Pending, Outcome)) {
        let mut cuts = std::iter::once(0).chain(self.cuts.iter().copied()).zip(self.cuts.iter().copied());
        debug_assert_eq!(items.len(), self.count, "the answer belongs to another batch");
        for (place, item) in items.iter().enumerate() {
            let Some(change) = changes.get_mut(item.at) else { continue };
            let verdict = self.edits.verdict.get(place).copied().unwrap_or(KEEP);
            let arg = self.edits.arg.get(place).copied().unwrap_or(0);
            if verdict & MOVED != 0
                && let Some(to) = self.edits.ns.get(place).and_then(|ns| self.namespaces.get(*ns as usize))
            {
                // Elsewhere it is no part of what its collection became: it goes there in overlap too, and does not go
                // with that collection's drop.
                change.moved |= change.target != *to;
                change.target = *to;
            }
            let outcome = match verdict & !MOVED {
                DROP => Outcome::Dropped,
                DEAD_LETTER => Outcome::Dead(self.note(arg)),
                DELAY if change.operation != Operation::Snapshot => {
                    let until = change.wall_ms.saturating_add(i64::from(arg));
                    change.not_before_ms = change.not_before_ms.max(until);
                    Outcome::Delayed
                }
                REPLACE => {
                    if self.rekey
                        && let Some((from, to)) = cuts.next()
                        && !change.key.is_empty()
                    {
                        change.key = self.out.slice(from..to);
                    }
                    if let Some((from, to)) = cuts.next()
                        && change.operation != Operation::Delete
                    {
                        change.body = self.out.slice(from..to);
                    }
                    Outcome::Kept
                }
                _ => Outcome::Kept,
            };
            done(*item, outcome);
        }
    }

    /// Whether an entry shall go to the dead-letter file.
    pub(crate) fn asks_for_dead_letters(&self) -> bool {
        self.edits.verdict.iter().any(|verdict| verdict & !MOVED == DEAD_LETTER)
    }

    /// What the guest wants in the log.
    pub(crate) fn notes(&self) -> &[String] {
        &self.edits.notes
    }

    fn note(&self, at: u32) -> String {
        self.edits.notes.get(at as usize).cloned().unwrap_or_else(|| "the plugin gave no reason".to_owned())
    }
}

fn check_verdict(verdict: u8, place: usize, change: &Change, edits: &GuestEdits) -> Result<(), String> {
    let moved = verdict & MOVED != 0;
    match verdict & !MOVED {
        KEEP | DELAY => {}
        REPLACE if change.operation == Operation::Ddl => {
            return Err(format!("entry {place}: a DDL cannot be replaced"));
        }
        REPLACE => {}
        DROP | DEAD_LETTER if !moved => {}
        PARK => return Err(format!("entry {place}: the verdict park is not supported in 0.1.0")),
        _ => return Err(format!("entry {place}: {verdict:#04x} is no verdict")),
    }
    if moved && change.operation == Operation::Ddl {
        return Err(format!("entry {place}: a DDL is moved by decide, not by a verdict"));
    }
    if moved {
        match edits.ns.get(place) {
            Some(ns) if (*ns as usize) < edits.namespaces.len() => {}
            Some(ns) => {
                let known = edits.namespaces.len();
                return Err(format!("entry {place}: namespace {ns} is out of range, the answer names {known}"));
            }
            None => return Err(format!("entry {place}: it moves, but the column ns is empty")),
        }
    }
    Ok(())
}

/// Checks that a name can be a target namespace.
pub(crate) fn check_namespace(name: &str) -> Result<(), String> {
    let good = name.len() <= NAMESPACE_MAX
        && !name.contains('\0')
        && name.split_once('.').is_some_and(|(database, collection)| !database.is_empty() && !collection.is_empty());
    if good { Ok(()) } else { Err(format!("{name:?} is no namespace")) }
}

fn cut_replaced(
    out: &[u8],
    mut at: usize,
    change: &Change,
    rekey: bool,
    cuts: &mut Vec<usize>,
) -> Result<usize, String> {
    if rekey {
        let key = bson::document_at(out, at)?;
        bson::check(key)?;
        at += key.len();
        cuts.push(at);
    } else if change.operation == Operation::Delete {
        return Err("a delete has no body to replace".to_owned());
    }
    let body = bson::document_at(out, at)?;
    bson::check(body)?;
    if !rekey {
        check_id(change, body)?;
    }
    at += body.len();
    cuts.push(at);
    Ok(at)
}

/// `_id` may not change: lanes, order and identity hang on it.
fn check_id(change: &Change, body: &[u8]) -> Result<(), String> {
    let malformed = |e: oplogue_engine::model::raw::Malformed| e.to_string();
    let changed = match change.operation {
        Operation::Snapshot | Operation::Insert | Operation::Replace => {
            bson::id(&change.body).map_err(malformed)? != bson::id(body).map_err(malformed)?
        }
        Operation::UpdateDiff => bson::diff_touches_id(body).map_err(malformed)?,
        Operation::UpdateModifiers => {
            bson::modifiers_touch_id(body).map_err(malformed)?
                && !bson::modifiers_touch_id(&change.body).map_err(malformed)?
        }
        Operation::Delete | Operation::Ddl => false,
    };
    if changed { Err("the body changes _id, which needs \"rekey\": true in the manifest".to_owned()) } else { Ok(()) }
}
