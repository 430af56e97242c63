//! Transactions and `applyOps`: which inner operations become visible at which entry.
//!
//! The server writes a small transaction as one `applyOps` entry, a large one as a chain of entries linked by
//! `prevOpTime` (all but the last marked `partialTxn`), and a prepared one as an entry marked `prepare` whose inner
//! operations count from the later `commitTransaction` on. The buffer keeps the arrays of open transactions and the
//! position before the oldest of them: a checkpoint must not pass it, or a restart would lose the transaction.

use std::collections::HashMap;

use bytes::Bytes;

use super::oplog::{Entry, missing};
use crate::error::{Error, Kind, Result, Side};
use crate::model::OpTime;
use crate::model::raw::{self, kind};

#[derive(Debug)]
struct Open {
    /// The entry before the transaction's first.
    before: OpTime,
    arrays: Vec<Bytes>,
    bytes: usize,
}

/// Transactions that began and are neither committed nor aborted.
#[derive(Debug, Default)]
pub(super) struct Transactions {
    open: HashMap<(Bytes, i64), Open>,
    bytes: usize,
}

impl Transactions {
    /// The newest position that a checkpoint may take while transactions are open; `None` when none is.
    pub(super) fn floor(&self) -> Option<OpTime> {
        self.open.values().map(|open| open.before).min()
    }

    /// Takes an `applyOps` entry. Returns the arrays of inner operations that it makes visible, if it does.
    ///
    /// `last` is the entry before this one; `bytes_max` bounds what open transactions may hold (0 = unbounded).
    pub(super) fn step(&mut self, entry: &Entry, last: OpTime, bytes_max: usize) -> Result<Option<Vec<Bytes>>> {
        let array =
            raw::find(&entry.o, "applyOps")?.filter(|e| e.kind == kind::ARRAY).ok_or_else(|| missing("applyOps"))?;
        let array = entry.o.slice(array.offset..array.end());
        let partial = flag(entry, "partialTxn")?;
        let prepare = flag(entry, "prepare")?;
        let Some(session) = entry.session.clone() else {
            return Ok(Some(vec![array]));
        };
        if entry.groups_writes || (!partial && !prepare && entry.previous.is_none()) {
            return Ok(Some(vec![array]));
        }
        if entry.previous.is_some() && !self.open.contains_key(&session) {
            return Err(unseen_start(entry));
        }
        self.bytes += array.len();
        let open = self.open.entry(session.clone()).or_insert(Open { before: last, arrays: Vec::new(), bytes: 0 });
        open.bytes += array.len();
        open.arrays.push(array);
        if partial || prepare {
            if bytes_max > 0 && self.bytes > bytes_max {
                return Err(Error::new(
                    Side::Source,
                    Kind::Exhausted,
                    format!("open transactions hold {} bytes, more than the limit of {bytes_max}", self.bytes),
                ));
            }
            return Ok(None);
        }
        Ok(self.close(&session))
    }

    /// Takes a `commitTransaction` of a prepared transaction.
    pub(super) fn commit(&mut self, entry: &Entry) -> Result<Vec<Bytes>> {
        let session = entry.session.clone().ok_or_else(|| missing("lsid"))?;
        self.close(&session).ok_or_else(|| unseen_start(entry))
    }

    /// Takes an `abortTransaction`: what was buffered never happened.
    pub(super) fn abort(&mut self, entry: &Entry) {
        if let Some(session) = &entry.session {
            self.close(session);
        }
    }

    fn close(&mut self, session: &(Bytes, i64)) -> Option<Vec<Bytes>> {
        let open = self.open.remove(session)?;
        self.bytes -= open.bytes;
        Some(open.arrays)
    }
}

fn flag(entry: &Entry, name: &str) -> Result<bool> {
    Ok(raw::find(&entry.o, name)?.is_some_and(|e| e.kind == kind::BOOLEAN && e.value == [1]))
}

fn unseen_start(entry: &Entry) -> Error {
    Error::new(
        Side::Source,
        Kind::CannotApply,
        format!(
            "a transaction on {} ends here but began before the position this run started from; \
             start from an earlier position",
            entry.ns()
        ),
    )
}
