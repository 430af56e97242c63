//! Tails the oplog of a replica set: raw replies in order, from a position that is proved to be still there.
//!
//! The cursor is opened *at* the position, not behind it: the first entry must be the one that was read last, else the
//! history was rolled back or left the oplog (`$gt` with a position before the window silently starts at the oldest
//! entry). It reads with majority concern, so an entry that came out of it is never rolled back. This module never
//! looks into an entry beyond its `ts` and `t`, never retries, and holds a permit for every byte it asks for.

use std::time::Duration;

use async_trait::async_trait;
use bson::{RawDocumentBuf, Timestamp, rawdoc};
use bytes::Bytes;
use mongodb::Client;
use mongodb::options::{CursorType, SelectionCriteria};
use mongodb::raw_batch_cursor::RawBatchCursor;
use oplogue_engine::budget::Budget;
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::{OpTime, Position, RawBatch};
use oplogue_engine::source::{Source, Window};

use super::client::ConnectMode;
use super::patience::answered;
use super::tail::{self, Tail};
use super::{classify, reply, topology};

const READ: &str = "read the oplog (needs `read` on `local`)";

/// How the oplog is read.
#[derive(Debug, Clone)]
pub struct OplogOptions {
    /// Which member is read.
    pub mode: ConnectMode,
    /// Entries a reply holds at most. Bounds memory together with the server's own 16 MiB.
    pub reply_entries: u32,
    /// How long the server holds a request while there is nothing new; an idle source gives a heartbeat that often.
    pub await_time: Duration,
}

impl Default for OplogOptions {
    fn default() -> Self {
        Self { mode: ConnectMode::Primary, reply_entries: 5000, await_time: Duration::from_secs(1) }
    }
}

/// A position that names a date: reading starts with the first entry at or after it. `secs` up to 1 means the oldest
/// entry there is (MongoShake's 1970).
///
/// No entry has increment 0, so such a position is never taken for an entry's.
#[must_use]
pub fn date_start(secs: u32) -> Position {
    Position::Oplog(OpTime::new(secs, 0, -1))
}

/// What the first entry must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// The oldest entry, whichever that is.
    Oldest,
    /// The first entry not older than this moment, which must lie in the oplog.
    Date(OpTime),
    /// Exactly this entry; a term of -1 is not known and not compared.
    Entry(OpTime),
}

impl Start {
    fn of(from: &Position) -> Self {
        let time = from.time();
        if let Position::Stream { .. } = from {
            // A token's time need not be an entry's, and it may stand among several events of that time.
            return Self::Date(time);
        }
        match time {
            OpTime { secs: 0 | 1, term: -1, .. } => Self::Oldest,
            OpTime { inc: 0, .. } => Self::Date(time),
            OpTime { .. } => Self::Entry(time),
        }
    }

    fn timestamp(self) -> Timestamp {
        match self {
            Self::Oldest => Timestamp { time: 0, increment: 0 },
            Self::Date(time) | Self::Entry(time) => time.timestamp(),
        }
    }
}

/// The oplog of one replica set as a [`Source`].
pub struct OplogSource {
    client: Client,
    options: OplogOptions,
    tail: Tail,
    /// The first reply, read by `open` to prove the position.
    ready: Option<RawBatch>,
    /// The entry that the first reply with entries must begin with, while that has not come.
    expected: Option<OpTime>,
    /// The member that the cursor reads.
    member: SelectionCriteria,
}

impl OplogSource {
    /// A source that is not open yet. `client` should be the source's own; batches take their memory from `budget`.
    #[must_use]
    pub fn new(client: Client, options: OplogOptions, budget: Budget) -> Self {
        let member = options.mode.criteria();
        Self { client, options, tail: Tail::new(budget), ready: None, expected: None, member }
    }

    async fn find(&self, start: Start) -> Result<RawBatchCursor> {
        let entries = self.options.reply_entries.max(1);
        let command = rawdoc! {
            "find": "oplog.rs",
            "filter": { "ts": { "$gte": start.timestamp() } },
            "tailable": true,
            "awaitData": true,
            "batchSize": i32::try_from(entries).unwrap_or(i32::MAX),
            "readConcern": { "level": "majority" },
        };
        let local = self.client.database("local");
        let cursor = local
            .run_raw_cursor_command(command)
            .cursor_type(CursorType::TailableAwait)
            .selection_criteria(self.member.clone())
            .batch_size(entries)
            .max_time(self.options.await_time)
            .batch();
        answered(Side::Source, READ, cursor).await?.map_err(|e| classify::error(Side::Source, READ, e))
    }

    async fn read(&mut self) -> Result<RawBatch> {
        match self.tail.next(tail::failed(READ)).await {
            Err(fault) => Err(self.with_window(fault).await),
            read => read,
        }
    }

