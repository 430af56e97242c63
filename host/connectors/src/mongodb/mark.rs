//! Marks writes with the origin of their changes, so that a collector behind the target can tell them from a client's.
//!
//! The server logs the `txnNumber` of a retryable write, and of a transaction, with every entry, and whoever sends the
//! command chooses it. So a marked command is a retryable write in a session of our own, under a number of a reserved
//! pattern ([`Origin`]), or one of a transaction with such a number: no document is added and nothing is written twice.
//! The driver never numbers anything in these sessions. Nothing here decides which origin a write has.

use std::sync::{Mutex, PoisonError};

use bson::Document;
use mongodb::{Client, ClientSession};
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::raw::kind;
use oplogue_engine::model::{Namespace, Origin};

use super::command::{self, Concern, Manner, Outcome, Statement};
use super::primary::{self, Primary};
use super::{classify, writer::RawWriter};

/// The origin of this job's own source, and the sessions that carry marks. One a client: a session that went back
/// to the driver would be used with numbers that are far too low for it.
#[derive(Debug)]
pub struct Marks {
    origin: Origin,
    idle: Mutex<Vec<Numbered>>,
    /// Sessions whose last command had no answer. They are kept away from the driver and never used again.
    retired: Mutex<Vec<Numbered>>,
}

#[derive(Debug)]
struct Numbered {
    session: Box<ClientSession>,
    used: u64,
}

/// How the commands of a group are marked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark<'a> {
    pub(crate) marks: &'a Marks,
    pub(crate) origin: Origin,
}

/// How a command says which session number it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numbering {
    None,
    Retryable(i64),
    /// `first`: the command opens the transaction.
    Transaction {
        number: i64,
        first: bool,
    },
}

impl Numbering {
    /// Appends the number to a command.
    pub(crate) fn append(self, w: &mut RawWriter) {
        match self {
            Self::None => {}
            Self::Retryable(number) => w.value("txnNumber", kind::INT64, &number.to_le_bytes()),
            Self::Transaction { number, first } => {
                w.value("txnNumber", kind::INT64, &number.to_le_bytes());
                w.boolean("autocommit", false);
                if first {
                    w.boolean("startTransaction", true);
                }
            }
        }
    }
}

/// A session taken for some commands. Given back by [`Lease::done`]; one that is dropped is not used again.
#[derive(Debug)]
pub(crate) struct Lease<'a> {
    marks: &'a Marks,
    numbered: Option<Numbered>,
}

impl Marks {
    /// Marks for writes of changes that were made at `origin`.
    #[must_use]
    pub fn new(origin: Origin) -> Self {
        Self { origin, idle: Mutex::default(), retired: Mutex::default() }
    }

    /// The origin of changes that carry no mark themselves.
    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    /// Takes an idle session, or starts one.
    ///
    /// # Errors
    /// Those of the driver; a standalone server has no sessions that number their writes.
    pub(crate) async fn lease(&self, client: &Client) -> Result<Lease<'_>> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let numbered = match idle {
            Some(numbered) => numbered,
            None => {
                let session = client.start_session().causal_consistency(false).await;
                let session =
                    session.map_err(|e| classify::error(Side::Sink, "start a session for marked writes", e))?;
                Numbered { session: Box::new(session), used: 0 }
            }
        };
        Ok(Lease { marks: self, numbered: Some(numbered) })
    }
}

impl Lease<'_> {
    /// The next number that carries `origin`.
    pub(crate) fn number(&mut self, origin: Origin) -> Result<i64> {
        let numbered = self.numbered.as_mut().ok_or_else(gone)?;
        numbered.used += 1;
        Ok(origin.transaction(numbered.used))
    }

    /// Runs a command that has its number already.
    ///
    /// # Errors
    /// `Unavailable` when it is not answered; the server's refusal is inside.
    pub(crate) async fn run(
        &mut self,
        client: &Client,
        database: &str,
        command: Vec<u8>,
        primary: Option<&Primary>,
    ) -> Result<Reply> {
        let command = command::raw(command)?;
        let database = client.database(database);
        let asked = database.run_raw_command(command).session(self.session()?);
        primary::answered(primary, "send a marked command", asked).await
    }

    /// The session, for a command that has its number already.
    pub(crate) fn session(&mut self) -> Result<&mut ClientSession> {
        self.numbered.as_mut().map(|numbered| &mut *numbered.session).ok_or_else(gone)
    }

    /// Gives the session back: every command in it was answered.
    pub(crate) fn done(mut self) {
        if let Some(numbered) = self.numbered.take() {
            self.marks.idle.lock().unwrap_or_else(PoisonError::into_inner).push(numbered);
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Some(numbered) = self.numbered.take() {
            self.marks.retired.lock().unwrap_or_else(PoisonError::into_inner).push(numbered);
        }
    }
}

type Reply = std::result::Result<Document, mongodb::error::Error>;

fn gone() -> Error {
    Error::new(Side::Internal, Kind::Bug, "a session for marked writes was given back before its last command")
}

/// Sends as many of `statements` (of one verb) as fit into one marked command; how many those were.
///
/// # Errors
/// As [`command::send`].
pub(crate) async fn send(
    client: &Client,
    namespace: &Namespace,
    statements: &[&Statement<'_>],
    manner: Manner<'_>,
    mark: Mark<'_>,
) -> Result<(Outcome, usize)> {
    let mut lease = mark.marks.lease(client).await?;
    let number = Numbering::Retryable(lease.number(mark.origin)?);
    let (command, taken) = command::build(namespace.collection(), statements, manner, number);
    let reply = lease.run(client, namespace.database(), command, manner.primary).await?;
    let reply = reply.map_err(|e| classify::error(Side::Sink, &format!("write to {namespace}"), e))?;
    lease.done();
    Ok((command::read(namespace, &reply)?, taken))
}

/// Ends the transaction of `number` by `command`.
pub(crate) async fn end(lease: &mut Lease<'_>, command: &str, number: i64, concern: Concern) -> Result<Reply> {
    let mut w = RawWriter::with_capacity(128);
    w.int(command, 1);
    Numbering::Transaction { number, first: false }.append(&mut w);
    command::write_concern(&mut w, concern);
    let client = lease.session()?.client();
    // No primary but the one that has the transaction can end it.
    lease.run(&client, "admin", w.finish(), None).await
}
