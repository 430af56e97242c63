//! Conflicts: changes that the target refuses for good, and what shall become of each.
//!
//! A ruling comes from the settings or from a plugin, and the sink carries all of them out in one place, so that both
//! mean the same. The settings rule over duplicates here, as a pure function of the kind and of the index. Nothing
//! here knows how a document is deleted or a record written, and nothing decides whether a refusal is a conflict.

use bytes::Bytes;

use crate::error::Result;
use crate::metrics::{ConflictKind, RulingKind};
use crate::model::{OpTime, Operation};

/// What shall become of one conflict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ruling {
    /// The change is given up on purpose; the target stays as it is.
    KeepTarget,
    /// What stands in the way is deleted, and the change is applied.
    Overwrite,
    /// The change is recorded on the target, majority-committed before its position moves, and given up.
    Record,
    /// The run stops before the change; the text says why, empty where the refusal says it all.
    Stop(String),
}

impl Ruling {
    /// Its name in metrics and logs.
    #[must_use]
    pub fn kind(&self) -> RulingKind {
        match self {
            Self::KeepTarget => RulingKind::KeepTarget,
            Self::Overwrite => RulingKind::Overwrite,
            Self::Record => RulingKind::Record,
            Self::Stop(_) => RulingKind::Stop,
        }
    }
}

/// The index that a duplicate violates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViolatedIndex {
    pub name: String,
    /// Its key pattern, raw BSON.
    pub pattern: Bytes,
}

/// One conflict as a judge sees it. Documents are raw BSON; an empty slice says that there is none.
#[derive(Debug, Clone)]
pub struct Conflict {
    pub kind: ConflictKind,
    /// The target collection.
    pub namespace: String,
    /// What the body is; see [`Operation`].
    pub operation: Operation,
    /// Source time of the change.
    pub time: OpTime,
    /// The server's error.
    pub code: i32,
    pub message: String,
    /// `{_id: …}`.
    pub key: Bytes,
    pub body: Bytes,
    pub index: Option<ViolatedIndex>,
    /// The target's document that stands in the way.
    pub winner: Bytes,
}

/// Somebody who rules over conflicts.
pub trait Judge: Send + Sync {
    /// Rules over one conflict. It may take its time, so call it on a thread where that is allowed. A replay may ask
    /// about the same conflict again.
    ///
    /// # Errors
    /// `PluginFault` when no ruling comes and the settings say that this stops the run.
    fn rule(&self, conflict: &Conflict) -> Result<Ruling>;
}

/// `incr_sync.executor.dup_key_strategy`: what becomes of a duplicate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum DuplicateKeys {
    /// No rule of its own: an insert whose `_id` is taken is passed over, any other duplicate is like any conflict.
    #[default]
    Ignore,
    Error,
    DeleteAndRetry,
    /// Duplicates of these indexes are given up, all others stop the run.
    Skip(Vec<SkipRule>),
}

/// One of `incr_sync.executor.dup_key_skip_rules`: indexes of one target collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkipRule {
    namespace: String,
    /// `None`: all of them.
    indexes: Option<Vec<String>>,
}

impl SkipRule {
    /// Reads `db.collection:index,index` or `db.collection:*`; `None` when it is neither.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, indexes) = text.trim().split_once(':')?;
        let (database, collection) = namespace.split_once('.')?;
        let names: Vec<String> = indexes.split(',').map(str::trim).map(str::to_owned).collect();
        if database.is_empty() || collection.is_empty() || names.iter().any(String::is_empty) {
            return None;
        }
        let indexes = if names.iter().any(|name| name == "*") { None } else { Some(names) };
        Some(Self { namespace: namespace.to_owned(), indexes })
    }

    fn covers(&self, namespace: &str, index: &str) -> bool {
        let named = |names: &Vec<String>| names.iter().any(|name| name == index);
        self.namespace == namespace && self.indexes.as_ref().is_none_or(named)
    }
}

impl DuplicateKeys {
    /// Whether a ruling over a duplicate depends on which index it is of.
    #[must_use]
    pub fn asks_for_index(&self) -> bool {
        matches!(self, Self::Skip(_))
    }

