//! Who rules over a conflict, and what it is shown.
//!
//! The settings rule at once and are shown next to nothing, because a target may hold thousands of documents that an
//! insert meets. A plugin is shown the change as the stream has it and the document that stands in its way, and is
//! called on a thread where it may take its time. What a ruling leads to is carried out elsewhere.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use oplogue_engine::conflict::{Conflict, DuplicateKeys, Judge, Ruling, ViolatedIndex};
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::metrics::ConflictKind;
use oplogue_engine::model::{Namespace, Operation};
use oplogue_engine::sink::{Content, Patch, Sink as _, Write};
use oplogue_engine::supervise::off_thread;

use super::obstacle::pattern_bytes;
use super::{MongoSink, is_unique};
use crate::mongodb::command::StatementError;

/// Who rules over changes that the target refuses for good.
#[derive(Clone)]
pub enum Rules {
    Settings(DuplicateKeys),
    Plugin(Arc<dyn Judge>),
}

impl Default for Rules {
    fn default() -> Self {
        Self::Settings(DuplicateKeys::default())
    }
}

/// What kind of conflict an error is.
pub(in crate::mongodb) fn kind_of(error: &StatementError) -> ConflictKind {
    ConflictKind::of_code(error.code, is_unique(error))
}

impl MongoSink {
    /// The ruling over a change that the target refuses for good.
    ///
    /// # Errors
    /// `FailedOver` when another primary leads the target than in the beginning: it may lack what was written since, so its
    /// refusal says nothing. Those of the servers; `PluginFault` when the plugin gives no ruling and its policy stops the run.
    pub(in crate::mongodb) async fn judge(
        &self,
        name: &Namespace,
        write: &Write,
        error: &StatementError,
    ) -> Result<Ruling> {
        let kind = kind_of(error);
        // Inserts that meet their own `_id` come by thousands: all that were refused by then are proved at once.
        let proved = *self.proved.lock().unwrap_or_else(PoisonError::into_inner);
        if proved.is_none_or(|proved| proved <= error.at) {
            let asked = Instant::now();
            self.prove_same_leader().await?;
            *self.proved.lock().unwrap_or_else(PoisonError::into_inner) = Some(asked);
        }
        match &self.rules {
            Rules::Settings(duplicates) => {
                let is_duplicate = matches!(kind, ConflictKind::DuplicateId | ConflictKind::UniqueKey);
                let indexes = if is_duplicate && duplicates.asks_for_index() {
                    self.violated_names(name, error).await?
                } else {
                    Vec::new()
                };
                Ok(duplicates.rule(kind, name.as_str(), &indexes, self.conflicts.is_some()))
            }
            Rules::Plugin(judge) => {
                let (judge, conflict) = (Arc::clone(judge), self.shown(name, write, error).await?);
                off_thread("conflict plugin", move || judge.rule(&conflict)).await?
            }
        }
    }

    /// A document that is missing, or a value that is taken, may be so on another primary than the one that was written to.
    pub(super) async fn prove_same_leader(&self) -> Result<()> {
        let term = self.durability().await?.term;
        let first = self.leader.load(Ordering::Relaxed);
        if first == term || first == 0 {
            return Ok(());
        }
        let text = "rule over a change that the target refuses: its primary is another one by now";
        Err(Error::new(Side::Sink, Kind::FailedOver, text))
    }

    async fn shown(&self, name: &Namespace, write: &Write, error: &StatementError) -> Result<Conflict> {
        let kind = kind_of(error);
        let is_duplicate = matches!(kind, ConflictKind::DuplicateId | ConflictKind::UniqueKey);
        let index = if is_duplicate {
            let names = self.violated_names(name, error).await?;
            names.into_iter().next().map(|name| ViolatedIndex { name, pattern: pattern_bytes(error) })
        } else {
            None
        };
        let (operation, body) = self.as_streamed(write).await?;
        Ok(Conflict {
            kind,
            namespace: name.to_string(),
            operation,
            time: write.time,
            code: error.code,
            message: error.message.clone(),
            key: write.key.clone(),
            body,
            index,
            winner: self.winner(name, &write.key, error).await?.unwrap_or_default(),
        })
    }

    /// A write as the contract's op and body. Several updates in one have no such form: the source's document, which
    /// has them all, stands for them.
    async fn as_streamed(&self, write: &Write) -> Result<(Operation, Bytes)> {
        Ok(match &write.content {
            Content::Insert(document) => (Operation::Insert, document.clone()),
            Content::Replace(document) => (Operation::Replace, document.clone()),
            Content::Delete => (Operation::Delete, Bytes::new()),
            Content::Patch(patches) => match patches.as_slice() {
                [Patch::Diff(diff)] => (Operation::UpdateDiff, diff.clone()),
                [Patch::Modifiers(modifiers)] => (Operation::UpdateModifiers, modifiers.clone()),
                [..] => (Operation::Replace, self.look_up(write).await?.unwrap_or_default()),
            },
            Content::Patched { .. } => (Operation::Replace, self.look_up(write).await?.unwrap_or_default()),
        })
    }
}
