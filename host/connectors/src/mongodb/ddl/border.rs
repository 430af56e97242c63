//! What stands where a collection is to come in over the filter's border.
//!
//! Such a collection is copied whole, so its place must be free: what the source's rename replaced is dropped, and
//! so is what an interrupted copy left. In a replay the copy of a collection that came there later may stand there,
//! which stays. Anything else there was not on the source, and is never touched. The copy itself is the assembly's
//! affair; see `host/src/assemble/border.rs`.

use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::{Change, CollectionUuid, Namespace, OpTime};

use super::{DdlRefused, Executor, MongoSink};
use crate::mongodb::command::Concern;
use crate::mongodb::copy::BEFORE_EVERYTHING;
use crate::mongodb::identity::Standing;

/// Whether a collection is still to be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Its place on the target is free.
    Copy,
    /// It was copied before: a later command went on from there.
    Done,
    /// A later command brought another collection there, so it had gone on before anybody copied it.
    Gone,
    /// Something is in its place, and the settings let the command be left out.
    Refused,
}

impl MongoSink {
    /// Makes room for the collection of a `CopyIn`, whose new name replaced `drop_target` on the source.
    ///
    /// # Errors
    /// `CannotApply` when a collection stands there that the source did not have, and when the full copy was made
    /// after the collection came back, from a position before it left.
    pub async fn arrives(
        &self,
        change: &Change,
        drop_target: Option<CollectionUuid>,
        overlap: bool,
    ) -> Result<Arrival> {
        self.target().await?;
        let executor =
            Executor { time: change.time, ..Executor::new(self, change.collection, overlap, Concern::Majority) };
        if self.catalogue.is_before_mark(change.time) {
            executor.bury(drop_target).await?;
            executor.refuse_older_copy(&self.namespaces.name(change.source))?;
            return Ok(Arrival::Done);
        }
        let name = self.namespaces.name(change.target);
        match executor.make_room(&name, drop_target).await {
            Ok(arrival) => {
                if let (Arrival::Copy, Some(source)) = (arrival, change.collection) {
                    self.catalogue.copying(source, change.time);
                }
                Ok(arrival)
            }
            Err(error) if self.options.ddl_refused == DdlRefused::Stop => {
                Err(error.context(format!("entry at {}", change.time)))
            }
            Err(error) => {
                let ddl = change.ddl.as_deref();
                let ddl =
                    ddl.ok_or_else(|| Error::new(Side::Internal, Kind::Bug, "a DDL change carries no command"))?;
                self.refused(ddl.name(), &self.namespaces.name(change.target), change.time, error)?;
                self.executed(change.time).await?;
                Ok(Arrival::Refused)
            }
        }
    }

    /// The copy that [`MongoSink::arrives`] made room for is complete.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn arrived(&self, change: &Change) -> Result<()> {
        self.executed(change.time).await
    }

    /// The collection is gone before anybody copied it; its last change is not newer than `until`. Its changes are left
    /// out from now on: one that made a collection of them would leave something there that nobody knows after a
    /// restart.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn never_arrives(&self, change: &Change, until: OpTime) -> Result<()> {
        if let Some(source) = change.collection {
            self.catalogue.copying(source, change.time);
            self.catalogue.record(source, bson::Uuid::new().bytes()).await?;
            self.catalogue.retire(source, until);
        }
        self.executed(change.time).await
    }
}

impl Executor<'_> {
    /// A collection that left the filter and came back before the full copy listed it: what was deleted meanwhile is
    /// not in the stream, and what the stream had before may have been applied to the copy. One that only came is in the
    /// copy as it was then, or later.
    fn refuse_older_copy(&self, source_name: &Namespace) -> Result<()> {
        let catalogue = &self.sink.catalogue;
        // The time at which it left, where it did ([`Self::bury`]).
        let left = |source| catalogue.copied_at(source).filter(|at| at.ts() > BEFORE_EVERYTHING.ts());
        let older = |source| left(source).is_some_and(|at| at.ts() < self.time.ts());
        if !self.source.is_some_and(|source| catalogue.stands_anywhere(source) && older(source)) {
            return Ok(());
        }
        let text = format!(
            "entry at {}: {source_name} was renamed out of the filter and back while its full copy began; copy again \
             after `oplogue checkpoint reset`",
            self.time
        );
        Err(Error::new(Side::Sink, Kind::CannotApply, text))
    }

    async fn make_room(&self, name: &Namespace, drop_target: Option<CollectionUuid>) -> Result<Arrival> {
        let catalogue = &self.sink.catalogue;
        let present = catalogue.refresh(name).await?;
        let own = |source: Option<CollectionUuid>| {
            source.is_some_and(|source| matches!(catalogue.standing(name, source), Standing::Own(_)))
        };
        // A copy under another name was moved there by a later command, which waited for it to be complete.
        if !own(self.source) && self.source.is_some_and(|source| catalogue.stands_anywhere(source)) {
            self.remove_replaced(name, drop_target).await?;
            return Ok(Arrival::Done);
        }
        if present.is_none() {
            return Ok(Arrival::Copy);
        }
        let replaced = drop_target.filter(|replaced| {
            matches!(catalogue.standing(name, *replaced), Standing::Own(_) | Standing::Unclaimed(_))
        });
        if own(self.source) || replaced.is_some() || (self.overlap && self.is_unclaimed_and_empty(name).await?) {
            self.drop_now(name).await?;
            if let Some(replaced) = replaced {
                catalogue.retire(replaced, self.time);
            }
            return Ok(Arrival::Copy);
        }
        if self.overlap && self.holds_another(name) {
            self.remove_replaced(name, drop_target).await?;
            return Ok(Arrival::Gone);
        }
        let text = format!(
            "rename to {name}, into the filter: the target has a collection of that name that the source did not have \
             at that time"
        );
        Err(Error::new(Side::Sink, Kind::CannotApply, text))
    }

    /// A copy that was killed between making the collection and recording it.
    async fn is_unclaimed_and_empty(&self, name: &Namespace) -> Result<bool> {
        let uuid = self.sink.catalogue.info(name).and_then(|info| info.uuid);
        Ok(uuid.is_some_and(|uuid| !self.sink.catalogue.is_claimed(uuid)) && self.sink.is_empty(name).await?)
    }
}
