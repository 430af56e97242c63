//! The source's own documents and catalogue, for the few changes that cannot be written without a look at them.
//!
//! A replica set is one place to look. Of a cluster every shard may hold a document of an `_id`, and only the owner's
//! counts: the others are leftovers of chunks that moved, which no delete of the stream will remove. So what a shard
//! returns is believed when the config servers say that the shard owns it. Nothing is cached: this is the rare road.

use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, RawDocumentBuf, doc};
use futures_util::TryStreamExt as _;
use mongodb::Client;
use mongodb::options::{ReadConcern, ReadPreference, SelectionCriteria};
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::{CollectionUuid, Namespace, OpTime};

use super::patience::answered;
use super::shards::merged::ShardClient;
use super::shards::routing::{Routing, Sharded};
use super::sink::{Move, Moved};
use super::{classify, identity};

/// Where the source is looked at.
#[derive(Debug, Clone)]
pub enum Originals {
    /// A replica set.
    ReplicaSet(Client),
    /// The shards of a cluster.
    Shards {
        /// In the order of the streams' numbers.
        shards: Vec<ShardClient>,
        /// The config servers.
        routing: Routing,
    },
}

/// How a collection was sharded at some time, and which of its chunks was the newest.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Ownership(Option<(Sharded, Document)>);

/// A server that may hold a document, and how to know whether it is the owner's.
#[derive(Debug)]
pub(super) struct Place<'a> {
    pub(super) client: &'a Client,
    owned: Option<(&'a Routing, &'a Sharded, usize)>,
}

