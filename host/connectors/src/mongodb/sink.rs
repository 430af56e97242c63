//! Writes to a MongoDB target: one flush in, one outcome for each statement out.
//!
//! The writes of a flush have distinct keys, so they travel as unordered commands, one a verb and namespace, side by
//! side; only capped collections and collections with a collation keep their order. What a statement becomes is
//! decided in [`plan`], what an error of it means in [`cure`], and [`mend`] carries that out. The sink never retries
//! a flush whose outcome is unknown: it says so, and the pipeline replays in overlap (correctness.md §7).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use bson::doc;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use mongodb::Client;
use oplogue_engine::checkpoint::{CheckpointStore, ViewPair};
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::{Change, Namespace, NamespaceId, Namespaces, OpTime, Origin};
use oplogue_engine::plugin::{EmptyChain, Passage, PluginChain};
use oplogue_engine::sink::{DdlOutcome, Durability, FlushReport, Refusal, Sink, WholeReport, Write, newest_write};
use tokio::sync::OnceCell;

use super::command::{Concern, DUPLICATE_KEY, Manner};
use super::conflict::ConflictLog;
pub use super::ddl::{Arrival, DdlRefused, DroppedIndexes};
use super::ddl::{Postponed, Unplaced};
use super::identity::{Catalogue, Whereabouts};
use super::mark::{Mark, Marks};
use super::originals::Originals;
use super::patch::Dialect;
use super::patience::answered;
use super::primary::Primary;
use super::privileges::{Need, Privileges};
use super::{classify, topology};

mod adopted;
mod capped;
mod counters;
pub(super) mod cure;
mod future;
mod judge;
mod lose;
mod mend;
mod namespace;
mod obstacle;
mod original;
pub(super) mod plan;
mod predecessor;
pub(super) mod sharded;
mod together;
mod whole;

pub use adopted::{Move, Moved};
pub use counters::{Counters, SinkCounts};
use future::FromFuture;
pub use judge::Rules;
pub(super) use lose::Loss;
pub(super) use mend::shown_id;
pub(super) use obstacle::Obstacle;
pub(super) use original::Original;
use predecessor::Predecessors;
use together::Together;

/// Namespaces of one flush that are written at the same time.
const NAMESPACES_AT_ONCE: usize = 8;

/// How long after one shard's drop of a collection another shard may log writes to it: the drop goes from shard to shard.
const DROP_SECS: u32 = 600;

/// What to do with an update, outside of overlap, whose document the target does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MissingDocument {
    /// Count it and go on.
    Ignore,
    /// Read the whole document from the source and write that.
    #[default]
    Refetch,
    /// Let the update create the document out of its key and what it sets.
    Upsert,
    /// Stop the run.
    Stop,
}

/// How the sink behaves; the settings of `incr_sync.executor.*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SinkOptions {
    /// An insert, outside of overlap, of a document that stands there already: replace it (true), or keep the
    /// target's and count a conflict (false). In overlap it is always replaced.
    pub insert_on_dup_update: bool,
    pub missing_document: MissingDocument,
    /// DDL is not replayed (`filter.ddl_enable = false`): a source collection that was made anew under an old name
    /// goes on under that name.
    pub ddl_ignored: bool,
    /// Write with majority concern. Durability does not depend on it.
    pub majority: bool,
    /// What is replayed in overlap is older than a copy: the stage of catching up. A write of a collection that the
    /// copy never saw is then one of a predecessor, and must not reach what the copy put under its name.
    pub after_copy: bool,
    /// Reading began before this time, at which a copy was begun that has everything older: a collection that the copy did
    /// not meet was gone by then.
    pub copied_at: Option<OpTime>,
    pub ddl_refused: DdlRefused,
    /// An update that may change a document's value of the target's shard key: write the whole document of the source
    /// at its new place, after a delete at its old one (true), or let the server judge and call it a conflict (false).
    pub immutable_shard_key_fallback: bool,
}

