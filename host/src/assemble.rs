//! Builds a run from source to checkpoint: read [`run`] from top to bottom to follow a change on its way.
//!
//! Every part is made (`parts.rs`) and handed to the next one; the parts know each other only by the engine's traits.
//! The full copy and incremental share the plugin chain, the sink and the store. What a part does inside is its own
//! module's affair; this one only joins, and decides where to start ([`start`]).

mod adopt;
mod border;
pub mod changed;
mod index_build;
mod parts;
mod servers;
pub mod start;

use std::sync::Arc;
use std::time::Duration;

use oplogue_connectors::mongodb::copy::{CopyOptions, MongoCopyTarget};
use oplogue_connectors::mongodb::patience;
use oplogue_connectors::mongodb::sink::MongoSink;
use oplogue_connectors::mongodb::store::{MongoStore, StoreOptions};
use oplogue_engine::budget::Budget;
use oplogue_engine::checkpoint::{Checkpoint, CheckpointStore, Found, Stage};
use oplogue_engine::config::Config;
use oplogue_engine::config::checked::{self, CreateIndex};
use oplogue_engine::decode::BehindCut;
use oplogue_engine::error::{Action, Error, Kind, Result, Side};
use oplogue_engine::full_sync::FullSync;
use oplogue_engine::metrics::{Metrics, Status, SyncStage};
use oplogue_engine::model::{Namespaces, OpTime, Position};
use oplogue_engine::pipeline::state::CoreOptions;
use oplogue_engine::pipeline::{self, Finished, Incremental, IncrementalOptions};
use oplogue_engine::plugin::PluginChain;
use oplogue_engine::retry::Backoff;
use oplogue_engine::sink::{CopyTarget, Sink};
use oplogue_engine::supervise::Supervisor;
use oplogue_plugin_runtime::{Chain, ConflictPlugin};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use border::BorderCopy;
use index_build::{IndexesAtMark, Parts, Waits};
use servers::{Cluster, Servers};
use start::{Begin, decide};

/// How long a start waits for servers that are there and refuse for the moment. One selection of a server takes two
/// thirds of it, so that an address where nobody is costs two.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// What the surroundings of a run give it and read from it.
#[derive(Debug, Clone)]
pub struct Hooks {
    pub metrics: Metrics,
    pub status: Status,
    /// Cancelled by the first SIGTERM or SIGINT: shut down in order.
    pub stop: CancellationToken,
    /// Notified by SIGHUP: look at the plugins again.
    pub reload: Arc<Notify>,
}

/// How a run ended without a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything that was read is durable and the last checkpoint is stored, but for what the log names as left to
    /// the next start.
    Clean,
    /// `limits.shutdown_time` passed first; the last stored checkpoint is the safe position.
    DeadlinePassed,
    /// A passing fault came in the way of the shutdown; the last stored checkpoint is the safe position.
    Interrupted,
}

/// What is left to say after a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitReport {
    pub ended: Ended,
    /// Position of the last stored checkpoint.
    pub checkpoint: Option<Position>,
}

/// Runs until the end of the copy (`sync_mode = full`), a fault, or `hooks.stop`.
///
/// # Errors
/// The fault that stopped the run.
pub async fn run(config: Config, hooks: Hooks) -> Result<ExitReport> {
    let deadline = config.limits.shutdown_time;
    let stop = hooks.stop.clone();
    let late = async {
        stop.cancelled().await;
        tokio::time::sleep(deadline).await;
    };
    tokio::select! {
        biased;
        ended = Box::pin(run_to_end(config, hooks)) => ended,
        () = late => Ok(ExitReport { ended: Ended::DeadlinePassed, checkpoint: None }),
    }
}

