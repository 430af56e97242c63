//! Files and configurations that must not load, each with its own message.
//!
//! An operator meets these messages before anything runs, so their text is tested and not only the refusal. No batch is
//! ever sent here.

use oplogue_engine::error::Kind;
use oplogue_plugin_runtime::{Chain, ChainOptions, OnError, PluginSpec};
use serde_json::{Value, json};

use crate::files::{broken_files, file, filter, guest, with_manifest};
use crate::fixtures::{faulty, minimal_manifest, spec};

fn refusal(spec: PluginSpec) -> (Kind, String) {
    let options = ChainOptions { watch: false, ..ChainOptions::default() };
    match Chain::build(vec![spec], oplogue_engine::model::Namespaces::shared(), options) {
        Ok(_) => panic!("it loaded"),
        Err(error) => (error.kind(), error.to_string()),
    }
}

#[track_caller]
fn refused(spec: PluginSpec, kind: Kind, text: &str) {
    let (found, message) = refusal(spec);
    assert_eq!(found, kind, "{message}");
    assert!(message.contains(text), "{message:?} does not contain {text:?}");
}

#[test]
fn broken_files_are_refused_each_with_its_own_words() {
    for broken in broken_files() {
        let (kind, message) = refusal(spec("x", broken.bytes, json!({})));
        let operators = broken.says.contains("granted") || broken.says.contains("schema");
        assert_eq!(kind, if operators { Kind::Misconfigured } else { Kind::PluginFault }, "{message}");
        assert!(message.contains(broken.says), "{message:?} does not contain {:?}", broken.says);
    }
}

#[test]
fn configuration_that_does_not_fit() {
    let config = json!({ "white": "a.b", "blak": [] });
    let (kind, message) = refusal(spec("x", filter(), config));
    assert_eq!(kind, Kind::Misconfigured);
    assert!(message.contains("/white") && message.contains("blak"), "both problems are named: {message}");
    let bytes = with_manifest(&filter(), Some(&minimal_manifest("filter")));
    refused(spec("x", bytes, json!({ "a": 1 })), Kind::Misconfigured, "takes no configuration");
}

#[test]
fn refused_by_init() {
    refused(faulty(json!({ "init": "refuse" })), Kind::Misconfigured, "I do not like this configuration");
    let both = json!({ "white": ["a"], "black": ["b"] });
    refused(spec("x", filter(), both), Kind::Misconfigured, "black and white are both set");
}

#[test]
fn init_that_faults() {
    refused(faulty(json!({ "init": "trap" })), Kind::PluginFault, "init gave up");
    refused(faulty(json!({ "init": "loop" })), Kind::PluginFault, "time limit");
    refused(faulty(json!({ "init": "hog" })), Kind::PluginFault, "memory limit: asked for");
}

#[test]
fn capability_that_is_not_granted() {
    // A manifest that keeps silent about what the file imports.
    let silent = with_manifest(&guest("counting"), Some(&minimal_manifest("transform")));
    refused(spec("x", silent, Value::Null), Kind::Misconfigured, "\"metrics\", which is not granted");
}

#[test]
fn files_and_names() {
    refused(PluginSpec::file("x", "/nonexistent/x.wasm", json!({})), Kind::Misconfigured, "cannot read /nonexistent");
    refused(PluginSpec::embedded("nothing", json!({})), Kind::Misconfigured, "is no default plugin");
    let dead = PluginSpec { on_error: OnError::DeadLetter, ..faulty(json!({})) };
    refused(dead, Kind::Misconfigured, "no dead-letter file is configured");
    let options = ChainOptions { watch: false, ..ChainOptions::default() };
    let twice = vec![faulty(json!({})), faulty(json!({}))];
    let error = Chain::build(twice, oplogue_engine::model::Namespaces::shared(), options).err().unwrap();
    assert!(error.to_string().contains("two plugins of the chain are called \"faulty\""), "{error}");
}

/// A fixture that nobody tests is dead weight, and a misbehaviour that nobody tests is a hole.
#[test]
fn every_guest_has_a_test() {
    let sources = include_str!("broken.rs").to_owned()
        + include_str!("files.rs")
        + include_str!("lies.rs")
        + include_str!("traps.rs")
        + include_str!("reload.rs")
        + include_str!("defaults.rs")
        + include_str!("judge.rs");
    let quoted = |word: &str| sources.contains(&format!("\"{word}\""));
    for entry in std::fs::read_dir(file("host/plugin-runtime/tests/guests")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() && name != "target" {
            assert!(quoted(&name) || name == "faulty", "the guest {name} has no test");
            assert!(!guest(&name).is_empty(), "the guest {name} is not built");
        }
    }
    for name in ["faulty", "contrary"] {
        let manifest = std::fs::read(file(&format!("host/plugin-runtime/tests/guests/{name}/manifest.json"))).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        for (_, property) in manifest["config"]["properties"].as_object().unwrap() {
            for mode in property["enum"].as_array().unwrap() {
                let mode = mode.as_str().unwrap();
                assert!(quoted(mode) || mode == "fine", "the misbehaviour {mode} has no test");
            }
        }
    }
}
