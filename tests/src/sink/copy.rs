//! The full copy's writing half against a real server.
//!
//! A copy meets targets that are empty, half full of an earlier try, or somebody else's, and only a server says what it
//! makes of each. The reading half is tested in `snapshot`, never here.

use std::sync::Arc;

use bson::{Bson, Document, RawDocumentBuf, Timestamp, doc};
use bytes::Bytes;
use oplogue_connectors::mongodb::copy::{CopyOptions, MongoCopyTarget};
use oplogue_connectors::mongodb::sink::SinkOptions;
use oplogue_engine::error::Kind;
use oplogue_engine::model::Namespace;
use oplogue_engine::sink::{Content, CopyTarget as _, Sink as _};
use oplogue_engine::source::CollectionPlan;
use oplogue_tests::servers::{Options, ReplicaSet, connect};

use super::support::{Bench, raw};

const OPTIONS: CopyOptions =
    CopyOptions { collection_exist_drop: true, resumed: false, documents_max: 128, majority: false };

fn plan(name: &str, options: &Document, uuid: u8) -> CollectionPlan {
    CollectionPlan {
        namespace: Namespace::new(name),
        kind: if options.contains_key("viewOn") { "view" } else { "collection" }.to_owned(),
        options: raw(options),
        uuid: (!options.contains_key("viewOn")).then_some([uuid; 16]),
        documents: 0,
        bytes: 0,
    }
}

/// A copy target that works as the guide's user.
async fn bench() -> (ReplicaSet, Bench) {
    let set = ReplicaSet::start(Options::guide_target()).await.unwrap();
    let bench = Bench::new(connect(&set.uri_as_user()).await.unwrap(), SinkOptions::default());
    (set, bench)
}

