//! Which collections of the target are taken up by the writes to them, and when.
//!
//! What only a primary has may be taken back; a pair in the store may not. Where the two disagree every later change would
//! be one of a collection that is gone.

use bson::{Document, doc};
use mongodb::options::{Acknowledgment, WriteConcern};
use oplogue_connectors::mongodb::sink::SinkOptions;
use oplogue_engine::model::OpTime;
use oplogue_engine::sink::{Content, Sink as _, Write};
use oplogue_tests::servers::{Options, ReplicaSet};

use super::support::{Bench, raw};

const SOURCE: [u8; 16] = [7; 16];

#[tokio::test]
async fn what_only_the_primary_has_is_not_taken_up() {
    let set = ReplicaSet::start(Options::default().with_members(3)).await.unwrap();
    let primary = set.primary().await.unwrap();
    let others: Vec<usize> = (0..3).filter(|member| *member != primary).collect();
    set.hold_back(&others, true).await.unwrap();
    let things = set.client().database("t").collection::<Document>("c");
    let alone = WriteConcern::builder().w(Acknowledgment::Nodes(1)).build();
    things.insert_one(doc! { "_id": 1 }).write_concern(alone).await.unwrap();
    let bench = Bench::new(set.client(), SinkOptions::default());
    let write = |bench: &Bench, id: i32| Write {
        collection: Some(SOURCE),
        ..bench.write("s.c", "t.c", &doc! { "_id": id }, Content::Insert(raw(&doc! { "_id": id })), false)
    };
    let taken = |bench: &Bench| bench.store.pairs.lock().unwrap().contains_key(&SOURCE);
    bench.sink.write(&[write(&bench, 2)]).await.unwrap();
    assert!(!taken(&bench), "a majority does not have it");
    set.hold_back(&others, false).await.unwrap();
    things.insert_one(doc! { "_id": 3 }).write_concern(WriteConcern::majority()).await.unwrap();
    let later = bench.restarted();
    later.sink.write(&[write(&later, 4)]).await.unwrap();
    assert!(taken(&later));
    assert_eq!(later.documents("t.c").await.len(), 4);
}

/// A cluster is read from some time before the copy.
#[tokio::test]
async fn what_was_gone_when_the_copy_began_does_not_come_back() {
    let set = ReplicaSet::single().await.unwrap();
    let copied_at = Some(OpTime::new(100, 1, 1));
    let bench = Bench::new(set.client(), SinkOptions { copied_at, ..SinkOptions::default() });
    let write = |id: i32, secs: u32| Write {
        collection: Some(SOURCE),
        time: OpTime::new(secs, 1, 1),
        ..bench.write("s.c", "t.c", &doc! { "_id": id }, Content::Insert(raw(&doc! { "_id": id })), true)
    };
    bench.sink.write(&[write(1, 99), write(2, 100)]).await.unwrap();
    let names = set.client().database("t").list_collection_names().await.unwrap();
    assert!(names.is_empty(), "{names:?}");
    bench.sink.write(&[write(3, 101)]).await.unwrap();
    assert_eq!(bench.documents("t.c").await.len(), 1, "it was made after the copy had begun");
}
