//! Indexes on the target: every form, builds that fail, and those that wait for the end of the overlap.
//!
//! As in `ddl.rs`, commands run in one database and their oplog entries are applied to another one, then replayed in
//! overlap from every entry on. An index that a repeated document breaks waits, so the mark stays behind it.

use std::sync::Arc;

use bson::{Document, doc};
use futures_util::TryStreamExt as _;
use oplogue_connectors::mongodb::sink::{DdlRefused, SinkOptions};
use oplogue_engine::model::Ddl;
use oplogue_engine::sink::{DdlOutcome, Sink as _};
use oplogue_tests::servers::{Options, ReplicaSet};

use super::ddl::{
    Mark, VERSIONS, apply, apply_and_replay, assert_equal, changes, insert, rename, replay, replayed_from_everywhere,
    routed, run, script_replayed, start,
};
use super::support::{Bench, now, oplog};
use crate::scripts;

#[tokio::test]
async fn every_index() {
    for version in VERSIONS {
        script_replayed(version, scripts::indexes("src")).await;
    }
}

/// The source logs the start of such a build and its end, and neither is an index.
#[tokio::test]
async fn an_index_build_that_fails_on_the_source_makes_no_index() {
    for version in VERSIONS {
        let source = ReplicaSet::start(Options { version: version.to_owned(), ..Options::default() });
        let (source, target) = tokio::join!(source, ReplicaSet::single());
        let (source, target) = (source.unwrap(), target.unwrap());
        let bench = Bench::over(source.client(), target.client(), SinkOptions::default(), Arc::default());
        let since = now(&bench.source).await;
        let twice = doc! { "insert": "x", "documents": [{ "_id": 1, "k": 5, "a": 1 }, { "_id": 2, "k": 5, "a": 2 }] };
        run(&bench, &[twice]).await;
        let of_k = doc! { "key": { "k": 1 }, "name": "k", "unique": true };
        let of_a = doc! { "key": { "a": 1 }, "name": "a" };
        let build = doc! { "createIndexes": "x", "indexes": [of_a.clone(), of_k.clone()] };
        bench.source.database("src").run_command(build).await.unwrap_err();
        for name in ["startIndexBuild", "abortIndexBuild"] {
            let logged = oplog(&bench.source, since, doc! { (format!("o.{name}")): "x" }).await;
            assert_eq!(logged.len(), 1, "{version}: {name}");
        }
        run(&bench, &[insert("x", 10..12), doc! { "createIndexes": "x", "indexes": [of_a] }]).await;
        let failed = changes(&bench, since).await;
        apply(&bench, &failed, false).await;
        assert_equal(&bench, &format!("{version}: after the failed build")).await;
        for from in 0..failed.len() {
            replay(&bench, since, from, Mark::Behind).await;
        }
        // It is built in the end, when nothing stands in its way any more.
        let one_of_two = doc! { "delete": "x", "deletes": [{ "q": { "_id": { "$in": [2, 11] } }, "limit": 0 }] };
        run(&bench, &[one_of_two, doc! { "createIndexes": "x", "indexes": [of_k] }]).await;
        let all = changes(&bench, since).await;
        apply(&bench, &all[failed.len()..], false).await;
        assert_equal(&bench, &format!("{version}: after the build that went well")).await;
    }
}

/// A document is repeated in a state that an index of later does not take.
#[tokio::test]
async fn an_index_is_younger_than_what_is_repeated() {
    let both = doc! { "insert": "x", "documents": [{ "_id": 1, "a": [1], "b": [2] }, { "_id": 2, "a": 1, "b": [3] }] };
    let one = doc! { "update": "x", "updates": [{ "q": { "_id": 1 }, "u": { "$set": { "b": 1 } } }] };
    let again = doc! { "update": "x", "updates": [{ "q": { "_id": 2 }, "u": { "_id": 2, "a": [4], "b": [5] } }] };
    let gone = doc! { "delete": "x", "deletes": [{ "q": { "_id": 2 }, "limit": 1 }] };
    let index = doc! { "createIndexes": "x", "indexes": [{ "key": { "a": 1, "b": 1 }, "name": "a_b" }] };
    replayed_from_everywhere(&[both, one, again, gone, index]).await;
}

/// The other way round: an index that is gone is made again over documents that it never had to take.
#[tokio::test]
async fn an_index_is_older_than_what_it_is_repeated_over() {
    let (_source, _target, bench) = start().await;
    let since = now(&bench.source).await;
    let fits = doc! { "insert": "x", "documents": [{ "_id": 1, "a": [1], "b": 2, "at": [1, 2] }, { "_id": 2 }] };
    let both = doc! { "key": { "a": 1, "b": 1 }, "name": "a_b" };
    let place = doc! { "key": { "at": "2dsphere" }, "name": "place" };
    let index = doc! { "createIndexes": "x", "indexes": [both, place] };
    let gone = doc! { "dropIndexes": "x", "index": ["a_b", "place"] };
    let set = doc! { "$set": { "b": [2], "at": "nowhere" } };
    let unfit = doc! { "update": "x", "updates": [{ "q": { "_id": 1 }, "u": set }] };
    run(&bench, &[fits, index, gone, unfit]).await;
    apply_and_replay(&bench, since, Mark::Behind).await;
}

