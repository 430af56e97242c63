//! Reads a replica set for the full copy: what there is, how to split it, and the documents of each part.
//!
//! Reads are majority reads not older than the copy's start position, so that a lagging secondary loses nothing.
//! Splits go by bounds of the `_id` index, which cross all BSON types, and never by filters, which compare within one
//! type only. This module knows nothing of filters or targets: the planner asks for what it wants.

pub(super) mod catalogue;
mod cursor;
mod split;

use async_trait::async_trait;
use bson::{Document, RawDocumentBuf, Timestamp, cstr, doc, rawdoc};
use bytes::Bytes;
use mongodb::Client;
use mongodb::options::{ReadPreference, SelectionCriteria};
use mongodb::raw_batch_cursor::RawBatchCursor;
use oplogue_engine::budget::Budget;
use oplogue_engine::error::{Result, Side};
use oplogue_engine::model::{CollectionUuid, Namespace, OpTime, raw};
use oplogue_engine::source::{CollectionPlan, Partition, ScanOrder, SnapshotCursor, SnapshotReader};
use tokio::sync::OnceCell;

use super::client::ConnectMode;
use super::patience::answered;
use super::topology::{self, Member};
use super::{classify, reply};

/// `InvalidOptions`: what the feature compatibility version does not allow.
pub(super) const INVALID_OPTIONS: i32 = 72;

/// QueryPlanKilled: what an open cursor gets when its collection is renamed or dropped.
pub(super) const PLAN_KILLED: i32 = 175;

/// The collection of this name has another identity.
pub(super) const UUID_MISMATCH: i32 = 361;

/// How the full copy reads.
#[derive(Debug, Clone)]
pub struct SnapshotOptions {
    /// Which member is read.
    pub mode: ConnectMode,
    /// Of `admin`, `config` and `own_database`, those that the configuration lets pass (`filter.pass.special.db`). The
    /// others are not even asked for: the guide's user may not read `config`.
    pub special_databases: Vec<String>,
    /// The database of the checkpoints. It is copied only when `special_databases` names it, and then without
    /// `own_collection`: as incremental does it.
    pub own_database: String,
    /// The collection of the checkpoints.
    pub own_collection: String,
    /// Databases that are never copied: the conflicts'.
    pub skip_databases: Vec<String>,
    /// Whether indexes count that are still being built: where no DDL is replayed nothing brings them later.
    pub unfinished_indexes: bool,
    /// Size of a reply that is aimed at, in bytes. A reply of unusually large documents is larger, up to 16 MiB.
    pub reply_bytes: usize,
}

impl Default for SnapshotOptions {
    fn default() -> Self {
        Self {
            mode: ConnectMode::Primary,
            special_databases: Vec::new(),
            own_database: String::new(),
            own_collection: String::new(),
            skip_databases: Vec::new(),
            unfinished_indexes: false,
            reply_bytes: 2 * 1024 * 1024,
        }
    }
}

/// The full copy's reader of one replica set.
pub struct SnapshotSource {
    client: Client,
    options: SnapshotOptions,
    budget: Budget,
    /// Whether the server knows `collectionUUID`, once it was asked.
    by_uuid: OnceCell<bool>,
}

impl SnapshotSource {
    /// A reader whose replies take their memory from `budget`.
    #[must_use]
    pub fn new(client: Client, options: SnapshotOptions, budget: Budget) -> Self {
        Self { client, options, budget, by_uuid: OnceCell::new() }
    }

    /// Whether a read can say which collection it means (`collectionUUID` of `find`: 6.0 takes it, 5.0 refuses it).
    async fn reads_by_uuid(&self) -> Result<bool> {
        let ask = async || {
            let build = self.run("admin", "ask for the server's version", doc! { "buildInfo": 1 }).await?;
            Ok(topology::version(&build) >= [6, 0, 0])
        };
        self.by_uuid.get_or_try_init(ask).await.copied()
    }

    fn criteria(&self) -> SelectionCriteria {
        self.options.mode.criteria()
    }

