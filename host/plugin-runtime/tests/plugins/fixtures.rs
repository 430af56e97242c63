//! Batches made by hand and chains to send them through; the plugin files come from `files`.
//!
//! It is here so that a test reads as what goes in and what comes out. It asserts nothing of its own about the runtime;
//! what it cannot do is a panic.

use std::sync::Arc;
use std::time::Duration;

use bson::{Document, RawDocumentBuf, doc};
use bytes::Bytes;
use oplogue_engine::budget::Permit;
use oplogue_engine::model::{Change, ChangeBatch, Ddl, Namespaces, OpTime, Operation, Position, ddl::Routed};
use oplogue_engine::plugin::{ChainWorker, PluginChain};
use oplogue_plugin_runtime::{Chain, ChainOptions, PluginSource, PluginSpec};
use serde_json::{Value, json};

use crate::files::{file, guest};

/// A default plugin: the embedded one, or the freshly built file.
pub(crate) fn default_plugin(name: &'static str, config: Value) -> PluginSpec {
    match std::env::var_os("OPLOGUE_GUESTS") {
        Some(_) => PluginSpec::file(name, file(&format!("plugins/{name}/{name}.wasm")), config),
        None => PluginSpec::embedded(name, config),
    }
}

pub(crate) fn spec(name: &str, bytes: Vec<u8>, config: Value) -> PluginSpec {
    PluginSpec { source: PluginSource::Bytes(bytes.into()), ..PluginSpec::file(name, "", config) }
}

/// The example plugin, `""` or `"-v2"`.
pub(crate) fn mask_field(version: &str) -> Vec<u8> {
    std::fs::read(file(&format!("examples/mask-field/mask-field{version}.wasm"))).unwrap()
}

/// The guest that misbehaves as it is told. Only one that loops meets its time limit: on a busy machine the others
/// must not meet it by chance.
pub(crate) fn faulty(config: Value) -> PluginSpec {
    let loops = config.to_string().contains("loop");
    let mut spec = spec("faulty", guest("faulty"), config);
    spec.limits.hard = Duration::from_millis(if loops { 200 } else { 60_000 });
    spec
}

/// A chain with one worker, and the table that its batches use.
pub(crate) struct Stream {
    pub(crate) chain: Arc<Chain>,
    pub(crate) names: Arc<Namespaces>,
    pub(crate) worker: Box<dyn ChainWorker>,
    seq: u64,
}

impl Stream {
    pub(crate) fn new(specs: Vec<PluginSpec>) -> Self {
        Self::with(specs, ChainOptions { watch: false, ..ChainOptions::default() })
    }

    pub(crate) fn with(specs: Vec<PluginSpec>, options: ChainOptions) -> Self {
        let names = Namespaces::shared();
        let chain = Chain::build(specs, Arc::clone(&names), options).unwrap();
        let worker = Arc::clone(&chain).worker().unwrap();
        Self { chain, names, worker, seq: 0 }
    }

    pub(crate) fn change(&self, operation: Operation, ns: &str, body: &Document) -> Change {
        change(&self.names, operation, ns, body)
    }

    pub(crate) fn insert(&self, ns: &str, body: &Document) -> Change {
        self.change(Operation::Insert, ns, body)
    }

    pub(crate) fn delete(&self, ns: &str, id: i32) -> Change {
        let mut change = self.change(Operation::Delete, ns, &doc! {});
        change.key = raw(&doc! { "_id": id });
        change.body = Bytes::new();
        change
    }

    pub(crate) fn ddl(&self, ddl: Ddl) -> Change {
        let mut change = self.insert("unused.unused", &doc! { "command": 1 });
        change.operation = Operation::Ddl;
        change.source = ddl.namespaces()[0].source;
        change.target = change.source;
        change.ddl = Some(Box::new(ddl));
        change
    }

    pub(crate) fn routed(&self, ns: &str) -> Routed {
        Routed::same(self.names.intern(ns))
    }

    pub(crate) fn batch(&mut self, changes: Vec<Change>) -> ChangeBatch {
        self.seq += 1;
        let last = Position::Oplog(OpTime::new(self.seq as u32, 1, 1));
        ChangeBatch { seq: self.seq, changes, last, atomic: false, permit: Arc::new(Permit::none()) }
    }

    /// Runs changes through the chain; they must pass without a fault.
    pub(crate) fn run(&mut self, changes: Vec<Change>) -> Vec<Change> {
        let mut batch = self.batch(changes);
        let report = self.worker.process(&mut batch).unwrap();
        assert_eq!(report.seen, report.kept + report.dropped + report.dead);
        batch.changes
    }

    /// Runs changes that must stop the stream; the fault's text.
    pub(crate) fn fault(&mut self, changes: Vec<Change>) -> String {
        let mut batch = self.batch(changes);
        self.worker.process(&mut batch).unwrap_err().to_string()
    }

    /// The target namespaces of changes.
    pub(crate) fn targets(&self, changes: &[Change]) -> Vec<String> {
        changes.iter().map(|c| self.names.name(c.target).to_string()).collect()
    }
}

pub(crate) fn change(names: &Namespaces, operation: Operation, ns: &str, body: &Document) -> Change {
    let id = names.intern(ns);
    Change {
        operation,
        source: id,
        target: id,
        key: Bytes::new(),
        body: raw(body),
        time: OpTime::new(100, 1, 1),
        wall_ms: 1_000_000,
        collection: None,
        origin: None,
        not_before_ms: 0,
        moved: false,
        creates: false,
        ddl: None,
    }
}

pub(crate) fn raw(document: &Document) -> Bytes {
    Bytes::from(RawDocumentBuf::try_from(document).unwrap().into_bytes())
}

pub(crate) fn body(change: &Change) -> Document {
    Document::try_from(RawDocumentBuf::from_bytes(change.body.to_vec()).unwrap()).unwrap()
}

pub(crate) fn ids(changes: &[Change]) -> Vec<i32> {
    changes.iter().map(|c| body(c).get_i32("_id").unwrap()).collect()
}

pub(crate) fn minimal_manifest(kind: &str) -> Value {
    json!({ "name": "x", "version": "1", "kind": kind })
}
