//! The oplogs of all shards as one [`Source`], ordered by cluster time.
//!
//! One tailing cursor a shard; what they deliver is put in order by [`super::order`]. A document may live on one shard
//! now and on another a moment later, so entries of different shards must not pass each other, and an entry waits until
//! every other shard has delivered one that is not older. A quiet shard delivers nothing by itself (its own no-op comes
//! every ten seconds), so it is nudged: a read after the waiting entry's cluster time makes a shard's primary write a
//! no-op behind that time (`noop write for afterClusterTime read concern`, MongoDB 4.4 to 6.0), which its cursor then
//! delivers. That is a proof, not a guess: the frontier of a shard is what its cursor has delivered, nothing else. Needs
//! no other privilege than reading.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bson::{Document, doc};
use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt as _, TryStreamExt as _};
use mongodb::Client;
use mongodb::options::{ReadPreference, SelectionCriteria};
use oplogue_engine::budget::{Budget, Permit};
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::metrics::Status;
use oplogue_engine::model::{OpTime, Position, RawBatch, ShardPosition, ShardPositions};
use oplogue_engine::source::{Source, Window};
use tokio::time::Instant;

use super::moment::Moment;
use super::order::{Blocked, Order};
use super::routing::Routing;
use crate::mongodb::classify;
use crate::mongodb::oplog::{OplogOptions, OplogSource};
use crate::mongodb::patience::answered;

/// How long entries wait for a quiet shard before it is nudged. Each nudge is an entry of some hundred bytes in its
/// oplog, and the delay of everything that happens elsewhere.
const NUDGE_AFTER: Duration = Duration::from_millis(50);

/// How far before a first start is read: the first third only to know what is open ([`oplogue_engine::decode`]). A
/// transaction lives for `transactionLifetimeLimitSeconds`, 60 by default, until it is prepared, and an instant from there
/// to its commit.
const LOOK_BACK_SECS: u32 = 90;

/// A nudge that takes longer than that is given up; the next one may find another primary.
const NUDGE_WITHIN: Duration = Duration::from_secs(5);

/// One shard, as it is read.
#[derive(Debug, Clone)]
pub struct ShardClient {
    /// Name of its replica set.
    pub name: Arc<str>,
    /// The shard's own.
    pub client: Client,
}

impl ShardClient {
    /// The namespaces of which this shard still has documents of chunks that have moved away, as it writes them down
    /// until it has deleted them. `None` when the user may not read that.
    ///
    /// # Errors
    /// Those of the shard.
    pub async fn leftovers(&self) -> Result<Option<Vec<String>>> {
        let doing = format!("look into config.rangeDeletions of {}", self.name);
        let failed = |e| classify::error(Side::Source, &doing, e);
        let ranges = self.client.database("config").collection::<Document>("rangeDeletions");
        let primary = SelectionCriteria::ReadPreference(ReadPreference::Primary);
        let read = async { ranges.find(doc! {}).selection_criteria(primary).await?.try_collect().await };
        let found: Vec<Document> = match answered(Side::Source, &doing, read).await?.map_err(failed) {
            Ok(found) => found,
            Err(fault) if fault.kind() == Kind::Unauthorized => return Ok(None),
            Err(fault) => return Err(fault),
        };
        Ok(Some(found.iter().filter_map(|range| range.get_str("nss").ok().map(str::to_owned)).collect()))
    }
}

struct Shard {
    name: Arc<str>,
    client: Client,
    oplog: OplogSource,
}

/// The oplogs of all shards in one order.
pub struct MergedSource {
    shards: Vec<Shard>,
    order: Order,
    /// Since when entries wait for a quiet shard.
    blocked_since: Option<Instant>,
    /// A database that the user may read: nudges are reads of a collection that need not be there.
    database: String,
    routing: Routing,
    status: Status,
}

impl MergedSource {
    /// A source that is not open yet. Each shard gets its share of `budget`; `database` is one that the user may read.
    #[must_use]
    pub fn new(
        shards: &[ShardClient],
        routing: Routing,
        options: &OplogOptions,
        budget: &Budget,
        database: &str,
        status: Status,
    ) -> Self {
        let parts = budget.parts(shards.len());
        let shards: Vec<Shard> = shards
            .iter()
            .zip(parts)
            .map(|(shard, budget)| Shard {
                name: Arc::clone(&shard.name),
                client: shard.client.clone(),
                oplog: OplogSource::new(shard.client.clone(), options.clone(), budget),
            })
            .collect();
        let order = Order::new(shards.len());
        Self { shards, order, blocked_since: None, database: database.to_owned(), routing, status }
    }

