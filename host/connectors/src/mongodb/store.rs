//! Keeps checkpoints in a collection, in documents that an operator can read and a MongoShake user recognises.
//!
//! One document a job and replica set holds position, stage and lease; the identity pairs of collections and the pairs
//! of views stand beside it. Every write carries the lease's epoch in its filter, so a paused instance that wakes up
//! changes nothing, and the position only moves forward. Writes and reads have majority concern: what was stored survives
//! a fail-over. A document of MongoShake in the same collection is read and never written.

mod document;
mod operate;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bson::{Bson, Document, doc};
use futures_util::TryStreamExt as _;
use mongodb::error::Error as DriverError;
use mongodb::options::{
    Acknowledgment, CollectionOptions, ReadConcern, ReadPreference, ReturnDocument, SelectionCriteria, WriteConcern,
};
use mongodb::{Client, Collection};
use oplogue_engine::checkpoint::{Checkpoint, CheckpointStore, Found, Identity, ViewPair};
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::{CollectionUuid, Namespace, Position};

use super::classify;
use super::patience::answered;

pub use operate::{Stored, StoredKind};

/// How long an answer about the lease is good for. Saving a checkpoint renews it, so that a busy run never asks.
const LEASE_TRUST: Duration = Duration::from_secs(10);

/// Where checkpoints are kept and whose they are.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// `checkpoint.storage.db`.
    pub database: String,
    /// `checkpoint.storage.collection`.
    pub collection: String,
    /// The job's `id`.
    pub job: String,
    /// Name of the source's replica set: MongoShake's `name`.
    pub replica_set: String,
    /// Who takes the lease, for people: host and process.
    pub holder: String,
}

/// A [`CheckpointStore`] in MongoDB.
pub struct MongoStore {
    documents: Collection<Document>,
    options: StoreOptions,
    /// The replica sets of a sharded source, each of which has a checkpoint of MongoShake's of its own.
    shards: Vec<Arc<str>>,
    /// The lease's epoch; 0 before [`CheckpointStore::acquire`].
    epoch: AtomicI64,
    /// When the last question was asked that showed that the lease is held: by the clock that nobody sets, and by the one
    /// that goes on while the machine sleeps.
    held_at: Mutex<Option<Moment>>,
}

/// One moment by two clocks.
#[derive(Debug, Clone, Copy)]
struct Moment {
    steady: Instant,
    wall: SystemTime,
}

impl Moment {
    fn now() -> Self {
        Self { steady: Instant::now(), wall: SystemTime::now() }
    }

    /// Whether it is less than [`LEASE_TRUST`] ago by both. A clock that was set back says nothing.
    fn is_fresh(self) -> bool {
        self.steady.elapsed() < LEASE_TRUST && self.wall.elapsed().is_ok_and(|elapsed| elapsed < LEASE_TRUST)
    }
}