/// Writes to one MongoDB target. Shared by all lanes.
pub struct MongoSink {
    pub(super) client: Client,
    pub(super) source: Option<Originals>,
    pub(super) namespaces: Arc<Namespaces>,
    pub(super) options: SinkOptions,
    pub(super) catalogue: Catalogue,
    pub(super) counters: Counters,
    pub(super) postponed: tokio::sync::Mutex<Vec<Postponed>>,
    pub(super) unplaced: tokio::sync::Mutex<Vec<Unplaced>>,
    pub(super) dropped_indexes: tokio::sync::Mutex<DroppedIndexes>,
    future: FromFuture,
    pub(super) predecessors: Predecessors,
    together: Together,
    /// Marks every write, where other collectors read what is written here.
    marks: Option<Marks>,
    /// Where changes are recorded that the target refuses for good.
    conflicts: Option<ConflictLog>,
    /// What else may become of them.
    pub(super) rules: Rules,
    /// What documents pass that are read whole from the source.
    passage: Passage,
    /// The term of the primary that led the target when its durability was first asked for; 0 = not yet.
    leader: AtomicI64,
    /// When it was last asked for whether that one still leads, and it did.
    proved: std::sync::Mutex<Option<Instant>>,
    ready: OnceCell<(Target, Primary)>,
}

/// What was found out about the target at the first use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    pub(super) bypass_validation: bool,
    /// A `mongos` reports no majority time of its own, so it is always written with majority concern.
    pub(super) is_mongos: bool,
    /// Majority concern means something.
    pub(super) is_replicated: bool,
    /// Which expressions it knows.
    pub(super) dialect: Dialect,
    /// It deletes from capped collections at a user's word: from 5.0.7 on (5.0.4 answers with error 20).
    pub(super) empties_capped: bool,
}

impl Target {
    /// The time that the durability of a write depends on. What went through a `mongos` is on the majority of its shard
    /// when it is answered, and the times and terms of different shards are not to be compared.
    fn position(&self, operation_time: Option<OpTime>) -> Option<OpTime> {
        operation_time.filter(|_| !self.is_mongos)
    }
}

impl MongoSink {
    /// A sink over `client`. `source` is read when an update must be replaced by the whole document.
    ///
    /// Make a new one after a fail-over of the target: what it knows of the catalogue may have been rolled back.
    #[must_use]
    pub fn new(
        client: Client,
        source: Option<Client>,
        store: Arc<dyn CheckpointStore>,
        namespaces: Arc<Namespaces>,
        options: SinkOptions,
    ) -> Self {
        Self {
            catalogue: Catalogue::new(client.clone(), store),
            client,
            source: source.map(Originals::ReplicaSet),
            namespaces,
            options,
            counters: Counters::default(),
            postponed: tokio::sync::Mutex::default(),
            unplaced: tokio::sync::Mutex::default(),
            dropped_indexes: tokio::sync::Mutex::default(),
            future: FromFuture::default(),
            predecessors: Predecessors::default(),
            together: Together::default(),
            marks: None,
            conflicts: None,
            rules: Rules::default(),
            passage: Passage::new(Arc::new(EmptyChain)),
            leader: AtomicI64::new(0),
            proved: std::sync::Mutex::default(),
            ready: OnceCell::new(),
        }
    }

    /// Reads the source's own documents and catalogue here instead of from one client: a source of several shards.
    #[must_use]
    pub fn reading(mut self, originals: Originals) -> Self {
        self.source = Some(originals);
        self
    }

    /// Takes what it reads whole from the source through `chain`, as the stream and the copy do.
    #[must_use]
    pub fn passing(mut self, chain: Arc<dyn PluginChain>) -> Self {
        self.passage = Passage::new(chain);
        self
    }

    /// Counts what it meets in these series too.
    #[must_use]
    pub fn measured_by(mut self, series: oplogue_engine::metrics::Metrics) -> Self {
        self.counters.series = Some(series);
        self
    }

    /// Marks what it writes. Nothing else may number writes through the sink's client.
    #[must_use]
    pub fn marked_by(mut self, marks: Option<Marks>) -> Self {
        self.marks = marks;
        self
    }

