//! Flushes: every result read, duplicates and missing documents by the rules of either side of the overlap mark.
//!
//! What a server answers to a bulk of writes is not written down anywhere, so a real one is asked. Collisions that one
//! flush cannot solve are in `settle`, never here.

use std::sync::Arc;
use std::time::Duration;

use bson::{Bson, Document, RawDocumentBuf, Timestamp, doc};
use mongodb::IndexModel;
use mongodb::options::{Acknowledgment, ReadPreference, WriteConcern};
use oplogue_connectors::mongodb::sink::{MissingDocument, SinkOptions};
use oplogue_engine::error::Kind;
use oplogue_engine::model::CollectionUuid;
use oplogue_engine::sink::{Content, Patch, Refusal, Sink as _, Write};
use oplogue_tests::servers::{Options, ReplicaSet, connect};

use super::support::{Bench, raw};

fn patch(diff: Document) -> Content {
    Content::Patch(vec![Patch::Diff(raw(&diff))])
}

fn id(id: impl Into<Bson>) -> Document {
    doc! { "_id": id.into() }
}

async fn single(options: SinkOptions) -> (ReplicaSet, Bench) {
    let set = ReplicaSet::single().await.unwrap();
    let bench = Bench::new(set.client(), options);
    (set, bench)
}

async fn found(bench: &Bench, namespace: &str) -> Vec<Document> {
    bench.documents(namespace).await.into_iter().map(|d| d.try_into().unwrap()).collect()
}

#[tokio::test]
async fn duplicates_and_missing_documents_in_overlap_are_no_questions() {
    let (_set, bench) = single(SinkOptions { missing_document: MissingDocument::Stop, ..SinkOptions::default() }).await;
    let things = bench.client.database("t").collection::<Document>("c");
    things.insert_one(doc! { "_id": 1, "old": true }).await.unwrap();
    let write = |key: Document, content| bench.write("t.c", "t.c", &key, content, true);
    let report = bench
        .sink
        .write(&[
            write(id(1), Content::Insert(raw(&doc! { "_id": 1_i64, "new": 1 }))),
            write(id(2), patch(doc! { "u": { "x": 1 } })),
            write(id(3), Content::Delete),
            write(id(4), Content::Insert(raw(&doc! { "_id": 4, "new": 4 }))),
        ])
        .await
        .unwrap();
    assert_eq!(report.refused, []);
    assert!(report.operation_time.is_some());
    let expected = [doc! { "_id": 1_i64, "new": 1 }, doc! { "_id": 4, "new": 4 }];
    assert_eq!(found(&bench, "t.c").await, expected);
    let durability = bench.sink.durability().await.unwrap();
    assert!(durability.term >= 1);
}

#[tokio::test]
async fn after_the_mark_a_taken_id_is_kept_or_replaced_as_configured() {
    for replace in [false, true] {
        let (_set, bench) = single(SinkOptions { insert_on_dup_update: replace, ..SinkOptions::default() }).await;
        let things = bench.client.database("t").collection::<Document>("c");
        things.insert_one(doc! { "_id": 1, "who": "target" }).await.unwrap();
        let insert = Content::Insert(raw(&doc! { "_id": 1, "who": "source" }));
        let other = Content::Insert(raw(&doc! { "_id": 2, "who": "source" }));
        let writes =
            [bench.write("s.c", "t.c", &id(1), insert, false), bench.write("s.c", "t.c", &id(2), other, false)];
        assert_eq!(bench.sink.write(&writes).await.unwrap().refused, []);
        let who = if replace { "source" } else { "target" };
        assert_eq!(found(&bench, "t.c").await, [doc! { "_id": 1, "who": who }, doc! { "_id": 2, "who": "source" }]);
        assert_eq!(bench.sink.counts().conflicts, u64::from(!replace));
    }
}

