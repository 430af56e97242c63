//! DDL on the target: the same catalogue as the source's, and the same again however often it is replayed.
//!
//! Commands run in one database, their oplog entries are decoded as the engine does and applied to another one. The
//! random test stops at random entries and replays from random earlier ones in overlap, with a new sink each time.

use std::sync::Arc;

use bson::{Document, doc};
use oplogue_connectors::mongodb::sink::SinkOptions;
use oplogue_engine::checkpoint::{CheckpointStore as _, ViewPair};
use oplogue_engine::model::key::selector;
use oplogue_engine::model::{Change, Ddl, Namespace};
use oplogue_engine::schedule::coalesce;
use oplogue_engine::sink::{Sink as _, Write};
use oplogue_tests::compare::{self, Comparison};
use oplogue_tests::servers::{Options, ReplicaSet};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::support::{Bench, decoded, now, oplog};
use crate::scripts::{self, Step};

/// The changes of database `src` since `since`.
pub(super) async fn changes(bench: &Bench, since: bson::Timestamp) -> Vec<Change> {
    let entries = oplog(&bench.source, since, doc! { "ns": { "$regex": "^src" } }).await;
    decoded(bench, since, entries)
}

/// Applies changes one by one, as the pipeline does.
pub(super) async fn apply(bench: &Bench, changes: &[Change], overlap: bool) {
    bench.sink.load().await.unwrap();
    for change in changes {
        if change.ddl.is_some() {
            bench.sink.ddl(change, overlap).await.unwrap();
            continue;
        }
        let key = if change.key.is_empty() { selector(&change.body).unwrap() } else { change.key.clone() };
        let write = Write {
            target: change.target,
            source: change.source,
            key,
            content: coalesce::content(change).unwrap(),
            overlap,
            time: change.time,
            collection: change.collection,
            origin: change.origin,
            moved: false,
            creates: false,
            in_order: true,
        };
        assert_eq!(bench.sink.write(&[write]).await.unwrap().refused, []);
    }
}

pub(super) async fn assert_equal(bench: &Bench, what: &str) {
    let comparison = Comparison::new(bench.source.clone(), bench.client.clone());
    let found = comparison.run().await.unwrap();
    assert!(found.is_empty(), "{what}: {}", compare::report(&found));
}

/// An empty source and an empty target, with a sink between them.
pub(super) async fn start() -> (ReplicaSet, ReplicaSet, Bench) {
    let (source, target) = tokio::join!(ReplicaSet::single(), ReplicaSet::single());
    let (source, target) = (source.unwrap(), target.unwrap());
    let bench = Bench::over(source.client(), target.client(), SinkOptions::default(), Arc::default());
    (source, target, bench)
}

pub(super) async fn run(bench: &Bench, commands: &[Document]) {
    for command in commands {
        let rename = command.contains_key("renameCollection");
        let db = bench.source.database(if rename { "admin" } else { "src" });
        db.run_command(command.clone()).await.unwrap_or_else(|e| panic!("{command}: {e}"));
    }
}

pub(super) fn rename(from: &str, to: &str, drop_target: bool) -> Document {
    doc! { "renameCollection": format!("src.{from}"), "to": format!("src.{to}"), "dropTarget": drop_target }
}

pub(super) fn insert(into: &str, ids: std::ops::Range<i32>) -> Document {
    let documents: Vec<Document> = ids.map(|id| doc! { "_id": id, "in": into }).collect();
    doc! { "insert": into, "documents": documents }
}

/// What a run that begins again finds of the mark up to which commands were carried out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Kept,
    /// While an index waits for the end of the overlap the mark stays behind, and every command is met again.
    Behind,
}

/// Replays everything since `since` in overlap from entry `from` on, as a run that begins there.
pub(super) async fn replay(bench: &Bench, since: bson::Timestamp, from: usize, mark: Mark) {
    let again = bench.restarted();
    if mark == Mark::Behind {
        again.store.forget_the_mark();
    }
    let all = changes(&again, since).await;
    apply(&again, &all[from..], true).await;
    again.sink.build_postponed_indexes().await.unwrap();
    assert_equal(&again, &format!("replayed from entry {from} of {}", all.len())).await;
}

