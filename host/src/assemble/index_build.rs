//! What waits for the overlap mark: indexes that cannot stand on a fuzzy copy (unique ones, and those that let documents
//! expire).
//!
//! When everything up to the newest source position of the start is applied and nothing is in flight, the target is a
//! state that the source once had, so an index that the source had at that moment holds. The source can only be asked
//! for its indexes of now. So at the first mark they are listed, and overlap goes on to a position read after that; what
//! was listed before that position and is still listed after it stood there at it, and is built, unless the stream has
//! dropped it on the way: then it was made again since, before that position or after it. One that has another form since
//! (`collMod`) is listed once more. An index that comes or goes in between is the business of its own entry in the oplog.
//! One of a collection that came over the filter's border in between is listed anew. Nothing is dropped and no conflict is
//! decided here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use oplogue_connectors::mongodb::copy::MongoCopyTarget;
use oplogue_connectors::mongodb::sink::{DroppedIndexes, MongoSink};
use oplogue_engine::error::{Kind, Result};
use oplogue_engine::full_sync::Plan;
use oplogue_engine::full_sync::copy::waits_for_mark;
use oplogue_engine::model::{CollectionUuid, NamespaceId, Namespaces, OpTime, raw};
use oplogue_engine::pipeline::AtMark;
use oplogue_engine::plugin::PluginChain;
use oplogue_engine::sink::CopyTarget as _;
use oplogue_engine::source::{SnapshotReader, Source};

/// How often in a row indexes may not hold before that is a fault: a document on the target is in their way then.
const ROUNDS: u32 = 5;

/// A source collection, told by UUID since names change, and its place on the target.
type Place = (Option<CollectionUuid>, NamespaceId);

/// The indexes that wait.
type Waiting = HashMap<Place, Vec<Bytes>>;

/// What copies leave to the marks.
#[derive(Debug, Default)]
pub(super) struct Waits {
    /// A copy left indexes to build; one that a rename across the filter's border asks for may do so later.
    any: AtomicBool,
    /// The same since the last mark: what was listed there does not know of it.
    anew: AtomicBool,
}

impl Waits {
    /// `any`: the full copy left indexes to build.
    pub(super) fn new(any: bool) -> Self {
        Self { any: AtomicBool::new(any), anew: AtomicBool::new(false) }
    }

    /// A copy over the border leaves its indexes to the mark.
    pub(super) fn leave(&self) {
        self.any.store(true, Ordering::SeqCst);
        self.anew.store(true, Ordering::SeqCst);
    }
}

/// What the builder is made of.
pub(super) struct Parts {
    /// `full_sync.create_index` is not `none`.
    pub(super) wanted: bool,
    pub(super) waits: Arc<Waits>,
    pub(super) reader: Arc<dyn SnapshotReader>,
    pub(super) chain: Arc<dyn PluginChain>,
    pub(super) namespaces: Arc<Namespaces>,
    pub(super) target: Arc<MongoCopyTarget>,
    pub(super) sink: Arc<MongoSink>,
    pub(super) source: Box<dyn Source>,
}

/// Builds the waiting indexes of the copied collections when the overlap ends.
pub(super) struct IndexesAtMark {
    parts: Parts,
    progress: Mutex<Progress>,
}

/// What the marks so far have brought.
#[derive(Debug, Default)]
struct Progress {
    /// What the source had at the last mark.
    listed: Option<Waiting>,
    failures: u32,
}

