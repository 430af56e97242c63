//! The order of entries of several oplogs: which may be handed on now, and which oplog the others wait for.
//!
//! An entry may be handed on when no other oplog can still come up with an older one. What an oplog has delivered proves
//! that: its entries come in order, so behind an entry nothing older follows. Hence an oplog without an entry at hand
//! holds back all entries that are younger than its last one, and nothing but its next entry frees them. Entries of one
//! time are handed on in the order of the streams. This half does no I/O.

use bytes::{Bytes, BytesMut};
use oplogue_engine::budget::Permit;
use oplogue_engine::error::Result;
use oplogue_engine::model::raw::{Elements, Malformed};
use oplogue_engine::model::{RawBatch, Run};

use crate::mongodb::reply;

/// One entry in a reply: its time, and where its array element stands.
#[derive(Debug, Clone, Copy)]
struct Place {
    ts: u64,
    from: usize,
    to: usize,
}

/// A reply of one oplog that is not handed on altogether.
#[derive(Debug)]
struct Reply {
    entries: Bytes,
    places: Vec<Place>,
    next: usize,
    permit: Permit,
}

#[derive(Debug, Default)]
struct Stream {
    reply: Option<Reply>,
    /// Time of the newest entry that was read.
    read: u64,
}

/// Replies of all oplogs on their way into one order.
#[derive(Debug)]
pub(super) struct Order {
    streams: Vec<Stream>,
}

/// Which streams hold the others back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blocked {
    /// Streams whose next entry is waited for.
    pub(super) by: Vec<usize>,
    /// The stream with the newest entry that waits, and the time of that entry.
    pub(super) newest: (usize, u64),
}

impl Order {
    pub(super) fn new(streams: usize) -> Self {
        Self { streams: (0..streams).map(|_| Stream::default()).collect() }
    }

    /// Whether a stream's next reply is wanted: one at a time, so that memory is bounded.
    pub(super) fn wants(&self, stream: usize) -> bool {
        self.streams.get(stream).is_some_and(|stream| stream.reply.is_none())
    }

    /// Takes a reply of a stream.
    ///
    /// # Errors
    /// `Malformed` when it holds no oplog entries.
    pub(super) fn push(&mut self, stream: usize, batch: RawBatch) -> Result<()> {
        let places = places(&batch.entries)?;
        let Some(stream) = self.streams.get_mut(stream) else { return Ok(()) };
        let Some(last) = places.last() else { return Ok(()) };
        stream.read = last.ts;
        stream.reply = Some(Reply { places, entries: batch.entries, next: 0, permit: batch.permit });
        Ok(())
    }

    /// Everything that can be handed on now; `None` when that is nothing.
    ///
    /// # Errors
    /// `Malformed` when it becomes too long.
    pub(super) fn take(&mut self) -> Result<Option<RawBatch>> {
        let mut out = Merging::default();
        while let Some((stream, until)) = self.next_run() {
            let Some(found) = self.streams.get_mut(stream) else { break };
            let Some(reply) = &mut found.reply else { break };
            let rest = reply.places.get(reply.next..).unwrap_or_default();
            let count = rest.iter().take_while(|place| place.ts <= until).count();
            if reply.next == 0 && count == rest.len() && out.runs.is_empty() && self.stands_alone(stream) {
                return Ok(self.whole(stream, count));
            }
            let Some(found) = self.streams.get_mut(stream) else { break };
            let Some(reply) = &mut found.reply else { break };
            out.copy(stream, reply, count);
            if reply.next == reply.places.len()
                && let Some(done) = found.reply.take()
            {
                out.permits.push(done.permit);
            }
        }
        out.finish()
    }

    /// Who is waited for; `None` when nobody is, because nothing waits.
    pub(super) fn blocked(&self) -> Option<Blocked> {
        let heads = || self.streams.iter().enumerate().filter_map(|(n, stream)| Some((n, stream.head()?)));
        let (_, oldest) = heads().min_by_key(|(_, head)| *head)?;
        let newest = heads().max_by_key(|(_, head)| *head)?;
        let by: Vec<usize> = (0..self.streams.len()).filter(|n| self.holds_back(*n, oldest)).collect();
        (!by.is_empty()).then_some(Blocked { by, newest })
    }

