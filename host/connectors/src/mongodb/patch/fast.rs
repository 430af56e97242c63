//! The fast path: a diff as classic `$set`/`$unset` modifiers, where those give the same bytes.
//!
//! Classic modifiers invent what is missing (`a.x` on a missing `a`) and read a number as an index or as a name
//! depending on what stands there. So this path is for documents that are exactly in the state before the change,
//! which only holds outside of overlap, and only for diffs whose every path is plain. New fields never take it: the
//! server logs a field that a pipeline moved to the end as a new one, without removing it first, and `$set` would
//! leave it in its place (found on 6.0.27). It returns `None` for all others; it never guesses.

use super::diff::{ArrayChange, ArrayDiff, Node, ObjectDiff, elements};
use super::exact::is_plain;
use crate::mongodb::writer::RawWriter;
use oplogue_engine::model::raw::Element;

/// Modifiers as one raw document; `None` when only the exact path is exact.
pub(crate) fn modifiers(diff: &ObjectDiff<'_>) -> Option<Vec<u8>> {
    let mut paths = Paths::default();
    paths.object(diff, &[])?;
    // An update without operators would be a replacement by nothing.
    if paths.set.is_empty() && paths.unset.is_empty() {
        return None;
    }
    let size: usize = paths.set.iter().map(|(path, e)| path.len() + e.value.len() + 2).sum();
    let mut writer = RawWriter::with_capacity(size + 32 + 16 * paths.unset.len());
    if !paths.set.is_empty() {
        writer.document("$set", |w| {
            for (path, element) in &paths.set {
                w.value(path, element.kind, element.value);
            }
        });
    }
    if !paths.unset.is_empty() {
        writer.document("$unset", |w| {
            for path in &paths.unset {
                w.boolean(path, true);
            }
        });
    }
    Some(writer.finish())
}

#[derive(Default)]
struct Paths<'a> {
    set: Vec<(Vec<u8>, Element<'a>)>,
    unset: Vec<Vec<u8>>,
}

impl<'a> Paths<'a> {
    fn object(&mut self, diff: &ObjectDiff<'a>, prefix: &[u8]) -> Option<()> {
        for removed in elements(diff.deleted) {
            self.unset.push(join(prefix, name_of_field(removed.name)?));
        }
        for changed in elements(diff.updated) {
            self.set.push((join(prefix, name_of_field(changed.name)?), changed));
        }
        if diff.inserted.is_some() {
            return None;
        }
        for (name, node) in &diff.children {
            self.node(node, &join(prefix, name_of_field(name)?))?;
        }
        Some(())
    }

    fn node(&mut self, node: &Node<'a>, path: &[u8]) -> Option<()> {
        match node {
            Node::Object(diff) => self.object(diff, path),
            Node::Array(diff) => self.array(diff, path),
        }
    }

    fn array(&mut self, diff: &ArrayDiff<'a>, path: &[u8]) -> Option<()> {
        if diff.length.is_some() {
            return None;
        }
        for (index, change) in &diff.changes {
            let path = join(path, index.to_string().as_bytes());
            match change {
                ArrayChange::Set(element) => self.set.push((path, *element)),
                ArrayChange::Child(node) => self.node(node, &path)?,
            }
        }
        Some(())
    }
}

/// `name`, if a path may hold it: plain and not a number, which would be an index.
fn name_of_field(name: &[u8]) -> Option<&[u8]> {
    (is_plain(name) && !name.iter().all(u8::is_ascii_digit)).then_some(name)
}

fn join(prefix: &[u8], name: &[u8]) -> Vec<u8> {
    if prefix.is_empty() {
        return name.to_vec();
    }
    [prefix, b".", name].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{Document, RawDocumentBuf, doc, rawdoc};

    fn compiled(diff: &RawDocumentBuf) -> Option<Document> {
        let bytes = modifiers(&ObjectDiff::parse(diff.as_bytes()).unwrap())?;
        Some(Document::from_reader(bytes.as_slice()).unwrap())
    }

    #[test]
    fn plain_paths_become_modifiers() {
        let diff = rawdoc! {
            "d": { "x": false }, "u": { "y": 1 },
            "sobj": { "u": { "k": 9 } }, "sarr": { "a": true, "u3": "v", "s4": { "u": { "z": 0 } } },
        };
        assert_eq!(
            compiled(&diff).unwrap(),
            doc! {
                "$set": { "y": 1, "obj.k": 9, "arr.3": "v", "arr.4.z": 0 },
                "$unset": { "x": true },
            }
        );
    }

    #[test]
    fn what_modifiers_cannot_do_exactly_is_refused() {
        for diff in [
            rawdoc! { "u": { "a.b": 1 } },
            rawdoc! { "u": { "": 1 } },
            rawdoc! { "u": { "0": 1 } },
            rawdoc! { "d": { "$x": false } },
            rawdoc! { "u": { "x": 1 }, "i": { "n": 1 } },
            rawdoc! { "sobj": { "i": { "n": 1 } } },
            rawdoc! {},
            rawdoc! { "sarr": { "a": true, "l": 2 } },
            rawdoc! { "s7": { "u": { "k": 1 } } },
        ] {
            assert_eq!(compiled(&diff), None, "{diff:?}");
        }
    }
}