/// Killed between a rename and the mark: what waits for the mark stands in no store, and is met again under a name that
/// its collection has no longer.
#[tokio::test]
async fn an_index_that_waits_is_not_lost_with_its_collections_name() {
    let (_source, _target, bench) = start().await;
    let since = now(&bench.source).await;
    let ttl = |name: &str| doc! { "key": { name: 1 }, "name": name, "expireAfterSeconds": 3_000_000 };
    let longer = doc! { "name": "at", "expireAfterSeconds": 4_000_000 };
    let commands = [
        insert("staging", 0..3),
        doc! { "createIndexes": "staging", "indexes": [ttl("at"), ttl("until")] },
        // The server refuses all of it while the index waits.
        doc! { "collMod": "staging", "index": longer, "validator": { "x": { "$exists": false } } },
        doc! { "dropIndexes": "staging", "index": "until" },
        // One that need not wait is made and gone before the name goes.
        doc! { "createIndexes": "staging", "indexes": [{ "key": { "n": 1 }, "name": "n" }] },
        doc! { "dropIndexes": "staging", "index": "n" },
        rename("staging", "events", false),
        insert("events", 3..5),
    ];
    run(&bench, &commands).await;
    let all = changes(&bench, since).await;
    apply(&bench, &all, true).await;
    for _ in 0..2 {
        let again = bench.restarted();
        apply(&again, &changes(&again, since).await, true).await;
    }
    let last = bench.restarted();
    apply(&last, &changes(&last, since).await, true).await;
    last.sink.build_postponed_indexes().await.unwrap();
    assert_equal(&last, "after three kills").await;
}

/// The rules take a rename to two databases, so the collection becomes another one, and the run is killed before it could
/// say which: until the rename is met again nobody knows where the index belongs that waited for the mark.
#[tokio::test]
async fn an_index_that_waits_is_not_lost_with_its_collections_identity() {
    let (_source, _target, bench) = start().await;
    let since = now(&bench.source).await;
    let ttl = |name: &str| doc! { "key": { name: 1 }, "name": name, "expireAfterSeconds": 3_000_000 };
    let longer = doc! { "name": "at", "expireAfterSeconds": 4_000_000 };
    let commands = [
        insert("a", 0..3),
        doc! { "createIndexes": "a", "indexes": [ttl("at"), ttl("until")] },
        doc! { "collMod": "a", "index": longer },
        doc! { "dropIndexes": "a", "index": "until" },
        rename("a", "b", false),
        insert("b", 3..5),
    ];
    run(&bench, &commands).await;
    let all = routed(&bench, since).await;
    let at = all.iter().position(|change| change.ddl.as_ref().is_some_and(|ddl| ddl.name() == "renameCollection"));
    let at = at.unwrap();
    apply(&bench, &all[..at], true).await;
    let source = all[at].collection.unwrap();
    bench.store.note_move(source);
    let moved = doc! { "renameCollection": "one.a", "to": "two.b" };
    bench.client.database("admin").run_command(moved).await.unwrap();
    // Somebody else's, under the name that it had.
    bench.client.database("one").collection("a").insert_one(doc! { "_id": "not ours" }).await.unwrap();
    // Killed once more before the rename is met, and once after it.
    for until in [at, at + 1, all.len()] {
        let again = bench.restarted();
        apply(&again, &routed(&again, since).await[..until], true).await;
        if until == all.len() {
            again.sink.build_postponed_indexes().await.unwrap();
        }
    }
    let expected: Vec<Document> = indexes(&bench.source, "src", "b").await;
    assert_eq!(indexes(&bench.client, "two", "b").await, expected);
    // 4.4 lists the number as 64 bits.
    let expires = expected[1].get("expireAfterSeconds").and_then(|n| n.as_i64().or(n.as_i32().map(i64::from)));
    assert!(expected.len() == 2 && expires == Some(4_000_000), "{expected:?}");
    assert_eq!(indexes(&bench.client, "one", "a").await.len(), 1);
    assert_eq!(bench.documents("two.b").await.len(), 5);
}

/// The specifications of a collection's indexes, as the server lists them.
async fn indexes(client: &mongodb::Client, database: &str, collection: &str) -> Vec<Document> {
    let command = doc! { "listIndexes": collection };
    let cursor = client.database(database).run_cursor_command(command).await.unwrap();
    cursor.try_collect().await.unwrap()
}

