//! Why a plugin file is refused: one variant for each reason, one sentence each.
//!
//! The sentence is for the operator and the author, and says what was found beside what was wanted. A refusal never
//! touches the generation that is running.

use std::path::PathBuf;

use oplogue_engine::error::{Error, Kind, Side};
use thiserror::Error;

/// A plugin that does not load.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{0:?} is no default plugin (there are namespace-filter, namespace-rename, target-delay, ddl-filter)")]
    NotEmbedded(String),
    #[error("two plugins of the chain are called {0:?}")]
    NameTaken(String),
    #[error("no plugin of the chain is called {0:?}")]
    Unknown(String),
    #[error("not a WebAssembly file: it starts with {start}, not with \\0asm")]
    NotWasm { start: String },
    #[error("a broken or truncated WebAssembly file: {0}")]
    Broken(String),
    #[error("a core module without a WIT section: build it with an Oplogue SDK, or make it a component")]
    NoWit,
    #[error("cannot be wrapped into a component: {0}")]
    Wrap(String),
    #[error("no manifest: the custom section oplogue:manifest is missing")]
    NoManifest,
    #[error("the manifest cannot be used: {0}")]
    Manifest(String),
    #[error("wrong world: a {kind} plugin exports {missing}, this file exports {found}")]
    World { kind: &'static str, missing: String, found: String },
    #[error("a {kind} plugin, but the entry says handles = \"{handles}\": {hint}")]
    Handles { kind: &'static str, handles: &'static str, hint: &'static str },
    #[error("imports {import}, which this host does not offer")]
    Import { import: String },
    #[error("asks for the capability {capability:?}, which is not granted (grants = [{granted}])")]
    NotGranted { capability: String, granted: String },
    #[error("the configuration does not fit the plugin's schema: {problems}")]
    Config { problems: String },
    #[error("does not compile: {0}")]
    Compile(String),
    #[error("does not start: {0}")]
    Start(String),
    #[error("refuses its configuration: {0}")]
    Init(String),
    #[error("on_error is dead-letter, but no dead-letter file is configured")]
    NoDeadLetter,
    #[error("the same file was rolled back before: {0}")]
    RolledBack(String),
}

impl LoadError {
    /// The same as an engine error, for a chain that cannot be built.
    #[must_use]
    pub fn into_error(self, plugin: &str) -> Error {
        let kind = match self {
            Self::Config { .. }
            | Self::Init(_)
            | Self::NotGranted { .. }
            | Self::NotEmbedded(_)
            | Self::NameTaken(_)
            | Self::Unknown(_)
            | Self::NoDeadLetter
            | Self::Handles { .. }
            | Self::Read { .. } => Kind::Misconfigured,
            Self::NotWasm { .. }
            | Self::Broken(_)
            | Self::NoWit
            | Self::Wrap(_)
            | Self::NoManifest
            | Self::Manifest(_)
            | Self::World { .. }
            | Self::Import { .. }
            | Self::Compile(_)
            | Self::Start(_)
            | Self::RolledBack(_) => Kind::PluginFault,
        };
        let side = if kind == Kind::Misconfigured { Side::Config } else { Side::Plugin };
        Error::new(side, kind, format!("load plugin {plugin}")).caused_by(self)
    }
}
