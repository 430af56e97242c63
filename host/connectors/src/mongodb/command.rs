//! Write commands as raw bytes, and what the server answers to them.
//!
//! A batch of statements becomes one `insert`, `update` or `delete` command by copying the source's bytes behind a
//! few bytes of syntax. Every per-statement result of the reply is read: an error that is not looked at is a lost
//! document. Nothing here decides what to do about an error; `sink` does.

use std::ops::RangeInclusive;
use std::time::Instant;

use bson::{Bson, Document, RawDocumentBuf, doc};
use mongodb::Client;
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::raw::{Elements, Malformed, kind};
use oplogue_engine::model::{Namespace, OpTime};
use oplogue_engine::sink::newest_write;

use super::classify;
use super::literal::needs_literal;
use super::mark::{self, Mark, Numbering};
use super::patch::exact;
use super::primary::{self, Primary};
use super::shard_key::Route;
use super::writer::RawWriter;

/// A command document may hold 16 MiB and 16 KiB; more than this only goes when one statement needs it.
const COMMAND_BYTES: usize = 15 * 1024 * 1024;

/// The server's code for a value that a unique index has already.
pub(crate) const DUPLICATE_KEY: i32 = 11000;

/// The server's codes for an index key that it cannot turn back into values ("KeyString format error"): 50810, 50819 and
/// 50826 were seen, the others of its number formats stand between and beside them.
const KEY_NOT_SHOWN: RangeInclusive<i32> = 50_810..=50_832;

/// The server's `maxWriteBatchSize`.
const STATEMENTS_MAX: usize = 100_000;

/// The command a statement belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verb {
    Delete,
    Update,
    Insert,
}

impl Verb {
    fn command(self) -> &'static str {
        match self {
            Self::Delete => "delete",
            Self::Update => "update",
            Self::Insert => "insert",
        }
    }

    fn statements(self) -> &'static str {
        match self {
            Self::Delete => "deletes",
            Self::Update => "updates",
            Self::Insert => "documents",
        }
    }
}

