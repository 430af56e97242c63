//! A plugin that uses a capability: it counts entries in the host's metrics.
//!
//! It is here because a grant is only proven by a guest that imports what was granted. It never changes an entry.

#![cfg(target_arch = "wasm32")]

use oplogue_plugin::{Body, Edit, Entry, Failure, Filter, Json, Ops, Route, Transform};

struct Counting;

impl Filter for Counting {
    fn new(_config: &Json) -> Result<Self, Failure> {
        Ok(Self)
    }

    fn decide(&self, _namespace: &str) -> Route {
        Route::Inspect { body: Body::None, ops: Ops::ALL }
    }
}

impl Transform for Counting {
    fn apply(&mut self, _entry: &Entry<'_>, _edit: &mut Edit<'_>) -> Result<(), Failure> {
        oplogue_plugin::metrics::add("seen", 1);
        Ok(())
    }
}

oplogue_plugin::export_transform!(Counting, manifest = "manifest.json");
