//! Where a source stands: the oplog's `OpTime`, or a change stream's resume token.
//!
//! A position names the last entry that was read, and a restart reads from it inclusively, so that the first entry
//! proves that the history is still the same (correctness.md §2). It never says what is durable: that is the ack
//! tracker's word.

use std::fmt;

use bytes::Bytes;

/// An oplog time: `ts` (seconds and increment) and the election term `t` it was written in.
///
/// Ordered by `ts` first; the term only tells histories apart. `term` is -1 where a server reports none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct OpTime {
    /// Seconds since the Unix epoch.
    pub secs: u32,
    /// Ordinal within the second, from 1.
    pub inc: u32,
    /// Election term.
    pub term: i64,
}

impl OpTime {
    /// An `OpTime` out of its three numbers.
    #[must_use]
    pub fn new(secs: u32, inc: u32, term: i64) -> Self {
        Self { secs, inc, term }
    }

    /// Seconds and increment as one number, `secs << 32 | inc`: MongoShake's checkpoint value and the order of time.
    #[must_use]
    pub fn ts(self) -> u64 {
        (u64::from(self.secs) << 32) | u64::from(self.inc)
    }

    /// The time of a packed `secs << 32 | inc` number, of unknown term.
    #[must_use]
    pub fn from_ts(ts: u64) -> Self {
        Self { secs: (ts >> 32) as u32, inc: (ts & 0xffff_ffff) as u32, term: -1 }
    }
}

impl fmt::Display for OpTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} (term {})", self.secs, self.inc, self.term)
    }
}

/// A place in a source from which reading can go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Position {
    /// After this oplog entry.
    Oplog(OpTime),
    /// After the event of this resume token (raw BSON document), which happened at `time`.
    Stream {
        /// The event's or the batch's resume token.
        token: Bytes,
        /// Cluster time of the token, for display and for the overlap mark.
        time: OpTime,
    },
}

impl Position {
    /// The source time of this position, whatever its form.
    #[must_use]
    pub fn time(&self) -> OpTime {
        match self {
            Self::Oplog(time) | Self::Stream { time, .. } => *time,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.time().fmt(f)
    }
}
