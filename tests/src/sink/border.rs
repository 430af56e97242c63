//! Collections that a rename brings into the filter, and what a kill in the middle leaves of them.
//!
//! The entries are a real source's, as a filter that passes one name only would let them through. The copy itself is
//! the assembly's affair (`e2e::ddl::border`); here it is made by hand, to stop where a kill seldom comes.

use std::sync::Arc;

use bson::{Document, RawDocumentBuf, doc};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use oplogue_connectors::mongodb::copy::{CopyOptions, MongoCopyTarget};
use oplogue_connectors::mongodb::sink::Arrival;
use oplogue_connectors::mongodb::snapshot::{SnapshotOptions, SnapshotSource};
use oplogue_engine::budget::Budget;
use oplogue_engine::error::Kind;
use oplogue_engine::model::{Change, Ddl, OpTime};
use oplogue_engine::sink::CopyTarget as _;
use oplogue_engine::source::{CollectionPlan, SnapshotReader as _};
use oplogue_tests::compare::{self, Comparison};

use super::ddl::{apply, changes, insert, rename, run, start};
use super::support::{Bench, now};

/// What no filter of these tests lets through.
const HIDDEN: [&str; 3] = ["src.one", "src.two", "src.out"];

/// What the filter lets through, with the renames over its border in the engine's words.
fn passed(bench: &Bench, changes: Vec<Change>) -> Vec<Change> {
    let hidden = HIDDEN.map(|name| bench.names.intern(name));
    let pass = |mut change: Change| {
        if let Some(Ddl::Rename { from, to, drop_target }) = change.ddl.as_deref() {
            let (from, to, drop_target) = (*from, *to, *drop_target);
            let (namespace, ddl) = match (hidden.contains(&from.source), hidden.contains(&to.source)) {
                (true, false) => (to, Ddl::CopyIn { namespace: to, drop_target }),
                (false, true) => (from, Ddl::Drop { namespace: from }),
                (true, true) | (false, false) => (from, Ddl::Rename { from, to, drop_target }),
            };
            (change.source, change.target, change.ddl) = (namespace.source, namespace.target, Some(Box::new(ddl)));
        }
        (!hidden.contains(&change.source)).then_some(change)
    };
    changes.into_iter().filter_map(pass).collect()
}

/// The collections of the source, as the copy lists them.
async fn listed(bench: &Bench) -> Vec<CollectionPlan> {
    let reader = SnapshotSource::new(bench.source.clone(), SnapshotOptions::default(), Budget::new(64 << 20));
    reader.collections().await.unwrap()
}

/// Copies a collection of the source to where `change` or a full copy wants it.
async fn copy(bench: &Bench, plan: &CollectionPlan, target: oplogue_engine::model::NamespaceId) {
    let options = CopyOptions { collection_exist_drop: false, resumed: true, documents_max: 128, majority: false };
    let into = MongoCopyTarget::new(Arc::clone(&bench.sink), options);
    into.prepare(plan, target).await.unwrap();
    let (database, name) = (plan.namespace.database(), plan.namespace.collection());
    let all = bench.source.database(database).collection::<RawDocumentBuf>(name).find(doc! {}).await.unwrap();
    let all: Vec<RawDocumentBuf> = all.try_collect().await.unwrap();
    let all: Vec<Bytes> = all.into_iter().map(|document| Bytes::from(document.into_bytes())).collect();
    into.insert(target, &all).await.unwrap();
}

async fn newest(bench: &Bench) -> OpTime {
    let now = now(&bench.source).await;
    OpTime::new(now.time, now.increment, -1)
}

