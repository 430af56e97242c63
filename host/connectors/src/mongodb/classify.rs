//! What a driver's error means: the only place that looks at one.
//!
//! A fault is told by the server's error code, the driver's error kind and its labels, never by text: texts change
//! between versions and with the language of a proxy. The result carries a short sentence of our own and the server's
//! message; it never carries the server's whole reply (the driver's own `Display` prints it, and a reply may hold a
//! user's document).

#![allow(clippy::wildcard_enum_match_arm, reason = "the driver's error kinds are non-exhaustive")]

use mongodb::error::{
    Error as DriverError, ErrorKind, RETRYABLE_WRITE_ERROR, SYSTEM_OVERLOADED_ERROR, TRANSIENT_TRANSACTION_ERROR,
    WriteFailure,
};
use oplogue_engine::error::{Error, Kind, Side};

/// Turns a driver's error into the engine's; `doing` says what was being done, in the present tense.
///
/// Where a privilege can be missing, `doing` names it ("read the oplog (needs `read` on `local`)"): the advice of
/// [`Kind::Unauthorized`] points there.
#[must_use]
#[allow(clippy::needless_pass_by_value, reason = "made for map_err, which hands the error over")]
pub fn error(side: Side, doing: &str, e: DriverError) -> Error {
    Error::new(side, kind(side, &e), format!("{doing}: {}", describe(&e)))
}

/// The kind of a driver's error met on `side`.
#[must_use]
pub fn kind(side: Side, e: &DriverError) -> Kind {
    match e.kind.as_ref() {
        ErrorKind::Io(_)
        | ErrorKind::ConnectionPoolCleared { .. }
        | ErrorKind::ServerSelection { .. }
        | ErrorKind::DnsResolve { .. } => Kind::Unavailable,
        ErrorKind::Authentication { .. } => cause(e).map_or(Kind::Unauthorized, |cause| kind(side, cause)),
        ErrorKind::InvalidArgument { .. } | ErrorKind::InvalidTlsConfig { .. } => Kind::Misconfigured,
        ErrorKind::Bson(_) | ErrorKind::InvalidResponse { .. } => Kind::Malformed,
        ErrorKind::SessionsNotSupported | ErrorKind::IncompatibleServer { .. } => Kind::Unsupported,
        ErrorKind::BulkWrite(_) => cause(e).map_or_else(|| of_label_or_code(side, e), |cause| kind(side, cause)),
        ErrorKind::Command(_) | ErrorKind::Write(_) | ErrorKind::InsertMany(_) => of_label_or_code(side, e),
        _ => Kind::Bug,
    }
}

/// The server's error code, if a server spoke at all.
#[must_use]
pub fn code(e: &DriverError) -> Option<i32> {
    match e.kind.as_ref() {
        ErrorKind::Command(command) => Some(command.code),
        ErrorKind::Write(WriteFailure::WriteError(write)) => Some(write.code),
        ErrorKind::Write(WriteFailure::WriteConcernError(concern)) => Some(concern.code),
        ErrorKind::InsertMany(many) => {
            let first = many.write_errors.as_ref().and_then(|errors| errors.first()).map(|error| error.code);
            first.or(many.write_concern_error.as_ref().map(|concern| concern.code))
        }
        _ => None,
    }
}

/// The kind of a server's error code, for replies whose per-statement errors the sink reads itself.
///
/// `None` for a code this table does not know.
#[must_use]
pub fn of_code(code: i32) -> Option<Kind> {
    Some(match code {
        // HostUnreachable, HostNotFound, LockTimeout, LockBusy, MaxTimeMSExpired, WriteConcernFailed (its time-out),
        // NetworkTimeout, NotYetInitialized, WriteConflict, FailedToSatisfyReadPreference,
        // ReadConcernMajorityNotAvailableYet, QueryPlanKilled, NetworkInterfaceExceededTimeLimit, NoSuchSession,
        // SnapshotTooOld, SnapshotUnavailable, NoSuchTransaction, ExceededTimeLimit,
        // TransactionExceededLifetimeLimitSeconds, ReauthenticationRequired, IngressRequestRateLimitExceeded,
        // SocketException, Interrupted; NoProgressMade (of a `mongos` while chunks move), TemporarilyUnavailable.
        6 | 7 | 24 | 46 | 50 | 64 | 82 | 89 | 94 | 112 | 133 | 134 | 175 | 202 | 206 | 239 | 246 | 251 | 262 | 290
        | 365 | 391 | 462 | 9001 | 11601 => Kind::Unavailable,
        // ShutdownInProgress, PrimarySteppedDown, NotWritablePrimary and its old form, NotPrimaryNoSecondaryOk,
        // NotPrimaryOrSecondary, InterruptedAtShutdown, InterruptedDueToReplStateChange.
        91 | 189 | 10107 | 10058 | 13435 | 13436 | 11600 | 11602 => Kind::FailedOver,
        // CursorNotFound, CursorKilled.
        43 | 237 => Kind::CursorLost,
        // CappedPositionLost, ChangeStreamFatalError, ChangeStreamHistoryLost, OplogQueryMinTsMissing.
        136 | 280 | 286 | 326 => Kind::HistoryLost,
        // UserNotFound, Unauthorized, AuthenticationFailed, MechanismUnavailable, AtlasError (authentication).
        11 | 13 | 18 | 334 | 8000 => Kind::Unauthorized,
        // UnknownReplWriteConcern, InvalidNamespace, UnsatisfiableWriteConcern.
        73 | 79 | 100 => Kind::Misconfigured,
        // BadValue, FailedToParse, TypeMismatch, IllegalOperation, CommandNotFound, InvalidOptions,
        // CommandNotSupported, NotAReplicaSet, NotImplemented,
        // OperationNotSupportedInTransaction, UnsupportedOpQueryCommand, unknown pipeline stage, unknown field.
        2 | 9 | 14 | 20 | 59 | 72 | 115 | 123 | 238 | 263 | 352 | 40324 | 40415 => Kind::Unsupported,
        // DuplicateKey and its old forms.
        11000 | 11001 | 12582 => Kind::Conflict,
        // InvalidBSON.
        22 => Kind::Malformed,
        // OutOfDiskSpace, ExceededMemoryLimit, QueryExceededMemoryLimitNoDiskUseAllowed.
        14031 | 146 | 292 => Kind::Exhausted,
        // NamespaceNotFound, IndexNotFound, PathNotViable, ConflictingUpdateOperators, NamespaceExists,
        // DollarPrefixedFieldName, InvalidIdField, EmptyFieldName, DottedFieldName, ImmutableField,
        // CannotCreateIndex, IndexOptionsConflict, IndexKeySpecsConflict, DocumentValidationFailure,
        // InvalidIndexSpecificationOption, BSONObjectTooLarge, CommandNotSupportedOnView (a view stands there now), what
        // `$collStats` of 4.4 says for NamespaceNotFound.
        26 | 27 | 28 | 40 | 48 | 52 | 53 | 56 | 57 | 66 | 67 | 85 | 86 | 121 | 166 | 197 | 10334 | 40280 => {
            Kind::CannotApply
        }
        _ => return None,
    })
}

