//! The manifest: what a plugin file says about itself, readable without running anything.
//!
//! It is JSON in the custom section `oplogue:manifest`, in the core module or around it. The manifest asks; grants
//! and limits are the operator's. A request that goes beyond the manifest is a fault at run time.

use serde::Deserialize;
use wasmparser::{Parser, Payload};

use crate::error::LoadError;

/// The custom section's name.
pub(crate) const SECTION: &str = "oplogue:manifest";

/// What kind of plugin it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Decides by namespace only.
    Filter,
    /// Also sees entries.
    Transform,
    /// Rules over changes that the target refuses for good.
    Conflict,
}

impl Kind {
    /// The name in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Transform => "transform",
            Self::Conflict => "conflict",
        }
    }
}

/// The most that the plugin's routes may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wants {
    /// Op, namespace and times.
    #[default]
    None,
    /// Also the key.
    Key,
    /// Also the body.
    Full,
}

/// The parsed manifest.
#[derive(Debug, Clone, Deserialize)]
pub struct Manifest {
    pub name: String,
    pub version: String,
    pub kind: Kind,
    #[serde(default)]
    pub description: String,
    /// Ceiling of what `decide` may ask for.
    #[serde(default)]
    pub wants: Wants,
    /// JSON Schema of the configuration; absent = the configuration must be empty.
    #[serde(default)]
    pub config: Option<serde_json::Value>,
    /// Host interfaces that need a grant.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Whether the plugin may change `_id`.
    #[serde(default)]
    pub rekey: bool,
}

impl Manifest {
    /// Finds and reads the manifest of a core module or component.
    pub(crate) fn find(wasm: &[u8]) -> Result<Self, LoadError> {
        let mut found = None;
        for payload in Parser::new(0).parse_all(wasm) {
            let payload = payload.map_err(|e| LoadError::Broken(e.to_string()))?;
            if let Payload::CustomSection(section) = payload
                && section.name() == SECTION
                && found.replace(section.data()).is_some()
            {
                return Err(LoadError::Manifest("there are two manifest sections".to_owned()));
            }
        }
        let manifest: Self = serde_json::from_slice(found.ok_or(LoadError::NoManifest)?)
            .map_err(|e| LoadError::Manifest(e.to_string()))?;
        if manifest.name.is_empty() || manifest.version.is_empty() {
            return Err(LoadError::Manifest("name and version must not be empty".to_owned()));
        }
        Ok(manifest)
    }

    /// Checks a configuration against the schema; all problems in one error.
    pub(crate) fn check(&self, config: &serde_json::Value) -> Result<(), LoadError> {
        let Some(schema) = &self.config else {
            let empty = config.is_null() || config.as_object().is_some_and(serde_json::Map::is_empty);
            let problems = "the plugin takes no configuration".to_owned();
            return if empty { Ok(()) } else { Err(LoadError::Config { problems }) };
        };
        let validator = jsonschema::validator_for(schema)
            .map_err(|e| LoadError::Manifest(format!("config is no JSON Schema: {e}")))?;
        let problems: Vec<String> = validator
            .iter_errors(config)
            .map(|e| {
                let place = e.instance_path().to_string();
                if place.is_empty() { e.to_string() } else { format!("{place}: {e}") }
            })
            .collect();
        if problems.is_empty() { Ok(()) } else { Err(LoadError::Config { problems: problems.join("; ") }) }
    }
}