#[tokio::test]
async fn a_missing_document_is_read_from_the_source_and_is_then_ahead() {
    let (_set, bench) = single(SinkOptions::default()).await;
    let source = bench.client.database("s").collection::<Document>("c");
    let whole = doc! { "_id": 1, "x": 1, "y": 2 };
    source.insert_one(&whole).write_concern(WriteConcern::majority()).await.unwrap();
    let target = bench.client.database("t").collection::<Document>("c");
    target.insert_one(doc! { "_id": 2, "x": 0 }).await.unwrap();
    let update = |key: i32| bench.write("s.c", "t.c", &id(key), patch(doc! { "u": { "x": 1 } }), false);
    let report = bench.sink.write(&[update(1), update(2), update(3)]).await.unwrap();
    assert_eq!(report.refused, []);
    let expected = [doc! { "_id": 2, "x": 1 }, doc! { "_id": 1, "x": 1, "y": 2 }];
    assert_eq!(found(&bench, "t.c").await, expected, "3 is absent on both sides: nothing is invented");
    let counts = bench.sink.counts();
    assert_eq!((counts.missing, counts.refetched), (2, 2));
    // The document came from the source's present, so older changes of it are still in overlap.
    bench
        .sink
        .write(&[bench.write("s.c", "t.c", &id(1), patch(doc! { "sgone": { "u": { "z": 1 } } }), false)])
        .await
        .unwrap();
    assert_eq!(found(&bench, "t.c").await, expected);
}

/// Nobody has the name when the source is read, and its owner is back when that is asked for: nothing is missing there.
#[tokio::test]
async fn a_document_is_read_from_its_collection_though_that_is_away_for_a_moment() {
    for count in [1, 3] {
        let (set, bench) = single(SinkOptions::default()).await;
        let shop = bench.client.database("s");
        let wholes: Vec<Document> = (0..count).map(|key| doc! { "_id": key, "x": 1, "y": 2 }).collect();
        let things = shop.collection::<Document>("c");
        things.insert_many(&wholes).write_concern(WriteConcern::majority()).await.unwrap();
        let collection = Some(identity(&bench, "c").await);
        let update = |key: i32| {
            let write = bench.write("s.c", "t.c", &id(key), patch(doc! { "u": { "x": 1 } }), false);
            Write { collection, ..write }
        };
        let updates: Vec<Write> = (0..count).map(update).collect();
        bench.client.database("t").create_collection("c").await.unwrap();
        bench.sink.load().await.unwrap();
        let rename = async |from: &str, to: &str| {
            let command = doc! { "renameCollection": format!("s.{from}"), "to": format!("s.{to}") };
            set.client().database("admin").run_command(command).await.unwrap();
        };
        rename("c", "away").await;
        let slow = doc! { "failCommands": ["listCollections"], "blockConnection": true, "blockTimeMS": 1_500 };
        set.fail_command(doc! { "times": 1 }, slow).await.unwrap();
        let back = async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            rename("away", "c").await;
        };
        let (report, ()) = tokio::join!(bench.sink.write(&updates), back);
        set.heal_commands().await.unwrap();
        assert_eq!(report.unwrap().refused, []);
        assert_eq!(found(&bench, "t.c").await, wholes);
    }
}

/// A server that chooses between two indexes comes to the end before its first reply, as if there were no collection.
#[tokio::test]
async fn a_document_that_is_gone_is_found_to_be_gone_whatever_indexes_there_are() {
    let (_set, bench) = single(SinkOptions::default()).await;
    let source = bench.client.database("s").collection::<Document>("c");
    for keys in [doc! { "_id": 1, "x": 1 }, doc! { "_id": "hashed" }] {
        source.create_index(IndexModel::builder().keys(keys).build()).await.unwrap();
    }
    let gone = [doc! { "_id": { "a": 1 } }, doc! { "_id": Bson::Null }, doc! { "_id": 7 }];
    bench.client.database("t").create_collection("c").await.unwrap();
    let collection = Some(identity(&bench, "c").await);
    for writes in [&gone[..1], &gone[..]] {
        let update = |key: &Document| {
            let write = bench.write("s.c", "t.c", key, patch(doc! { "u": { "x": 1 } }), false);
            Write { collection, ..write }
        };
        let updates: Vec<Write> = writes.iter().map(update).collect();
        assert_eq!(bench.sink.write(&updates).await.unwrap().refused, []);
    }
    assert_eq!(bench.sink.counts().refetched, 3, "what was read before is still known to be ahead");
    assert!(found(&bench, "t.c").await.is_empty());
}