    /// Has a place for what the target refuses for good: it is recorded there, unless `ruled_by` says otherwise, instead
    /// of stopping the run.
    #[must_use]
    pub fn recording_to(mut self, conflicts: Option<ConflictLog>) -> Self {
        self.conflicts = conflicts;
        self
    }

    /// Lets somebody rule over what the target refuses for good. A plugin needs a place for records.
    #[must_use]
    pub fn ruled_by(mut self, rules: Rules) -> Self {
        self.rules = rules;
        self
    }

    /// Reads the identity pairs and the target's catalogue, and asks what the user may do. Done at the first write
    /// otherwise.
    ///
    /// # Errors
    /// `Unavailable`, `Unauthorized`.
    pub async fn load(&self) -> Result<()> {
        self.target().await.map(|_| ())
    }

    /// The views that the target has. Known once the sink is loaded.
    #[must_use]
    pub fn views(&self) -> Vec<Namespace> {
        self.catalogue.views()
    }

    /// Which views of the source they are, as far as that is known.
    #[must_use]
    pub fn view_pairs(&self) -> Vec<ViewPair> {
        self.catalogue.view_pairs()
    }

    /// Remembers, beyond this run, which views of the source they are, as far as they stand on the target.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn adopt_views(&self, pairs: Vec<ViewPair>) -> Result<()> {
        self.catalogue.adopt_views(pairs).await
    }

    /// What the sink met so far.
    #[must_use]
    pub fn counts(&self) -> SinkCounts {
        self.counters.read()
    }

    /// The namespace that a write goes to; `None` when it belongs to a collection that a later DDL dropped already.
    /// In overlap the collection counts and not its name. Where DDL is not replayed, names are all that counts.
    pub(super) fn destination(&self, write: &Write) -> Option<NamespaceId> {
        let Some(source) = write.belongs_to().filter(|_| !self.options.ddl_ignored) else {
            return Some(write.target);
        };
        if !write.overlap {
            let gone = self.catalogue.is_retired(source);
            if gone {
                counters::count(&self.counters.superseded, 1);
            }
            return (!gone).then_some(write.target);
        }
        match self.catalogue.whereabouts(&self.namespaces.name(write.target), source, write.time) {
            Whereabouts::Here => Some(write.target),
            Whereabouts::At(name) => Some(self.namespaces.intern(name.as_str())),
            Whereabouts::Gone => {
                counters::count(&self.counters.superseded, 1);
                None
            }
        }
    }

    fn is_of_cluster(&self) -> bool {
        matches!(self.source, Some(Originals::Shards { .. }))
    }

    /// Notes that the source's catalogue was read at `time`, which was asked for before the reading: DDL before it is
    /// in what was read. Called once, before a full copy prepares its collections.
    ///
    /// # Errors
    /// Those of the target and of the store.
    pub async fn catalogue_read_at(&self, time: OpTime) -> Result<()> {
        self.target().await?;
        self.catalogue.advance_mark(time).await
    }

    /// What the target is. Asked before everything that is written, and so the place to stop when the lease is lost.
    pub(super) async fn target(&self) -> Result<Target> {
        self.catalogue.still_held().await?;
        self.ready.get_or_try_init(|| self.inspect()).await.map(|(target, _)| *target)
    }

    /// The primary that everything is written to. `None` before the target was looked at.
    pub(super) fn primary(&self) -> Option<&Primary> {
        self.ready.get().map(|(_, primary)| primary)
    }

    async fn inspect(&self) -> Result<(Target, Primary)> {
        let doing = "ask the target what it is";
        let admin = self.client.database("admin");
        let hello = answered(Side::Sink, doing, admin.run_command(doc! { "hello": 1 })).await?;
        let hello = hello.map_err(|e| classify::error(Side::Sink, doing, e))?;
        let version = hello.get_i32("maxWireVersion").unwrap_or_default();
        let dialect = Dialect::of_wire_version(version).ok_or_else(|| {
            let text = "the target is older than MongoDB 4.4, which lacks what exact updates need";
            Error::new(Side::Sink, Kind::Unsupported, text)
        })?;
        let build = answered(Side::Sink, doing, admin.run_command(doc! { "buildInfo": 1 })).await?;
        let build = build.map_err(|e| classify::error(Side::Sink, doing, e))?;
        let is_mongos = hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid");
        if self.marks.is_some() && hello.get_str("setName").is_err() && !is_mongos {
            let text = "the target is a standalone server, which logs nothing that could carry a mark: loop prevention \
                        (incr_sync.loop_prevention.origin) needs a replica set";
            return Err(Error::new(Side::Sink, Kind::Unsupported, text));
        }
        let criteria = mongodb::options::SelectionCriteria::ReadPreference(mongodb::options::ReadPreference::Primary);
        let privileges = Privileges::ask(Side::Sink, &self.client, &criteria).await?;
        self.catalogue.load(is_mongos).await?;
        let target = Target {
            bypass_validation: privileges.allows(&bypass()),
            is_mongos,
            is_replicated: hello.get_str("setName").is_ok(),
            dialect,
            empties_capped: topology::version(&build) >= [5, 0, 7],
        };
        Ok((target, Primary::of(&hello)?))
    }

    pub(super) async fn is_empty(&self, name: &Namespace) -> Result<bool> {
        let collection = self.client.database(name.database()).collection::<bson::RawDocumentBuf>(name.collection());
        let found = answered(Side::Sink, &format!("look into {name}"), collection.find_one(doc! {})).await?;
        found.map(|found| found.is_none()).map_err(|e| classify::error(Side::Sink, &format!("look into {name}"), e))
    }

    pub(super) fn concern(&self, target: Target) -> Concern {
        Concern::of(self.options.majority || target.is_mongos)
    }

    /// How writes are sent whose changes came to the source from `origin`.
    pub(super) fn manner(&self, target: Target, origin: Option<Origin>) -> Manner<'_> {
        let marks = self.marks.as_ref();
        Manner {
            primary: self.primary(),
            concern: self.concern(target),
            bypass_validation: target.bypass_validation,
            mark: marks.map(|marks| Mark { marks, origin: origin.unwrap_or(marks.origin()) }),
        }
    }
}

