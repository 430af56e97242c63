//! How long a server may be silent before a request to it is given up.
//!
//! One connection can lose its network while the driver's monitor, on a connection of its own, sees nothing: then a
//! request waits for ever. Everything that the stream depends on is therefore asked through here. What was given up has
//! an unknown outcome, and the pipeline goes back; when it runs all the same it has run before its replay
//! ([`super::alone`]). Nothing here asks again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bson::{Document, doc};
use futures_util::TryStreamExt as _;
use mongodb::Client;
use mongodb::options::SelectionCriteria;
use oplogue_engine::error::{Error, Kind, Result, Side};

use super::classify;

/// `limits.answer_time` in milliseconds. A process has one job, and so one patience.
static PATIENCE_MS: AtomicU64 = AtomicU64::new(120_000);

/// Sets how long every later request may stay without an answer.
pub fn set(patience: Duration) {
    PATIENCE_MS.store(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// How long a request may stay without an answer.
pub(crate) fn of_answers() -> Duration {
    patience()
}

fn patience() -> Duration {
    Duration::from_millis(PATIENCE_MS.load(Ordering::Relaxed))
}

fn silent(side: Side, doing: &str, patience: Duration) -> Error {
    Error::new(side, Kind::Unavailable, format!("{doing}: no answer for {patience:?}"))
}

/// Waits for the answer to a request that takes no longer than its data.
///
/// # Errors
/// `Unavailable` when none comes in time: whether the request was carried out is unknown.
pub(crate) async fn answered<T>(side: Side, doing: &str, asked: impl IntoFuture<Output = T>) -> Result<T> {
    within(patience(), side, doing, asked.into_future()).await
}

async fn within<T>(patience: Duration, side: Side, doing: &str, asked: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(patience, asked).await.map_err(|_| silent(side, doing, patience))
}

/// A command that may rightly take hours.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) side: Side,
    pub(crate) client: &'a Client,
    /// Which member has it; none = the primary.
    pub(crate) criteria: Option<&'a SelectionCriteria>,
    /// What it carries as its `comment`, by which the server tells it from others.
    pub(crate) comment: &'a str,
}

/// A comment that no other command has.
pub(crate) fn comment() -> String {
    format!("oplogue {}", bson::oid::ObjectId::new())
}

/// Waits for such a command as long as the server says that it works on it.
///
/// # Errors
/// `Unavailable` when the server does not answer on another connection either, or does not know of the command.
pub(crate) async fn worked_on<T>(command: &Asked<'_>, doing: &str, asked: impl IntoFuture<Output = T>) -> Result<T> {
    let asked = asked.into_future();
    tokio::pin!(asked);
    let mut unknown = false;
    loop {
        if let Ok(answer) = tokio::time::timeout(patience(), &mut asked).await {
            return Ok(answer);
        }
        let known = is_worked_on(command).await?;
        // Unknown for the first time, it may have ended just now, and its answer be on its way.
        if !known && unknown {
            return Err(silent(command.side, doing, patience()));
        }
        unknown = !known;
    }
}

/// Whether the server has an operation with this comment. One that does not tell has answered, at least.
async fn is_worked_on(command: &Asked<'_>) -> Result<bool> {
    let Asked { side, client, criteria, comment } = *command;
    let doing = "ask whether a command is still worked on";
    // One's own operations need no privilege.
    // A request for more of a cursor shows the command that opened it.
    let of_it = doc! { "$or": [{ "command.comment": comment }, { "cursor.originatingCommand.comment": comment }] };
    let stages = [doc! { "$currentOp": {} }, doc! { "$match": of_it }, doc! { "$limit": 1 }];
    let ask = async {
        let admin = client.database("admin");
        let list = match criteria {
            Some(criteria) => admin.aggregate(stages).selection_criteria(criteria.clone()),
            None => admin.aggregate(stages),
        };
        let found: Vec<Document> = list.await?.try_collect().await?;
        Ok::<_, mongodb::error::Error>(!found.is_empty())
    };
    match answered(side, doing, ask).await? {
        Ok(known) => Ok(known),
        Err(e) if matches!(classify::kind(side, &e), Kind::Unauthorized | Kind::Unsupported) => Ok(true),
        Err(e) => Err(classify::error(side, doing, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_without_an_answer_is_given_up_and_named() {
        let never = std::future::pending::<()>();
        let silent = within(Duration::from_millis(1), Side::Sink, "commit", never).await.unwrap_err();
        assert_eq!(silent.kind(), Kind::Unavailable);
        assert_eq!(silent.to_string(), "Sink Unavailable: commit: no answer for 1ms");
        assert_eq!(answered(Side::Sink, "commit", std::future::ready(1)).await.unwrap(), 1);
    }
}
