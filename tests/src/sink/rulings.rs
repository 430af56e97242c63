//! What each ruling over a conflict does to the documents: strategies of the settings, and a judge of the test.
//!
//! Every test looks at all documents that are left, because what must not be deleted matters as much as what must. When
//! a settlement has its last word is the pipeline's decision; here it is an argument.

use std::sync::{Arc, Mutex};

use bson::{Document, doc};
use mongodb::IndexModel;
use mongodb::options::{Collation, IndexOptions, WriteConcern};
use oplogue_connectors::mongodb::sink::{Rules, SinkOptions};
use oplogue_engine::conflict::{Conflict, DuplicateKeys, Judge, Ruling, SkipRule};
use oplogue_engine::error::{Kind, Result};
use oplogue_engine::metrics::ConflictKind;
use oplogue_engine::model::Operation;
use oplogue_engine::sink::{Content, Patch, Refusal, Sink as _, Write};
use oplogue_tests::servers::ReplicaSet;

use super::support::{Bench, raw};

const RECORDS: &str = "test__conflict";

/// Rules always the same and remembers what it was shown.
struct Always {
    ruling: Ruling,
    shown: Mutex<Vec<Conflict>>,
}

impl Judge for Always {
    fn rule(&self, conflict: &Conflict) -> Result<Ruling> {
        self.shown.lock().unwrap().push(conflict.clone());
        Ok(self.ruling.clone())
    }
}

fn retry() -> Rules {
    Rules::Settings(DuplicateKeys::DeleteAndRetry)
}

fn unique(field: &str) -> IndexModel {
    let options = IndexOptions::builder().unique(true).build();
    IndexModel::builder().keys(doc! { field: 1 }).options(options).build()
}

async fn bench(rules: Rules, records: Option<&str>, indexes: &[IndexModel], all: &[Document]) -> (ReplicaSet, Bench) {
    bench_with(SinkOptions::default(), rules, records, indexes, all).await
}

async fn bench_with(
    options: SinkOptions,
    rules: Rules,
    records: Option<&str>,
    indexes: &[IndexModel],
    all: &[Document],
) -> (ReplicaSet, Bench) {
    let set = ReplicaSet::single().await.unwrap();
    let bench = Bench::ruled(set.client(), options, rules, records);
    let things = bench.client.database("t").collection::<Document>("c");
    for index in indexes {
        things.create_index(index.clone()).await.unwrap();
    }
    // A transaction reads a snapshot of the majority, which must have the indexes too.
    things.insert_many(all).write_concern(WriteConcern::majority()).await.unwrap();
    (set, bench)
}

fn insert(bench: &Bench, document: &Document) -> Write {
    let key = doc! { "_id": document.get("_id").unwrap().clone() };
    bench.write("s.c", "t.c", &key, Content::Insert(raw(document)), false)
}

fn set(bench: &Bench, id: i32, u: i32) -> Write {
    let diff = Content::Patch(vec![Patch::Diff(raw(&doc! { "u": { "u": u } }))]);
    bench.write("s.c", "t.c", &doc! { "_id": id }, diff, false)
}

async fn found(bench: &Bench) -> Vec<Document> {
    let mut all: Vec<Document> = bench.documents("t.c").await.into_iter().map(|d| d.try_into().unwrap()).collect();
    all.sort_by_key(|d| d.get_i32("_id").unwrap());
    all
}

/// The guide's words for `insert_on_dup_update`: the same `_id` or unique index.
#[tokio::test]
async fn an_insert_takes_the_place_of_a_duplicate_where_that_is_asked_for() {
    let others = [doc! { "_id": 1, "u": 1 }, doc! { "_id": 2, "u": 2 }];
    let options = SinkOptions { insert_on_dup_update: true, ..SinkOptions::default() };
    let (_set, bench) = bench_with(options, Rules::default(), Some(RECORDS), &[unique("u")], &others).await;
    let new = doc! { "_id": 9, "u": 1 };
    assert_eq!(bench.sink.settle(&[insert(&bench, &new)], true).await.unwrap().refused, []);
    assert_eq!(found(&bench).await, [others[1].clone(), new.clone()]);
    // Nor does an update that came along with it change that.
    let patches = vec![Patch::Diff(raw(&doc! { "u": { "x": 2 } }))];
    let content = Content::Patched { base: raw(&doc! { "_id": 8, "u": 1, "x": 1 }), patches, inserted: true };
    let with_update = bench.write("s.c", "t.c", &doc! { "_id": 8 }, content, false);
    assert_eq!(bench.sink.settle(&[with_update], true).await.unwrap().refused, []);
    assert_eq!(found(&bench).await, [others[1].clone(), doc! { "_id": 8, "u": 1, "x": 2 }]);
    assert_eq!(bench.sink.settle(&[insert(&bench, &new)], true).await.unwrap().refused, []);
    // An update is no insert: it is a conflict as ever.
    assert_eq!(bench.sink.settle(&[set(&bench, 9, 2)], true).await.unwrap().refused, []);
    assert_eq!(found(&bench).await, [others[1].clone(), new], "it is recorded, and nothing gives way");
    // Nor does it count where a strategy rules.
    let rules = Rules::Settings(DuplicateKeys::Error);
    let (_set, bench) = bench_with(options, rules, None, &[unique("u")], &others).await;
    let refused = bench.sink.settle(&[insert(&bench, &doc! { "_id": 9, "u": 1 })], true).await.unwrap().refused;
    assert_eq!((refused.len(), found(&bench).await), (1, others.to_vec()));
}