/// The privilege to write documents that the target's validators refuse.
fn bypass() -> Need {
    Need {
        database: String::new(),
        collection: String::new(),
        action: "bypassDocumentValidation",
        purpose: "writing documents that a validator refuses (role `dbAdminAnyDatabase`)".to_owned(),
    }
}

#[async_trait]
impl Sink for MongoSink {
    async fn write(&self, writes: &[Write]) -> Result<FlushReport> {
        let target = self.target().await?;
        let computed: Vec<(usize, Write)> =
            writes.iter().enumerate().filter_map(|(index, write)| Some((index, plan::computed(write)?))).collect();
        let mut known = computed.iter().peekable();
        let mut groups: BTreeMap<NamespaceId, Vec<(usize, &Write)>> = BTreeMap::new();
        for (index, write) in writes.iter().enumerate() {
            let write = known.next_if(|(at, _)| *at == index).map_or(write, |(_, computed)| computed);
            if let Some(destination) = self.destination(write) {
                groups.entry(destination).or_default().push((index, write));
            }
        }
        let mut prepared = Vec::with_capacity(groups.len());
        for (namespace, group) in &groups {
            prepared.push(self.prepare(*namespace, group, target).await?);
        }
        let sent = self.write_together(&prepared, target).await?;
        // All of them are awaited even when one fails, so that nothing is in flight when the pipeline rewinds but what a
        // deposed primary was sent.
        let flushes = prepared.iter().zip(sent).map(|(part, sent)| self.write_prepared(part, sent).boxed());
        let flushes: Vec<_> = flushes.collect();
        let parts: Vec<Result<FlushReport>> =
            stream::iter(flushes).buffer_unordered(NAMESPACES_AT_ONCE).collect().await;
        let mut report = FlushReport::default();
        for part in parts {
            merge(&mut report, part?);
        }
        report.refused.sort_by_key(|(index, _)| *index);
        Ok(FlushReport { operation_time: target.position(report.operation_time), ..report })
    }