async fn run_to_end(config: Config, hooks: Hooks) -> Result<ExitReport> {
    patience::set(config.limits.answer_time);
    // The servers, and what they allow.
    let servers = patiently(&hooks.stop, || Servers::connect(&config)).await?;
    hooks.status.set_replset(&servers.replica_set);
    let namespaces = Namespaces::shared();
    let budget = Budget::new(config.limits.memory_bytes);
    hooks.status.set_budget(&budget);

    // The plugins: the default ones and the user's, in one chain.
    let chain = servers::plugin_chain(&config, &namespaces)?;
    // Another plugin may rule over what the target refuses.
    let judge = servers::conflict_plugin(&config)?.map(Arc::new);
    let mut beside = Supervisor::new(&hooks.stop);
    let reloaded = std::iter::once(Arc::clone(&chain)).chain(judge.iter().map(|judge| Arc::clone(judge.chain())));
    let reload = servers::reload_on_request(reloaded.collect(), Arc::clone(&hooks.reload), beside.token());
    beside.spawn("plugin reload", reload);
    for asked in std::iter::once(&chain).chain(judge.iter().map(|judge| judge.chain())) {
        let asked = Arc::clone(asked);
        hooks.status.add_plugins(move || asked.stats());
    }

    // The store, whose lease makes this instance the only one that moves the position.
    let store = MongoStore::new(&servers.store, store_options(&config, &servers));
    let shards = servers.cluster.as_ref().map(Cluster::names).unwrap_or_default();
    let store = Arc::new(store.of_shards(shards));
    let found = patiently(&hooks.stop, || store.acquire()).await?;
    let lease = patiently(&hooks.stop, || store.lease_identity()).await?;

    let stored = match &found {
        Found::Ours(stored) if !stored.configuration.is_empty() => Some(stored.plugins.clone()),
        Found::Ours(_) | Found::Nothing | Found::MongoShake(_) => None,
    };

    let job = Job { config, hooks, servers, namespaces, budget, chain, judge, store, lease };
    // What this run has stored last, for its report.
    let mut checkpoint = None;
    let at = match decide(&job.config, found)? {
        Begin::Copy { resume } => match job.copy(resume).await? {
            Some(position) if job.config.sync_mode != checked::SyncMode::Full => {
                checkpoint = Some(position.clone());
                (position, Stage::CatchUp)
            }
            Some(position) => {
                let ended = job.finish_copy().await?;
                return Ok(ExitReport { ended, checkpoint: Some(position) });
            }
            None => {
                return Ok(ExitReport { ended: Ended::Clean, checkpoint: None });
            }
        },
        Begin::Follow { position, stage } => {
            if let Some(stored) = stored {
                changed::report(&stored, &job.chain.generations());
            }
            if stage == Stage::Incremental {
                tokio::select! {
                    biased;
                    () = job.hooks.stop.cancelled() => return Ok(ExitReport { ended: Ended::Clean, checkpoint }),
                    adopted = patiently(&job.hooks.stop, || job.adopt(&position)) => adopted?,
                }
            }
            (position, stage)
        }
    };

    job.follow_to_end(at, checkpoint).await
}

/// What is done before there is a position to go back to: a passing fault, such as an election just now, is waited
/// out for a while, and ends the run when it does not pass.
async fn patiently<T, F: Future<Output = Result<T>>>(
    stop: &CancellationToken,
    mut ask: impl FnMut() -> F,
) -> Result<T> {
    let give_up = tokio::time::Instant::now() + START_PATIENCE;
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        match ask().await {
            Err(error) if error.action() == Action::Rewind && tokio::time::Instant::now() < give_up => {
                tracing::warn!(%error, "the start is tried again");
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return Err(error),
                    () = tokio::time::sleep(backoff.pause()) => {}
                }
            }
            answer => return answer,
        }
    }
}

/// The parts that the copy and incremental share.
struct Job {
    config: Config,
    hooks: Hooks,
    servers: Servers,
    namespaces: Arc<Namespaces>,
    budget: Budget,
    chain: Arc<Chain>,
    /// Rules over conflicts (`incr_sync.conflict_write_to = sdk`).
    judge: Option<Arc<ConflictPlugin>>,
    store: Arc<dyn CheckpointStore>,
    /// Names this job's connections to the target.
    lease: String,
}

