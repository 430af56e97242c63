//! The batch as a guest sees it: one column for each property, one arena for all documents.
//!
//! Built from the entries that asked for it and nothing else. Bodies are copied once into the arena (the guest's
//! memory cannot see ours) and never encoded. The buffers are reused from batch to batch.

use std::collections::HashMap;

use oplogue_engine::model::raw;
use oplogue_engine::model::{Change, NamespaceId, Namespaces, Operation};
use wasmtime::component::{ComponentType, Lift, Lower};

/// How much of an entry a route asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code, reason = "the values come out of a guest's memory")]
pub(crate) enum Body {
    #[component(name = "none")]
    None,
    #[component(name = "key")]
    Key,
    #[component(name = "full")]
    Full,
    #[component(name = "post-image")]
    PostImage,
}

/// The WIT record `batch`.
#[derive(Debug, Default, ComponentType, Lower)]
#[component(record)]
pub(crate) struct Columns {
    seq: u64,
    #[component(name = "now-ms")]
    now_ms: i64,
    namespaces: Vec<String>,
    ns: Vec<u32>,
    op: Vec<u8>,
    ts: Vec<u64>,
    #[component(name = "wall-ms")]
    wall_ms: Vec<i64>,
    off: Vec<u32>,
    len: Vec<u32>,
    arena: Vec<u8>,
}

/// An entry on its way to a plugin: its place in the batch and what was asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pending {
    pub(crate) at: usize,
    pub(crate) body: Body,
}

const EMPTY_DOCUMENT: &[u8] = &[5, 0, 0, 0, 0];

impl Columns {
    /// Fills the columns. `None` where the batch has no such entry, which would be a bug of the chain.
    pub(crate) fn fill(&mut self, seq: u64, items: &[Pending], changes: &[Change], names: &Namespaces) -> Option<()> {
        self.clear();
        self.seq = seq;
        let mut places: HashMap<NamespaceId, u32> = HashMap::new();
        let mut last = None;
        for item in items {
            let change = changes.get(item.at)?;
            let place = match last {
                Some((id, place)) if id == change.target => place,
                _ => *places.entry(change.target).or_insert_with(|| {
                    self.namespaces.push(names.name(change.target).as_str().to_owned());
                    self.namespaces.len() as u32 - 1
                }),
            };
            last = Some((change.target, place));
            self.push(change, place, item.body);
        }
        Some(())
    }

    fn clear(&mut self) {
        self.now_ms = 0;
        self.namespaces.clear();
        self.ns.clear();
        self.op.clear();
        self.ts.clear();
        self.wall_ms.clear();
        self.off.clear();
        self.len.clear();
        self.arena.clear();
    }

    fn push(&mut self, change: &Change, place: u32, body: Body) {
        self.now_ms = self.now_ms.max(change.wall_ms);
        self.ns.push(place);
        self.op.push(change.operation as u8);
        self.ts.push(change.time.ts());
        self.wall_ms.push(change.wall_ms);
        let start = self.arena.len();
        match body {
            Body::None | Body::PostImage => {}
            Body::Key => self.push_key(change),
            Body::Full => {
                self.arena.extend_from_slice(if change.key.is_empty() { EMPTY_DOCUMENT } else { &change.key });
                self.arena.extend_from_slice(&change.body);
            }
        }
        self.off.push(start as u32);
        self.len.push((self.arena.len() - start) as u32);
    }

    /// The key document; for an insert or a snapshot it is made from the body's `_id`.
    fn push_key(&mut self, change: &Change) {
        if !change.key.is_empty() || change.operation == Operation::Ddl {
            self.arena.extend_from_slice(if change.key.is_empty() { EMPTY_DOCUMENT } else { &change.key });
            return;
        }
        match raw::find(&change.body, "_id") {
            Ok(Some(id)) => {
                let length = 4 + 1 + 4 + id.value.len() + 1;
                self.arena.extend_from_slice(&(length as u32).to_le_bytes());
                self.arena.push(id.kind);
                self.arena.extend_from_slice(b"_id\0");
                self.arena.extend_from_slice(id.value);
                self.arena.push(0);
            }
            Ok(None) | Err(_) => self.arena.extend_from_slice(EMPTY_DOCUMENT),
        }
    }

    /// Bytes that an entry adds to the arena.
    pub(crate) fn weight(change: &Change, body: Body) -> usize {
        match body {
            Body::None | Body::PostImage => 0,
            Body::Key => change.key.len().max(EMPTY_DOCUMENT.len()),
            Body::Full => change.bytes() + EMPTY_DOCUMENT.len(),
        }
    }
}