#[tokio::test]
async fn whatever_holds_a_unique_value_gives_way_and_nothing_else_does() {
    let others =
        [doc! { "_id": 1, "u": 1, "v": 1 }, doc! { "_id": 2, "u": 2, "v": 2 }, doc! { "_id": 3, "u": 3, "v": 3 }];
    let (_set, bench) = bench(retry(), None, &[unique("u"), unique("v")], &others).await;
    let new = doc! { "_id": 9, "u": 1, "v": 2, "odd": -0.0, "deep": { "$odd": 1 } };
    let report = bench.sink.settle(&[insert(&bench, &new)], false).await.unwrap();
    assert!(matches!(report.refused.as_slice(), [(0, Refusal::UniqueKey { .. })]), "{report:?}");
    assert_eq!(found(&bench).await, others, "before the last word nothing is deleted");
    let report = bench.sink.settle(&[insert(&bench, &new)], true).await.unwrap();
    assert_eq!(report.refused, []);
    assert!(report.operation_time.is_some());
    assert_eq!(found(&bench).await, [others[2].clone(), new.clone()]);
    assert_eq!(bench.documents("t.c").await.pop().unwrap().as_bytes(), &raw(&new)[..]);
    assert_eq!(bench.sink.counts().conflicts, 1, "one change, whatever it displaced");
    // Again, as a replay would: nothing stands in the way any more.
    let again = Write { overlap: true, ..insert(&bench, &new) };
    assert_eq!(bench.sink.settle(&[again], true).await.unwrap().refused, []);
    assert_eq!(bench.sink.counts().conflicts, 1);
}

/// More than one transaction deletes.
#[tokio::test]
async fn many_documents_give_way_in_several_transactions() {
    let others: Vec<Document> = (0..150).map(|n| doc! { "_id": n, "u": n }).collect();
    let (_set, bench) = bench(retry(), None, &[unique("u")], &others).await;
    let new: Vec<Document> = (0..150).map(|n| doc! { "_id": 1000 + n, "u": n }).collect();
    let writes: Vec<Write> = new.iter().map(|document| insert(&bench, document)).collect();
    assert_eq!(bench.sink.settle(&writes, true).await.unwrap().refused, []);
    assert_eq!(found(&bench).await, new);
    assert_eq!(bench.sink.counts().conflicts, 150);
}

#[tokio::test]
async fn a_document_that_is_about_to_move_is_no_obstacle() {
    let all = [doc! { "_id": 1, "u": 1 }, doc! { "_id": 2, "u": 2, "keep": 2 }, doc! { "_id": 9, "u": 9 }];
    let (_set, bench) = bench(retry(), None, &[unique("u")], &all).await;
    let writes = [set(&bench, 1, 2), set(&bench, 2, 9)];
    assert_eq!(bench.sink.settle(&writes, true).await.unwrap().refused, []);
    assert_eq!(found(&bench).await, [doc! { "_id": 1, "u": 2 }, doc! { "_id": 2, "u": 9, "keep": 2 }]);
}

/// What waits for the rest of its group still moves: its old value is not free yet, and it is no obstacle either.
#[tokio::test]
async fn a_document_that_waits_for_its_group_is_no_obstacle() {
    let all = [doc! { "_id": 1, "u": 1 }, doc! { "_id": 2, "u": 2 }, doc! { "_id": 3, "u": 3, "keep": 3 }];
    let (_set, bench) = bench(retry(), None, &[unique("u")], &all).await;
    let overlap = |write: Write| Write { overlap: true, ..write };
    // Only the target has the index: 1 and 2 both become 5, and 3 takes the value that 2 gives up.
    let writes = [set(&bench, 1, 5), set(&bench, 2, 5), set(&bench, 3, 2)].map(overlap);
    assert_eq!(bench.sink.settle(&writes, true).await.unwrap().refused, []);
    assert_eq!(found(&bench).await, [doc! { "_id": 2, "u": 5 }, doc! { "_id": 3, "u": 2, "keep": 3 }]);
}

