//! The default plugins as the committed files, one by one and as the chain that a MongoShake configuration becomes.
//!
//! The committed files are what a release ships, so they are tested and not a fresh build. Rules inside one plugin are
//! tested beside its source; here is only what the host makes of them.

use bson::doc;
use oplogue_engine::model::{Ddl, Operation};
use oplogue_engine::plugin::PluginChain as _;
use serde_json::json;

use crate::fixtures::{Stream, default_plugin};

#[test]
fn filter_and_rename() {
    let mut stream = Stream::new(vec![
        default_plugin("namespace-filter", json!({ "white": ["a", "b.c"], "checkpoint_db": "mongoshake" })),
        default_plugin("namespace-rename", json!({ "rules": ["a.x:y.x", "a:z"] })),
    ]);
    let names = ["a.b", "a.x", "b.c", "b.d", "admin.q", "mongoshake.ckpt_default", "b.system.buckets.c"];
    for _ in 0..2 {
        let changes = names.iter().map(|ns| stream.insert(ns, &doc! { "_id": 1 })).collect();
        let after = stream.run(changes);
        assert_eq!(stream.targets(&after), ["z.b", "y.x", "b.c", "b.system.buckets.c"]);
    }
    let stats = stream.chain.stats();
    assert!(stats.iter().all(|s| s.entries == 0), "no entry reached a guest: {stats:?}");
    let route =
        |ns: &str| stream.chain.route(stream.names.intern(ns)).unwrap().map(|id| stream.names.name(id).to_string());
    assert_eq!((route("a.x"), route("b.d")), (Some("y.x".to_owned()), None));
    let generations = stream.chain.generations();
    assert_eq!(
        generations.iter().map(|g| g.plugin.as_str()).collect::<Vec<_>>(),
        ["namespace-filter", "namespace-rename"]
    );
    assert!(generations.iter().all(|g| g.generation == 1 && g.version == "0.1.0" && g.sha256.len() == 64));
}

#[test]
fn delay_is_by_source_time_and_not_for_the_full_copy() {
    let mut stream = Stream::new(vec![default_plugin("target-delay", json!({ "delay_ms": 1_800_000 }))]);
    let mut late = stream.insert("a.b", &doc! { "_id": 2 });
    late.wall_ms = 5_000_000;
    let changes = vec![
        stream.insert("a.b", &doc! { "_id": 1 }),
        late,
        stream.change(Operation::Snapshot, "a.b", &doc! { "_id": 3 }),
        stream.ddl(Ddl::Drop { namespace: stream.routed("a.b") }),
    ];
    let mut batch = stream.batch(changes);
    let report = stream.worker.process(&mut batch).unwrap();
    assert_eq!((report.kept, report.delayed), (4, 3));
    let until: Vec<i64> = batch.changes.iter().map(|c| c.not_before_ms).collect();
    assert_eq!(until, [2_800_000, 6_800_000, 0, 2_800_000]);
}

#[test]
fn ddl_filter_sees_ddl_only() {
    for (enable, left) in [(false, 1), (true, 2)] {
        let mut stream = Stream::new(vec![default_plugin("ddl-filter", json!({ "enable": enable }))]);
        let changes =
            vec![stream.insert("a.b", &doc! { "_id": 1 }), stream.ddl(Ddl::Drop { namespace: stream.routed("a.b") })];
        assert_eq!(stream.run(changes).len(), left);
        assert_eq!(stream.chain.stats()[0].entries, u64::from(!enable));
    }
}

#[test]
fn the_order_of_entries_stands() {
    // Half of the entries wait for the second plugin, the others do not.
    let mut stream = Stream::new(vec![
        default_plugin("namespace-rename", json!({ "rules": ["a:z"] })),
        default_plugin("target-delay", json!({ "delay_ms": 5 })),
        default_plugin("ddl-filter", json!({ "enable": true })),
    ]);
    let changes = (0..50)
        .map(|id| {
            let operation = if id % 2 == 0 { Operation::Insert } else { Operation::Snapshot };
            stream.change(operation, "a.b", &doc! { "_id": id })
        })
        .collect();
    let after = stream.run(changes);
    assert_eq!(crate::fixtures::ids(&after), (0..50).collect::<Vec<_>>());
    assert_eq!(after.iter().filter(|c| c.not_before_ms > 0).count(), 25);
    assert!(stream.targets(&after).iter().all(|t| t == "z.b"));
}

#[test]
fn an_empty_chain_and_an_empty_batch() {
    let mut stream = Stream::new(Vec::new());
    assert_eq!(stream.run(Vec::new()).len(), 0);
    let change = stream.insert("a.b", &doc! { "_id": 1 });
    assert_eq!(stream.run(vec![change]).len(), 1);
}

/// Not a timed assertion: it prints what a route costs, for `cargo test -- --nocapture`.
#[test]
fn many_namespaces_are_asked_once() {
    let mut stream = Stream::new(vec![
        default_plugin("namespace-filter", json!({ "black": ["x"] })),
        default_plugin("namespace-rename", json!({ "rules": ["a:z"] })),
    ]);
    let one = doc! { "_id": 1 };
    let changes =
        |stream: &Stream| (0..1000).map(|n| stream.insert(&format!("a.c{}", n % 20), &one)).collect::<Vec<_>>();
    let batch = changes(&stream);
    stream.run(batch);
    let prepared: Vec<_> = (0..20).map(|_| changes(&stream)).collect();
    let mut batches: Vec<_> = prepared.into_iter().map(|c| stream.batch(c)).collect();
    let started = std::time::Instant::now();
    for batch in &mut batches {
        stream.worker.process(batch).unwrap();
    }
    println!("route only: {:.1} ns an entry", started.elapsed().as_nanos() as f64 / 20_000.0);
}