/// The places of one collection.
#[derive(Debug)]
pub(super) struct Places<'a> {
    clients: Vec<(usize, &'a Client)>,
    sharded: Option<(&'a Routing, Sharded)>,
}

impl Originals {
    /// Where documents of a collection may be.
    ///
    /// # Errors
    /// Those of the config servers.
    pub(super) async fn places(&self, name: &Namespace) -> Result<Places<'_>> {
        let (shards, routing) = match self {
            Self::ReplicaSet(client) => return Ok(Places { clients: vec![(0, client)], sharded: None }),
            Self::Shards { shards, routing } => (shards, routing),
        };
        let clients = shards.iter().map(|shard| &shard.client).enumerate();
        if let Some(sharded) = routing.sharded(name).await? {
            return Ok(Places { clients: clients.collect(), sharded: Some((routing, sharded)) });
        }
        let home = routing.home(name.database()).await?;
        Ok(Places { clients: clients.filter(|(n, _)| Some(*n) == home).collect(), sharded: None })
    }

    /// Who owns which document of a collection, to be compared with a later answer: while the two are equal no document
    /// has another owner than before. The same for ever where documents do not move.
    ///
    /// # Errors
    /// Those of the config servers.
    pub(super) async fn ownership(&self, name: &Namespace) -> Result<Ownership> {
        let Self::Shards { routing, .. } = self else { return Ok(Ownership::default()) };
        Ok(Ownership(match routing.sharded(name).await? {
            Some(sharded) => routing.newest_chunk(&sharded).await?.map(|newest| (sharded, newest)),
            None => None,
        }))
    }

    /// A time that all servers have come to and that is not older than anything the config servers have told: what is
    /// read after it is what the owners have. Nothing to wait for where documents do not move.
    ///
    /// # Errors
    /// Those of the source.
    pub(super) async fn all_at(&self, database: &str) -> Result<Option<OpTime>> {
        let Self::Shards { shards, routing } = self else { return Ok(None) };
        let moment = routing.moment().await?;
        let passed = shards.iter().map(|shard| moment.pass_on(&shard.client, database, "local"));
        futures_util::future::try_join_all(passed).await?;
        Ok(Some(moment.time))
    }

    /// How the source has a collection sharded; none when it is not.
    ///
    /// # Errors
    /// Those of the config servers.
    pub(super) async fn sharded(&self, name: &Namespace) -> Result<Option<Sharded>> {
        match self {
            Self::ReplicaSet(_) => Ok(None),
            Self::Shards { routing, .. } => routing.sharded(name).await,
        }
    }

    /// Whether the source has the collection `uuid` under `name` now.
    ///
    /// # Errors
    /// Those of the source.
    pub(super) async fn has(&self, name: &Namespace, uuid: CollectionUuid) -> Result<bool> {
        let places = self.places(name).await?;
        if let Some((_, Sharded { uuid: Some(sharded), .. })) = places.sharded {
            return Ok(sharded == uuid);
        }
        for (_, client) in places.clients {
            if uuid_of(client, name).await? == Some(uuid) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Originals {
    /// The name that a collection of the source has now, most likely still `name`; `None` when it was dropped, or moved
    /// to another database, which makes it another collection.
    ///
    /// # Errors
    /// Those of the source.
    pub(super) async fn name_now(&self, name: &Namespace, uuid: CollectionUuid) -> Result<Option<Namespace>> {
        if self.has(name, uuid).await? {
            return Ok(Some(name.clone()));
        }
        let binary = Binary { subtype: BinarySubtype::Uuid, bytes: uuid.to_vec() };
        let clients: Vec<&Client> = match self {
            Self::ReplicaSet(client) => vec![client],
            Self::Shards { shards, .. } => shards.iter().map(|shard| &shard.client).collect(),
        };
        for client in clients {
            let listed = listed(client, name, doc! { "info.uuid": binary.clone() }).await?;
            if let Some(found) = listed.first().and_then(|entry| entry.get_str("name").ok()) {
                return Ok(Some(Namespace::of(name.database(), found)));
            }
        }
        Ok(None)
    }

    /// Whether the drop of the collection `uuid` at `time` is the end of a move: before it, a database's new primary
    /// shard has made the collection anew and taken its documents along (movePrimary, MongoDB 4.4 to 6.0; the making is
    /// logged like any other, the documents as a migration). Looks into the oplog only when such a collection is there.
    ///
    /// # Errors
    /// Those of the source.
    pub(super) async fn moved_on(&self, name: &Namespace, uuid: CollectionUuid, time: OpTime) -> Result<bool> {
        let Self::Shards { shards, routing } = self else { return Ok(false) };
        if routing.sharded(name).await?.is_some() {
            return Ok(false);
        }
        let home = routing.home(name.database()).await?;
        let Some(home) = home.and_then(|home| shards.get(home)) else { return Ok(false) };
        let successor = uuid_of(&home.client, name).await?;
        let Some(successor) = successor.filter(|successor| *successor != uuid) else { return Ok(false) };
        let failed = |e| classify::error(Side::Source, &format!("look for the making of {name} in the oplog"), e);
        let made = doc! {
            "ts": { "$lte": time.timestamp() },
            "op": "c",
            "ns": format!("{}.$cmd", name.database()),
            "ui": Binary { subtype: BinarySubtype::Uuid, bytes: successor.to_vec() },
            "o.create": name.collection(),
        };
        let oplog = home.client.database("local").collection::<Document>("oplog.rs");
        Ok(oplog.find_one(made).await.map_err(failed)?.is_some())
    }
}

impl Originals {
    /// Which collections got, gave up or changed their names from `from` on and up to `until`, under the source's names
    /// and in the order of time. Of a replica set the entry at `from` counts, which is applied once more where its term is
    /// not known; of a cluster everything up to `from` is left out. A majority must have everything up to `until`. Reads
    /// through the oplog of that time, which takes as long as it is large.
    ///
    /// # Errors
    /// Those of the source; `Unauthorized` without `read` on `local`.
    pub async fn moves(&self, from: OpTime, until: OpTime) -> Result<Vec<Move>> {
        let (clients, is_shard): (Vec<&Client>, bool) = match self {
            Self::ReplicaSet(client) => (vec![client], false),
            Self::Shards { shards, .. } => (shards.iter().map(|shard| &shard.client).collect(), true),
        };
        let failed = |e| classify::error(Side::Source, "look for drops and renames in the oplog", e);
        let since = if is_shard { "$gt" } else { "$gte" };
        let mut filter = doc! {
            "ts": { since: from.timestamp(), "$lte": until.timestamp() },
            "op": "c",
            "$or": [
                { "o.create": { "$exists": true } },
                { "o.drop": { "$exists": true } },
                { "o.renameCollection": { "$exists": true } },
                // Transactions create collections too.
                { "o.applyOps.o.create": { "$exists": true } },
            ],
        };
        if is_shard {
            // As the decoder does: another shard's, or a part of a move.
            filter.insert("fromMigrate", doc! { "$ne": true });
        }
        let mut moves = Vec::new();
        for client in clients {
            let oplog = client.database("local").collection::<Document>("oplog.rs");
            let primary = SelectionCriteria::ReadPreference(ReadPreference::Primary);
            let found = oplog.find(filter.clone()).read_concern(ReadConcern::majority()).selection_criteria(primary);
            // A transaction's entry may be large: what is needed of it is taken at once.
            let mut entries = found.await.map_err(failed)?;
            while let Some(entry) = entries.try_next().await.map_err(failed)? {
                moves.extend(moves_of(&entry));
            }
        }
        moves.sort_by_key(|one| one.time.ts());
        Ok(moves)
    }
}

/// What an entry of the oplog does to names of collections.
fn moves_of(entry: &Document) -> Vec<Move> {
    let Ok(time) = entry.get_timestamp("ts") else { return Vec::new() };
    let time = OpTime::new(time.time, time.increment, -1);
    let inner = entry.get_document("o").and_then(|o| o.get_array("applyOps"));
    match inner {
        Ok(inner) => {
            let operations = inner.iter().filter_map(|operation| operation.as_document());
            // A document may have fields that are called like a command.
            let commands = operations.filter(|operation| operation.get_str("op").is_ok_and(|op| op == "c"));
            commands.filter_map(|command| a_move(time, command)).collect()
        }
        Err(_) => a_move(time, entry).into_iter().collect(),
    }
}

/// What a command does to a collection's name; `None` for views, which hold nothing, and for all else.
fn a_move(time: OpTime, entry: &Document) -> Option<Move> {
    let database = entry.get_str("ns").ok()?.split_once('.')?.0;
    let command = entry.get_document("o").ok()?;
    let named = |field: &str| Some(Namespace::of(database, command.get_str(field).ok()?));
    let whole = |field: &str| Some(Namespace::new(command.get_str(field).ok()?));
    let what = match command.keys().next()?.as_str() {
        "create" => Moved::Came { name: named("create")?, replaced: None, over_border: false },
        "drop" => Moved::Went(named("drop")?),
        "renameCollection" => Moved::Renamed {
            from: whole("renameCollection")?,
            to: whole("to")?,
            replaced: command.get("dropTarget").and_then(identity::uuid),
        },
        _ => return None,
    };
    let collection = entry.get("ui").and_then(identity::uuid)?;
    Some(Move { time, collection, what })
}

/// The UUID of a server's collection of this name.
pub(super) async fn uuid_of(client: &Client, name: &Namespace) -> Result<Option<CollectionUuid>> {
    let listed = listed(client, name, doc! { "name": name.collection() }).await?;
    Ok(listed.first().and_then(|entry| entry.get_document("info").ok()?.get("uuid").and_then(identity::uuid)))
}

async fn listed(client: &Client, name: &Namespace, filter: Document) -> Result<Vec<Document>> {
    let doing = format!("look for {name} (needs `listCollections`)");
    let command = doc! { "listCollections": 1, "filter": filter };
    let list = async { client.database(name.database()).run_cursor_command(command).await?.try_collect().await };
    answered(Side::Source, &doing, list).await?.map_err(|e| classify::error(Side::Source, &doing, e))
}

impl Places<'_> {
    pub(super) fn iter(&self) -> impl Iterator<Item = Place<'_>> {
        self.clients.iter().map(|(shard, client)| Place {
            client,
            owned: self.sharded.as_ref().map(|(routing, sharded)| (*routing, sharded, *shard)),
        })
    }
}

impl Place<'_> {
    /// Whether a document that this server returned is its own, and no leftover of a chunk that moved away.
    ///
    /// # Errors
    /// Those of the source.
    pub(super) async fn owns(&self, name: &Namespace, document: &[u8]) -> Result<bool> {
        let Some((routing, sharded, shard)) = self.owned else { return Ok(true) };
        let malformed = |e| Error::new(Side::Source, Kind::Malformed, "read a document of the source").caused_by(e);
        let raw = RawDocumentBuf::from_bytes(document.to_vec()).map_err(malformed)?;
        let document = Document::try_from(raw).map_err(malformed)?;
        let key = self.shard_key(name, &sharded.key, &document).await?;
        Ok(routing.owner(sharded, &key).await? == Some(shard))
    }

    /// The value of the shard key as chunks are cut by it: a hashed field by its hash, which the server's index knows.
    async fn shard_key(&self, name: &Namespace, pattern: &Document, document: &Document) -> Result<Document> {
        let mut key = Document::new();
        for (path, kind) in pattern {
            let value = value_at(document, path).cloned().unwrap_or(Bson::Null);
            if kind.as_str() == Some("hashed") {
                return self.indexed_key(name, pattern, document).await;
            }
            key.insert(path, value);
        }
        Ok(key)
    }

    async fn indexed_key(&self, name: &Namespace, pattern: &Document, document: &Document) -> Result<Document> {
        let failed = |e| classify::error(Side::Source, &format!("read the shard key of a document of {name}"), e);
        let mut filter = doc! { "_id": document.get("_id").cloned().unwrap_or(Bson::Null) };
        for path in pattern.keys() {
            filter.insert(path, doc! { "$eq": value_at(document, path).cloned().unwrap_or(Bson::Null) });
        }
        let collection = self.client.database(name.database()).collection::<Document>(name.collection());
        let find = collection.find_one(filter).hint(mongodb::options::Hint::Keys(pattern.clone())).return_key(true);
        // Gone meanwhile: nobody owns it.
        Ok(find.await.map_err(failed)?.unwrap_or_default())
    }
}

/// A field by its dotted path.
fn value_at<'a>(document: &'a Document, path: &str) -> Option<&'a Bson> {
    match path.split_once('.') {
        None => document.get(path),
        Some((first, rest)) => value_at(document.get_document(first).ok()?, rest),
    }
}