/// One statement, ready to be written; bytes are borrowed from the change where they can be.
#[derive(Debug, Clone)]
pub(crate) enum Statement<'a> {
    /// A plain insert.
    Insert(&'a [u8]),
    /// A replacement or classic modifiers, as they are.
    Update { key: &'a [u8], update: &'a [u8], upsert: bool },
    /// Classic modifiers made by us.
    Modify { key: &'a [u8], modifiers: Vec<u8> },
    /// The document as a literal: an upserting replacement that no server changes.
    Literal { key: &'a [u8], document: &'a [u8] },
    /// A pipeline (raw array).
    Pipeline { key: &'a [u8], stages: Vec<u8>, upsert: bool },
    /// A delete.
    Delete { key: &'a [u8] },
    /// One of the others on a sharded collection, for the one shard that has this value of the shard key.
    Routed { statement: Box<Statement<'a>>, route: Route },
}

impl<'a> Statement<'a> {
    /// The same for one shard only.
    pub(crate) fn routed(self, route: &Route) -> Self {
        Self::Routed { statement: Box::new(self), route: route.clone() }
    }

    /// What it does, wherever it does it.
    pub(crate) fn core(&self) -> &Self {
        match self {
            Self::Routed { statement, .. } => statement.core(),
            Self::Insert(_)
            | Self::Update { .. }
            | Self::Modify { .. }
            | Self::Literal { .. }
            | Self::Pipeline { .. }
            | Self::Delete { .. } => self,
        }
    }

    /// The upserting replacement by a whole document, in the form that leaves its bytes alone.
    ///
    /// # Errors
    /// When the document is no BSON.
    pub(crate) fn replace(key: &'a [u8], document: &'a [u8]) -> Result<Self, Malformed> {
        Ok(if needs_literal(document)? {
            Self::Literal { key, document }
        } else {
            Self::Update { key, update: document, upsert: true }
        })
    }

    /// The same for a document that is there: none is made.
    pub(crate) fn of_what_stands(self) -> Self {
        match self {
            Self::Update { key, update, .. } => Self::Update { key, update, upsert: false },
            Self::Pipeline { key, stages, .. } => Self::Pipeline { key, stages, upsert: false },
            Self::Routed { statement, route } => {
                Self::Routed { statement: Box::new(statement.of_what_stands()), route }
            }
            other @ (Self::Insert(_) | Self::Modify { .. } | Self::Literal { .. } | Self::Delete { .. }) => other,
        }
    }

    pub(crate) fn verb(&self) -> Verb {
        match self {
            Self::Insert(_) => Verb::Insert,
            Self::Update { .. } | Self::Modify { .. } | Self::Literal { .. } | Self::Pipeline { .. } => Verb::Update,
            Self::Delete { .. } => Verb::Delete,
            Self::Routed { statement, .. } => statement.verb(),
        }
    }

    /// Whether it creates the document when there is none, or does not care.
    pub(crate) fn may_miss(&self) -> bool {
        match self {
            Self::Update { upsert, .. } | Self::Pipeline { upsert, .. } => *upsert,
            Self::Modify { .. } => false,
            Self::Insert(_) | Self::Literal { .. } | Self::Delete { .. } => true,
            Self::Routed { statement, .. } => statement.may_miss(),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        const SYNTAX: usize = 96;
        SYNTAX
            + match self {
                Self::Insert(document) => document.len(),
                Self::Update { key, update, .. } => key.len() + update.len(),
                Self::Modify { key, modifiers } => key.len() + modifiers.len(),
                Self::Literal { key, document } => key.len() + document.len(),
                Self::Pipeline { key, stages, .. } => key.len() + stages.len(),
                Self::Delete { key } => key.len(),
                Self::Routed { statement, route } => statement.bytes() + route.bytes(),
            }
    }

    fn append(&self, w: &mut RawWriter, route: Option<&Route>) {
        match self {
            Self::Insert(document) => w.raw_document("", document),
            Self::Update { key, update, upsert } => {
                updating(w, (key, route), *upsert, |w| w.raw_document("u", update));
            }
            Self::Modify { key, modifiers } => {
                updating(w, (key, route), false, |w| w.raw_document("u", modifiers));
            }
            Self::Literal { key, document } => updating(w, (key, route), true, |w| {
                w.array("u", |w| exact::literal_stage(w, document));
            }),
            Self::Pipeline { key, stages, upsert } => {
                updating(w, (key, route), *upsert, |w| w.value("u", kind::ARRAY, stages));
            }
            Self::Delete { key } => w.document("", |w| {
                query(w, (key, route));
                w.int("limit", 1);
            }),
            Self::Routed { statement, route } => statement.append(w, Some(route)),
        }
    }
}

/// What a statement selects its document by: the key, and where the collection is sharded the shard.
type Selection<'k> = (&'k [u8], Option<&'k Route>);

fn updating(w: &mut RawWriter, selection: Selection<'_>, upsert: bool, update: impl FnOnce(&mut RawWriter)) {
    w.document("", |w| {
        query(w, selection);
        update(w);
        if upsert {
            w.boolean("upsert", true);
        }
    });
}

/// Appends the query of a statement, and the collation that lets a `mongos` compare shard keys.
fn query(w: &mut RawWriter, (key, route): Selection<'_>) {
    let Some(route) = route else { return selector(w, "q", key) };
    w.document("q", |w| {
        equalities(w, key);
        equalities(w, route.fields());
    });
    if route.is_collated() {
        w.document("collation", |w| w.string("locale", "simple"));
    }
}

/// Writes the query that matches exactly the document of `key`.
///
/// A document or a regular expression as a value would be read as operators or as a pattern, so those stand under
/// `$eq`. A whole document may serve as key: only its `_id` is taken then.
pub(crate) fn selector(w: &mut RawWriter, name: &str, key: &[u8]) {
    w.document(name, |w| equalities(w, key));
}

fn equalities(w: &mut RawWriter, fields: &[u8]) {
    let elements = Elements::new(fields).into_iter().flatten().filter_map(std::result::Result::ok);
    for element in elements {
        if matches!(element.kind, kind::DOCUMENT | kind::REGEX) {
            w.document(element.name, |w| w.value("$eq", element.kind, element.value));
        } else {
            w.element(&element);
        }
    }
}

/// The write concern of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Concern {
    /// `w: 1`, said aloud: since 5.0 a server's default is majority.
    One,
    Majority,
    /// None: the transaction around the command has it.
    OfTransaction,
}

impl Concern {
    pub(crate) fn of(majority: bool) -> Self {
        if majority { Self::Majority } else { Self::One }
    }
}

/// How commands are sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner<'a> {
    /// The only server that may take them; `None` where there is no election.
    pub(crate) primary: Option<&'a Primary>,
    pub(crate) concern: Concern,
    /// The user may bypass validators, so documents that the source accepted are not judged again.
    pub(crate) bypass_validation: bool,
    /// Where its changes come from, when a collector behind the target must know.
    pub(crate) mark: Option<Mark<'a>>,
}

/// One statement's error as the server reported it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StatementError {
    /// When the server was heard to say so.
    pub(crate) at: Instant,
    pub(crate) code: i32,
    pub(crate) message: String,
    /// The violated index, of a duplicate key.
    pub(crate) key_pattern: Option<Document>,
    /// The value of it that another document has.
    pub(crate) key_value: Option<Box<Document>>,
}

/// What became of a batch.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Statements that found (or created) their document.
    pub(crate) matched: u64,
    /// (position in the batch, error), ascending.
    pub(crate) errors: Vec<(usize, StatementError)>,
    pub(crate) operation_time: Option<OpTime>,
}

/// Sends statements of one verb in as few commands as their size allows, one after the other.
///
/// # Errors
/// When the outcome of any of them is unknown, or the server refuses a command as a whole.
pub(crate) async fn send(
    client: &Client,
    namespace: &Namespace,
    statements: &[&Statement<'_>],
    manner: Manner<'_>,
) -> Result<Outcome> {
    let mut total = Outcome::default();
    let mut rest = statements;
    let mut offset = 0;
    while !rest.is_empty() {
        let (part, taken) = match manner.mark {
            Some(mark) => mark::send(client, namespace, rest, manner, mark).await?,
            None => {
                let (command, taken) = build(namespace.collection(), rest, manner, Numbering::None);
                (run(client, namespace, command, manner.primary).await?, taken)
            }
        };
        total.matched += part.matched;
        total.errors.extend(part.errors.into_iter().map(|(at, error)| (at + offset, error)));
        total.operation_time = newest_write(total.operation_time, part.operation_time);
        offset += taken;
        rest = rest.get(taken..).unwrap_or_default();
    }
    Ok(total)
}

/// One command with as many of `statements`, all of one verb, as fit, and how many those are.
pub(crate) fn build(
    collection: &str,
    statements: &[&Statement<'_>],
    manner: Manner<'_>,
    numbering: Numbering,
) -> (Vec<u8>, usize) {
    let verb = statements.first().map_or(Verb::Insert, |first| first.verb());
    let estimate: usize = statements.iter().map(|s| s.bytes()).sum();
    let mut writer = RawWriter::with_capacity(estimate.min(COMMAND_BYTES) + 1024);
    writer.string(verb.command(), collection);
    writer.boolean("ordered", false);
    write_concern(&mut writer, manner.concern);
    numbering.append(&mut writer);
    // No role but root's lets anybody bypass a validator of `system.js`, and it has none.
    if manner.bypass_validation && verb != Verb::Delete && collection != "system.js" {
        writer.boolean("bypassDocumentValidation", true);
    }
    let mut taken = 0;
    writer.array(verb.statements(), |w| {
        for statement in statements.iter().take(STATEMENTS_MAX) {
            if taken > 0 && w.len() + statement.bytes() > COMMAND_BYTES {
                break;
            }
            statement.append(w, None);
            taken += 1;
        }
    });
    (writer.finish(), taken)
}

/// Appends the write concern of a command.
pub(crate) fn write_concern(writer: &mut RawWriter, concern: Concern) {
    match concern {
        Concern::One => writer.document("writeConcern", |w| w.int("w", 1)),
        Concern::Majority => writer.document("writeConcern", |w| w.string("w", "majority")),
        Concern::OfTransaction => {}
    }
}

/// Runs a write command and reads what became of its statements.
///
/// # Errors
/// When the command as a whole failed.
pub(crate) async fn run(
    client: &Client,
    namespace: &Namespace,
    command: Vec<u8>,
    primary: Option<&Primary>,
) -> Result<Outcome> {
    let command = raw(command)?;
    let database = client.database(namespace.database());
    let doing = &format!("write to {namespace}");
    let reply = primary::answered(primary, doing, database.run_raw_command(command)).await?;
    let reply = reply.map_err(|e| classify::error(Side::Sink, &format!("write to {namespace}"), e))?;
    read(namespace, &reply)
}

/// Finished bytes as the driver takes them.
pub(crate) fn raw(command: Vec<u8>) -> Result<RawDocumentBuf> {
    RawDocumentBuf::from_bytes(command)
        .map_err(|e| Error::new(Side::Internal, Kind::Bug, "build a command").caused_by(e))
}

/// Reads a reply of `insert`, `update` or `delete`.
pub(crate) fn read(namespace: &Namespace, reply: &Document) -> Result<Outcome> {
    if let Ok(concern) = reply.get_document("writeConcernError") {
        let code = integer(concern, "code").unwrap_or_default();
        let kind = i32::try_from(code).ok().and_then(classify::of_code).unwrap_or(Kind::Unavailable);
        let text = concern.get_str("errmsg").unwrap_or_default();
        return Err(Error::new(Side::Sink, kind, format!("write to {namespace}: {text} (write concern, code {code})")));
    }
    let mut errors = write_errors(reply).ok_or_else(|| {
        let text = format!("write to {namespace}: the reply has an error of a statement that cannot be read");
        Error::new(Side::Sink, Kind::Unavailable, text)
    })?;
    errors.sort_by_key(|(at, _)| *at);
    for (_, error) in &errors {
        // The node could not write any more: what became of its neighbours is unknown too.
        if let Some(kind @ (Kind::FailedOver | Kind::Fenced)) = classify::of_code(error.code) {
            let text = format!("write to {namespace}: {} (code {})", error.message, error.code);
            return Err(Error::new(Side::Sink, kind, text));
        }
    }
    let matched = integer(reply, "n").unwrap_or_default().cast_unsigned();
    Ok(Outcome { matched, errors, operation_time: operation_time(reply) })
}

/// A duplicate key that the server reports as the error of the whole command.
pub(crate) fn whole_error(e: &mongodb::error::Error) -> Option<StatementError> {
    let reply: Document = e.server_response()?.try_into().ok()?;
    error_of(&reply).filter(|error| error.key_pattern.is_some())
}

/// What the server says of single statements. `None` when any of it cannot be read: a statement whose error is not known
/// would count as done, so the outcome of all of them is unknown then.
fn write_errors(reply: &Document) -> Option<Vec<(usize, StatementError)>> {
    match reply.get("writeErrors") {
        None => Some(Vec::new()),
        Some(errors) => errors.as_array()?.iter().map(statement_error).collect(),
    }
}

fn statement_error(error: &Bson) -> Option<(usize, StatementError)> {
    let error = error.as_document()?;
    Some((usize::try_from(integer(error, "index")?).ok()?, error_of(error)?))
}

fn error_of(reply: &Document) -> Option<StatementError> {
    let mut error = StatementError {
        at: Instant::now(),
        code: i32::try_from(integer(reply, "code")?).ok()?,
        message: reply.get_str("errmsg").unwrap_or_default().to_owned(),
        key_pattern: reply.get_document("keyPattern").ok().cloned(),
        key_value: reply.get_document("keyValue").ok().cloned().map(Box::new),
    };
    // An `_id` is taken in a clustered collection, and the server failed to show it: such a collection does not keep
    // what tells numeric types apart (6.0.5 and 6.0.27, for NaN, infinity and fractions).
    if KEY_NOT_SHOWN.contains(&error.code) {
        error.code = DUPLICATE_KEY;
        error.key_pattern = Some(doc! { "_id": 1 });
    }
    Some(error)
}

/// A number of a reply, whichever of its numeric types the server chose.
pub(crate) fn integer(document: &Document, name: &str) -> Option<i64> {
    let value = document.get(name)?;
    #[allow(clippy::cast_possible_truncation, reason = "counts and codes are whole numbers far below 2^53")]
    let of_double = |n: f64| n as i64;
    value.as_i64().or_else(|| value.as_i32().map(i64::from)).or_else(|| value.as_f64().map(of_double))
}

/// The `operationTime` of a reply; a standalone server sends none.
pub(crate) fn operation_time(reply: &Document) -> Option<OpTime> {
    let ts = reply.get_timestamp("operationTime").ok()?;
    // The write's own time names the term of the primary that took it.
    let term = reply.get_document("opTime").ok().and_then(super::topology::op_time).map_or(-1, |time| time.term);
    Some(OpTime::new(ts.time, ts.increment, term))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    fn read_command(bytes: &[u8]) -> Document {
        Document::from_reader(bytes).unwrap()
    }

    const MANNER: Manner<'static> =
        Manner { primary: None, concern: Concern::One, bypass_validation: false, mark: None };

    #[test]
    fn ids_that_look_like_operators_are_compared_as_values() {
        let key = rawdoc! { "_id": { "$gt": 1 }, "shard": "x" };
        let delete = Statement::Delete { key: key.as_bytes() };
        let (bytes, taken) = build("c", &[&delete], MANNER, Numbering::None);
        assert_eq!(taken, 1);
        assert_eq!(
            read_command(&bytes),
            doc! { "delete": "c", "ordered": false, "writeConcern": { "w": 1 },
            "deletes": [{ "q": { "_id": { "$eq": { "$gt": 1 } }, "shard": "x" }, "limit": 1 }] }
        );
    }

    #[test]
    fn a_command_stays_below_the_limit_but_always_takes_one() {
        let document = rawdoc! { "_id": 1, "x": "y".repeat(6 * 1024 * 1024) };
        let insert = Statement::Insert(document.as_bytes());
        let (bytes, taken) = build("c", &[&insert, &insert, &insert], MANNER, Numbering::None);
        assert_eq!(taken, 2);
        assert!(bytes.len() < 16 * 1024 * 1024);
        let large = rawdoc! { "_id": 1, "x": "y".repeat(16 * 1024 * 1024 - 100) };
        let insert = Statement::Insert(large.as_bytes());
        assert_eq!(build("c", &[&insert, &insert], MANNER, Numbering::None).1, 1);
    }

    #[test]
    fn every_statement_error_is_read() {
        let reply = doc! { "n": 1, "ok": 1.0, "writeErrors": [
            { "index": 2, "code": 11000, "keyPattern": { "_id": 1 }, "errmsg": "E11000" },
            { "index": 0, "code": 121, "errmsg": "failed validation" },
        ] };
        let outcome = read(&Namespace::new("a.b"), &reply).unwrap();
        assert_eq!(outcome.errors.iter().map(|(at, e)| (*at, e.code)).collect::<Vec<_>>(), [(0, 121), (2, 11000)]);
        assert_eq!(outcome.errors[1].1.key_pattern, Some(doc! { "_id": 1 }));
    }

    #[test]
    fn an_error_that_cannot_be_read_makes_the_outcome_unknown() {
        let good = doc! { "index": 0, "code": 121, "errmsg": "failed validation" };
        let bad = [
            Bson::Array(vec![doc! { "index": 1, "errmsg": "no code" }.into(), good.clone().into()]),
            Bson::Array(vec![good.clone().into(), doc! { "code": 11000, "errmsg": "no index" }.into()]),
            Bson::Array(vec![doc! { "index": -1, "code": 11000 }.into()]),
            Bson::Array(vec![doc! { "index": 1, "code": 1_i64 << 40 }.into()]),
            Bson::Array(vec![Bson::Int32(121)]),
            Bson::Document(good),
            Bson::Null,
        ];
        for errors in bad {
            let reply = doc! { "n": 1, "ok": 1.0, "writeErrors": errors };
            let error = read(&Namespace::new("a.b"), &reply).unwrap_err();
            assert_eq!(error.kind().action(), oplogue_engine::error::Action::Rewind, "{reply}: {error}");
        }
    }

    #[test]
    fn a_step_down_inside_a_reply_is_no_statement_error() {
        let reply = doc! { "n": 0, "ok": 1.0, "writeErrors": [{ "index": 0, "code": 10107, "errmsg": "not primary" }] };
        assert_eq!(read(&Namespace::new("a.b"), &reply).unwrap_err().kind(), Kind::FailedOver);
    }
}
