//! Turns what the source logged about an update into one update statement for the target.
//!
//! A `$v: 2` diff is parsed once into a tree of borrowed bytes ([`diff`]). Outside of overlap, and only when every
//! path is plain, the tree becomes classic modifiers ([`fast`]), which cost the target least. Everywhere else it
//! becomes one aggregation stage that does what the server's own applier does, level by level ([`exact`]). Nothing
//! here talks to a server, and no user's value is ever decoded.

pub(crate) mod diff;
pub(crate) mod exact;
pub(crate) mod fast;

pub(crate) use diff::ObjectDiff;
pub use exact::{CompileError, pipeline};

/// Nesting that a stage may reach: the server refuses commands deeper than 200 levels, and the statement, its array
/// and the command stand around the pipeline.
pub(crate) const DEPTH_MAX: usize = 190;
