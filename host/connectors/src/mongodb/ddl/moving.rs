//! A rename across databases that a run did not live to record.
//!
//! The server makes another collection of it, so the pair of identities changes with it, and a run that is killed between
//! the two knows only that it had begun. Its collection is then under a name that the entry of the rename will tell.
//! Entries that stand before it and ask for indexes, or take them away, wait until it has, and are met once more then:
//! what was to be built at the overlap mark stood in no store.

use bson::{RawDocumentBuf, doc};
use oplogue_engine::error::{Result, Side};
use oplogue_engine::model::{CollectionUuid, Ddl, Namespace, OpTime};

use super::Executor;
use crate::mongodb::classify;
use crate::mongodb::patience::answered;

/// A DDL of the collection that was being moved when the run was killed.
#[derive(Debug)]
pub(in crate::mongodb) struct Unplaced {
    source: CollectionUuid,
    ddl: Ddl,
    /// The entry that asked for it.
    time: OpTime,
}

impl Executor<'_> {
    /// A rename across databases makes another collection, and a run may have been killed before it could say which. That
    /// it was begun is stored before; the former one is gone then, and nobody knows the one that has the new name.
    pub(super) async fn claim_finished(&self, from: &Namespace, to: &Namespace) -> Result<()> {
        let Some(source) = self.source.filter(|_| self.overlap && from.database() != to.database()) else {
            return Ok(());
        };
        let present = self.sink.catalogue.refresh(to).await?;
        let catalogue = &self.sink.catalogue;
        if !catalogue.is_moving(source) {
            return Ok(());
        }
        if catalogue.stands_anywhere(source) {
            // It is recorded what it became.
            return catalogue.move_ended(source).await;
        }
        match present.and_then(|info| info.uuid).filter(|uuid| !catalogue.is_claimed(*uuid)) {
            Some(uuid) => catalogue.must_claim(to, source, uuid).await?,
            None => return Ok(()),
        }
        self.forget_all_postponed(to).await;
        self.meet_unplaced(source, to).await?;
        catalogue.move_ended(source).await
    }

    /// Whether the collection of a repeated entry has moved, and nobody knows yet where to.
    pub(super) fn has_moved(&self) -> bool {
        let catalogue = &self.sink.catalogue;
        let moved = |source| catalogue.is_moving(source) && !catalogue.stands_anywhere(source);
        self.overlap && !self.is_in_copy() && self.source.is_some_and(moved)
    }

    /// Whether a DDL is about the indexes of such a collection.
    pub(super) fn is_unplaced(&self, ddl: &Ddl) -> bool {
        matches!(ddl, Ddl::CreateIndexes { .. } | Ddl::DropIndexes { .. } | Ddl::CollMod { .. }) && self.has_moved()
    }

    /// Leaves it until the rename is met.
    pub(super) async fn leave_unplaced(&self, ddl: &Ddl) -> Result<Option<OpTime>> {
        if let Some(source) = self.source {
            self.sink.unplaced.lock().await.push(Unplaced { source, ddl: ddl.clone(), time: self.time });
        }
        self.postponed.store(true, std::sync::atomic::Ordering::Relaxed);
        Ok(None)
    }

    /// Meets again, at the overlap mark, what is left of collections that stand. Of the others nothing that was met has
    /// said what became of them: they are gone.
    pub(super) async fn meet_all_unplaced(&self) -> Result<()> {
        let sources: Vec<CollectionUuid> = self.sink.unplaced.lock().await.iter().map(|left| left.source).collect();
        for source in sources {
            if let Some(place) = self.sink.catalogue.place_of(source) {
                self.meet_unplaced(source, &place).await?;
            }
        }
        self.sink.unplaced.lock().await.clear();
        Ok(())
    }

    /// Meets again what was left of `source`, now that its place is known.
    pub(super) async fn meet_unplaced(&self, source: CollectionUuid, place: &Namespace) -> Result<()> {
        let unplaced: Vec<Unplaced> =
            self.sink.unplaced.lock().await.extract_if(.., |unplaced| unplaced.source == source).collect();
        for Unplaced { ddl, time, .. } in unplaced {
            let again = Executor { time, ..Executor::new(self.sink, Some(source), self.overlap, self.concern) };
            if let Err(error) = Box::pin(again.execute(&ddl)).await {
                self.sink.refused(ddl.name(), place, time, error)?;
            }
        }
        Ok(())
    }

    /// Whether `to` is what a rename across databases had made of `from` when its server died: it copies under another
    /// name, gives the copy its name, and then drops the former one. Such a rename is done again.
    pub(super) async fn is_half_moved(&self, from: &Namespace, to: &Namespace) -> Result<bool> {
        let catalogue = &self.sink.catalogue;
        let nobodys = catalogue.info(to).and_then(|info| info.uuid).is_some_and(|uuid| !catalogue.is_claimed(uuid));
        if !nobodys || from.database() == to.database() || !self.source.is_some_and(|s| catalogue.is_moving(s)) {
            return Ok(false);
        }
        // Somebody may have made a collection of that name since, and a copy has all that there is.
        Ok(self.count(from).await? == self.count(to).await?)
    }

    async fn count(&self, name: &Namespace) -> Result<u64> {
        let documents = self.sink.client.database(name.database()).collection::<RawDocumentBuf>(name.collection());
        let doing = format!("count {name}");
        let counted = documents.count_documents(doc! {});
        let counted = answered(Side::Sink, &doing, counted).await?;
        counted.map_err(|e| classify::error(Side::Sink, &doing, e))
    }
}
