//! The configuration: from a file with MongoShake's parameter names to values that the engine can trust.
//!
//! A file in TOML or in MongoShake's `key = value` form becomes raw values by key; one key table decides which keys
//! exist, what they mean and whether they are built; the checked form has types and units and nothing to doubt.
//! Reading never touches the network and reads no file but the configuration itself and its `@@` lists: secrets are
//! resolved when a connection is made.

pub mod checked;
mod collector_conf;
pub mod convert;
pub mod keys;
mod raw;
pub mod reference;
pub mod report;
mod settings;
mod units;
pub mod uri;
mod value;

use std::path::Path;

pub use checked::{
    Config, ConnectMode, CreateIndex, LogLevel, MissingDocument, OnError, PluginEntry, PluginKind, PluginPath, SyncMode,
};
pub use raw::Format;
pub use report::{Note, Problem, Problems};
pub use uri::MongoUri;

use keys::Status;
use raw::{Raw, ReadFile};
use report::{Fault, Report};
use settings::Settings;
use value::Value;

/// A value that is not the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// MongoShake's dotted name.
    pub key: &'static str,
    /// For people: with units, passwords masked.
    pub value: String,
    pub default: String,
}

/// A configuration without problems.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub config: Config,
    pub format: Format,
    /// Accepted values that deserve a remark, such as keys without effect.
    pub notes: Vec<Note>,
    /// What differs from the defaults, in the order of the key table.
    pub changed: Vec<Changed>,
}

/// Reads and checks a file of either form.
///
/// # Errors
/// All problems of the file at once.
pub fn load(path: &Path) -> Result<Loaded, Problems> {
    let text = read(path)?;
    parse(&text, path)
}

/// Checks a text as if it were the content of `path`. `@@` lists are read from disk.
///
/// # Errors
/// All problems of the text at once.
pub fn parse(text: &str, path: &Path) -> Result<Loaded, Problems> {
    parse_with(text, path, &|path| std::fs::read_to_string(path))
}

fn read(path: &Path) -> Result<String, Problems> {
    std::fs::read_to_string(path).map_err(|error| {
        let mut report = Report::new(path);
        report.problem(None, "", None, Fault::new(format!("cannot be read: {error}")));
        report.finish().err().unwrap_or(Problems(Vec::new()))
    })
}

fn parse_with(text: &str, path: &Path, read_file: ReadFile<'_>) -> Result<Loaded, Problems> {
    let mut report = Report::new(path);
    let raw = Raw::parse(text, path, read_file, &mut report);
    let settings = Settings::resolve(&raw, &mut report);
    let config = checked::build(&settings, raw.plugins, raw.format, &mut report);
    if raw.format == Format::CollectorConf {
        checked::for_collector_conf(&settings, &mut report);
    }
    let notes = report.finish()?;
    // Without a problem the source and the target are there, and with them the configuration.
    let config = config.ok_or(Problems(Vec::new()))?;
    Ok(Loaded { config, format: raw.format, notes, changed: changed(&settings) })
}

fn changed(settings: &Settings) -> Vec<Changed> {
    let working = keys::all().filter(|spec| spec.status == Status::Supported);
    working
        .filter_map(|spec| {
            let value = settings.value(spec.name)?;
            let default = Value::default_of(spec);
            let differs = *value != default && spec.name != "conf.version";
            differs.then(|| Changed { key: spec.name, value: value.shown(), default: default.shown() })
        })
        .collect()
}

#[cfg(test)]
mod tests;
