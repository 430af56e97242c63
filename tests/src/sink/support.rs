//! What the sink's tests share: a store in memory, a sink over a test server, oplog entries as writes.
//!
//! The store keeps identity pairs only, because a sink asks for nothing else, and it outlives a sink as the real one
//! outlives a run. It never saves a checkpoint.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bson::{Document, RawDocumentBuf, Timestamp, doc};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use mongodb::Client;
use oplogue_connectors::mongodb::conflict::ConflictLog;
use oplogue_connectors::mongodb::sink::{MongoSink, Rules, SinkOptions};
use oplogue_engine::budget::Permit;
use oplogue_engine::checkpoint::{Checkpoint, CheckpointStore, Found, Identity, ViewPair};
use oplogue_engine::decode::{DecodeOptions, Decoder};
use oplogue_engine::error::Result;
use oplogue_engine::model::{Change, CollectionUuid, Namespace, Namespaces, OpTime, RawBatch};
use oplogue_engine::plugin::PluginChain;
use oplogue_engine::sink::{Content, Write};

/// Pairs in memory.
#[derive(Default)]
pub(super) struct MemoryStore {
    pub(super) pairs: Mutex<HashMap<CollectionUuid, Identity>>,
    views: Mutex<HashMap<Namespace, ViewPair>>,
}

impl MemoryStore {
    /// Forgets which DDL was executed last, as if the checkpoint's store had lost that write.
    pub(super) fn forget_the_mark(&self) {
        self.pairs.lock().unwrap().remove(b"newest DDL done:");
    }

    /// What the store remembers of views: the name on the source and the one on the target, in the order of the first.
    pub(super) fn view_names(&self) -> Vec<(String, String)> {
        let views = self.views.lock().unwrap();
        let mut names: Vec<_> = views.values().map(|pair| (pair.source.to_string(), pair.target.to_string())).collect();
        names.sort();
        names
    }

    /// Notes that a rename of a source collection across databases was begun, as a run does that is killed in it.
    pub(super) fn note_move(&self, source: CollectionUuid) {
        let mut key = *b"a move began of:";
        key.iter_mut().zip(source).for_each(|(byte, of_source)| *byte ^= of_source);
        self.pairs.lock().unwrap().insert(key, Identity { source: key, target: source, copied: None });
    }
}

#[async_trait]
impl CheckpointStore for MemoryStore {
    async fn acquire(&self) -> Result<Found> {
        Ok(Found::Nothing)
    }

    async fn save(&self, _: &Checkpoint) -> Result<()> {
        Ok(())
    }

    async fn still_held(&self) -> Result<()> {
        Ok(())
    }

    async fn identities(&self) -> Result<Vec<Identity>> {
        Ok(self.pairs.lock().unwrap().values().copied().collect())
    }

    async fn record_identity(&self, identity: Identity) -> Result<()> {
        let mut pairs = self.pairs.lock().unwrap();
        let copied = identity.copied.or_else(|| pairs.get(&identity.source).and_then(|known| known.copied));
        pairs.insert(identity.source, Identity { copied, ..identity });
        Ok(())
    }

    async fn forget_identity(&self, source: CollectionUuid) -> Result<()> {
        self.pairs.lock().unwrap().remove(&source);
        Ok(())
    }

    async fn views(&self) -> Result<Vec<ViewPair>> {
        Ok(self.views.lock().unwrap().values().cloned().collect())
    }

    async fn record_view(&self, pair: &ViewPair) -> Result<()> {
        self.views.lock().unwrap().insert(pair.source.clone(), pair.clone());
        Ok(())
    }

    async fn forget_view(&self, source: &Namespace) -> Result<()> {
        self.views.lock().unwrap().remove(source);
        Ok(())
    }
}

/// A sink, its store and its names.
pub(super) struct Bench {
    pub(super) source: Client,
    pub(super) client: Client,
    pub(super) sink: Arc<MongoSink>,
    pub(super) store: Arc<MemoryStore>,
    pub(super) names: Arc<Namespaces>,
    pub(super) options: SinkOptions,
}

impl Bench {
    /// A sink that reads from and writes to one server.
    pub(super) fn new(client: Client, options: SinkOptions) -> Self {
        Self::over(client.clone(), client, options, Arc::default())
    }