/// Applies changes in overlap, the copies over the border as the assembly makes them.
async fn cross(bench: &Bench, changes: &[Change]) {
    bench.sink.load().await.unwrap();
    for change in changes {
        if !matches!(change.ddl.as_deref(), Some(Ddl::CopyIn { .. })) {
            apply(bench, std::slice::from_ref(change), true).await;
            continue;
        }
        let arrival = arrives(bench, change).await;
        let found = listed(bench).await.into_iter().find(|plan| plan.uuid == change.collection);
        match (arrival, found) {
            (Arrival::Copy, Some(plan)) => {
                copy(bench, &plan, change.target).await;
                bench.sink.arrived(change).await.unwrap();
            }
            (Arrival::Copy | Arrival::Gone, _) => {
                bench.sink.never_arrives(change, newest(bench).await).await.unwrap();
            }
            (Arrival::Done | Arrival::Refused, _) => {}
        }
    }
}

async fn assert_equal(bench: &Bench, what: &str) {
    let comparison = Comparison::new(bench.source.clone(), bench.client.clone());
    let found = comparison.only(|name| !HIDDEN.contains(&name)).run().await.unwrap();
    assert!(found.is_empty(), "{what}: {}", compare::report(&found));
}

async fn arrives(bench: &Bench, change: &Change) -> Arrival {
    let Some(Ddl::CopyIn { drop_target, .. }) = change.ddl.as_deref() else { panic!("no copy: {change:?}") };
    bench.sink.arrives(change, *drop_target, true).await.unwrap()
}

#[tokio::test]
async fn a_collection_that_never_arrived_leaves_nothing_and_takes_nothing() {
    let (_source, _target, bench) = start().await;
    let since = now(&bench.source).await;
    let commands = [
        insert("one", 0..2),
        rename("one", "keep", false),
        insert("keep", 2..4),
        insert("two", 10..12),
        rename("two", "keep", true),
    ];
    run(&bench, &commands).await;
    let passed_by = async |bench: &Bench| {
        let all = passed(bench, changes(bench, since).await);
        let [one, of_one @ .., two] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!(of_one.iter().filter(|change| change.ddl.is_none()).count(), 2);
        bench.sink.load().await.unwrap();
        (one.clone(), of_one.to_vec(), two.clone())
    };

    // The first one is replaced before it is listed, and its changes are met while the second one is awaited.
    let (one, of_one, two) = passed_by(&bench).await;
    assert_eq!(arrives(&bench, &one).await, Arrival::Copy);
    bench.sink.never_arrives(&one, two.time).await.unwrap();
    apply(&bench, &of_one, true).await;
    assert_eq!(bench.documents("src.keep").await, []);

    // Killed before a position was stored: all of it again. What may be left of the first one is nobody's.
    let bench = bench.restarted();
    let (one, of_one, two) = passed_by(&bench).await;
    assert_eq!(arrives(&bench, &one).await, Arrival::Copy);
    bench.sink.never_arrives(&one, two.time).await.unwrap();
    apply(&bench, &of_one, true).await;
    assert_eq!(arrives(&bench, &two).await, Arrival::Copy);
    let plan = listed(&bench).await.into_iter().find(|plan| plan.uuid == two.collection).unwrap();
    copy(&bench, &plan, two.target).await;

    // Killed in the copy of the second one, which is not the first one's place any more.
    for mark in [true, false] {
        let bench = bench.restarted();
        if !mark {
            bench.store.forget_the_mark();
        }
        let (one, of_one, two) = passed_by(&bench).await;
        assert_eq!(arrives(&bench, &one).await, Arrival::Gone);
        bench.sink.never_arrives(&one, two.time).await.unwrap();
        apply(&bench, &of_one, true).await;
        assert_eq!(bench.documents("src.keep").await.len(), 2, "the first one's changes went to the second one");
    }
    let bench = bench.restarted();
    let (one, _, two) = passed_by(&bench).await;
    assert_eq!(arrives(&bench, &one).await, Arrival::Gone);
    assert_eq!(arrives(&bench, &two).await, Arrival::Copy);
    assert_eq!(bench.documents("src.keep").await, [], "half a copy is made again from its beginning");
}

fn delete(from: &str, id: i32) -> Document {
    doc! { "delete": from, "deletes": [{ "q": { "_id": id }, "limit": 1 }] }
}

