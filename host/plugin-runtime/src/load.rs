//! File → verified module: every check that can be made before the first entry.
//!
//! The order is that of cost and of clarity: bytes, sections, manifest, configuration, capabilities, compilation,
//! world, start. Each failure is a [`LoadError`] of its own. Nothing here knows of the stream or of other plugins.

use sha2::{Digest as _, Sha256};
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, InstancePre, Linker};

use crate::engine::Runtime;
use crate::error::LoadError;
use crate::instance::{self, Guest, State};
use crate::manifest::{Kind, Manifest};
use crate::spec::{Handles, Limits, PluginSpec};
use crate::wrap;

pub(crate) const LIFECYCLE: &str = "oplogue:plugin/lifecycle@0.1.0";
pub(crate) const ROUTER: &str = "oplogue:plugin/router@0.1.0";
pub(crate) const TRANSFORM: &str = "oplogue:plugin/transform@0.1.0";
pub(crate) const CONFLICTS: &str = "oplogue:plugin/conflicts@0.1.0";
const TYPES: &str = "oplogue:plugin/types@0.1.0";
const LOG: &str = "oplogue:plugin/log@0.1.0";
const METRICS: &str = "oplogue:plugin/metrics@0.1.0";

/// A verified plugin file, ready to be instantiated.
pub(crate) struct Module {
    pub(crate) manifest: Manifest,
    pub(crate) sha256: String,
    pub(crate) limits: Limits,
    pub(crate) config: String,
    pub(crate) config_sha256: String,
    plugin: String,
    pre: InstancePre<State>,
}

/// SHA-256 in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

impl Module {
    /// Loads and verifies `bytes` for `spec`. Compiles, so it takes milliseconds: never on the path of a batch.
    pub(crate) fn load(runtime: &Runtime, spec: &PluginSpec, bytes: &[u8]) -> Result<Self, LoadError> {
        let component = wrap::component(bytes)?;
        let manifest = Manifest::find(bytes)?;
        let config = if spec.config.is_null() { serde_json::json!({}) } else { spec.config.clone() };
        check_kind(manifest.kind, spec.handles)?;
        manifest.check(&config)?;
        check_grants(&manifest, spec)?;
        let component =
            Component::new(&runtime.engine, &component).map_err(|e| LoadError::Compile(format!("{e:#}")))?;
        check_world(&runtime.engine, &component, manifest.kind)?;
        let linker = link(&runtime.engine, &component, spec)?;
        let pre = linker.instantiate_pre(&component).map_err(|e| LoadError::Start(format!("{e:#}")))?;
        let config = config.to_string();
        let module = Self {
            manifest,
            sha256: sha256(bytes),
            limits: spec.limits,
            config_sha256: sha256(config.as_bytes()),
            config,
            plugin: spec.name.clone(),
            pre,
        };
        module.instantiate()?;
        Ok(module)
    }

    /// A fresh instance that has answered `init`.
    pub(crate) fn instantiate(&self) -> Result<Guest, LoadError> {
        Guest::start(&self.pre, &self.plugin, self.manifest.kind, &self.limits, &self.config)
    }
}

/// A plugin of one kind is never asked what another kind is asked.
fn check_kind(kind: Kind, handles: Handles) -> Result<(), LoadError> {
    let (handles, hint) = match (kind, handles) {
        (Kind::Filter | Kind::Transform, Handles::Changes) | (Kind::Conflict, Handles::Conflicts) => return Ok(()),
        (Kind::Conflict, Handles::Changes) => ("changes", "say handles = \"conflicts\""),
        (Kind::Filter | Kind::Transform, Handles::Conflicts) => ("conflicts", "delete the line handles"),
    };
    Err(LoadError::Handles { kind: kind.name(), handles, hint })
}

fn check_grants(manifest: &Manifest, spec: &PluginSpec) -> Result<(), LoadError> {
    match manifest.capabilities.iter().find(|c| !granted(spec, c)) {
        None => Ok(()),
        Some(capability) => {
            Err(LoadError::NotGranted { capability: capability.clone(), granted: spec.grants.join(", ") })
        }
    }
}

fn granted(spec: &PluginSpec, capability: &str) -> bool {
    capability == "log" || spec.grants.iter().any(|g| g == capability)
}

fn check_world(engine: &wasmtime::Engine, component: &Component, kind: Kind) -> Result<(), LoadError> {
    let wanted: &[&str] = match kind {
        Kind::Filter => &[LIFECYCLE, ROUTER],
        Kind::Transform => &[LIFECYCLE, ROUTER, TRANSFORM],
        Kind::Conflict => &[LIFECYCLE, CONFLICTS],
    };
    let found: Vec<String> = component.component_type().exports(engine).map(|(name, _)| name.to_owned()).collect();
    match wanted.iter().find(|w| found.iter().all(|f| f != *w)) {
        None => Ok(()),
        Some(missing) => Err(LoadError::World {
            kind: kind.name(),
            missing: (*missing).to_owned(),
            found: if found.is_empty() { "nothing".to_owned() } else { found.join(", ") },
        }),
    }
}

/// Links exactly what the file imports and the operator grants.
fn link(engine: &wasmtime::Engine, component: &Component, spec: &PluginSpec) -> Result<Linker<State>, LoadError> {
    let mut linker = Linker::new(engine);
    let failed = |e: wasmtime::Error| LoadError::Start(format!("{e:#}"));
    for (import, item) in component.component_type().imports(engine) {
        match import {
            TYPES => {}
            LOG => instance::link_log(&mut linker, LOG).map_err(failed)?,
            METRICS if granted(spec, "metrics") => {
                instance::link_metrics(&mut linker, METRICS).map_err(failed)?;
            }
            METRICS => {
                let granted = spec.grants.join(", ");
                return Err(LoadError::NotGranted { capability: "metrics".to_owned(), granted });
            }
            other => {
                // An interface that only names types gives no power.
                let types_only = matches!(&item.ty, ComponentItem::ComponentInstance(i)
                    if i.exports(engine).all(|(_, e)| matches!(e.ty, ComponentItem::Type(_))));
                if !types_only {
                    return Err(LoadError::Import { import: other.to_owned() });
                }
            }
        }
    }
    Ok(linker)
}
