//! The full copy's writing half: makes collections ready, takes documents, builds indexes.
//!
//! Collections are created with the source's own options before the first document, and the pair of UUIDs is
//! recorded at once, because the changes that follow are told apart by it. Documents go as they came off the wire; a
//! duplicate `_id` is replaced, since the copy may read a document twice. What was prepared in an earlier run of the
//! same copy is never dropped.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use oplogue_engine::checkpoint::ViewPair;
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::key::selector;
use oplogue_engine::model::{Namespace, NamespaceId, OpTime};
use oplogue_engine::sink::{CopyTarget, newest_write};
use oplogue_engine::source::CollectionPlan;

use super::command::{self, Concern, Manner, Statement, StatementError, Verb};
use super::ddl::{Executor, create_command};
use super::identity::{Shape, Standing};
use super::sink::MongoSink;
use super::writer::RawWriter;
use super::{classify, sink};

mod sharding;

pub use sharding::Sharding;

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

/// What stands on the target where a collection is to be copied to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Occupant {
    None,
    /// An earlier run of this copy made it of the same source collection.
    Ours,
    /// It is this job's, or it holds nothing, but it is not what is to be copied: it is made anew.
    Remade,
    /// Somebody sharded an empty collection for this copy.
    Sharded,
    Foreign,
}

/// Older than every entry of a source: the time of a full copy.
pub(super) const BEFORE_EVERYTHING: OpTime = OpTime { secs: 0, inc: 1, term: -1 };

/// Writes the full copy through a sink's connection and identity map.
pub struct MongoCopyTarget {
    sink: Arc<MongoSink>,
    options: CopyOptions,
    sharding: Sharding,
    deferred: tokio::sync::Mutex<Vec<(NamespaceId, Bytes)>>,
}

impl MongoCopyTarget {
    /// A copy target that shares `sink`'s connection and identity map.
    #[must_use]
    pub fn new(sink: Arc<MongoSink>, options: CopyOptions) -> Self {
        Self { sink, options, sharding: Sharding::default(), deferred: tokio::sync::Mutex::default() }
    }

    /// Says what is to be sharded, where the target is a cluster.
    #[must_use]
    pub fn sharding(self, sharding: Sharding) -> Self {
        Self { sharding, ..self }
    }

    /// Documents that a unique index, which somebody else built on the target, did not let in: (target, selector). The
    /// copy lacks them, so it must not be called done.
    pub async fn take_deferred(&self) -> Vec<(NamespaceId, Bytes)> {
        std::mem::take(&mut *self.deferred.lock().await)
    }

