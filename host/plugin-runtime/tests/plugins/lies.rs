//! Answers that do not fit the batch: refused as a whole, with what is wrong, and the entries unharmed.
//!
//! The host trusts no number that comes from a guest, and each test here is one number that is wrong. The guest's own
//! faults (traps, loops, memory) are in `traps`, never here.

use bson::doc;
use oplogue_engine::model::Operation;
use oplogue_plugin_runtime::{OnError, PluginSpec};
use serde_json::json;

use crate::fixtures::{Stream, body, faulty};

#[track_caller]
fn lies(mode: &str, text: &str) {
    let mut stream = Stream::new(vec![faulty(json!({ "process": mode }))]);
    let changes = vec![stream.insert("a.b", &doc! { "_id": 1 }), stream.delete("a.b", 2)];
    let message = stream.fault(changes);
    assert!(message.contains("plugin faulty (generation 1, version 0.1.0)"), "{message}");
    assert!(message.contains(text), "{message:?} does not contain {text:?}");

    // With the policy skip the stream goes on and the entries are as they were.
    let spec = PluginSpec { on_error: OnError::Skip, ..faulty(json!({ "process": mode })) };
    let mut stream = Stream::new(vec![spec]);
    let changes = vec![stream.insert("a.b", &doc! { "_id": 1 }), stream.delete("a.b", 2)];
    let after = stream.run(changes);
    assert_eq!((after.len(), body(&after[0])), (2, doc! { "_id": 1 }));
    assert_eq!(stream.targets(&after), ["a.b", "a.b"]);
}

#[test]
fn columns_of_the_wrong_length() {
    lies("long-verdict", "column verdict has 2 places for a batch of 1");
    lies("long-arg", "column arg has 3 places for a batch of 1");
}

#[test]
fn verdicts_that_do_not_exist() {
    lies("unknown-verdict", "0x09 is no verdict");
    lies("park", "park is not supported in 0.1.0");
}

#[test]
fn namespaces() {
    lies("namespace-out-of-range", "namespace 3 is out of range, the answer names 1");
    lies("bad-namespace", "\"nodot\" is no namespace");
}

#[test]
fn slices_out_of_range() {
    lies("no-body", "edits.out ends before all replaced bodies");
    lies("body-too-long", "claims 200 bytes, 5 are left");
    lies("body-left-over", "5 bytes behind the last replaced body");
}

#[test]
fn malformed_bodies() {
    lies("malformed-body", "malformed BSON");
    lies("malformed-nested", "malformed BSON");
}

#[test]
fn identity() {
    lies("changes-id", "changes _id");
    lies("replaces-delete", "a delete has no body to replace");
}

#[test]
fn an_update_may_not_touch_the_id() {
    // The guest answers {_id: 666} as the new diff or modifiers: no section of either touches `_id`, so it is only
    // malformed for the server; what is refused here is a section that does.
    let mut stream = Stream::new(vec![faulty(json!({ "process": "copy" }))]);
    let touching = doc! { "u": { "_id": 7 } };
    let change = stream.change(Operation::UpdateDiff, "a.b", &touching);
    assert!(stream.fault(vec![change]).contains("changes _id"));
}

#[test]
fn routes() {
    for (mode, text) in [
        ("bad-name", "\"nodot\" is no namespace"),
        ("command-name", "only one of them is a command namespace"),
        ("post-image", "post-image, which 0.1.0 does not support"),
    ] {
        let mut stream = Stream::new(vec![faulty(json!({ "decide": mode }))]);
        let change = stream.insert("a.b", &doc! { "_id": 1 });
        let message = stream.fault(vec![change]);
        assert!(message.contains(text) && message.contains("route of a.b"), "{message}");
    }
}

#[test]
fn a_route_beyond_the_manifest() {
    use crate::files::{guest, with_manifest};
    use crate::fixtures::{minimal_manifest, spec};
    let bytes = with_manifest(&guest("faulty"), Some(&minimal_manifest("transform")));
    let mut stream = Stream::new(vec![spec("x", bytes, json!({}))]);
    let change = stream.insert("a.b", &doc! { "_id": 1 });
    assert!(stream.fault(vec![change]).contains("asks for Full, the manifest only for None"));
    let bytes = with_manifest(&guest("faulty"), Some(&minimal_manifest("filter")));
    let mut stream = Stream::new(vec![spec("x", bytes, json!({}))]);
    let change = stream.insert("a.b", &doc! { "_id": 1 });
    assert!(stream.fault(vec![change]).contains("only a transform can"));
}

#[test]
fn a_faithful_copy_passes() {
    let mut stream = Stream::new(vec![faulty(json!({ "process": "copy" }))]);
    let document = doc! { "_id": 1, "a": { "b": [1, "x", 2.5, true, null] } };
    let changes = vec![
        stream.change(Operation::Snapshot, "a.b", &document),
        stream.change(Operation::UpdateDiff, "a.b", &doc! { "u": { "x": 1 } }),
        stream.change(Operation::UpdateModifiers, "a.b", &doc! { "$set": { "x": 1 } }),
    ];
    let before: Vec<_> = changes.iter().map(|c| c.body.clone()).collect();
    let after = stream.run(changes);
    assert_eq!(after.iter().map(|c| c.body.clone()).collect::<Vec<_>>(), before);
}

#[test]
fn a_verdict_moves_entries() {
    let mut stream = Stream::new(vec![faulty(json!({ "process": "move" }))]);
    let changes = vec![stream.insert("a.b", &doc! { "_id": 1 }), stream.delete("a.b", 2)];
    let after = stream.run(changes);
    assert_eq!(stream.targets(&after), ["moved.here", "moved.here"]);
    assert!(after.iter().all(|change| change.moved), "what is moved leaves its collection");
}