    /// The stream with the oldest entry, if that may go, and the time up to which its entries may.
    fn next_run(&self) -> Option<(usize, u64)> {
        let heads = self.streams.iter().enumerate().filter_map(|(n, stream)| Some((n, stream.head()?)));
        let (first, oldest) = heads.min_by_key(|(n, head)| (*head, *n))?;
        let mut until = u64::MAX;
        for (n, other) in self.streams.iter().enumerate().filter(|(n, _)| *n != first) {
            if self.holds_back(n, oldest) {
                return None;
            }
            until = until.min(match other.head() {
                // Of one time, the lower number goes first.
                Some(head) if n < first => head.saturating_sub(1),
                Some(head) => head,
                None => other.read,
            });
        }
        Some((first, until))
    }

    /// Whether a stream may still deliver something older than `time`.
    fn holds_back(&self, stream: usize, time: u64) -> bool {
        self.streams.get(stream).is_some_and(|stream| stream.reply.is_none() && stream.read < time)
    }

    /// Whether no other stream has an entry at hand.
    fn stands_alone(&self, stream: usize) -> bool {
        self.streams.iter().enumerate().all(|(n, other)| n == stream || other.reply.is_none())
    }

    /// A reply as it came: nothing is copied.
    fn whole(&mut self, stream: usize, entries: usize) -> Option<RawBatch> {
        let reply = self.streams.get_mut(stream)?.reply.take()?;
        let runs = vec![Run { stream, entries }];
        Some(RawBatch { entries: reply.entries, reached: None, runs, permit: reply.permit })
    }
}

impl Stream {
    /// Time of the oldest entry at hand.
    fn head(&self) -> Option<u64> {
        let reply = self.reply.as_ref()?;
        reply.places.get(reply.next).map(|place| place.ts)
    }
}

/// Entries of several replies on their way into one array.
#[derive(Default)]
struct Merging {
    bytes: BytesMut,
    runs: Vec<Run>,
    permits: Vec<Permit>,
}

impl Merging {
    /// Appends the next `count` entries of a reply. The elements keep their names: readers go by order.
    fn copy(&mut self, stream: usize, reply: &mut Reply, count: usize) {
        if self.bytes.is_empty() {
            self.bytes.extend_from_slice(&[0; 4]);
        }
        let taken = reply.places.get(reply.next..reply.next + count).unwrap_or_default();
        if let (Some(first), Some(last)) = (taken.first(), taken.last()) {
            self.bytes.extend_from_slice(reply.entries.get(first.from..last.to).unwrap_or_default());
        }
        reply.next += count;
        match self.runs.last_mut() {
            Some(run) if run.stream == stream => run.entries += count,
            Some(_) | None => self.runs.push(Run { stream, entries: count }),
        }
    }

    fn finish(mut self) -> Result<Option<RawBatch>> {
        if self.runs.is_empty() {
            return Ok(None);
        }
        self.bytes.extend_from_slice(&[0]);
        let too_long = |_| Malformed { offset: 0, reason: "an array is too long" };
        let length = i32::try_from(self.bytes.len()).map_err(too_long)?;
        for (to, byte) in self.bytes.iter_mut().zip(length.to_le_bytes()) {
            *to = byte;
        }
        let mut permit = Permit::none();
        self.permits.into_iter().for_each(|other| permit.join(other));
        Ok(Some(RawBatch { entries: self.bytes.freeze(), reached: None, runs: self.runs, permit }))
    }
}