    async fn executor(&self, plan: &CollectionPlan) -> Result<Executor<'_>> {
        Ok(Executor::new(&self.sink, plan.uuid, false, self.concern().await?))
    }

    async fn manner(&self) -> Result<Manner<'_>> {
        let manner = self.sink.manner(self.sink.target().await?, None);
        let concern = if self.options.majority { Concern::Majority } else { manner.concern };
        Ok(Manner { concern, ..manner })
    }

    /// Of commands of the catalogue. A `mongos` reports no time that durability could wait for.
    async fn concern(&self) -> Result<Concern> {
        let target = self.sink.target().await?;
        Ok(Concern::of(self.options.majority || target.is_mongos))
    }

    /// What stands under the name that a collection is to have.
    async fn occupant(&self, plan: &CollectionPlan, name: &Namespace) -> Result<Occupant> {
        let catalogue = &self.sink.catalogue;
        let Some(info) = catalogue.refresh(name).await? else { return Ok(Occupant::None) };
        if !self.options.resumed {
            return self.sharded_before(name).await;
        }
        let place = if info.shape == Shape::TimeSeries { buckets_of(name) } else { name.clone() };
        let info = if place == *name { Some(info) } else { catalogue.refresh(&place).await? };
        let own = |uuid| matches!(catalogue.standing(&place, uuid), Standing::Own(_));
        if plan.uuid.is_some_and(own) {
            return Ok(Occupant::Ours);
        }
        // An earlier run of this copy was killed between making a collection and recording it, or the source moved the
        // collection that was copied to here. A view holds no data.
        let claimed = info.and_then(|info| info.uuid).is_some_and(|uuid| catalogue.is_claimed(uuid));
        let is_view = info.is_some_and(|info| info.shape == Shape::View);
        if !claimed && !is_view && self.sharded_before(name).await? == Occupant::Sharded {
            return Ok(Occupant::Sharded);
        }
        let remade = claimed || is_view || self.sink.is_empty(name).await?;
        Ok(if remade { Occupant::Remade } else { Occupant::Foreign })
    }

    /// Drops what an earlier run of this copy made of a collection that the source renamed meanwhile: it is copied
    /// under its new name. Done before the new pair is recorded, since nobody would know the old one after that.
    async fn drop_misplaced(&self, plan: &CollectionPlan, name: &Namespace) -> Result<()> {
        let Some(uuid) = plan.uuid else { return Ok(()) };
        let place = self.sink.catalogue.place_of(uuid).filter(|place| *place != stored_in(name, plan));
        if let Some(place) = place {
            tracing::info!(namespace = %place, now = %name, "dropped: the source renamed this collection during the copy");
            self.executor(plan).await?.drop_now(&place).await?;
        }
        Ok(())
    }

    async fn make(&self, plan: &CollectionPlan, name: &Namespace) -> Result<Option<OpTime>> {
        let executor = self.executor(plan).await?;
        if plan.kind == "view" {
            let pair = ViewPair { source: plan.namespace.clone(), target: name.clone() };
            self.sink.catalogue.record_view(pair).await?;
        }
        let command = create_command(name, &plan.options, self.concern().await?)?;
        let time = executor.run(name.database(), "create", name, command, &[]).await?;
        // Before the pair is recorded: a collection that a crash leaves unsharded is made anew.
        self.shard_like_source(&executor, plan, name).await?;
        self.adopt(&executor, plan, &stored_in(name, plan)).await?;
        self.sink.catalogue.refresh(name).await?;
        Ok(time)
    }

    /// Records what stands under `name` as a copy. How new it is at least is known where it came over the filter's
    /// border; everything else that is copied was in the stream all the time.
    async fn adopt(&self, executor: &Executor<'_>, plan: &CollectionPlan, name: &Namespace) -> Result<()> {
        if let Some(source) = plan.uuid {
            self.sink.catalogue.copying(source, BEFORE_EVERYTHING);
        }
        executor.adopt(name).await
    }

    /// A time not before anything that the target has done so far.
    async fn now(&self, plan: &CollectionPlan) -> Result<Option<OpTime>> {
        let mut w = RawWriter::with_capacity(32);
        w.int("ping", 1);
        let answer = self.executor(plan).await?.try_run("admin", w).await?;
        answer.map_err(|e| classify::error(Side::Sink, "ask the target for its time", e))
    }

    async fn insert_chunk(&self, place: &Namespace, target: NamespaceId, chunk: &[Bytes]) -> Result<Option<OpTime>> {
        let manner = self.manner().await?;
        let keys = LiteralKeys::of(chunk)?;
        let mut statements = keys.statements(chunk)?;
        let mut time = None;
        if let Some(shard_key) = self.sink.catalogue.shard_key(place) {
            time = self.clear_former(place, &shard_key, chunk, manner).await?;
            statements = sharding::upserts_at(place, &shard_key, statements)?;
        }
        for verb in [Verb::Insert, Verb::Update] {
            let group: Vec<(usize, &Statement<'_>)> =
                statements.iter().enumerate().filter(|(_, s)| s.verb() == verb).collect();
            if group.is_empty() {
                continue;
            }
            let only: Vec<&Statement<'_>> = group.iter().map(|(_, statement)| *statement).collect();
            let outcome = command::send(&self.sink.client, place, &only, manner).await?;
            time = newest_write(outcome.operation_time, time);
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
        manner: Manner<'_>,
    ) -> Result<Option<OpTime>> {
        let key = selector(document)?;
        let mut error = error;
        if sink::is_own_id(&error) {
            let replace = self.replacement(place, &key, document)?;
            let mut outcome = command::send(&self.sink.client, place, &[&replace], manner).await?;
            if outcome.errors.first().is_some_and(|(_, error)| sink::is_dollar_name(error)) {
                // Servers before 5.0 take such a document, but only from an insert.
                let delete = Statement::Delete { key: &key };
                command::send(&self.sink.client, place, &[&delete], manner).await?;
                let insert = Statement::Insert(document);
                outcome = command::send(&self.sink.client, place, &[&insert], manner).await?;
            }
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
    async fn prepare(&self, plan: &CollectionPlan, target: NamespaceId) -> Result<Option<OpTime>> {
        self.sink.target().await?;
        let name = self.sink.namespaces.name(target);
        if self.options.resumed {
            self.drop_misplaced(plan, &name).await?;
        }
        match self.occupant(plan, &name).await? {
            Occupant::None => {}
            Occupant::Ours => {
                self.compare_key(plan, &name).await?;
                return self.now(plan).await;
            }
            Occupant::Sharded => {
                self.compare_key(plan, &name).await?;
                self.adopt(&self.executor(plan).await?, plan, &name).await?;
                return self.now(plan).await;
            }
            Occupant::Remade => drop(self.executor(plan).await?.drop_now(&name).await?),
            Occupant::Foreign if self.options.collection_exist_drop => {
                self.executor(plan).await?.drop_now(&name).await?;
            }
            Occupant::Foreign => {
                let text = format!(
                    "{name} stands on the target already and full_sync.collection_exist_drop is false: \
                     drop it, or set the key to true"
                );
                return Err(Error::new(Side::Sink, Kind::Misconfigured, text));
            }
        }
        self.make(plan, &name).await
    }

    async fn prepare_again(&self, plan: &CollectionPlan, target: NamespaceId) -> Result<Option<OpTime>> {
        let name = self.sink.namespaces.name(target);
        self.executor(plan).await?.drop_now(&name).await?;
        self.make(plan, &name).await
    }

    async fn insert(&self, target: NamespaceId, documents: &[Bytes]) -> Result<Option<OpTime>> {
        let place = self.sink.namespaces.name(target);
        let mut time = None;
        for chunk in documents.chunks(self.options.documents_max.max(1)) {
            time = self.insert_chunk(&place, target, chunk).await?.max(time);
        }
        Ok(time)
    }

    async fn create_indexes(&self, target: NamespaceId, specs: &[Bytes]) -> Result<Option<OpTime>> {
        let name = self.sink.namespaces.name(target);
        let specs: Vec<&Bytes> = specs.iter().collect();
        // When they stand, they are not built again: a fail-over must not take them back.
        self.sink.build_indexes(&name, &specs, Concern::Majority).await
    }
}

/// Where the documents of a collection are, which is what has the UUID.
fn stored_in(name: &Namespace, plan: &CollectionPlan) -> Namespace {
    if plan.kind == "timeseries" {
        return buckets_of(name);
    }
    name.clone()
}

fn buckets_of(name: &Namespace) -> Namespace {
    Namespace::of(name.database(), &format!("system.buckets.{}", name.collection()))
}