/// Applies all since `since` once and replays it from every entry on.
pub(super) async fn apply_and_replay(bench: &Bench, since: bson::Timestamp, mark: Mark) {
    let all = changes(bench, since).await;
    assert!(!all.is_empty());
    apply(bench, &all, false).await;
    assert_equal(bench, "applied once").await;
    for from in 0..all.len() {
        replay(bench, since, from, mark).await;
    }
}

/// Runs the commands, applies them once, and replays all of them from every entry on.
pub(super) async fn replayed_from_everywhere(commands: &[Document]) {
    let (_source, _target, bench) = start().await;
    let since = now(&bench.source).await;
    run(&bench, commands).await;
    apply_and_replay(&bench, since, Mark::Kept).await;
}

/// A replay makes a dropped collection again; killed before it could say so, it leaves one that nobody knows.
#[tokio::test]
async fn what_a_killed_replay_made_goes_too() {
    let (_source, _target, bench) = start().await;
    let since = now(&bench.source).await;
    run(&bench, &[doc! { "create": "a" }, insert("a", 0..3), doc! { "drop": "a" }]).await;
    let all = changes(&bench, since).await;
    apply(&bench, &all, false).await;
    bench.client.database("src").create_collection("a").await.unwrap();
    bench.store.forget_the_mark();
    let again = bench.restarted();
    let all = changes(&again, since).await;
    apply(&again, &all, true).await;
    assert_equal(&again, "replayed").await;
}

/// Two go to one, and only one of them can be paired with it.
#[tokio::test]
async fn a_second_source_of_a_collection_is_not_taken_for_gone() {
    let (_source, _target, bench) = start().await;
    let since = now(&bench.source).await;
    run(&bench, &[insert("one", 0..1), insert("two", 5..6), doc! { "create": "later" }]).await;
    let merged = |bench: &Bench, mut all: Vec<Change>| {
        all.retain(|change| change.ddl.is_none() || bench.names.name(change.source).as_str() == "src.later");
        let both = bench.names.intern("src.both");
        all.iter_mut().filter(|change| change.ddl.is_none()).for_each(|change| change.target = both);
        all
    };
    let all = merged(&bench, changes(&bench, since).await);
    let [one, _two, later] = all.as_slice() else { panic!("{all:?}") };
    apply(&bench, &[one.clone(), later.clone()], false).await;
    // Killed before the second one was written: it is older than the newest DDL.
    let again = bench.restarted();
    let all = merged(&again, changes(&again, since).await);
    apply(&again, &all, true).await;
    assert_eq!(again.documents("src.both").await.len(), 2);
}

/// Before 6.0 the shards of a cluster log the drop of a collection one after the other, and each takes writes until its own.
#[tokio::test]
async fn a_write_between_two_shards_drops_brings_nothing_back() {
    let (_source, _target, bench) = start().await;
    let since = now(&bench.source).await;
    run(&bench, &[insert("a", 0..2), insert("a", 2..3), doc! { "drop": "a" }]).await;
    let all = changes(&bench, since).await;
    let [create, first, second, late, drop] = all.as_slice() else { panic!("{all:?}") };
    let of_one_shard = [create, first, second, drop].map(Clone::clone);
    apply(&bench, &of_one_shard, false).await;
    apply(&bench, &[late.clone(), drop.clone()], false).await;
    assert_equal(&bench, "dropped by both").await;
}

