//! DDL through the chain: renames of both names, the filter's border, databases of which a part passes.
//!
//! The chain maps a command's names itself, so these rules are the runtime's and not a plugin's. Nothing is executed
//! here: the sink's tests do that.

use bson::doc;
use oplogue_engine::error::Kind;
use oplogue_engine::model::{Change, Ddl};
use serde_json::json;

use crate::fixtures::{Stream, body, default_plugin};

fn stream(white: &[&str], rules: &[&str]) -> Stream {
    Stream::new(vec![
        default_plugin("namespace-filter", json!({ "white": white })),
        default_plugin("namespace-rename", json!({ "rules": rules })),
        default_plugin("ddl-filter", json!({ "enable": true })),
    ])
}

fn rename(stream: &Stream, from: &str, to: &str) -> Change {
    stream.ddl(Ddl::Rename { from: stream.routed(from), to: stream.routed(to), drop_target: None })
}

fn drop_database(stream: &Stream, database: &str) -> Change {
    stream.ddl(Ddl::DropDatabase { database: stream.routed(&format!("{database}.$cmd")) })
}

fn shown(stream: &Stream, changes: &[Change]) -> Vec<String> {
    let name = |id| stream.names.name(id).to_string();
    changes
        .iter()
        .map(|change| {
            let ddl = change.ddl.as_ref().unwrap();
            let names: Vec<_> = ddl.namespaces().iter().map(|routed| name(routed.target)).collect();
            assert_eq!(name(change.target), names[0]);
            format!("{} {}", ddl.name(), names.join(" "))
        })
        .collect()
}

#[test]
fn both_names_of_a_rename_are_mapped() {
    let mut stream = stream(&["a"], &["a:z", "a.y:q.y"]);
    let changes = vec![rename(&stream, "a.x", "a.y")];
    let after = stream.run(changes);
    assert_eq!(shown(&stream, &after), ["renameCollection z.x q.y"]);
}

#[test]
fn a_rename_out_of_the_filter_is_a_drop() {
    let mut stream = stream(&["a.x"], &["a:z"]);
    let changes = vec![rename(&stream, "a.x", "a.gone")];
    let after = stream.run(changes);
    assert_eq!(shown(&stream, &after), ["drop z.x"]);
    assert_eq!(body(&after[0]), doc! { "drop": "x" });
}

#[test]
fn a_rename_into_the_filter_stops_the_run() {
    let mut stream = stream(&["a.x"], &[]);
    let changes = vec![rename(&stream, "a.tmp", "a.x")];
    let mut batch = stream.batch(changes);
    let error = stream.worker.process(&mut batch).unwrap_err();
    assert_eq!(error.kind(), Kind::CannotApply);
    assert!(error.to_string().contains("rename across the filter border: a.tmp to a.x"), "{error}");
}

#[test]
fn a_rename_outside_of_the_filter_is_dropped() {
    let mut stream = stream(&["a.x"], &[]);
    let changes = vec![rename(&stream, "a.b", "a.c"), stream.ddl(Ddl::Drop { namespace: stream.routed("a.q") })];
    assert!(stream.run(changes).is_empty());
}

#[test]
fn a_whole_database() {
    let mut stream = stream(&["a"], &["a:z"]);
    let changes = vec![stream.insert("a.x", &doc! { "_id": 1 }), drop_database(&stream, "a")];
    let after = stream.run(changes);
    assert_eq!(shown(&stream, &after[1..]), ["dropDatabase z.$cmd"]);
}

#[test]
fn a_part_of_a_database_is_dropped_by_collection() {
    let mut stream = stream(&["a.x", "a.y", "b"], &["a.x:q.x"]);
    let seen = ["a.x", "a.y", "a.hidden", "b.x"].map(|ns| stream.insert(ns, &doc! { "_id": 1 }));
    stream.run(seen.into());
    let changes = vec![
        stream.insert("b.x", &doc! { "_id": 2 }),
        drop_database(&stream, "a"),
        stream.insert("b.x", &doc! { "_id": 3 }),
    ];
    let mut batch = stream.batch(changes);
    let report = stream.worker.process(&mut batch).unwrap();
    assert_eq!((report.seen, report.kept), (3, 3));
    assert_eq!(stream.targets(&batch.changes), ["b.x", "q.x", "a.y", "b.x"]);
    assert_eq!(shown(&stream, &batch.changes[1..3]), ["drop q.x", "drop a.y"]);
}

#[test]
fn a_database_of_which_nothing_passes() {
    let mut stream = stream(&["b"], &[]);
    let changes = vec![stream.insert("a.x", &doc! { "_id": 1 }), drop_database(&stream, "a")];
    assert!(stream.run(changes).is_empty());
}

#[test]
fn a_target_database_that_two_sources_share_is_never_dropped_whole() {
    let mut stream = stream(&["a", "b"], &["a:z", "b:z"]);
    let changes = vec![
        stream.insert("a.x", &doc! { "_id": 1 }),
        stream.insert("b.y", &doc! { "_id": 1 }),
        drop_database(&stream, "a"),
    ];
    let after = stream.run(changes);
    assert_eq!(shown(&stream, &after[2..]), ["drop z.x"]);
}

#[test]
fn a_ddl_filter_behind_a_partial_filter_drops_the_database_drop() {
    let mut stream = Stream::new(vec![
        default_plugin("namespace-filter", json!({ "white": ["a.x"] })),
        default_plugin("ddl-filter", json!({ "enable": false })),
    ]);
    let changes = vec![stream.insert("a.x", &doc! { "_id": 1 }), drop_database(&stream, "a")];
    assert_eq!(stream.run(changes).len(), 1);
}
