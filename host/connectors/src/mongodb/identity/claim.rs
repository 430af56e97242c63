//! Claims a collection of the target that stands there already.
//!
//! A pair outlives what a fail-over takes back. Were it recorded for a collection that only the primary had, all later
//! changes of the source collection would be taken for those of one that is gone, and go nowhere. So a majority of the
//! target must have the collection first, and it must be the same one afterwards.

use std::time::Duration;

use bson::{Document, doc};
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::{CollectionUuid, Namespace};

use super::Catalogue;
use crate::mongodb::classify;
use crate::mongodb::patience::{self, answered};

/// How long a majority may take, and never longer than half of what an answer may. Where it takes longer nothing is claimed,
/// and the collection stays one that nothing introduced.
const MAJORITY_WITHIN: Duration = Duration::from_secs(5);

/// How often that is waited for where it must be claimed: a target that catches up may be minutes behind.
const TRIES: usize = 60;

impl Catalogue {
    /// Records the collection `target`, which is called `name`, as what the source collection `source` became. False: a
    /// majority does not have it, or has another one by now.
    pub(crate) async fn claim(&self, name: &Namespace, source: CollectionUuid, target: CollectionUuid) -> Result<bool> {
        if !self.has_majority(name).await? {
            tracing::info!(namespace = %name, "a majority of the target does not have this collection yet");
            return Ok(false);
        }
        if self.refresh(name).await?.and_then(|info| info.uuid) != Some(target) {
            return Ok(false);
        }
        self.record(source, target).await?;
        Ok(true)
    }

    /// [`Self::claim`] for what cannot go on without.
    ///
    /// # Errors
    /// `Unavailable` when there is no such majority.
    pub(crate) async fn must_claim(
        &self,
        name: &Namespace,
        source: CollectionUuid,
        target: CollectionUuid,
    ) -> Result<()> {
        for _ in 0..TRIES {
            if self.claim(name, source, target).await? {
                return Ok(());
            }
            if self.info(name).and_then(|info| info.uuid) != Some(target) {
                break;
            }
            self.still_held().await?;
        }
        let text = format!("{name} is to be taken up, and a majority of the target does not have it");
        Err(Error::new(Side::Sink, Kind::Unavailable, text))
    }

    /// Whether a majority has what the primary has of a collection. An update that finds nothing writes nothing, and waits
    /// for everything that was written before it.
    async fn has_majority(&self, name: &Namespace) -> Result<bool> {
        const WRITE_CONCERN_TIMEOUT: i32 = 64;
        let doing = format!("ask whether a majority has {name}");
        let within = MAJORITY_WITHIN.min(patience::of_answers() / 2);
        let within = i64::try_from(within.as_millis()).unwrap_or(i64::MAX);
        let nothing = doc! { "q": { "_id": { "$in": [] } }, "u": { "$set": { "never": true } }, "multi": true };
        let command = doc! {
            "update": name.collection(),
            "updates": [nothing],
            "writeConcern": { "w": "majority", "wtimeout": within },
        };
        let database = self.client.database(name.database());
        let reply: Document = answered(Side::Sink, &doing, database.run_command(command))
            .await?
            .map_err(|e| classify::error(Side::Sink, &doing, e))?;
        if let Ok([first, ..]) = reply.get_array("writeErrors").map(Vec::as_slice) {
            return Err(Error::new(Side::Sink, Kind::Unavailable, format!("{doing}: {first}")));
        }
        match reply.get_document("writeConcernError") {
            Err(_) => Ok(true),
            Ok(late) if late.get_i32("code").is_ok_and(|code| code == WRITE_CONCERN_TIMEOUT) => Ok(false),
            Ok(other) => {
                let text = format!("{doing}: {}", other.get_str("errmsg").unwrap_or_default());
                Err(Error::new(Side::Sink, Kind::Unavailable, text))
            }
        }
    }
}