    async fn ddl(&self, change: &Change, overlap: bool) -> Result<DdlOutcome> {
        let outcome = self.execute_ddl(change, overlap).await?;
        let target = self.target().await?;
        Ok(match outcome {
            DdlOutcome::Done(time) => DdlOutcome::Done(target.position(time)),
            DdlOutcome::Already | DdlOutcome::Refused | DdlOutcome::Postponed => outcome,
        })
    }

    async fn stored(&self, position: OpTime) -> Result<()> {
        // A shard that drops a collection later than another one takes writes until then.
        let margin = if self.is_of_cluster() { DROP_SECS } else { 0 };
        let position = OpTime { secs: position.secs.saturating_sub(margin), ..position };
        self.catalogue.prune(position).await
    }

    async fn durability(&self) -> Result<Durability> {
        let doing = "ask the target for its majority time";
        let admin = self.client.database("admin");
        let hello = answered(Side::Sink, doing, admin.run_command(doc! { "hello": 1 })).await?;
        let hello = hello.map_err(|e| classify::error(Side::Sink, doing, e))?;
        let write = hello.get_document("lastWrite").ok();
        let time = |name| write.and_then(|write| topology::op_time(write.get_document(name).ok()?));
        // A standalone server has journalled what it acknowledged and a mongos was written with majority concern:
        // neither reports a time, and nothing of theirs can be rolled back.
        let settled = OpTime::new(u32::MAX, u32::MAX, 0);
        Ok(match (time("majorityOpTime"), time("opTime")) {
            (Some(majority), Some(newest)) => {
                let _known = self.leader.compare_exchange(0, newest.term, Ordering::Relaxed, Ordering::Relaxed);
                Durability { majority, newest, term: newest.term }
            }
            _ => Durability { majority: settled, newest: OpTime::default(), term: 0 },
        })
    }

    async fn write_whole(&self, waves: &[Vec<Write>]) -> Result<WholeReport> {
        let mut whole = self.write_waves(waves).await?;
        whole.report.operation_time = self.target().await?.position(whole.report.operation_time);
        Ok(whole)
    }

    async fn settle(&self, writes: &[Write], last_word: bool) -> Result<FlushReport> {
        let report = self.settle_group(writes, last_word).await?;
        Ok(FlushReport { operation_time: self.target().await?.position(report.operation_time), ..report })
    }
}

fn merge(into: &mut FlushReport, part: FlushReport) {
    into.refused.extend(part.refused);
    into.operation_time = newest_write(into.operation_time, part.operation_time);
}

/// Whether a statement was refused because its own `_id` is taken.
pub(super) fn is_own_id(error: &super::command::StatementError) -> bool {
    error.code == DUPLICATE_KEY && cure::is_id(error)
}

/// Whether a whole document was refused for a name in it that begins with `$`.
pub(super) fn is_dollar_name(error: &super::command::StatementError) -> bool {
    error.code == cure::DOLLAR_PREFIXED
}

/// Whether a statement was refused because of a unique index other than the `_id`'s.
pub(super) fn is_unique(error: &super::command::StatementError) -> bool {
    error.code == DUPLICATE_KEY && error.key_pattern.is_some() && !cure::is_id(error)
}

/// A refusal of the engine, out of a statement's error.
pub(super) fn refusal(error: &super::command::StatementError) -> Refusal {
    match &error.key_pattern {
        Some(pattern) if error.code == DUPLICATE_KEY => {
            Refusal::UniqueKey { index: index_name(pattern), message: error.message.clone() }
        }
        _ => Refusal::Refused { code: error.code, message: error.message.clone() },
    }
}

/// The server's default name for an index over `pattern`, which is how people know it.
fn index_name(pattern: &bson::Document) -> String {
    let parts: Vec<String> = pattern.iter().map(|(field, order)| format!("{field}_{order}").replace('"', "")).collect();
    parts.join("_")
}
