//! A change of the catalogue, parsed once by the decoder.
//!
//! Namespaces are ids like everywhere else, each as a pair (source, target), so that the plugin chain can route and
//! rename both names of a rename. Options and index specifications stay raw BSON.

use bytes::Bytes;

use super::change::CollectionUuid;
use super::namespace::NamespaceId;
use super::raw;

/// A namespace of a DDL: how the source calls it and where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Routed {
    /// Name in the source.
    pub source: NamespaceId,
    /// Name in the target; the source's until a plugin renames it.
    pub target: NamespaceId,
}

impl Routed {
    /// A namespace that is not renamed yet.
    #[must_use]
    pub fn same(id: NamespaceId) -> Self {
        Self { source: id, target: id }
    }
}

/// The DDL commands of the oplog that Oplogue replays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ddl {
    /// `create`: a collection or a view, with its options (raw document without the `create` field).
    Create { namespace: Routed, options: Bytes },
    /// `drop`.
    Drop { namespace: Routed },
    /// `dropDatabase`; `database` is the pair of `db.$cmd` names.
    DropDatabase { database: Routed },
    /// `renameCollection`. `drop_target` = the source replaced an existing collection of that identity.
    Rename { from: Routed, to: Routed, drop_target: Option<CollectionUuid> },
    /// `createIndexes` or `commitIndexBuild`: complete index specifications, `key` and `name` included.
    CreateIndexes { namespace: Routed, specs: Vec<Bytes> },
    /// `dropIndexes`: one index, by name.
    DropIndexes { namespace: Routed, name: String },
    /// `collMod`: the changed options (raw document without the `collMod` field).
    CollMod { namespace: Routed, options: Bytes },
    /// `convertToCapped`: the new size in bytes.
    ConvertToCapped { namespace: Routed, size_bytes: i64 },
    /// `emptycapped`: every document goes, the collection stays.
    EmptyCapped { namespace: Routed },
    /// A view was dropped: servers log a delete in `system.views`. It never touches anything but a view.
    DropView { namespace: Routed },
    /// `drop` of `system.views`, which takes every view of a database; `database` is the pair of `db.$cmd` names.
    DropViews { database: Routed },
    /// A collection came over the filter's border by a rename: what it holds is not in the stream and is copied from
    /// the source. `drop_target` as in `Rename`. Made by the plugin chain, never logged.
    CopyIn { namespace: Routed, drop_target: Option<CollectionUuid> },
    /// A command whose effect on the target would be wider than on the source, or has no meaning there. Made by the
    /// plugin chain; `incr_sync.ddl_refused` decides what becomes of it.
    Refused { command: &'static str, namespace: Routed, why: String },
}

/// Whether options of a collection, raw, say that it is capped.
#[must_use]
pub fn is_capped(options: &[u8]) -> bool {
    raw::find(options, "capped").ok().flatten().is_some_and(|capped| capped.value == [1])
}

impl Ddl {
    /// The namespaces that this command touches, in a fixed order.
    #[must_use]
    pub fn namespaces(&self) -> Vec<Routed> {
        match self {
            Self::Create { namespace, .. }
            | Self::Drop { namespace }
            | Self::DropDatabase { database: namespace }
            | Self::CreateIndexes { namespace, .. }
            | Self::DropIndexes { namespace, .. }
            | Self::CollMod { namespace, .. }
            | Self::ConvertToCapped { namespace, .. }
            | Self::EmptyCapped { namespace }
            | Self::DropView { namespace }
            | Self::DropViews { database: namespace }
            | Self::CopyIn { namespace, .. }
            | Self::Refused { namespace, .. } => vec![*namespace],
            Self::Rename { from, to, .. } => vec![*from, *to],
        }
    }

    /// The same places, to rename them.
    pub fn namespaces_mut(&mut self) -> Vec<&mut Routed> {
        match self {
            Self::Create { namespace, .. }
            | Self::Drop { namespace }
            | Self::DropDatabase { database: namespace }
            | Self::CreateIndexes { namespace, .. }
            | Self::DropIndexes { namespace, .. }
            | Self::CollMod { namespace, .. }
            | Self::ConvertToCapped { namespace, .. }
            | Self::EmptyCapped { namespace }
            | Self::DropView { namespace }
            | Self::DropViews { database: namespace }
            | Self::CopyIn { namespace, .. }
            | Self::Refused { namespace, .. } => vec![namespace],
            Self::Rename { from, to, .. } => vec![from, to],
        }
    }

    /// The command's name as the server spells it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create",
            Self::Drop { .. } => "drop",
            Self::DropDatabase { .. } => "dropDatabase",
            Self::Rename { .. } => "renameCollection",
            Self::CreateIndexes { .. } => "createIndexes",
            Self::DropIndexes { .. } => "dropIndexes",
            Self::CollMod { .. } => "collMod",
            Self::ConvertToCapped { .. } => "convertToCapped",
            Self::EmptyCapped { .. } => "emptycapped",
            Self::DropView { .. } => "drop (view)",
            Self::DropViews { .. } => "drop system.views",
            Self::CopyIn { .. } => "renameCollection (into the filter)",
            Self::Refused { command, .. } => command,
        }
    }

    /// Whether replaying it twice could destroy data or undo a later change (correctness.md §6).
    #[must_use]
    pub fn is_destructive(&self) -> bool {
        match self {
            Self::Create { .. }
            | Self::CreateIndexes { .. }
            | Self::DropView { .. }
            | Self::DropViews { .. }
            | Self::Refused { .. } => false,
            Self::Drop { .. }
            | Self::DropDatabase { .. }
            | Self::Rename { .. }
            | Self::DropIndexes { .. }
            | Self::CollMod { .. }
            | Self::ConvertToCapped { .. }
            | Self::EmptyCapped { .. }
            | Self::CopyIn { .. } => true,
        }
    }
}
