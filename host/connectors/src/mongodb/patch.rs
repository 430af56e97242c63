//! Turns what the source logged about an update into one update statement for the target.
//!
//! A `$v: 2` diff is parsed once into a tree of borrowed bytes ([`diff`]). Outside of overlap, and only when every
//! path is plain, the tree becomes classic modifiers ([`fast`]), which cost the target least. Everywhere else it
//! becomes one aggregation stage that does what the server's own applier does, level by level ([`exact`]). Diffs behind a
//! whole document that goes with them become that document ([`over`]). Nothing here talks to a server, and no user's
//! value is ever decoded.

pub(crate) mod diff;
pub(crate) mod exact;
pub(crate) mod fast;
pub(crate) mod modifiers;
pub(crate) mod over;
pub(crate) mod shape;

pub(crate) use diff::ObjectDiff;
pub use exact::{CompileError, pipeline};

/// Which expressions the target's version knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dialect {
    /// 4.4: objects are taken apart and put together as arrays of names and values.
    V4_4,
    /// 5.0 and later: `$getField` and `$unsetField` besides.
    #[default]
    V5_0,
}

impl Dialect {
    /// The dialect of a server that says `maxWireVersion` in its `hello`; `None` below 4.4.
    #[must_use]
    pub fn of_wire_version(version: i32) -> Option<Self> {
        match version {
            ..9 => None,
            9..13 => Some(Self::V4_4),
            13.. => Some(Self::V5_0),
        }
    }
}

/// Nesting that a stage may reach: the server refuses commands deeper than 200 levels, and the statement, its array
/// and the command stand around the pipeline.
pub(crate) const DEPTH_MAX: usize = 190;

/// Bytes that the pipeline of one statement may have: a command may be 16 KiB larger than the largest document, and the
/// selector and the driver's own fields stand beside it.
pub(crate) const BYTES_MAX: usize = 16 * 1024 * 1024 + 8 * 1024;
