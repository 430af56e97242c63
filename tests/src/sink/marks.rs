//! Marks of loop prevention, as the target's oplog shows them, on every road that a write can take.
//!
//! A single write without its mark goes round between two clusters for ever, so the oplog is read after each kind of
//! write: small and large flushes, refused statements that are sent again, settled unique keys, documents of the full
//! copy. What a mark costs the server is measured beside and printed, with and without in one run; time is no verdict.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bson::{Document, doc};
use mongodb::options::{Acknowledgment, IndexOptions, WriteConcern};
use mongodb::{Client, IndexModel};
use oplogue_connectors::mongodb::copy::{CopyOptions, MongoCopyTarget};
use oplogue_connectors::mongodb::mark::Marks;
use oplogue_connectors::mongodb::sink::{MongoSink, SinkOptions};
use oplogue_engine::checkpoint::CheckpointStore;
use oplogue_engine::model::Origin;
use oplogue_engine::sink::{Content, CopyTarget as _, Patch, Sink as _, Write};
use oplogue_tests::servers::ReplicaSet;

use super::support::{Bench, now, oplog, raw};

const OWN: u8 = 7;
const OTHER: u8 = 9;

fn marked(bench: &Bench) -> Arc<MongoSink> {
    let sink = MongoSink::new(
        bench.client.clone(),
        Some(bench.source.clone()),
        Arc::clone(&bench.store) as Arc<dyn CheckpointStore>,
        Arc::clone(&bench.names),
        SinkOptions::default(),
    );
    Arc::new(sink.marked_by(Origin::new(OWN).map(Marks::new)))
}

fn write(bench: &Bench, id: i32, content: Content) -> Write {
    bench.write("t.c", "t.c", &doc! { "_id": id }, content, false)
}

fn insert(bench: &Bench, id: i32) -> Write {
    write(bench, id, Content::Insert(raw(&doc! { "_id": id, "u": id, "n": 0, "pad": "x".repeat(100) })))
}

fn set(bench: &Bench, id: i32, field: &str, value: i32) -> Write {
    let patch = Patch::Diff(raw(&doc! { "u": { field: value } }));
    write(bench, id, Content::Patch(vec![patch]))
}

/// The origins in the entries of `t.c` since `since`: (entry's, how many).
async fn origins(client: &Client, since: bson::Timestamp) -> Vec<(Option<u8>, usize)> {
    let filter = doc! { "$or": [{ "ns": "t.c" }, { "o.applyOps.ns": "t.c" }], "op": { "$ne": "n" } };
    let mut found: Vec<(Option<u8>, usize)> = Vec::new();
    for entry in oplog(client, since, filter).await {
        let number = entry.get_i64("txnNumber").ok();
        let origin = number.and_then(Origin::of_transaction).map(Origin::number);
        match found.iter_mut().find(|(of, _)| *of == origin) {
            Some((_, count)) => *count += 1,
            None => found.push((origin, 1)),
        }
    }
    found
}