/// The same with a list that other tests share.
pub(super) async fn script_replayed(version: &str, steps: Vec<Step>) {
    let source = ReplicaSet::start(Options { version: version.to_owned(), ..Options::default() });
    let (source, target) = tokio::join!(source, ReplicaSet::single());
    let (source, target) = (source.unwrap(), target.unwrap());
    let steps = scripts::known(scripts::older(version, target.version()), steps);
    if steps.is_empty() {
        return;
    }
    let bench = Bench::over(source.client(), target.client(), SinkOptions::default(), Arc::default());
    let since = now(&bench.source).await;
    scripts::run(&bench.source, &steps).await.unwrap();
    apply_and_replay(&bench, since, Mark::Behind).await;
    // Where the mark is kept less can happen, so that is tried less often.
    for from in (0..changes(&bench, since).await.len()).step_by(4) {
        replay(&bench, since, from, Mark::Kept).await;
    }
}

pub(super) const VERSIONS: [&str; 3] = ["4.4.2", "5.0.4", "6.0.27"];

#[tokio::test]
async fn every_option() {
    for version in VERSIONS {
        script_replayed(version, scripts::options("src")).await;
    }
}

#[tokio::test]
async fn every_view() {
    for version in VERSIONS {
        script_replayed(version, scripts::views("src")).await;
        script_replayed(version, scripts::views_dropped_together("src")).await;
    }
}

#[tokio::test]
async fn the_end_of_a_view_never_takes_a_collection() {
    let (_source, _target, bench) = start().await;
    let since = now(&bench.source).await;
    run(&bench, &[doc! { "create": "v", "viewOn": "x", "pipeline": [] }, doc! { "drop": "v" }, insert("v", 0..3)])
        .await;
    let all = changes(&bench, since).await;
    apply(&bench, &all, false).await;
    let again = bench.restarted();
    again.store.forget_the_mark();
    let mut all = changes(&again, since).await;
    all.retain(|change| matches!(change.ddl.as_deref(), Some(Ddl::DropView { .. })));
    assert_eq!(all.len(), 1);
    apply(&again, &all, true).await;
    assert_equal(&again, "after the view's end came again").await;
}

/// What a killed run remembered of a view that does not stand is forgotten at the next start.
#[tokio::test]
async fn a_view_is_remembered_while_it_stands() {
    let (_source, _target, bench) = start().await;
    let view = |name: &str| doc! { "create": name, "viewOn": "x", "pipeline": [] };
    let pair = |name: &str| (format!("src.{name}"), format!("src.{name}"));
    let since = now(&bench.source).await;
    let redefined = doc! { "collMod": "v", "viewOn": "y", "pipeline": [] };
    run(&bench, &[view("v"), view("w"), view("z"), redefined, doc! { "drop": "w" }]).await;
    apply(&bench, &changes(&bench, since).await, false).await;
    assert_equal(&bench, "views").await;
    assert_eq!(bench.store.view_names(), [pair("v"), pair("z")]);
    let again = bench.restarted();
    let unmade = ViewPair { source: Namespace::new("src.unmade"), target: Namespace::new("src.unmade") };
    again.store.record_view(&unmade).await.unwrap();
    again.client.database("src").run_command(doc! { "drop": "z" }).await.unwrap();
    again.sink.load().await.unwrap();
    assert_eq!(again.store.view_names(), [pair("v")]);
    assert_eq!(again.sink.view_pairs().len(), 1);
}

#[tokio::test]
async fn time_series() {
    for version in ["5.0.4", "6.0.27"] {
        script_replayed(version, scripts::time_series("src")).await;
    }
}

/// The longest of all tests, so its versions go side by side.
#[tokio::test]
async fn every_rename_and_what_is_made_by_one() {
    let replayed = VERSIONS.map(|version| script_replayed(version, scripts::renames("src", "src2")));
    futures_util::future::join_all(replayed).await;
}

#[tokio::test]
async fn odd_names() {
    for version in VERSIONS {
        script_replayed(version, scripts::names("src")).await;
    }
}

#[tokio::test]
async fn a_database_that_goes_and_comes_back() {
    for version in VERSIONS {
        script_replayed(version, scripts::dropped_database("src")).await;
    }
}

#[tokio::test]
async fn a_replayed_drop_does_not_hit_what_was_renamed_there() {
    replayed_from_everywhere(&[
        insert("x", 0..3),
        insert("y", 10..13),
        doc! { "drop": "x" },
        rename("y", "x", false),
        insert("x", 20..22),
    ])
    .await;
}

