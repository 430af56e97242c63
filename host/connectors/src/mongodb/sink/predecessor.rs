//! Whether a replayed write still belongs under its name, or to a collection that stood there before.
//!
//! Names are reused while entries wait to be replayed: `drop X; create X` leaves two collections of one name, and the
//! copy took the later one. A write of the earlier one would stay in its successor for ever, since its drop is skipped.
//! So collections are told apart by UUID; where the pairs cannot say which of two came first, the source is asked what
//! it has under the name now, once for each pair of name and UUID. Nothing is asked outside of overlap.
//!
//! The oplogs of a cluster are read from some time before the copy. What a collection had then is in the copy, or the
//! collection was gone when the copy began.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use oplogue_engine::error::Result;
use oplogue_engine::model::{CollectionUuid, Namespace, NamespaceId};
use oplogue_engine::sink::Write;

use super::MongoSink;

/// What the source answered: whether a collection goes on under a name.
#[derive(Debug, Default)]
pub(in crate::mongodb) struct Predecessors {
    goes_on: Mutex<HashMap<(NamespaceId, CollectionUuid), bool>>,
}

impl MongoSink {
    /// Whether a write, met in overlap under `name`, is of a collection that stood there before the copied one. Where DDL
    /// is replayed, the time of the copy's first look has told most of them already.
    ///
    /// # Errors
    /// Those of the source.
    pub(in crate::mongodb) async fn superseded(&self, name: &Namespace, write: &Write) -> Result<bool> {
        let Some(uuid) = write.belongs_to().filter(|_| write.overlap) else {
            return Ok(false);
        };
        let is_in_copy = self.options.copied_at.is_some_and(|copied| write.time.ts() <= copied.ts());
        if is_in_copy && !self.catalogue.is_known(uuid) {
            return Ok(true);
        }
        let may_have_gone = !self.options.ddl_ignored && self.catalogue.may_have_gone(name, uuid, write.time);
        let may_be_another = self.options.after_copy && self.catalogue.is_of_another(name, uuid);
        if !may_have_gone && !may_be_another {
            return Ok(false);
        }
        Ok(!self.goes_on(write.source, uuid).await?)
    }

    /// Whether the source has the collection under this name.
    async fn goes_on(&self, source: NamespaceId, uuid: CollectionUuid) -> Result<bool> {
        let known = &self.predecessors.goes_on;
        let answer = known.lock().unwrap_or_else(PoisonError::into_inner).get(&(source, uuid)).copied();
        if let Some(answer) = answer {
            return Ok(answer);
        }
        let Some(originals) = &self.source else { return Ok(true) };
        let name = self.namespaces.name(source);
        let answer = originals.has(&name, uuid).await?;
        if !answer {
            tracing::info!(namespace = %name, "writes of a predecessor of the copied collection are left out");
        }
        known.lock().unwrap_or_else(PoisonError::into_inner).insert((source, uuid), answer);
        Ok(answer)
    }
}
