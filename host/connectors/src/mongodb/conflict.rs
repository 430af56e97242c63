//! Changes that the target refused for good, recorded on the target (`incr_sync.conflict_write_to = db`).
//!
//! A record holds all that a person, or a program, needs to decide later: the change with its bytes, the error, and
//! the document that stood in its way. It is majority-committed before the change counts as done, so no position is
//! ever stored past a conflict that a fail-over could forget. A replay meets the record under the same `_id` and leaves
//! it. Nothing here decides what a conflict is.

use bson::{Document, doc};
use futures_util::TryStreamExt as _;
use mongodb::Client;
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::metrics::ConflictKind;
use oplogue_engine::metrics::labels::Label as _;
use oplogue_engine::model::Namespace;
use oplogue_engine::model::raw::kind;
use oplogue_engine::sink::{Content, Patch, Write};

use super::classify;
use super::command::{self, Concern, StatementError};
use super::patience::answered;
use super::sink::is_own_id;
use super::writer::RawWriter;

/// The collection of records inside the conflict database.
pub const COLLECTION: &str = "conflicts";

/// A record may be as large as any document of the server.
const RECORD_BYTES_MAX: usize = 16 << 20;

/// Where conflicts are recorded.
#[derive(Debug, Clone)]
pub struct ConflictLog {
    client: Client,
    place: Namespace,
    job: String,
}

/// One refused change.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conflict<'a> {
    pub(crate) kind: ConflictKind,
    pub(crate) namespace: &'a Namespace,
    pub(crate) write: &'a Write,
    pub(crate) error: &'a StatementError,
    /// The target's document that the change lost to.
    pub(crate) winner: Option<&'a [u8]>,
}

impl ConflictLog {
    /// Records of `job` in `database` of the target behind `client`.
    #[must_use]
    pub fn new(client: Client, database: &str, job: &str) -> Self {
        Self { client, place: Namespace::of(database, COLLECTION), job: job.to_owned() }
    }

    /// Records one conflict; back when the target's majority has it.
    ///
    /// # Errors
    /// Those of the target; `CannotApply` when the change alone is too large for a record.
    pub(crate) async fn record(&self, conflict: Conflict<'_>) -> Result<()> {
        let id = self.id(conflict);
        let mut record = self.build(&id, conflict);
        if record.len() > RECORD_BYTES_MAX {
            record = self.build(&id, Conflict { winner: None, ..conflict });
        }
        if record.len() > RECORD_BYTES_MAX {
            let text = format!("record a conflict of {}: the change is too large for a record", conflict.namespace);
            return Err(Error::new(Side::Sink, Kind::CannotApply, text));
        }
        let mut w = RawWriter::with_capacity(record.len() + 256);
        // An insert and no upsert: from an update servers before 5.0 take no names that begin with a dollar.
        w.string("insert", self.place.collection());
        w.array("documents", |w| w.raw_document("", &record));
        command::write_concern(&mut w, Concern::Majority);
        let database = self.client.database(self.place.database());
        let asked = database.run_raw_command(command::raw(w.finish())?);
        let reply = answered(Side::Sink, &format!("record a conflict in {}", self.place), asked).await?;
        let reply =
            reply.map_err(|e| classify::error(Side::Sink, &format!("record a conflict in {}", self.place), e))?;
        let outcome = command::read(&self.place, &reply)?;
        let error = outcome.errors.into_iter().map(|(_, error)| error).next();
        // Taken: the same change was recorded before it was replayed.
        let Some(error) = error.filter(|error| !is_own_id(error)) else { return Ok(()) };
        let kind = classify::of_code(error.code).unwrap_or(Kind::CannotApply);
        let text = format!("record a conflict in {}: {} (code {})", self.place, error.message, error.code);
        Err(Error::new(Side::Sink, kind, text))
    }

    /// The last `limit` records, newest first.
    ///
    /// # Errors
    /// Those of the target.
    pub async fn last(&self, limit: i64) -> Result<Vec<Document>> {
        let failed = |e| classify::error(Side::Sink, &format!("read {}", self.place), e);
        let records = self.client.database(self.place.database()).collection::<Document>(self.place.collection());
        let found = records.find(doc! {}).sort(doc! { "$natural": -1 }).limit(limit).await.map_err(failed)?;
        found.try_collect().await.map_err(failed)
    }

    /// The same for the same change of the same job, however often it is replayed.
    fn id(&self, Conflict { namespace, write, .. }: Conflict<'_>) -> Vec<u8> {
        let mut w = RawWriter::with_capacity(256);
        w.string("job", &self.job);
        w.value("time", kind::TIMESTAMP, &write.time.ts().to_le_bytes());
        w.string("namespace", namespace.as_str());
        // As bytes: names inside a document's `_id` may begin with a dollar, names inside a record's may not.
        w.binary("key", 0, &write.key);
        w.value("change", kind::INT64, &fingerprint(&write.content).to_le_bytes());
        w.finish()
    }

    fn build(&self, id: &[u8], conflict: Conflict<'_>) -> Vec<u8> {
        let Conflict { kind, namespace, write, error, winner } = conflict;
        let mut w = RawWriter::with_capacity(1024);
        w.raw_document("_id", id);
        w.string("kind", kind.text());
        w.string("namespace", namespace.as_str());
        w.value("time", kind::TIMESTAMP, &write.time.ts().to_le_bytes());
        w.value("recorded_at", kind::DATE, &bson::DateTime::now().timestamp_millis().to_le_bytes());
        w.raw_document("key", &write.key);
        w.string("operation", operation(&write.content));
        match &write.content {
            Content::Insert(document) | Content::Replace(document) => w.raw_document("document", document),
            Content::Patch(patches) => append_patches(&mut w, patches),
            Content::Patched { base, patches, .. } => {
                w.raw_document("document", base);
                append_patches(&mut w, patches);
            }
            Content::Delete => {}
        }
        w.int("code", error.code);
        w.string("error", &error.message);
        if let Some(winner) = winner {
            w.raw_document("winner", winner);
        }
        w.finish()
    }
}

/// The operation's name in records and logs.
pub(crate) fn operation(content: &Content) -> &'static str {
    match content {
        Content::Insert(_) | Content::Patched { inserted: true, .. } => "insert",
        Content::Replace(_) | Content::Patched { inserted: false, .. } => "replace",
        Content::Patch(_) => "update",
        Content::Delete => "delete",
    }
}

fn append_patches(w: &mut RawWriter, patches: &[Patch]) {
    w.array("updates", |w| {
        for patch in patches {
            w.document("", |w| match patch {
                Patch::Diff(diff) => w.raw_document("diff", diff),
                Patch::Modifiers(modifiers) => w.raw_document("modifiers", modifiers),
            });
        }
    });
}

/// FNV-1a over the content: tells the changes of one transaction to one document apart.
fn fingerprint(content: &Content) -> i64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut take = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    take(operation(content).as_bytes());
    match content {
        Content::Insert(document) | Content::Replace(document) => take(document),
        Content::Delete => {}
        Content::Patch(patches) => patches.iter().for_each(|patch| take(patch.document())),
        Content::Patched { base, patches, .. } => {
            take(base);
            patches.iter().for_each(|patch| take(patch.document()));
        }
    }
    hash.cast_signed()
}
