//! The example plugin `mask-field`, in both versions, as a user would install and replace it.
//!
//! The demo and the tests of hot swapping need the same things: put a version in place with one rename, name it
//! in the configuration, and prove on the target that nothing passed unmasked. The modules are the files
//! committed beside the example's source; this module never builds them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use bson::{Document, doc};
use mongodb::Client;

use crate::collector::PipelineConfig;
use crate::paths;

/// The field that the example masks; every document of the load has it.
pub const FIELD: &str = "email";

/// What an unmasked value ends with.
const UNMASKED: &str = "@example\\.test$";

/// An installed example plugin.
#[derive(Debug)]
pub struct MaskField {
    file: PathBuf,
}

impl MaskField {
    /// Installs version 1 in a directory.
    ///
    /// # Errors
    /// When the built module is missing or cannot be copied.
    pub fn install(dir: &Path) -> Result<Self> {
        let plugin = Self { file: dir.join("mask-field.wasm") };
        plugin.put(1)?;
        Ok(plugin)
    }

    /// Replaces the file by version 1 or 2 in one rename, as a deployment should.
    ///
    /// # Errors
    /// As [`Self::install`].
    pub fn put(&self, version: usize) -> Result<()> {
        let suffix = if version == 1 { String::new() } else { format!("-v{version}") };
        let built = paths::root().join("examples/mask-field").join(format!("mask-field{suffix}.wasm"));
        let beside = self.file.with_extension("new");
        std::fs::copy(&built, &beside).with_context(|| format!("copy {}", built.display()))?;
        std::fs::rename(&beside, &self.file).context("put the plugin in place")
    }

    /// Adds the plugin to a pipeline.
    #[must_use]
    pub fn join(&self, config: PipelineConfig) -> PipelineConfig {
        config.plugin("mask-field", &self.file, &format!("mask = [\"{FIELD}\"]"))
    }
}

/// Documents of a namespace whose field is not masked.
///
/// # Errors
/// When the server does not answer or the namespace has no dot.
pub async fn unmasked(client: &Client, namespace: &str) -> Result<u64> {
    let (db, name) = namespace.split_once('.').context("a namespace has a dot")?;
    let collection = client.database(db).collection::<Document>(name);
    Ok(collection.count_documents(doc! { FIELD: { "$regex": UNMASKED } }).await?)
}