    /// The oplog can be cut off under a read: then an operator needs to know what is left of it.
    async fn with_window(&self, fault: Error) -> Error {
        if fault.kind() != Kind::HistoryLost {
            return fault;
        }
        match self.window().await {
            Ok(window) => fault.context(window_text(&window)),
            Err(_) => fault,
        }
    }

    /// Compares the first entry ever seen by this cursor with the position it was opened at.
    async fn prove(&mut self, batch: &RawBatch) -> Result<()> {
        let Some(expected) = self.expected else {
            return Ok(());
        };
        let Some(first) = reply::first_document(&batch.entries)? else {
            return Ok(());
        };
        let found = reply::entry_time(first)?;
        if is_entry(found, expected) {
            self.expected = None;
            return Ok(());
        }
        Err(self.lost(expected, Some(found)).await)
    }

    /// No entry yet at or after the position: either this member is behind, or the position never was in this history
    /// (rolled back, or another source). The primary knows; one that an election has passed over does not count.
    async fn prove_not_ahead(&self, expected: OpTime) -> Result<()> {
        let primary = topology::last_write(Side::Source, &self.client, &self.primary()).await?;
        let current = primary.writable_primary && primary.newest.term >= expected.term;
        if current && primary.newest.ts() < expected.ts() {
            return Err(self.lost(expected, None).await);
        }
        Ok(())
    }

    async fn prove_date(&self, date: OpTime) -> Result<()> {
        // Asked after the cursor stands: the oldest entry only moves forward, so what the oplog holds now it held then.
        let oldest = oldest(&self.client, &self.member).await?;
        if oldest.begins_by(date) {
            return Ok(());
        }
        Err(self.lost(date, None).await)
    }

    /// The fault that names the position, what is there instead, and the window.
    async fn lost(&self, expected: OpTime, found: Option<OpTime>) -> Error {
        let window = match self.window().await {
            Ok(window) => window,
            Err(fault) => {
                return fault.context("the position is not in the oplog; read its window");
            }
        };
        let reason = if expected.ts() < window.oldest.ts() {
            "illegal start: the position is older than the oldest entry".to_owned()
        } else if let Some(found) = found {
            format!("the oplog holds {found} there: the source was rolled back, or it is another source")
        } else {
            "the source has not come that far: it was rolled back, or it is another source".to_owned()
        };
        let text = format!("start at {} is not possible: {reason}; {}", dated(expected), window_text(&window));
        Error::new(Side::Source, Kind::HistoryLost, text)
    }

    fn primary(&self) -> SelectionCriteria {
        tail::primary(self.options.mode)
    }
}

impl OplogSource {
    /// Starts reading at the first entry that is not older than `time`, which must lie in the oplog; `secs` up to 1 means
    /// the oldest entry there is.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub(super) async fn open_from(&mut self, time: OpTime) -> Result<()> {
        self.open_at(if time.secs > 1 { Start::Date(time) } else { Start::Oldest }).await
    }

    async fn open_at(&mut self, start: Start) -> Result<()> {
        self.tail.put(None);
        self.ready = None;
        self.member = tail::pick_member(&self.client, self.options.mode).await?;
        let cursor = match self.find(start).await {
            Ok(cursor) => cursor,
            Err(fault) => return Err(self.with_window(fault).await),
        };
        self.tail.put(Some(cursor));
        self.expected = match start {
            Start::Entry(time) => Some(time),
            Start::Oldest | Start::Date(_) => None,
        };
        let first = self.read().await?;
        self.prove(&first).await?;
        if let Some(expected) = self.expected {
            self.prove_not_ahead(expected).await?;
        }
        if let Start::Date(date) = start {
            self.prove_date(date).await?;
        }
        self.ready = Some(first);
        Ok(())
    }
}

#[async_trait]
impl Source for OplogSource {
    async fn open(&mut self, from: &Position) -> Result<()> {
        self.open_at(Start::of(from)).await?;
        match from {
            Position::Stream { time, .. } => self.prove_not_ahead(*time).await,
            Position::Oplog(_) | Position::Shards(_) => Ok(()),
        }
    }

    async fn next(&mut self) -> Result<RawBatch> {
        if let Some(first) = self.ready.take() {
            return Ok(first);
        }
        let batch = self.read().await?;
        self.prove(&batch).await?;
        Ok(batch)
    }

    async fn newest(&self) -> Result<OpTime> {
        Ok(topology::last_write(Side::Source, &self.client, &self.primary()).await?.majority)
    }

    async fn written(&self) -> Result<OpTime> {
        Ok(topology::last_write(Side::Source, &self.client, &self.primary()).await?.newest)
    }

