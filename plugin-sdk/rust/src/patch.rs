//! Field edits that hold for every form of a body: documents, `$v: 2` diffs and `$v: 1` modifiers.
//!
//! A rule such as "mask `ssn`" is written once, as a path and an action, and applied where the field's value can
//! travel: whole documents, the sections of a diff tree, dotted modifier names. Arrays on the way are entered: `a.b`
//! means `b` of `a` and of every document in an array `a`. Bytes that no rule touches are copied in long spans.

use crate::Failure;
use crate::batch::Op;
use crate::bson::{self, Element, Malformed, Value, elements, kind};

/// A set of field edits. Build it once, in [`crate::Filter::new`].
#[derive(Debug, Clone, Default)]
pub struct Patch {
    root: Node,
    /// The path of a rule that another rule is in the way of.
    clash: Option<String>,
}

#[derive(Debug, Clone, Default)]
struct Node {
    fields: Vec<(String, Step)>,
}

#[derive(Debug, Clone)]
enum Step {
    Into(Node),
    Act(Action),
}

#[derive(Debug, Clone)]
enum Action {
    /// New value where the field is.
    Overwrite(Value),
    /// The same, and appended to whole documents that lack it.
    Set(Value),
    Rename(String),
    Unset,
}

/// Whether the bytes changed; unchanged ones are not written.
type Changed = Result<bool, Malformed>;

impl Patch {
    /// Gives the field at `path` this value wherever it has one.
    #[must_use]
    pub fn overwrite(self, path: &str, value: impl Into<Value>) -> Self {
        self.with(path, Action::Overwrite(value.into()))
    }

    /// The same, and appends the field to whole documents that lack it (if its parent is there).
    #[must_use]
    pub fn set(self, path: &str, value: impl Into<Value>) -> Self {
        self.with(path, Action::Set(value.into()))
    }

    /// Renames the field in place; `to` is a bare name of the same parent, which must not have a field of that name.
    #[must_use]
    pub fn rename(self, path: &str, to: &str) -> Self {
        self.with(path, Action::Rename(to.to_owned()))
    }

    /// Removes the field.
    #[must_use]
    pub fn unset(self, path: &str) -> Self {
        self.with(path, Action::Unset)
    }

    fn with(mut self, path: &str, action: Action) -> Self {
        if !self.root.add(path, action) && self.clash.is_none() {
            self.clash = Some(path.to_owned());
        }
        self
    }

    /// Says whether all rules can hold: at most one for a field, and none inside a field that has one. Call it in
    /// [`crate::Filter::new`]; rules that clash change no entry, they fail it.
    ///
    /// # Errors
    /// Names the field.
    pub fn check(&self) -> Result<(), Failure> {
        self.clash.as_ref().map_or(Ok(()), |path| {
            Err(Failure::new(format!("two rules are about {path}, or one is about a field that it is a part of")))
        })
    }

    /// Appends the edited body to `out`. Answers `false`, and appends nothing, when no rule applies.
    ///
    /// # Errors
    /// The body is malformed; `out` may then hold a part.
    pub fn write(&self, op: Op, body: &[u8], out: &mut Vec<u8>) -> Changed {
        match op {
            Op::Snapshot | Op::Insert | Op::Replace => self.root.document(body, out, true),
            Op::UpdateDiff => self.root.diff(body, out),
            Op::UpdateModifiers => self.root.modifiers(body, out),
            Op::Delete | Op::Ddl => Ok(false),
        }
    }
}

/// Copies a document except where it is told otherwise.
struct Splice<'a, 'o> {
    source: &'a [u8],
    out: &'o mut Vec<u8>,
    start: usize,
    copied: usize,
    changed: bool,
}

impl<'a, 'o> Splice<'a, 'o> {
    fn new(source: &'a [u8], out: &'o mut Vec<u8>) -> Self {
        let start = out.len();
        Self { source, out, start, copied: 0, changed: false }
    }

