//! Which view of the target a view of the source became.
//!
//! A view has no UUID, and the entry that takes all views of a database away (`drop` of `system.views`, the first half of
//! a `dropDatabase`) names none of them. A run that was not reading when they went finds them in no list of the source
//! either. So the name that a view has on the source is stored before the target gets the view, or when a run finds it on
//! both sides, and forgotten when the target has it no more.

use std::collections::HashSet;

use oplogue_engine::checkpoint::ViewPair;
use oplogue_engine::error::Result;
use oplogue_engine::model::Namespace;

use super::{Catalogue, Shape};

impl Catalogue {
    /// Reads the pairs. One whose view the target does not have says nothing any more: whatever makes the view again
    /// records it again.
    pub(super) async fn load_views(&self) -> Result<()> {
        let (standing, gone): (Vec<_>, Vec<_>) =
            self.store.views().await?.into_iter().partition(|pair| self.has_view(&pair.target));
        self.write().views = standing.into_iter().map(|ViewPair { source, target }| (source, target)).collect();
        for pair in gone {
            self.store.forget_view(&pair.source).await?;
        }
        Ok(())
    }

    /// The names of the target's views.
    pub(crate) fn views(&self) -> Vec<Namespace> {
        let state = self.read();
        let views = state.collections.iter().filter(|(_, info)| info.shape == Shape::View);
        views.map(|(name, _)| name.clone()).collect()
    }

    /// What is known of where they came from.
    pub(crate) fn view_pairs(&self) -> Vec<ViewPair> {
        let pair =
            |(source, target): (&Namespace, &Namespace)| ViewPair { source: source.clone(), target: target.clone() };
        self.read().views.iter().map(pair).collect()
    }

    /// Stores what a view of the source is about to become, or is already.
    pub(crate) async fn record_view(&self, pair: ViewPair) -> Result<()> {
        if self.read().views.get(&pair.source) != Some(&pair.target) {
            self.store.record_view(&pair).await?;
            self.write().views.insert(pair.source, pair.target);
        }
        Ok(())
    }

    /// The same for every one of `pairs` that the target has and that nobody knows yet.
    pub(crate) async fn adopt_views(&self, pairs: Vec<ViewPair>) -> Result<()> {
        let known: HashSet<Namespace> = self.read().views.values().cloned().collect();
        for pair in pairs {
            if self.has_view(&pair.target) && !known.contains(&pair.target) {
                self.record_view(pair).await?;
            }
        }
        Ok(())
    }

    /// Forgets the views that were `target`, which is dropped.
    pub(crate) async fn forget_views_at(&self, target: &Namespace) -> Result<()> {
        let sources: Vec<Namespace> = {
            let state = self.read();
            state.views.iter().filter(|(_, at)| *at == target).map(|(source, _)| source.clone()).collect()
        };
        for source in sources {
            self.store.forget_view(&source).await?;
            self.write().views.remove(&source);
        }
        Ok(())
    }

    /// Whether a view stands under a name of the target that is known to be another one of the source than `source`.
    pub(crate) fn is_view_of_another(&self, target: &Namespace, source: &Namespace) -> bool {
        if !self.has_view(target) {
            return false;
        }
        let state = self.read();
        let mut of = state.views.iter().filter(|(_, at)| *at == target).map(|(of, _)| of).peekable();
        of.peek().is_some() && of.all(|of| of != source)
    }

    /// As far as the cached catalogue knows.
    fn has_view(&self, name: &Namespace) -> bool {
        self.info(name).is_some_and(|info| info.shape == Shape::View)
    }
}