    /// A cut at `time` that is read from some time before it, as far as all oplogs reach back, so that transactions that
    /// were open then are seen from their beginning.
    async fn first_start(&self, time: OpTime) -> Result<Position> {
        let windows = try_join_all(self.shards.iter().map(|shard| shard.oplog.window())).await?;
        let oldest = windows.iter().map(|window| window.oldest.ts()).max().unwrap_or_default();
        let wanted = OpTime::new(time.secs.saturating_sub(LOOK_BACK_SECS), 0, -1);
        // A time that is no longer there stays as it is, and opening says so.
        let from = if time.secs <= 1 || oldest > time.ts() { time.ts() } else { wanted.ts().max(oldest) };
        let at = OpTime::from_ts(from);
        let shards =
            self.shards.iter().map(|shard| ShardPosition { name: Arc::clone(&shard.name), at, open_since: None });
        let shards = shards.collect();
        Ok(Position::Shards(Arc::new(ShardPositions { time, shards })))
    }

    /// Reads from all streams whose next reply is wanted; the first reply that comes. `None` when it is time to nudge.
    async fn read(&mut self, nudge_at: Option<Instant>) -> Result<Option<(usize, RawBatch)>> {
        let order = &self.order;
        let wanted = self.shards.iter_mut().enumerate().filter(|(n, _)| order.wants(*n));
        // A dropped read loses nothing: the driver's cursor keeps its request.
        let mut reads: FuturesUnordered<_> = wanted
            .map(|(n, shard)| async move {
                let reply = shard.oplog.next().await;
                reply.map(|reply| (n, reply)).map_err(|e| e.context(format!("shard {}", shard.name)))
            })
            .collect();
        let nudge = async {
            match nudge_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(reply) = reads.next() => reply.map(Some),
            () = nudge => Ok(None),
        }
    }

    /// Makes quiet shards pass the newest entry that waits. A failure is no fault: their own no-op will come.
    async fn nudge(&self, blocked: &Blocked) {
        let (stream, ts) = blocked.newest;
        let nudged = async {
            let Some(shard) = self.shards.get(stream) else { return Ok(()) };
            let moment = Moment::of(&shard.client).await?.not_before(OpTime::from_ts(ts));
            let quiet = blocked.by.iter().filter_map(|n| self.shards.get(*n));
            let passed = quiet.map(|quiet| moment.pass_on(&quiet.client, &self.database, "local"));
            join_all(passed).await.into_iter().collect::<Result<()>>()
        };
        match tokio::time::timeout(NUDGE_WITHIN, nudged).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::info!(%error, "a quiet shard could not be asked for its time"),
            Err(_) => tracing::info!("a quiet shard did not answer when it was asked for its time"),
        }
    }

    async fn newest_of(&self, shard: &Shard) -> Result<OpTime> {
        let newest = shard.oplog.newest().await.map_err(|e| e.context(format!("shard {}", shard.name)))?;
        self.status.shards().set_newest(&shard.name, newest);
        Ok(newest)
    }
}

#[async_trait]
impl Source for MergedSource {
    async fn open(&mut self, from: &Position) -> Result<()> {
        let position = self.resolve(from).await?;
        self.order = Order::new(self.shards.len());
        self.blocked_since = None;
        let opened = self.shards.iter_mut().zip(position.shards()).map(|(shard, position)| async {
            let at = position.open_since.unwrap_or(position.at);
            let opened = match at.term {
                ..0 => shard.oplog.open_from(at).await,
                _ => shard.oplog.open(&Position::Oplog(at)).await,
            };
            opened.map_err(|e| e.context(format!("shard {}", shard.name)))
        });
        try_join_all(opened).await.map(|_| ())
    }

    async fn next(&mut self) -> Result<RawBatch> {
        loop {
            if let Some(batch) = self.order.take()? {
                self.blocked_since = None;
                return Ok(batch);
            }
            let blocked = self.order.blocked();
            let since = blocked.as_ref().map(|_| *self.blocked_since.get_or_insert_with(Instant::now));
            match (self.read(since.map(|since| since + NUDGE_AFTER)).await?, blocked) {
                (Some((stream, reply)), _) => {
                    let is_heartbeat = reply.entries.len() <= EMPTY_ARRAY_BYTES;
                    self.order.push(stream, reply)?;
                    if is_heartbeat {
                        return Ok(heartbeat());
                    }
                }
                (None, Some(blocked)) => {
                    self.nudge(&blocked).await;
                    self.blocked_since = Some(Instant::now());
                }
                (None, None) => {}
            }
        }
    }