/// The identity of a collection of the source.
async fn identity(bench: &Bench, name: &str) -> CollectionUuid {
    let command = doc! { "listCollections": 1, "filter": { "name": name } };
    let listed = bench.client.database("s").run_command(command).await.unwrap();
    let [entry] = &listed.get_document("cursor").unwrap().get_array("firstBatch").unwrap()[..] else { panic!() };
    let info = entry.as_document().unwrap().get_document("info").unwrap();
    let Some(Bson::Binary(uuid)) = info.get("uuid") else { panic!("{info}") };
    uuid.bytes.clone().try_into().unwrap()
}

#[tokio::test]
async fn a_missing_document_can_stop_the_run_or_be_ignored() {
    let (_set, bench) = single(SinkOptions { missing_document: MissingDocument::Stop, ..SinkOptions::default() }).await;
    let write = bench.write("s.c", "t.c", &id(7), patch(doc! { "u": { "x": 1 } }), false);
    let error = bench.sink.write(&[write]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::CannotApply);
    assert!(error.to_string().contains("t.c") && error.to_string().contains('7'), "{error}");
    let ignoring = SinkOptions { missing_document: MissingDocument::Ignore, ..SinkOptions::default() };
    let bench = Bench::new(bench.client.clone(), ignoring);
    let write = bench.write("s.c", "t.c", &id(7), patch(doc! { "u": { "x": 1 } }), false);
    bench.sink.write(&[write]).await.unwrap();
    assert_eq!(bench.sink.counts().missing, 1);
    let inventing = SinkOptions { missing_document: MissingDocument::Upsert, ..SinkOptions::default() };
    let bench = Bench::new(bench.client.clone(), inventing);
    let write = bench.write("s.c", "t.c", &id(7), patch(doc! { "u": { "x": 1 } }), false);
    bench.sink.write(&[write]).await.unwrap();
    assert_eq!(found(&bench, "t.c").await, [doc! { "_id": 7, "x": 1 }]);
}

#[tokio::test]
async fn a_collision_is_reported_for_its_own_change_and_solved_inside_a_flush() {
    let (_set, bench) = single(SinkOptions::default()).await;
    let things = bench.client.database("t").collection::<Document>("c");
    let unique = mongodb::options::IndexOptions::builder().unique(true).build();
    things.create_index(IndexModel::builder().keys(doc! { "u": 1 }).options(unique).build()).await.unwrap();
    things.insert_many([doc! { "_id": 1, "u": 1 }, doc! { "_id": 2, "u": 2 }]).await.unwrap();
    let insert = |key: i32, u: i32| {
        bench.write("s.c", "t.c", &id(key), Content::Insert(raw(&doc! { "_id": key, "u": u })), false)
    };
    let report = bench.sink.write(&[insert(3, 2), insert(4, 4), insert(5, 5)]).await.unwrap();
    let [(0, Refusal::UniqueKey { index, .. })] = report.refused.as_slice() else { panic!("{:?}", report.refused) };
    assert_eq!(index, "u_1");
    // The delete makes room for the insert of the same flush, whichever command comes first.
    let delete = bench.write("s.c", "t.c", &id(1), Content::Delete, false);
    let report = bench.sink.write(&[insert(6, 1), delete]).await.unwrap();
    assert_eq!(report.refused, []);
    assert_eq!(things.count_documents(doc! {}).await.unwrap(), 4);
}

