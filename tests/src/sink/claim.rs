//! Which collections of the target are taken up by the writes to them, and when.
//!
//! What only a primary has may be taken back; a pair in the store may not. Where the two disagree every later change would
//! be one of a collection that is gone.

use bson::{Document, doc};
use mongodb::options::{Acknowledgment, WriteConcern};
use oplogue_connectors::mongodb::sink::SinkOptions;
use oplogue_engine::sink::{Content, Sink as _, Write};
use oplogue_tests::servers::{Options, ReplicaSet};

use super::support::{Bench, raw};

const SOURCE: [u8; 16] = [7; 16];

#[tokio::test]
async fn what_only_the_primary_has_is_not_taken_up() {
    let set = ReplicaSet::start(Options::default().with_members(3)).await.unwrap();
    let primary = set.primary().await.unwrap();
    let others: Vec<usize> = (0..3).filter(|member| *member != primary).collect();
    for member in &others {
        set.fail_point(*member, "stopReplProducer", "alwaysOn", doc! {}).await.unwrap();
    }
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
    for member in &others {
        set.fail_point(*member, "stopReplProducer", "off", doc! {}).await.unwrap();
    }
    things.insert_one(doc! { "_id": 3 }).write_concern(WriteConcern::majority()).await.unwrap();
    let later = bench.restarted();
    later.sink.write(&[write(&later, 4)]).await.unwrap();
    assert!(taken(&later));
    assert_eq!(later.documents("t.c").await.len(), 4);
}
