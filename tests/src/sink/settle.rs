//! Unique values that changed hands: swaps, cycles, chains with what stands on the target, and true conflicts.
//!
//! A settlement passes through states that the source never had, so each test looks at the end state of every document.
//! When a settlement is due is the pipeline's decision and never tested here.

use std::sync::Arc;
use std::time::Duration;

use bson::{Document, doc};
use mongodb::IndexModel;
use mongodb::options::WriteConcern;
use oplogue_connectors::mongodb::sink::SinkOptions;
use oplogue_engine::error::Result;
use oplogue_engine::model::{Change, ChangeBatch, NamespaceId};
use oplogue_engine::plugin::{ChainReport, ChainWorker, GenerationInfo, PluginChain, PluginStats, retain};
use oplogue_engine::sink::{Content, Patch, Refusal, Sink as _, Write};
use oplogue_tests::patience;
use oplogue_tests::servers::ReplicaSet;

use super::support::{Bench, raw};

/// A minute is far more than a settlement of two documents takes.
const PATIENCE: Duration = Duration::from_secs(60);

async fn unique(documents: &[Document]) -> (ReplicaSet, Bench) {
    let set = ReplicaSet::single().await.unwrap();
    let bench = Bench::new(set.client(), SinkOptions::default());
    let things = bench.client.database("t").collection::<Document>("c");
    let unique = mongodb::options::IndexOptions::builder().unique(true).build();
    things.create_index(IndexModel::builder().keys(doc! { "u": 1 }).options(unique).build()).await.unwrap();
    // A transaction reads a snapshot of the majority, which must have the index too.
    things.insert_many(documents).write_concern(WriteConcern::majority()).await.unwrap();
    (set, bench)
}

fn set(bench: &Bench, id: i32, u: i32, overlap: bool) -> Write {
    let diff = Content::Patch(vec![Patch::Diff(raw(&doc! { "u": { "u": u } }))]);
    bench.write("s.c", "t.c", &doc! { "_id": id }, diff, overlap)
}

async fn found(bench: &Bench) -> Vec<Document> {
    let mut all: Vec<Document> = bench.documents("t.c").await.into_iter().map(|d| d.try_into().unwrap()).collect();
    all.sort_by_key(|d| d.get_i32("_id").unwrap());
    all
}

#[tokio::test]
async fn swaps_and_cycles_are_settled_with_their_other_fields() {
    let start: Vec<Document> = (1..=3).map(|n| doc! { "_id": n, "u": n, "keep": n * 10 }).collect();
    let (_set, bench) = unique(&start).await;
    let writes = [set(&bench, 1, 2, false), set(&bench, 2, 3, false), set(&bench, 3, 1, false)];
    assert!(!bench.sink.write(&writes).await.unwrap().refused.is_empty(), "no order of single writes does it");
    let (_other, bench) = unique(&start).await;
    let writes = [set(&bench, 1, 2, false), set(&bench, 2, 3, false), set(&bench, 3, 1, false)];
    let report = bench.sink.settle(&writes, true).await.unwrap();
    assert_eq!(report.refused, []);
    assert!(report.operation_time.is_some());
    let expected = [
        doc! { "_id": 1, "u": 2, "keep": 10 },
        doc! { "_id": 2, "u": 3, "keep": 20 },
        doc! { "_id": 3, "u": 1, "keep": 30 },
    ];
    assert_eq!(found(&bench).await, expected);
    // Settling again, as a replay would, changes nothing.
    let writes = [set(&bench, 1, 2, true), set(&bench, 2, 3, true), set(&bench, 3, 1, true)];
    assert_eq!(bench.sink.settle(&writes, true).await.unwrap().refused, []);
    assert_eq!(found(&bench).await, expected);
}

