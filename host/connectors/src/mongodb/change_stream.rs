//! Follows the change stream of a whole replica set or sharded cluster: raw replies in order, resumable by token.
//!
//! A change stream shows what a majority has, so nothing that came out of it is ever rolled back, and its resume token is
//! exact: it needs no proof of the history beyond the server's own. What the stream can show differs by version
//! ([`Shown`]). This module never looks into an event and never retries, and holds a permit for every byte it asks for.

use std::time::Duration;

use async_trait::async_trait;
use bson::{RawArrayBuf, RawDocument, RawDocumentBuf, Timestamp, rawdoc};
use mongodb::Client;
use mongodb::error::Error as DriverError;
use mongodb::options::{CursorType, SelectionCriteria};
use mongodb::raw_batch_cursor::RawBatchCursor;
use oplogue_engine::budget::Budget;
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::{OpTime, Position, RawBatch};
use oplogue_engine::source::{Source, Window};

use super::classify;
use super::client::ConnectMode;
use super::oplog::{dated, oldest, window_text};
use super::patience::answered;
use super::tail::{self, Tail};
use super::topology::{self, Version};

const READ: &str = "read the change stream (needs `changeStream` and `find` on every database: role `readAnyDatabase`)";

/// Errors of an event that does not fit into a reply: `BSONObjectTooLarge`, and a part of a split event that is too large.
const TOO_LARGE: [i32; 2] = [10334, 7_182_500];

/// Between two questions for the oldest entry.
const BETWEEN_TRIES: Duration = Duration::from_millis(500);

/// How the stream is read.
#[derive(Debug, Clone)]
pub struct StreamOptions {
    /// Which member is read.
    pub mode: ConnectMode,
    /// Events a reply holds at most.
    pub reply_events: u32,
    /// How long the server holds a request while there is nothing new; an idle source gives a heartbeat that often.
    pub await_time: Duration,
    /// A member that shows no DDL is not read.
    pub needs_ddl: bool,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self { mode: ConnectMode::Primary, reply_events: 5000, await_time: Duration::from_secs(1), needs_ddl: false }
    }
}

/// What the change streams of a server can show, tried on 4.4.2, 5.0.4, 6.0.5 and 6.0.27.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// DDL other than drop, rename and dropDatabase; identities of collections (`showExpandedEvents`).
    pub ddl: bool,
    /// In which form updates are asked for.
    pub updates: Updates,
    /// Events larger than a reply come in parts (`$changeStreamSplitLargeEvent`).
    pub split: bool,
}

/// The exact forms of an update that servers offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Updates {
    /// The diff that the server has logged (`showRawUpdateDescription`).
    Diffs,
    /// The document as it is when the event is read (`fullDocument: "updateLookup"`). The server has logged a diff, but shows
    /// a description of it that cannot tell a dot in a name from a path.
    Documents,
    /// The modifiers that the server has logged, which its description holds as they are.
    Modifiers,
}

impl Shown {
    /// What a server of this version can show.
    #[must_use]
    pub fn by(version: Version) -> Self {
        let ddl = version >= [6, 0, 0];
        Self {
            ddl,
            updates: match version {
                _ if ddl => Updates::Diffs,
                [5, ..] => Updates::Documents,
                _ => Updates::Modifiers,
            },
            split: version >= [6, 0, 9],
        }
    }
}

/// The changes of one replica set as a [`Source`].
pub struct ChangeStreamSource {
    client: Client,
    options: StreamOptions,
    tail: Tail,
    /// The first reply, read by `open` to see that the position is accepted.
    ready: Option<RawBatch>,
    member: SelectionCriteria,
    /// Where the last reply reached, for messages.
    at: OpTime,
}

impl ChangeStreamSource {
    /// A source that is not open yet. `client` should be the source's own; batches take their memory from `budget`.
    #[must_use]
    pub fn new(client: Client, options: StreamOptions, budget: Budget) -> Self {
        let member = options.mode.criteria();
        Self { client, options, tail: Tail::new(budget), ready: None, member, at: OpTime::default() }
    }

    async fn aggregate(&self, stream: RawDocumentBuf, shown: Shown) -> Result<RawBatchCursor, DriverError> {
        let events = self.options.reply_events.max(1);
        let mut pipeline = RawArrayBuf::new();
        pipeline.push(rawdoc! { "$changeStream": stream });
        if shown.split {
            pipeline.push(rawdoc! { "$changeStreamSplitLargeEvent": {} });
        }
        let command = rawdoc! {
            "aggregate": 1,
            "pipeline": pipeline,
            "cursor": { "batchSize": i32::try_from(events).unwrap_or(i32::MAX) },
            "readConcern": { "level": "majority" },
        };
        let admin = self.client.database("admin");
        let cursor = admin.run_raw_cursor_command(command).cursor_type(CursorType::TailableAwait);
        let cursor = cursor.selection_criteria(self.member.clone()).batch_size(events);
        cursor.max_time(self.options.await_time).batch().await
    }