/// An index becomes unique on the source while the target's documents are of several moments.
#[tokio::test]
async fn an_index_becomes_unique_at_the_mark_though_the_run_was_killed_before() {
    let (source, target, bench) = start().await;
    if [&source, &target].iter().any(|set| !set.has("indexes that become unique", (6, 0))) {
        return;
    }
    let since = now(&bench.source).await;
    let both = doc! { "insert": "x", "documents": [{ "_id": 1, "k": 1 }, { "_id": 2, "k": 5 }] };
    let set =
        |id: i32, k: i32| doc! { "update": "x", "updates": [{ "q": { "_id": id }, "u": { "$set": { "k": k } } }] };
    let change = |what: &str| doc! { "collMod": "x", "index": { "name": "k", what: true } };
    let index = doc! { "createIndexes": "x", "indexes": [{ "key": { "k": 1 }, "name": "k" }] };
    run(&bench, &[both, index.clone(), change("prepareUnique"), change("unique"), set(1, 9), set(2, 1)]).await;
    let all = changes(&bench, since).await;
    apply(&bench, &all, false).await;
    let target = bench.client.database("src");
    for command in [doc! { "dropIndexes": "x", "index": "k" }, set(1, 1), index] {
        target.run_command(command).await.unwrap();
    }
    for killed in [true, true, false] {
        let again = bench.restarted();
        again.store.forget_the_mark();
        let all = changes(&again, since).await;
        // Up to the change of the first document, which is where the two are told apart.
        let until = if killed { all.len() - 2 } else { all.len() };
        apply(&again, &all[3..until], true).await;
        if !killed {
            again.sink.build_postponed_indexes().await.unwrap();
            assert_equal(&again, "after two kills").await;
        }
    }
}

/// One entry can bring several indexes, and the target may take all of them but one.
#[tokio::test]
async fn an_index_that_the_target_refuses_takes_no_other_along() {
    let (_source, _target, bench) = start().await;
    let options = SinkOptions { ddl_refused: DdlRefused::Skip, ..SinkOptions::default() };
    let bench = Bench::over(bench.source.clone(), bench.client.clone(), options, Arc::clone(&bench.store));
    let since = now(&bench.source).await;
    run(&bench, &[insert("x", 0..3)]).await;
    apply(&bench, &changes(&bench, since).await, false).await;
    // The only text index that a collection may have.
    let text = |field: &str| doc! { "key": { field: "text" }, "name": format!("{field}_text") };
    let other = doc! { "createIndexes": "x", "indexes": [text("other")] };
    bench.client.database("src").run_command(other).await.unwrap();
    let plain = |field: &str| doc! { "key": { field: 1 }, "name": field };
    let expiring = doc! { "key": { "at": 1 }, "name": "at", "expireAfterSeconds": 3_000_000 };
    let both = [plain("a"), text("in"), plain("b"), expiring];
    run(&bench, &[doc! { "createIndexes": "x", "indexes": both.to_vec() }]).await;
    let all = changes(&bench, since).await;
    let made = all.last().unwrap();
    assert!(matches!(made.ddl.as_deref(), Some(Ddl::CreateIndexes { specs, .. }) if specs.len() == 4), "{made:?}");
    for overlap in [false, true] {
        let outcome = bench.sink.ddl(made, overlap).await.unwrap();
        assert_eq!(outcome, if overlap { DdlOutcome::Postponed } else { DdlOutcome::Refused });
        // In overlap the one in its way may still go.
        bench.sink.build_postponed_indexes().await.unwrap();
        let names = bench.client.database("src").collection::<Document>("x").list_index_names().await.unwrap();
        let stands = |name: &str| names.iter().any(|found| found == name);
        assert!(["a", "b", "at", "other_text"].into_iter().all(stands) && !stands("in_text"), "{names:?}");
        bench.client.database("src").run_command(doc! { "dropIndexes": "x", "index": ["a", "b", "at"] }).await.unwrap();
        bench.store.forget_the_mark();
    }
}

/// What waits for the mark may be refused there for good, which is no reason to wait for another one.
#[tokio::test]
async fn an_index_that_waited_and_is_refused_is_left_out_where_the_settings_say_so() {
    let (_source, _target, bench) = start().await;
    let since = now(&bench.source).await;
    run(&bench, &[insert("x", 0..3)]).await;
    apply(&bench, &changes(&bench, since).await, false).await;
    let spec = |after: i32| doc! { "key": { "at": 1 }, "name": "at", "expireAfterSeconds": after };
    let make = |after| doc! { "createIndexes": "x", "indexes": [spec(after)] };
    run(&bench, &[make(3_000_000)]).await;
    // Of the same keys there is one already.
    bench.client.database("src").run_command(make(4_000_000)).await.unwrap();
    for skips in [false, true] {
        let ddl_refused = if skips { DdlRefused::Skip } else { DdlRefused::Stop };
        let options = SinkOptions { ddl_refused, ..SinkOptions::default() };
        let bench = Bench::over(bench.source.clone(), bench.client.clone(), options, Arc::clone(&bench.store));
        let all = changes(&bench, since).await;
        bench.sink.ddl(all.last().unwrap(), true).await.unwrap();
        let built = bench.sink.build_postponed_indexes().await;
        match built {
            Ok(()) => assert!(skips && bench.sink.counts().refused_ddl == 1),
            Err(error) => {
                let text = error.to_string();
                assert!(!skips && text.contains("entry at") && text.contains("incr_sync.ddl_refused"), "{text}");
            }
        }
    }
}
