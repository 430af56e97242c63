//! `renameCollection`, with everything that can stand on either side of it.
//!
//! A rename within a database keeps the UUID, so the identity pair stays; across databases (a plugin may route the
//! two names apart) the server copies, and the new UUID is recorded. In overlap the copy may have read the collection
//! under both names; what is then left under the old one is removed.

use oplogue_engine::error::{Action, Error, Kind, Result, Side};
use oplogue_engine::model::{CollectionUuid, Namespace, OpTime};

use super::{Executor, Turn, skipped};
use crate::mongodb::command;
use crate::mongodb::identity::Standing;
use crate::mongodb::writer::RawWriter;

/// What must become of the collection that has the new name already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Occupant {
    None,
    /// The collection that the source's rename replaced.
    Replaced,
    /// One that a later entry brought there: by then the renamed collection has yet another name, or its old one
    /// again, or is dropped. That entry follows.
    Later,
}

impl Executor<'_> {
    pub(super) async fn rename(
        &self,
        from: &Namespace,
        to: &Namespace,
        drop_target: Option<CollectionUuid>,
    ) -> Result<Option<OpTime>> {
        if self.turn(from).await? == Turn::Done {
            self.claim_finished(from, to).await?;
            self.remove_stale(from, to).await?;
            self.remove_replaced(to, drop_target).await?;
            return Ok(skipped("renameCollection", from));
        }
        let occupant = self.occupant(from, to, drop_target).await?;
        if occupant == Occupant::Later {
            self.remove_replaced(to, drop_target).await?;
            return Ok(skipped("renameCollection", from));
        }
        let moving = self.source.filter(|_| from.database() != to.database());
        if let Some(source) = moving {
            self.sink.catalogue.move_begins(source).await?;
        }
        let time = match self.rename_now(from, to, occupant == Occupant::Replaced).await {
            Err(error) if error.action() == Action::Stop => {
                if let Some(source) = moving {
                    self.sink.catalogue.move_ended(source).await?;
                }
                return Err(error);
            }
            renamed => renamed?,
        };
        self.adopt(to).await?;
        if let Some(source) = moving {
            self.meet_unplaced(source, to).await?;
            self.sink.catalogue.move_ended(source).await?;
        }
        self.remove_replaced(to, drop_target).await?;
        if let Some(replaced) = drop_target.filter(|replaced| Some(*replaced) != self.source) {
            self.sink.catalogue.retire(replaced, self.time);
        }
        Ok(time)
    }

    async fn rename_now(&self, from: &Namespace, to: &Namespace, drop_target: bool) -> Result<Option<OpTime>> {
        let mut w = RawWriter::with_capacity(256);
        w.string("renameCollection", from.as_str());
        w.string("to", to.as_str());
        w.boolean("dropTarget", drop_target);
        command::write_concern(&mut w, self.concern);
        let doing = "renameCollection (needs `renameCollectionSameDB`, and `readWriteAnyDatabase` across databases)";
        let time = self.run("admin", doing, from, w, &[]).await?;
        self.move_postponed(from, to).await;
        self.sink.catalogue.refresh(from).await?;
        Ok(time)
    }

    async fn occupant(
        &self,
        from: &Namespace,
        to: &Namespace,
        drop_target: Option<CollectionUuid>,
    ) -> Result<Occupant> {
        if self.sink.catalogue.refresh(to).await?.is_none() {
            return Ok(Occupant::None);
        }
        let standing = drop_target.map(|replaced| self.sink.catalogue.standing(to, replaced));
        match standing {
            Some(Standing::Own(_) | Standing::Unclaimed(_) | Standing::Nameless) => Ok(Occupant::Replaced),
            _ if self.overlap && self.holds_another(to) => Ok(Occupant::Later),
            _ if self.is_half_moved(from, to).await? => Ok(Occupant::Replaced),
            _ => {
                let text = format!(
                    "rename to {to}: the target has a collection of that name that the source did not have at that time"
                );
                Err(Error::new(Side::Sink, Kind::CannotApply, text))
            }
        }
    }

    /// Whether `name` holds the copy of another source collection.
    pub(super) fn holds_another(&self, name: &Namespace) -> bool {
        self.source.is_some_and(|source| self.sink.catalogue.standing(name, source) == Standing::Other)
            && self
                .sink
                .catalogue
                .info(name)
                .and_then(|info| info.uuid)
                .is_some_and(|uuid| self.sink.catalogue.is_claimed(uuid))
    }

    /// What the source's rename replaced is gone after this entry and never comes back. Replayed entries may have made
    /// it again: under the name that it was replaced under, where nobody claims that, or under one that it had before.
    pub(super) async fn remove_replaced(&self, to: &Namespace, drop_target: Option<CollectionUuid>) -> Result<()> {
        let Some(replaced) = drop_target.filter(|replaced| self.overlap && Some(*replaced) != self.source) else {
            return Ok(());
        };
        self.sink.catalogue.refresh(to).await?;
        let here = matches!(self.sink.catalogue.standing(to, replaced), Standing::Unclaimed(_)).then(|| to.clone());
        if let Some(place) = here.or_else(|| self.sink.catalogue.place_of(replaced)) {
            tracing::info!(namespace = %place, "removed: the source replaced this collection by a rename");
            self.drop_now(&place).await?;
            self.sink.catalogue.retire(replaced, self.time);
        }
        Ok(())
    }

    /// The copy may have read a collection under its old and its new name. When the new name holds the recorded one
    /// and nobody claims what the old name holds, that is the older half.
    async fn remove_stale(&self, from: &Namespace, to: &Namespace) -> Result<()> {
        let Some(source) = self.source.filter(|_| self.overlap) else { return Ok(()) };
        self.sink.catalogue.refresh(to).await?;
        // Without a copy nothing has read it twice, and what has the old name now is somebody else's.
        let moved =
            self.sink.catalogue.is_copy(source) && matches!(self.sink.catalogue.standing(to, source), Standing::Own(_));
        let uuid = self.sink.catalogue.info(from).and_then(|info| info.uuid);
        if moved && uuid.is_some_and(|uuid| !self.sink.catalogue.is_claimed(uuid)) {
            tracing::info!(namespace = %from, "removed: the copy read this collection under its old name too");
            self.drop_now(from).await?;
        }
        Ok(())
    }
}