#[tokio::test]
async fn of_two_changes_that_collide_with_each_other_the_later_one_stays() {
    // Only the target has the index.
    let (_set, bench) =
        bench(retry(), None, &[unique("u")], &[doc! { "_id": 1, "u": 1 }, doc! { "_id": 2, "u": 2 }]).await;
    let report = bench.sink.settle(&[set(&bench, 1, 5), set(&bench, 2, 5)], true).await.unwrap();
    assert_eq!(report.refused, []);
    assert_eq!(found(&bench).await, [doc! { "_id": 2, "u": 5 }]);
}

#[tokio::test]
async fn only_a_document_that_the_index_holds_can_stand_in_the_way() {
    let partial = IndexOptions::builder().unique(true).partial_filter_expression(doc! { "active": true }).build();
    let index = IndexModel::builder().keys(doc! { "u": 1 }).options(partial).build();
    let bystander = doc! { "_id": 1, "u": 5, "active": false };
    let (_set, bench) =
        bench(retry(), None, &[index], &[bystander.clone(), doc! { "_id": 2, "u": 5, "active": true }]).await;
    let new = doc! { "_id": 3, "u": 5, "active": true };
    assert_eq!(bench.sink.settle(&[insert(&bench, &new)], true).await.unwrap().refused, []);
    assert_eq!(found(&bench).await, [bystander, new]);
}

#[tokio::test]
async fn what_cannot_be_found_is_not_deleted_and_neither_is_anything_else() {
    let collation = Collation::builder().locale("en").strength(mongodb::options::CollationStrength::Secondary).build();
    let options = IndexOptions::builder().unique(true).collation(collation).build();
    let folded = IndexModel::builder().keys(doc! { "name": 1 }).options(options).build();
    let all = [doc! { "_id": 1, "u": 1, "name": "x" }, doc! { "_id": 2, "u": 2, "name": "ann" }];
    let new = doc! { "_id": 3, "u": 1, "name": "ANN" };
    let (_set, without) = bench(retry(), None, &[unique("u"), folded.clone()], &all).await;
    let report = without.sink.settle(&[insert(&without, &new)], true).await.unwrap();
    let [(0, Refusal::UniqueKey { message, .. })] = report.refused.as_slice() else { panic!("{report:?}") };
    assert!(message.starts_with("it cannot be written over"), "{message}");
    assert_eq!(found(&without).await, all, "the first of two obstacles stays where the second one does");
    let (_set, with) = bench(retry(), Some(RECORDS), &[unique("u"), folded], &all).await;
    assert_eq!(with.sink.settle(&[insert(&with, &new)], true).await.unwrap().refused, []);
    assert_eq!(found(&with).await, all);
    let records = with.client.database(RECORDS).collection::<Document>("conflicts");
    assert_eq!(records.find_one(doc! {}).await.unwrap().unwrap().get_document("document").unwrap(), &new);
}

#[tokio::test]
async fn a_taken_id_is_kept_replaced_or_stops_the_run() {
    let there = doc! { "_id": 1, "old": true };
    let here = doc! { "_id": 1, "new": true, "nan": f64::NAN };
    let skip = |rule: &str| Rules::Settings(DuplicateKeys::Skip(vec![SkipRule::parse(rule).unwrap()]));
    for (rules, replaced, stops) in [
        (Rules::default(), false, false),
        (Rules::Settings(DuplicateKeys::Error), false, true),
        (retry(), true, false),
        (skip("t.c:_id_"), false, false),
        (skip("t.c:u_1"), false, true),
    ] {
        let (_set, bench) = bench(rules, None, &[], std::slice::from_ref(&there)).await;
        let report = bench.sink.write(&[insert(&bench, &here)]).await.unwrap();
        let refused = matches!(report.refused.as_slice(), [(0, Refusal::Refused { code: 11000, .. })]);
        assert_eq!(refused, stops, "a taken _id must not be parked as a unique key: {report:?}");
        let expected = raw(if replaced { &here } else { &there });
        assert_eq!(bench.documents("t.c").await[0].as_bytes(), &expected[..]);
        assert_eq!(bench.sink.counts().conflicts, 1);
    }
}

