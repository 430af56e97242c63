//! What `/conf` shows: the effective value of every key that has an effect, and where it differs from the default.
//!
//! Operators compare it with the file they wrote, so keys stand under the file's names. Values come from the
//! configuration's own report, which masks secrets; nothing here sees one.

use std::collections::HashMap;

use oplogue_engine::config::keys::{self, Status};
use oplogue_engine::config::{Changed, Loaded};
use serde_json::{Map, Value, json};

/// Effective values by key, then the plugin chain in order.
#[must_use]
pub fn shown(loaded: &Loaded) -> Value {
    let changed: HashMap<&str, &Changed> = loaded.changed.iter().map(|changed| (changed.key, changed)).collect();
    let mut values = Map::new();
    for spec in keys::all().filter(|spec| spec.status == Status::Supported) {
        let value = changed.get(spec.name).map_or(spec.default, |changed| changed.value.as_str());
        values.insert(spec.name.to_owned(), unquoted(value).into());
    }
    let chain: Vec<String> = loaded.config.default_chain().into_iter().map(|plugin| plugin.name).collect();
    json!({ "values": values, "changed": changed_keys(loaded), "plugins": chain, "sha256": loaded.config.sha256() })
}

/// The report quotes texts for people; in JSON the quotes are the format's.
fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value)
}

fn changed_keys(loaded: &Loaded) -> Vec<&'static str> {
    loaded.changed.iter().map(|changed| changed.key).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use oplogue_engine::config;

    use super::*;

    #[test]
    fn values_are_effective_and_masked() {
        let text =
            "mongo_urls = \"mongodb://u:s3cret@h:1\"\ntunnel.address = \"mongodb://u:s3cret@h:2\"\nid = \"job-7\"\n";
        let loaded = config::parse(text, Path::new("collector.toml")).unwrap();
        let shown = shown(&loaded);
        assert!(!shown.to_string().contains("s3cret"), "{shown}");
        assert_eq!(shown["values"]["id"], "job-7");
        assert_eq!(shown["values"]["full_sync.http_port"], "9101");
        assert!(shown["changed"].as_array().unwrap().contains(&"mongo_urls".into()));
    }
}