fn places(entries: &[u8]) -> Result<Vec<Place>> {
    let mut places = Vec::new();
    // Behind the array's length.
    let mut from = 4;
    for element in Elements::new(entries)? {
        let element = element?;
        let to = element.end();
        places.push(Place { ts: reply::entry_time(element.value)?.ts(), from, to });
        from = to;
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{Timestamp, rawdoc};

    fn batch(increments: &[u32]) -> RawBatch {
        let mut array = bson::RawArrayBuf::new();
        for increment in increments {
            array.push(rawdoc! { "op": "n", "ts": Timestamp { time: 1, increment: *increment } });
        }
        let entries = Bytes::copy_from_slice(array.as_bytes());
        RawBatch { entries, reached: None, runs: Vec::new(), permit: Permit::none() }
    }

    /// What comes out: (stream, increment).
    fn taken(order: &mut Order) -> Vec<(usize, u64)> {
        let Some(batch) = order.take().unwrap() else { return Vec::new() };
        let streams = batch.runs.iter().flat_map(|run| std::iter::repeat_n(run.stream, run.entries));
        let times = places(&batch.entries).unwrap().into_iter().map(|place| place.ts & 0xffff_ffff);
        streams.zip(times).collect()
    }

    #[test]
    fn entries_leave_in_the_order_of_time() {
        let mut order = Order::new(2);
        order.push(0, batch(&[1, 4, 5, 9])).unwrap();
        order.push(1, batch(&[2, 3, 7, 8])).unwrap();
        let expected = [(0, 1), (1, 2), (1, 3), (0, 4), (0, 5), (1, 7), (1, 8)];
        assert_eq!(taken(&mut order), expected);
        assert_eq!(order.blocked().unwrap().by, [1], "the entry 9 waits for what the second may still bring");
        assert!(order.wants(1) && !order.wants(0));
        order.push(1, batch(&[12])).unwrap();
        assert_eq!(taken(&mut order), [(0, 9)]);
    }

    #[test]
    fn an_oplog_that_has_not_spoken_holds_everything_back() {
        let mut order = Order::new(3);
        order.push(0, batch(&[1])).unwrap();
        order.push(2, batch(&[2, 3])).unwrap();
        assert_eq!(taken(&mut order), []);
        let (by, newest) = (vec![1], (2, (1 << 32) | 2));
        assert_eq!(order.blocked(), Some(Blocked { by, newest }));
        order.push(1, batch(&[2])).unwrap();
        assert_eq!(taken(&mut order), [(0, 1)], "behind its entry 1 the first may still bring an entry 2");
        order.push(0, batch(&[9])).unwrap();
        assert_eq!(taken(&mut order), [(1, 2), (2, 2)], "behind its entry 2 the second brings nothing older than 2");
        assert_eq!(order.blocked().unwrap().by, [1]);
    }

    #[test]
    fn a_reply_that_nothing_holds_back_is_not_copied() {
        let mut order = Order::new(2);
        order.push(1, batch(&[8])).unwrap();
        order.push(0, batch(&[7])).unwrap();
        assert_eq!(taken(&mut order), [(0, 7)]);
        order.push(0, batch(&[9])).unwrap();
        assert_eq!(taken(&mut order), [(1, 8)]);
        let reply = batch(&[10, 11]);
        let bytes = reply.entries.clone();
        order.push(1, batch(&[20])).unwrap();
        assert_eq!(taken(&mut order), [(0, 9)]);
        order.push(0, reply).unwrap();
        let batch = order.take().unwrap().unwrap();
        assert_eq!(batch.entries.len(), bytes.len());
        assert_eq!(batch.runs, [Run { stream: 0, entries: 2 }]);
    }

    #[test]
    fn any_interleaving_of_replies_gives_the_same_order() {
        use std::collections::VecDeque;
        let all: [Vec<u32>; 3] = [(1..60).step_by(2).collect(), (1..60).step_by(3).collect(), vec![5, 6, 59]];
        let mut expected: Vec<(u64, usize)> = Vec::new();
        for (stream, times) in all.iter().enumerate() {
            expected.extend(times.iter().map(|time| (u64::from(*time), stream)));
        }
        expected.sort_unstable();
        for seed in 0..200_usize {
            let mut rest: Vec<VecDeque<u32>> = all.iter().map(|times| times.iter().copied().collect()).collect();
            rest.iter_mut().for_each(|times| times.push_back(1000));
            let mut order = Order::new(3);
            let mut out = Vec::new();
            for round in 0.. {
                // A step of one or two, so that every stream has its turn.
                let stream = (seed + round * (1 + seed % 2)) % 3;
                if order.wants(stream) && !rest[stream].is_empty() {
                    let count = (1 + (seed * 31 + round * 17) % 5).min(rest[stream].len());
                    let reply: Vec<u32> = rest[stream].drain(..count).collect();
                    order.push(stream, batch(&reply)).unwrap();
                }
                out.extend(taken(&mut order).into_iter().map(|(stream, time)| (time, stream)));
                if rest.iter().all(VecDeque::is_empty) || round > 5000 {
                    break;
                }
            }
            out.retain(|(time, _)| *time < 1000);
            assert!(expected.starts_with(&out), "seed {seed}: {out:?}");
            assert!(out.len() >= expected.len() - 1, "seed {seed}: {} of {}", out.len(), expected.len());
        }
    }
}
