//! A source and a target for the sink's tests: one server where both have one version, two where they differ.
//!
//! `OPLOGUE_SOURCE_VERSION` and `OPLOGUE_TARGET_VERSION` choose, as for the end-to-end tests. One server for both halves
//! the time of a test. The users of the guide are left out: what the sink may do is tested elsewhere.

use oplogue_connectors::mongodb::sink::SinkOptions;
use oplogue_tests::servers::{Options, ReplicaSet};

use super::support::Bench;

pub(super) struct Pair {
    pub(super) source: ReplicaSet,
    target: Option<ReplicaSet>,
}

impl Pair {
    pub(super) async fn start() -> Self {
        Self::with_cache(Options::default().cache_gb).await
    }

    /// With a cache that holds several versions of the largest documents.
    pub(super) async fn roomy() -> Self {
        Self::with_cache(1.0).await
    }

    async fn with_cache(cache_gb: f32) -> Self {
        let source = Options { users: Vec::new(), cache_gb, ..Options::guide_source() };
        let target = Options { users: Vec::new(), cache_gb, ..Options::guide_target() };
        if source.version == target.version {
            return Self { source: ReplicaSet::start(source).await.unwrap(), target: None };
        }
        let (source, target) = tokio::join!(ReplicaSet::start(source), ReplicaSet::start(target));
        Self { source: source.unwrap(), target: Some(target.unwrap()) }
    }

    pub(super) fn target(&self) -> &ReplicaSet {
        self.target.as_ref().unwrap_or(&self.source)
    }

    /// Whether the applier of the server that is written to can be asked what diffs do.
    pub(super) fn has_applier(&self) -> bool {
        self.target().has("the applier of diffs", (5, 0))
    }

    pub(super) fn bench(&self, options: SinkOptions) -> Bench {
        Bench::over(self.source.client(), self.target().client(), options, std::sync::Arc::default())
    }
}
