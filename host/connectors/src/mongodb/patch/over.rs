//! What diffs make of a document that is in the very state they were logged about.
//!
//! An insert and the updates behind it are often written together. The source had exactly that document, so what comes
//! of it is known without a server: it is put together here out of the bytes of both, and travels as the plain insert or
//! replacement that it is. Whatever does not fit the state that a diff speaks of, or could be read in two ways, has no
//! result here: the exact path, which does what the server's own applier does with any document, is for that.

use std::collections::HashMap;

use oplogue_engine::model::raw::{Element, Elements, kind};

use super::diff::{ArrayChange, ArrayDiff, Node, ObjectDiff, elements};
use crate::mongodb::writer::RawWriter;

/// The document after all the diffs, one after the other; `None` when one of them does not fit.
pub(crate) fn apply<'d>(base: &[u8], diffs: impl IntoIterator<Item = &'d [u8]>) -> Option<Vec<u8>> {
    let mut document = None;
    for diff in diffs {
        let before: &[u8] = document.as_deref().unwrap_or(base);
        let tree = ObjectDiff::parse(diff).ok()?;
        let mut w = RawWriter::with_capacity(before.len() + diff.len());
        object(&mut w, before, &tree)?;
        document = Some(w.finish());
    }
    document
}

/// What happens to one field.
enum Change<'t, 'a> {
    Delete,
    Update(Element<'a>),
    /// It goes to the end, whether or not it is there.
    Insert,
    Inside(&'t Node<'a>),
}

/// Copies `before` with the changes.
fn object(w: &mut RawWriter, before: &[u8], diff: &ObjectDiff<'_>) -> Option<()> {
    let mut changes: HashMap<&[u8], Change<'_, '_>> = HashMap::new();
    let deleted = elements(diff.deleted).map(|element| (element.name, Change::Delete));
    let updated = elements(diff.updated).map(|element| (element.name, Change::Update(element)));
    let inserted = elements(diff.inserted).map(|element| (element.name, Change::Insert));
    let inside = diff.children.iter().map(|(name, node)| (*name, Change::Inside(node)));
    for (name, change) in deleted.chain(updated).chain(inserted).chain(inside) {
        // Two things happen to one field.
        if changes.insert(name, change).is_some() {
            return None;
        }
    }
    let mut met = Vec::with_capacity(changes.len());
    for element in Elements::new(before).ok()? {
        let element = element.ok()?;
        let Some((name, change)) = changes.get_key_value(element.name) else {
            w.element(&element);
            continue;
        };
        // Which of two fields of one name is meant?
        if met.contains(name) {
            return None;
        }
        met.push(*name);
        match change {
            Change::Delete | Change::Insert => {}
            Change::Update(to) => w.element(to),
            Change::Inside(node) => inside_of(w, &element, node)?,
        }
    }
    let must_be_there = |change: &Change<'_, '_>| !matches!(change, Change::Insert);
    if changes.iter().any(|(name, change)| must_be_there(change) && !met.contains(name)) {
        return None;
    }
    elements(diff.inserted).for_each(|element| w.element(&element));
    Some(())
}

fn inside_of(w: &mut RawWriter, before: &Element<'_>, node: &Node<'_>) -> Option<()> {
    match (node, before.kind) {
        (Node::Object(diff), kind::DOCUMENT) => w.document(before.name, |w| object(w, before.value, diff)),
        (Node::Array(diff), kind::ARRAY) => w.array(before.name, |w| array(w, before.value, diff)),
        (Node::Object(_) | Node::Array(_), _) => None,
    }
}

/// Copies an array with the changes: cut or filled up with nulls to the new length.
fn array(w: &mut RawWriter, before: &[u8], diff: &ArrayDiff<'_>) -> Option<()> {
    let mut changes = diff.changes.iter().peekable();
    let mut length = 0;
    for element in Elements::new(before).ok()?.take(diff.length.map_or(usize::MAX, |length| length as usize)) {
        let element = element.ok()?;
        match changes.next_if(|(index, _)| *index == length) {
            None => w.element(&element),
            Some((_, ArrayChange::Set(to))) => w.element(to),
            Some((_, ArrayChange::Child(node))) => inside_of(w, &element, node)?,
        }
        length += 1;
    }
    for (index, change) in changes {
        let ArrayChange::Set(to) = change else { return None };
        (length..*index).for_each(|_| w.null(""));
        w.element(to);
        length = index + 1;
    }
    (length..diff.length.unwrap_or(length)).for_each(|_| w.null(""));
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{RawDocumentBuf, rawdoc};

    fn applied(base: RawDocumentBuf, diff: RawDocumentBuf) -> Option<RawDocumentBuf> {
        apply(base.as_bytes(), [diff.as_bytes()]).map(|bytes| RawDocumentBuf::from_bytes(bytes).unwrap())
    }

    #[test]
    fn fields_keep_their_place_and_new_ones_go_to_the_end() {
        let base = rawdoc! { "_id": 1, "a": 1, "b": 2, "c": { "x": 1, "y": 2 }, "d": 3 };
        let diff =
            rawdoc! { "d": { "b": false }, "u": { "a": "new" }, "i": { "d": 9, "e": 5 }, "sc": { "u": { "x": 7 } } };
        let after = rawdoc! { "_id": 1, "a": "new", "c": { "x": 7, "y": 2 }, "d": 9, "e": 5 };
        assert_eq!(applied(base, diff).unwrap(), after);
    }

    #[test]
    fn arrays_are_cut_filled_and_changed_inside() {
        let base = || rawdoc! { "_id": 1, "a": [1, { "k": 1 }, 3, 4] };
        let diff = |array: RawDocumentBuf| rawdoc! { "sa": array };
        let of = |array| applied(base(), diff(array));
        assert_eq!(of(rawdoc! { "a": true, "l": 2, "u0": "x" }).unwrap(), rawdoc! { "_id": 1, "a": ["x", { "k": 1 }] });
        let inside = of(rawdoc! { "a": true, "s1": { "u": { "k": 2 } }, "u3": 9 });
        assert_eq!(inside.unwrap(), rawdoc! { "_id": 1, "a": [1, { "k": 2 }, 3, 9] });
        let longer = of(rawdoc! { "a": true, "u6": 7 });
        assert_eq!(longer.unwrap(), rawdoc! { "_id": 1, "a": [1, { "k": 1 }, 3, 4, null, null, 7] });
        let filled = of(rawdoc! { "a": true, "l": 6 });
        assert_eq!(filled.unwrap(), rawdoc! { "_id": 1, "a": [1, { "k": 1 }, 3, 4, null, null] });
    }

    #[test]
    fn several_diffs_go_one_after_the_other() {
        let (one, two) = (rawdoc! { "i": { "n": { "x": 1 } } }, rawdoc! { "sn": { "u": { "x": 2 } } });
        let base = rawdoc! { "_id": 1 };
        let after = apply(base.as_bytes(), [one.as_bytes(), two.as_bytes()]).unwrap();
        assert_eq!(after, rawdoc! { "_id": 1, "n": { "x": 2 } }.into_bytes());
        assert_eq!(apply(base.as_bytes(), [two.as_bytes(), one.as_bytes()]), None);
        assert_eq!(apply(base.as_bytes(), []), None, "there is nothing to apply");
    }

    #[test]
    fn what_does_not_fit_the_state_has_no_result() {
        let base = || rawdoc! { "_id": 1, "a": 1, "o": { "k": 1 }, "l": [1] };
        for diff in [
            rawdoc! { "u": { "missing": 1 } },
            rawdoc! { "d": { "missing": false } },
            rawdoc! { "smissing": { "u": { "k": 1 } } },
            rawdoc! { "sa": { "u": { "k": 1 } } },
            rawdoc! { "so": { "a": true, "u0": 1 } },
            rawdoc! { "sl": { "u": { "k": 1 } } },
            rawdoc! { "sl": { "a": true, "s0": { "u": { "k": 1 } } } },
            rawdoc! { "sl": { "a": true, "s3": { "u": { "k": 1 } } } },
            rawdoc! { "u": { "a": 1 }, "i": { "a": 2 } },
            rawdoc! { "z": 1 },
        ] {
            assert_eq!(applied(base(), diff.clone()), None, "{diff:?}");
        }
    }

    #[test]
    fn two_fields_of_one_name_have_no_result_where_they_are_met() {
        let mut twins = RawDocumentBuf::new();
        for value in [1, 2] {
            twins.append(bson::cstr!("a"), value);
        }
        for diff in [rawdoc! { "u": { "a": 3 } }, rawdoc! { "d": { "a": false } }, rawdoc! { "i": { "a": 3 } }] {
            assert_eq!(applied(twins.clone(), diff), None);
        }
        assert!(applied(twins, rawdoc! { "i": { "b": 3 } }).is_some(), "they are copied as they are");
    }
}
