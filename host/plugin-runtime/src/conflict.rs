//! A conflict as it crosses the border to a guest, and the ruling that comes back.
//!
//! The records mirror `wit/0.1.0` field by field; the runtime checks both types when a file is loaded. What a type
//! cannot say is checked here: that a ruling is one that can be carried out. Nothing here calls a guest.

use oplogue_engine::conflict::{Conflict, Ruling};
use oplogue_engine::metrics::ConflictKind;
use wasmtime::component::{ComponentType, Lift, Lower};

/// A reason is for an operator's eyes; a guest that says more is cut short.
const REASON_CHARS_MAX: usize = 1000;

/// The WIT enum `reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ComponentType, Lower)]
#[component(enum)]
#[repr(u8)]
pub(crate) enum Reason {
    #[component(name = "duplicate-id")]
    DuplicateId,
    #[component(name = "unique-key")]
    UniqueKey,
    #[component(name = "validation")]
    Validation,
    #[component(name = "immutable-field")]
    ImmutableField,
    #[component(name = "other")]
    Other,
}

/// The WIT record `conflict`.
#[derive(Debug, ComponentType, Lower)]
#[component(record)]
pub(crate) struct GuestConflict {
    reason: Reason,
    namespace: String,
    op: u8,
    ts: u64,
    code: i32,
    message: String,
    key: Vec<u8>,
    body: Vec<u8>,
    index: String,
    pattern: Vec<u8>,
    winner: Vec<u8>,
}

/// The WIT variant `ruling`.
#[derive(Debug, Clone, PartialEq, Eq, ComponentType, Lift)]
#[component(variant)]
pub(crate) enum GuestRuling {
    #[component(name = "keep-target")]
    KeepTarget,
    #[component(name = "overwrite")]
    Overwrite,
    #[component(name = "record")]
    Record,
    #[component(name = "stop")]
    Stop(String),
}

impl From<&Conflict> for GuestConflict {
    fn from(conflict: &Conflict) -> Self {
        let reason = match conflict.kind {
            ConflictKind::DuplicateId => Reason::DuplicateId,
            ConflictKind::UniqueKey => Reason::UniqueKey,
            ConflictKind::Validation => Reason::Validation,
            ConflictKind::Immutable => Reason::ImmutableField,
            ConflictKind::Other => Reason::Other,
        };
        let index = conflict.index.as_ref();
        Self {
            reason,
            namespace: conflict.namespace.clone(),
            op: conflict.operation as u8,
            ts: conflict.time.ts(),
            code: conflict.code,
            message: conflict.message.clone(),
            key: conflict.key.to_vec(),
            body: conflict.body.to_vec(),
            index: index.map(|index| index.name.clone()).unwrap_or_default(),
            pattern: index.map(|index| index.pattern.to_vec()).unwrap_or_default(),
            winner: conflict.winner.to_vec(),
        }
    }
}

/// The ruling as the engine has it, or what is wrong with it.
pub(crate) fn checked(conflict: &Conflict, ruling: GuestRuling) -> Result<Ruling, String> {
    Ok(match ruling {
        GuestRuling::KeepTarget => Ruling::KeepTarget,
        GuestRuling::Overwrite if conflict.winner.is_empty() => {
            return Err("overwrite, where no document of the target stands in the way".to_owned());
        }
        GuestRuling::Overwrite => Ruling::Overwrite,
        GuestRuling::Record => Ruling::Record,
        GuestRuling::Stop(reason) => Ruling::Stop(reason.chars().take(REASON_CHARS_MAX).collect()),
    })
}
