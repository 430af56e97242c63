//! Changes that the target refuses for good, as a plugin reads and rules over them.
//!
//! A conflict borrows nothing and decodes nothing: documents are raw BSON for the lens in [`crate::bson`], and empty
//! where there is none. The traits know nothing of WebAssembly, so a unit test makes a [`Conflict`] by hand.

use crate::bson::{self, Element};
use crate::{Failure, Json, Op};

/// Why the target refuses a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// An insert whose `_id` is taken.
    DuplicateId,
    /// Another document has the value of a unique index.
    UniqueKey,
    /// A validator.
    Validation,
    /// The `_id` or the shard key would change.
    ImmutableField,
    /// Any other reason; the code says which.
    Other,
}

/// One refused change.
#[derive(Debug, Clone)]
pub struct Conflict {
    pub reason: Reason,
    /// Full name of the target collection.
    pub namespace: String,
    pub op: Op,
    /// Source time, `seconds << 32 | increment`.
    pub ts: u64,
    /// The server's error.
    pub code: i32,
    pub message: String,
    /// Raw key document `{_id: …}`.
    pub key: Vec<u8>,
    /// Raw body; its meaning depends on the op.
    pub body: Vec<u8>,
    /// Name of the violated index; empty unless it is a duplicate.
    pub index: String,
    /// Its key pattern, raw.
    pub pattern: Vec<u8>,
    /// The whole document of the target that stands in the way, raw; empty when there is none.
    pub winner: Vec<u8>,
}

impl Conflict {
    /// The value that the change gives to a field: of the whole document, or of what an update sets. `None` where an
    /// update does not touch it. A dotted path is followed through documents and whole values, and through the parts of
    /// a diff.
    #[must_use]
    pub fn new_value(&self, path: &str) -> Option<Element<'_>> {
        match self.op {
            Op::Snapshot | Op::Insert | Op::Replace => bson::find(&self.body, path),
            Op::UpdateDiff => in_diff(&self.body, path),
            Op::UpdateModifiers => {
                let set = bson::find(&self.body, "$set")?.document()?;
                named(set, path).or_else(|| bson::find(set, path))
            }
            Op::Delete | Op::Ddl => None,
        }
    }

    /// The value of a field in the document that stands in the way.
    #[must_use]
    pub fn winner_value(&self, path: &str) -> Option<Element<'_>> {
        bson::find(&self.winner, path)
    }
}

/// A field of a `$v: 2` diff: set whole (`u`, `i`), inside of what is set whole, or in the diff of a sub-document.
fn in_diff<'a>(diff: &'a [u8], path: &str) -> Option<Element<'a>> {
    let set = ["u", "i"].into_iter().filter_map(|part| bson::find(diff, part)?.document());
    if let Some(found) = set.into_iter().find_map(|part| bson::find(part, path)) {
        return Some(found);
    }
    let (head, tail) = path.split_once('.')?;
    in_diff(named(diff, &format!("s{head}"))?.document()?, tail)
}

/// An element by its whole name.
fn named<'a>(document: &'a [u8], name: &str) -> Option<Element<'a>> {
    bson::elements(document).map_while(Result::ok).find(|element| element.name == name.as_bytes())
}

/// What shall become of a conflict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ruling {
    /// The change is given up on purpose.
    KeepTarget,
    /// What stands in the way is deleted and the change applied. Only where there is a winner.
    Overwrite,
    /// The change is recorded in the conflict collection of the target and given up.
    Record,
    /// The run stops before the change, with this reason.
    Stop(String),
}

/// A plugin that rules over conflicts.
pub trait Judge: Sized {
    /// Makes an instance out of its configuration, which already fits the manifest's schema.
    ///
    /// # Errors
    /// What the schema cannot express; the plugin is then not loaded and the message is shown.
    fn new(config: &Json) -> Result<Self, Failure>;

    /// Rules over one conflict. Out of the conflict alone: a replay asks again.
    ///
    /// # Errors
    /// There is no ruling: the host applies the plugin's `on_error` policy.
    fn rule(&mut self, conflict: &Conflict) -> Result<Ruling, Failure>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::bson::rawdoc;

    fn conflict(op: Op, body: ::bson::RawDocumentBuf) -> Conflict {
        Conflict {
            reason: Reason::UniqueKey,
            namespace: "a.b".to_owned(),
            op,
            ts: 0,
            code: 11000,
            message: String::new(),
            key: Vec::new(),
            body: body.as_bytes().to_vec(),
            index: "u_1".to_owned(),
            pattern: Vec::new(),
            winner: Vec::new(),
        }
    }

    #[test]
    fn a_new_value_is_found_in_every_form_of_a_change() {
        let at = |op, body, path: &str| conflict(op, body).new_value(path).and_then(|e| e.integer());
        assert_eq!(at(Op::Insert, rawdoc! { "m": { "at": 1 } }, "m.at"), Some(1));
        assert_eq!(at(Op::UpdateDiff, rawdoc! { "u": { "at": 2 } }, "at"), Some(2));
        assert_eq!(at(Op::UpdateDiff, rawdoc! { "i": { "m": { "at": 3 } } }, "m.at"), Some(3));
        assert_eq!(at(Op::UpdateDiff, rawdoc! { "sm": { "u": { "at": 4 } } }, "m.at"), Some(4));
        assert_eq!(at(Op::UpdateDiff, rawdoc! { "u": { "x": 4 } }, "m.at"), None);
        assert_eq!(at(Op::UpdateModifiers, rawdoc! { "$set": { "m.at": 5 } }, "m.at"), Some(5));
        assert_eq!(at(Op::UpdateModifiers, rawdoc! { "$set": { "m": { "at": 6 } } }, "m.at"), Some(6));
        assert_eq!(at(Op::Delete, rawdoc! {}, "at"), None);
    }
}