    /// The ruling of the settings. `indexes` are those that may have been violated: more than one where several have the
    /// same fields. `records`: `incr_sync.conflict_write_to` names a place for conflicts.
    #[must_use]
    pub fn rule(&self, kind: ConflictKind, namespace: &str, indexes: &[String], records: bool) -> Ruling {
        let otherwise = if records { Ruling::Record } else { Ruling::Stop(String::new()) };
        let given_up = if records { Ruling::Record } else { Ruling::KeepTarget };
        match kind {
            ConflictKind::Validation | ConflictKind::Immutable | ConflictKind::Other => return otherwise,
            ConflictKind::DuplicateId | ConflictKind::UniqueKey => {}
        }
        match self {
            Self::Ignore if kind == ConflictKind::DuplicateId => given_up,
            Self::Ignore => otherwise,
            Self::Error => Ruling::Stop("incr_sync.executor.dup_key_strategy = error".to_owned()),
            Self::DeleteAndRetry => Ruling::Overwrite,
            Self::Skip(rules) => {
                let skipped = |index: &String| rules.iter().any(|rule| rule.covers(namespace, index));
                if !indexes.is_empty() && indexes.iter().all(skipped) {
                    return given_up;
                }
                let named = if indexes.is_empty() { "an index".to_owned() } else { indexes.join(", ") };
                Ruling::Stop(format!("incr_sync.executor.dup_key_skip_rules does not name {named} of {namespace}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_names_a_collection_and_its_indexes() {
        let rule = SkipRule::parse(" shop.people: email_1 , phone_1").unwrap();
        assert!(rule.covers("shop.people", "email_1") && rule.covers("shop.people", "phone_1"));
        assert!(!rule.covers("shop.people", "_id_") && !rule.covers("shop.persons", "email_1"));
        assert!(SkipRule::parse("shop.a.b:*").unwrap().covers("shop.a.b", "anything"));
        for wrong in ["shop.people", "shop:email_1", ".people:x", "shop.:x", "shop.people:", "shop.people:a,,b"] {
            assert_eq!(SkipRule::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_defaults_stop_or_record_and_pass_a_taken_id() {
        let rule = |kind, records| DuplicateKeys::Ignore.rule(kind, "a.b", &[], records);
        for kind in [ConflictKind::UniqueKey, ConflictKind::Validation, ConflictKind::Immutable, ConflictKind::Other] {
            assert_eq!(rule(kind, false), Ruling::Stop(String::new()));
            assert_eq!(rule(kind, true), Ruling::Record);
        }
        assert_eq!(rule(ConflictKind::DuplicateId, false), Ruling::KeepTarget);
        assert_eq!(rule(ConflictKind::DuplicateId, true), Ruling::Record);
    }

    #[test]
    fn a_strategy_speaks_of_duplicates_only() {
        let skip = DuplicateKeys::Skip(vec![SkipRule::parse("a.b:u_1").unwrap()]);
        for strategy in [DuplicateKeys::Error, DuplicateKeys::DeleteAndRetry, skip] {
            assert_eq!(strategy.rule(ConflictKind::Validation, "a.b", &[], true), Ruling::Record, "{strategy:?}");
        }
        for kind in [ConflictKind::UniqueKey, ConflictKind::DuplicateId] {
            assert!(matches!(DuplicateKeys::Error.rule(kind, "a.b", &[], true), Ruling::Stop(why) if !why.is_empty()));
            assert_eq!(DuplicateKeys::DeleteAndRetry.rule(kind, "a.b", &[], false), Ruling::Overwrite);
        }
    }

    #[test]
    fn only_named_indexes_are_skipped() {
        let skip = DuplicateKeys::Skip(vec![SkipRule::parse("a.b:u_1").unwrap()]);
        let rule = |indexes: &[&str], records| {
            let indexes: Vec<String> = indexes.iter().map(|name| (*name).to_owned()).collect();
            skip.rule(ConflictKind::UniqueKey, "a.b", &indexes, records)
        };
        assert_eq!(rule(&["u_1"], false), Ruling::KeepTarget);
        assert_eq!(rule(&["u_1"], true), Ruling::Record);
        assert!(matches!(rule(&["v_1"], true), Ruling::Stop(why) if why.contains("v_1 of a.b")));
        assert!(matches!(rule(&["u_1", "u_1_strict"], true), Ruling::Stop(_)), "it may have been either");
        assert!(matches!(rule(&[], true), Ruling::Stop(_)));
    }
}