    pub(super) fn over(source: Client, client: Client, options: SinkOptions, store: Arc<MemoryStore>) -> Self {
        let names = Namespaces::shared();
        let sink = Arc::new(MongoSink::new(
            client.clone(),
            Some(source.clone()),
            Arc::clone(&store) as Arc<dyn CheckpointStore>,
            Arc::clone(&names),
            options,
        ));
        Self { source, client, sink, store, names, options }
    }

    /// A sink with rules over conflicts, and where it records them: `records`.
    pub(super) fn ruled(client: Client, options: SinkOptions, rules: Rules, records: Option<&str>) -> Self {
        let plain = Self::new(client.clone(), options);
        let sink = MongoSink::new(
            client.clone(),
            Some(client.clone()),
            Arc::clone(&plain.store) as Arc<dyn CheckpointStore>,
            Arc::clone(&plain.names),
            options,
        );
        let log = records.map(|database| ConflictLog::new(client, database, "test"));
        Self { sink: Arc::new(sink.ruled_by(rules).recording_to(log)), ..plain }
    }

    /// A sink that takes what it reads whole from the source through `chain`.
    pub(super) fn passing(client: Client, chain: Arc<dyn PluginChain>) -> Self {
        let plain = Self::new(client.clone(), SinkOptions::default());
        let store = Arc::clone(&plain.store) as Arc<dyn CheckpointStore>;
        let sink = MongoSink::new(client.clone(), Some(client), store, Arc::clone(&plain.names), plain.options);
        Self { sink: Arc::new(sink.passing(chain)), ..plain }
    }

    /// The same after a restart: what is known comes from the store and the server.
    pub(super) fn restarted(&self) -> Self {
        Self::over(self.source.clone(), self.client.clone(), self.options, Arc::clone(&self.store))
    }

    /// A write of `content` from `source` to `target` (both `db.collection`).
    pub(super) fn write(&self, source: &str, target: &str, id: &Document, content: Content, overlap: bool) -> Write {
        Write {
            target: self.names.intern(target),
            source: self.names.intern(source),
            key: raw(id),
            content,
            overlap,
            time: OpTime::default(),
            collection: None,
            origin: None,
            moved: false,
            creates: false,
            in_order: false,
        }
    }

    /// All documents of a collection in natural order, raw.
    pub(super) async fn documents(&self, namespace: &str) -> Vec<RawDocumentBuf> {
        let (db, collection) = namespace.split_once('.').unwrap();
        let cursor = self.client.database(db).collection::<RawDocumentBuf>(collection).find(doc! {}).await.unwrap();
        cursor.try_collect().await.unwrap()
    }
}

/// A document as raw bytes.
pub(super) fn raw(document: &Document) -> Bytes {
    Bytes::from(RawDocumentBuf::try_from(document).unwrap().into_bytes())
}

/// The newest cluster time of the server.
pub(super) async fn now(client: &Client) -> Timestamp {
    let reply = client.database("admin").run_command(doc! { "ping": 1 }).await.unwrap();
    reply.get_timestamp("operationTime").unwrap()
}

/// Raw oplog entries of one namespace (or of commands) after `since`, in order.
pub(super) async fn oplog(client: &Client, since: Timestamp, filter: Document) -> Vec<RawDocumentBuf> {
    let mut filter = filter;
    filter.insert("ts", doc! { "$gt": since });
    let oplog = client.database("local").collection::<RawDocumentBuf>("oplog.rs");
    oplog.find(filter).await.unwrap().try_collect().await.unwrap()
}

/// What the engine makes of oplog entries that came after `since`.
pub(super) fn decoded(bench: &Bench, since: Timestamp, entries: Vec<RawDocumentBuf>) -> Vec<Change> {
    let mut array = bson::RawArrayBuf::new();
    entries.into_iter().for_each(|entry| array.push(entry));
    let start = OpTime::new(since.time, since.increment, -1);
    let mut decoder = Decoder::new(bench.names.clone(), DecodeOptions::default(), start);
    let entries = Bytes::copy_from_slice(array.as_bytes());
    let batches =
        decoder.decode(RawBatch { entries, reached: None, runs: Vec::new(), permit: Permit::none() }).unwrap();
    batches.into_iter().flat_map(|batch| batch.changes).collect()
}
