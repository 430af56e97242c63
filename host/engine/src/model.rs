//! The words that all stages share: namespaces, positions, changes and batches.
//!
//! These types hold bytes and small numbers and decide nothing. A document is kept as the raw BSON that the
//! source sent, as a [`bytes::Bytes`] slice of the server's reply, and is never decoded into a tree here.

pub mod batch;
pub mod change;
pub mod ddl;
pub mod key;
pub mod namespace;
pub mod origin;
pub mod position;
pub mod raw;
pub mod view;

pub use batch::{ChangeBatch, RawBatch, Run};
pub use change::{Change, CollectionUuid, Operation};
pub use ddl::Ddl;
pub use key::DocumentKey;
pub use namespace::{Namespace, NamespaceId, Namespaces};
pub use origin::Origin;
pub use position::{OpTime, Position, ShardPosition, ShardPositions};