    /// What the majority has now: the `afterClusterTime` of questions about the catalogue. A collection that a secondary
    /// does not know yet would be missed by the copy and by the stream behind it. None where the primary answers, or
    /// nobody but the one server can be asked.
    async fn majority_now(&self) -> Result<Option<Timestamp>> {
        if self.asks_the_leader() {
            return Ok(None);
        }
        Ok(Some(self.leader().await?.majority.timestamp()))
    }

    /// Whether every question goes to the primary, or to the only server that is to be asked.
    fn asks_the_leader(&self) -> bool {
        matches!(self.options.mode, ConnectMode::Primary | ConnectMode::Standalone)
    }

    /// How far the writes of the primary have come, or of the only server that is to be asked.
    async fn leader(&self) -> Result<Member> {
        let primary = SelectionCriteria::ReadPreference(ReadPreference::Primary);
        let criteria = if self.asks_the_leader() { self.criteria() } else { primary };
        topology::last_write(Side::Source, &self.client, &criteria).await
    }

    async fn run(&self, database: &str, doing: &str, command: Document) -> Result<Document> {
        let database = self.client.database(database);
        let asked = database.run_command(command).selection_criteria(self.criteria());
        answered(Side::Source, doing, asked).await?.map_err(|e| classify::error(Side::Source, doing, e))
    }

    async fn cursor(&self, database: &str, command: RawDocumentBuf) -> mongodb::error::Result<RawBatchCursor> {
        let database = self.client.database(database);
        database.run_raw_cursor_command(command).selection_criteria(self.criteria()).batch().await
    }
}

#[async_trait]
impl SnapshotReader for SnapshotSource {
    async fn collections(&self) -> Result<Vec<CollectionPlan>> {
        catalogue::collections(self).await
    }

    async fn partition(&self, plan: &CollectionPlan, partition_bytes: u64) -> Result<Vec<Partition>> {
        split::partition(self, plan, partition_bytes).await
    }

    async fn place(&self, plan: &CollectionPlan) -> Result<Option<Namespace>> {
        catalogue::place(self, plan).await
    }

    async fn open(&self, partition: &Partition, after: OpTime) -> Result<Box<dyn SnapshotCursor>> {
        let by_uuid = self.reads_by_uuid().await?;
        let mut after = partition.owned.as_ref().map_or(after, |owned| owned.after.max(after));
        if !self.asks_the_leader() {
            // One member said what the collection is called, and another one may be read that does not know it yet: it
            // would show nothing under that name.
            after = after.max(self.leader().await?.newest);
        }
        let read = cursor::Read {
            client: self.client.clone(),
            mode: self.options.mode,
            criteria: self.criteria(),
            partition: partition.clone(),
            uuid: partition.uuid.filter(|_| by_uuid),
            after,
            reply_bytes: self.options.reply_bytes,
        };
        Ok(Box::new(cursor::PartitionCursor::new(read, self.budget.clone())))
    }

    /// None for a view, and for a collection that was dropped meanwhile.
    async fn indexes(&self, namespace: &Namespace) -> Result<Vec<Bytes>> {
        let doing = format!("list the indexes of {namespace} (needs `listIndexes`)");
        // One that is being built is listed like the others unless it shall be marked, and may never come to stand.
        let mut command = rawdoc! { "listIndexes": namespace.collection(), "cursor": {}, "includeBuildUUIDs": !self.options.unfinished_indexes };
        if let Some(time) = self.majority_now().await? {
            command.append(cstr!("readConcern"), rawdoc! { "level": "local", "afterClusterTime": time });
        }
        let cursor = match self.cursor(namespace.database(), command).await {
            Ok(cursor) => cursor,
            // NamespaceNotFound, CommandNotSupportedOnView.
            Err(e) if matches!(classify::code(&e), Some(26 | 166)) => return Ok(Vec::new()),
            Err(e) => return Err(classify::error(Side::Source, &doing, e)),
        };
        let mut specs = Vec::new();
        reply::drain(Side::Source, &doing, cursor, |spec| {
            if raw::find(&spec, "buildUUID")?.is_none() {
                specs.push(spec);
            }
            Ok(())
        })
        .await?;
        Ok(specs)
    }
}

/// A partition that is the whole collection.
fn whole(namespace: Namespace, order: ScanOrder, uuid: Option<CollectionUuid>) -> Partition {
    Partition { namespace, min: None, max: None, order, uuid, owned: None }
}
