//! A small walk over raw BSON for the places where the `bson` crate would decode more than was asked.
//!
//! Used on the hot path for the oplog envelope and `_id` lookups. Written by hand because `bson::RawDocument`
//! validates and builds a value for each element it passes; this walk only skips. It never panics: malformed bytes
//! are an error that says at which offset.

use thiserror::Error;

/// Bytes that are not BSON.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("malformed BSON at offset {offset}: {reason}")]
pub struct Malformed {
    /// Offset from the start of the walked document.
    pub offset: usize,
    /// What was expected.
    pub reason: &'static str,
}

/// One element of a document: its type byte, name and value bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element<'a> {
    /// BSON type byte (bsonspec.org), e.g. 0x02 for a string.
    pub kind: u8,
    /// Field name, as bytes: BSON promises UTF-8, the walk does not check it.
    pub name: &'a [u8],
    /// The value's bytes, without type and name.
    pub value: &'a [u8],
    /// Offset of the value from the start of the document.
    pub offset: usize,
}

impl Element<'_> {
    /// Offset just behind the value.
    #[must_use]
    pub fn end(&self) -> usize {
        self.offset + self.value.len()
    }
}

/// BSON type bytes (bsonspec.org).
pub mod kind {
    pub const DOUBLE: u8 = 0x01;
    pub const STRING: u8 = 0x02;
    pub const DOCUMENT: u8 = 0x03;
    pub const ARRAY: u8 = 0x04;
    pub const BINARY: u8 = 0x05;
    pub const UNDEFINED: u8 = 0x06;
    pub const OBJECT_ID: u8 = 0x07;
    pub const BOOLEAN: u8 = 0x08;
    pub const DATE: u8 = 0x09;
    pub const NULL: u8 = 0x0a;
    pub const REGEX: u8 = 0x0b;
    pub const DB_POINTER: u8 = 0x0c;
    pub const JAVASCRIPT: u8 = 0x0d;
    pub const SYMBOL: u8 = 0x0e;
    pub const JAVASCRIPT_SCOPE: u8 = 0x0f;
    pub const INT32: u8 = 0x10;
    pub const TIMESTAMP: u8 = 0x11;
    pub const INT64: u8 = 0x12;
    pub const DECIMAL128: u8 = 0x13;
    pub const MIN_KEY: u8 = 0xff;
    pub const MAX_KEY: u8 = 0x7f;
}

/// Iterates the elements of a raw document (or array).
#[derive(Debug, Clone)]
pub struct Elements<'a> {
    bytes: &'a [u8],
    at: usize,
    done: bool,
}

impl<'a> Elements<'a> {
    /// Starts a walk over `document`, which must be exactly one document: length prefix, elements, NUL.
    pub fn new(document: &'a [u8]) -> Result<Self, Malformed> {
        let length = read_i32(document, 0)?;
        if usize::try_from(length).ok() != Some(document.len()) || document.len() < 5 {
            return Err(Malformed { offset: 0, reason: "the length prefix does not match the bytes" });
        }
        Ok(Self { bytes: document, at: 4, done: false })
    }

    /// Goes on with a walk over `document` behind an element that ended at `end`; 0 = from its beginning.
    pub fn behind(document: &'a [u8], end: usize) -> Result<Self, Malformed> {
        let mut elements = Self::new(document)?;
        elements.at = elements.at.max(end);
        Ok(elements)
    }

    fn step(&mut self) -> Result<Option<Element<'a>>, Malformed> {
        let malformed = |offset, reason| Malformed { offset, reason };
        let kind = *self.bytes.get(self.at).ok_or(malformed(self.at, "the document ends inside an element"))?;
        if kind == 0 {
            if self.at + 1 != self.bytes.len() {
                return Err(malformed(self.at, "bytes stand behind the end of the document"));
            }
            return Ok(None);
        }
        let rest = self.bytes.get(self.at + 1..).unwrap_or_default();
        let name_length = rest.iter().position(|b| *b == 0).ok_or(malformed(self.at, "a field name has no end"))?;
        let name = rest.get(..name_length).unwrap_or_default();
        let offset = self.at + 1 + name_length + 1;
        let length = value_length(kind, self.bytes, offset)?;
        let value = self
            .bytes
            .get(offset..offset + length)
            .filter(|_| offset + length < self.bytes.len())
            .ok_or(malformed(offset, "a value runs over the end of the document"))?;
        self.at = offset + length;
        Ok(Some(Element { kind, name, value, offset }))
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<Element<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        match self.step() {
            Ok(Some(element)) => Some(Ok(element)),
            Ok(None) => {
                self.done = true;
                None
            }
            Err(e) => {
                self.done = true;
                Some(Err(e))
            }
        }
    }
}

