//! Flushes in one transaction: the same outcome as apart, nothing left behind, and no privilege more than writing.
//!
//! The server decides what a transaction may do and when it ends, so each case is shown on a real one, as the guide's
//! target user where privileges matter. What the statements themselves mean is tested in `flush`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bson::{Document, doc};
use mongodb::IndexModel;
use mongodb::options::IndexOptions;
use oplogue_connectors::mongodb::alone::{WriterName, wait_until_alone};
use oplogue_connectors::mongodb::client::{self, ConnectOptions};
use oplogue_connectors::mongodb::sink::{MissingDocument, SinkOptions};
use oplogue_engine::error::Side;
use oplogue_engine::sink::{Content, Patch, Refusal, Sink as _, Write};
use oplogue_tests::servers::{Options, ReplicaSet, connect};

use super::support::{Bench, now, oplog, raw};

const EACH: i32 = 60;

fn insert(bench: &Bench, namespace: &str, id: i32, document: &Document) -> Write {
    bench.write(namespace, namespace, &doc! { "_id": id }, Content::Insert(raw(document)), false)
}

fn patch(bench: &Bench, namespace: &str, id: i32) -> Write {
    let diff = Patch::Diff(raw(&doc! { "u": { "x": "new" } }));
    bench.write(namespace, namespace, &doc! { "_id": id }, Content::Patch(vec![diff]), false)
}

/// `EACH` documents in each of three collections, written through the sink.
fn inserts(bench: &Bench) -> Vec<Write> {
    let each = |name: &'static str| (0..EACH).map(move |id| (name, id));
    let all = ["t.a", "t.b", "t.c"].into_iter().flat_map(each);
    all.map(|(name, id)| insert(bench, name, id, &doc! { "_id": id, "x": "old", "u": id })).collect()
}

async fn guide() -> (ReplicaSet, Bench) {
    let set = ReplicaSet::start(Options::guide_target()).await.unwrap();
    let bench = Bench::new(connect(&set.uri_as_user()).await.unwrap(), SinkOptions::default());
    (set, bench)
}

#[tokio::test]
async fn a_large_flush_is_one_entry_of_the_targets_oplog() {
    let (set, bench) = guide().await;
    for name in ["a", "b", "c"] {
        set.client().database("t").create_collection(name).await.unwrap();
    }
    let since = now(&set.client()).await;
    let mut writes = inserts(&bench);
    let report = bench.sink.write(&writes).await.unwrap();
    assert_eq!(report.refused, []);
    assert!(report.operation_time.is_some_and(|time| time.ts() > 0));
    writes = (0..EACH / 2).map(|id| patch(&bench, "t.a", id)).collect();
    writes.extend((0..EACH / 2).map(|id| bench.write("t.b", "t.b", &doc! { "_id": id }, Content::Delete, false)));
    writes.extend((EACH..EACH + 20).map(|id| insert(&bench, "t.c", id, &doc! { "_id": id })));
    assert_eq!(bench.sink.write(&writes).await.unwrap().refused, []);
    assert_eq!((bench.sink.counts().together, bench.sink.counts().rolled_back), (2, 0));
    let entries =
        oplog(&set.client(), since, doc! { "op": { "$ne": "n" }, "ns": { "$not": { "$regex": "^config" } } }).await;
    assert_eq!(entries.len(), 2, "{entries:?}");
    let documents = [bench.documents("t.a").await, bench.documents("t.b").await, bench.documents("t.c").await];
    let renewed = documents[0].iter().filter(|document| document.get_str("x").unwrap() == "new").count();
    let counts = documents.map(|all| all.len());
    assert_eq!((renewed, counts), (EACH as usize / 2, [EACH as usize, EACH as usize / 2, EACH as usize + 20]));
}

#[tokio::test]
async fn what_the_server_refuses_is_refused_alone_and_its_collection_stays_apart() {
    let (set, bench) = guide().await;
    let unique =
        IndexModel::builder().keys(doc! { "u": 1 }).options(IndexOptions::builder().unique(true).build()).build();
    let a = set.client().database("t").collection::<Document>("a");
    a.create_index(unique).await.unwrap();
    a.insert_one(doc! { "_id": "other", "u": 7 }).await.unwrap();
    let report = bench.sink.write(&inserts(&bench)).await.unwrap();
    assert!(matches!(&report.refused[..], [(7, Refusal::UniqueKey { .. })]), "{:?}", report.refused);
    assert_eq!((bench.sink.counts().together, bench.sink.counts().rolled_back), (0, 1));
    let found: Vec<usize> = vec![
        bench.documents("t.a").await.len(),
        bench.documents("t.b").await.len(),
        bench.documents("t.c").await.len(),
    ];
    assert_eq!(found, [EACH as usize, EACH as usize, EACH as usize]);
    // The two others go on together.
    let writes: Vec<Write> = ["t.a", "t.b", "t.c"]
        .into_iter()
        .flat_map(|name| (10..10 + EACH / 2 + 10).map(move |id| (name, id)))
        .map(|(name, id)| patch(&bench, name, id))
        .collect();
    assert_eq!(bench.sink.write(&writes).await.unwrap().refused, []);
    assert_eq!((bench.sink.counts().together, bench.sink.counts().rolled_back), (1, 1));
}

