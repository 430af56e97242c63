//! One ordered writer and what waits for it.
//!
//! While a lane's flush is on its way, the next one forms behind it: no timer decides when to write, so an idle
//! lane writes a single change at once and a busy one writes batches that grow by themselves. Waiting writes stand
//! in waves; within a wave every document occurs once, so a wave can be sent in any order, and two writes of one
//! document that could not be merged stand in different waves.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use bytes::Bytes;

use crate::ack::SlotId;
use crate::model::{DocumentKey, NamespaceId};
use crate::schedule::coalesce::{Merge, keeps_place, merge};
use crate::sink::{Content, Patch, Write};

/// Statements in one flush.
const WAVE_WRITES_MAX: usize = 8192;

/// Bytes in one flush; the server takes 48 MB in one command.
const WAVE_BYTES_MAX: usize = 24 << 20;

/// A document of the target.
pub type Address = (NamespaceId, DocumentKey);

/// Which changes a write stands for: slots and how many of each. Most stand for one change, which needs no memory.
#[derive(Debug, Clone)]
pub struct Acks {
    newest: (SlotId, usize),
    older: Vec<(SlotId, usize)>,
}

impl Acks {
    /// One change of `slot`.
    #[must_use]
    pub fn one(slot: SlotId) -> Self {
        Self { newest: (slot, 1), older: Vec::new() }
    }

    /// Adds the changes of another write that was merged into this one.
    pub fn extend(&mut self, other: Self) {
        for (slot, count) in other.older.into_iter().chain([other.newest]) {
            if self.newest.0 == slot {
                self.newest.1 += count;
            } else {
                self.older.push(std::mem::replace(&mut self.newest, (slot, count)));
            }
        }
    }

    /// The slots and counts.
    pub fn iter(&self) -> impl Iterator<Item = (SlotId, usize)> + '_ {
        self.older.iter().copied().chain([self.newest])
    }
}

/// A write that waits, with what it acknowledges.
#[derive(Debug)]
pub struct Pending {
    pub address: Address,
    pub write: Write,
    pub acks: Acks,
}

impl Pending {
    /// Merges `later`, of the same document, into this one; gives it back when they must stay two writes.
    pub fn absorb(&mut self, later: Self) -> Option<Self> {
        if self.write.origin != later.write.origin {
            return Some(later);
        }
        let same_side = self.write.overlap == later.write.overlap;
        let earlier = std::mem::replace(&mut self.write.content, Content::Delete);
        match merge(earlier, later.write.content, same_side) {
            Merge::Merged(content) => {
                self.write.content = content;
                self.write.overlap = later.write.overlap;
                self.write.time = later.write.time;
                self.write.key = later.write.key;
                // What is left is the later one's: of its collection, under the name by which that is read.
                self.write.source = later.write.source;
                self.write.collection = later.write.collection;
                self.write.moved = later.write.moved;
                self.write.creates |= later.write.creates;
                self.acks.extend(later.acks);
                None
            }
            Merge::Apart(earlier, content) => {
                self.write.content = earlier;
                Some(Self { address: later.address, write: Write { content, ..later.write }, acks: later.acks })
            }
        }
    }

    /// Makes the write own its bytes, so that it no longer keeps a whole reply of the source alive. Returns how many.
    pub fn detach(&mut self) -> usize {
        let own = |bytes: &mut Bytes| *bytes = Bytes::copy_from_slice(bytes);
        let own_all = |patches: &mut Vec<Patch>| {
            for Patch::Diff(bytes) | Patch::Modifiers(bytes) in patches {
                *bytes = Bytes::copy_from_slice(bytes);
            }
        };
        own(&mut self.write.key);
        match &mut self.write.content {
            Content::Insert(document) | Content::Replace(document) => own(document),
            Content::Patch(patches) => own_all(patches),
            Content::Patched { base, patches, .. } => {
                own(base);
                own_all(patches);
            }
            Content::Delete => {}
        }
        self.bytes()
    }

    /// Bytes of its key and content.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let patches = |list: &[Patch]| list.iter().map(Patch::bytes).sum::<usize>();
        self.write.key.len()
            + match &self.write.content {
                Content::Insert(document) | Content::Replace(document) => document.len(),
                Content::Patch(list) => patches(list),
                Content::Patched { base, patches: list, .. } => base.len() + patches(list),
                Content::Delete => 0,
            }
    }
}

