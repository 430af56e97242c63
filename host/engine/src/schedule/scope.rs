//! What a DDL fences: the part of the target in which nothing else may be in flight while it runs.
//!
//! Creating things concerns one collection, and a view holds no data. Destroying, renaming or re-modelling things fences everything, because
//! the checkpoint right before such a command must be stored before it runs (correctness.md §6), and a checkpoint is
//! a position of the whole stream.

use crate::model::{Ddl, NamespaceId};

/// A part of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// One target collection.
    Collection(NamespaceId),
    /// Everything.
    Cluster,
}

impl Scope {
    /// The scope of a DDL.
    #[must_use]
    pub fn of(ddl: &Ddl) -> Self {
        match ddl {
            Ddl::Create { namespace, .. }
            | Ddl::CreateIndexes { namespace, .. }
            | Ddl::DropView { namespace }
            | Ddl::DropViews { database: namespace }
            | Ddl::Refused { namespace, .. } => Self::Collection(namespace.target),
            Ddl::Drop { .. }
            | Ddl::DropDatabase { .. }
            | Ddl::Rename { .. }
            | Ddl::DropIndexes { .. }
            | Ddl::CollMod { .. }
            | Ddl::ConvertToCapped { .. }
            | Ddl::EmptyCapped { .. }
            | Ddl::CopyIn { .. } => Self::Cluster,
        }
    }

    /// Whether `namespace` lies inside.
    #[must_use]
    pub fn covers(self, namespace: NamespaceId) -> bool {
        match self {
            Self::Collection(own) => own == namespace,
            Self::Cluster => true,
        }
    }

    /// Whether the two have something in common.
    #[must_use]
    pub fn intersects(self, other: Self) -> bool {
        match (self, other) {
            (Self::Collection(a), Self::Collection(b)) => a == b,
            (Self::Cluster, _) | (_, Self::Cluster) => true,
        }
    }
}