#[tokio::test]
async fn every_write_carries_its_mark_whatever_road_it_takes() {
    let set_of_one = ReplicaSet::single().await.unwrap();
    let bench = Bench::new(set_of_one.client(), SinkOptions::default());
    let things = bench.client.database("t").collection::<Document>("c");
    let unique = IndexOptions::builder().unique(true).build();
    things.create_index(IndexModel::builder().keys(doc! { "u": 1 }).options(unique).build()).await.unwrap();
    let sink = marked(&bench);
    let all_marked = |found: Vec<(Option<u8>, usize)>, road: &str| {
        assert!(matches!(found.as_slice(), [(Some(OWN), 1..)]), "{road}: {found:?}");
    };

    let since = now(&bench.client).await;
    let few = [insert(&bench, 1), insert(&bench, 2), insert(&bench, 3)];
    assert_eq!(sink.write(&few).await.unwrap().refused, []);
    all_marked(origins(&bench.client, since).await, "a small flush");

    let since = now(&bench.client).await;
    let many: Vec<Write> = (10..210).map(|id| insert(&bench, id)).collect();
    assert_eq!(sink.write(&many).await.unwrap().refused, []);
    let changes: Vec<Write> = (10..210)
        .map(|id| if id % 2 == 0 { set(&bench, id, "n", 1) } else { write(&bench, id, Content::Delete) })
        .collect();
    assert_eq!(sink.write(&changes).await.unwrap().refused, []);
    all_marked(origins(&bench.client, since).await, "large flushes");

    let since = now(&bench.client).await;
    let refused = [insert(&bench, 1), set(&bench, 2, "n", 5), set(&bench, 999, "n", 5)];
    things.delete_one(doc! { "_id": 3 }).await.unwrap();
    let since = since.max(now(&bench.client).await);
    assert_eq!(sink.write(&refused).await.unwrap().refused, []);
    all_marked(origins(&bench.client, since).await, "statements that are refused or miss their document");

    let since = now(&bench.client).await;
    let swap = [set(&bench, 1, "u", 2), set(&bench, 2, "u", 1)];
    assert_eq!(sink.settle(&swap, true).await.unwrap().refused, []);
    all_marked(origins(&bench.client, since).await, "settled unique keys");

    let since = now(&bench.client).await;
    let options = CopyOptions { collection_exist_drop: false, resumed: true, documents_max: 1000, majority: false };
    let copy = MongoCopyTarget::new(Arc::clone(&sink), options);
    let documents: Vec<_> = (500..600).map(|id| raw(&doc! { "_id": id, "u": id })).collect();
    copy.insert(bench.names.intern("t.c"), &documents).await.unwrap();
    copy.insert(bench.names.intern("t.c"), &documents).await.unwrap();
    all_marked(origins(&bench.client, since).await, "documents of the copy, and again");

    // A change that came from elsewhere keeps its own mark, in a command or a transaction of its own.
    let since = now(&bench.client).await;
    let other = Origin::new(OTHER);
    let mixed: Vec<Write> =
        (700..900).map(|id| Write { origin: other.filter(|_| id % 2 == 0), ..insert(&bench, id) }).collect();
    assert_eq!(sink.write(&mixed).await.unwrap().refused, []);
    let mut found = origins(&bench.client, since).await;
    found.sort_unstable();
    assert!(matches!(found.as_slice(), [(Some(OWN), _), (Some(OTHER), _)]), "{found:?}");
}

/// The origin of each document of `t.c`, as the entries that wrote it since `since` say.
async fn origin_of_each(client: &Client, since: bson::Timestamp) -> BTreeMap<i32, Vec<Option<u8>>> {
    let filter = doc! { "$or": [{ "ns": "t.c" }, { "o.applyOps.ns": "t.c" }], "op": { "$ne": "n" } };
    let mut found: BTreeMap<i32, Vec<Option<u8>>> = BTreeMap::new();
    for entry in oplog(client, since, filter).await {
        let entry: Document = bson::deserialize_from_slice(entry.as_bytes()).unwrap();
        let origin = entry.get_i64("txnNumber").ok().and_then(Origin::of_transaction).map(Origin::number);
        let o = entry.get_document("o").unwrap();
        let inner = o.get_array("applyOps").into_iter().flatten().filter_map(|inner| inner.as_document());
        let of = |entry: &Document| {
            let key = entry.get_document("o2").or_else(|_| entry.get_document("o")).unwrap();
            key.get_i32("_id").unwrap()
        };
        let ids: Vec<i32> = if o.contains_key("applyOps") { inner.map(of).collect() } else { vec![of(&entry)] };
        ids.into_iter().for_each(|id| found.entry(id).or_default().push(origin));
    }
    found
}