/// Hashes an [`Address`] by mixing its numbers: the document key is random already (`model::key`).
#[derive(Debug, Default)]
pub struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(5) ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_u128(&mut self, n: u128) {
        self.write_u64(n as u64);
    }
}

#[derive(Debug, Default)]
struct Wave {
    entries: Vec<Option<Pending>>,
    index: HashMap<Address, usize, BuildHasherDefault<AddressHasher>>,
    bytes: usize,
}

/// One lane's waiting writes and the flush that is on its way.
#[derive(Debug, Default)]
pub struct Lane {
    waves: VecDeque<Wave>,
    in_flight: Option<Vec<(Address, Acks)>>,
}

impl Lane {
    /// Adds a write behind everything that waits. Returns whether it was merged into a waiting one. `keep_order`: the
    /// place of a write among those of other documents matters, so it is merged into the last one only, and not where
    /// that would change the document's place.
    pub fn push(&mut self, pending: Pending, keep_order: bool) -> bool {
        let mut pending = pending;
        if let Some(wave) = self.waves.back_mut() {
            let found = wave.index.get(&pending.address).and_then(|at| Some((*at, wave.entries.get(*at)?.as_ref()?)));
            let merges = |(at, waiting): (usize, &Pending)| {
                at + 1 == wave.entries.len() && keeps_place(&waiting.write.content, &pending.write.content)
            };
            if keep_order && found.is_some_and(|found| !merges(found)) {
                self.waves.push_back(Wave::default());
            }
        }
        if let Some(wave) = self.waves.back_mut() {
            let at = wave.index.get(&pending.address).copied();
            if let Some(waiting) = at.and_then(|at| wave.entries.get_mut(at)).and_then(Option::as_mut) {
                wave.bytes += pending.bytes();
                match waiting.absorb(pending) {
                    None => return true,
                    Some(apart) => pending = apart,
                }
                self.waves.push_back(Wave::default());
            } else if wave.entries.len() >= WAVE_WRITES_MAX || wave.bytes >= WAVE_BYTES_MAX {
                self.waves.push_back(Wave::default());
            }
        } else {
            self.waves.push_back(Wave::default());
        }
        if let Some(wave) = self.waves.back_mut() {
            wave.bytes += pending.bytes();
            wave.index.insert(pending.address, wave.entries.len());
            wave.entries.push(Some(pending));
        }
        false
    }

    /// Adds a write before everything that waits.
    pub fn push_first(&mut self, pending: Pending) {
        let mut wave = Wave { bytes: pending.bytes(), ..Wave::default() };
        wave.index.insert(pending.address, 0);
        wave.entries.push(Some(pending));
        self.waves.push_front(wave);
    }

    /// The next flush, if the lane is idle and something waits.
    pub fn start_flush(&mut self) -> Option<Vec<Write>> {
        if self.in_flight.is_some() {
            return None;
        }
        loop {
            let wave = self.waves.pop_front()?;
            let mut notes = Vec::with_capacity(wave.entries.len());
            let mut writes = Vec::with_capacity(wave.entries.len());
            for pending in wave.entries.into_iter().flatten() {
                notes.push((pending.address, pending.acks));
                writes.push(pending.write);
            }
            // A wave can be empty when all of its writes were taken out behind a parked one.
            if !writes.is_empty() {
                self.in_flight = Some(notes);
                return Some(writes);
            }
        }
    }

    /// The flush came back: what its writes stood for, in their order.
    pub fn finish_flush(&mut self) -> Vec<(Address, Acks)> {
        self.in_flight.take().unwrap_or_default()
    }

    /// Takes out every waiting write of one document, oldest first.
    pub fn take(&mut self, address: &Address) -> Vec<Pending> {
        let mut taken = Vec::new();
        for wave in &mut self.waves {
            if let Some(at) = wave.index.remove(address) {
                taken.extend(wave.entries.get_mut(at).and_then(Option::take));
            }
        }
        taken
    }

    /// Whether a flush is on its way.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.in_flight.is_some()
    }
}
