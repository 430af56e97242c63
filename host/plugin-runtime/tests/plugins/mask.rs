//! The example `mask-field`: one rule for the full copy, inserts, replacements and both forms of updates.
//!
//! It is the plugin that authors copy from, so what it promises is held by tests. It is never a default plugin; those
//! are in `defaults`.

use std::time::Duration;

use bson::{Document, doc};
use oplogue_engine::model::Operation;
use oplogue_engine::plugin::PluginChain as _;
use oplogue_plugin_runtime::{Limits, PluginSpec};
use serde_json::json;

use crate::fixtures::{Stream, body, mask_field, spec};

fn masked(operation: Operation, document: &Document) -> Vec<Document> {
    let config =
        json!({ "namespaces": ["crm"], "mask": ["ssn", "home.zip"], "rename": ["old:new"], "unset": ["secret"] });
    let mut stream = Stream::new(vec![spec("mask-field", mask_field(""), config)]);
    let changes =
        vec![stream.change(operation, "crm.people", document), stream.change(operation, "other.people", document)];
    let after = stream.run(changes);
    assert_eq!(&body(after.last().unwrap()), document, "another namespace is untouched");
    after[..after.len() - 1].iter().map(body).collect()
}

#[test]
fn documents() {
    for operation in [Operation::Snapshot, Operation::Insert, Operation::Replace] {
        let before = doc! { "_id": 1, "ssn": 7, "home": { "zip": "x", "y": 1 }, "old": 3, "secret": 4 };
        let after = doc! { "_id": 1, "ssn": "***", "home": { "zip": "***", "y": 1 }, "new": 3 };
        assert_eq!(masked(operation, &before), [after]);
    }
}

#[test]
fn updates() {
    let before = doc! { "u": { "ssn": 8, "z": 1 }, "shome": { "i": { "zip": 9 } } };
    let after = doc! { "u": { "ssn": "***", "z": 1 }, "shome": { "i": { "zip": "***" } } };
    assert_eq!(masked(Operation::UpdateDiff, &before), [after]);
    let before = doc! { "$set": { "ssn": 8, "home.zip": 9, "old": 1 }, "$unset": { "secret": true } };
    let after = doc! { "$set": { "ssn": "***", "home.zip": "***", "new": 1 } };
    assert_eq!(masked(Operation::UpdateModifiers, &before), [after]);
    let nothing_left = doc! { "u": { "secret": 1 } };
    assert_eq!(masked(Operation::UpdateDiff, &nothing_left), Vec::<Document>::new());
}

#[test]
fn one_buffer_for_all_replaced_bodies() {
    let mut stream = Stream::new(vec![spec("mask-field", mask_field(""), json!({ "mask": ["ssn"] }))]);
    let changes = (0..10).map(|id| stream.insert("crm.p", &doc! { "_id": id, "ssn": "1" })).collect();
    let after = stream.run(changes);
    for pair in after.windows(2) {
        assert_eq!(pair[0].body.as_ptr().wrapping_add(pair[0].body.len()), pair[1].body.as_ptr());
    }
}

#[test]
fn a_large_document_goes_alone() {
    // A call that takes too long is tried again in parts, which would be counted too.
    let patient = Limits { hard: Duration::from_secs(60), ..Limits::default() };
    let mask = PluginSpec { limits: patient, ..spec("mask-field", mask_field(""), json!({ "mask": ["ssn"] })) };
    let mut stream = Stream::new(vec![mask]);
    let big = "x".repeat(15 << 20);
    let changes = vec![
        stream.insert("crm.p", &doc! { "_id": 0, "ssn": "1" }),
        stream.insert("crm.p", &doc! { "_id": 1, "ssn": "1", "big": big }),
        stream.insert("crm.p", &doc! { "_id": 2, "ssn": "1" }),
    ];
    let after = stream.run(changes);
    assert!(after.iter().all(|c| body(c).get_str("ssn").is_ok_and(|ssn| ssn == "***")));
    assert_eq!(stream.chain.stats()[0].calls, 3);
}
