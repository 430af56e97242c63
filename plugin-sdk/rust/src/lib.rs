//! Write Oplogue plugins in Rust: a trait, a macro, and a lens over raw BSON.
//!
//! A filter implements [`Filter`] and decides by namespace; a transform also implements [`Transform`] and sees the
//! entries it asked for; a [`Judge`] rules over changes that the target refuses. [`export_filter!`],
//! [`export_transform!`] or [`export_judge!`] turns the type into a plugin file. The traits
//! know nothing of WebAssembly, so a plugin's unit tests are plain `cargo test`. See docs/PLUGINS.md.
//!
//! ```
//! use oplogue_plugin::{Entry, Edit, Failure, Filter, Json, Patch, Route, Transform};
//!
//! struct Mask(Patch);
//!
//! impl Filter for Mask {
//!     fn new(config: &Json) -> Result<Self, Failure> {
//!         Ok(Self(Patch::default().overwrite(config.text("field").unwrap_or("ssn"), "***")))
//!     }
//!     fn decide(&self, namespace: &str) -> Route {
//!         if namespace.starts_with("crm.") { Route::bodies() } else { Route::Pass }
//!     }
//! }
//!
//! impl Transform for Mask {
//!     fn apply(&mut self, entry: &Entry<'_>, edit: &mut Edit<'_>) -> Result<(), Failure> {
//!         edit.patch(entry, &self.0)
//!     }
//! }
//! # let mut mask = Mask::new(&Json::parse(r#"{"field":"ssn"}"#).unwrap()).unwrap();
//! # assert!(matches!(mask.decide("crm.people"), Route::Inspect { .. }));
//! ```

pub mod batch;
pub mod bson;
pub mod conflict;
pub mod edits;
pub mod json;
pub mod patch;

#[doc(hidden)]
pub mod bindings;
mod export;
pub mod log;
pub mod metrics;

pub use batch::{Batch, Entry, Op, Ops};
pub use bindings::run;
pub use conflict::{Conflict, Judge, Reason, Ruling};
pub use edits::{Edit, Edits};
pub use json::Json;
pub use patch::Patch;

/// How much of an entry `process` wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// Op, namespace and times only.
    None,
    /// Also the key document.
    Key,
    /// Key and body.
    Full,
}

/// What happens to a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// Every entry passes.
    Pass,
    /// No entry passes.
    Drop,
    /// Every entry passes under this full name.
    Rename(String),
    /// [`Transform::apply`] decides about entries of these ops; the others pass.
    Inspect {
        /// What it wants to see of them.
        body: Body,
        /// Which of them.
        ops: Ops,
    },
}

impl Route {
    /// Inspect the bodies of all documents (not of DDL).
    #[must_use]
    pub const fn bodies() -> Self {
        Self::Inspect { body: Body::Full, ops: Ops::DOCUMENTS }
    }
}

/// A refusal that is not a trap: the instance lives on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Failure {
    /// For the operator.
    pub message: String,
    /// Ask again after this many milliseconds.
    pub retry_after_ms: Option<u32>,
}

impl Failure {
    /// A refusal for good.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), retry_after_ms: None }
    }
}

impl From<bson::Malformed> for Failure {
    fn from(malformed: bson::Malformed) -> Self {
        Self::new(malformed.to_string())
    }
}

/// A plugin that decides by namespace.
pub trait Filter: Sized {
    /// Makes an instance out of its configuration, which already fits the manifest's schema.
    ///
    /// # Errors
    /// What the schema cannot express; the plugin is then not loaded and the message is shown.
    fn new(config: &Json) -> Result<Self, Failure>;

    /// The route of a namespace, `db.collection`. Pure: the host asks once and remembers. `dropDatabase` is asked
    /// as `db.$cmd`.
    fn decide(&self, namespace: &str) -> Route;
}

/// A plugin that also sees entries.
pub trait Transform: Filter {
    /// Decides about one entry. Untouched, it passes.
    ///
    /// # Errors
    /// The entry cannot be handled: the host applies the plugin's `on_error` policy to it.
    fn apply(&mut self, entry: &Entry<'_>, edit: &mut Edit<'_>) -> Result<(), Failure>;

    /// Called before the entries of a batch, for work that is done once for all of them.
    ///
    /// # Errors
    /// The whole batch is refused.
    fn begin(&mut self, _batch: &Batch) -> Result<(), Failure> {
        Ok(())
    }
}
