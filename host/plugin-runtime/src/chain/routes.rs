//! The remembered way of each namespace through the chain: one array lookup an entry.
//!
//! Route-only plugins that stand side by side collapse into one hop: from a position in the chain straight to the end,
//! to a drop, or to the next plugin that wants to see entries. The table belongs to one worker and needs no lock; a
//! new generation clears it.

use oplogue_engine::model::NamespaceId;

use crate::columns::Body;

/// Where a namespace gets from a position in the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hop {
    /// Nobody asked yet.
    Unknown,
    /// Through to the end, under this name.
    Pass(NamespaceId),
    Drop,
    /// To `plugin`, which wants to see entries of `ops`, under the name `name`.
    Inspect {
        plugin: u16,
        name: NamespaceId,
        body: Body,
        ops: u8,
    },
}

/// One table for each position in the chain, indexed by namespace.
#[derive(Debug, Default)]
pub(super) struct Routes {
    tables: Vec<Vec<Hop>>,
}

impl Routes {
    /// Forgets everything; the chain has `plugins` plugins.
    pub(super) fn clear(&mut self, plugins: usize) {
        self.tables.clear();
        self.tables.resize(plugins + 1, Vec::new());
    }

    /// The table of the chain's start, for the loop over a batch.
    pub(super) fn start(&self) -> &[Hop] {
        self.tables.first().map_or(&[], Vec::as_slice)
    }

    pub(super) fn get(&self, position: usize, namespace: NamespaceId) -> Hop {
        self.tables.get(position).and_then(|table| table.get(namespace.index())).copied().unwrap_or(Hop::Unknown)
    }

    pub(super) fn set(&mut self, position: usize, namespace: NamespaceId, hop: Hop) {
        let Some(table) = self.tables.get_mut(position) else { return };
        if table.len() <= namespace.index() {
            table.resize(namespace.index() + 1, Hop::Unknown);
        }
        if let Some(place) = table.get_mut(namespace.index()) {
            *place = hop;
        }
    }
}