#[async_trait]
impl AtMark for IndexesAtMark {
    async fn reached(&self) -> Result<Option<OpTime>> {
        let before = self.progress().listed.take();
        // A collection that came in since was not there to be listed, and no entry makes its indexes.
        let anew = self.parts.waits.anew.swap(false, Ordering::SeqCst);
        let before = before.filter(|_| !anew);
        let dropped = self.parts.sink.take_dropped_indexes().await;
        let now = self.waiting().await?;
        let first = Waiting::new();
        let built = self.build_both(before.as_ref().unwrap_or(&first), &now, &dropped).await;
        // A collection that has another name than before may have either at this mark.
        let listed_before = |(at, specs): (&Place, &Vec<Bytes>)| {
            let known = before.as_ref().filter(|before| !is_moved(at, before));
            known.is_some_and(|before| {
                !specs.iter().any(|spec| is_modified(at, spec, before) && !dropped.contains(at.0, spec))
            })
        };
        let settled = now.iter().all(listed_before);
        match built {
            Ok(()) if settled => return Ok(None),
            Ok(()) => {
                self.progress().failures = 0;
                if before.is_some() {
                    tracing::info!("the source's indexes changed while they were waited for: overlap goes on");
                }
            }
            Err(error) if !matches!(error.kind(), Kind::Conflict | Kind::CannotApply) => return Err(error),
            Err(error) => {
                let mut progress = self.progress();
                progress.failures += 1;
                if progress.failures >= ROUNDS {
                    return Err(error);
                }
                tracing::info!(%error, "an index does not hold yet: overlap goes on");
            }
        }
        self.progress().listed = Some(now);
        // Only now: what was listed stood before that position.
        self.parts.source.written().await.map(Some)
    }
}

impl IndexesAtMark {
    pub(super) fn new(parts: Parts) -> Self {
        Self { parts, progress: Mutex::default() }
    }

    /// Builds what the source has now. Only right when nobody writes to the source.
    ///
    /// # Errors
    /// `Conflict` when one does not hold.
    pub(super) async fn build(&self) -> Result<()> {
        let now = self.waiting().await?;
        self.build_both(&now, &now, &DroppedIndexes::default()).await
    }

    /// Builds what was listed before and is listed now, and was not `dropped` in between.
    async fn build_both(&self, before: &Waiting, now: &Waiting, dropped: &DroppedIndexes) -> Result<()> {
        self.parts.sink.build_postponed_indexes().await?;
        for (place, specs) in now {
            let known = before.get(place).map(Vec::as_slice).unwrap_or_default();
            let stood = |spec: &&Bytes| known.contains(spec) && !dropped.contains(place.0, spec);
            let specs: Vec<Bytes> = specs.iter().filter(stood).cloned().collect();
            if !specs.is_empty() {
                self.parts.target.create_indexes(place.1, &specs).await?;
                let namespace = self.parts.namespaces.name(place.1);
                tracing::info!(%namespace, indexes = specs.len(), "indexes that waited are built");
            }
        }
        Ok(())
    }

    /// The indexes of the source, as it is now, that had to wait.
    async fn waiting(&self) -> Result<Waiting> {
        let mut all = Waiting::new();
        if !self.parts.wanted || !self.parts.waits.any.load(Ordering::SeqCst) {
            return Ok(all);
        }
        let Parts { reader, chain, namespaces, .. } = &self.parts;
        // What came since the copy may have no place in one: it is refused where it is made, not here.
        let plan = Plan::standing(&**reader, chain, namespaces).await?;
        for collection in plan.collections.iter().filter(|c| c.has_documents()) {
            let specs = reader.indexes(&collection.plan.namespace).await?;
            let specs: Vec<_> = specs.into_iter().filter(|spec| waits_for_mark(spec)).collect();
            if !specs.is_empty() {
                all.insert((collection.plan.uuid, collection.target), specs);
            }
        }
        Ok(all)
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an index was listed before in another form. A `collMod` finds nothing to change on the target before it is built.
fn is_modified(place: &Place, spec: &Bytes, before: &Waiting) -> bool {
    let name = |spec: &[u8]| raw::find(spec, "name").ok().flatten().map(|name| name.value.to_vec());
    let known = before.get(place).map(Vec::as_slice).unwrap_or_default();
    !known.contains(spec) && known.iter().any(|known| name(known) == name(spec))
}

/// Whether a collection was listed before, but under another name.
fn is_moved(place: &Place, before: &Waiting) -> bool {
    !before.contains_key(place) && place.0.is_some() && before.keys().any(|(uuid, _)| *uuid == place.0)
}
