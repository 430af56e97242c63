//! The closed sets of label values, as enums, so that a counter cannot get a value that no dashboard knows.
//!
//! Each value has a fixed place, which makes a counter by label an array access on the data path. Nothing here counts.

use crate::model::Operation;

/// A closed set of values for one label.
pub trait Label: Copy + 'static {
    /// The label's name.
    const NAME: &'static str;
    /// All values; each stands at its own [`Label::place`].
    const ALL: &'static [Self];
    /// The text of the value.
    fn text(self) -> &'static str;
    /// The value's place in [`Label::ALL`].
    fn place(self) -> usize;
}

/// Declares an enum of unit variants with its texts.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident as $label:literal { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl Label for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$variant),*];
            fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
            fn place(self) -> usize {
                self as usize
            }
        }
    };
}

label! {
    /// Why an entry of the source became no change.
    DropReason as "reason" {
        /// The server's own noop, one every ten seconds on an idle set.
        Noop = "noop",
        /// Chunk migration inside the source's cluster.
        FromMigrate = "from_migrate",
        /// Oplogue's own databases.
        Own = "own",
        /// It came from the target: loop prevention.
        Looped = "looped",
        /// A DDL while `filter.ddl_enable` is false.
        Ddl = "ddl",
        /// An operation type that the configuration drops.
        OpType = "op_type",
        /// A transaction that was aborted.
        Aborted = "aborted",
        /// An entry seen before: the proof of history at the open, or a repeated one.
        Repeated = "repeated",
        /// A collection's bookkeeping that has no effect on documents.
        Internal = "internal",
        /// An update whose document was gone when the change stream looked for it.
        Gone = "gone",
    }
}

label! {
    /// Why a change was refused for good.
    ConflictKind as "kind" {
        /// An insert whose `_id` is taken; the target's document is kept.
        DuplicateId = "duplicate_id",
        /// Another document has the value of a unique index.
        UniqueKey = "unique_key",
        /// A validator of the target.
        Validation = "validation",
        /// The `_id` or the shard key would change.
        Immutable = "immutable_field",
        /// Any other reason of the server.
        Other = "other",
    }
}

label! {
    /// What became of a conflict.
    RulingKind as "ruling" {
        /// Given up on purpose.
        KeepTarget = "keep_target",
        /// What stood in the way was deleted, and the change applied.
        Overwrite = "overwrite",
        /// Recorded on the target.
        Record = "record",
        /// The run stopped before it.
        Stop = "stop",
    }
}

impl ConflictKind {
    /// The kind of a statement's error code; `is_unique` where the index is known not to be the `_id`'s.
    #[must_use]
    pub fn of_code(code: i32, is_unique: bool) -> Self {
        match code {
            _ if is_unique => Self::UniqueKey,
            11000 => Self::DuplicateId,
            121 => Self::Validation,
            61 | 66 | 31025 => Self::Immutable,
            _ => Self::Other,
        }
    }
}

label! {
    /// Kinds of statements, as the target sees them.
    WriteKind as "op" {
        Insert = "insert",
        Replace = "replace",
        Update = "update",
        Delete = "delete",
    }
}

label! {
    /// The stage of a run.
    SyncStage as "stage" {
        /// Connecting, checking, choosing where to start.
        Starting = "starting",
        /// The full copy.
        FullSync = "full_sync",
        /// Following the source.
        Incremental = "incremental",
        /// Ordered shutdown.
        Stopping = "stopping",
        /// Stopped by a fault that needs the operator.
        Fault = "fault",
    }
}

impl SyncStage {
    /// The stage of a stored number; unknown numbers are faults.
    #[must_use]
    pub fn of_place(place: u8) -> Self {
        Self::ALL.get(usize::from(place)).copied().unwrap_or(Self::Fault)
    }
}

impl Label for Operation {
    const NAME: &'static str = "op";
    // Both forms of an update are one label value: `update` stands for diff and modifiers alike.
    const ALL: &'static [Self] =
        &[Self::Snapshot, Self::Insert, Self::Replace, Self::UpdateDiff, Self::Delete, Self::Ddl];

    fn text(self) -> &'static str {
        self.name()
    }

    fn place(self) -> usize {
        match self {
            Self::Snapshot => 0,
            Self::Insert => 1,
            Self::Replace => 2,
            Self::UpdateDiff | Self::UpdateModifiers => 3,
            Self::Delete => 4,
            Self::Ddl => 5,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places_are_right<L: Label>() {
        for (at, value) in L::ALL.iter().enumerate() {
            assert_eq!(value.place(), at, "{} {}", L::NAME, value.text());
        }
    }

    #[test]
    fn each_value_stands_at_its_place() {
        places_are_right::<DropReason>();
        places_are_right::<ConflictKind>();
        places_are_right::<RulingKind>();
        places_are_right::<WriteKind>();
        places_are_right::<SyncStage>();
        places_are_right::<Operation>();
    }
}
