//! A change that the target refuses for good: it is named, counted, and recorded or handed back.
//!
//! A refusal by a unique index is no verdict while the collection has changes in flight, so those go back to the
//! engine, which settles them. Everything else ends here: recorded where the settings say so, and then the change
//! counts as done; otherwise the run stops at it. Nothing is dropped without a record or a line in the log.

use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::metrics::{ConflictKind, ConflictNow};
use oplogue_engine::model::Namespace;
use oplogue_engine::sink::{FlushReport, Write};

use super::mend::shown_id;
use super::namespace::Place;
use super::{MongoSink, is_unique, refusal};
use crate::mongodb::classify;
use crate::mongodb::command::StatementError;
use crate::mongodb::conflict::{Conflict, operation};

impl MongoSink {
    /// The end of one statement that no cure helped.
    ///
    /// # Errors
    /// When the server could not say what became of it, or the conflict could not be recorded.
    pub(super) async fn refuse(
        &self,
        place: &Place,
        index: usize,
        write: &Write,
        error: &StatementError,
    ) -> Result<FlushReport> {
        if let Some(kind @ (Kind::Unavailable | Kind::FailedOver)) = classify::of_code(error.code) {
            let text = format!("write to {}: {} (code {})", place.name, error.message, error.code);
            return Err(Error::new(Side::Sink, kind, text));
        }
        if !is_unique(error) && self.lose(&place.name, write, error).await? {
            return Ok(FlushReport::default());
        }
        tracing::debug!(namespace = %place.name, code = error.code, "a statement is refused");
        Ok(FlushReport { refused: vec![(index, refusal(error))], operation_time: None })
    }

    /// Names and counts a conflict, and records it where the settings say so. Whether it is recorded: the change may
    /// be called done then.
    ///
    /// # Errors
    /// When it could not be recorded.
    pub(in crate::mongodb) async fn lose(
        &self,
        namespace: &Namespace,
        write: &Write,
        error: &StatementError,
    ) -> Result<bool> {
        let kind = ConflictKind::of_code(error.code, is_unique(error));
        if let Some(log) = &self.conflicts {
            log.record(Conflict { kind, namespace, write, error }).await?;
        }
        let now = ConflictNow {
            kind,
            namespace: namespace.to_string(),
            id: shown_id(&write.key),
            operation: operation(&write.content),
            time: (write.time.secs, write.time.inc),
            code: error.code,
            message: error.message.clone(),
            recorded: self.conflicts.is_some(),
        };
        tracing::warn!(
            namespace = %now.namespace,
            id = %now.id,
            operation = now.operation,
            time = %write.time,
            code = now.code,
            error = %now.message,
            recorded = now.recorded,
            "conflict: the target refuses a change for good"
        );
        let recorded = now.recorded;
        self.counters.one_conflict(now);
        Ok(recorded)
    }
}
