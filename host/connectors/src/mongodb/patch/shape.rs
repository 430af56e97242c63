//! What a value looks like inside, as far as a server's limits care: its nesting, and names that occur twice.
//!
//! Servers refuse deep commands, and expressions keep one of two fields of the same name. Both are found in one walk
//! over the bytes, which decodes nothing. It never judges: who asked decides what follows.

use std::collections::HashSet;

use oplogue_engine::model::raw::{Element, Elements, kind};

/// Up to this many names are compared with each other; more go through a set.
const NAMES_COMPARED: usize = 16;

/// What a walk over a value found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Levels of documents and arrays, itself included; 0 for a scalar.
    pub(crate) levels: usize,
    /// A document somewhere inside has two fields of one name.
    pub(crate) twins: bool,
}

impl Shape {
    /// The shape of a value.
    pub(crate) fn of_value(element: &Element<'_>) -> Self {
        match element.kind {
            kind::DOCUMENT => walk(element.value, true),
            kind::ARRAY => walk(element.value, false),
            _ => Self::default(),
        }
    }
}

/// The shape of a raw document. Bytes that are none have one level: whoever uses them finds out.
pub(crate) fn of(document: &[u8]) -> Shape {
    walk(document, true)
}

fn walk(bytes: &[u8], named: bool) -> Shape {
    let mut shape = Shape { levels: 1, twins: false };
    let Ok(elements) = Elements::new(bytes) else { return shape };
    let mut names: Vec<&[u8]> = Vec::new();
    for element in elements.map_while(Result::ok) {
        let inner = Shape::of_value(&element);
        shape.levels = shape.levels.max(inner.levels + 1);
        shape.twins |= inner.twins;
        if named {
            names.push(element.name);
        }
    }
    shape.twins = shape.twins || twins(&names);
    shape
}

fn twins(names: &[&[u8]]) -> bool {
    if names.len() > NAMES_COMPARED {
        let mut seen = HashSet::with_capacity(names.len());
        return !names.iter().all(|name| seen.insert(*name));
    }
    names.iter().enumerate().any(|(at, name)| names.iter().take(at).any(|earlier| earlier == name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{RawDocumentBuf, cstr, rawdoc};

    fn with_twins() -> RawDocumentBuf {
        let mut document = rawdoc! { "a": 1 };
        document.append(cstr!("a"), 2);
        document
    }

    #[test]
    fn levels_count_documents_and_arrays() {
        assert_eq!(of(rawdoc! { "a": 1 }.as_bytes()), Shape { levels: 1, twins: false });
        assert_eq!(of(rawdoc! { "a": [{ "b": [] }], "c": {} }.as_bytes()).levels, 4);
    }

    #[test]
    fn twins_are_found_at_any_depth_and_in_any_number_of_fields() {
        assert!(of(with_twins().as_bytes()).twins);
        assert!(of(rawdoc! { "x": [1, { "y": with_twins() }] }.as_bytes()).twins);
        let mut many = RawDocumentBuf::new();
        for number in 0..40 {
            many.append(bson::raw::CString::try_from(format!("f{number}")).unwrap(), 0);
        }
        assert!(!of(many.as_bytes()).twins);
        many.append(cstr!("f7"), 1);
        assert!(of(many.as_bytes()).twins);
        assert!(!of(rawdoc! { "x": { "a": 1 }, "y": { "a": 1 }, "z": [1, 1] }.as_bytes()).twins);
    }
}
