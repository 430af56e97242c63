//! Which writer takes a change, and what waits for what.
//!
//! A lane is one ordered writer: the same document always goes to the same lane, so its changes keep their order while
//! different documents are written in parallel. Changes that wait in a lane for its writer are merged per document
//! where that provably gives the same result. A scope says what a DDL fences. Nothing here does I/O.

pub mod coalesce;
pub mod contention;
pub mod lane;
pub mod scope;
pub mod spread;

pub use contention::Contention;
pub use lane::{Lane, Pending};
pub use scope::Scope;
pub use spread::Spread;
