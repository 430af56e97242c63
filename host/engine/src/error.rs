//! Every fault that the engine can meet: kind × side, and one table that says what to do and what to tell the operator.
//!
//! Connectors classify a driver's error into a [`Kind`] by code and label (never by text) and attach the detail;
//! nothing above this table looks at an error to decide. The table has no wildcard arm on purpose: a new kind must
//! be given an action.

use std::fmt;

/// Which party the fault lies with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    Source,
    Plugin,
    Sink,
    Store,
    Config,
    Internal,
}

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The connection broke, timed out, or no suitable server was there.
    Unavailable,
    /// A primary changed; writes that were not majority-committed may be gone.
    FailedOver,
    /// A cursor died (idle, killed, or its node left). Reading can be resumed by position.
    CursorLost,
    /// The position is older than the source's oplog, or the history is another one (rollback).
    HistoryLost,
    /// The server refused the user.
    Unauthorized,
    /// The server does not know or allow what was asked; asking again changes nothing.
    Unsupported,
    /// An entry that cannot be applied exactly.
    CannotApply,
    /// Two documents compete for one unique key at a moment at which the source had no such conflict.
    Conflict,
    /// Bytes that are no valid BSON or not of the promised shape.
    Malformed,
    /// Another instance took the lease; this one must not write any more.
    Fenced,
    /// A plugin trapped, lied, ran too long or asked for too much.
    PluginFault,
    /// A value of the configuration is wrong for what the servers say.
    Misconfigured,
    /// A disk or a size limit is exhausted.
    Exhausted,
    /// A broken promise inside Oplogue.
    Bug,
}

/// What the pipeline does about a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Tear the stage down and start again from the last durable position, with backoff.
    Rewind,
    /// Stop with exit code 1; nothing is lost, the operator must act.
    Stop,
}

impl Kind {
    /// The one table from kind to action.
    #[must_use]
    pub fn action(self) -> Action {
        match self {
            Self::Unavailable | Self::FailedOver | Self::CursorLost => Action::Rewind,
            Self::HistoryLost
            | Self::Unauthorized
            | Self::Unsupported
            | Self::CannotApply
            | Self::Conflict
            | Self::Malformed
            | Self::Fenced
            | Self::PluginFault
            | Self::Misconfigured
            | Self::Exhausted
            | Self::Bug => Action::Stop,
        }
    }

    /// What an operator should do about it.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::Unavailable => "check that the server is reachable; the run goes on by itself when it is",
            Self::FailedOver => "nothing; the run goes back to the last durable position and goes on",
            Self::CursorLost => "nothing; the cursor is opened again at the last position",
            Self::HistoryLost => {
                "the source no longer holds what follows the stored checkpoint, and no restart helps: make its oplog larger, \
                 run `oplogue checkpoint reset`, and start with sync_mode = all, which copies everything again"
            }
            Self::Unauthorized => {
                "check the user's name, password and authSource, and give it the privilege named above (see docs/OPERATIONS.md)"
            }
            Self::Unsupported => "see the version table of the README for what this server can do",
            Self::CannotApply => {
                "nothing was skipped: the run stopped before this entry; report it with the entry's position"
            }
            Self::Conflict => "look at the two documents named above; decide which one the target may keep",
            Self::Malformed => "the bytes named above are not what the server or plugin promised; report them",
            Self::Fenced => "another instance with the same id runs; stop one of the two",
            Self::PluginFault => "look at the plugin named above; replace its file, or change its on_error policy",
            Self::Misconfigured => "correct the key named above",
            Self::Exhausted => "free space, or raise the limit named above",
            Self::Bug => "report this with the log",
        }
    }
}

/// A fault with its context.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    side: Side,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The result of everything in the engine that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A fault of `kind` on `side`; `message` says what was being done, in the present tense, and what was seen.
    #[must_use]
    pub fn new(side: Side, kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, side, message: message.into(), source: None }
    }

    /// Attaches the error that caused this one.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Puts what was being done in front of the message.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whose fault it is.
    #[must_use]
    pub fn side(&self) -> Side {
        self.side
    }

    /// What the pipeline does about it.
    #[must_use]
    pub fn action(&self) -> Action {
        self.kind.action()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}: {}", self.side, self.kind, self.message)?;
        let mut cause = self.source.as_deref().map(|e| e as &dyn std::error::Error);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as &dyn std::error::Error)
    }
}

impl From<crate::model::raw::Malformed> for Error {
    fn from(malformed: crate::model::raw::Malformed) -> Self {
        Self::new(Side::Source, Kind::Malformed, malformed.to_string())
    }
}
