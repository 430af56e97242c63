//! Writes a `collector.toml` between two replica sets.
//!
//! Keys are the dotted names of the guide, each on a line of its own, so that a failing test shows a file that
//! a user would write. The monitor gets free ports, the checkpoint interval is short; everything else is the
//! collector's default. Plugins and other tables are appended as text. It checks nothing: that is the
//! collector's business.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use toml::Value;

use crate::servers::{ReplicaSet, free_port};

const FETCH_METHOD: &str = "incr_sync.mongo_fetch_method";

/// Whether the environment asks every pipeline to read change streams (`OPLOGUE_FETCH_METHOD`). A test that leaves
/// something out then says so.
#[must_use]
pub fn by_change_stream() -> bool {
    std::env::var("OPLOGUE_FETCH_METHOD").is_ok_and(|method| method == "change_stream")
}

/// A configuration under construction.
#[derive(Debug, Clone)]
pub struct PipelineConfig {
    keys: BTreeMap<String, Value>,
    tables: Vec<String>,
}

impl PipelineConfig {
    /// A pipeline of the sets' first users (the guide's, where the sets were started with them), `sync_mode = "all"`.
    ///
    /// # Errors
    /// When the machine has no free port.
    pub fn between(source: &ReplicaSet, target: &ReplicaSet) -> Result<Self> {
        Self::new(&source.uri_as_user(), &target.uri_as_user())
    }

    /// A pipeline between two connection strings, `sync_mode = "all"`.
    ///
    /// # Errors
    /// When the machine has no free port.
    pub fn new(source: &str, target: &str) -> Result<Self> {
        let config = Self { keys: BTreeMap::new(), tables: Vec::new() };
        // The long run goes through every test again with the other way of reading.
        let config = match std::env::var("OPLOGUE_FETCH_METHOD") {
            Ok(method) => config.set(FETCH_METHOD, method),
            Err(_) => config,
        };
        Ok(config
            .set("id", "test")
            .set("sync_mode", "all")
            .set("mongo_urls", source)
            .set("mongo_connect_mode", "primary")
            .set("tunnel.type", "direct")
            .set("tunnel.address", target)
            .set("checkpoint.storage.url", source)
            .set("full_sync.http_port", i64::from(free_port()?))
            .set("incr_sync.http_port", i64::from(free_port()?)))
    }

    /// Sets a key by its dotted name.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.keys.insert(key.to_owned(), value.into());
        self
    }

    /// Reads the oplog whatever the environment asks for, and says why where it asks for something else.
    #[must_use]
    #[allow(clippy::print_stdout, reason = "what a test leaves out stands in its output")]
    pub fn by_oplog_only(self, why: &str) -> Self {
        if by_change_stream() {
            let thread = std::thread::current();
            println!("by oplog only: {}: {why}", thread.name().unwrap_or("unnamed"));
        }
        self.set(FETCH_METHOD, "oplog")
    }

    /// Removes a key, so that the collector's default holds.
    #[must_use]
    pub fn unset(mut self, key: &str) -> Self {
        self.keys.remove(key);
        self
    }

    /// Adds a plugin at the end of the chain; `config` is the inside of its configuration table.
    #[must_use]
    pub fn plugin(self, name: &str, path: &Path, config: &str) -> Self {
        let path = Value::from(path.to_string_lossy().into_owned());
        let name = Value::from(name);
        let mut table = format!("[[plugin]]\nname = {name}\npath = {path}\n");
        if !config.is_empty() {
            table.push_str(&format!("[plugin.config]\n{config}\n"));
        }
        self.table(&table)
    }

    /// Appends text after the keys, such as a table.
    #[must_use]
    pub fn table(mut self, text: &str) -> Self {
        self.tables.push(text.to_owned());
        self
    }

    /// The port of the incremental monitor.
    #[must_use]
    pub fn incr_port(&self) -> Option<u16> {
        let port = self.keys.get("incr_sync.http_port")?.as_integer()?;
        u16::try_from(port).ok()
    }

    /// The file's text.
    ///
    /// # Errors
    /// None today; the signature leaves room for values that TOML cannot hold.
    pub fn to_toml(&self) -> Result<String> {
        let mut text = String::new();
        for (key, value) in &self.keys {
            text.push_str(&format!("{key} = {value}\n"));
        }
        for table in &self.tables {
            text.push('\n');
            text.push_str(table);
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_toml_with_the_guides_names() {
        let config = PipelineConfig::new("mongodb://a", "mongodb://b").unwrap();
        let config = config.set("incr_sync.worker.count", 4).plugin("mask", Path::new("/x/y.wasm"), "field = 'ssn'");
        let parsed: toml::Table = config.to_toml().unwrap().parse().unwrap();
        assert_eq!(parsed["incr_sync"]["worker"]["count"].as_integer(), Some(4));
        assert_eq!(parsed["tunnel"]["address"].as_str(), Some("mongodb://b"));
        assert_eq!(parsed["plugin"][0]["config"]["field"].as_str(), Some("ssn"));
    }
}