#[tokio::test]
async fn names_that_change_hands_end_where_they_should() {
    replayed_from_everywhere(&[
        insert("x", 0..3),
        insert("y", 10..13),
        rename("x", "z", false),
        rename("y", "x", false),
        rename("z", "x", true),
        insert("x", 20..22),
        doc! { "create": "y", "capped": true, "size": 4096 },
        insert("y", 30..33),
        doc! { "drop": "y" },
        doc! { "create": "y", "collation": { "locale": "en", "strength": 2 } },
        insert("y", 40..43),
    ])
    .await;
}

/// By its UUID alone a rename that was undone again looks as if it was still to be done.
#[tokio::test]
async fn a_rename_there_and_back_is_not_done_again() {
    replayed_from_everywhere(&[
        insert("x", 0..3),
        rename("x", "z", false),
        rename("z", "x", false),
        doc! { "create": "z", "viewOn": "x", "pipeline": [] },
        insert("x", 20..22),
    ])
    .await;
}

#[tokio::test]
async fn options_and_indexes_follow() {
    replayed_from_everywhere(&[
        doc! { "create": "v", "validator": { "n": { "$gte": 0 } } },
        doc! { "insert": "v", "documents": [{ "_id": 1, "n": -1 }], "bypassDocumentValidation": true },
        doc! { "createIndexes": "v", "indexes": [{ "key": { "n": 1 }, "name": "n_1", "unique": true }] },
        doc! { "createIndexes": "v", "indexes": [{ "key": { "t": 1 }, "name": "t_1", "expireAfterSeconds": 99999 }] },
        doc! { "collMod": "v", "index": { "name": "t_1", "expireAfterSeconds": 88888 } },
        doc! { "collMod": "v", "validationLevel": "moderate" },
        doc! { "dropIndexes": "v", "index": "n_1" },
        doc! { "createIndexes": "v", "indexes": [{ "key": { "n": 1 }, "name": "n_1", "sparse": true }] },
        doc! { "create": "co", "collation": { "locale": "en", "strength": 2 } },
        doc! { "createIndexes": "co", "indexes": [
            { "key": { "a": 1 }, "name": "a_simple", "collation": { "locale": "simple" } },
            { "key": { "b": 1 }, "name": "b_own" },
        ] },
        doc! { "create": "cap", "capped": true, "size": 100_000, "max": 3 },
        insert("cap", 0..6),
    ])
    .await;
}

#[tokio::test]
async fn repeated_inserts_push_nothing_out_of_a_full_capped_collection() {
    let (source, target, _) = start().await;
    // From 5.0.7 on.
    let deletes = source.has("deletes in capped collections", (6, 0)) && target.has("the same", (6, 0));
    if !deletes {
        return;
    }
    let delete = |id: i32| doc! { "delete": "cap", "deletes": [{ "q": { "_id": id }, "limit": 1 }] };
    let pad = |id: i32, bytes: usize| doc! { "_id": id, "pad": "x".repeat(bytes) };
    let put = |id: i32, bytes: usize| doc! { "insert": "cap", "documents": [pad(id, bytes)] };
    let resize =
        |id: i32, bytes: usize| doc! { "update": "cap", "updates": [{ "q": { "_id": id }, "u": pad(id, bytes) }] };
    let full = doc! { "create": "cap", "capped": true, "size": 100_000, "max": 3 };
    let evicted =
        [insert("cap", 0..3), delete(1), insert("cap", 3..4), insert("cap", 4..6), delete(4), insert("cap", 6..7)];
    // One comes back under its `_id`, behind documents that were inserted meanwhile.
    let back = [insert("cap", 10..13), delete(11), insert("cap", 11..12), delete(12), insert("cap", 13..14)];
    replayed_from_everywhere(&[[full.clone()].as_slice(), &evicted, &back].concat()).await;
    // What was replaced and then evicted does not come back for what stays.
    let replaced = doc! { "update": "cap", "updates": [{ "q": { "_id": 0 }, "u": { "_id": 0, "in": "pac" } }] };
    replayed_from_everywhere(&[full, insert("cap", 0..3), replaced, insert("cap", 3..4)]).await;
    // 4096 bytes: a document shrinks, and those that found room then stay.
    let small = doc! { "create": "cap", "capped": true, "size": 4096 };
    let shrunk =
        [put(1, 900), put(2, 1500), put(3, 900), resize(2, 100), put(4, 900), put(5, 900), delete(4), put(6, 700)];
    replayed_from_everywhere(&[[small.clone()].as_slice(), &shrunk].concat()).await;
    // One comes back under its `_id` once more, in the room that another one left.
    let (large, small_again) = (put(4, 1200), put(4, 100));
    let back = [
        put(1, 900),
        put(2, 900),
        put(3, 900),
        large.clone(),
        delete(4),
        large,
        delete(4),
        delete(3),
        put(5, 900),
        put(6, 900),
        small_again,
    ];
    replayed_from_everywhere(&[[small].as_slice(), &back].concat()).await;
}

