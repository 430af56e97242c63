//! A run writes to the primary that it began with: what waits while the target elects is not sent to the successor.
//!
//! The hardest case is a set of one whose server is killed and comes back: the same address leads again, without what
//! it had not journalled. Each road to the server is shown to wait, then to be refused, with nothing of it written.

use std::sync::Arc;
use std::time::Duration;

use bson::{Document, doc};
use mongodb::Client;
use mongodb::options::WriteConcern;
use oplogue_connectors::mongodb::mark::Marks;
use oplogue_connectors::mongodb::sink::{MongoSink, SinkOptions};
use oplogue_engine::checkpoint::CheckpointStore;
use oplogue_engine::error::{Kind, Result};
use oplogue_engine::model::Origin;
use oplogue_engine::sink::{Content, Sink as _, Write};
use oplogue_tests::servers::{ReplicaSet, connect};

use super::support::{Bench, decoded, now, oplog, raw};

fn inserts(bench: &Bench, namespaces: &[&str], ids: std::ops::Range<i32>) -> Vec<Write> {
    let all = namespaces.iter().flat_map(|name| ids.clone().map(move |id| (*name, id)));
    all.map(|(name, id)| {
        let document = Content::Insert(raw(&doc! { "_id": id }));
        bench.write(name, name, &doc! { "_id": id }, document, false)
    })
    .collect()
}

/// The bench's sink with marks on what it writes.
fn marked(bench: &Bench) -> MongoSink {
    let store = Arc::clone(&bench.store) as Arc<dyn CheckpointStore>;
    let sink = MongoSink::new(bench.client.clone(), None, store, Arc::clone(&bench.names), SinkOptions::default());
    sink.marked_by(Some(Marks::new(Origin::new(7).unwrap())))
}

/// Waits until the driver knows that nobody leads: what is asked from then on waits for a primary.
async fn nobody_leads(client: &Client) {
    let admin = client.database("admin");
    let ping =
        || tokio::time::timeout(Duration::from_millis(500), async { admin.run_command(doc! { "ping": 1 }).await });
    while ping().await.is_ok() {}
}

fn refused<T: std::fmt::Debug>(road: &str, outcome: Result<T>) {
    let error = outcome.expect_err(road);
    assert_eq!(error.kind(), Kind::FailedOver, "{road}: {error}");
}

#[tokio::test]
async fn what_waits_for_a_primary_is_not_sent_to_its_successor() {
    let mut set = ReplicaSet::single().await.unwrap();
    let client = connect(&format!("{}&serverSelectionTimeoutMS=120000", set.uri())).await.unwrap();
    let bench = Bench::new(client, SinkOptions::default());
    let shop = bench.client.database("t");
    for name in ["a", "b", "c"] {
        shop.collection::<Document>(name).insert_one(doc! { "_id": -1 }).await.unwrap();
    }
    let since = now(&bench.client).await;
    shop.create_collection("made").await.unwrap();
    let entries = oplog(&bench.client, since, doc! { "op": "c" }).await;
    let [create] = decoded(&bench, since, entries).try_into().unwrap();
    // A drop that the kill took back would leave nothing to make.
    shop.collection::<Document>("made").drop().write_concern(WriteConcern::majority()).await.unwrap();
    let marked = marked(&bench);
    let first = |sink: &'static str, id| (sink, inserts(&bench, &["t.a"], id..id + 1));
    for ((name, writes), sink) in [first("plain", 1), first("marked", 2)].iter().zip([&*bench.sink, &marked]) {
        assert_eq!(sink.write(writes).await.unwrap().refused, [], "{name}");
    }

    set.kill(0).unwrap();
    nobody_leads(&bench.client).await;
    let few = inserts(&bench, &["t.a"], 10..12);
    let many = inserts(&bench, &["t.a", "t.b", "t.c"], 100..200);
    let waves = [inserts(&bench, &["t.b"], 300..303)];
    let of_marked = inserts(&bench, &["t.c"], 400..402);
    let waiting = async {
        tokio::join!(
            bench.sink.write(&few),
            bench.sink.write(&many),
            bench.sink.write_whole(&waves),
            bench.sink.ddl(&create, false),
            marked.write(&of_marked),
            marked.write_whole(&waves),
        )
    };
    let (outcomes, back) = tokio::join!(waiting, set.restart(0));
    back.unwrap();
    refused("a flush", outcomes.0);
    refused("a flush in one transaction", outcomes.1);
    refused("whole transactions", outcomes.2);
    refused("a DDL", outcomes.3);
    refused("a marked flush", outcomes.4);
    refused("marked transactions", outcomes.5);

    refused("a flush behind them", bench.sink.write(&few).await);
    for (name, expected) in [("a", vec![-1, 1, 2]), ("b", vec![-1]), ("c", vec![-1])] {
        let found = bench.documents(&format!("t.{name}")).await;
        let ids: Vec<i32> = found.iter().map(|document| document.get_i32("_id").unwrap()).collect();
        // What was acknowledged without a journal may be gone, which is what all this is about.
        assert!(ids.iter().all(|id| expected.contains(id)), "t.{name}: {ids:?}");
    }
    let names = shop.list_collection_names().await.unwrap();
    assert!(!names.contains(&"made".to_owned()), "{names:?}");

    let next = bench.restarted();
    assert_eq!(next.sink.write(&inserts(&next, &["t.a"], 10..12)).await.unwrap().refused, []);
}
