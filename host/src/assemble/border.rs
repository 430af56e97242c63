//! Copies a collection that a rename brought over the filter's border.
//!
//! What such a collection holds was never in the stream, so it is read from the source as it is now, by the parts of
//! the full copy, while everything else waits. Its later changes then meet documents that contain them: the caller is
//! told up to which source time. The collection is found by its identity, since a rename further on may have moved it
//! by now; of one that is gone nothing is applied any more. Nothing here decides what may be
//! removed from the target; the sink does.

use std::sync::Arc;

use async_trait::async_trait;
use oplogue_connectors::mongodb::copy::MongoCopyTarget;
use oplogue_connectors::mongodb::sink::{Arrival, MongoSink};
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::full_sync::{FullSync, FullSyncOptions, Plan};
use oplogue_engine::metrics::{Metrics, Status};
use oplogue_engine::model::{Change, Ddl, Namespaces};
use oplogue_engine::pipeline::state::keeps_order;
use oplogue_engine::pipeline::{Border, CopiedIn};
use oplogue_engine::plugin::PluginChain;
use oplogue_engine::sink::{CopyTarget, DdlOutcome};
use oplogue_engine::source::{CollectionPlan, SnapshotReader, Source, majority_has};
use tokio_util::sync::CancellationToken;

use super::index_build::Waits;

/// What the copy is made of.
pub(super) struct BorderCopy {
    pub(super) reader: Arc<dyn SnapshotReader>,
    pub(super) chain: Arc<dyn PluginChain>,
    pub(super) namespaces: Arc<Namespaces>,
    pub(super) target: Arc<MongoCopyTarget>,
    pub(super) sink: Arc<MongoSink>,
    pub(super) source: Box<dyn Source>,
    pub(super) metrics: Metrics,
    pub(super) status: Status,
    pub(super) options: FullSyncOptions,
    /// Told when a copy leaves indexes to the overlap mark.
    pub(super) indexes_wait: Arc<Waits>,
}

#[async_trait]
impl Border for BorderCopy {
    async fn copy_in(&self, change: &Change, overlap: bool, stop: &CancellationToken) -> Result<CopiedIn> {
        let Some(Ddl::CopyIn { namespace, drop_target }) = change.ddl.as_deref() else {
            return Err(Error::new(Side::Internal, Kind::Bug, "a copy over the border without its command"));
        };
        let mut copied = CopiedIn { outcome: DdlOutcome::Already, overlap_until: change.time, ordered: false };
        match self.sink.arrives(change, *drop_target, overlap).await? {
            Arrival::Copy => {}
            Arrival::Done => {
                self.indexes_wait.leave();
                return Ok(copied);
            }
            Arrival::Gone => return self.never_arrives(change, copied).await,
            Arrival::Refused => return Ok(CopiedIn { outcome: DdlOutcome::Refused, ..copied }),
        }
        let name = self.namespaces.name(namespace.target);
        let Some(plan) = self.find(change, stop).await? else {
            tracing::info!(namespace = %name, "a collection that came into the filter is gone by now: its end follows");
            return self.never_arrives(change, copied).await;
        };
        tracing::info!(namespace = %name, from = %plan.namespace, "copying a collection that came into the filter");
        copied.ordered = keeps_order(&plan.options);
        let plan = Plan::of_one(plan, namespace.source, namespace.target);
        let Some(summary) = self.full_sync(change).run_plan(plan, stop).await? else {
            return Err(stopping());
        };
        if let Some((_, key)) = self.target.take_deferred().await.first() {
            let text = format!("a unique index on the target keeps {key:?} out of {name}, which is being copied");
            return Err(Error::new(Side::Sink, Kind::Conflict, text));
        }
        self.indexes_wait.leave();
        copied.outcome = DdlOutcome::Done(summary.target_time);
        tracing::info!(namespace = %name, documents = summary.documents, "the collection is copied");
        self.sink.arrived(change).await?;
        copied.overlap_until = self.source.written().await?;
        Ok(copied)
    }
}

impl BorderCopy {
    /// The collection as the source lists it, `None` when it is gone for good: a drop that only the source's primary
    /// has can be taken back.
    async fn find(&self, change: &Change, stop: &CancellationToken) -> Result<Option<CollectionPlan>> {
        let listed = async || {
            let all = self.reader.collections().await?;
            Ok::<_, Error>(all.into_iter().find(|plan| plan.uuid.is_some() && plan.uuid == change.collection))
        };
        if let Some(found) = listed().await? {
            return Ok(Some(found));
        }
        let written = self.source.written().await?;
        let waits = || {
            let name = self.namespaces.name(change.source);
            tracing::info!(
                namespace = %name, until = %written,
                "a collection that came into the filter is gone on the source: waiting until its majority agrees"
            );
        };
        tokio::select! {
            () = stop.cancelled() => return Err(stopping()),
            agreed = majority_has(&*self.source, written, waits) => agreed?,
        }
        listed().await
    }

    async fn never_arrives(&self, change: &Change, copied: CopiedIn) -> Result<CopiedIn> {
        let overlap_until = self.source.written().await?;
        self.sink.never_arrives(change, overlap_until).await?;
        Ok(CopiedIn { overlap_until, ..copied })
    }

    fn full_sync(&self, change: &Change) -> FullSync {
        FullSync {
            reader: Arc::clone(&self.reader),
            target: Arc::clone(&self.target) as Arc<dyn CopyTarget>,
            chain: Arc::clone(&self.chain),
            namespaces: Arc::clone(&self.namespaces),
            metrics: self.metrics.clone(),
            status: self.status.clone(),
            options: self.options.clone(),
            after: change.time,
        }
    }
}

fn stopping() -> Error {
    Error::new(Side::Internal, Kind::Unavailable, "the run is stopping: the copy is done again")
}
