//! Whether a replayed write still belongs under its name, or to a collection that stood there before.
//!
//! Names are reused while entries wait to be replayed: `drop X; create X` leaves two collections of one name, and the
//! copy took the later one. A write of the earlier one would stay in its successor for ever, since its drop is skipped.
//! So collections are told apart by UUID; where the pairs cannot say which of two came first, the source is asked what
//! it has under the name now, once for each pair of name and UUID. Nothing is asked outside of overlap.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bson::spec::BinarySubtype;
use bson::{Binary, Document, doc};
use futures_util::TryStreamExt as _;
use mongodb::Client;
use oplogue_engine::error::{Result, Side};
use oplogue_engine::model::{CollectionUuid, Namespace, NamespaceId};
use oplogue_engine::sink::Write;

use super::MongoSink;
use crate::mongodb::{classify, identity};

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
        let Some(uuid) = write.collection.filter(|_| write.overlap && self.options.after_copy) else {
            return Ok(false);
        };
        if !self.catalogue.is_of_another(name, uuid) {
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
        let Some(client) = &self.source else { return Ok(true) };
        let name = self.namespaces.name(source);
        let answer = uuid_of(client, &name).await? == Some(uuid);
        if !answer {
            tracing::info!(namespace = %name, "writes of a predecessor of the copied collection are left out");
        }
        known.lock().unwrap_or_else(PoisonError::into_inner).insert((source, uuid), answer);
        Ok(answer)
    }
}

/// The UUID of the source's collection of this name.
async fn uuid_of(client: &Client, name: &Namespace) -> Result<Option<CollectionUuid>> {
    let listed = listed(client, name, doc! { "name": name.collection() }).await?;
    Ok(listed.first().and_then(|entry| entry.get_document("info").ok()?.get("uuid").and_then(identity::uuid)))
}

/// The name that a collection of the source has now, most likely still `name`; `None` when it was dropped, or moved to
/// another database, which makes it another collection.
///
/// # Errors
/// Those of the source.
pub(super) async fn name_now(client: &Client, name: &Namespace, uuid: CollectionUuid) -> Result<Option<Namespace>> {
    if uuid_of(client, name).await? == Some(uuid) {
        return Ok(Some(name.clone()));
    }
    let binary = Binary { subtype: BinarySubtype::Uuid, bytes: uuid.to_vec() };
    let listed = listed(client, name, doc! { "info.uuid": binary }).await?;
    Ok(listed.first().and_then(|entry| entry.get_str("name").ok()).map(|found| Namespace::of(name.database(), found)))
}

async fn listed(client: &Client, name: &Namespace, filter: Document) -> Result<Vec<Document>> {
    let failed = |e| classify::error(Side::Source, &format!("look for {name} (needs `listCollections`)"), e);
    let command = doc! { "listCollections": 1, "filter": filter };
    let cursor = client.database(name.database()).run_cursor_command(command).await.map_err(failed)?;
    cursor.try_collect().await.map_err(failed)
}