    /// Fails when a shard joined or left since the start: its oplog is not read, or will not be long.
    async fn newest(&self) -> Result<OpTime> {
        match self.routing.check_shards().await {
            Err(error) if error.kind() == Kind::Misconfigured => return Err(error),
            Err(error) => tracing::info!(%error, "the config servers do not say which shards there are"),
            Ok(()) => {}
        }
        let newest = try_join_all(self.shards.iter().map(|shard| self.newest_of(shard))).await?;
        newest
            .into_iter()
            .max_by_key(|time| time.ts())
            .ok_or_else(|| Error::new(Side::Config, Kind::Misconfigured, "a sharded source needs a shard"))
    }

    async fn written(&self) -> Result<OpTime> {
        let written = try_join_all(self.shards.iter().map(|shard| shard.oplog.written())).await?;
        written
            .into_iter()
            .max_by_key(|time| time.ts())
            .ok_or_else(|| Error::new(Side::Config, Kind::Misconfigured, "a sharded source needs a shard"))
    }

    /// The cut of this moment: everything older is majority-committed on every shard.
    async fn now(&self) -> Result<Position> {
        let times = try_join_all(self.shards.iter().map(|shard| Moment::of(&shard.client))).await?;
        let Some(moment) = times.into_iter().max_by_key(|moment| moment.time.ts()) else {
            return Err(Error::new(Side::Config, Kind::Misconfigured, "a sharded source needs a shard"));
        };
        let passed = self.shards.iter().map(|shard| moment.pass_on(&shard.client, &self.database, "majority"));
        try_join_all(passed).await?;
        self.first_start(moment.time).await
    }

    /// The same place with a position for each shard. A stored date, and a checkpoint of MongoShake, is one time for all.
    async fn resolve(&self, position: &Position) -> Result<Position> {
        let Position::Shards(cut) = position else {
            return self.first_start(position.time()).await;
        };
        let known = |name: &str| cut.shards.iter().find(|stored| &*stored.name == name);
        if let Some(gone) = cut.shards.iter().find(|s| !self.shards.iter().any(|shard| shard.name == s.name)) {
            let text = format!("the checkpoint holds the shard {}, which mongo_urls does not", gone.name);
            return Err(other_shards(&text));
        }
        let shards = self.shards.iter().map(|shard| {
            known(&shard.name).cloned().ok_or_else(|| {
                other_shards(&format!("mongo_urls names the shard {}, which the checkpoint does not hold", shard.name))
            })
        });
        Ok(Position::Shards(Arc::new(ShardPositions { time: cut.time, shards: shards.collect::<Result<_>>()? })))
    }

    async fn entry_at(&mut self, stream: u32, time: OpTime) -> Result<Bytes> {
        let shard = self.shards.get_mut(stream as usize);
        let missing = || Error::new(Side::Internal, Kind::Bug, format!("no shard has number {stream}"));
        shard.ok_or_else(missing)?.oplog.entry_at(0, time).await
    }

    /// The times that all shards hold.
    async fn window(&self) -> Result<Window> {
        let windows = try_join_all(self.shards.iter().map(|shard| shard.oplog.window())).await?;
        let oldest = windows.iter().map(|window| window.oldest).max().unwrap_or_default();
        let newest = windows.iter().map(|window| window.newest).max().unwrap_or_default();
        Ok(Window { oldest, newest })
    }
}

/// Length and end mark.
const EMPTY_ARRAY_BYTES: usize = 5;

fn heartbeat() -> RawBatch {
    let entries = bytes::Bytes::from_static(&[5, 0, 0, 0, 0]);
    RawBatch { entries, reached: None, runs: Vec::new(), permit: Permit::none() }
}

fn other_shards(what: &str) -> Error {
    let text = format!(
        "{what}; a shard that joined or left may have taken documents along that no oplog shows: copy again after \
         `oplogue checkpoint reset`, or, when the shard was empty, say `oplogue checkpoint set TIME` with a time that \
         every shard still holds and that is not later than the stored position"
    );
    Error::new(Side::Config, Kind::Misconfigured, text)
}
