//! Replies of cursors as bytes: the array of documents inside a reply, without copying it.
//!
//! The driver's raw batch holds the whole reply of the server. What the engine wants is the array in it, as a
//! reference-counted slice that keeps the reply alive. Nothing here looks at a document beyond its length.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt as _;
use mongodb::raw_batch_cursor::{RawBatch, RawBatchCursor};
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::OpTime;
use oplogue_engine::model::raw::{self, Elements, Malformed, kind};

use super::classify;

/// The largest reply a server sends: 16 MiB of documents and what stands around them.
pub const REPLY_BYTES_MAX: usize = 16 * 1024 * 1024 + 64 * 1024;

/// The reply and the place of the array in it.
struct ArrayOfReply {
    batch: RawBatch,
    from: usize,
    to: usize,
}

impl AsRef<[u8]> for ArrayOfReply {
    fn as_ref(&self) -> &[u8] {
        self.batch.as_raw_document().as_bytes().get(self.from..self.to).unwrap_or_default()
    }
}

/// A place for something of the driver that is not `Sync` (its cursors, requests in flight) inside a type that must
/// be. It is only reached through `&mut`, so the mutex is never locked.
pub struct Slot<T>(Mutex<Option<T>>);

/// A place for a cursor. What is put over another one closes that one on the server.
pub type CursorSlot = Slot<RawBatchCursor>;

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Slot<T> {
    /// What is there.
    pub fn get(&mut self) -> Option<&mut T> {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut()
    }

    /// Puts something here in place of what was.
    pub fn put(&mut self, value: Option<T>) {
        *self.0.get_mut().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

/// The raw BSON array (`firstBatch` or `nextBatch`) of a reply, shared with it.
///
/// # Errors
/// `Malformed` when the reply holds no such array.
pub fn array(batch: RawBatch) -> Result<Bytes, Malformed> {
    let missing = Malformed { offset: 0, reason: "a cursor's reply holds no batch" };
    let reply = batch.as_raw_document().as_bytes();
    let cursor = raw::find(reply, "cursor")?.ok_or(missing.clone())?;
    for element in Elements::new(cursor.value)? {
        let element = element?;
        if element.kind == kind::ARRAY && matches!(element.name, b"firstBatch" | b"nextBatch") {
            let from = cursor.offset + element.offset;
            let to = from + element.value.len();
            return Ok(Bytes::from_owner(ArrayOfReply { batch, from, to }));
        }
    }
    Err(missing)
}

/// The place behind the reply in a change stream: `postBatchResumeToken`. Replies of other cursors have none.
///
/// # Errors
/// `Malformed` when the reply is none of a cursor.
pub fn resume_token(batch: &RawBatch) -> Result<Option<Bytes>, Malformed> {
    let missing = Malformed { offset: 0, reason: "a cursor's reply holds no batch" };
    let cursor = raw::find(batch.as_raw_document().as_bytes(), "cursor")?.ok_or(missing)?;
    let token = raw::find(cursor.value, "postBatchResumeToken")?.filter(|token| token.kind == kind::DOCUMENT);
    // A copy: a slice would keep the whole reply alive as long as the position.
    Ok(token.map(|token| Bytes::copy_from_slice(token.value)))
}

/// Whether the cursor is finished on the server: nothing follows this reply.
///
/// # Errors
/// `Malformed` when the reply is none of a cursor.
pub fn is_last(batch: &RawBatch) -> Result<bool, Malformed> {
    let missing = Malformed { offset: 0, reason: "a cursor's reply holds no id" };
    let cursor = raw::find(batch.as_raw_document().as_bytes(), "cursor")?.ok_or(missing.clone())?;
    let id = raw::find(cursor.value, "id")?.ok_or(missing)?;
    Ok(id.value.iter().all(|byte| *byte == 0))
}

/// The first document of a raw array, if there is one.
///
/// # Errors
/// `Malformed` when the bytes are no array of documents.
pub fn first_document(array: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    Elements::new(array)?.next().transpose().map(|found| found.map(|element| element.value))
}

/// The last document of a raw array and the number of documents. Walks over all of them by length.
///
/// # Errors
/// `Malformed` when the bytes are no array of documents.
pub fn last_document(array: &[u8]) -> Result<(usize, Option<&[u8]>), Malformed> {
    let mut last = None;
    let mut count = 0;
    for element in Elements::new(array)? {
        last = Some(element?.value);
        count += 1;
    }
    Ok((count, last))
}

/// A copy of the array without its first `skipped` documents. The element names keep their old numbers: a reader of
/// the engine's arrays goes by order.
///
/// # Errors
/// `Malformed` when the bytes are no array.
pub fn without_first(array: &Bytes, skipped: usize) -> Result<Bytes, Malformed> {
    let Some(last_skipped) = skipped.checked_sub(1).and_then(|n| Elements::new(array).ok()?.nth(n)) else {
        return Ok(array.clone());
    };
    let rest = array.get(last_skipped?.end()..).unwrap_or_default();
    let length = i32::try_from(rest.len() + 4).map_err(|_| Malformed { offset: 0, reason: "an array is too long" })?;
    let mut copy = Vec::with_capacity(rest.len() + 4);
    copy.extend_from_slice(&length.to_le_bytes());
    copy.extend_from_slice(rest);
    Ok(Bytes::from(copy))
}

/// The time of an oplog entry: its `ts`, and `t` (-1 where the entry has none).
///
/// # Errors
/// `Malformed` when the entry has no `ts`.
pub fn entry_time(entry: &[u8]) -> Result<OpTime, Malformed> {
    let mut time = None;
    let mut term = -1;
    for element in Elements::new(entry)? {
        let element = element?;
        match (element.name, element.kind) {
            (b"ts", kind::TIMESTAMP) => time = Some(raw::read_i64(element.value, 0)?.cast_unsigned()),
            (b"t", kind::INT64) => term = raw::read_i64(element.value, 0)?,
            (b"t", kind::INT32) => term = i64::from(raw::read_i32(element.value, 0)?),
            _ => {}
        }
    }
    let time = time.ok_or(Malformed { offset: 0, reason: "an oplog entry has no ts" })?;
    Ok(OpTime { term, ..OpTime::from_ts(time) })
}

/// Reads a cursor to its end and hands each document's bytes to `each`. For small answers: catalogues, samples.
///
/// # Errors
/// The driver's, classified, and `Malformed`.
pub async fn drain(
    side: Side,
    doing: &str,
    mut cursor: RawBatchCursor,
    mut each: impl FnMut(Bytes) -> Result<()> + Send,
) -> Result<()> {
    while let Some(batch) = cursor.next().await {
        let documents = array(batch.map_err(|e| classify::error(side, doing, e))?)?;
        for element in Elements::new(&documents)? {
            let element = element?;
            if element.kind != kind::DOCUMENT {
                return Err(Error::new(side, Kind::Malformed, format!("{doing}: an answer is no document")));
            }
            each(documents.slice(element.offset..element.end()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array_of(count: i32) -> Bytes {
        let mut array = bson::RawArrayBuf::new();
        for n in 0..count {
            array.push(bson::rawdoc! { "_id": n });
        }
        Bytes::copy_from_slice(array.as_bytes())
    }

    fn ids(array: &[u8]) -> Vec<i32> {
        let documents = Elements::new(array).unwrap().map(|element| element.unwrap().value.to_vec());
        documents.map(|bytes| bson::RawDocumentBuf::from_bytes(bytes).unwrap().get_i32("_id").unwrap()).collect()
    }

    #[test]
    fn documents_are_cut_off_at_the_front() {
        let array = array_of(12);
        assert_eq!(ids(&without_first(&array, 0).unwrap()), (0..12).collect::<Vec<_>>());
        assert_eq!(ids(&without_first(&array, 1).unwrap()), (1..12).collect::<Vec<_>>());
        assert_eq!(ids(&without_first(&array, 12).unwrap()), Vec::<i32>::new());
    }

    #[test]
    fn first_and_last_are_found() {
        let array = array_of(3);
        assert_eq!(first_document(&array).unwrap().unwrap(), bson::rawdoc! { "_id": 0 }.as_bytes());
        let (count, last) = last_document(&array).unwrap();
        assert_eq!((count, last.unwrap()), (3, bson::rawdoc! { "_id": 2 }.as_bytes()));
        assert_eq!(first_document(&array_of(0)).unwrap(), None);
    }

    #[test]
    fn the_time_of_an_entry_has_its_term() {
        let ts = bson::Timestamp { time: 7, increment: 3 };
        let entry = bson::rawdoc! { "op": "n", "ts": ts, "t": 4_i64 };
        assert_eq!(entry_time(entry.as_bytes()).unwrap(), OpTime::new(7, 3, 4));
        assert!(entry_time(bson::rawdoc! { "t": 4_i64 }.as_bytes()).is_err());
    }
}