fn of_label_or_code(side: Side, e: &DriverError) -> Kind {
    let known = code(e).and_then(of_code);
    let passing = [RETRYABLE_WRITE_ERROR, TRANSIENT_TRANSACTION_ERROR, SYSTEM_OVERLOADED_ERROR];
    known.unwrap_or_else(|| {
        if passing.iter().any(|label| e.contains_label(label)) {
            Kind::Unavailable
        } else if side == Side::Sink {
            Kind::CannotApply
        } else {
            Kind::Unsupported
        }
    })
}

fn cause(e: &DriverError) -> Option<&DriverError> {
    std::error::Error::source(e)?.downcast_ref::<DriverError>()
}

/// The error in a sentence: the server's code, its name and message, without the reply it came in.
fn describe(e: &DriverError) -> String {
    match e.kind.as_ref() {
        ErrorKind::Command(command) => coded(command.code, &command.code_name, &command.message),
        ErrorKind::Write(WriteFailure::WriteError(write)) => {
            coded(write.code, write.code_name.as_deref().unwrap_or_default(), &write.message)
        }
        ErrorKind::Write(WriteFailure::WriteConcernError(concern)) => {
            coded(concern.code, &concern.code_name, &concern.message)
        }
        ErrorKind::InsertMany(many) => {
            let first = many.write_errors.as_ref().and_then(|errors| errors.first());
            first.map_or_else(
                || "an insert was not acknowledged as asked".to_owned(),
                |write| coded(write.code, write.code_name.as_deref().unwrap_or_default(), &write.message),
            )
        }
        ErrorKind::BulkWrite(_) => cause(e).map_or_else(|| "a statement of a bulk failed".to_owned(), describe),
        ErrorKind::Authentication { message, .. } => {
            cause(e).map_or_else(|| message.clone(), |cause| format!("{message}: {}", describe(cause)))
        }
        other => other.to_string(),
    }
}

fn coded(code: i32, name: &str, message: &str) -> String {
    if name.is_empty() { format!("{message} (code {code})") } else { format!("{message} (code {code}, {name})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command_error(code: i32) -> DriverError {
        let reply = bson::doc! { "code": code, "codeName": "Some", "errmsg": "no", "ok": 0 };
        let command: mongodb::error::CommandError = bson::deserialize_from_document(reply).unwrap();
        DriverError::from(ErrorKind::Command(command))
    }

    #[test]
    fn codes_decide_and_text_does_not() {
        let of = |code| kind(Side::Source, &command_error(code));
        assert_eq!(of(43), Kind::CursorLost);
        assert_eq!(of(136), Kind::HistoryLost);
        assert_eq!(of(10107), Kind::FailedOver);
        assert_eq!(of(11602), Kind::FailedOver);
        assert_eq!(of(13), Kind::Unauthorized);
        assert_eq!(of(50), Kind::Unavailable);
        assert_eq!(of(59), Kind::Unsupported);
    }

    #[test]
    fn an_unknown_code_stops_the_run_on_either_side() {
        assert_eq!(kind(Side::Sink, &command_error(987_654)), Kind::CannotApply);
        assert_eq!(kind(Side::Source, &command_error(987_654)), Kind::Unsupported);
    }

    #[test]
    fn a_broken_connection_can_be_waited_out() {
        let broken = DriverError::from(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        let error = error(Side::Source, "read the oplog", broken);
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.to_string().contains("read the oplog"), "{error}");
    }

    #[test]
    fn the_sentence_has_code_and_message() {
        let text = error(Side::Sink, "insert documents", command_error(121)).to_string();
        assert!(text.contains("insert documents: no (code 121, Some)"), "{text}");
    }
}