#[tokio::test]
async fn an_insert_with_updates_behind_it_is_ruled_over_like_an_insert() {
    let there = doc! { "_id": 1, "old": true };
    let base = doc! { "_id": 1, "new": 1 };
    let diff = |diff: &Document| vec![Patch::Diff(raw(diff))];
    let (known, unfit) = (doc! { "u": { "new": 2 } }, doc! { "u": { "other": 3 } });
    // What the second one comes to is for the server to say, which takes more than one statement.
    for (update, came) in [(&known, doc! { "_id": 1, "new": 2 }), (&unfit, doc! { "_id": 1, "new": 1, "other": 3 })] {
        for (rules, replaced) in [(Rules::default(), false), (retry(), true)] {
            let (_set, bench) = bench(rules, None, &[], std::slice::from_ref(&there)).await;
            let content = || Content::Patched { base: raw(&base), patches: diff(update), inserted: true };
            let write = bench.write("s.c", "t.c", &doc! { "_id": 1 }, content(), false);
            assert_eq!(bench.sink.write(&[write]).await.unwrap().refused, []);
            assert_eq!(found(&bench).await, [if replaced { came.clone() } else { there.clone() }]);
            assert_eq!(bench.sink.counts().conflicts, 1);
            // Nothing stands in its way; and then it does, in overlap, and is what was written before.
            for overlap in [false, true] {
                let write = bench.write("s.c", "t.c", &doc! { "_id": 1 }, content(), overlap);
                if !overlap {
                    bench.client.database("t").collection::<Document>("c").delete_many(doc! {}).await.unwrap();
                }
                assert_eq!(bench.sink.write(&[write]).await.unwrap().refused, []);
                assert_eq!(found(&bench).await, std::slice::from_ref(&came));
            }
            assert_eq!(bench.sink.counts().conflicts, 1);
        }
    }
}

/// A group is settled by deleting and inserting, and that must not take what another program put under the `_id` of a
/// new document.
#[tokio::test]
async fn a_taken_id_is_ruled_over_where_unique_keys_are_settled_too() {
    let there = [doc! { "_id": 1, "u": 1 }, doc! { "_id": 2, "u": 2 }, doc! { "_id": 7, "old": true }];
    let new = doc! { "_id": 7, "new": true };
    let swapped = |seven: &Document| vec![doc! { "_id": 1, "u": 2 }, doc! { "_id": 2, "u": 1 }, seven.clone()];
    let sparse = || {
        let options = IndexOptions::builder().unique(true).sparse(true).build();
        IndexModel::builder().keys(doc! { "u": 1 }).options(options).build()
    };
    for (rules, replaced) in [(Rules::default(), false), (retry(), true)] {
        for at_once in [false, true] {
            let (_set, bench) = bench(rules.clone(), None, &[sparse()], &there).await;
            let writes = vec![set(&bench, 1, 2), set(&bench, 2, 1), insert(&bench, &new)];
            let refused = match at_once {
                true => bench.sink.write_whole(&[writes]).await.unwrap().report.refused,
                false => bench.sink.settle(&writes, true).await.unwrap().refused,
            };
            assert_eq!(refused, []);
            assert_eq!(found(&bench).await, swapped(if replaced { &new } else { &there[2] }), "at once: {at_once}");
            assert_eq!(bench.sink.counts().conflicts, 1, "at once: {at_once}, replaced: {replaced}");
        }
    }
}

#[tokio::test]
async fn an_insert_with_its_updates_goes_at_once_with_others() {
    let (_set, bench) = bench(Rules::default(), None, &[], &[doc! { "_id": 1, "u": 1 }]).await;
    let patches = vec![Patch::Diff(raw(&doc! { "u": { "x": 2 } }))];
    let content = Content::Patched { base: raw(&doc! { "_id": 2, "x": 1 }), patches, inserted: true };
    let new = bench.write("s.c", "t.c", &doc! { "_id": 2 }, content, false);
    let whole = bench.sink.write_whole(&[vec![set(&bench, 1, 5), new]]).await.unwrap();
    assert!(whole.at_once && whole.report.refused.is_empty(), "{whole:?}");
    assert_eq!(found(&bench).await, [doc! { "_id": 1, "u": 5 }, doc! { "_id": 2, "x": 2 }]);
}

#[tokio::test]
async fn a_name_that_begins_with_a_dollar_is_ruled_over_too() {
    let there = doc! { "_id": 1, "old": true };
    let (set, bench) = bench(Rules::default(), None, &[], std::slice::from_ref(&there)).await;
    if !set.has("names that begin with a dollar", (5, 0)) {
        return;
    }
    let report = bench.sink.write(&[insert(&bench, &doc! { "_id": 1, "$a": 1 })]).await.unwrap();
    assert_eq!((report.refused, found(&bench).await), (vec![], vec![there]));
    assert_eq!(bench.sink.counts().conflicts, 1);
}