    async fn read(&mut self) -> Result<RawBatch> {
        let at = self.at;
        let read = self.tail.next(|e| failed(at, e)).await;
        let batch = match read {
            Err(error) if error.kind() == Kind::HistoryLost => return Err(self.lost(at, &error.to_string()).await),
            read => read?,
        };
        if let Some(reached) = &batch.reached {
            self.at = reached.time();
        }
        Ok(batch)
    }

    /// A time that the source has not come to is another source's: what a majority had is never taken back.
    async fn prove_not_ahead(&self, time: OpTime) -> Result<()> {
        let member = topology::last_write(Side::Source, &self.client, &tail::primary(self.options.mode)).await?;
        if member.writable_primary && member.newest.ts() < time.ts() {
            return Err(self.lost(time, "the source has not come that far: it is another source").await);
        }
        Ok(())
    }

    /// The fault that names the position, the reason and the window.
    async fn lost(&self, at: OpTime, reason: &str) -> Error {
        let window = match self.window().await {
            Ok(window) if window.oldest.ts() > 0 => window_text(&window),
            Ok(window) => format!("the newest entry of its oplog is {}", dated(window.newest)),
            Err(fault) => return fault.context("the position is not in the change stream; read its window"),
        };
        let text = format!("start at {} is not possible: {reason}; {window}", dated(at));
        Error::new(Side::Source, Kind::HistoryLost, text)
    }

    /// Opens a cursor at a position. While the server cuts its oplog off, which takes it seconds, what looks like the
    /// oldest entry is none any more: it is asked for again.
    async fn find(&self, from: &Position, shown: Shown) -> Result<RawBatchCursor> {
        const TRIES: usize = 20;
        let mut tries = if is_oldest(from) { TRIES } else { 1 };
        loop {
            let start = match from {
                Position::Stream { token, .. } => RawStart::Token(token.to_vec()),
                Position::Oplog(_) if is_oldest(from) => RawStart::Time(oldest(&self.client, &self.member).await?),
                // A date: no entry has increment 0, and the server refuses a time before its oldest entry.
                Position::Oplog(OpTime { inc: 0, secs, .. }) => RawStart::Time(OpTime::new(*secs, 1, -1)),
                Position::Oplog(time) => RawStart::Time(*time),
                Position::Shards(cut) => RawStart::Time(cut.time),
            };
            let asked = self.aggregate(stage(start, shown)?, shown);
            let opened = answered(Side::Source, "open the change stream", asked).await?;
            tries -= 1;
            match opened.map_err(|e| failed(from.time(), e)) {
                Err(error) if error.kind() == Kind::HistoryLost && tries == 0 => {
                    return Err(self.lost(from.time(), &error.to_string()).await);
                }
                Err(error) if error.kind() == Kind::HistoryLost => tokio::time::sleep(BETWEEN_TRIES).await,
                opened => return opened,
            }
        }
    }
}

/// The stream of a whole cluster cannot be applied exactly. A document whose shard key changes is inserted by one shard and
/// deleted by another, each event with its own shard's time of the commit: the delete may come last, and it names the
/// `_id` that must stay.
///
/// # Errors
/// `Unsupported` behind a `mongos`.
pub fn refuse_cluster(found: &topology::Cluster) -> Result<()> {
    if !found.is_mongos {
        return Ok(());
    }
    let text = "mongo_urls names a mongos, and incr_sync.mongo_fetch_method = change_stream: the stream of a cluster does \
                not tell in which order a document has left one shard and come to another; read the oplogs instead \
                (incr_sync.mongo_fetch_method = oplog, one mongo_urls entry for each shard, mongo_cs_url)";
    Err(Error::new(Side::Source, Kind::Unsupported, text))
}

/// MongoShake's 1970: the oldest entry there is.
fn is_oldest(from: &Position) -> bool {
    matches!(from, Position::Oplog(OpTime { secs: 0 | 1, term: -1, .. }))
}

/// A value of `startAfter` or `startAtOperationTime`.
enum RawStart {
    Token(Vec<u8>),
    Time(OpTime),
}