#[tokio::test]
async fn what_is_written_whole_keeps_the_mark_of_each_cluster() {
    let set_of_one = ReplicaSet::single().await.unwrap();
    let bench = Bench::new(set_of_one.client(), SinkOptions::default());
    let things = bench.client.database("t").collection::<Document>("c");
    let unique = IndexOptions::builder().unique(true).build();
    things.create_index(IndexModel::builder().keys(doc! { "u": 1 }).options(unique).build()).await.unwrap();
    let sink = marked(&bench);
    let of = |number: u8, write: Write| Write { origin: Origin::new(number), ..write };

    // One cluster's changes go as one transaction under its mark.
    let since = now(&bench.client).await;
    let one = vec![(1..5).map(|id| of(OTHER, insert(&bench, id))).collect::<Vec<_>>()];
    assert!(sink.write_whole(&one).await.unwrap().at_once);
    let found = origin_of_each(&bench.client, since).await;
    assert!(found.len() == 4 && found.values().all(|marks| marks == &[Some(OTHER)]), "{found:?}");

    // Several clusters' changes do not, and each keeps its own, whether or not unique keys must be settled.
    let insert_two = vec![vec![of(OTHER, insert(&bench, 11)), of(0, insert(&bench, 12)), of(3, insert(&bench, 13))]];
    let swap = vec![vec![
        of(OTHER, set(&bench, 1, "u", 2)),
        of(OTHER, set(&bench, 2, "u", 1)),
        of(3, set(&bench, 3, "u", 4)),
        of(3, set(&bench, 4, "u", 3)),
    ]];
    let expected: [(_, &[(i32, u8)]); 2] =
        [(insert_two, &[(11, OTHER), (12, OWN), (13, 3)]), (swap, &[(1, OTHER), (2, OTHER), (3, 3), (4, 3)])];
    for (waves, expected) in expected {
        let since = now(&bench.client).await;
        let whole = sink.write_whole(&waves).await.unwrap();
        assert!(whole.report.refused.is_empty() && !whole.at_once, "{whole:?}");
        let found = origin_of_each(&bench.client, since).await;
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), expected.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        for (id, origin) in expected {
            assert!(found[id].iter().all(|mark| *mark == Some(*origin)), "{id} of {origin}: {found:?}");
        }
    }
    let documents = bench.documents("t.c").await;
    let swapped = documents.iter().filter(|document| document.get_i32("_id").unwrap() < 10);
    let pairs: Vec<_> = swapped.map(|d| (d.get_i32("_id").unwrap(), d.get_i32("u").unwrap())).collect();
    assert_eq!(pairs.into_iter().collect::<BTreeMap<_, _>>(), BTreeMap::from([(1, 2), (2, 1), (3, 4), (4, 3)]));
}

/// Processor time of a process, in seconds.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: f64 = [11, 12].iter().map(|at| fields[*at].parse::<f64>().unwrap()).sum();
    ticks / 100.0
}

#[tokio::test]
async fn what_a_mark_costs_is_printed_and_changes_nothing() {
    const ROUNDS: i32 = 6;
    const FLUSHES: i32 = 200;
    let set_of_one = ReplicaSet::single().await.unwrap();
    let bench = Bench::new(set_of_one.client(), SinkOptions::default());
    let pid = set_of_one.pid(0).unwrap();
    let (plain, with_marks) = (Arc::clone(&bench.sink), marked(&bench));
    let concern = WriteConcern::builder().w(Acknowledgment::Nodes(1)).w_timeout(Duration::from_secs(60)).build();
    let things = bench.client.database("t").collection::<Document>("c");
    let documents = (0..1000).map(|id| doc! { "_id": id, "n": 0, "pad": "x".repeat(100) });
    things.insert_many(documents).write_concern(concern).await.unwrap();
    for statements in [4, 32, 256] {
        let mut cost = [Vec::new(), Vec::new()];
        for round in 0..ROUNDS {
            for (which, sink) in [&plain, &with_marks].into_iter().enumerate() {
                let flushes = FLUSHES * 4 / statements.max(4) + 8;
                let before = cpu_seconds(pid);
                for flush in 0..flushes {
                    let value = (round * 2 + which as i32) * 10_000 + flush;
                    let at = |n| (flush * statements + n) % 1000;
                    let writes: Vec<Write> = (0..statements).map(|n| set(&bench, at(n), "n", value)).collect();
                    assert_eq!(sink.write(&writes).await.unwrap().refused, []);
                }
                let micros = (cpu_seconds(pid) - before) * 1e6 / f64::from(flushes * statements);
                cost[which].push(micros);
            }
        }
        let median = |list: &mut Vec<f64>| {
            list.sort_by(f64::total_cmp);
            list[list.len() / 2]
        };
        let [plain, marked] = &mut cost;
        println!(
            "{statements} updates a flush: {:.1} us of server CPU an update without marks, {:.1} with",
            median(plain),
            median(marked)
        );
    }
}
