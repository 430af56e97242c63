//! What following the oplog and following a change stream share: the cursor, its memory, the member it stays with.
//!
//! A permit is taken before the server is asked for more, of the size that the next reply is expected to have, and
//! corrected when it is there. Nothing here knows what an entry is, and nothing is tried again: a lost cursor is the
//! caller's error.

use std::sync::Arc;

use futures_util::StreamExt as _;
use mongodb::Client;
use mongodb::options::SelectionCriteria;
use mongodb::raw_batch_cursor::RawBatchCursor;
use oplogue_engine::budget::{Budget, Permit};
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::{Position, RawBatch};

use super::client::ConnectMode;
use super::patience::answered;
use super::reply::{self, CursorSlot, REPLY_BYTES_MAX};
use super::{classify, topology};

/// Memory asked for before the size of replies is known.
const FIRST_REPLY_BYTES: usize = 1024 * 1024;

/// A cursor that is never at its end, and the memory of its replies.
pub(super) struct Tail {
    budget: Budget,
    cursor: CursorSlot,
    reply_bytes: usize,
}

impl Tail {
    pub(super) fn new(budget: Budget) -> Self {
        Self { budget, cursor: CursorSlot::default(), reply_bytes: FIRST_REPLY_BYTES }
    }

    /// Reads from another cursor, or from none, from now on.
    pub(super) fn put(&mut self, cursor: Option<RawBatchCursor>) {
        self.cursor.put(cursor);
    }

    /// The next reply; an empty one holds no memory.
    pub(super) async fn next(&mut self, failed: impl Fn(mongodb::error::Error) -> Error) -> Result<RawBatch> {
        let mut permit = self.budget.acquire(self.reply_bytes).await;
        let Some(cursor) = self.cursor.get() else {
            return Err(Error::new(Side::Source, Kind::Bug, "the source is read before it is opened"));
        };
        // The server answers an empty request after its await time.
        let reply = match answered(Side::Source, "read the source", cursor.next()).await? {
            Some(reply) => reply.map_err(failed)?,
            None => return Err(Error::new(Side::Source, Kind::CursorLost, "read the source: the cursor ended")),
        };
        let bytes = reply.as_raw_document().as_bytes().len();
        let reached = reply::resume_token(&reply)?.map(Position::of_token).transpose()?;
        let entries = reply::array(reply)?;
        if reply::first_document(&entries)?.is_none() {
            return Ok(RawBatch { entries, reached, runs: Vec::new(), permit: Permit::none() });
        }
        permit.resize(bytes);
        // A quarter more than the last reply, so that growing replies are seen coming.
        self.reply_bytes = (bytes + bytes / 4).clamp(FIRST_REPLY_BYTES, REPLY_BYTES_MAX);
        Ok(RawBatch { entries, reached, runs: Vec::new(), permit })
    }
}

/// Picks the member to read and stays with it: what one member holds another may not.
pub(super) async fn pick_member(client: &Client, mode: ConnectMode) -> Result<SelectionCriteria> {
    let criteria = mode.criteria();
    if mode == ConnectMode::Standalone {
        return Ok(criteria);
    }
    let picked = topology::last_write(Side::Source, client, &criteria).await?.address;
    // The driver writes hosts in small letters, the set as it was configured.
    let is_it = move |address: String| address.eq_ignore_ascii_case(&picked);
    Ok(SelectionCriteria::Predicate(Arc::new(move |server| is_it(server.address().to_string()))))
}

/// The primary, whichever member is read.
pub(super) fn primary(mode: ConnectMode) -> SelectionCriteria {
    match mode {
        ConnectMode::Standalone => ConnectMode::Standalone.criteria(),
        ConnectMode::Primary | ConnectMode::SecondaryPreferred | ConnectMode::Secondary | ConnectMode::Nearest => {
            ConnectMode::Primary.criteria()
        }
    }
}

/// A driver's error, said with what was being done.
pub(super) fn failed(doing: &'static str) -> impl Fn(mongodb::error::Error) -> Error {
    move |e| classify::error(Side::Source, doing, e)
}
