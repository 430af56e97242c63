//! What an operator does with checkpoints: `oplogue checkpoint show | set | reset`.
//!
//! Each of the writing ones takes the lease first, so that an instance that still runs is fenced and cannot write its
//! own position over the operator's. Nothing is deleted that carries the lease: an epoch that started again from one
//! would let an old instance in.

use bson::{DateTime, Document, doc};
use futures_util::TryStreamExt as _;
use oplogue_engine::checkpoint::{Checkpoint, Stage};
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::Position;

use super::{MongoStore, document};

/// Whose document it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredKind {
    /// A job of Oplogue.
    Ours,
    /// MongoShake's.
    MongoShake,
}

/// One checkpoint of the collection, as people want to see it.
#[derive(Debug, Clone)]
pub struct Stored {
    /// `<job>/<replica set>`, or MongoShake's `_id`.
    pub id: String,
    pub kind: StoredKind,
    /// The replica set.
    pub name: String,
    /// `full-sync`, `catch-up` or `incremental`; empty before the first checkpoint and for MongoShake.
    pub stage: String,
    /// Where a run would go on; none before the first checkpoint and after a reset.
    pub position: Option<Position>,
    /// Epoch of the lease; raised by every start.
    pub epoch: i64,
    /// Who took the lease last.
    pub holder: String,
    /// The document as it is stored, for `--json`.
    pub document: Document,
}

impl MongoStore {
    /// All checkpoints of the collection, of every job; what stands beside them is left out.
    ///
    /// # Errors
    /// `Unavailable`, `Unauthorized`.
    pub async fn show(&self) -> Result<Vec<Stored>> {
        let doing = "read the checkpoints";
        let filter = doc! { "name": { "$exists": true } };
        let cursor = self.documents.find(filter).sort(doc! { "_id": 1 }).await.map_err(|e| self.fault(doing, e))?;
        let documents: Vec<Document> = cursor.try_collect().await.map_err(|e| self.fault(doing, e))?;
        Ok(documents.into_iter().map(stored).collect())
    }

    /// Makes a run go on at `position`, forwards or backwards, in incremental mode. A running instance is fenced. What a
    /// copy has left to the overlap mark is still to be done.
    ///
    /// Whether the source still holds the position is seen when the run starts.
    ///
    /// # Errors
    /// `Misconfigured` while a copy is not over: half of the data would be followed. `Unavailable`, `Unauthorized`.
    pub async fn set(&self, position: &Position) -> Result<()> {
        // Looked at before anybody is fenced: a refusal must not end the copy that it is about.
        if let Some(own) = self.own().await? {
            with_position(&own, position)?;
        }
        let checkpoint = with_position(&self.take_lease().await?, position)?;
        let update = doc! {
            "$set": document::write(&checkpoint)?,
            "$unset": { "reset_at": "" },
            "$currentDate": { "updated_at": true },
        };
        self.update(update, "set the checkpoint").await
    }

    /// Makes the next run a first run: forgets position, identities and views, and no longer takes over a checkpoint of
    /// MongoShake. A running instance is fenced.
    ///
    /// # Errors
    /// `Unavailable`, `Unauthorized`.
    pub async fn reset(&self) -> Result<()> {
        self.take_lease().await?;
        let forgotten = doc! {
            "$unset": { "position": "", "ckpt": "", "stage": "", "plugins": "", "configuration": "" },
            "$set": { "reset_at": DateTime::now() },
            "$currentDate": { "updated_at": true },
        };
        self.update(forgotten, "reset the checkpoint").await?;
        let beside = doc! { "$or": [document::identities_of(&self.id()), document::views_of(&self.id())] };
        let deleted = self.documents.delete_many(beside).await;
        deleted.map(|_| ()).map_err(|e| self.fault("forget the identities of collections and views", e))
    }

    async fn update(&self, update: Document, doing: &str) -> Result<()> {
        let filter = doc! { "_id": self.id(), "lease.epoch": self.epoch()? };
        let updated = self.documents.update_one(filter, update).await.map_err(|e| self.fault(doing, e))?;
        if updated.matched_count == 1 { Ok(()) } else { Err(self.fenced(self.own().await?.as_ref())) }
    }
}

/// What a job's document becomes when an operator says the position. The one that it has need not be readable: to say
/// it anew is what this is for.
fn with_position(document: &Document, position: &Position) -> Result<Checkpoint> {
    if !document.contains_key("stage") {
        let (plugins, configuration) = (Vec::new(), String::new());
        return Ok(Checkpoint { stage: Stage::Incremental, position: position.clone(), plugins, configuration });
    }
    let checkpoint = document::at(document, position.clone())?;
    if checkpoint.stage == Stage::FullSync {
        let text = "the checkpoint is of a full sync that did not finish, and no position completes it; run it to its \
                    end, or begin anew after `oplogue checkpoint reset`";
        return Err(Error::new(Side::Store, Kind::Misconfigured, text));
    }
    Ok(checkpoint)
}

fn stored(document: Document) -> Stored {
    let ours = document.get_str("format").is_ok_and(|format| format == document::FORMAT);
    let (epoch, holder) = document::lease(&document);
    Stored {
        id: super::id_text(&document),
        kind: if ours { StoredKind::Ours } else { StoredKind::MongoShake },
        name: document::text(&document, "name"),
        stage: document::text(&document, "stage"),
        position: if ours { document::position(&document) } else { document::mongoshake(&document) },
        epoch,
        holder,
        document,
    }
}
