//! New versions while batches run: swapped between two batches, refused with a reason, rolled back when they fault.
//!
//! A file is replaced as an operator does it, by a rename, because that is what the watcher must see whole. A test here
//! never expects a swap after a given time: it sends batches until the swap shows.

use std::path::Path;
use std::time::{Duration, Instant};

use bson::doc;
use oplogue_engine::model::Ddl;
use oplogue_engine::plugin::{Met, PluginChain as _};
use oplogue_plugin_runtime::{ChainOptions, OnError, PluginSpec, ReloadOutcome};
use serde_json::{Value, json};

use crate::files::{guest, with_manifest};
use crate::fixtures::{Stream, body, default_plugin, mask_field};

/// As a careful author replaces a file: written beside it, then renamed.
fn replace(path: &Path, bytes: &[u8]) {
    let staged = path.with_extension("new");
    std::fs::write(&staged, bytes).unwrap();
    std::fs::rename(&staged, path).unwrap();
}

fn options() -> ChainOptions {
    let quick = Duration::from_millis(20);
    ChainOptions { poll: quick, settle: Duration::from_millis(5), ..ChainOptions::default() }
}

fn mask_stream(path: &Path) -> Stream {
    std::fs::write(path, mask_field("")).unwrap();
    Stream::with(vec![PluginSpec::file("mask", path, json!({ "mask": ["ssn"] }))], options())
}

/// The mask that a batch of ten gets: one for all of them.
fn mask_of_a_batch(stream: &mut Stream) -> String {
    let changes = (0..10).map(|id| stream.insert("crm.p", &doc! { "_id": id, "ssn": "1" })).collect();
    let after = stream.run(changes);
    assert_eq!(after.len(), 10);
    let masks: Vec<String> = after.iter().map(|c| body(c).get_str("ssn").unwrap().to_owned()).collect();
    assert!(masks.iter().all(|m| *m == masks[0]), "a batch never meets two generations: {masks:?}");
    masks[0].clone()
}

/// Runs batches until `done`; the stream must not stop meanwhile.
fn until(stream: &mut Stream, mut done: impl FnMut(&mut Stream) -> bool) {
    let give_up = Instant::now() + Duration::from_secs(60);
    while !done(stream) {
        assert!(Instant::now() < give_up, "it never happened; log: {:?}", stream.chain.reload_log());
        std::thread::yield_now();
    }
}

fn refused(stream: &Stream, text: &str) -> bool {
    stream.chain.reload_log().iter().any(|event| match &event.outcome {
        ReloadOutcome::Refused { reason } => reason.contains(text),
        ReloadOutcome::Activated { .. } | ReloadOutcome::RolledBack { .. } => false,
    })
}

#[test]
fn a_replaced_file_is_swapped_between_two_batches() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.wasm");
    let mut stream = mask_stream(&path);
    assert_eq!(mask_of_a_batch(&mut stream), "***");
    replace(&path, &mask_field("-v2"));
    until(&mut stream, |stream| mask_of_a_batch(stream) == "[hidden]");
    let generations = stream.chain.generations();
    assert_eq!((generations[0].generation, generations[0].version.as_str()), (2, "2.0.0"));
    assert!(matches!(stream.chain.reload_log()[0].outcome, ReloadOutcome::Activated { generation: 2 }));
    replace(&path, &mask_field(""));
    until(&mut stream, |stream| mask_of_a_batch(stream) == "***");
    assert_eq!(stream.chain.generations()[0].generation, 3);
}

#[test]
fn a_broken_replacement_leaves_the_old_one_running_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.wasm");
    let mut stream = mask_stream(&path);
    let v2 = mask_field("-v2");
    let strict = json!({ "name": "mask-field", "version": "3", "kind": "transform", "wants": "full",
        "config": { "type": "object", "required": ["key"] } });
    let greedy = json!({ "name": "mask-field", "version": "3", "kind": "transform", "capabilities": ["metrics"],
        "config": { "type": "object" } });
    for (bytes, reason) in [
        (b"not wasm".to_vec(), "not a WebAssembly file"),
        (v2[..v2.len() / 2].to_vec(), "broken or truncated"),
        (with_manifest(&v2, None), "no manifest"),
        (with_manifest(&v2, Some(&strict)), "does not fit the plugin's schema"),
        (with_manifest(&guest("counting"), Some(&greedy)), "which is not granted"),
    ] {
        replace(&path, &bytes);
        until(&mut stream, |stream| {
            assert_eq!(mask_of_a_batch(stream), "***");
            refused(stream, reason)
        });
    }
    assert_eq!(stream.chain.generations()[0].generation, 1);
    // A sound file still gets in.
    replace(&path, &v2);
    until(&mut stream, |stream| mask_of_a_batch(stream) == "[hidden]");
}

#[test]
fn a_removed_file_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.wasm");
    let mut stream = mask_stream(&path);
    std::fs::remove_file(&path).unwrap();
    assert!(stream.chain.reload("mask").unwrap_err().to_string().contains("cannot read"));
    assert_eq!(mask_of_a_batch(&mut stream), "***");
}