/// The first top-level element called `name`.
pub fn find<'a>(document: &'a [u8], name: &str) -> Result<Option<Element<'a>>, Malformed> {
    for element in Elements::new(document)? {
        let element = element?;
        if element.name == name.as_bytes() {
            return Ok(Some(element));
        }
    }
    Ok(None)
}

/// Little-endian `i32` at `offset`.
pub fn read_i32(bytes: &[u8], offset: usize) -> Result<i32, Malformed> {
    bytes
        .get(offset..offset + 4)
        .and_then(|b| b.try_into().ok())
        .map(i32::from_le_bytes)
        .ok_or(Malformed { offset, reason: "4 bytes are missing" })
}

/// Little-endian `i64` at `offset`.
pub fn read_i64(bytes: &[u8], offset: usize) -> Result<i64, Malformed> {
    bytes
        .get(offset..offset + 8)
        .and_then(|b| b.try_into().ok())
        .map(i64::from_le_bytes)
        .ok_or(Malformed { offset, reason: "8 bytes are missing" })
}

/// Length in bytes of a value of type `kind` that starts at `offset` (bsonspec.org, version 1.1).
fn value_length(kind: u8, bytes: &[u8], offset: usize) -> Result<usize, Malformed> {
    let prefixed = |extra: usize| -> Result<usize, Malformed> {
        let n = read_i32(bytes, offset)?;
        usize::try_from(n).map(|n| n + extra).map_err(|_| Malformed { offset, reason: "a length is negative" })
    };
    let cstring = |from: usize| -> Result<usize, Malformed> {
        bytes
            .get(from..)
            .and_then(|rest| rest.iter().position(|b| *b == 0))
            .map(|n| n + 1)
            .ok_or(Malformed { offset: from, reason: "a C string has no end" })
    };
    Ok(match kind {
        kind::DOUBLE | kind::DATE | kind::TIMESTAMP | kind::INT64 => 8,
        kind::STRING | kind::JAVASCRIPT | kind::SYMBOL => prefixed(4)?,
        kind::DOCUMENT | kind::ARRAY | kind::JAVASCRIPT_SCOPE => {
            let n = prefixed(0)?;
            if n < 5 {
                return Err(Malformed { offset, reason: "an embedded document is shorter than 5 bytes" });
            }
            n
        }
        kind::BINARY => prefixed(5)?,
        kind::UNDEFINED | kind::NULL | kind::MIN_KEY | kind::MAX_KEY => 0,
        kind::OBJECT_ID => 12,
        kind::BOOLEAN => 1,
        kind::REGEX => {
            let pattern = cstring(offset)?;
            pattern + cstring(offset + pattern)?
        }
        kind::DB_POINTER => prefixed(4)? + 12,
        kind::INT32 => 4,
        kind::DECIMAL128 => 16,
        _ => {
            return Err(Malformed { offset, reason: "an unknown type byte" });
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_what_the_bson_crate_wrote() {
        let doc = bson::rawdoc! { "a": 1, "b": "x", "c": { "d": [1, 2.5] }, "e": bson::RawBson::Null };
        let names: Vec<_> = Elements::new(doc.as_bytes()).unwrap().map(|e| e.unwrap().name.to_vec()).collect();
        assert_eq!(names, [b"a", b"b", b"c", b"e"]);
        assert_eq!(find(doc.as_bytes(), "a").unwrap().unwrap().value, [1, 0, 0, 0]);
    }

    #[test]
    fn every_truncation_is_an_error_and_never_a_panic() {
        let doc = bson::rawdoc! { "a": "text", "b": { "c": [1, 2] }, "d": 2.5 };
        let bytes = doc.as_bytes();
        for n in 0..bytes.len() {
            let cut = &bytes[..n];
            let walked = Elements::new(cut).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            assert!(walked.is_err(), "{n} of {} bytes were accepted", bytes.len());
        }
    }

    #[test]
    fn a_lying_inner_length_is_an_error() {
        let doc = bson::rawdoc! { "s": "text", "after": 1 };
        let mut bytes = doc.into_bytes();
        bytes[7] = 200;
        assert!(find(&bytes, "after").is_err());
    }
}
