//! One event of the source: what happened, where, to which document, when.
//!
//! A change never owns a copy of a document. Its key and body are reference-counted slices of the server's reply
//! (or of a plugin's output, when a plugin replaced the body).

use bytes::Bytes;

use super::ddl::Ddl;
use super::namespace::NamespaceId;
use super::origin::Origin;
use super::position::OpTime;

/// A collection's identity on one server (`ui` of the oplog, `info.uuid` of `listCollections`).
pub type CollectionUuid = [u8; 16];

/// What happened. The numbers are the op codes of the plugin contract (`wit/`), frozen with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Operation {
    /// A document read by the full copy. The body is the document.
    Snapshot = 0,
    /// The body is the new document.
    Insert = 1,
    /// The body is the whole document after the change.
    Replace = 2,
    /// The body is the server's `$v: 2` diff tree (the value of `diff`).
    UpdateDiff = 3,
    /// The body is a `$v: 1` modifier document (`$set`, `$unset`), without `$v`.
    UpdateModifiers = 4,
    /// The body is empty; the key names the document.
    Delete = 5,
    /// A change of the catalogue; `ddl` holds it, the body is the command as logged.
    Ddl = 6,
}

impl Operation {
    /// The name used in metrics and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Insert => "insert",
            Self::Replace => "replace",
            Self::UpdateDiff | Self::UpdateModifiers => "update",
            Self::Delete => "delete",
            Self::Ddl => "ddl",
        }
    }
}

/// One change, as every stage between decoder and sink sees it.
#[derive(Debug, Clone)]
pub struct Change {
    /// What happened.
    pub operation: Operation,
    /// The namespace in the source. For DDL: the first namespace it names (`db.$cmd` for `dropDatabase`).
    pub source: NamespaceId,
    /// The namespace it goes to: the source's, until a plugin renames it.
    pub target: NamespaceId,
    /// Raw BSON document that selects the one document: `{_id: …}` plus shard-key fields if the source logged them
    /// (`o2`, or `o` of a delete). Empty for DDL, and for inserts and snapshots whose source logged no selector: their
    /// `_id` stands in the body.
    pub key: Bytes,
    /// Raw BSON document; its meaning depends on `operation`.
    pub body: Bytes,
    /// Source time. All inner operations of one transaction share it.
    pub time: OpTime,
    /// The source's wall clock at that moment, milliseconds since the Unix epoch.
    pub wall_ms: i64,
    /// The source collection's identity, when the entry carried one.
    pub collection: Option<CollectionUuid>,
    /// The cluster that the change came to the source from, when a collector wrote it there.
    pub origin: Option<Origin>,
    /// Wall-clock milliseconds before which the change must not be written; 0 = at once. Set by delay plugins.
    pub not_before_ms: i64,
    /// A plugin has moved it to another namespace than its collection's.
    pub moved: bool,
    /// An update that makes its document where there is none: that of a client's command `applyOps`.
    pub creates: bool,
    /// The parsed command of a [`Operation::Ddl`].
    pub ddl: Option<Box<Ddl>>,
}

impl Change {
    /// The raw document that holds this change's `_id`: the key, or the body of an insert or snapshot.
    #[must_use]
    pub fn key_document(&self) -> &Bytes {
        if self.key.is_empty() { &self.body } else { &self.key }
    }

    /// Bytes that this change keeps alive, for accounting.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.key.len() + self.body.len()
    }
}
