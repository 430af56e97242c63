//! A change that the target refuses for good: the one place that carries a ruling over it out.
//!
//! A refusal by a unique index is no verdict while the collection has changes in flight, so those go back to the
//! engine, which settles them. Over everything else is ruled here: given up, recorded, written over what stands in the
//! way, or handed back, and then the run stops at it. Nothing is dropped without a record or a line in the log.

use oplogue_engine::conflict::Ruling;
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::metrics::ConflictNow;
use oplogue_engine::model::Namespace;
use oplogue_engine::sink::{FlushReport, Refusal, Write};

use super::judge::kind_of;
use super::mend::shown_id;
use super::namespace::Place;
use super::{MongoSink, is_own_id, is_unique, refusal};
use crate::mongodb::classify;
use crate::mongodb::command::StatementError;
use crate::mongodb::conflict::{Conflict, operation};
use crate::mongodb::settle::Settlement;

/// A change and why the target refuses it.
#[derive(Debug, Clone, Copy)]
pub(in crate::mongodb) struct Loss<'a> {
    pub(in crate::mongodb) namespace: &'a Namespace,
    pub(in crate::mongodb) write: &'a Write,
    pub(in crate::mongodb) error: &'a StatementError,
}

impl MongoSink {
    /// The end of one statement that no cure helped.
    ///
    /// # Errors
    /// When the server could not say what became of it, or the ruling could not be carried out.
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
        // A taken `_id` here is the race of two writes; both are settled with the collection drained.
        if is_unique(error) || is_own_id(error) {
            tracing::debug!(namespace = %place.name, code = error.code, "a statement is refused");
            return Ok(refused(index, refusal(error)));
        }
        let loss = Loss { namespace: &place.name, write, error };
        let ruling = self.judge(loss.namespace, write, error).await?;
        // In overlap what stands there may be newer than the change.
        if ruling == Ruling::Overwrite && !write.overlap && self.takes_transactions(place) {
            self.name(loss, &ruling, None);
            return self.settle_all(&place.name, Settlement::overruling(index, write, error)?, write.origin).await;
        }
        let refusal = self.conclude(loss, ruling).await?;
        Ok(refusal.map_or_else(FlushReport::default, |refusal| refused(index, refusal)))
    }

    /// Carries out a ruling that writes no document: `None` when the change may be called done. One that was to
    /// overwrite and cannot is dealt with as the settings say for a conflict without a ruling.
    ///
    /// # Errors
    /// When it could not be recorded.
    pub(in crate::mongodb) async fn conclude(&self, loss: Loss<'_>, ruling: Ruling) -> Result<Option<Refusal>> {
        let ruling = match ruling {
            Ruling::Overwrite if self.conflicts.is_some() => Ruling::Record,
            Ruling::Overwrite => Ruling::Stop("it cannot be written over what stands in the way".to_owned()),
            given @ (Ruling::KeepTarget | Ruling::Record | Ruling::Stop(_)) => given,
        };
        if ruling == Ruling::Record {
            self.record(loss).await?;
        }
        self.name(loss, &ruling, None);
        self.counters.one_conflict(described(loss, &ruling));
        Ok(match ruling {
            Ruling::Stop(reason) => Some(stopping(loss.error, &reason)),
            Ruling::KeepTarget | Ruling::Record | Ruling::Overwrite => None,
        })
    }

    async fn record(&self, Loss { namespace, write, error }: Loss<'_>) -> Result<()> {
        let Some(log) = &self.conflicts else {
            let text = format!("record a conflict of {namespace}: the run has no place for records");
            return Err(Error::new(Side::Internal, Kind::Bug, text));
        };
        let winner = self.winner(namespace, &write.key, error).await?;
        log.record(Conflict { kind: kind_of(error), namespace, write, error, winner: winner.as_deref() }).await
    }

    /// Names a conflict in the log. `winner` is the document that is about to be deleted.
    pub(in crate::mongodb) fn name(&self, loss: Loss<'_>, ruling: &Ruling, winner: Option<&[u8]>) {
        let now = described(loss, ruling);
        tracing::warn!(
            namespace = %now.namespace,
            kind = kind_text(&now),
            id = %now.id,
            operation = now.operation,
            time = %loss.write.time,
            code = now.code,
            error = %now.message,
            ruling = ruling_text(&now),
            deleted = winner.map(shown_id),
            "conflict: the target refuses a change for good"
        );
    }

    /// Counts a conflict whose change was written over what stood in its way.
    pub(in crate::mongodb) fn count_overwritten(&self, loss: Loss<'_>) {
        self.counters.one_conflict(described(loss, &Ruling::Overwrite));
    }
}

fn described(Loss { namespace, write, error }: Loss<'_>, ruling: &Ruling) -> ConflictNow {
    ConflictNow {
        kind: kind_of(error),
        namespace: namespace.to_string(),
        id: shown_id(&write.key),
        operation: operation(&write.content),
        time: (write.time.secs, write.time.inc),
        code: error.code,
        message: error.message.clone(),
        ruling: ruling.kind(),
    }
}

fn kind_text(now: &ConflictNow) -> &'static str {
    use oplogue_engine::metrics::labels::Label as _;
    now.kind.text()
}

fn ruling_text(now: &ConflictNow) -> &'static str {
    use oplogue_engine::metrics::labels::Label as _;
    now.ruling.text()
}

/// The refusal that stops the run. A taken `_id` is no unique key that could be settled.
fn stopping(error: &StatementError, reason: &str) -> Refusal {
    let with_reason = |message: String| if reason.is_empty() { message } else { format!("{reason}: {message}") };
    if is_own_id(error) {
        return Refusal::Refused { code: error.code, message: with_reason(error.message.clone()) };
    }
    match refusal(error) {
        Refusal::UniqueKey { index, message } => Refusal::UniqueKey { index, message: with_reason(message) },
        Refusal::Refused { code, message } => Refusal::Refused { code, message: with_reason(message) },
    }
}

pub(super) fn refused(index: usize, refusal: Refusal) -> FlushReport {
    FlushReport { refused: vec![(index, refusal)], operation_time: None }
}