#[tokio::test]
async fn several_writes_of_a_document_count_in_order() {
    let (_set, bench) = unique(&[doc! { "_id": 1, "u": 1 }, doc! { "_id": 2, "u": 2 }]).await;
    let key = doc! { "_id": 2 };
    let writes = [
        set(&bench, 1, 7, false),
        bench.write("s.c", "t.c", &key, Content::Delete, false),
        set(&bench, 1, 2, false),
        bench.write("s.c", "t.c", &key, Content::Insert(raw(&doc! { "_id": 2, "u": 9 })), false),
        set(&bench, 2, 1, false),
        bench.write("s.c", "t.c", &doc! { "_id": 3 }, Content::Replace(raw(&doc! { "_id": 3, "u": 7 })), false),
        set(&bench, 4, 4, true),
    ];
    assert_eq!(bench.sink.settle(&writes, true).await.unwrap().refused, []);
    let expected = [doc! { "_id": 1, "u": 2 }, doc! { "_id": 2, "u": 1 }, doc! { "_id": 3, "u": 7 }];
    assert_eq!(found(&bench).await, expected, "4 is missing and in overlap: no document is invented");
}

#[tokio::test]
async fn a_true_conflict_is_named_and_the_rest_is_settled() {
    let (_set, bench) =
        unique(&[doc! { "_id": 1, "u": 1 }, doc! { "_id": 2, "u": 2 }, doc! { "_id": 9, "u": 9 }]).await;
    let writes = [
        set(&bench, 1, 2, false),
        set(&bench, 2, 1, false),
        bench.write("s.c", "t.c", &doc! { "_id": 3 }, Content::Insert(raw(&doc! { "_id": 3, "u": 9 })), false),
    ];
    let report = bench.sink.settle(&writes, true).await.unwrap();
    let [(2, Refusal::UniqueKey { index, .. })] = report.refused.as_slice() else { panic!("{:?}", report.refused) };
    assert_eq!(index, "u_1");
    assert_eq!(found(&bench).await, [doc! { "_id": 1, "u": 2 }, doc! { "_id": 2, "u": 1 }, doc! { "_id": 9, "u": 9 }]);
}

#[tokio::test]
async fn updates_of_old_sources_are_settled_too() {
    let start = [
        doc! { "_id": 1, "u": 1, "arr": [1, 2], "gone": true },
        doc! { "_id": 2, "u": 2, "o": { "k": 1 } },
        doc! { "_id": 3, "u": 3 },
    ];
    let (_set, bench) = unique(&start).await;
    let modifiers = |id: i32, update: Document| {
        let content = Content::Patch(vec![Patch::Modifiers(raw(&update))]);
        bench.write("s.c", "t.c", &doc! { "_id": id }, content, false)
    };
    let writes = [
        modifiers(1, doc! { "$set": { "arr.2": 3, "u": 2 }, "$unset": { "gone": true } }),
        modifiers(2, doc! { "$set": { "o.n": 1, "u": 1 } }),
        modifiers(2, doc! { "$set": { "u": 3 } }),
        modifiers(3, doc! { "$set": { "u": 1 } }),
    ];
    assert_eq!(bench.sink.settle(&writes, true).await.unwrap().refused, []);
    let expected = [
        doc! { "_id": 1, "u": 2, "arr": [1, 2, 3] },
        doc! { "_id": 2, "u": 3, "o": { "k": 1, "n": 1 } },
        doc! { "_id": 3, "u": 1 },
    ];
    assert_eq!(found(&bench).await, expected);
    assert_eq!(bench.sink.counts().refetched, 0, "all of it was evaluated");
    // A replayed removal, and a document that the target cannot compute, come from the source.
    let source = bench.client.database("s").collection::<Document>("c");
    let concern = mongodb::options::WriteConcern::builder().w(mongodb::options::Acknowledgment::Majority).build();
    let newer = [doc! { "_id": 1, "u": 8 }, doc! { "_id": 2, "u": 9, "o": 1 }];
    source.insert_many(&newer).write_concern(concern).await.unwrap();
    let replayed = Write { overlap: true, ..modifiers(1, doc! { "$unset": { "gone": true } }) };
    let impossible = modifiers(2, doc! { "$set": { "u.x": 1 } });
    assert_eq!(bench.sink.settle(&[replayed, impossible], true).await.unwrap().refused, []);
    let [one, two] = newer;
    assert_eq!(found(&bench).await, [one, two, doc! { "_id": 3, "u": 1 }]);
    assert_eq!(bench.sink.counts().refetched, 2);
}