    fn copy_to(&mut self, end: usize) {
        self.out.extend_from_slice(self.source.get(self.copied..end).unwrap_or_default());
        self.copied = end;
    }

    fn skip(&mut self, element: &Element<'_>) {
        self.copy_to(element.start);
        self.copied = element.end();
        self.changed = true;
    }

    fn put(&mut self, element: &Element<'_>, kind: u8, name: &[u8], value: &[u8]) {
        self.skip(element);
        bson::write_element(self.out, kind, name, value);
    }

    /// Rewrites an element's value; an element whose value became empty is taken out if `drop_empty`.
    fn nest(
        &mut self,
        element: &Element<'_>,
        drop_empty: bool,
        write: impl FnOnce(&[u8], &mut Vec<u8>) -> Changed,
    ) -> Result<(), Malformed> {
        self.copy_to(element.value_at);
        let at = self.out.len();
        if !write(element.value, self.out)? {
            self.out.truncate(at);
            return Ok(());
        }
        self.copied = element.end();
        self.changed = true;
        if drop_empty && self.out.len() - at == bson::EMPTY.len() {
            self.out.truncate(at - (element.value_at - element.start));
        }
        Ok(())
    }

    fn finish(self) -> bool {
        if !self.changed {
            self.out.truncate(self.start);
            return false;
        }
        self.out.extend_from_slice(self.source.get(self.copied..).unwrap_or_default());
        let length = (self.out.len() - self.start) as u32;
        if let Some(prefix) = self.out.get_mut(self.start..self.start + 4) {
            prefix.copy_from_slice(&length.to_le_bytes());
        }
        true
    }

    /// Appends an element at the end of the document.
    fn append(&mut self, kind: u8, name: &[u8], value: &[u8]) {
        let end = self.source.len().saturating_sub(1);
        self.copy_to(end);
        bson::write_element(self.out, kind, name, value);
        self.changed = true;
    }
}

