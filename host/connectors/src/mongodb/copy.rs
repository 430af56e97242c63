//! The full copy's writing half: makes collections ready, takes documents, builds indexes.
//!
//! Collections are created with the source's own options before the first document, and the pair of UUIDs is
//! recorded at once, because the changes that follow are told apart by it. Documents go as they came off the wire; a
//! duplicate `_id` is replaced, since the copy may read a document twice. What was prepared in an earlier run of the
//! same copy is never dropped.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::key::selector;
use oplogue_engine::model::{Namespace, NamespaceId, OpTime};
use oplogue_engine::sink::CopyTarget;
use oplogue_engine::source::CollectionPlan;

use super::command::{self, Manner, Statement, StatementError, Verb};
use super::ddl::{Executor, create_command};
use super::identity::{CollectionInfo, Standing};
use super::sink::MongoSink;
use super::{classify, sink};

/// The settings of `full_sync.*` that concern writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyOptions {
    /// Drop a target collection that stands there; `false` refuses to start instead.
    pub collection_exist_drop: bool,
    /// An earlier run of this copy prepared collections: those are kept.
    pub resumed: bool,
    /// Documents in one command, at most (`full_sync.reader.document_batch_size`).
    pub documents_max: usize,
    /// Write with majority concern.
    pub majority: bool,
}

/// Writes the full copy through a sink's connection and identity map.
pub struct MongoCopyTarget {
    sink: Arc<MongoSink>,
    options: CopyOptions,
    deferred: tokio::sync::Mutex<Vec<(NamespaceId, Bytes)>>,
}

impl MongoCopyTarget {
    /// A copy target that shares `sink`'s connection and identity map.
    #[must_use]
    pub fn new(sink: Arc<MongoSink>, options: CopyOptions) -> Self {
        Self { sink, options, deferred: tokio::sync::Mutex::default() }
    }

    /// Documents that a unique index, which stood on the target already, did not let in: (target, selector). They are
    /// to be read again from the source at the overlap mark.
    pub async fn take_deferred(&self) -> Vec<(NamespaceId, Bytes)> {
        std::mem::take(&mut *self.deferred.lock().await)
    }

    fn executor(&self, plan: &CollectionPlan) -> Executor<'_> {
        Executor::new(&self.sink, plan.uuid, false, self.options.majority)
    }

    async fn manner(&self) -> Result<Manner> {
        let manner = self.sink.manner(self.sink.target().await?);
        Ok(Manner { majority: manner.majority || self.options.majority, ..manner })
    }

    /// Whether an earlier run of this copy made what stands there.
    fn is_ours(&self, plan: &CollectionPlan, name: &Namespace) -> bool {
        let own = |uuid| matches!(self.sink.catalogue.standing(name, uuid), Standing::Own(_));
        self.options.resumed && plan.uuid.is_some_and(own)
    }

    async fn insert_chunk(&self, place: &Namespace, target: NamespaceId, chunk: &[Bytes]) -> Result<Option<OpTime>> {
        let manner = self.manner().await?;
        let keys = LiteralKeys::of(chunk)?;
        let statements = keys.statements(chunk)?;
        let mut time = None;
        for verb in [Verb::Insert, Verb::Update] {
            let group: Vec<(usize, &Statement<'_>)> =
                statements.iter().enumerate().filter(|(_, s)| s.verb() == verb).collect();
            if group.is_empty() {
                continue;
            }
            let only: Vec<&Statement<'_>> = group.iter().map(|(_, statement)| *statement).collect();
            let outcome = command::send(&self.sink.client, place, &only, manner).await?;
            time = outcome.operation_time.max(time);
            for (at, error) in outcome.errors {
                let document = group.get(at).and_then(|(index, _)| chunk.get(*index));
                if let Some(document) = document {
                    time = self.refused(place, target, document, error, manner).await?.max(time);
                }
            }
        }
        Ok(time)
    }

    /// One document that the server did not take.
    async fn refused(
        &self,
        place: &Namespace,
        target: NamespaceId,
        document: &Bytes,
        error: StatementError,
        manner: Manner,
    ) -> Result<Option<OpTime>> {
        let key = selector(document)?;
        let mut error = error;
        if sink::is_own_id(&error) {
            let replace = Statement::replace(&key, document)?;
            let mut outcome = command::send(&self.sink.client, place, &[&replace], manner).await?;
            match outcome.errors.pop() {
                None => return Ok(outcome.operation_time),
                Some((_, next)) => error = next,
            }
        }
        if error.key_pattern.is_some() {
            self.deferred.lock().await.push((target, key));
            return Ok(None);
        }
        let kind = classify::of_code(error.code).unwrap_or(Kind::CannotApply);
        let id = sink::shown_id(&key);
        let text = format!("copy document {id} to {place}: {} (code {})", error.message, error.code);
        Err(Error::new(Side::Sink, kind, text))
    }
}