#[tokio::test]
async fn documents_that_plain_writes_would_change_arrive_unchanged() {
    let (set, bench) = single(SinkOptions::default()).await;
    let zero = Timestamp { time: 0, increment: 0 };
    let at_the_top = if set.has("names at the top that begin with $", (5, 0)) { "$price" } else { "price" };
    let documents = [
        doc! { "_id": 1, "t": zero, "n": { "t": zero } },
        doc! { "_id": 2, at_the_top: 1, "a.b": 2, "": 3, "in": { "$price": 1, "a.b": 2 } },
        doc! { "_id": { "a": 1 }, "x": f64::from_bits(0x7ff8_0000_dead_beef), "z": -0.0 },
        doc! { "_id": Bson::Null, "big": "y".repeat(16 * 1024 * 1024 - 200) },
    ];
    for overlap in [false, true] {
        for content in [Content::Insert, Content::Replace] {
            bench.client.database("t").drop().await.unwrap();
            let keys: Vec<Document> = documents.iter().map(|d| id(d.get("_id").unwrap().clone())).collect();
            let writes: Vec<_> = documents
                .iter()
                .zip(&keys)
                .map(|(document, key)| bench.write("s.c", "t.c", key, content(raw(document)), overlap))
                .collect();
            assert_eq!(bench.sink.write(&writes).await.unwrap().refused, []);
            let mut found = bench.documents("t.c").await;
            let mut expected: Vec<RawDocumentBuf> =
                documents.iter().map(|d| RawDocumentBuf::try_from(d).unwrap()).collect();
            found.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
            expected.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
            assert!(found == expected, "overlap {overlap}");
        }
    }
}

/// A target of 4.4 takes such a name at the top of no document: that is said of the write, and of no other.
#[tokio::test]
async fn names_that_begin_with_a_dollar_are_refused_by_4_4() {
    let set = ReplicaSet::start(Options { version: "4.4.2".to_owned(), ..Options::default() }).await.unwrap();
    let bench = Bench::over(set.client(), set.client(), SinkOptions::default(), Arc::default());
    for overlap in [false, true] {
        let write = |key: i32, name: &str| {
            let document = raw(&doc! { "_id": key, name: 1 });
            bench.write("s.c", "t.c", &id(key), Content::Insert(document), overlap)
        };
        let report = bench.sink.write(&[write(1, "a"), write(2, "$price"), write(3, "b")]).await.unwrap();
        let [(1, Refusal::Refused { message, .. })] = report.refused.as_slice() else { panic!("{:?}", report.refused) };
        assert!(message.contains("$price"), "{message}");
        assert_eq!(found(&bench, "t.c").await, [doc! { "_id": 1, "a": 1 }, doc! { "_id": 3, "b": 1 }]);
        bench.client.database("t").drop().await.unwrap();
    }
}