/// What a dotted modifier name meets.
enum Met<'n> {
    Nothing,
    /// An action, at this segment of the name.
    Act(&'n Action, usize),
    Into(&'n Node),
}

impl Node {
    /// Whether the rule has a place of its own.
    fn add(&mut self, path: &str, action: Action) -> bool {
        let (head, tail) = path.split_once('.').map_or((path, None), |(head, tail)| (head, Some(tail)));
        let there = self.fields.iter_mut().find(|(name, _)| name == head).map(|(_, step)| step);
        match (there, tail) {
            (Some(Step::Into(node)), Some(tail)) => node.add(tail, action),
            (Some(_), _) => false,
            (None, Some(tail)) => {
                let mut node = Self::default();
                node.add(tail, action);
                self.fields.push((head.to_owned(), Step::Into(node)));
                true
            }
            (None, None) => {
                self.fields.push((head.to_owned(), Step::Act(action)));
                true
            }
        }
    }

    fn find(&self, name: &[u8]) -> Option<&Step> {
        self.fields.iter().find(|(field, _)| field.as_bytes() == name).map(|(_, step)| step)
    }

    /// `append`: it is a whole document, and no section of a diff.
    fn document(&self, document: &[u8], out: &mut Vec<u8>, append: bool) -> Changed {
        let mut splice = Splice::new(document, out);
        let mut seen = 0_u64;
        for element in elements(document) {
            let element = element?;
            let at = self.fields.iter().position(|(field, _)| field.as_bytes() == element.name);
            let Some((at, (_, step))) = at.and_then(|at| Some((at, self.fields.get(at)?))) else { continue };
            seen |= 1 << at.min(63);
            match step {
                Step::Act(Action::Overwrite(v) | Action::Set(v)) => {
                    splice.put(&element, v.kind, element.name, &v.bytes)
                }
                Step::Act(Action::Rename(to)) => splice.put(&element, element.kind, to.as_bytes(), element.value),
                Step::Act(Action::Unset) => splice.skip(&element),
                Step::Into(node) => node.value(&element, &mut splice)?,
            }
        }
        if append {
            for (at, (name, step)) in self.fields.iter().enumerate() {
                if let Step::Act(Action::Set(v)) = step
                    && seen & (1 << at.min(63)) == 0
                {
                    splice.append(v.kind, name.as_bytes(), &v.bytes);
                }
            }
        }
        Ok(splice.finish())
    }

    /// The rules below a field, applied to its value, which is a whole one wherever it stands.
    fn value(&self, element: &Element<'_>, splice: &mut Splice<'_, '_>) -> Result<(), Malformed> {
        match element.kind {
            kind::DOCUMENT => splice.nest(element, false, |value, out| self.document(value, out, true)),
            kind::ARRAY => splice.nest(element, false, |value, out| self.array(value, out)),
            _ => Ok(()),
        }
    }

    fn array(&self, array: &[u8], out: &mut Vec<u8>) -> Changed {
        let mut splice = Splice::new(array, out);
        for element in elements(array) {
            self.value(&element?, &mut splice)?;
        }
        Ok(splice.finish())
    }

    /// A node of a diff tree: sections `d`, `u`, `i` and `sNAME`; or, with `a: true`, `uN` and `sN` of an array.
    fn diff(&self, diff: &[u8], out: &mut Vec<u8>) -> Changed {
        let mut splice = Splice::new(diff, out);
        let mut of_array = false;
        for (at, element) in elements(diff).enumerate() {
            let element = element?;
            if at == 0 && element.name == b"a" && element.kind == kind::BOOLEAN {
                of_array = true;
                continue;
            }
            match element.name {
                [b'u', ..] if of_array => self.value(&element, &mut splice)?,
                [b's', ..] if of_array => splice.nest(&element, true, |value, out| self.diff(value, out))?,
                b"u" | b"i" => splice.nest(&element, true, |value, out| self.document(value, out, false))?,
                b"d" => splice.nest(&element, true, |value, out| self.deleted(value, out))?,
                [b's', name @ ..] => self.sub_diff(name, &element, &mut splice)?,
                _ => {}
            }
        }
        Ok(splice.finish())
    }

    fn sub_diff(&self, name: &[u8], element: &Element<'_>, splice: &mut Splice<'_, '_>) -> Result<(), Malformed> {
        match self.find(name) {
            None => Ok(()),
            // The target holds the overwritten value, in which nothing can be changed.
            Some(Step::Act(Action::Overwrite(_) | Action::Set(_) | Action::Unset)) => {
                splice.skip(element);
                Ok(())
            }
            Some(Step::Act(Action::Rename(to))) => {
                splice.put(element, element.kind, format!("s{to}").as_bytes(), element.value);
                Ok(())
            }
            Some(Step::Into(node)) => splice.nest(element, true, |value, out| node.diff(value, out)),
        }
    }

    /// Section `d`: names of deleted fields.
    fn deleted(&self, section: &[u8], out: &mut Vec<u8>) -> Changed {
        let mut splice = Splice::new(section, out);
        for element in elements(section) {
            let element = element?;
            match self.find(element.name) {
                Some(Step::Act(Action::Rename(to))) => {
                    splice.put(&element, element.kind, to.as_bytes(), element.value);
                }
                // A document without the field has it again on the target.
                Some(Step::Act(Action::Unset | Action::Set(_))) => splice.skip(&element),
                Some(Step::Act(Action::Overwrite(_)) | Step::Into(_)) | None => {}
            }
        }
        Ok(splice.finish())
    }

    fn modifiers(&self, body: &[u8], out: &mut Vec<u8>) -> Changed {
        let mut splice = Splice::new(body, out);
        for element in elements(body) {
            let element = element?;
            if element.kind == kind::DOCUMENT && element.name.first() == Some(&b'$') {
                let removes = element.name == b"$unset";
                splice.nest(&element, true, |value, out| self.modified(value, out, removes))?;
            }
        }
        Ok(splice.finish())
    }

    /// The fields of one modifier, with dotted names.
    fn modified(&self, fields: &[u8], out: &mut Vec<u8>, removes: bool) -> Changed {
        let mut splice = Splice::new(fields, out);
        for element in elements(fields) {
            let element = element?;
            let segments: Vec<&[u8]> = element.name.split(|b| *b == b'.').collect();
            match self.meet(&segments) {
                Met::Nothing => {}
                Met::Into(node) if !removes => node.value(&element, &mut splice)?,
                Met::Into(_) => {}
                Met::Act(Action::Rename(to), at) => {
                    let mut renamed = segments.clone();
                    if let Some(segment) = renamed.get_mut(at) {
                        *segment = to.as_bytes();
                    }
                    splice.put(&element, element.kind, &renamed.join(&b'.'), element.value);
                }
                Met::Act(Action::Unset, _) => splice.skip(&element),
                Met::Act(Action::Overwrite(v) | Action::Set(v), at) => {
                    if at + 1 < segments.len() {
                        splice.skip(&element);
                    } else if !removes {
                        splice.put(&element, v.kind, element.name, &v.bytes);
                    } else if self.sets(&segments) {
                        splice.skip(&element);
                    }
                }
            }
        }
        Ok(splice.finish())
    }

    /// Whether a document without this field has it again on the target.
    fn sets(&self, segments: &[&[u8]]) -> bool {
        matches!(self.meet(segments), Met::Act(Action::Set(_), _))
    }

    fn meet(&self, segments: &[&[u8]]) -> Met<'_> {
        let mut node = self;
        for (at, segment) in segments.iter().enumerate() {
            match node.find(segment) {
                Some(Step::Act(action)) => return Met::Act(action, at),
                Some(Step::Into(below)) => node = below,
                // An index into an array on the way.
                None if at > 0 && segment.iter().all(u8::is_ascii_digit) => {}
                None => return Met::Nothing,
            }
        }
        Met::Into(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::bson::{Document, RawDocumentBuf, doc};

    fn apply(patch: &Patch, op: Op, body: Document) -> Document {
        let raw = RawDocumentBuf::try_from(&body).unwrap();
        let mut out = vec![9, 9];
        if !patch.write(op, raw.as_bytes(), &mut out).unwrap() {
            assert_eq!(out, [9, 9]);
            return body;
        }
        Document::try_from(RawDocumentBuf::from_bytes(out[2..].to_vec()).unwrap()).unwrap()
    }

    fn mask() -> Patch {
        Patch::default().overwrite("ssn", "***").overwrite("home.zip", 0).unset("secret").rename("old", "new")
    }

    #[test]
    fn documents() {
        let body = doc! { "_id": 1, "ssn": "123", "home": [{ "zip": 5, "x": 1 }, { "y": 2 }], "secret": 1, "old": [1] };
        let expected = doc! { "_id": 1, "ssn": "***", "home": [{ "zip": 0, "x": 1 }, { "y": 2 }], "new": [1] };
        assert_eq!(apply(&mask(), Op::Insert, body), expected);
        let other = doc! { "_id": 1, "x": { "ssn": 1 } };
        assert_eq!(apply(&mask(), Op::Snapshot, other.clone()), other);
    }

    #[test]
    fn rules_that_clash_are_named() {
        assert!(mask().check().is_ok());
        let twice = Patch::default().overwrite("ssn", "***").rename("ssn", "tax_id");
        let above = Patch::default().overwrite("home.zip", 0).rename("home", "address");
        let below = Patch::default().unset("home").overwrite("home.zip", 0);
        for (patch, path) in [(twice, "ssn"), (above, "home"), (below, "home.zip")] {
            assert!(patch.check().unwrap_err().message.contains(path));
        }
    }

    #[test]
    fn set_appends_to_documents_only() {
        let patch = Patch::default().set("seen", true).set("home.country", "PL");
        assert_eq!(
            apply(&patch, Op::Replace, doc! { "_id": 1, "home": {} }),
            doc! { "_id": 1, "home": { "country": "PL" }, "seen": true }
        );
        let diff = doc! { "u": { "x": 1 } };
        assert_eq!(apply(&patch, Op::UpdateDiff, diff.clone()), diff);
    }

    /// Whatever way a document takes, the field is there in the end.
    #[test]
    fn set_holds_in_updates_too() {
        let patch = Patch::default().set("seen", true).set("home.country", "PL");
        let home = doc! { "zip": 1 };
        let set = doc! { "zip": 1, "country": "PL" };
        for section in ["u", "i"] {
            let diff = doc! { section: { "home": home.clone() } };
            assert_eq!(apply(&patch, Op::UpdateDiff, diff), doc! { section: { "home": set.clone() } });
        }
        let diff = doc! { "d": { "seen": false, "x": false }, "shome": { "d": { "country": false, "y": false } } };
        let expected = doc! { "d": { "x": false }, "shome": { "d": { "y": false } } };
        assert_eq!(apply(&patch, Op::UpdateDiff, diff), expected);
        let body = doc! { "$set": { "home": home }, "$unset": { "seen": true, "home.country": true, "x": true } };
        let expected = doc! { "$set": { "home": set }, "$unset": { "x": true } };
        assert_eq!(apply(&patch, Op::UpdateModifiers, body), expected);
    }

    #[test]
    fn diffs() {
        let diff = doc! {
            "d": { "ssn": false, "secret": false, "old": false },
            "u": { "ssn": "9", "home": { "zip": 1 } }, "i": { "secret": 2 },
            "shome": { "u": { "zip": 7 }, "i": { "q": 1 } },
            "sold": { "u": { "z": 1 } }, "ssecret": { "u": { "z": 1 } }, "sssn": { "u": { "z": 1 } },
        };
        let expected = doc! {
            "d": { "ssn": false, "new": false },
            "u": { "ssn": "***", "home": { "zip": 0 } },
            "shome": { "u": { "zip": 0 }, "i": { "q": 1 } },
            "snew": { "u": { "z": 1 } },
        };
        assert_eq!(apply(&mask(), Op::UpdateDiff, diff), expected);
    }

    #[test]
    fn diffs_of_arrays() {
        let diff = doc! { "shome": { "a": true, "l": 3, "u0": { "zip": 1 }, "s1": { "u": { "zip": 2 } } } };
        let expected = doc! { "shome": { "a": true, "l": 3, "u0": { "zip": 0 }, "s1": { "u": { "zip": 0 } } } };
        assert_eq!(apply(&mask(), Op::UpdateDiff, diff), expected);
    }

    #[test]
    fn modifiers() {
        let body = doc! {
            "$set": { "ssn": 1, "ssn.part": 2, "home.zip": 3, "home.4.zip": 4, "home.0": { "zip": 5 }, "old.a": 1, "b": 2 },
            "$unset": { "ssn": true, "secret": true, "old": true },
        };
        let expected = doc! {
            "$set": { "ssn": "***", "home.zip": 0, "home.4.zip": 0, "home.0": { "zip": 0 }, "new.a": 1, "b": 2 },
            "$unset": { "ssn": true, "new": true },
        };
        assert_eq!(apply(&mask(), Op::UpdateModifiers, body), expected);
        assert_eq!(apply(&mask(), Op::UpdateModifiers, doc! { "$unset": { "secret": true } }), doc! {});
    }

    #[test]
    fn malformed_bodies_are_errors() {
        let raw = RawDocumentBuf::try_from(&doc! { "a": { "b": "text" }, "home": { "zip": 1 } }).unwrap();
        for n in 5..raw.as_bytes().len() {
            assert!(mask().write(Op::Insert, &raw.as_bytes()[..n], &mut Vec::new()).is_err());
        }
    }
}