#[tokio::test]
async fn documents_of_different_moments_are_read_at_one() {
    let start = [doc! { "_id": 1, "u": 1 }, doc! { "_id": 2, "u": 2 }, doc! { "_id": 9, "u": 9 }];
    let (_set, bench) = unique(&start).await;
    let source = bench.client.database("s").collection::<Document>("c");
    let now = [doc! { "_id": 1, "u": 2 }, doc! { "_id": 2, "u": 3 }, doc! { "_id": 3, "u": 4 }];
    source.insert_many(&now).write_concern(WriteConcern::majority()).await.unwrap();
    let removal = |id: i32| {
        let update = doc! { "$set": { "u": 5 }, "$unset": { "gone": true } };
        let content = Content::Patch(vec![Patch::Modifiers(raw(&update))]);
        bench.write("s.c", "t.c", &doc! { "_id": id }, content, true)
    };
    // A removal in overlap is read from the source, where 1 has taken over what 2 still has on the target.
    assert_eq!(bench.sink.settle(&[removal(1)], true).await.unwrap().refused, []);
    assert_eq!(found(&bench).await, [now[0].clone(), now[1].clone(), start[2].clone()]);
    // The other way round: 2 is ahead now, and has what 3 gave up since.
    let insert = Content::Insert(raw(&doc! { "_id": 3, "u": 3 }));
    let insert = bench.write("s.c", "t.c", &doc! { "_id": 3 }, insert, true);
    assert_eq!(bench.sink.settle(&[insert], true).await.unwrap().refused, []);
    assert_eq!(found(&bench).await, [now[0].clone(), now[1].clone(), now[2].clone(), start[2].clone()]);
    // What the source does not have is never moved: that is a conflict.
    let nine = doc! { "$set": { "u": 9 } };
    source.update_one(doc! { "_id": 1 }, nine).write_concern(WriteConcern::majority()).await.unwrap();
    let report = bench.sink.settle(&[removal(1)], true).await.unwrap();
    assert!(matches!(report.refused.as_slice(), [(0, Refusal::UniqueKey { .. })]), "{:?}", report.refused);
    assert_eq!(found(&bench).await.last(), Some(&start[2]));
}

/// What is taken along may collide with a document that the source does not have. Then it stays, and what it was taken
/// along for is ruled over.
#[tokio::test]
async fn a_document_that_cannot_be_taken_along_ends_the_search() {
    let start = [doc! { "_id": 1, "u": 1 }, doc! { "_id": 2, "u": 2 }, doc! { "_id": 9, "u": 9 }];
    let (_set, bench) = unique(&start).await;
    let source = bench.client.database("s").collection::<Document>("c");
    let now = [doc! { "_id": 1, "u": 2 }, doc! { "_id": 2, "u": 9 }];
    source.insert_many(&now).write_concern(WriteConcern::majority()).await.unwrap();
    let update = doc! { "$unset": { "gone": true } };
    let content = Content::Patch(vec![Patch::Modifiers(raw(&update))]);
    let write = [bench.write("s.c", "t.c", &doc! { "_id": 1 }, content, true)];
    let settled = tokio::time::timeout(patience::at_most(PATIENCE), bench.sink.settle(&write, true)).await;
    let refused = settled.expect("the search does not end").unwrap().refused;
    assert!(matches!(refused.as_slice(), [(0, Refusal::UniqueKey { .. })]), "{refused:?}");
    assert_eq!(found(&bench).await, start);
}