impl MongoStore {
    /// A store that holds no lease yet. `client` may be the source's, whatever member that one prefers.
    #[must_use]
    pub fn new(client: &Client, options: StoreOptions) -> Self {
        let concern = WriteConcern::builder().w(Acknowledgment::Majority).w_timeout(Duration::from_secs(30)).build();
        let collection = CollectionOptions::builder()
            .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary))
            .read_concern(ReadConcern::majority())
            .write_concern(concern)
            .build();
        let documents = client.database(&options.database).collection_with_options(&options.collection, collection);
        Self { documents, options, shards: Vec::new(), epoch: AtomicI64::new(0), held_at: Mutex::default() }
    }

    /// The store of a sharded source whose shards are these replica sets. Its `replica_set` is a name for all of them,
    /// which must not change when a shard joins.
    #[must_use]
    pub fn of_shards(self, shards: Vec<Arc<str>>) -> Self {
        Self { shards, ..self }
    }

    /// The job's document: `<job>/<replica set>`.
    /// The `_id` of this job's document.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}/{}", self.options.job, self.options.replica_set)
    }

    fn fault(&self, doing: &str, e: DriverError) -> Error {
        let StoreOptions { database, collection, .. } = &self.options;
        let doing = format!("{doing} in {database}.{collection} (needs `readWrite` on `{database}`)");
        classify::error(Side::Store, &doing, e)
    }

    fn epoch(&self) -> Result<i64> {
        match self.epoch.load(Ordering::Acquire) {
            0 => Err(Error::new(Side::Store, Kind::Bug, "the store is written before its lease is taken")),
            epoch => Ok(epoch),
        }
    }

    async fn own(&self) -> Result<Option<Document>> {
        let doing = "read the checkpoint";
        let found = answered(Side::Store, doing, self.documents.find_one(doc! { "_id": self.id() })).await?;
        found.map_err(|e| self.fault(doing, e))
    }

    /// Where MongoShake would go on. Of a sharded source it keeps one place a shard, each for itself; the oldest of them
    /// is the one from which all shards can go on together.
    async fn of_mongoshake(&self) -> Result<Option<Position>> {
        let doing = "look for MongoShake's checkpoint";
        let single = [self.options.replica_set.as_str()];
        let names: Vec<&str> =
            if self.shards.is_empty() { single.into() } else { self.shards.iter().map(|n| &**n).collect() };
        let filter = doc! { "name": { "$in": &names }, "format": { "$exists": false } };
        let read = async { self.documents.find(filter).await?.try_collect().await };
        let found: Vec<Document> = answered(Side::Store, doing, read).await?.map_err(|e| self.fault(doing, e))?;
        let of = |name: &&str| {
            let found = found.iter().find(|document| document.get_str("name").is_ok_and(|found| found == *name));
            found.and_then(document::mongoshake)
        };
        let (with, without): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| of(name).is_some());
        match without.first() {
            Some(missing) if !with.is_empty() => {
                let text = format!(
                    "MongoShake's checkpoint of the shard {missing} is missing beside that of {}; say where to go on \
                     with `oplogue checkpoint set TIME`, or copy again after `oplogue checkpoint reset`",
                    with.join(", ")
                );
                Err(Error::new(Side::Config, Kind::Misconfigured, text))
            }
            _ => Ok(names.iter().filter_map(of).min_by_key(|position| position.time().ts())),
        }
    }

    /// Fails unless this object still holds the lease.
    async fn check_lease(&self) -> Result<()> {
        let epoch = self.epoch()?;
        let asked = Moment::now();
        match self.own().await? {
            Some(own) if document::epoch(&own) == epoch => {
                self.held(asked);
                Ok(())
            }
            found => Err(self.fenced(found.as_ref())),
        }
    }

    /// Documents of a job beside its checkpoint.
    async fn beside(&self, filter: Document, doing: &str) -> Result<Vec<Document>> {
        let read = async { self.documents.find(filter).await?.try_collect().await };
        answered(Side::Store, doing, read).await?.map_err(|e| self.fault(doing, e))
    }

    /// Makes or changes a document beside the checkpoint, unless a later holder of the lease wrote it.
    async fn record(&self, id: String, fields: Document, doing: &str) -> Result<()> {
        self.check_lease().await?;
        let epoch = self.epoch()?;
        let filter = doc! { "_id": id, "epoch": { "$lte": epoch } };
        let mut written = doc! { "format": document::FORMAT, "epoch": epoch };
        written.extend(fields);
        let update = doc! { "$set": written };
        match answered(Side::Store, doing, self.documents.update_one(filter, update).upsert(true)).await? {
            Ok(_) => Ok(()),
            // The pair is there with a higher epoch: the upsert met it as a duplicate.
            Err(e) if classify::kind(Side::Store, &e) == Kind::Conflict => Err(self.fenced(self.own().await?.as_ref())),
            Err(e) => Err(self.fault(doing, e)),
        }
    }

    /// Deletes a document beside the checkpoint, unless a later holder of the lease wrote it.
    async fn forget(&self, id: String, doing: &str) -> Result<()> {
        self.check_lease().await?;
        let filter = doc! { "_id": id, "epoch": { "$lte": self.epoch()? } };
        let deleted = answered(Side::Store, doing, self.documents.delete_one(filter)).await?;
        deleted.map(|_| ()).map_err(|e| self.fault(doing, e))
    }

    fn held(&self, asked: Moment) {
        *self.held_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(asked);
    }

    /// Takes the lease from whoever holds it; the job's document as it is then.
    async fn take_lease(&self) -> Result<Document> {
        let update = doc! {
            "$inc": { "lease.epoch": 1_i64 },
            "$set": {
                "format": document::FORMAT,
                "name": &self.options.replica_set,
                "lease.holder": &self.options.holder,
            },
            "$currentDate": { "lease.since": true },
        };
        let asked = Moment::now();
        let doing = "take the lease of the checkpoint";
        let take = self
            .documents
            .find_one_and_update(doc! { "_id": self.id() }, update)
            .upsert(true)
            .return_document(ReturnDocument::After);
        let taken = answered(Side::Store, doing, take)
            .await?
            .map_err(|e| self.fault(doing, e))?
            .ok_or_else(|| Error::new(Side::Store, Kind::Bug, "the lease was taken and no document came back"))?;
        self.epoch.store(document::epoch(&taken), Ordering::Release);
        self.held(asked);
        Ok(taken)
    }

    /// The identity of the lease, which every instance of this job finds and no other job has.
    ///
    /// # Errors
    /// `Unavailable`; `Fenced` when the document was removed.
    pub async fn lease_identity(&self) -> Result<String> {
        let taken = self.own().await?.unwrap_or_default();
        if let Some(id) = document::lease_id(&taken) {
            return Ok(id);
        }
        let filter = doc! { "_id": self.id(), "lease.id": { "$exists": false } };
        let update = doc! { "$set": { "lease.id": bson::Uuid::new().to_string() } };
        let doing = "name the lease";
        let named = answered(Side::Store, doing, self.documents.update_one(filter, update)).await?;
        named.map_err(|e| self.fault(doing, e))?;
        let named = self.own().await?.unwrap_or_default();
        document::lease_id(&named).ok_or_else(|| self.fenced(Some(&named)))
    }

    fn fenced(&self, found: Option<&Document>) -> Error {
        let text = match found.map(document::lease) {
            Some((epoch, holder)) => {
                format!("the lease of {} was taken by {holder} (epoch {epoch})", self.id())
            }
            None => format!("the checkpoint document {} was removed", self.id()),
        };
        Error::new(Side::Store, Kind::Fenced, text)
    }

    /// Why an update matched nothing: another holder, or a position that would move backwards.
    async fn refused(&self, checkpoint: &Checkpoint) -> Error {
        let epoch = self.epoch.load(Ordering::Acquire);
        match self.own().await {
            Err(fault) => fault,
            Ok(Some(own)) if document::epoch(&own) == epoch => {
                let stored = document::position(&own).map_or_else(|| "nothing".to_owned(), |at| at.to_string());
                let text = format!("a checkpoint would move back from {stored} to {}", checkpoint.position);
                Error::new(Side::Store, Kind::Bug, text)
            }
            Ok(found) => self.fenced(found.as_ref()),
        }
    }
}

