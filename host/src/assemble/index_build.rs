//! What waits for the overlap mark: unique indexes, which cannot stand on a fuzzy copy.
//!
//! When everything up to the newest source position of the start is applied and nothing is in flight, the target is a
//! state that the source once had, so its unique indexes hold. If an index was created on the source after that
//! moment, the target's state may still violate it: then overlap goes on to the source's newest position and the
//! build is tried again there. Nothing is dropped and no conflict is decided here.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use oplogue_connectors::mongodb::copy::MongoCopyTarget;
use oplogue_connectors::mongodb::oplog::OplogSource;
use oplogue_connectors::mongodb::sink::MongoSink;
use oplogue_engine::error::{Kind, Result};
use oplogue_engine::full_sync::Plan;
use oplogue_engine::full_sync::copy::waits_for_mark;
use oplogue_engine::model::{NamespaceId, Namespaces, OpTime};
use oplogue_engine::pipeline::AtMark;
use oplogue_engine::plugin::PluginChain;
use oplogue_engine::sink::CopyTarget as _;
use oplogue_engine::source::{SnapshotReader, Source as _};

/// Builds the unique indexes of the copied collections when the overlap ends.
pub(super) struct UniqueAtMark {
    /// Whether a copy left any to build.
    pub(super) needed: bool,
    pub(super) reader: Arc<dyn SnapshotReader>,
    pub(super) chain: Arc<dyn PluginChain>,
    pub(super) namespaces: Arc<Namespaces>,
    pub(super) target: Arc<MongoCopyTarget>,
    pub(super) sink: Arc<MongoSink>,
    pub(super) source: OplogSource,
}

#[async_trait]
impl AtMark for UniqueAtMark {
    async fn reached(&self) -> Result<Option<OpTime>> {
        match self.build().await {
            Ok(()) => {}
            Err(error) if error.kind() == Kind::Conflict => {
                tracing::info!(%error, "a unique index does not hold yet: overlap goes on");
                return self.source.newest().await.map(Some);
            }
            Err(error) => return Err(error),
        }
        Ok(None)
    }
}

impl UniqueAtMark {
    /// Builds them now.
    ///
    /// # Errors
    /// `Conflict` when one does not hold.
    pub(super) async fn build(&self) -> Result<()> {
        self.sink.build_postponed_indexes().await?;
        if !self.needed {
            return Ok(());
        }
        for (target, specs) in self.unique_of_source().await? {
            self.target.create_indexes(target, &specs).await?;
            let namespace = self.namespaces.name(target);
            tracing::info!(%namespace, indexes = specs.len(), "unique indexes are built");
        }
        Ok(())
    }

    async fn unique_of_source(&self) -> Result<Vec<(NamespaceId, Vec<Bytes>)>> {
        let plan = Plan::make(&*self.reader, &self.chain, &self.namespaces).await?;
        let mut all = Vec::new();
        for collection in plan.collections.iter().filter(|c| c.has_documents()) {
            let specs = self.reader.indexes(&collection.plan.namespace).await?;
            let unique: Vec<_> = specs.into_iter().filter(|spec| waits_for_mark(spec)).collect();
            if !unique.is_empty() {
                all.push((collection.target, unique));
            }
        }
        Ok(all)
    }
}
