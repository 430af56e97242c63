//! The server's `$v: 2` diff as a tree of borrowed bytes.
//!
//! The format is that of the server's `document_diff_serialization`: an object's diff holds `d` (removed names), `u`
//! (changed fields), `i` (new fields) and one `sNAME` for each field that is itself a diff; an array's holds
//! `a: true`, `l` (new length), `uN` and `sN`. An unknown section is an error: a newer server may know operations
//! that must not be skipped.

use oplogue_engine::model::raw::{Element, Elements, Malformed, kind, read_i32};
use thiserror::Error;

/// Diffs deeper than the server can store are malformed; this also bounds the recursion.
const DEPTH_MAX: usize = 220;

/// A diff that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DiffError {
    /// Not BSON.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// BSON, but not a diff that this version knows.
    #[error("the update's diff holds an unknown section `{0}`")]
    Unknown(String),
    /// Nested more deeply than a document can be.
    #[error("the update's diff is nested too deeply")]
    TooDeep,
}

/// What happens to one object or array.
#[derive(Debug)]
pub(crate) enum Node<'a> {
    Object(ObjectDiff<'a>),
    Array(ArrayDiff<'a>),
}

/// What happens to an object. The sections are raw documents.
#[derive(Debug, Default)]
pub(crate) struct ObjectDiff<'a> {
    /// Removed fields: only the names count.
    pub(crate) deleted: Option<&'a [u8]>,
    /// Fields with a new value, at their old place.
    pub(crate) updated: Option<&'a [u8]>,
    /// New fields, at the end.
    pub(crate) inserted: Option<&'a [u8]>,
    /// Fields that change inside, by name.
    pub(crate) children: Vec<(&'a [u8], Node<'a>)>,
}

/// What happens to an array.
#[derive(Debug, Default)]
pub(crate) struct ArrayDiff<'a> {
    /// The new length.
    pub(crate) length: Option<u32>,
    /// Changed elements, by ascending index.
    pub(crate) changes: Vec<(u32, ArrayChange<'a>)>,
}

/// What happens to one array element.
#[derive(Debug)]
pub(crate) enum ArrayChange<'a> {
    Set(Element<'a>),
    Child(Node<'a>),
}

impl<'a> ObjectDiff<'a> {
    /// Reads a diff; the outermost one always describes an object.
    pub(crate) fn parse(diff: &'a [u8]) -> Result<Self, DiffError> {
        Self::parse_at(diff, 0)
    }

    fn parse_at(diff: &'a [u8], depth: usize) -> Result<Self, DiffError> {
        let mut object = Self::default();
        for element in Elements::new(diff)? {
            let element = element?;
            match (element.name, element.kind) {
                (b"d", kind::DOCUMENT) => object.deleted = Some(checked(element.value)?),
                (b"u", kind::DOCUMENT) => object.updated = Some(checked(element.value)?),
                (b"i", kind::DOCUMENT) => object.inserted = Some(checked(element.value)?),
                ([b's', name @ ..], kind::DOCUMENT) => {
                    object.children.push((name, Node::parse_at(element.value, depth + 1)?));
                }
                _ => return Err(unknown(&element)),
            }
        }
        Ok(object)
    }
}

impl<'a> Node<'a> {
    fn parse_at(diff: &'a [u8], depth: usize) -> Result<Self, DiffError> {
        if depth > DEPTH_MAX {
            return Err(DiffError::TooDeep);
        }
        let first = Elements::new(diff)?.next().transpose()?;
        match first {
            Some(first) if first.name == b"a" && first.kind == kind::BOOLEAN => {
                ArrayDiff::parse_at(diff, depth).map(Self::Array)
            }
            _ => ObjectDiff::parse_at(diff, depth).map(Self::Object),
        }
    }
}

impl<'a> ArrayDiff<'a> {
    fn parse_at(diff: &'a [u8], depth: usize) -> Result<Self, DiffError> {
        let mut array = Self::default();
        for element in Elements::new(diff)?.skip(1) {
            let element = element?;
            match element.name {
                b"l" if element.kind == kind::INT32 => {
                    let length = read_i32(element.value, 0)?;
                    array.length = Some(u32::try_from(length).map_err(|_| unknown(&element))?);
                }
                [b'u', digits @ ..] => {
                    let index = index(digits).ok_or_else(|| unknown(&element))?;
                    array.changes.push((index, ArrayChange::Set(element)));
                }
                [b's', digits @ ..] if element.kind == kind::DOCUMENT => {
                    let index = index(digits).ok_or_else(|| unknown(&element))?;
                    let child = Node::parse_at(element.value, depth + 1)?;
                    array.changes.push((index, ArrayChange::Child(child)));
                }
                _ => return Err(unknown(&element)),
            }
        }
        let ascending = array.changes.is_sorted_by(|a, b| a.0 < b.0);
        let inside = array.changes.last().is_none_or(|last| array.length.is_none_or(|length| last.0 < length));
        if !ascending || !inside {
            return Err(DiffError::Unknown("array changes out of order or beyond the new length".into()));
        }
        Ok(array)
    }
}

/// Walks a section once, so that later walks of it cannot fail.
fn checked(section: &[u8]) -> Result<&[u8], DiffError> {
    for element in Elements::new(section)? {
        element?;
    }
    Ok(section)
}

/// The elements of a section that [`ObjectDiff::parse`] has walked already.
pub(crate) fn elements(section: Option<&[u8]>) -> impl Iterator<Item = Element<'_>> {
    section.and_then(|bytes| Elements::new(bytes).ok()).into_iter().flatten().filter_map(Result::ok)
}

fn index(digits: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(digits).ok()?;
    text.parse::<u32>().ok().filter(|n| i32::try_from(*n).is_ok_and(|n| n < i32::MAX))
}

fn unknown(element: &Element<'_>) -> DiffError {
    DiffError::Unknown(String::from_utf8_lossy(element.name).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    #[test]
    fn reads_every_section() {
        let diff = rawdoc! {
            "d": { "gone": false }, "u": { "x": 1 }, "i": { "new": 2 },
            "sobj": { "u": { "k": 9 } },
            "sarr": { "a": true, "l": 3, "u0": "v", "s2": { "d": { "y": false } } },
        };
        let parsed = ObjectDiff::parse(diff.as_bytes()).unwrap();
        assert_eq!(elements(parsed.deleted).count(), 1);
        assert_eq!(parsed.children.len(), 2);
        let Node::Array(array) = &parsed.children[1].1 else { panic!("an array diff was read as an object") };
        assert_eq!((array.length, array.changes.len()), (Some(3), 2));
    }

    #[test]
    fn an_unknown_section_is_an_error() {
        for diff in [rawdoc! { "b": { "x": 1 } }, rawdoc! { "sa": { "a": true, "z": 1 } }, rawdoc! { "u": 1 }] {
            assert!(matches!(ObjectDiff::parse(diff.as_bytes()), Err(DiffError::Unknown(_))), "{diff:?}");
        }
    }

    #[test]
    fn a_field_without_a_name_can_have_a_diff() {
        let diff = rawdoc! { "s": { "u": { "k": 1 } } };
        assert_eq!(ObjectDiff::parse(diff.as_bytes()).unwrap().children[0].0, b"");
    }
}