/// A secondary of 5.0.4 aborts on a replacement in its oplog that begins with such a name.
#[tokio::test]
async fn names_that_begin_with_a_dollar_reach_every_member() {
    for version in ["5.0.4", "6.0.27"] {
        let options = Options { version: version.to_owned(), members: 3, non_voting: 2, ..Options::default() };
        let set = ReplicaSet::start(options).await.unwrap();
        let bench = Bench::over(set.client(), set.client(), SinkOptions::default(), Arc::default());
        let all = WriteConcern::builder().w(Acknowledgment::Nodes(3)).w_timeout(Duration::from_secs(30)).build();
        let things = bench.client.database("t").collection::<Document>("c");
        let document = |key: i32| doc! { "_id": key, "$price": 1, "$sale": { "$price": 2 }, "n": key };
        for overlap in [false, true] {
            for content in [Content::Insert, Content::Replace] {
                things.delete_many(doc! {}).await.unwrap();
                // One over another document, one over the same, one over nothing.
                bench
                    .sink
                    .write(&[bench.write("s.c", "t.c", &id(2), Content::Insert(raw(&document(2))), false)])
                    .await
                    .unwrap();
                things.insert_one(doc! { "_id": 1, "x": "y".repeat(200) }).await.unwrap();
                let write = |key: i32| bench.write("s.c", "t.c", &id(key), content(raw(&document(key))), overlap);
                let keys = if overlap || matches!(content(raw(&doc! {})), Content::Replace(_)) { 1..4 } else { 3..4 };
                let writes: Vec<_> = keys.clone().map(write).collect();
                assert_eq!(bench.sink.write(&writes).await.unwrap().refused, []);
                let settled: Vec<_> = keys.clone().map(write).collect();
                assert_eq!(bench.sink.settle(&settled, true).await.unwrap().refused, []);
                things.insert_one(doc! { "_id": "end" }).write_concern(all.clone()).await.unwrap();
                for member in 0..3 {
                    let read = set.member_client(member).await.unwrap();
                    let read = read.database("t").collection::<Document>("c");
                    let nearest = ReadPreference::Nearest { options: None };
                    for key in keys.clone() {
                        let found = read.find_one(id(key)).selection_criteria(nearest.clone().into()).await.unwrap();
                        assert_eq!(found, Some(document(key)), "{version}, member {member}, overlap {overlap}");
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn ids_that_only_a_collation_calls_equal_replace_each_other() {
    let (_set, bench) = single(SinkOptions::default()).await;
    let collation = doc! { "create": "c", "collation": { "locale": "en", "strength": 2 } };
    bench.client.database("t").run_command(collation).await.unwrap();
    bench.sink.load().await.unwrap();
    let insert = |key: &str| bench.write("s.c", "t.c", &id(key), Content::Insert(raw(&doc! { "_id": key })), true);
    bench.sink.write(&[insert("a")]).await.unwrap();
    assert_eq!(bench.sink.write(&[insert("A")]).await.unwrap().refused, []);
    assert_eq!(found(&bench, "t.c").await, [doc! { "_id": "A" }]);
    let delete = bench.write("s.c", "t.c", &id("A"), Content::Delete, false);
    let again = bench.write("s.c", "t.c", &id("a"), Content::Insert(raw(&doc! { "_id": "a" })), false);
    assert_eq!(bench.sink.write(&[delete, again]).await.unwrap().refused, []);
    assert_eq!(found(&bench, "t.c").await, [doc! { "_id": "a" }]);
}

#[tokio::test]
async fn the_guides_target_user_is_enough_and_validators_are_then_obeyed() {
    let set = ReplicaSet::start(Options::guide_target()).await.unwrap();
    let user = connect(&set.uri_as_user()).await.unwrap();
    let bench = Bench::new(user, SinkOptions::default());
    let validator = doc! { "create": "c", "validator": { "n": { "$gte": 0 } } };
    set.client().database("t").run_command(validator).await.unwrap();
    let insert = |key: i32, n: i32| {
        bench.write("s.c", "t.c", &id(key), Content::Insert(raw(&doc! { "_id": key, "n": n })), false)
    };
    let report = bench.sink.write(&[insert(1, 1), insert(2, -2), insert(3, 3)]).await.unwrap();
    let [(1, Refusal::Refused { code: 121, .. })] = report.refused.as_slice() else { panic!("{:?}", report.refused) };
    let root = Bench::new(set.client(), SinkOptions::default());
    let write = root.write("s.c", "t.c", &id(2), Content::Insert(raw(&doc! { "_id": 2, "n": -2 })), false);
    assert_eq!(root.sink.write(&[write]).await.unwrap().refused, []);
    assert_eq!(found(&root, "t.c").await.len(), 3);
}

#[tokio::test]
async fn an_unknown_outcome_is_an_error_of_the_whole_flush() {
    let (set, bench) = single(SinkOptions::default()).await;
    bench.sink.load().await.unwrap();
    for failure in [
        doc! { "failCommands": ["insert"], "closeConnection": true },
        doc! { "failCommands": ["insert"], "errorCode": 10107 },
        // What a `mongos` says while chunks move, and a member that gives up under load.
        doc! { "failCommands": ["insert"], "errorCode": 82 },
        doc! { "failCommands": ["insert"], "errorCode": 365 },
        doc! { "failCommands": ["insert"], "writeConcernError": { "code": 91, "errmsg": "shutting down" } },
    ] {
        set.fail_command(doc! { "times": 1 }, failure.clone()).await.unwrap();
        let insert = Content::Insert(raw(&doc! { "_id": 1 }));
        let error = bench.sink.write(&[bench.write("s.c", "t.c", &id(1), insert, true)]).await;
        set.heal_commands().await.unwrap();
        // In overlap an insert is an update, which the fail point lets through.
        assert!(error.is_ok());
        set.fail_command(doc! { "times": 1 }, failure.clone()).await.unwrap();
        let insert = Content::Insert(raw(&doc! { "_id": 2 }));
        let error = bench.sink.write(&[bench.write("s.c", "t.c", &id(2), insert, false)]).await.unwrap_err();
        assert!(matches!(error.kind(), Kind::Unavailable | Kind::FailedOver), "{failure}: {error}");
        set.heal_commands().await.unwrap();
        bench.client.database("t").drop().await.unwrap();
    }
}

#[tokio::test]
async fn too_deep_an_update_is_replaced_by_the_whole_document() {
    let (_set, bench) = single(SinkOptions::default()).await;
    let mut document = doc! { "x": 0 };
    let mut diff = doc! { "u": { "x": 1 } };
    for _ in 0..80 {
        document = doc! { "a": document };
        diff = doc! { "sa": diff };
    }
    document.insert("_id", 1);
    bench.client.database("t").collection::<Document>("c").insert_one(&document).await.unwrap();
    bench
        .client
        .database("s")
        .collection::<Document>("c")
        .insert_one(doc! { "_id": 1, "whole": true })
        .write_concern(majority())
        .await
        .unwrap();
    let write = bench.write("s.c", "t.c", &id(1), patch(diff), true);
    assert_eq!(bench.sink.write(&[write]).await.unwrap().refused, []);
    assert_eq!(found(&bench, "t.c").await, [doc! { "_id": 1, "whole": true }]);
    assert_eq!(bench.sink.counts().refetched, 1);
}

/// A client's command `applyOps` makes what it does not find, and is logged as it was written.
#[tokio::test]
async fn an_update_that_creates_is_read_whole() {
    let options = SinkOptions { missing_document: MissingDocument::Stop, ..SinkOptions::default() };
    let (_set, bench) = single(options).await;
    let made = doc! { "_id": 1, "x": 1, "y": 2 };
    let source = bench.client.database("s").collection::<Document>("c");
    source.insert_one(&made).write_concern(majority()).await.unwrap();
    for overlap in [true, false] {
        for settled in [false, true] {
            let content = Content::Patch(vec![Patch::Modifiers(raw(&doc! { "$set": { "x": 1 } }))]);
            let write = Write { creates: true, ..bench.write("s.c", "t.c", &id(1), content, overlap) };
            let report = match settled {
                true => bench.sink.settle(&[write], true).await,
                false => bench.sink.write(&[write]).await,
            };
            assert_eq!(report.unwrap().refused, []);
            assert_eq!(found(&bench, "t.c").await, std::slice::from_ref(&made));
            bench.client.database("t").drop().await.unwrap();
        }
    }
}

#[tokio::test]
async fn modifiers_of_old_sources_are_applied_in_order() {
    let (_set, bench) = single(SinkOptions::default()).await;
    let things = bench.client.database("t").collection::<Document>("c");
    things.insert_one(doc! { "_id": 1, "x": 0, "y": 1 }).await.unwrap();
    let modifiers = |document: Document| Patch::Modifiers(raw(&document));
    let content = Content::Patch(vec![
        modifiers(doc! { "$set": { "x": 1 } }),
        modifiers(doc! { "$set": { "x": 2 }, "$unset": { "y": true } }),
    ]);
    let write = bench.write("s.c", "t.c", &id(1), content.clone(), false);
    assert_eq!(bench.sink.write(&[write]).await.unwrap().refused, []);
    assert_eq!(found(&bench, "t.c").await, [doc! { "_id": 1, "x": 2 }]);
    assert_eq!(bench.sink.counts().refetched, 0);
    // In overlap a removal could move fields of a newer document, so the source is asked.
    let source = bench.client.database("s").collection::<Document>("c");
    let newer = doc! { "_id": 1, "x": 2, "y": 7 };
    source.insert_one(&newer).write_concern(majority()).await.unwrap();
    let write = bench.write("s.c", "t.c", &id(1), content, true);
    assert_eq!(bench.sink.write(&[write]).await.unwrap().refused, []);
    assert_eq!(found(&bench, "t.c").await, [newer]);
    assert_eq!(bench.sink.counts().refetched, 1);
}

/// What a read with majority concern must find at once.
fn majority() -> WriteConcern {
    WriteConcern::builder().w(Acknowledgment::Majority).build()
}
