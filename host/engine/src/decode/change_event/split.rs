//! Puts an event together that the server has split (`$changeStreamSplitLargeEvent`).
//!
//! Each fragment holds some of the event's fields whole, its own resume token and `splitEvent: {fragment, of}`. Only the last
//! one's token is a place behind the event, so the parts wait here until it comes. What waits is bounded: an event is a
//! document and what stands around it, never more than a few times the largest document.

use bytes::Bytes;

use super::{document, element};
use crate::error::{Error, Kind, Result, Side};
use crate::model::raw::{self, Elements, kind};

/// A document, its key in the key and in the token, and room: no event of the server is larger.
const BYTES_MAX: usize = 64 << 20;

/// Fragments of one event that have come so far.
#[derive(Debug, Default)]
pub(in crate::decode) struct Fragments {
    elements: Vec<Vec<u8>>,
    bytes: usize,
    /// Number of the last one; 0 while none has come.
    at: i32,
}

impl Fragments {
    /// Whether an event has begun and not ended.
    pub(in crate::decode) fn is_open(&self) -> bool {
        self.at > 0
    }

    /// Forgets what has come: the stream is read again from before the event.
    pub(in crate::decode) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Takes the next document of the stream. Returns a whole event, or `None` when more of it is to come.
    ///
    /// # Errors
    /// `Malformed` when a fragment is missing; `Exhausted` when the event is larger than any can be.
    pub(in crate::decode) fn join(&mut self, event: Bytes) -> Result<Option<Bytes>> {
        let Some(split) = raw::find(&event, "splitEvent")?.filter(|split| split.kind == kind::DOCUMENT) else {
            if self.is_open() {
                return Err(lost(self.at, "an event that is not split"));
            }
            return Ok(Some(event));
        };
        let (fragment, of) = (number(split.value, "fragment")?, number(split.value, "of")?);
        if fragment != self.at + 1 || fragment > of {
            return Err(lost(self.at, &format!("fragment {fragment} of {of}")));
        }
        self.at = fragment;
        self.add(&event, fragment == of)?;
        if fragment < of {
            return Ok(None);
        }
        let whole = Bytes::from(document(&self.elements));
        self.clear();
        Ok(Some(whole))
    }

    /// Keeps a fragment's fields; of the last one its token too.
    fn add(&mut self, fragment: &[u8], is_last: bool) -> Result<()> {
        for field in Elements::new(fragment)? {
            let field = field?;
            if field.name == b"splitEvent" || (field.name == b"_id" && !is_last) {
                continue;
            }
            self.bytes += field.value.len();
            if self.bytes > BYTES_MAX {
                let text = format!("a split event holds more than {BYTES_MAX} bytes");
                return Err(Error::new(Side::Source, Kind::Exhausted, text));
            }
            self.elements.push(element(field.kind, field.name, field.value));
        }
        Ok(())
    }
}

fn number(split: &[u8], name: &str) -> Result<i32> {
    let found = raw::find(split, name)?.filter(|n| n.kind == kind::INT32);
    Ok(raw::read_i32(found.ok_or_else(|| super::missing("splitEvent"))?.value, 0)?)
}

fn lost(last: i32, found: &str) -> Error {
    let text = format!("fragment {last} of a split event is followed by {found}");
    Error::new(Side::Source, Kind::Malformed, text)
}