#[async_trait]
impl CheckpointStore for MongoStore {
    async fn acquire(&self) -> Result<Found> {
        let taken = self.take_lease().await?;
        if taken.contains_key("position") {
            return Ok(Found::Ours(document::read(&taken)?));
        }
        if taken.contains_key("reset_at") {
            return Ok(Found::Nothing);
        }
        Ok(self.of_mongoshake().await?.map_or(Found::Nothing, Found::MongoShake))
    }

    async fn save(&self, checkpoint: &Checkpoint) -> Result<()> {
        let time = checkpoint.position.time().timestamp();
        let filter = doc! {
            "_id": self.id(),
            "lease.epoch": self.epoch()?,
            "$or": [{ "position": { "$exists": false } }, { "position.ts": { "$lte": time } }],
        };
        let update = doc! {
            "$set": document::write(checkpoint)?,
            "$unset": { "reset_at": "" },
            "$currentDate": { "updated_at": true },
        };
        let asked = Moment::now();
        let doing = "store the checkpoint";
        let saved = answered(Side::Store, doing, self.documents.update_one(filter, update)).await?;
        let saved = saved.map_err(|e| self.fault(doing, e))?;
        if saved.matched_count != 1 {
            return Err(self.refused(checkpoint).await);
        }
        self.held(asked);
        Ok(())
    }

    async fn still_held(&self) -> Result<()> {
        let held_at = *self.held_at.lock().unwrap_or_else(PoisonError::into_inner);
        if held_at.is_some_and(Moment::is_fresh) { Ok(()) } else { self.check_lease().await }
    }

    async fn identities(&self) -> Result<Vec<Identity>> {
        let found = self.beside(document::identities_of(&self.id()), "read the identities of collections").await?;
        found.iter().map(document::identity).collect()
    }

    async fn record_identity(&self, identity: Identity) -> Result<()> {
        let id = document::identity_id(&self.id(), identity.source);
        self.record(id, document::write_identity(&identity), "record the identity of a collection").await
    }

    async fn forget_identity(&self, source: CollectionUuid) -> Result<()> {
        self.forget(document::identity_id(&self.id(), source), "forget the identity of a collection").await
    }

    async fn views(&self) -> Result<Vec<ViewPair>> {
        let found = self.beside(document::views_of(&self.id()), "read the names of views").await?;
        found.iter().map(document::view).collect()
    }

    async fn record_view(&self, pair: &ViewPair) -> Result<()> {
        let id = document::view_id(&self.id(), &pair.source);
        self.record(id, document::write_view(pair), "record the name of a view").await
    }

    async fn forget_view(&self, source: &Namespace) -> Result<()> {
        self.forget(document::view_id(&self.id(), source), "forget the name of a view").await
    }
}

/// A key of a document as text, for people.
fn id_text(document: &Document) -> String {
    match document.get("_id") {
        Some(Bson::String(id)) => id.clone(),
        Some(Bson::ObjectId(id)) => id.to_hex(),
        other => other.map(ToString::to_string).unwrap_or_default(),
    }
}
