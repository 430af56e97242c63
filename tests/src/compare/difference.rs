//! One difference between source and target, in a form that a person can act on.
//!
//! Documents are shown twice: as relaxed extended JSON to read, and in hex because the differences that matter
//! most (a number's type, a field's place, a NaN's payload) do not show in JSON. Long ones are cut. Nothing
//! here decides whether a difference is allowed.

use std::fmt;

use bson::Bson;
use bson::raw::RawDocument;

/// Characters of one rendering that are shown.
const SHOWN_MAX: usize = 1_500;

/// What differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DifferenceKind {
    /// The target has no such collection.
    MissingCollection,
    /// The target has a collection that nothing on the source explains.
    ExtraCollection,
    /// Collection type or options differ.
    Options,
    /// An index is missing, is too many, or differs.
    Index,
    /// The target lacks a document.
    MissingDocument,
    /// The target has a document that the source lacks.
    ExtraDocument,
    /// A document's bytes differ.
    Document,
    /// The documents are the same but not in the same order (capped collections).
    Order,
}

/// A difference in one target namespace.
#[derive(Debug, Clone)]
pub struct Difference {
    /// The target's name of the collection.
    pub namespace: String,
    /// What differs.
    pub kind: DifferenceKind,
    /// Both sides, rendered.
    pub detail: String,
}

impl Difference {
    pub(super) fn new(namespace: &str, kind: DifferenceKind, detail: impl Into<String>) -> Self {
        Self { namespace: namespace.to_owned(), kind, detail: detail.into() }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {:?}", self.namespace, self.kind)?;
        if self.detail.is_empty() { Ok(()) } else { write!(out, "\n{}", self.detail) }
    }
}

/// All differences, one after the other.
#[must_use]
pub fn report(found: &[Difference]) -> String {
    found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Two documents beside each other; either may be absent.
pub(super) fn both(source: Option<&RawDocument>, target: Option<&RawDocument>) -> String {
    format!("  source {}\n  target {}", one(source), one(target))
}

fn one(document: Option<&RawDocument>) -> String {
    let Some(document) = document else {
        return "(none)".to_owned();
    };
    let text = bson::Document::try_from(document).map_or_else(
        |error| format!("(not decodable: {error})"),
        |document| Bson::Document(document).into_relaxed_extjson().to_string(),
    );
    let hex: String = document.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}\n         {}", cut(&text), cut(&hex))
}

fn cut(text: &str) -> String {
    if text.chars().count() <= SHOWN_MAX {
        return text.to_owned();
    }
    text.chars().take(SHOWN_MAX).chain("…".chars()).collect()
}