/// An update whose document is missing is read from the source, which is ahead of what another document still has.
#[tokio::test]
async fn a_missing_document_is_read_with_what_stands_in_its_way() {
    let start = [doc! { "_id": 1, "u": 1 }];
    let (_set, bench) = unique(&start).await;
    let source = bench.client.database("s").collection::<Document>("c");
    let now = [doc! { "_id": 1, "u": 5 }, doc! { "_id": 2, "u": 1, "x": 1 }];
    source.insert_many(&now).write_concern(WriteConcern::majority()).await.unwrap();
    let content = Content::Patch(vec![Patch::Diff(raw(&doc! { "u": { "x": 1 } }))]);
    let write = bench.write("s.c", "t.c", &doc! { "_id": 2 }, content, false);
    assert_eq!(bench.sink.settle(&[write], true).await.unwrap().refused, []);
    assert_eq!(found(&bench).await, now);
}

/// A document is settled in a state that an index of later does not take.
#[tokio::test]
async fn an_index_may_be_younger_than_what_is_settled() {
    let (_set, bench) = unique(&[doc! { "_id": 2, "u": 2 }]).await;
    let things = bench.client.database("t").collection::<Document>("c");
    things.create_index(IndexModel::builder().keys(doc! { "a": 1, "b": 1 }).build()).await.unwrap();
    let now = doc! { "_id": 1, "u": 1, "a": [1], "b": 2 };
    let source = bench.client.database("s").collection::<Document>("c");
    source.insert_one(&now).write_concern(WriteConcern::majority()).await.unwrap();
    let then = Content::Insert(raw(&doc! { "_id": 1, "u": 1, "a": [1], "b": [2] }));
    let write = |overlap| bench.write("s.c", "t.c", &doc! { "_id": 1 }, then.clone(), overlap);
    assert_eq!(bench.sink.settle(&[write(true)], false).await.unwrap().refused, []);
    assert_eq!(found(&bench).await[0], now);
    // After the overlap nothing explains it.
    let refused = bench.sink.settle(&[write(false)], true).await.unwrap().refused;
    assert!(matches!(refused.as_slice(), [(0, Refusal::Refused { code: 171, .. })]), "{refused:?}");
    assert_eq!(found(&bench).await[0], now);
}

/// A chain that drops every document with a field `hidden`, and moves every one with a field `away`.
struct Hiding;

impl PluginChain for Hiding {
    fn worker(self: Arc<Self>) -> Result<Box<dyn ChainWorker>> {
        Ok(Box::new(Self))
    }

    fn route(&self, source: NamespaceId) -> Result<Option<NamespaceId>> {
        Ok(Some(source))
    }

    fn generations(&self) -> Vec<GenerationInfo> {
        Vec::new()
    }

    fn stats(&self) -> Vec<PluginStats> {
        Vec::new()
    }
}

impl ChainWorker for Hiding {
    fn process(&mut self, batch: &mut ChangeBatch) -> Result<ChainReport> {
        let has = |change: &Change, field| oplogue_engine::model::raw::find(&change.body, field).unwrap().is_some();
        batch.changes.iter_mut().for_each(|change| change.moved = has(change, "away"));
        retain(batch, |change| !has(change, "hidden"));
        Ok(ChainReport::default())
    }
}