#[tokio::test]
async fn a_document_that_is_missing_is_found_out_in_a_transaction_too() {
    let set = ReplicaSet::single().await.unwrap();
    let options = SinkOptions { missing_document: MissingDocument::Ignore, ..SinkOptions::default() };
    let bench = Bench::new(set.client(), options);
    bench.sink.write(&inserts(&bench)).await.unwrap();
    let a = set.client().database("t").collection::<Document>("a");
    a.delete_many(doc! { "_id": { "$in": [3, 5] } }).await.unwrap();
    let writes: Vec<Write> = ["t.a", "t.b"]
        .into_iter()
        .flat_map(|n| (0..EACH).map(move |id| (n, id)))
        .map(|(n, id)| patch(&bench, n, id))
        .collect();
    assert_eq!(bench.sink.write(&writes).await.unwrap().refused, []);
    let counts = bench.sink.counts();
    assert_eq!((counts.together, counts.missing, counts.rolled_back), (2, 2, 0));
    let ids: BTreeSet<i32> = bench.documents("t.a").await.iter().map(|d| d.get_i32("_id").unwrap()).collect();
    assert_eq!(ids.len(), EACH as usize - 2);
}

#[tokio::test]
async fn what_takes_no_part_in_transactions_is_written_beside_them() {
    let set = ReplicaSet::single().await.unwrap();
    let bench = Bench::new(set.client(), SinkOptions::default());
    let db = set.client().database("t");
    db.run_command(doc! { "create": "b", "capped": true, "size": 1 << 20 }).await.unwrap();
    bench.sink.load().await.unwrap();
    assert_eq!(bench.sink.write(&inserts(&bench)).await.unwrap().refused, []);
    assert_eq!((bench.sink.counts().together, bench.sink.counts().rolled_back), (1, 0));
    assert_eq!(bench.documents("t.b").await.len(), EACH as usize);
}

#[tokio::test]
async fn a_conflict_with_somebody_elses_transaction_is_waited_out() {
    let set = ReplicaSet::single().await.unwrap();
    let bench = Bench::new(set.client(), SinkOptions { majority: true, ..SinkOptions::default() });
    // By majority: a transaction reads a snapshot of it, which must have the collections.
    bench.sink.write(&inserts(&bench)).await.unwrap();
    let other = connect(&set.uri()).await.unwrap();
    let mut session = other.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    let a = other.database("t").collection::<Document>("a");
    a.update_one(doc! { "_id": 1 }, doc! { "$set": { "theirs": 1 } }).session(&mut session).await.unwrap();
    let writes: Vec<Write> = ["t.a", "t.b"]
        .into_iter()
        .flat_map(|name| (0..EACH).map(move |id| (name, id)))
        .map(|(name, id)| patch(&bench, name, id))
        .collect();
    let (report, ()) = tokio::join!(bench.sink.write(&writes), async {
        let deadline = Instant::now() + Duration::from_secs(30);
        while bench.sink.counts().rolled_back == 0 {
            assert!(Instant::now() < deadline, "no transaction met the conflict");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Time for the statements to wait alone too; they need not.
        tokio::time::sleep(Duration::from_millis(200)).await;
        session.commit_transaction().await.unwrap();
    });
    assert_eq!(report.unwrap().refused, []);
    assert_eq!((bench.sink.counts().together, bench.sink.counts().rolled_back), (1, 1));
    let first = bench.documents("t.a").await.into_iter().find(|d| d.get_i32("_id").unwrap() == 1).unwrap();
    assert_eq!((first.get_str("x").unwrap(), first.get_i32("theirs").unwrap()), ("new", 1));
}

/// A killed collector leaves its transactions open, and their documents would be held for a minute.
#[tokio::test]
async fn transactions_that_a_killed_run_left_open_are_ended_at_the_next_start() {
    let (set, bench) = guide().await;
    bench.sink.write(&inserts(&bench)).await.unwrap();
    let run = || WriterName::new("job");
    let client = |writer: WriterName| {
        let (uri, options) = (set.uri_as_user(), ConnectOptions { writer: Some(writer), ..ConnectOptions::default() });
        async move { client::connect(Side::Sink, &uri, &options).await.unwrap() }
    };
    let killed = client(run()).await;
    let mut session = killed.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    let a = killed.database("t").collection::<Document>("a");
    a.update_one(doc! { "_id": 1 }, doc! { "$set": { "x": "half" } }).session(&mut session).await.unwrap();
    // As a killed process does: the connections end, nothing is aborted. What waits for the document keeps its own.
    let waiting = killed.clone();
    let waits = tokio::time::timeout(Duration::from_millis(500), async move {
        let a = waiting.database("t").collection::<Document>("a");
        a.update_one(doc! { "_id": 1 }, doc! { "$set": { "x": "late" } }).await
    });
    assert!(waits.await.is_err(), "the open transaction holds the document");
    std::mem::forget(session);
    killed.shutdown().immediate(true).await;
    let next = run();
    let alone = client(next.clone()).await;
    let waited = tokio::time::timeout(Duration::from_secs(30), wait_until_alone(&alone, &[], &next)).await;
    waited.expect("nothing is left of the killed run").unwrap();
    let writes: Vec<Write> = (0..EACH).map(|id| patch(&bench, "t.a", id)).collect();
    let written = tokio::time::timeout(Duration::from_secs(30), bench.sink.write(&writes)).await;
    assert_eq!(written.expect("nobody holds the document any more").unwrap().refused, []);
}