#[tokio::test]
async fn duplicates_of_named_indexes_are_given_up_and_others_stop() {
    let all = [doc! { "_id": 1, "u": 1, "v": 1 }];
    let rules = || Rules::Settings(DuplicateKeys::Skip(vec![SkipRule::parse("t.c:u_1").unwrap()]));
    let (_set, bench) = bench(rules(), None, &[unique("u"), unique("v")], &all).await;
    let named = insert(&bench, &doc! { "_id": 2, "u": 1, "v": 2 });
    let other = insert(&bench, &doc! { "_id": 3, "u": 3, "v": 1 });
    let report = bench.sink.settle(&[named, other], true).await.unwrap();
    let [(1, Refusal::UniqueKey { message, .. })] = report.refused.as_slice() else { panic!("{report:?}") };
    assert!(message.contains("does not name v_1 of t.c"), "{message}");
    assert_eq!(found(&bench).await, all);
}

#[tokio::test]
async fn a_judge_is_shown_the_change_and_what_stands_in_its_way() {
    let ruling = Ruling::KeepTarget;
    let judge = Arc::new(Always { ruling, shown: Mutex::default() });
    let rules = Rules::Plugin(Arc::clone(&judge) as Arc<dyn Judge>);
    let all = [doc! { "_id": 1, "u": 1 }, doc! { "_id": 2, "u": 2 }];
    let (_set, bench) = bench(rules, Some(RECORDS), &[unique("u")], &all).await;
    let source = bench.client.database("s").collection::<Document>("c");
    let whole = doc! { "_id": 1, "u": 2, "x": 7 };
    source.insert_one(&whole).write_concern(WriteConcern::majority()).await.unwrap();
    let two =
        Content::Patch(vec![Patch::Diff(raw(&doc! { "u": { "u": 2 } })), Patch::Diff(raw(&doc! { "i": { "x": 7 } }))]);
    let writes = [bench.write("s.c", "t.c", &doc! { "_id": 1 }, two, false)];
    assert_eq!(bench.sink.settle(&writes, true).await.unwrap().refused, []);
    assert_eq!(bench.sink.settle(&[set(&bench, 1, 2)], true).await.unwrap().refused, []);
    assert_eq!(found(&bench).await, all, "given up");
    let shown = judge.shown.lock().unwrap().clone();
    let [several, one] = shown.as_slice() else { panic!("{shown:?}") };
    assert_eq!((several.kind, several.operation), (ConflictKind::UniqueKey, Operation::Replace));
    assert_eq!(several.body, raw(&whole), "several updates are shown as the document that has them all");
    assert_eq!((one.operation, &one.body), (Operation::UpdateDiff, &raw(&doc! { "u": { "u": 2 } })));
    assert_eq!((&one.key, &one.winner), (&raw(&doc! { "_id": 1 }), &raw(&all[1])));
    let index = one.index.as_ref().unwrap();
    assert_eq!((index.name.as_str(), &index.pattern), ("u_1", &raw(&doc! { "u": 1 })));
    assert_eq!(bench.sink.counts().refetched, 0, "it was only looked at");
}

#[tokio::test]
async fn a_judge_may_stop_the_run_with_its_own_words() {
    let judge = Always { ruling: Ruling::Stop("ask the owner".to_owned()), shown: Mutex::default() };
    let all = [doc! { "_id": 1, "u": 1 }];
    let (_set, bench) = bench(Rules::Plugin(Arc::new(judge)), Some(RECORDS), &[unique("u")], &all).await;
    let report = bench.sink.settle(&[insert(&bench, &doc! { "_id": 2, "u": 1 })], true).await.unwrap();
    let [(0, Refusal::UniqueKey { message, .. })] = report.refused.as_slice() else { panic!("{report:?}") };
    assert!(message.starts_with("ask the owner: "), "{message}");
    assert_eq!(found(&bench).await, all);
}

#[tokio::test]
async fn nothing_is_ruled_under_another_primary_than_in_the_beginning() {
    let all = [doc! { "_id": 1, "u": 1 }];
    let (set, bench) = bench(retry(), None, &[unique("u")], &all).await;
    let term = bench.sink.durability().await.unwrap().term;
    set.step_down().await.unwrap();
    assert!(bench.sink.durability().await.unwrap().term > term);
    // The new primary might lack the write that took the value away from 1.
    let write = insert(&bench, &doc! { "_id": 2, "u": 1 });
    let error = bench.sink.settle(&[write], true).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedOver);
    assert_eq!(found(&bench).await, all);
}
