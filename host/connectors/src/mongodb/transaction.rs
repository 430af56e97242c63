//! Transactions on the target: begun, filled with statements, committed or given up.
//!
//! Two users share this: settling, which needs all or nothing, and the sink's flushes, which become cheaper for the
//! server in one transaction. A statement that fails ends the server's transaction, so whoever fills one learns of
//! the first failure only. Nothing here decides what a failure means, and nothing is tried again except a commit whose
//! outcome the server could not say; how often others may try stands here too.

use std::time::Duration;

use mongodb::error::{Error as DriverError, TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT};
use mongodb::options::{Acknowledgment, WriteConcern};
use mongodb::{Client, ClientSession};
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::{Namespace, OpTime};
use oplogue_engine::retry::Backoff;

use super::classify;
use super::command::{self, Concern, Manner, Outcome, Statement};
use super::mark::{self, Lease, Numbering};
use super::patience::answered;
use super::primary;

/// How often a commit of unknown outcome is asked for again.
const COMMIT_TRIES: usize = 8;

/// How often a transaction that the server broke off is begun anew.
const BEGIN_TRIES: u32 = 8;

/// What stands between the tries of a transaction that the server breaks off. Some reasons pass with time alone: under
/// load a new transaction may still begin before an index that was built just now, and is refused.
#[derive(Debug)]
pub(super) struct Tries(Backoff);

impl Tries {
    pub(super) fn new() -> Self {
        Self(Backoff::new(Duration::from_millis(2), Duration::from_millis(500)))
    }

    /// Waits before the next try; false when there were enough.
    pub(super) async fn again(&mut self) -> bool {
        if self.0.tries() >= BEGIN_TRIES {
            return false;
        }
        tokio::time::sleep(self.0.pause()).await;
        true
    }
}

/// An error inside a transaction.
pub(super) enum Broken {
    Driver(DriverError),
    Other(Error),
}

impl From<Error> for Broken {
    fn from(e: Error) -> Self {
        Self::Other(e)
    }
}

impl Broken {
    /// Whether the server answered that it will not do it, so that nothing of the transaction is written. An answer
    /// of a server that is no primary any more says less: it is an error, and so is silence.
    pub(super) fn rolled_back(self) -> Result<(), Self> {
        let kind = match &self {
            Self::Driver(e) => classify::code(e).map(|_| classify::kind(Side::Sink, e)),
            Self::Other(e) => Some(e.kind()).filter(|kind| *kind == Kind::Conflict),
        };
        match kind {
            Some(kind) if kind != Kind::FailedOver => Ok(()),
            Some(_) | None => Err(self),
        }
    }

    /// Whether the server broke the transaction off for a reason that passes, such as a conflict with another one.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::Driver(e) if e.contains_label(TRANSIENT_TRANSACTION_ERROR))
    }

    pub(super) fn into_error(self, doing: &str) -> Error {
        match self {
            Self::Driver(e) => classify::error(Side::Sink, doing, e),
            Self::Other(e) => e,
        }
    }
}

/// What a commit came to.
pub(super) enum Committed {
    At(Option<OpTime>),
    /// The server broke the transaction off: nothing of it was written.
    Again(DriverError),
}

/// An open transaction: the driver's own, or one of ours whose number carries a mark.
pub(super) enum Transaction<'a> {
    Driver(Box<ClientSession>),
    Marked {
        lease: Lease<'a>,
        number: i64,
        /// The first command was sent.
        opened: bool,
        concern: Concern,
    },
}

impl Transaction<'_> {
    /// The number that the next command must carry.
    pub(super) fn numbering(&mut self) -> Numbering {
        match self {
            Self::Driver(_) => Numbering::None,
            Self::Marked { number, opened, .. } => {
                Numbering::Transaction { number: *number, first: !std::mem::replace(opened, true) }
            }
        }
    }

    /// The session to run a command in that has its number.
    pub(super) fn session(&mut self) -> Result<&mut ClientSession> {
        match self {
            Self::Driver(session) => Ok(session),
            Self::Marked { lease, .. } => lease.session(),
        }
    }
}

/// Begins a transaction that commits with the concern of `manner`, under its mark.
pub(super) async fn begin<'a>(client: &Client, manner: Manner<'a>) -> Result<Transaction<'a>> {
    if let Some(mark) = manner.mark {
        let mut lease = mark.marks.lease(client).await?;
        let number = lease.number(mark.origin)?;
        return Ok(Transaction::Marked { lease, number, opened: false, concern: manner.concern });
    }
    let failed = |e| classify::error(Side::Sink, "start a transaction", e);
    let mut session = client.start_session().causal_consistency(false).await.map_err(failed)?;
    let concern = match manner.concern {
        Concern::Majority => Acknowledgment::Majority,
        Concern::One | Concern::OfTransaction => Acknowledgment::Nodes(1),
    };
    let concern = WriteConcern::builder().w(concern).build();
    session.start_transaction().write_concern(concern).await.map_err(failed)?;
    Ok(Transaction::Driver(Box::new(session)))
}