/// A rename out of the filter is a drop, but the collection may come back: a replay of the drop must not take the copy
/// that was made then, under whatever name it stands, and a replay of older changes must not go into it.
#[tokio::test]
async fn a_collection_that_left_and_came_back_survives_every_replay() {
    let (_source, _target, bench) = start().await;
    let since = now(&bench.source).await;
    let commands = [
        insert("a", 0..3),
        rename("a", "out", false),
        delete("out", 0),
        insert("out", 3..5),
        rename("out", "keep", false),
        insert("keep", 5..7),
        rename("keep", "other", false),
        // Its place is another one's by now.
        insert("one", 10..12),
        rename("one", "keep", false),
        insert("keep", 12..14),
        // Out and back under the same name, and unlike it was.
        rename("other", "out", false),
        delete("out", 3),
        rename("out", "other", false),
        doc! { "createIndexes": "other", "indexes": [{ "key": { "k": 1 }, "name": "k" }] },
        insert("other", 7..8),
    ];
    run(&bench, &commands).await;
    let all = passed(&bench, changes(&bench, since).await);
    cross(&bench, &all).await;
    assert_equal(&bench, "applied once").await;
    for from in 0..all.len() {
        for mark in [true, false] {
            let mut bench = bench.restarted();
            // Killed half way, and all of it again.
            for to in [from.midpoint(all.len()), all.len()] {
                bench = bench.restarted();
                if !mark {
                    bench.store.forget_the_mark();
                }
                let all = passed(&bench, changes(&bench, since).await);
                cross(&bench, &all[from..to]).await;
            }
            assert_equal(&bench, &format!("replayed from {from} of {}, mark kept: {mark}", all.len())).await;
        }
    }
}

/// A collection that comes for the first time, just before a full copy lists it, is in the copy as it is.
#[tokio::test]
async fn a_collection_that_came_before_it_was_listed_is_copied() {
    let (_source, _target, bench) = start().await;
    let since = now(&bench.source).await;
    run(&bench, &[insert("one", 0..3), delete("one", 0), rename("one", "a", false), insert("a", 3..5)]).await;
    bench.sink.catalogue_read_at(newest(&bench).await).await.unwrap();
    let plan = listed(&bench).await.into_iter().find(|plan| plan.namespace.as_str() == "src.a").unwrap();
    copy(&bench, &plan, bench.names.intern("src.a")).await;
    run(&bench, &[delete("a", 1), insert("a", 5..7)]).await;
    for _ in 0..2 {
        let bench = bench.restarted();
        cross(&bench, &passed(&bench, changes(&bench, since).await)).await;
        assert_equal(&bench, "followed").await;
    }
}

/// The same before a full copy lists the collections, but after the position that it notes: what was deleted meanwhile
/// is nowhere, so the run must not go on, and must not take the copy.
#[tokio::test]
async fn a_collection_that_left_and_came_back_before_it_was_listed_stops_the_run() {
    let (_source, _target, bench) = start().await;
    let since = now(&bench.source).await;
    let away = [insert("a", 0..3), rename("a", "out", false), delete("out", 0), rename("out", "a", false)];
    run(&bench, &away).await;
    run(&bench, &[insert("b", 5..7)]).await;
    bench.sink.catalogue_read_at(newest(&bench).await).await.unwrap();
    let plan = listed(&bench).await.into_iter().find(|plan| plan.namespace.as_str() == "src.a").unwrap();
    copy(&bench, &plan, bench.names.intern("src.a")).await;
    for _ in 0..2 {
        let bench = bench.restarted();
        let all = passed(&bench, changes(&bench, since).await);
        let back = all.iter().position(|change| matches!(change.ddl.as_deref(), Some(Ddl::CopyIn { .. }))).unwrap();
        cross(&bench, &all[..back]).await;
        let refused = bench.sink.arrives(&all[back], None, true).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::CannotApply);
        assert!(refused.to_string().contains("checkpoint reset"), "{refused}");
        assert!(bench.documents("src.a").await.len() >= 2, "the copy is gone");
    }
}