#[tokio::test]
async fn what_a_plugin_drops_stays_as_it_is() {
    let start = [doc! { "_id": 1, "u": 1 }, doc! { "_id": 2, "u": 2 }, doc! { "_id": 3, "u": 3 }];
    let (set, _bench) = unique(&start).await;
    let bench = Bench::passing(set.client(), Arc::new(Hiding));
    let source = bench.client.database("s").collection::<Document>("c");
    let now = [doc! { "_id": 1, "u": 8, "hidden": true }, doc! { "_id": 2, "u": 9 }];
    source.insert_many(&now).write_concern(WriteConcern::majority()).await.unwrap();
    // Read from the source: one that a plugin drops, one that it lets through, and one that is not there any more.
    let writes = [1, 2, 3].map(|id| {
        let update = doc! { "$unset": { "gone": true } };
        let content = Content::Patch(vec![Patch::Modifiers(raw(&update))]);
        bench.write("s.c", "t.c", &doc! { "_id": id }, content, true)
    });
    assert_eq!(bench.sink.settle(&writes, true).await.unwrap().refused, []);
    assert_eq!(found(&bench).await, [start[0].clone(), now[1].clone()]);
    let away = doc! { "$set": { "away": true }, "$unset": { "hidden": true } };
    source.update_one(doc! { "_id": 1 }, away).write_concern(WriteConcern::majority()).await.unwrap();
    // Each alone, where they are not asked for together. What is moved elsewhere is not for this place either.
    assert_eq!(bench.sink.settle(&writes[..1], true).await.unwrap().refused, []);
    assert_eq!(bench.sink.write(&writes[..1]).await.unwrap().refused, []);
    assert_eq!(found(&bench).await, [start[0].clone(), now[1].clone()]);
}

/// A state that has passed the plugins stays a document's, though they drop what the source has of it by now.
#[tokio::test]
async fn a_state_that_passed_is_written_though_a_later_one_is_dropped() {
    let start = [doc! { "_id": 1, "u": 1 }, doc! { "_id": 2, "u": 2 }, doc! { "_id": 9, "u": 9 }];
    let (set, _bench) = unique(&start).await;
    let bench = Bench::passing(set.client(), Arc::new(Hiding));
    let source = bench.client.database("s").collection::<Document>("c");
    let now = [doc! { "_id": 1, "u": 4, "hidden": true }, doc! { "_id": 2, "u": 9 }, doc! { "_id": 9, "u": 10 }];
    source.insert_many(&now).write_concern(WriteConcern::majority()).await.unwrap();
    let passed = doc! { "_id": 1, "u": 3 };
    let passed_write = bench.write("s.c", "t.c", &doc! { "_id": 1 }, Content::Replace(raw(&passed)), true);
    let content = Content::Patch(vec![Patch::Modifiers(raw(&doc! { "$unset": { "gone": true } }))]);
    let read = bench.write("s.c", "t.c", &doc! { "_id": 2 }, content, true);
    assert_eq!(bench.sink.settle(&[passed_write, read], true).await.unwrap().refused, []);
    assert_eq!(found(&bench).await, [passed, now[1].clone(), now[2].clone()]);
}

/// No server takes a write to a capped collection into a transaction, and a document that is written alone would stand
/// behind those that came after it.
#[tokio::test]
async fn what_collides_in_a_capped_collection_is_refused_and_changes_nothing() {
    let set = ReplicaSet::single().await.unwrap();
    let bench = Bench::new(set.client(), SinkOptions::default());
    let database = bench.client.database("t");
    database.run_command(doc! { "create": "c", "capped": true, "size": 100_000 }).await.unwrap();
    let index = doc! { "key": { "u": 1 }, "name": "u_1", "unique": true };
    database.run_command(doc! { "createIndexes": "c", "indexes": [index] }).await.unwrap();
    let things = database.collection::<Document>("c");
    things.insert_many([doc! { "_id": 1, "u": 1 }]).write_concern(WriteConcern::majority()).await.unwrap();
    let insert = Content::Insert(raw(&doc! { "_id": 4, "u": 1 }));
    let writes = [self::set(&bench, 1, 2, true), bench.write("s.c", "t.c", &doc! { "_id": 4 }, insert, true)];
    let report = bench.sink.settle(&writes, true).await.unwrap();
    let [(0, Refusal::Refused { .. }), (1, Refusal::Refused { .. })] = report.refused.as_slice() else {
        panic!("{:?}", report.refused);
    };
    assert_eq!(found(&bench).await, [doc! { "_id": 1, "u": 1 }]);
}