/// The selectors of documents that must go under `$literal`; statements borrow from them.
struct LiteralKeys(Vec<Option<Bytes>>);

impl LiteralKeys {
    fn of(documents: &[Bytes]) -> Result<Self> {
        let mut keys = Vec::with_capacity(documents.len());
        for document in documents {
            let literal = super::literal::needs_literal(document)?;
            keys.push(if literal { Some(selector(document)?) } else { None });
        }
        Ok(Self(keys))
    }

    fn statements<'a>(&'a self, documents: &'a [Bytes]) -> Result<Vec<Statement<'a>>> {
        let pairs = documents.iter().zip(&self.0);
        Ok(pairs
            .map(|(document, key)| match key {
                Some(key) => Statement::Literal { key, document },
                None => Statement::Insert(document),
            })
            .collect())
    }
}

#[async_trait]
impl CopyTarget for MongoCopyTarget {
    async fn prepare(&self, plan: &CollectionPlan, target: NamespaceId) -> Result<()> {
        self.sink.target().await?;
        let name = self.sink.namespaces.name(target);
        let executor = self.executor(plan);
        let present: Option<CollectionInfo> = self.sink.catalogue.refresh(&name).await?;
        if present.is_some() {
            if self.is_ours(plan, &name) {
                return Ok(());
            }
            if !self.options.collection_exist_drop {
                let text = format!(
                    "{name} stands on the target already and full_sync.collection_exist_drop is false: \
                     drop it, or set the key to true"
                );
                return Err(Error::new(Side::Sink, Kind::Misconfigured, text));
            }
            executor.drop_now(&name).await?;
        }
        let command = create_command(&name, &plan.options, self.options.majority)?;
        executor.run(name.database(), "create", &name, command, &[]).await?;
        executor.adopt(&stored_in(&name, plan)).await?;
        self.sink.catalogue.refresh(&name).await?;
        Ok(())
    }

    async fn insert(&self, target: NamespaceId, documents: &[Bytes]) -> Result<Option<OpTime>> {
        let place = self.sink.namespaces.name(target);
        let mut time = None;
        for chunk in documents.chunks(self.options.documents_max.max(1)) {
            time = self.insert_chunk(&place, target, chunk).await?.max(time);
        }
        Ok(time)
    }

    async fn create_indexes(&self, target: NamespaceId, specs: &[Bytes]) -> Result<()> {
        let name = self.sink.namespaces.name(target);
        let specs: Vec<&Bytes> = specs.iter().collect();
        self.sink.build_indexes(&name, &specs, self.options.majority).await
    }
}

/// Where the documents of a collection are, which is what has the UUID.
fn stored_in(name: &Namespace, plan: &CollectionPlan) -> Namespace {
    if plan.kind == "timeseries" {
        return Namespace::of(name.database(), &format!("system.buckets.{}", name.collection()));
    }
    name.clone()
}