#[test]
fn reload_on_request_and_reconfigure() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.wasm");
    std::fs::write(&path, mask_field("")).unwrap();
    let spec = PluginSpec::file("mask", &path, json!({ "mask": ["ssn"] }));
    let mut stream = Stream::with(vec![spec], ChainOptions { watch: false, ..options() });
    assert_eq!(stream.chain.reload("mask").unwrap().generation, 1, "the same bytes are not loaded twice");
    replace(&path, &mask_field("-v2"));
    assert_eq!(mask_of_a_batch(&mut stream), "***");
    assert_eq!(stream.chain.reload("mask").unwrap().generation, 2);
    assert_eq!(mask_of_a_batch(&mut stream), "[hidden]");
    let info = stream.chain.reconfigure("mask", json!({ "mask": ["ssn"], "with": "#" })).unwrap();
    assert_eq!(info.generation, 3);
    assert_eq!(mask_of_a_batch(&mut stream), "#");
    let error = stream.chain.reconfigure("mask", json!({ "mask": 1 })).unwrap_err();
    assert!(error.to_string().contains("/mask"), "{error}");
    assert_eq!(mask_of_a_batch(&mut stream), "#");
    assert!(stream.chain.reload("nobody").unwrap_err().to_string().contains("no plugin of the chain"));
}

#[test]
fn a_new_version_that_faults_on_trial_is_rolled_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.wasm");
    // The old version passes, the new one traps; both take this configuration.
    let manifest = |version: &str| json!({ "name": "m", "version": version, "kind": "transform", "wants": "full", "config": { "type": "object" } });
    std::fs::write(&path, with_manifest(&mask_field(""), Some(&manifest("1")))).unwrap();
    let config = json!({ "mask": ["ssn"], "process": "trap-always" });
    let spec = PluginSpec { on_error: OnError::Drop, ..PluginSpec::file("mask", &path, config) };
    let mut stream = Stream::with(vec![spec], options());
    assert_eq!(mask_of_a_batch(&mut stream), "***");
    replace(&path, &with_manifest(&guest("faulty"), Some(&manifest("2"))));
    let rolled_back = |stream: &Stream| {
        stream.chain.reload_log().iter().any(|e| matches!(e.outcome, ReloadOutcome::RolledBack { from: 2, to: 1, .. }))
    };
    until(&mut stream, |stream| {
        assert_eq!(mask_of_a_batch(stream), "***", "no entry is lost to the new version");
        rolled_back(stream)
    });
    assert_eq!((stream.chain.generations()[0].generation, mask_of_a_batch(&mut stream).as_str()), (1, "***"));
}

#[test]
fn what_a_version_was_not_asked_about_is_no_trial() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.wasm");
    let manifest = |version: &str| json!({ "name": "m", "version": version, "kind": "transform", "wants": "full", "config": { "type": "object" } });
    std::fs::write(&path, with_manifest(&mask_field(""), Some(&manifest("1")))).unwrap();
    let config = json!({ "mask": ["ssn"], "process": "trap-always" });
    let spec = PluginSpec { on_error: OnError::Drop, ..PluginSpec::file("mask", &path, config) };
    let mut stream = Stream::with(vec![spec], ChainOptions { watch: false, trial_batches: 2, ..options() });
    assert_eq!(mask_of_a_batch(&mut stream), "***");
    replace(&path, &with_manifest(&guest("faulty"), Some(&manifest("2"))));
    assert_eq!(stream.chain.reload("mask").unwrap().generation, 2);
    for _ in 0..5 {
        stream.run(Vec::new());
    }
    assert_eq!(mask_of_a_batch(&mut stream), "***", "the former version still stands by");
    assert_eq!(stream.chain.generations()[0].generation, 1);
}

#[test]
fn what_a_batch_that_is_run_again_saw_the_end_of_is_met_still() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.wasm");
    let manifest = |version: &str| json!({ "name": "m", "version": version, "kind": "transform", "wants": "full", "config": { "type": "object" } });
    std::fs::write(&path, with_manifest(&mask_field(""), Some(&manifest("1")))).unwrap();
    let config = json!({ "mask": ["ssn"], "process": "trap-on-poison" });
    let mask = PluginSpec { on_error: OnError::Drop, ..PluginSpec::file("mask", &path, config) };
    let rename = default_plugin("namespace-rename", json!({ "rules": ["a:z", "b:z"] }));
    let mut stream = Stream::with(vec![rename, mask], ChainOptions { watch: false, trial_batches: 2, ..options() });
    for name in ["a.view", "b.other"] {
        stream.chain.meet(stream.names.intern(name), Met::View).unwrap();
    }
    replace(&path, &with_manifest(&guest("faulty"), Some(&manifest("2"))));
    assert_eq!(stream.chain.reload("mask").unwrap().generation, 2);
    let dropped = stream.ddl(Ddl::DropDatabase { database: stream.routed("a.$cmd") });
    let mut changes = vec![dropped];
    // More than one call shows, so that the drop is through before the fault.
    changes.extend((0..5_000).map(|id| stream.insert("crm.p", &doc! { "_id": id })));
    changes.push(stream.insert("crm.p", &doc! { "_id": 5_000, "poison": true }));
    let after = stream.run(changes);
    assert_eq!(stream.chain.generations()[1].generation, 1, "the new version is rolled back");
    assert_eq!((after.len(), stream.targets(&after[..2])), (5_002, vec!["z.view".to_owned(), "crm.p".to_owned()]));
}

#[test]
fn after_the_trial_a_fault_meets_the_policy() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mask.wasm");
    std::fs::write(&path, mask_field("")).unwrap();
    let spec = PluginSpec::file("mask", &path, Value::Null);
    let mut stream = Stream::with(vec![spec], ChainOptions { watch: false, trial_batches: 2, ..options() });
    stream.chain.reconfigure("mask", json!({ "mask": ["ssn"] })).unwrap();
    for _ in 0..3 {
        assert_eq!(mask_of_a_batch(&mut stream), "***");
    }
    let mut change = stream.insert("crm.p", &doc! { "_id": 1, "ssn": "1" });
    change.body = change.body.slice(..change.body.len() - 1);
    let message = stream.fault(vec![change]);
    assert!(message.contains("generation 2") && message.contains("malformed BSON"), "{message}");
}