/// The rules take the two names of a rename to two databases, and the run is killed when the target has carried it out,
/// or all of it but the end: by then the copy has its name, and what it was made of still stands.
#[tokio::test]
async fn a_rename_across_databases_is_known_though_nobody_could_say_so() {
    for half in [false, true] {
        let (_source, _target, bench) = start().await;
        let since = now(&bench.source).await;
        run(&bench, &[insert("a", 0..3), rename("a", "b", false), insert("b", 3..5)]).await;
        let all = routed(&bench, since).await;
        let at = all.iter().position(|change| change.ddl.as_ref().is_some_and(|ddl| ddl.name() == "renameCollection"));
        let at = at.unwrap();
        apply(&bench, &all[..at], false).await;
        // Said before it is done.
        let source = all[at].collection.unwrap();
        bench.store.note_move(source);
        if half {
            let copied = bench.documents("one.a").await;
            bench.client.database("two").collection::<bson::RawDocumentBuf>("b").insert_many(copied).await.unwrap();
        } else {
            let command = doc! { "renameCollection": "one.a", "to": "two.b" };
            bench.client.database("admin").run_command(command).await.unwrap();
        }
        let again = bench.restarted();
        // From where the checkpoint stood that is stored before a rename.
        apply(&again, &routed(&again, since).await[at..], true).await;
        let found: Vec<i32> = again.documents("two.b").await.iter().map(|d| d.get_i32("_id").unwrap()).collect();
        assert_eq!(found, [0, 1, 2, 3, 4]);
        assert_eq!(again.documents("one.a").await.len(), 0);
    }
}

/// `src.a` goes to `one.a`, and everything else to `two.b`.
pub(super) async fn routed(bench: &Bench, since: bson::Timestamp) -> Vec<Change> {
    let mut all = changes(bench, since).await;
    let to = |id| bench.names.intern(if bench.names.name(id).as_str() == "src.a" { "one.a" } else { "two.b" });
    for change in &mut all {
        change.target = to(change.source);
        for routed in change.ddl.iter_mut().flat_map(|ddl| ddl.namespaces_mut()) {
            routed.target = to(routed.source);
        }
    }
    all
}

/// A rename is met again at each start until something newer is stored, and by then its old name may be another
/// program's.
#[tokio::test]
async fn a_repeated_rename_drops_nothing_that_somebody_else_made() {
    let (_source, _target, bench) = start().await;
    let since = now(&bench.source).await;
    run(&bench, &[insert("a", 0..3), rename("a", "b", false)]).await;
    apply(&bench, &changes(&bench, since).await, false).await;
    bench.client.database("src").collection("a").insert_one(doc! { "_id": "not ours" }).await.unwrap();
    let again = bench.restarted();
    let all = changes(&again, since).await;
    apply(&again, &all[all.len() - 1..], true).await;
    assert_eq!(again.documents("src.a").await.len(), 1);
    assert_eq!(again.documents("src.b").await.len(), 3);
}