/// The `$changeStream` stage.
fn stage(start: RawStart, shown: Shown) -> Result<RawDocumentBuf> {
    let malformed = |e| Error::new(Side::Source, Kind::Malformed, "write the start of a change stream").caused_by(e);
    let mut stream = rawdoc! { "allChangesForCluster": true };
    match start {
        RawStart::Token(token) => {
            let token = RawDocument::from_bytes(&token).map_err(malformed)?;
            stream.append(bson::cstr!("startAfter"), token.to_owned());
        }
        RawStart::Time(OpTime { secs, inc, .. }) => {
            stream.append(bson::cstr!("startAtOperationTime"), Timestamp { time: secs, increment: inc });
        }
    }
    if shown.ddl {
        stream.append(bson::cstr!("showExpandedEvents"), true);
        // The buckets of time-series collections.
        stream.append(bson::cstr!("showSystemEvents"), true);
        // What `convertToCapped` and its like have copied. Without the renames behind that, it would stay there.
        stream.append(bson::cstr!("showMigrationEvents"), true);
    }
    match shown.updates {
        Updates::Diffs => stream.append(bson::cstr!("showRawUpdateDescription"), true),
        Updates::Documents => stream.append(bson::cstr!("fullDocument"), "updateLookup"),
        Updates::Modifiers => {}
    }
    Ok(stream)
}

fn failed(at: OpTime, e: DriverError) -> Error {
    if classify::code(&e).is_some_and(|code| TOO_LARGE.contains(&code)) {
        let text = format!(
            "{}: the event behind {at} is larger than a reply of the server may be, in one piece or in parts; \
             only the oplog shows it (incr_sync.mongo_fetch_method = oplog)",
            classify::error(Side::Source, READ, e)
        );
        return Error::new(Side::Source, Kind::CannotApply, text);
    }
    classify::error(Side::Source, READ, e)
}

#[async_trait]
impl Source for ChangeStreamSource {
    async fn open(&mut self, from: &Position) -> Result<()> {
        self.tail.put(None);
        self.ready = None;
        self.at = from.time();
        let cluster = topology::cluster(Side::Source, &self.client, &self.options.mode.criteria()).await?;
        refuse_cluster(&cluster)?;
        self.member = tail::pick_member(&self.client, self.options.mode).await?;
        self.prove_not_ahead(from.time()).await?;
        // In the middle of an upgrade the members are of several versions.
        let version = topology::cluster(Side::Source, &self.client, &self.member).await?.version;
        let shown = Shown::by(version);
        if self.options.needs_ddl && !shown.ddl {
            let text = format!(
                "the member that is to be read is of MongoDB {}, whose change streams show no DDL (filter.ddl_enable): \
                 nothing is read until it is of 6.0 or later",
                topology::version_text(version)
            );
            return Err(Error::new(Side::Source, Kind::Unavailable, text));
        }
        let cursor = self.find(from, shown).await?;
        self.tail.put(Some(cursor));
        self.ready = Some(self.read().await?);
        Ok(())
    }

    async fn next(&mut self) -> Result<RawBatch> {
        match self.ready.take() {
            Some(first) => Ok(first),
            None => self.read().await,
        }
    }

    async fn newest(&self) -> Result<OpTime> {
        Ok(topology::last_write(Side::Source, &self.client, &tail::primary(self.options.mode)).await?.majority)
    }

    async fn written(&self) -> Result<OpTime> {
        Ok(topology::last_write(Side::Source, &self.client, &tail::primary(self.options.mode)).await?.newest)
    }

    /// The oldest entry is that of the oplog, where the user may read it: time 0 otherwise.
    async fn window(&self) -> Result<Window> {
        let newest = topology::last_write(Side::Source, &self.client, &self.member).await?.majority;
        let oldest = match oldest(&self.client, &self.member).await {
            Err(error) if error.kind() == Kind::Unauthorized => OpTime::default(),
            found => found?,
        };
        Ok(Window { oldest, newest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_goes_by_the_version() {
        let of = |version| Shown::by(version);
        assert_eq!(of([6, 0, 27]), Shown { ddl: true, updates: Updates::Diffs, split: true });
        assert_eq!(of([6, 0, 5]), Shown { ddl: true, updates: Updates::Diffs, split: false });
        assert_eq!(of([7, 0, 0]), Shown { ddl: true, updates: Updates::Diffs, split: true });
        assert_eq!(of([5, 0, 4]), Shown { ddl: false, updates: Updates::Documents, split: false });
        assert_eq!(of([4, 4, 2]), Shown { ddl: false, updates: Updates::Modifiers, split: false });
    }

    #[test]
    fn a_start_is_a_token_or_a_time() {
        let shown = Shown::by([6, 0, 27]);
        let token = rawdoc! { "_data": "82" };
        let stream = stage(RawStart::Token(token.as_bytes().to_vec()), shown).unwrap();
        assert_eq!(stream.get_document("startAfter").unwrap(), &*token);
        let stream = stage(RawStart::Time(OpTime::new(7, 1, 3)), shown).unwrap();
        assert_eq!(stream.get_timestamp("startAtOperationTime").unwrap(), Timestamp { time: 7, increment: 1 });
        assert!(stream.get_bool("showMigrationEvents").unwrap(), "what `convertToCapped` copies");
    }
}
