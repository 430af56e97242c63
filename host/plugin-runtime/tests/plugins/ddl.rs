//! DDL through the chain: renames of both names, the filter's border, databases of which a part passes.
//!
//! The chain maps a command's names itself, so these rules are the runtime's and not a plugin's. Nothing is executed
//! here: the sink's tests do that.

use bson::doc;
use oplogue_engine::model::{Change, Ddl};
use oplogue_engine::plugin::{Met, PluginChain as _};
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
    let mut stream = stream(&["a"], &["a.y:q.y", "a:z"]);
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
fn a_rename_into_the_filter_is_a_copy() {
    let mut stream = stream(&["a.x"], &["a:z"]);
    let changes = vec![rename(&stream, "a.tmp", "a.x")];
    let after = stream.run(changes);
    assert_eq!(shown(&stream, &after), ["renameCollection (into the filter) z.x"]);
}

#[test]
fn both_names_going_to_one_target_are_refused() {
    let mut stream = stream(&[], &["a.x:q.t", "a.y:q.t"]);
    let changes = vec![rename(&stream, "a.x", "a.y")];
    let after = stream.run(changes);
    assert!(why(&after[0]).contains("both of its names"), "{}", why(&after[0]));
}

fn why(change: &Change) -> String {
    match change.ddl.as_deref() {
        Some(Ddl::Refused { why, .. }) => why.clone(),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn what_would_hit_a_shared_target_as_a_whole_is_refused() {
    let mut stream = stream(&[], &["a.x:q.t", "b.x:q.t"]);
    let both = vec![stream.insert("a.x", &doc! { "_id": 1 }), stream.insert("b.x", &doc! { "_id": 2 })];
    stream.run(both);
    let options = bytes::Bytes::copy_from_slice(bson::rawdoc! {}.as_bytes());
    let at = |stream: &Stream| stream.routed("a.x");
    let changes = vec![
        stream.ddl(Ddl::Drop { namespace: at(&stream) }),
        stream.ddl(Ddl::CollMod { namespace: at(&stream), options: options.clone() }),
        stream.ddl(Ddl::DropIndexes { namespace: at(&stream), name: "k".into() }),
        stream.ddl(Ddl::ConvertToCapped { namespace: at(&stream), size_bytes: 4096 }),
        stream.ddl(Ddl::EmptyCapped { namespace: at(&stream) }),
        rename(&stream, "a.x", "a.y"),
        rename(&stream, "a.y", "a.x"),
    ];
    for change in stream.run(changes) {
        assert!(why(&change).contains("b.x is written to the same"), "{}", why(&change));
    }
    // The rename back left `a.x`; without `b.x` it is nobody else's.
    let changes = vec![
        stream.ddl(Ddl::Drop { namespace: stream.routed("b.x") }),
        stream.ddl(Ddl::Drop { namespace: at(&stream) }),
    ];
    let after = stream.run(changes);
    assert!(why(&after[0]).contains("a.x is written"), "{}", why(&after[0]));
    assert_eq!(shown(&stream, &after[1..]), ["drop q.t"]);
    // What adds to it is never refused.
    let changes = vec![stream.ddl(Ddl::Create { namespace: at(&stream), options })];
    let after = stream.run(changes);
    assert_eq!(shown(&stream, &after), ["create q.t"]);
}

#[test]
fn a_view_follows_the_renames_of_what_it_reads_from() {
    let mut stream = stream(&["a.v", "a.x"], &["a.x:a.new_x"]);
    let view = |stream: &Stream, on: &str, from: &str| {
        let options = bson::rawdoc! { "viewOn": on, "pipeline": [{ "$lookup": { "from": from, "as": "j" } }] };
        let options = bytes::Bytes::from(options.into_bytes());
        stream.ddl(Ddl::Create { namespace: stream.routed("a.v"), options })
    };
    let changes = vec![view(&stream, "x", "hidden")];
    let after = stream.run(changes);
    let Some(Ddl::Create { options, .. }) = after[0].ddl.as_deref() else { panic!("{after:?}") };
    let options: bson::Document = bson::deserialize_from_slice(options).unwrap();
    assert_eq!(options, doc! { "viewOn": "new_x", "pipeline": [{ "$lookup": { "from": "hidden", "as": "j" } }] });
    // `a.v` stays in its database, `a.x` leaves it.
    let mut stream = self::stream(&[], &["a.x:q.x"]);
    let changes = vec![view(&stream, "y", "x")];
    let after = stream.run(changes);
    assert!(why(&after[0]).contains("a.x, which goes to another database, as q.x"), "{}", why(&after[0]));
}

#[test]
fn all_views_of_a_database_go_only_when_all_of_them_pass() {
    let drop = |stream: &Stream| stream.ddl(Ddl::DropViews { database: stream.routed("a.$cmd") });
    let mut whole = stream(&["a"], &["a:z"]);
    let changes = vec![drop(&whole)];
    let after = whole.run(changes);
    assert_eq!(shown(&whole, &after), ["drop system.views z.$cmd"]);
    let mut part = stream(&["a.x"], &[]);
    let seen = vec![part.insert("a.x", &doc! { "_id": 1 }), part.insert("a.y", &doc! { "_id": 1 })];
    part.run(seen);
    let changes = vec![drop(&part)];
    let after = part.run(changes);
    assert_eq!(shown(&part, &after), ["drop (view) a.x"]);
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
fn a_dropped_database_leaves_what_another_one_goes_to() {
    let mut stream = stream(&[], &["a:z", "b:z"]);
    for name in ["a.v", "a.w", "b.v"] {
        stream.chain.meet(stream.names.intern(name), Met::View).unwrap();
    }
    // Asked for, and not met.
    stream.chain.route(stream.names.intern("a.u")).unwrap();
    let changes = vec![
        stream.ddl(Ddl::DropViews { database: stream.routed("a.$cmd") }),
        drop_database(&stream, "a"),
        stream.ddl(Ddl::Drop { namespace: stream.routed("b.v") }),
    ];
    let after = stream.run(changes);
    assert_eq!(shown(&stream, &after), ["drop (view) z.w", "drop z.w", "drop z.v"]);
}

#[test]
fn a_view_that_is_gone_keeps_nothing_and_takes_only_views() {
    let mut stream = stream(&[], &["a:z", "b:z"]);
    stream.chain.meet(stream.names.intern("a.v"), Met::Past).unwrap();
    for (name, met) in [("a.x", Met::Collection), ("b.v", Met::View), ("b.x", Met::View)] {
        stream.chain.meet(stream.names.intern(name), met).unwrap();
        stream.chain.meet(stream.names.intern(name), Met::Past).unwrap();
    }
    let views = |stream: &Stream, database: &str| {
        stream.ddl(Ddl::DropViews { database: stream.routed(&format!("{database}.$cmd")) })
    };
    // `b.x` stands beside a collection and cannot be what stands there; `b.v` goes, though `a.v` went to the same name.
    let changes = ["b", "b", "a"].map(|database| drop_database(&stream, database));
    let changes = [vec![views(&stream, "b")], changes.into()].concat();
    let after = stream.run(changes);
    let views_of_b = ["drop (view) z.v", "drop (view) z.x"];
    // What is known of a database that went does not let another one go whole.
    let expected = [views_of_b.as_slice(), &["drop z.v"], &views_of_b, &["drop (view) z.v", "drop z.x"]];
    assert_eq!(shown(&stream, &after), expected.concat());
}

#[test]
fn a_view_that_is_dropped_by_name_stays_while_another_one_goes_there() {
    let mut stream = stream(&[], &["a:z", "b:z"]);
    for (name, met) in [("b.v", Met::View), ("b.c", Met::Collection)] {
        stream.chain.meet(stream.names.intern(name), met).unwrap();
    }
    let drop_view = |stream: &Stream, name: &str| stream.ddl(Ddl::DropView { namespace: stream.routed(name) });
    let changes = vec![drop_view(&stream, "a.v"), drop_view(&stream, "a.c"), drop_view(&stream, "b.v")];
    let after = stream.run(changes);
    assert_eq!(shown(&stream, &after), ["drop (view) z.c", "drop (view) z.v"]);
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