#[tokio::test]
async fn clustered_collections_follow() {
    let (source, ..) = start().await;
    if !source.has("clustered collections", (6, 0)) {
        return;
    }
    let create = doc! { "create": "cl", "clusteredIndex": { "key": { "_id": 1 }, "unique": true } };
    replayed_from_everywhere(&[create, insert("cl", 0..3)]).await;
}

#[tokio::test]
async fn without_ddl_a_collection_made_anew_goes_on_under_its_name() {
    let (_source, _target, bench) = start().await;
    let since = now(&bench.source).await;
    run(&bench, &[insert("x", 0..2), doc! { "drop": "x" }, insert("x", 5..7)]).await;
    let all = changes(&bench, since).await;
    let [create, ..] = all.as_slice() else { panic!("nothing was logged") };
    bench.sink.ddl(create, false).await.unwrap();
    let options = SinkOptions { ddl_ignored: true, ..SinkOptions::default() };
    let bench = Bench::over(bench.source.clone(), bench.client.clone(), options, Arc::clone(&bench.store));
    let writes: Vec<Change> = changes(&bench, since).await.into_iter().filter(|change| change.ddl.is_none()).collect();
    apply(&bench, &writes, true).await;
    assert_eq!(bench.documents("src.x").await.len(), 4, "drops are not replayed, inserts are");
}

#[tokio::test]
async fn a_dropped_database_leaves_nothing_and_takes_nothing_later() {
    let gone = doc! { "dropDatabase": 1 };
    replayed_from_everywhere(&[insert("x", 0..3), insert("y", 0..3), gone, insert("x", 5..8)]).await;
}
#[tokio::test]
async fn random_ddl_survives_random_restarts() {
    const COMMANDS: usize = 60;
    const RESTARTS: usize = 12;
    let seed = oplogue_tests::seed::seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let (_source, _target, bench) = start().await;
    let since = now(&bench.source).await;
    let names = ["a", "b", "c"];
    for step in 0..COMMANDS {
        let pick = |rng: &mut StdRng| names[rng.random_range(0..names.len())];
        let (one, other) = (pick(&mut rng), pick(&mut rng));
        let first = i32::try_from(step).unwrap() * 10;
        let command = match rng.random_range(0..10) {
            0 => doc! { "drop": one },
            1 | 2 => rename(one, other, rng.random()),
            3 => {
                doc! { "createIndexes": one, "indexes": [{ "key": { "k": 1 }, "name": "k", "sparse": rng.random::<bool>() }] }
            }
            4 => doc! { "dropIndexes": one, "index": "k" },
            5 => doc! { "create": one },
            6 => doc! { "update": one, "updates": [{ "q": {}, "u": { "$set": { "step": first } }, "multi": true }] },
            7 => doc! { "delete": one, "deletes": [{ "q": { "_id": { "$lt": first - 50 } }, "limit": 0 }] },
            _ => insert(one, first..first + 4),
        };
        let db = bench.source.database(if command.contains_key("renameCollection") { "admin" } else { "src" });
        // Many of them fail (nothing to drop, the name is taken): then nothing is logged.
        drop(db.run_command(command).await);
    }
    let count = changes(&bench, since).await.len();
    let (mut done, mut bench) = (0, bench);
    for restart in 0..RESTARTS {
        let from = rng.random_range(0..=done);
        let to = if restart + 1 == RESTARTS { count } else { rng.random_range(from..=count).max(from) };
        bench = bench.restarted();
        let all = changes(&bench, since).await;
        // In overlap up to what was reached before, then after the mark.
        let mark = done.clamp(from, to);
        apply(&bench, &all[from..mark], true).await;
        apply(&bench, &all[mark..to], mark < done).await;
        done = done.max(to);
        if to < done {
            // The pipeline never stops below the mark for good.
            let rest = done;
            apply(&bench, &all[to..rest], true).await;
        }
    }
    assert_equal(&bench, &format!("seed {seed}")).await;
}
