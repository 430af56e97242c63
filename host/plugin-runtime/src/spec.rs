//! What the configuration says about a plugin: where its file is, its settings, limits and error policy.
//!
//! Plain data, checked when the chain is built. The default plugins are embedded in the binary from the built files
//! beside their sources, so that building the host needs no WebAssembly toolchain.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::error::LoadError;

/// Where a plugin's bytes come from.
#[derive(Debug, Clone)]
pub enum PluginSource {
    /// A default plugin, by name.
    Embedded(&'static str),
    /// A file: watched, and swapped when it changes.
    Path(PathBuf),
    /// Bytes at hand.
    Bytes(Arc<[u8]>),
}

impl PluginSource {
    /// The bytes as they are now.
    pub(crate) fn read(&self) -> Result<Vec<u8>, LoadError> {
        match self {
            Self::Embedded(name) => embedded(name).map(<[u8]>::to_vec),
            Self::Path(path) => std::fs::read(path).map_err(|source| LoadError::Read { path: path.clone(), source }),
            Self::Bytes(bytes) => Ok(bytes.to_vec()),
        }
    }
}

fn embedded(name: &str) -> Result<&'static [u8], LoadError> {
    Ok(match name {
        "namespace-filter" => include_bytes!("../../../plugins/namespace-filter/namespace-filter.wasm"),
        "namespace-rename" => include_bytes!("../../../plugins/namespace-rename/namespace-rename.wasm"),
        "target-delay" => include_bytes!("../../../plugins/target-delay/target-delay.wasm"),
        "ddl-filter" => include_bytes!("../../../plugins/ddl-filter/ddl-filter.wasm"),
        _ => return Err(LoadError::NotEmbedded(name.to_owned())),
    })
}

/// What happens to an entry that a plugin cannot handle. Never applied when the *memory limit* stopped the plugin:
/// one legal document must not be lost because a limit is too low.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// The run stops before the entry.
    #[default]
    Fail,
    /// The entry passes by the plugin unchanged.
    Skip,
    /// The entry is dropped and counted.
    Drop,
    /// The entry is written to the dead-letter file, then dropped.
    DeadLetter,
}

impl std::str::FromStr for OnError {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "fail" => Self::Fail,
            "skip" => Self::Skip,
            "drop" => Self::Drop,
            "dead-letter" => Self::DeadLetter,
            other => return Err(format!("{other:?} is none of fail, skip, drop, dead-letter")),
        })
    }
}

/// What a plugin is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Handles {
    /// Every change, as a part of a chain.
    #[default]
    Changes,
    /// The changes that the target refuses for good.
    Conflicts,
}

/// What one instance may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Linear memory of one instance, in bytes.
    pub memory_bytes: usize,
    /// A call that takes longer is counted as slow.
    pub soft: Duration,
    /// A call that takes longer is stopped.
    pub hard: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory_bytes: 64 << 20, soft: Duration::from_millis(50), hard: Duration::from_secs(1) }
    }
}

/// One entry of the plugin chain.
#[derive(Debug, Clone)]
pub struct PluginSpec {
    /// The entry's own name in the chain; unique. Usually the manifest's name.
    pub name: String,
    pub source: PluginSource,
    /// Checked against the manifest's schema, then handed to the plugin as JSON.
    pub config: serde_json::Value,
    /// A plugin of another kind is refused, also as a later version.
    pub handles: Handles,
    pub on_error: OnError,
    pub limits: Limits,
    /// Capabilities that the operator grants, such as `metrics`. `log` needs no grant.
    pub grants: Vec<String>,
}

impl PluginSpec {
    /// A default plugin with its configuration, default limits and the policy `fail`.
    #[must_use]
    pub fn embedded(name: &'static str, config: serde_json::Value) -> Self {
        Self::new(name, PluginSource::Embedded(name), config)
    }

    /// A plugin file with its configuration, default limits and the policy `fail`.
    #[must_use]
    pub fn file(name: &str, path: impl Into<PathBuf>, config: serde_json::Value) -> Self {
        Self::new(name, PluginSource::Path(path.into()), config)
    }

    fn new(name: &str, source: PluginSource, config: serde_json::Value) -> Self {
        Self {
            name: name.to_owned(),
            source,
            config,
            handles: Handles::default(),
            on_error: OnError::default(),
            limits: Limits::default(),
            grants: Vec::new(),
        }
    }
}

/// Settings of the whole chain.
#[derive(Debug, Clone)]
pub struct ChainOptions {
    /// File to which dead letters are appended. Needed by the policy and the verdict of that name.
    pub dead_letter: Option<PathBuf>,
    /// Whether plugin files are watched and swapped when they change.
    pub watch: bool,
    /// How often files are looked at even without a notice from the system.
    pub poll: Duration,
    /// A changed file is loaded when its bytes stood still for this long.
    pub settle: Duration,
    /// A new generation stays on trial for this many batches in which it takes part; a fault in that time brings the former one back.
    pub trial_batches: u64,
}

impl Default for ChainOptions {
    fn default() -> Self {
        Self {
            dead_letter: None,
            watch: true,
            poll: Duration::from_secs(2),
            settle: Duration::from_millis(100),
            trial_batches: 100,
        }
    }
}
