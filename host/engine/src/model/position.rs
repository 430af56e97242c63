//! Where a source stands: the oplog's `OpTime`, one of each shard, or a change stream's resume token.
//!
//! A position names the last entry that was read, and a restart reads from it inclusively, so that the first entry
//! proves that the history is still the same (correctness.md §2). It never says what is durable: that is the ack
//! tracker's word.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::raw::{self, Malformed, kind};

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

    /// The same as a BSON timestamp.
    #[must_use]
    pub fn timestamp(self) -> bson::Timestamp {
        bson::Timestamp { time: self.secs, increment: self.inc }
    }

    /// Whether an oplog whose oldest entry has this time holds everything from `date` on. One that begins with the first
    /// entry of that very second holds the whole second.
    #[must_use]
    pub fn begins_by(self, date: OpTime) -> bool {
        self.ts() <= date.ts() || (self.secs == date.secs && self.inc <= 1)
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

/// One cut through the oplogs of all shards: what is behind it was handed on, what is before it was not.
///
/// The cut must be one of cluster time. A document may leave one shard and arrive on another, and repeating the older
/// entries of one shard over the newer state of another would lose it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardPositions {
    /// Cluster time of the newest entry behind the cut, on whichever shard. Everything older is on the target, or in the
    /// copy that is about to be made.
    pub time: OpTime,
    /// Each shard's own newest entry behind the cut, in the order of the streams' numbers.
    pub shards: Vec<ShardPosition>,
}

/// Where one shard's oplog stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardPosition {
    /// Name of the shard's replica set.
    pub name: Arc<str>,
    /// The last entry that was handed on. With a term of -1 it is no entry but a moment: reading starts with the first
    /// entry at or after it.
    pub at: OpTime,
    /// Where reading begins instead, when transactions were open at the cut: the oldest entry of this shard that tells
    /// about one of them. What was visible at the cut is not handed on again.
    pub open_since: Option<OpTime>,
}

/// A place in a source from which reading can go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Position {
    /// After this oplog entry.
    Oplog(OpTime),
    /// After these entries of the shards of a cluster, whose oplogs are read as one, ordered by cluster time.
    Shards(Arc<ShardPositions>),
    /// After the event of this resume token (raw BSON document), which happened at `time`.
    Stream {
        /// The event's or the batch's resume token.
        token: Bytes,
        /// Cluster time of the token, for display and for the overlap mark.
        time: OpTime,
    },
}

impl Position {
    /// The position of a resume token, whose cluster time stands in it.
    ///
    /// `_data` is a string of hexadecimal digits (MongoDB 4.2 and later): the sort form of a timestamp, 0x82 and eight
    /// bytes, and then what tells events of one time apart.
    ///
    /// # Errors
    /// When the token has no such beginning.
    pub fn of_token(token: Bytes) -> Result<Self, Malformed> {
        let malformed = |offset| Malformed { offset, reason: "a resume token does not begin with its cluster time" };
        let data = raw::find(&token, "_data")?.filter(|data| data.kind == kind::STRING).ok_or(malformed(0))?;
        let offset = data.offset;
        let digits = |from: usize, to: usize| {
            let text = data.value.get(4 + from..4 + to).and_then(|text| std::str::from_utf8(text).ok());
            text.and_then(|text| u32::from_str_radix(text, 16).ok()).ok_or(malformed(offset))
        };
        if digits(0, 2)? != 0x82 {
            return Err(malformed(offset));
        }
        let time = OpTime::new(digits(2, 10)?, digits(10, 18)?, -1);
        Ok(Self::Stream { token, time })
    }

    /// Which of two positions of one source was reached first. Entries of several shards can be of one time.
    #[must_use]
    pub fn compare(&self, other: &Self) -> Ordering {
        let places = self.shards().iter().map(|shard| shard.at.ts());
        let others = other.shards().iter().map(|shard| shard.at.ts());
        self.time().ts().cmp(&other.time().ts()).then_with(|| places.cmp(others))
    }

    /// The same position with a token of its own, where it was a part of a reply that it would keep alive.
    #[must_use]
    pub fn detached(self) -> Self {
        match self {
            Self::Stream { token, time } => Self::Stream { token: Bytes::copy_from_slice(&token), time },
            Self::Oplog(_) | Self::Shards(_) => self,
        }
    }

    /// The source time of this position, whatever its form.
    #[must_use]
    pub fn time(&self) -> OpTime {
        match self {
            Self::Oplog(time) | Self::Stream { time, .. } => *time,
            Self::Shards(cut) => cut.time,
        }
    }

    /// The oldest time that is read for what may still be handed on from here. Older than [`Position::time`] where reading starts
    /// before the cut, at a moment: for the sake of transactions that are open at the cut.
    #[must_use]
    pub fn oldest(&self) -> OpTime {
        let moments = self.shards().iter().map(|shard| shard.at).filter(|at| at.term < 0);
        moments.min_by_key(|at| at.ts()).filter(|at| at.ts() < self.time().ts()).unwrap_or_else(|| self.time())
    }

    /// The oldest entry that the sources must still hold to go on from here.
    #[must_use]
    pub fn needed_since(&self) -> OpTime {
        let open = self.shards().iter().filter_map(|shard| shard.open_since);
        open.chain([self.oldest()]).min_by_key(|time| time.ts()).unwrap_or_default()
    }

    /// The shards' own positions; none for a source that is one stream.
    #[must_use]
    pub fn shards(&self) -> &[ShardPosition] {
        match self {
            Self::Oplog(_) | Self::Stream { .. } => &[],
            Self::Shards(cut) => &cut.shards,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.time().fmt(f)?;
        for ShardPosition { name, at, open_since } in self.shards() {
            write!(f, ", {name} {at}")?;
            if let Some(since) = open_since {
                write!(f, " open since {since}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(data: &str) -> Bytes {
        Bytes::from(bson::rawdoc! { "_data": data }.into_bytes())
    }

    #[test]
    fn a_resume_token_tells_its_time() {
        let position = Position::of_token(token("826B03A92A0000000C2B022C0100296E5A1004318A9B")).unwrap();
        assert_eq!(position.time(), OpTime::new(0x6b03_a92a, 12, -1));
        for broken in ["", "82", "826B03A92A", "836B03A92A0000000C", "826B03A92Z0000000C"] {
            assert!(Position::of_token(token(broken)).is_err(), "{broken}");
        }
    }
}
