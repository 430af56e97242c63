//! Collections that a rename brings into the filter, and what a kill in the middle leaves of them.
//!
//! The entries are a real source's, as a filter that passes one name only would let them through. The copy itself is
//! the assembly's affair (`e2e::ddl::border`); here it is made by hand, to stop where a kill seldom comes.

use bson::{Document, doc};
use oplogue_connectors::mongodb::sink::Arrival;
use oplogue_engine::model::{Change, CollectionUuid, Ddl};

use super::ddl::{apply, changes, insert, rename, run, start};
use super::support::{Bench, now};

/// What a filter that passes `src.keep` lets through: its changes, and the renames that bring a collection there.
fn passed(bench: &Bench, changes: Vec<Change>) -> Vec<Change> {
    let keep = bench.names.intern("src.keep");
    let pass = |mut change: Change| {
        if let Some(Ddl::Rename { to, drop_target, .. }) = change.ddl.as_deref() {
            let (namespace, drop_target) = (*to, *drop_target);
            (change.source, change.target) = (namespace.source, namespace.target);
            change.ddl = Some(Box::new(Ddl::CopyIn { namespace, drop_target }));
        }
        (change.source == keep).then_some(change)
    };
    changes.into_iter().filter_map(pass).collect()
}

async fn arrives(bench: &Bench, change: &Change) -> Arrival {
    let Some(Ddl::CopyIn { drop_target, .. }) = change.ddl.as_deref() else { panic!("no copy: {change:?}") };
    bench.sink.arrives(change, *drop_target, true).await.unwrap()
}

/// The identity of what stands under `src.keep` on the target.
async fn identity(bench: &Bench) -> CollectionUuid {
    let command = doc! { "listCollections": 1, "filter": { "name": "keep" } };
    let listed = bench.client.database("src").run_command(command).await.unwrap();
    let [found] = listed.get_document("cursor").unwrap().get_array("firstBatch").unwrap().as_slice() else { panic!() };
    let info = found.as_document().unwrap().get_document("info").unwrap();
    let Some(bson::Bson::Binary(uuid)) = info.get("uuid") else { panic!("{info}") };
    uuid.bytes.as_slice().try_into().unwrap()
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
    let copy = bench.client.database("src").collection::<Document>("keep");
    copy.insert_many([doc! { "_id": 10 }, doc! { "_id": 11 }]).await.unwrap();
    let copied = identity(&bench).await;
    bench.store.pairs.lock().unwrap().insert(two.collection.unwrap(), copied);

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