impl Job {
    /// The full copy, from the position that was noted before its first read. Returns that position when the copy is
    /// durable, `None` when the run was asked to stop.
    async fn copy(&self, resume: Option<Position>) -> Result<Option<Position>> {
        self.hooks.status.set_stage(SyncStage::FullSync);
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        let mut begin = resume.clone();
        let mut resumed = resume.is_some();
        loop {
            let outcome = Box::pin(self.copy_once(&mut begin, resumed)).await;
            match outcome {
                Ok(done) => return Ok(done),
                Err(error) if error.action() == Action::Rewind => {
                    if self.pause(&error, &mut backoff).await.is_break() {
                        return Ok(None);
                    }
                    resumed = begin.is_some();
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn copy_once(&self, begin: &mut Option<Position>, resumed: bool) -> Result<Option<Position>> {
        let source = self.source();
        let position = match begin {
            Some(position) => {
                start::refuse_outside_window(position, &source.window().await?)?;
                source.resolve(position).await?
            }
            None => source.now().await?,
        };
        self.refuse_hidden().await?;
        self.refuse_leftovers().await?;
        let sink = tokio::select! {
            biased;
            () = self.hooks.stop.cancelled() => return Ok(None),
            sink = self.sink(Stage::FullSync, None) => sink?,
        };
        let before = sink.durability().await?;
        self.hooks.status.recovered();
        self.save(Stage::FullSync, &position).await?;
        *begin = Some(position.clone());
        // What an earlier run of this copy prepared keeps the shape of that run's first look: DDL since then is replayed.
        if !resumed {
            sink.catalogue_read_at(source.now().await?.time()).await?;
        }
        let target = self.copy_target(&sink, resumed);
        let copy = FullSync {
            reader: self.reader(),
            target: Arc::clone(&target) as Arc<dyn CopyTarget>,
            chain: self.chain(),
            namespaces: Arc::clone(&self.namespaces),
            metrics: self.hooks.metrics.clone(),
            status: self.hooks.status.clone(),
            options: self.copy_options(),
            after: position.time(),
        };
        let Some(summary) = Box::pin(copy.run(&*source, &self.hooks.stop)).await? else {
            return Ok(None);
        };
        self.refuse_deferred(&target).await?;
        self.wait_until_durable(&sink, before.term, summary.target_time).await?;
        // Asked before the copy counts as done: a fault here would begin it anew.
        let finish = source.newest().await?;
        self.save(Stage::CatchUp, &position).await?;
        tracing::info!(
            collections = summary.collections,
            documents = summary.documents,
            bytes = summary.bytes,
            unique_indexes_waiting = summary.unique_indexes_waiting,
            "full sync is durable on the target"
        );
        let span = format!("fullBeginTs[{}], fullFinishTs[{}]", position.time().secs, finish.secs);
        // The words that operators of MongoShake wait for.
        match self.config.sync_mode {
            checked::SyncMode::Full => tracing::info!("finish full sync, no incr sync follows: {span}"),
            checked::SyncMode::All | checked::SyncMode::Incr => {
                tracing::info!("finish full sync, start incr sync with timestamp: {span}");
            }
        }
        Ok(Some(position))
    }

    /// The end of `sync_mode = full`. A passing fault costs nothing of the copy; a stop does, since the next start of that
    /// mode copies again.
    async fn finish_copy(&self) -> Result<Ended> {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        loop {
            match self.finish_indexes().await {
                Ok(()) => return Ok(Ended::Clean),
                Err(error) if error.action() == Action::Rewind => {
                    if self.pause(&error, &mut backoff).await.is_break() {
                        return Ok(Ended::Interrupted);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// `sync_mode = full` ends after the copy, so unique indexes are built on what it copied. On a source that was
    /// written to meanwhile they may not hold: that is an error, and the data is left as it is.
    async fn finish_indexes(&self) -> Result<()> {
        let sink = self.sink(Stage::CatchUp, None).await?;
        let waiting = self.indexes_at_mark(&sink, &Arc::new(Waits::new(true)));
        waiting.build().await.map_err(|e| {
            if !matches!(e.kind(), Kind::Conflict | Kind::CannotApply) {
                return e;
            }
            e.context("the copy is complete, but the source was written to meanwhile; run incremental to finish it")
        })
    }

    fn indexes_at_mark(&self, sink: &Arc<MongoSink>, waits: &Arc<Waits>) -> IndexesAtMark {
        IndexesAtMark::new(Parts {
            wanted: self.config.full_sync.create_index != CreateIndex::None,
            waits: Arc::clone(waits),
            reader: self.reader(),
            chain: self.chain(),
            namespaces: Arc::clone(&self.namespaces),
            target: self.copy_target(sink, true),
            sink: Arc::clone(sink),
            source: self.source(),
        })
    }

    /// Copies what a rename brings over the filter's border.
    fn border(&self, sink: &Arc<MongoSink>, indexes_wait: Arc<Waits>) -> BorderCopy {
        let full = &self.config.full_sync;
        let options = CopyOptions {
            collection_exist_drop: false,
            resumed: false,
            documents_max: full.document_batch_size,
            // A later command may note that this one is done: nothing of it may be rolled back then.
            majority: true,
        };
        BorderCopy {
            reader: self.reader(),
            chain: self.chain(),
            namespaces: Arc::clone(&self.namespaces),
            target: Arc::new(MongoCopyTarget::new(Arc::clone(sink), options).sharding(self.sharding())),
            sink: Arc::clone(sink),
            source: self.source(),
            metrics: self.hooks.metrics.clone(),
            status: self.hooks.status.clone(),
            options: self.copy_options(),
            indexes_wait,
        }
    }

    /// Incremental, again from the last durable position after every passing fault. `checkpoint` is what this run has
    /// stored last.
    async fn follow_to_end(&self, mut at: (Position, Stage), mut checkpoint: Option<Position>) -> Result<ExitReport> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));
        let mut rewound = false;
        loop {
            let Some(finished) = self.follow(&at.0, at.1).await else {
                // What was read before the fault may not be durable.
                let ended = if rewound { Ended::Interrupted } else { Ended::Clean };
                return Ok(ExitReport { ended, checkpoint });
            };
            let Finished { why, durable, stored, stage } = finished;
            if let Some(position) = durable {
                at.0 = position;
                backoff.reset();
            }
            at.1 = stage;
            checkpoint = stored.or(checkpoint);
            match why {
                pipeline::Ended::Stopped => return Ok(ExitReport { ended: Ended::Clean, checkpoint }),
                pipeline::Ended::Fault(error) => return Err(error),
                pipeline::Ended::Rewind(error) => {
                    rewound = true;
                    if self.pause(&error, &mut backoff).await.is_break() {
                        return Ok(ExitReport { ended: Ended::Interrupted, checkpoint });
                    }
                }
            }
        }
    }

    /// Incremental from `position` until its end; `None` when the run was asked to stop before it was under way: then
    /// there is nothing to put in order.
    async fn follow(&self, position: &Position, stage: Stage) -> Option<Finished> {
        let begun = tokio::select! {
            biased;
            () = self.hooks.stop.cancelled() => return None,
            begun = Box::pin(self.incremental(position, stage)) => begun,
        };
        Some(match begun {
            Ok(incremental) => {
                self.hooks.status.set_stage(SyncStage::Incremental);
                self.hooks.status.recovered();
                Box::pin(incremental.run(self.hooks.stop.clone())).await
            }
            Err(error) => Finished { why: pipeline::Ended::of(error), durable: None, stored: None, stage },
        })
    }

    /// Source → decoder → chain → scheduler → sink → tracker → checkpoint: one incremental run, not started yet.
    async fn incremental(&self, position: &Position, stage: Stage) -> Result<Incremental> {
        self.refuse_hidden().await?;
        self.refuse_leftovers().await?;
        let mut source = self.source();
        let position = &source.resolve(position).await?;
        // Behind a cut that no copy was begun at nothing is applied at all.
        let copied_at = Some(position.time()).filter(|cut| position.oldest().ts() < cut.ts());
        let sink = self.sink(stage, copied_at).await?;
        let read = self.hooks.status.positions().now().read;
        let overlap_until = start::overlap_mark([read, position.time(), source.written().await?]);
        source.open(position).await?;
        sink.load().await?;
        let behind_cut = match (sink.was_copied(stage == Stage::CatchUp), stage) {
            (false, _) => BehindCut::LeftOut,
            (true, Stage::CatchUp) => BehindCut::Copied,
            // As after any restart.
            (true, Stage::FullSync | Stage::Incremental) => BehindCut::Repeated,
        };
        let reader = self.reader();
        let ordered = start::ordered_collections(&*reader, &self.chain(), &self.namespaces).await?;
        ordered.meet_views(&sink.views(), &sink.view_pairs(), &self.chain(), &self.namespaces)?;
        sink.adopt_views(ordered.views).await?;
        let decoder = self.decoder(position, behind_cut, &ordered.capped);
        let indexes_wait = Arc::new(Waits::new(stage == Stage::CatchUp));
        let at_mark = self.indexes_at_mark(&sink, &indexes_wait);
        let border = self.border(&sink, indexes_wait);
        tracing::info!(from = %position, %overlap_until, "incremental starts");
        Ok(Incremental {
            source,
            decoder,
            budget: self.budget.clone(),
            spill: self.spill(),
            namespaces: Arc::clone(&self.namespaces),
            chain: self.chain(),
            sink,
            store: Arc::clone(&self.store),
            at_mark: Arc::new(at_mark),
            border: Arc::new(border),
            metrics: self.hooks.metrics.clone(),
            status: self.hooks.status.clone(),
            options: IncrementalOptions {
                core: CoreOptions {
                    lanes: self.config.incr.workers,
                    overlap_until,
                    single_lane: ordered.targets,
                    single_lane_collections: ordered.collections,
                    auto: self.config.incr.auto_lanes,
                },
                checkpoint_interval: self.config.checkpoint.interval,
                stage,
                configuration: self.config.sha256().to_owned(),
            },
        })
    }

    async fn pause(&self, error: &Error, backoff: &mut Backoff) -> std::ops::ControlFlow<()> {
        self.hooks.metrics.pipeline.rewinds.inc();
        self.hooks.status.trouble(error);
        let pause = backoff.pause();
        tracing::warn!(%error, pause_ms = pause.as_millis(), "going back to the last durable position");
        tokio::select! {
            () = self.hooks.stop.cancelled() => std::ops::ControlFlow::Break(()),
            () = tokio::time::sleep(pause) => std::ops::ControlFlow::Continue(()),
        }
    }

    async fn save(&self, stage: Stage, position: &Position) -> Result<()> {
        let checkpoint = Checkpoint {
            stage,
            position: position.clone(),
            plugins: self.chain.generations(),
            configuration: self.config.sha256().to_owned(),
        };
        self.store.save(&checkpoint).await?;
        self.hooks.status.positions().set_checkpoint(position.time());
        self.hooks.status.shards().set_checkpoint(position);
        Ok(())
    }

    /// A unique index that somebody built on the target meanwhile kept documents of the copy out.
    async fn refuse_deferred(&self, target: &MongoCopyTarget) -> Result<()> {
        let deferred = target.take_deferred().await;
        let Some((namespace, _)) = deferred.first() else { return Ok(()) };
        let text = format!(
            "a unique index on the target refuses {} documents of the copy, the first in {}; drop the index, \
             Oplogue builds it when the data is complete",
            deferred.len(),
            self.namespaces.name(*namespace)
        );
        Err(Error::new(Side::Sink, Kind::Conflict, text))
    }

    /// The copy is safe when the target's majority has it, written under one primary.
    async fn wait_until_durable(&self, sink: &MongoSink, term: i64, newest: Option<OpTime>) -> Result<()> {
        let mut said = false;
        loop {
            let durability = sink.durability().await?;
            if durability.term != term && !self.config.full_sync.majority_enable {
                let text = "the target elected a new primary during the copy: its newest documents may be gone";
                return Err(Error::new(Side::Sink, Kind::FailedOver, text));
            }
            if newest.is_none_or(|newest| durability.majority.ts() >= newest.ts()) {
                return Ok(());
            }
            if !std::mem::replace(&mut said, true) {
                tracing::info!("waiting until the target's majority has the copy");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn store_options(config: &Config, servers: &Servers) -> StoreOptions {
    StoreOptions {
        database: config.checkpoint.db.clone(),
        collection: config.checkpoint.collection.clone(),
        job: config.id.clone(),
        replica_set: servers.replica_set.clone(),
        holder: format!("{}:{}", servers::host_name(), std::process::id()),
    }
}
