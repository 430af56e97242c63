//! Counters in the host's metrics.
//!
//! Using them needs `"capabilities": ["metrics"]` in the manifest and the operator's grant. A plugin that never calls
//! this does not import it, and needs neither.

/// Adds to the counter `name`. Outside of WebAssembly, in unit tests, nothing happens.
pub fn add(name: &str, by: u64) {
    #[cfg(target_arch = "wasm32")]
    crate::bindings::filter::oplogue::plugin::metrics::add(name, by);
    #[cfg(not(target_arch = "wasm32"))]
    let _ = (name, by);
}