#[tokio::test]
async fn documents_arrive_as_they_are_and_twice_is_once() {
    let (set, bench) = bench().await;
    let copy = MongoCopyTarget::new(Arc::clone(&bench.sink), OPTIONS);
    let target = bench.names.intern("t.c");
    copy.prepare(&plan("s.c", &doc! {}, 1), target).await.unwrap();
    let at_the_top = set.has("names at the top that begin with $", (5, 0));
    let zero = Timestamp { time: 0, increment: 0 };
    let documents: Vec<Document> = (0..300)
        .map(|n| {
            if n % 50 == 0 {
                doc! { "_id": n, "t": zero }
            } else {
                let name = if at_the_top { "$x" } else { "x" };
                doc! { "_id": n, name: n % 7, "s": { "$y": "v" } }
            }
        })
        .collect();
    let documents: Vec<Bytes> = documents.iter().map(raw).collect();
    copy.insert(target, &documents[..200]).await.unwrap();
    assert!(copy.insert(target, &documents[100..]).await.unwrap().is_some());
    let mut found: Vec<Vec<u8>> = bench.documents("t.c").await.into_iter().map(RawDocumentBuf::into_bytes).collect();
    let mut expected: Vec<Vec<u8>> = documents.iter().map(|d| d.to_vec()).collect();
    found.sort();
    expected.sort();
    assert!(found == expected);
    assert_eq!(bench.store.pairs.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn ids_that_a_clustered_collection_cannot_show_are_copied_twice_too() {
    let (set, bench) = bench().await;
    if !set.has("clustered collections", (6, 0)) {
        return;
    }
    let copy = MongoCopyTarget::new(Arc::clone(&bench.sink), OPTIONS);
    let decimal = |text: &str| Bson::Decimal128(text.parse().unwrap());
    let mut ids: Vec<Bson> =
        [f64::NAN, 1.5, -0.0, f64::INFINITY, f64::NEG_INFINITY, 1e-300, -7.25e100, 1e19].map(Bson::from).into();
    ids.extend(["2.50", "-1E-6000", "1E+6000", "0.3", "9.99E+20"].map(decimal));
    ids.extend([doc! { "a": f64::NAN }, doc! { "a": [1, { "b": 0.1 }] }].map(Bson::from));
    ids.extend([i64::MAX, i64::MIN].map(Bson::from));
    let documents: Vec<Bytes> = ids.iter().map(|id| raw(&doc! { "_id": id })).collect();
    let options = doc! { "clusteredIndex": { "key": { "_id": 1 }, "unique": true } };
    let target = bench.names.intern("t.clustered");
    copy.prepare(&plan("s.clustered", &options, 7), target).await.unwrap();
    for _ in 0..2 {
        copy.insert(target, &documents).await.unwrap();
    }
    let found = bench.documents("t.clustered").await;
    assert_eq!(found.len(), documents.len());
    assert!(documents.iter().all(|document| found.iter().any(|one| one.as_bytes() == document)));
    // A live insert that meets such an `_id` is a conflict like any other.
    for id in ids {
        let key = doc! { "_id": id };
        let write = bench.write("s.clustered", "t.clustered", &key, Content::Insert(raw(&key)), false);
        assert_eq!(bench.sink.write(&[write]).await.unwrap().refused, []);
    }
    assert_eq!(bench.sink.counts().conflicts, documents.len() as u64);
}

#[tokio::test]
async fn what_stands_there_is_dropped_once_or_refused() {
    let (_set, bench) = bench().await;
    let things = bench.client.database("t").collection::<Document>("c");
    things.insert_one(doc! { "_id": "old" }).await.unwrap();
    let (target, plan) = (bench.names.intern("t.c"), plan("s.c", &doc! { "capped": true, "size": 4096 }, 1));
    let keep = CopyOptions { collection_exist_drop: false, ..OPTIONS };
    let error = MongoCopyTarget::new(Arc::clone(&bench.sink), keep).prepare(&plan, target).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Misconfigured);
    assert!(error.to_string().contains("t.c"), "{error}");
    let copy = MongoCopyTarget::new(Arc::clone(&bench.sink), OPTIONS);
    copy.prepare(&plan, target).await.unwrap();
    copy.insert(target, &[raw(&doc! { "_id": "new" })]).await.unwrap();
    // A later run of the same copy finds its own work and keeps it, whatever the setting.
    let again = bench.restarted();
    for options in [OPTIONS, keep] {
        let options = CopyOptions { resumed: true, ..options };
        let target = again.names.intern("t.c");
        MongoCopyTarget::new(Arc::clone(&again.sink), options).prepare(&plan, target).await.unwrap();
    }
    assert_eq!(again.documents("t.c").await.len(), 1);
}

#[tokio::test]
async fn views_and_indexes_follow_and_a_failed_index_is_named() {
    let (_set, bench) = bench().await;
    let copy = MongoCopyTarget::new(Arc::clone(&bench.sink), OPTIONS);
    let (target, view) = (bench.names.intern("t.c"), bench.names.intern("t.v"));
    let collated = doc! { "collation": { "locale": "en", "strength": 2 } };
    copy.prepare(&plan("s.c", &collated, 1), target).await.unwrap();
    for _ in 0..2 {
        copy.prepare(&plan("s.v", &doc! { "viewOn": "c", "pipeline": [] }, 2), view).await.unwrap();
    }
    copy.insert(target, &[raw(&doc! { "_id": 1, "a": 1 }), raw(&doc! { "_id": 2, "a": 1 })]).await.unwrap();
    let specs = [
        raw(&doc! { "v": 2, "key": { "_id": 1 }, "name": "_id_" }),
        raw(&doc! { "v": 2, "key": { "b": 1 }, "name": "b_1", "ns": "s.c" }),
        raw(&doc! { "v": 2, "key": { "a": 1 }, "name": "a_1", "unique": true }),
    ];
    let error = copy.create_indexes(target, &specs).await.unwrap_err();
    assert!(error.to_string().contains("a_1") && !error.to_string().contains("b_1"), "{error}");
    let names = bench.client.database("t").collection::<Document>("c").list_index_names().await.unwrap();
    assert_eq!(names, ["_id_", "b_1"]);
    assert_eq!(bench.documents("t.v").await.len(), 2);
    let remembered = ("s.v".to_owned(), "t.v".to_owned());
    assert_eq!(bench.store.view_names(), [remembered], "a run that is killed before it follows must know of it");
}

#[tokio::test]
async fn a_document_that_a_standing_unique_index_refuses_is_deferred() {
    let (_set, bench) = bench().await;
    let copy = MongoCopyTarget::new(Arc::clone(&bench.sink), OPTIONS);
    let target = bench.names.intern("t.c");
    copy.prepare(&plan("s.c", &doc! {}, 1), target).await.unwrap();
    copy.create_indexes(target, &[raw(&doc! { "v": 2, "key": { "a": 1 }, "name": "a_1", "unique": true })])
        .await
        .unwrap();
    copy.insert(target, &[raw(&doc! { "_id": 1, "a": 1 }), raw(&doc! { "_id": 2, "a": 1 })]).await.unwrap();
    let deferred = copy.take_deferred().await;
    assert_eq!(deferred, [(target, raw(&doc! { "_id": 2 }))]);
}
