//! Files and configurations that must not load, each with its own message.
//!
//! An operator meets these messages before anything runs, so their text is tested and not only the refusal. No batch is
//! ever sent here.

use oplogue_engine::error::Kind;
use oplogue_plugin_runtime::{Chain, ChainOptions, OnError, PluginSpec};
use serde_json::{Value, json};

use crate::fixtures::{faulty, file, guest, minimal_manifest, spec, with_manifest};

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

fn filter() -> Vec<u8> {
    std::fs::read(file("plugins/namespace-filter/namespace-filter.wasm")).unwrap()
}

fn wat(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

#[test]
fn not_web_assembly() {
    refused(spec("x", b"#!/bin/sh\n".to_vec(), json!({})), Kind::PluginFault, "it starts with #!/bin/s, not with");
    refused(spec("x", Vec::new(), json!({})), Kind::PluginFault, "it starts with nothing");
}

#[test]
fn truncated() {
    let mut bytes = filter();
    bytes.truncate(bytes.len() / 2);
    refused(spec("x", bytes, json!({})), Kind::PluginFault, "broken or truncated WebAssembly file");
}

#[test]
fn precompiled_code_is_never_accepted() {
    refused(spec("x", b"\x7fELF\x02\x01\x01\x00".to_vec(), json!({})), Kind::PluginFault, "not a WebAssembly file");
}

#[test]
fn core_module_without_wit() {
    refused(spec("x", wat("(module)"), json!({})), Kind::PluginFault, "a core module without a WIT section");
}

#[test]
fn core_module_that_does_not_keep_its_wit() {
    // The section of a filter on a module without its functions.
    let bytes = filter();
    let mut empty = wat("(module)");
    let parsed = wasmparser::Parser::new(0).parse_all(&bytes);
    for payload in parsed {
        if let wasmparser::Payload::CustomSection(section) = payload.unwrap()
            && (section.name().starts_with("component-type") || section.name() == "oplogue:manifest")
        {
            let mut body = vec![section.name().len() as u8];
            body.extend_from_slice(section.name().as_bytes());
            body.extend_from_slice(section.data());
            empty.push(0);
            let mut length = body.len();
            while length >= 0x80 {
                empty.push((length & 0x7f) as u8 | 0x80);
                length >>= 7;
            }
            empty.push(length as u8);
            empty.extend_from_slice(&body);
        }
    }
    refused(spec("x", empty, json!({})), Kind::PluginFault, "cannot be wrapped into a component");
}

#[test]
fn wrong_world() {
    let bytes = with_manifest(&filter(), Some(&minimal_manifest("transform")));
    let text = "wrong world: a transform plugin exports oplogue:plugin/transform@0.1.0";
    refused(spec("x", bytes, json!({})), Kind::PluginFault, text);
    let empty = with_manifest(&wat("(component)"), Some(&minimal_manifest("filter")));
    refused(spec("x", empty, json!({})), Kind::PluginFault, "this file exports nothing");
}

#[test]
fn missing_manifest() {
    refused(spec("x", with_manifest(&filter(), None), json!({})), Kind::PluginFault, "no manifest");
}

#[test]
fn unusable_manifest() {
    for (manifest, text) in [
        (json!({ "name": "x", "version": "1" }), "missing field `kind`"),
        (json!({ "name": "x", "version": "1", "kind": "sink" }), "unknown variant `sink`"),
        (json!({ "name": "", "version": "1", "kind": "filter" }), "must not be empty"),
        (json!({ "name": "x", "version": "1", "kind": "filter", "config": { "type": 7 } }), "no JSON Schema"),
    ] {
        refused(spec("x", with_manifest(&filter(), Some(&manifest)), json!({})), Kind::PluginFault, text);
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
    refused(spec("x", guest("counting"), Value::Null), Kind::Misconfigured, "\"metrics\", which is not granted");
    // A manifest that keeps silent about what the file imports.
    let silent = with_manifest(&guest("counting"), Some(&minimal_manifest("transform")));
    refused(spec("x", silent, Value::Null), Kind::Misconfigured, "\"metrics\", which is not granted");
}

#[test]
fn import_that_the_host_does_not_offer() {
    let component = wat(r#"(component
        (import "wasi:filesystem/preopens@0.2.0" (instance $i (export "get-directories" (func))))
        (instance $empty)
        (export "oplogue:plugin/lifecycle@0.1.0" (instance $empty))
        (export "oplogue:plugin/router@0.1.0" (instance $empty)))"#);
    let component = with_manifest(&component, Some(&minimal_manifest("filter")));
    refused(spec("x", component, json!({})), Kind::PluginFault, "wasi:filesystem/preopens@0.2.0, which this host");
}

#[test]
fn functions_that_are_missing() {
    let component = wat(r#"(component
        (instance $empty)
        (export "oplogue:plugin/lifecycle@0.1.0" (instance $empty))
        (export "oplogue:plugin/router@0.1.0" (instance $empty)))"#);
    let component = with_manifest(&component, Some(&minimal_manifest("filter")));
    refused(spec("x", component, json!({})), Kind::PluginFault, "the function init is missing");
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
        + include_str!("lies.rs")
        + include_str!("traps.rs")
        + include_str!("reload.rs")
        + include_str!("defaults.rs");
    let quoted = |word: &str| sources.contains(&format!("\"{word}\""));
    for entry in std::fs::read_dir(file("host/plugin-runtime/tests/guests")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() && name != "target" {
            assert!(quoted(&name) || name == "faulty", "the guest {name} has no test");
            assert!(!guest(&name).is_empty(), "the guest {name} is not built");
        }
    }
    let manifest = std::fs::read(file("host/plugin-runtime/tests/guests/faulty/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    for (_, property) in manifest["config"]["properties"].as_object().unwrap() {
        for mode in property["enum"].as_array().unwrap() {
            let mode = mode.as_str().unwrap();
            assert!(quoted(mode) || mode == "fine", "the misbehaviour {mode} has no test");
        }
    }
}
