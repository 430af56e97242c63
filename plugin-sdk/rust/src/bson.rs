//! A small lens over raw BSON: walk, find, read a value, write an element.
//!
//! A guest copies long spans and never decodes a document: the `bson` crate would cost 650 KB of module and
//! microseconds a document. Field edits of whole documents and of updates stand in [`crate::patch`]. Nothing here
//! panics; malformed bytes are an error.

use std::fmt;

/// The empty document.
pub const EMPTY: [u8; 5] = [5, 0, 0, 0, 0];

/// Type bytes (bsonspec.org) that the lens looks at.
pub mod kind {
    pub const DOUBLE: u8 = 0x01;
    pub const STRING: u8 = 0x02;
    pub const DOCUMENT: u8 = 0x03;
    pub const ARRAY: u8 = 0x04;
    pub const BINARY: u8 = 0x05;
    pub const OBJECT_ID: u8 = 0x07;
    pub const BOOLEAN: u8 = 0x08;
    pub const DATE: u8 = 0x09;
    pub const NULL: u8 = 0x0a;
    pub const INT32: u8 = 0x10;
    pub const TIMESTAMP: u8 = 0x11;
    pub const INT64: u8 = 0x12;
}

/// Bytes that are not BSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed {
    /// Offset from the start of the walked document.
    pub offset: usize,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed BSON at offset {}", self.offset)
    }
}

impl std::error::Error for Malformed {}

/// One element of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element<'a> {
    /// Type byte.
    pub kind: u8,
    pub name: &'a [u8],
    /// The value's bytes.
    pub value: &'a [u8],
    /// Offset of the type byte from the start of the document.
    pub start: usize,
    /// Offset of the value.
    pub value_at: usize,
}

impl<'a> Element<'a> {
    /// Offset behind the value.
    #[must_use]
    pub fn end(&self) -> usize {
        self.value_at + self.value.len()
    }

    /// The text of a string.
    #[must_use]
    pub fn text(&self) -> Option<&'a str> {
        if self.kind != kind::STRING {
            return None;
        }
        let (_, rest) = self.value.split_first_chunk::<4>()?;
        std::str::from_utf8(rest.split_last()?.1).ok()
    }

    /// The value of an `int`, a `long` or a `date` (milliseconds since the Unix epoch).
    #[must_use]
    pub fn integer(&self) -> Option<i64> {
        match self.kind {
            kind::INT32 => Some(i64::from(i32::from_le_bytes(self.value.try_into().ok()?))),
            kind::INT64 | kind::DATE => Some(i64::from_le_bytes(self.value.try_into().ok()?)),
            _ => None,
        }
    }

    /// The value of a `double`.
    #[must_use]
    pub fn double(&self) -> Option<f64> {
        if self.kind == kind::DOUBLE { Some(f64::from_le_bytes(self.value.try_into().ok()?)) } else { None }
    }

    /// The value of a `bool`.
    #[must_use]
    pub fn boolean(&self) -> Option<bool> {
        if self.kind == kind::BOOLEAN { self.value.first().map(|b| *b != 0) } else { None }
    }

    /// The bytes of an embedded document or array.
    #[must_use]
    pub fn document(&self) -> Option<&'a [u8]> {
        matches!(self.kind, kind::DOCUMENT | kind::ARRAY).then_some(self.value)
    }
}

/// Walks the elements of a document or array.
#[derive(Debug, Clone)]
pub struct Elements<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Starts a walk.
#[must_use]
pub fn elements(document: &[u8]) -> Elements<'_> {
    Elements { bytes: document, at: 4 }
}

impl<'a> Elements<'a> {
    fn step(&mut self) -> Result<Option<Element<'a>>, Malformed> {
        let start = self.at;
        let malformed = Malformed { offset: start };
        let kind = *self.bytes.get(start).ok_or(malformed)?;
        if kind == 0 {
            return if start + 1 == self.bytes.len() { Ok(None) } else { Err(malformed) };
        }
        let rest = self.bytes.get(start + 1..).ok_or(malformed)?;
        let name = rest.split(|b| *b == 0).next().filter(|n| n.len() < rest.len()).ok_or(malformed)?;
        let value_at = start + 1 + name.len() + 1;
        let length = value_length(kind, self.bytes, value_at).ok_or(malformed)?;
        let value = value_at.checked_add(length).and_then(|end| self.bytes.get(value_at..end)).ok_or(malformed)?;
        self.at = value_at + length;
        Ok(Some(Element { kind, name, value, start, value_at }))
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<Element<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at > self.bytes.len() {
            return None;
        }
        let step = self.step();
        if !matches!(step, Ok(Some(_))) {
            self.at = usize::MAX;
        }
        step.transpose()
    }
}

