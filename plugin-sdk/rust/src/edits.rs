//! What a plugin answers: one verdict an entry, and the new bodies back to back.
//!
//! An untouched batch answers with empty columns, which costs the host nothing. Bodies are written straight into the
//! column that goes back, never into a buffer of their own.

use crate::batch::{Entry, Op};
use crate::patch::Patch;
use crate::{Failure, bson};

const KEEP: u8 = 0;
const DROP: u8 = 1;
const REPLACE: u8 = 2;
const DELAY: u8 = 3;
const DEAD_LETTER: u8 = 5;
const MOVED: u8 = 0x10;

/// Whether an entry with this verdict goes no further.
fn ends(verdict: u8) -> bool {
    matches!(verdict, DROP | DEAD_LETTER)
}

/// The answer to a batch, column by column.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edits {
    pub verdict: Vec<u8>,
    pub arg: Vec<u32>,
    pub ns: Vec<u32>,
    pub namespaces: Vec<String>,
    pub out: Vec<u8>,
    pub notes: Vec<String>,
    entries: usize,
}

impl Edits {
    /// An answer that keeps all of `entries`.
    #[must_use]
    pub fn keep_all(entries: usize) -> Self {
        Self { entries, ..Self::default() }
    }

    /// The answer to entry `at`.
    pub fn edit(&mut self, at: usize) -> Edit<'_> {
        Edit { edits: self, at }
    }

    fn set_verdict(&mut self, at: usize, value: u8) {
        if self.verdict.is_empty() {
            self.verdict.resize(self.entries, KEEP);
        }
        if let Some(verdict) = self.verdict.get_mut(at) {
            *verdict = if ends(value) { value } else { (*verdict & MOVED) | value };
        }
    }

    fn set_arg(&mut self, at: usize, value: u32) {
        if self.arg.is_empty() {
            self.arg.resize(self.entries, 0);
        }
        if let Some(arg) = self.arg.get_mut(at) {
            *arg = value;
        }
    }
}

/// The answer to one entry. The last call wins; replacing twice is a mistake that the host refuses.
#[derive(Debug)]
pub struct Edit<'a> {
    edits: &'a mut Edits,
    at: usize,
}

impl Edit<'_> {
    /// The entry ends here.
    pub fn drop_entry(&mut self) {
        self.edits.set_verdict(self.at, DROP);
    }

    /// The entry waits until `ms` milliseconds after its source wall time.
    pub fn delay_ms(&mut self, ms: u32) {
        self.edits.set_verdict(self.at, DELAY);
        self.edits.set_arg(self.at, ms);
    }

    /// The entry goes to the host's dead-letter file.
    pub fn dead_letter(&mut self, reason: &str) {
        let note = self.edits.notes.len() as u32;
        self.edits.notes.push(reason.to_owned());
        self.edits.set_verdict(self.at, DEAD_LETTER);
        self.edits.set_arg(self.at, note);
    }

    /// The entry goes to another namespace, whatever else happens to it; one that ends here goes nowhere.
    pub fn move_to(&mut self, namespace: &str) {
        let edits = &mut *self.edits;
        let known = edits.namespaces.iter().position(|n| n == namespace);
        let at = known.unwrap_or_else(|| {
            edits.namespaces.push(namespace.to_owned());
            edits.namespaces.len() - 1
        });
        if edits.ns.is_empty() {
            edits.ns.resize(edits.entries, 0);
        }
        if edits.verdict.is_empty() {
            edits.verdict.resize(edits.entries, KEEP);
        }
        if let (Some(ns), Some(verdict)) = (edits.ns.get_mut(self.at), edits.verdict.get_mut(self.at)) {
            *ns = at as u32;
            *verdict |= if ends(*verdict) { 0 } else { MOVED };
        }
    }

    /// The body becomes this raw document.
    pub fn replace(&mut self, body: &[u8]) {
        self.edits.out.extend_from_slice(body);
        self.edits.set_verdict(self.at, REPLACE);
    }

    /// The body becomes what `write` appends; nothing happens when it answers `false`.
    ///
    /// # Errors
    /// Those of `write`, for instance malformed BSON; the entry is then untouched.
    pub fn rewrite<E: Into<Failure>>(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> Result<bool, E>,
    ) -> Result<(), Failure> {
        let start = self.edits.out.len();
        match write(&mut self.edits.out) {
            Ok(true) => {
                self.edits.set_verdict(self.at, REPLACE);
                Ok(())
            }
            Ok(false) => {
                self.edits.out.truncate(start);
                Ok(())
            }
            Err(error) => {
                self.edits.out.truncate(start);
                Err(error.into())
            }
        }
    }

    /// Applies field edits to the entry's body, whatever its form: a document, a `$v: 2` diff or `$v: 1` modifiers.
    /// An update of which nothing is left is dropped. Deletes and DDL pass.
    ///
    /// # Errors
    /// The body is malformed, or the rules clash ([`Patch::check`]).
    pub fn patch(&mut self, entry: &Entry<'_>, patch: &Patch) -> Result<(), Failure> {
        if matches!(entry.op, Op::Delete | Op::Ddl) || entry.body.is_empty() {
            return Ok(());
        }
        patch.check()?;
        let start = self.edits.out.len();
        self.rewrite(|out| patch.write(entry.op, entry.body, out))?;
        if !entry.op.is_document() && self.edits.out.len() - start == bson::EMPTY.len() {
            self.edits.out.truncate(start);
            self.drop_entry();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Batch;

    #[test]
    fn an_untouched_batch_answers_with_empty_columns() {
        let mut edits = Edits::keep_all(3);
        edits.edit(1).rewrite(|_| Ok::<_, Failure>(false)).unwrap();
        assert_eq!(edits, Edits::keep_all(3));
    }

    #[test]
    fn verdicts_and_moves_combine() {
        let mut edits = Edits::keep_all(2);
        edits.edit(1).move_to("a.b");
        edits.edit(1).replace(&bson::EMPTY);
        assert_eq!(edits.verdict, [0, REPLACE | MOVED]);
        assert_eq!((edits.ns, edits.namespaces), (vec![0, 0], vec!["a.b".to_owned()]));
    }

    #[test]
    fn what_ends_here_goes_nowhere() {
        let mut edits = Edits::keep_all(4);
        for at in 0..2 {
            edits.edit(at).move_to("a.b");
            edits.edit(at + 2).drop_entry();
        }
        edits.edit(0).drop_entry();
        edits.edit(1).dead_letter("it is poison");
        edits.edit(2).move_to("a.b");
        edits.edit(3).dead_letter("it is poison");
        edits.edit(3).move_to("a.b");
        assert_eq!(edits.verdict, [DROP, DEAD_LETTER, DROP, DEAD_LETTER]);
    }

    #[test]
    fn an_update_of_which_nothing_is_left_is_dropped() {
        let mut batch = Batch::default();
        let body = ::bson::rawdoc! { "u": { "ssn": "1" } };
        batch.push(Op::UpdateDiff, "a.b", &[], body.as_bytes());
        let mut edits = Edits::keep_all(1);
        edits.edit(0).patch(&batch.entry(0).unwrap(), &Patch::default().unset("ssn")).unwrap();
        assert_eq!(edits.verdict, [DROP]);
        assert!(edits.out.is_empty());
    }
}