    async fn entry_at(&mut self, _stream: u32, time: OpTime) -> Result<Bytes> {
        const READ_ONE: &str = "read one entry of the oplog";
        let ts = time.timestamp();
        // Both bounds, so that the server seeks to the place and does not look further when nothing is there.
        let command: RawDocumentBuf = rawdoc! {
            "find": "oplog.rs",
            "filter": { "ts": { "$gte": ts, "$lte": ts } },
            "limit": 1,
            "singleBatch": true,
            "readConcern": { "level": "majority" },
        };
        let local = self.client.database("local");
        let asked = local.run_raw_cursor_command(command).selection_criteria(self.member.clone()).batch();
        let cursor = answered(Side::Source, READ_ONE, asked).await?;
        let cursor = cursor.map_err(|e| classify::error(Side::Source, READ_ONE, e))?;
        let mut found = None;
        reply::drain(Side::Source, READ_ONE, cursor, |entry| {
            found = Some(entry);
            Ok(())
        })
        .await?;
        match found {
            Some(entry) if is_entry(reply::entry_time(&entry)?, time) => Ok(entry),
            _ => {
                let window = self.window().await?;
                let text = format!("the oplog does not hold the entry at {}; {}", dated(time), window_text(&window));
                Err(Error::new(Side::Source, Kind::HistoryLost, text))
            }
        }
    }

    async fn window(&self) -> Result<Window> {
        let newest = topology::last_write(Side::Source, &self.client, &self.member).await?.majority;
        Ok(Window { oldest: oldest(&self.client, &self.member).await?, newest })
    }
}

fn is_entry(found: OpTime, expected: OpTime) -> bool {
    found.ts() == expected.ts() && (expected.term < 0 || found.term == expected.term)
}

/// How often the oldest entry of an oplog may be removed while it is read.
const OLDEST_TRIES: u32 = 10;

/// The oldest entry of one member's oplog.
pub(super) async fn oldest(client: &Client, member: &SelectionCriteria) -> Result<OpTime> {
    let command = rawdoc! {
        "find": "oplog.rs",
        "sort": { "$natural": 1 },
        "limit": 1,
        "singleBatch": true,
        "projection": { "ts": 1, "t": 1 },
    };
    let mut tries = OLDEST_TRIES;
    let oldest = loop {
        match first_time(client, member, command.clone()).await {
            // It was removed while it was read.
            Err(fault) if fault.kind() == Kind::HistoryLost && tries > 0 => tries -= 1,
            found => break found?,
        }
    };
    oldest.ok_or_else(|| Error::new(Side::Source, Kind::Unsupported, "the server has an empty oplog"))
}

async fn first_time(client: &Client, member: &SelectionCriteria, command: RawDocumentBuf) -> Result<Option<OpTime>> {
    let local = client.database("local");
    let asked = local.run_raw_cursor_command(command).selection_criteria(member.clone()).batch();
    let cursor = answered(Side::Source, READ, asked).await?;
    let cursor = cursor.map_err(|e| classify::error(Side::Source, READ, e))?;
    let mut found = None;
    reply::drain(Side::Source, READ, cursor, |entry| {
        found = Some(reply::entry_time(&entry)?);
        Ok(())
    })
    .await?;
    Ok(found)
}

/// The oplog's window as it stands in messages.
#[must_use]
pub fn window_text(window: &Window) -> String {
    format!("the oplog holds {} to {}", dated(window.oldest), dated(window.newest))
}

pub(super) fn dated(time: OpTime) -> String {
    let date = jiff::Timestamp::from_second(i64::from(time.secs)).map(|date| date.to_string()).unwrap_or_default();
    format!("{time} = {date}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_entries_are_told_apart() {
        assert_eq!(Start::of(&date_start(0)), Start::Oldest);
        assert_eq!(Start::of(&date_start(1)), Start::Oldest);
        let shake_initial = Position::Oplog(OpTime::from_ts(1));
        assert_eq!(Start::of(&shake_initial), Start::Oldest);
        let date = OpTime::new(1_700_000_000, 0, -1);
        assert_eq!(Start::of(&date_start(1_700_000_000)), Start::Date(date));
        let entry = OpTime::new(1_700_000_000, 2, -1);
        assert_eq!(Start::of(&Position::Oplog(entry)), Start::Entry(entry));
    }

    #[test]
    fn an_unknown_term_is_not_compared() {
        let found = OpTime::new(7, 1, 3);
        assert!(is_entry(found, OpTime::new(7, 1, -1)) && is_entry(found, OpTime::new(7, 1, 3)));
        assert!(!is_entry(found, OpTime::new(7, 1, 2)) && !is_entry(found, OpTime::new(7, 2, 3)));
    }

    #[test]
    fn the_window_is_shown_with_dates() {
        let window = Window { oldest: OpTime::new(0, 1, 1), newest: OpTime::new(86_400, 1, 1) };
        let text = window_text(&window);
        assert!(text.contains("1970-01-01T00:00:00Z") && text.contains("1970-01-02T00:00:00Z"), "{text}");
    }
}