/// The first element at a dotted path; arrays are entered by index.
#[must_use]
pub fn find<'a>(document: &'a [u8], path: &str) -> Option<Element<'a>> {
    let (head, tail) = path.split_once('.').map_or((path, None), |(head, tail)| (head, Some(tail)));
    let element = elements(document).map_while(Result::ok).find(|e| e.name == head.as_bytes())?;
    match tail {
        None => Some(element),
        Some(tail) => find(element.document()?, tail),
    }
}

/// Splits bytes behind their first document by its length prefix.
#[must_use]
pub fn split_first(bytes: &[u8]) -> (&[u8], &[u8]) {
    let length = read_length(bytes, 0).unwrap_or(0);
    bytes.split_at_checked(length).unwrap_or((&[], &[]))
}

/// Writes one element.
pub fn write_element(out: &mut Vec<u8>, kind: u8, name: &[u8], value: &[u8]) {
    out.push(kind);
    out.extend_from_slice(name);
    out.push(0);
    out.extend_from_slice(value);
}

/// A value to write: its type byte and bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    pub kind: u8,
    pub bytes: Vec<u8>,
}

impl Value {
    /// `null`.
    #[must_use]
    pub fn null() -> Self {
        Self { kind: kind::NULL, bytes: Vec::new() }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        let mut bytes = Vec::with_capacity(text.len() + 5);
        bytes.extend_from_slice(&(text.len() as u32 + 1).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
        Self { kind: kind::STRING, bytes }
    }
}

impl From<i32> for Value {
    fn from(n: i32) -> Self {
        Self { kind: kind::INT32, bytes: n.to_le_bytes().to_vec() }
    }
}

impl From<i64> for Value {
    fn from(n: i64) -> Self {
        Self { kind: kind::INT64, bytes: n.to_le_bytes().to_vec() }
    }
}

impl From<f64> for Value {
    fn from(n: f64) -> Self {
        Self { kind: kind::DOUBLE, bytes: n.to_le_bytes().to_vec() }
    }
}

impl From<bool> for Value {
    fn from(b: bool) -> Self {
        Self { kind: kind::BOOLEAN, bytes: vec![u8::from(b)] }
    }
}

fn read_length(bytes: &[u8], at: usize) -> Option<usize> {
    let prefix = bytes.get(at..at.checked_add(4)?)?;
    usize::try_from(i32::from_le_bytes(prefix.try_into().ok()?)).ok()
}

/// Length of a value (bsonspec.org, version 1.1); `None` where the bytes do not say.
fn value_length(kind: u8, bytes: &[u8], at: usize) -> Option<usize> {
    let cstring = |from: usize| bytes.get(from..)?.iter().position(|b| *b == 0).map(|n| n + 1);
    Some(match kind {
        0x01 | 0x09 | 0x11 | 0x12 => 8,
        0x02 | 0x0d | 0x0e => read_length(bytes, at)?.checked_add(4)?,
        0x03 | 0x04 | 0x0f => read_length(bytes, at).filter(|n| *n >= 5)?,
        0x05 => read_length(bytes, at)?.checked_add(5)?,
        0x06 | 0x0a | 0xff | 0x7f => 0,
        0x07 => 12,
        0x08 => 1,
        0x0b => {
            let pattern = cstring(at)?;
            pattern + cstring(at + pattern)?
        }
        0x0c => read_length(bytes, at)?.checked_add(16)?,
        0x10 => 4,
        0x13 => 16,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::bson::rawdoc;

    #[test]
    fn walks_and_reads() {
        let doc = rawdoc! { "a": 1, "b": { "c": ["x", { "d": 2.5 }] }, "e": true, "f": 7_i64 };
        let bytes = doc.as_bytes();
        assert_eq!(elements(bytes).filter_map(Result::ok).count(), 4);
        assert_eq!(find(bytes, "a").unwrap().integer(), Some(1));
        assert_eq!(find(bytes, "b.c.0").unwrap().text(), Some("x"));
        assert_eq!(find(bytes, "b.c.1.d").unwrap().double(), Some(2.5));
        assert_eq!(find(bytes, "e").unwrap().boolean(), Some(true));
        assert!(find(bytes, "b.x").is_none());
    }

    #[test]
    fn every_truncation_ends_in_an_error() {
        let doc = rawdoc! { "a": "text", "b": { "c": [1, 2] }, "d": 2.5 };
        for n in 0..doc.as_bytes().len() {
            assert!(elements(&doc.as_bytes()[..n]).any(|e| e.is_err()) || n < 4);
        }
    }
}