/// Sends statements of one verb inside a transaction, in as few commands as their size allows. Ends behind the first
/// command with an error, which has ended the transaction as well.
pub(super) async fn send(
    client: &Client,
    transaction: &mut Transaction<'_>,
    name: &Namespace,
    statements: &[&Statement<'_>],
    manner: Manner<'_>,
) -> Result<Outcome, Broken> {
    let manner = Manner { concern: Concern::OfTransaction, ..manner };
    let mut total = Outcome::default();
    let mut rest = statements;
    let mut offset = 0;
    while !rest.is_empty() {
        let (command, taken) = command::build(name.collection(), rest, manner, transaction.numbering());
        let command = command::raw(command)?;
        let session = transaction.session()?;
        let database = client.database(name.database());
        let asked = database.run_raw_command(command).session(session);
        let outcome = match primary::answered(manner.primary, &format!("write to {name}"), asked).await? {
            Ok(reply) => command::read(name, &reply)?,
            Err(e) => match command::whole_error(&e) {
                // In a transaction some servers report a statement's error as the command's own.
                Some(error) if taken == 1 => Outcome { errors: vec![(0, error)], ..Outcome::default() },
                _ => return Err(Broken::Driver(e)),
            },
        };
        total.matched += outcome.matched;
        if let Some((at, error)) = outcome.errors.into_iter().next() {
            total.errors.push((offset + at, error));
            return Ok(total);
        }
        offset += taken;
        rest = rest.get(taken..).unwrap_or_default();
    }
    Ok(total)
}

/// Commits.
///
/// # Errors
/// `Unavailable` when the outcome stays unknown.
pub(super) async fn commit(transaction: Transaction<'_>) -> Result<Committed> {
    match transaction {
        Transaction::Driver(session) => commit_driver(*session).await,
        Transaction::Marked { lease, opened: false, .. } => {
            lease.done();
            Ok(Committed::At(None))
        }
        Transaction::Marked { lease, number, concern, .. } => commit_marked(lease, number, concern).await,
    }
}

async fn commit_driver(mut session: ClientSession) -> Result<Committed> {
    for _ in 0..COMMIT_TRIES {
        match answered(Side::Sink, "commit a transaction", session.commit_transaction()).await? {
            Ok(()) => {
                let time = session.operation_time();
                return Ok(Committed::At(time.map(|ts| OpTime::new(ts.time, ts.increment, -1))));
            }
            Err(e) if e.contains_label(TRANSIENT_TRANSACTION_ERROR) => return Ok(Committed::Again(e)),
            Err(e) if e.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT) => {
                tracing::debug!(error = %e, "the commit is asked for again");
            }
            Err(e) => return Err(classify::error(Side::Sink, "commit a transaction", e)),
        }
    }
    Err(Error::new(Side::Sink, Kind::Unavailable, "commit a transaction: its outcome stays unknown"))
}

/// A commit whose answer is lost is not asked for again: the pipeline goes back, as for any write.
async fn commit_marked(mut lease: Lease<'_>, number: i64, concern: Concern) -> Result<Committed> {
    match mark::end(&mut lease, "commitTransaction", number, concern).await? {
        Ok(reply) => {
            lease.done();
            if let Ok(failed) = reply.get_document("writeConcernError") {
                let text = failed.get_str("errmsg").unwrap_or_default();
                let text = format!("commit a transaction: it is not majority-committed: {text}");
                return Err(Error::new(Side::Sink, Kind::Unavailable, text));
            }
            Ok(Committed::At(command::operation_time(&reply)))
        }
        Err(e) if e.contains_label(TRANSIENT_TRANSACTION_ERROR) && classify::code(&e).is_some() => {
            lease.done();
            Ok(Committed::Again(e))
        }
        Err(e) => Err(classify::error(Side::Sink, "commit a transaction", e)),
    }
}

/// Gives a transaction up. The server forgets it by itself when this fails.
pub(super) async fn abort(transaction: Transaction<'_>) {
    let failed = match transaction {
        Transaction::Driver(mut session) => {
            match answered(Side::Sink, "abort a transaction", session.abort_transaction()).await {
                Ok(answer) => answer.err().map(|e| e.to_string()),
                Err(e) => Some(e.to_string()),
            }
        }
        Transaction::Marked { lease, opened: false, .. } => {
            lease.done();
            None
        }
        Transaction::Marked { mut lease, number, .. } => {
            match mark::end(&mut lease, "abortTransaction", number, Concern::OfTransaction).await {
                Ok(Ok(_)) => {
                    lease.done();
                    None
                }
                // The server had ended it already: the session is as good as before.
                Ok(Err(e)) if classify::code(&e).is_some() => {
                    lease.done();
                    None
                }
                Ok(Err(e)) => Some(e.to_string()),
                Err(e) => Some(e.to_string()),
            }
        }
    };
    if let Some(error) = failed {
        tracing::debug!(error, "a transaction could not be aborted; it ends by itself");
    }
}
