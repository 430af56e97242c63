//! What is copied where: the source's collections routed by the plugin chain.
//!
//! Planning reads catalogues and asks routers; it changes nothing on either side. Large collections come first, so
//! that the last reader is not left alone with the largest one.

use std::sync::Arc;

use crate::error::{Error, Kind, Result, Side};
use crate::model::{Namespace, NamespaceId, Namespaces, view};
use crate::plugin::{Met, PluginChain};
use crate::source::{CollectionPlan, SnapshotReader};

/// One collection and its place on the target.
#[derive(Debug, Clone)]
pub struct PlannedCollection {
    pub plan: CollectionPlan,
    pub source: NamespaceId,
    pub target: NamespaceId,
}

impl PlannedCollection {
    /// Whether there are documents to copy: a view has none of its own.
    #[must_use]
    pub fn has_documents(&self) -> bool {
        self.plan.kind != "view"
    }

    /// Where the documents go: a time-series collection keeps them in its bucket collection.
    #[must_use]
    pub fn stored_in(&self, namespaces: &Namespaces) -> NamespaceId {
        if self.plan.kind != "timeseries" {
            return self.target;
        }
        let target = namespaces.name(self.target);
        let bucket = Namespace::of(target.database(), &format!("system.buckets.{}", target.collection()));
        namespaces.intern(bucket.as_str())
    }
}

/// Everything to copy, largest first; views last.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    pub collections: Vec<PlannedCollection>,
    /// Collections that the chain drops.
    pub left_out: Vec<Namespace>,
}

impl Plan {
    /// Routes all collections of the source.
    ///
    /// # Errors
    /// The chain's; `Misconfigured` when two collections are renamed to one.
    pub fn make(
        collections: Vec<CollectionPlan>,
        chain: &Arc<dyn PluginChain>,
        namespaces: &Namespaces,
    ) -> Result<Self> {
        let mut plan = Self::default();
        for collection in collections {
            let source = namespaces.intern(collection.namespace.as_str());
            match chain.meet(source, Met::of(&collection))? {
                Some(target) => {
                    let collection = follow_renames(collection, target, chain, namespaces)?;
                    plan.collections.push(PlannedCollection { plan: collection, source, target });
                }
                None => plan.left_out.push(collection.namespace),
            }
        }
        plan.refuse_merges(namespaces)?;
        plan.collections.sort_by_key(|c| (c.plan.kind == "view", std::cmp::Reverse(c.plan.bytes)));
        Ok(plan)
    }

    /// What stands there now and has documents, whatever it would be to copy all of it.
    ///
    /// # Errors
    /// The reader's, and as [`Plan::make`] but for what cannot be copied side by side.
    pub async fn standing(
        reader: &dyn SnapshotReader,
        chain: &Arc<dyn PluginChain>,
        namespaces: &Namespaces,
    ) -> Result<Self> {
        let mut plan = Self::default();
        for collection in reader.collections().await?.into_iter().filter(|collection| collection.kind != "view") {
            let source = namespaces.intern(collection.namespace.as_str());
            if let Some(target) = chain.meet(source, Met::of(&collection))? {
                plan.collections.push(PlannedCollection { plan: collection, source, target });
            }
        }
        Ok(plan)
    }

    /// A plan of one collection, which is read under the name it has now and goes through the chain under `source`.
    #[must_use]
    pub fn of_one(plan: CollectionPlan, source: NamespaceId, target: NamespaceId) -> Self {
        Self { collections: vec![PlannedCollection { plan, source, target }], left_out: Vec::new() }
    }

    fn refuse_merges(&self, namespaces: &Namespaces) -> Result<()> {
        let mut by_target = std::collections::HashMap::new();
        for collection in &self.collections {
            if let Some(other) = by_target.insert(collection.target, &collection.plan.namespace) {
                return Err(Error::new(
                    Side::Config,
                    Kind::Misconfigured,
                    format!(
                        "{other} and {} would both be written to {}",
                        collection.plan.namespace,
                        namespaces.name(collection.target)
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// A view reads from other collections of its database, whose new names it must know.
fn follow_renames(
    plan: CollectionPlan,
    target: NamespaceId,
    chain: &Arc<dyn PluginChain>,
    namespaces: &Namespaces,
) -> Result<CollectionPlan> {
    if plan.kind != "view" {
        return Ok(plan);
    }
    let mut moved = std::collections::HashMap::new();
    for name in view::sources(&plan.options)? {
        let source = Namespace::of(plan.namespace.database(), &name);
        let Some(goes) = chain.route(namespaces.intern(source.as_str()))? else { continue };
        let goes = namespaces.name(goes);
        if goes.database() != namespaces.name(target).database() {
            let text = format!(
                "the view {} reads from {source}, which goes to another database ({goes}): rename both to one database",
                plan.namespace
            );
            return Err(Error::new(Side::Config, Kind::Misconfigured, text));
        }
        moved.insert(name, goes.collection().to_owned());
    }
    let options =
        view::with_sources(&plan.options, |name| moved.get(name).cloned().unwrap_or_else(|| name.to_owned()))?;
    Ok(CollectionPlan { options, ..plan })
}
