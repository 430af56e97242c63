//! What a crash leaves of a document that was on its way to another value of a shard key, and what a replay makes of it.
//!
//! The sink writes through a server that is dressed as a `mongos`, so it believes the collection to be sharded. The
//! moment between the delete and the write is made by hand; documents under two values at once, which only two shards
//! could hold, are left to the pure tests of the statements.

use std::sync::Arc;

use bson::{Document, doc};
use mongodb::Client;
use mongodb::options::WriteConcern;
use oplogue_connectors::mongodb::copy::{CopyOptions, MongoCopyTarget, Sharding};
use oplogue_connectors::mongodb::sink::SinkOptions;
use oplogue_engine::sink::{Content, CopyTarget as _, Patch, Sink as _};
use oplogue_tests::dressed::{Dressed, enter_sharded};
use oplogue_tests::servers::{ReplicaSet, connect};

use super::support::{Bench, raw};

struct Half {
    _set: ReplicaSet,
    mongos: Dressed,
    source: Client,
    bench: Bench,
}

/// A source in `src.c` and a target in `dst.c`, sharded by `k`, on one server.
async fn half(options: SinkOptions) -> Half {
    let set = ReplicaSet::single().await.unwrap();
    let mongos = Dressed::start(set.port(0)).await.unwrap();
    let key = doc! { "k": 1 };
    mongos.referee("dst.c", &key);
    enter_sharded(&set.client(), "dst.c", &key).await.unwrap();
    set.client().database("dst").create_collection("c").await.unwrap();
    let client = connect(&mongos.uri(None)).await.unwrap();
    let source = set.client();
    let bench = Bench::over(source.clone(), client, options, Arc::default());
    Half { _set: set, mongos, source, bench }
}

/// Replays a change of the document `_id` 1.
async fn replay(bench: &Bench, content: Content) {
    let write = bench.write("src.c", "dst.c", &doc! { "_id": 1 }, content, true);
    let report = bench.sink.write(&[write]).await.unwrap();
    assert!(report.refused.is_empty(), "{:?}", report.refused);
    assert_eq!(report.operation_time, None, "a mongos names no time that durability could wait for");
}

impl Half {
    /// Puts a document where the source's majority has it, which is what is read.
    async fn insert(&self, document: &Document) {
        let collection = self.source.database("src").collection::<Document>("c");
        collection.insert_one(document).write_concern(WriteConcern::majority()).await.unwrap();
    }

    async fn clear(&self, database: &str) {
        let collection = self.source.database(database).collection::<Document>("c");
        collection.delete_many(doc! {}).write_concern(WriteConcern::majority()).await.unwrap();
    }

    async fn target(&self) -> Vec<Document> {
        let documents = self.bench.documents("dst.c").await;
        documents.iter().map(|document| Document::from_reader(document.as_bytes()).unwrap()).collect()
    }
}

fn changed(k: i32) -> Content {
    Content::Patch(vec![Patch::Diff(raw(&doc! { "u": { "k": k } }))])
}

const FALLBACK: SinkOptions = SinkOptions {
    immutable_shard_key_fallback: true,
    insert_on_dup_update: false,
    missing_document: oplogue_connectors::mongodb::sink::MissingDocument::Refetch,
    ddl_ignored: false,
    majority: false,
    after_copy: false,
    copied_at: None,
    ddl_refused: oplogue_connectors::mongodb::sink::DdlRefused::Stop,
};

#[tokio::test]
async fn a_document_that_a_crash_left_out_is_read_from_the_source() {
    for options in [FALLBACK, SinkOptions::default()] {
        let half = half(options).await;
        let now = doc! { "_id": 1, "k": 2, "x": "whole" };
        half.insert(&now).await;
        // Its delete was done, and the write behind it was not; the same update is replayed, or an earlier one.
        replay(&half.bench, changed(2)).await;
        assert_eq!(half.target().await, std::slice::from_ref(&now));
        half.clear("dst").await;
        let again = half.bench.restarted();
        let earlier = Content::Patch(vec![Patch::Diff(raw(&doc! { "u": { "x": "older" } }))]);
        replay(&again, earlier).await;
        assert_eq!(half.target().await, [now]);
        // What the source has deleted since stays away.
        half.clear("src").await;
        half.clear("dst").await;
        replay(&again, changed(3)).await;
        assert_eq!(half.target().await, Vec::<Document>::new());
    }
}

#[tokio::test]
async fn a_replay_goes_back_and_forth_between_values_of_the_key() {
    let half = half(FALLBACK).await;
    let state = |k: i32| doc! { "_id": 1, "k": k };
    half.insert(&state(3)).await;
    replay(&half.bench, Content::Insert(raw(&state(3)))).await;
    // From the beginning again, over what came last.
    replay(&half.bench, Content::Insert(raw(&state(1)))).await;
    assert_eq!(half.target().await, [state(1)]);
    replay(&half.bench, Content::Replace(raw(&state(2)))).await;
    assert_eq!(half.target().await, [state(2)]);
    replay(&half.bench, changed(3)).await;
    assert_eq!(half.target().await, [state(3)]);
    assert_eq!(half.bench.sink.counts().moved, 3);
    replay(&half.bench, Content::Delete).await;
    assert_eq!(half.target().await, Vec::<Document>::new());
    assert_eq!(half.mongos.seen().violations, Vec::<String>::new());
}

#[tokio::test]
async fn an_array_in_the_key_is_refused_by_name() {
    let half = half(FALLBACK).await;
    let content = Content::Replace(raw(&doc! { "_id": 1, "k": [1, 2] }));
    let write = half.bench.write("src.c", "dst.c", &doc! { "_id": 1 }, content, false);
    let report = half.bench.sink.write(&[write]).await.unwrap();
    let text = format!("{:?}", report.refused);
    assert!(text.contains("61") && text.contains("`k`"), "{text}");
    assert_eq!(half.target().await, Vec::<Document>::new());
}

#[tokio::test]
async fn a_document_that_the_copy_reads_twice_goes_to_its_new_value_or_stops_it() {
    let half = half(SinkOptions::default()).await;
    half.bench.sink.load().await.unwrap();
    let target = half.bench.names.intern("dst.c");
    let options = CopyOptions { collection_exist_drop: true, resumed: false, documents_max: 10, majority: false };
    let copy = |fallback| {
        let sharding = Sharding { immutable_shard_key_fallback: fallback, ..Sharding::default() };
        MongoCopyTarget::new(Arc::clone(&half.bench.sink), options).sharding(sharding)
    };
    let zero = bson::Timestamp { time: 0, increment: 0 };
    let first = [doc! { "_id": 1, "k": 1 }, doc! { "_id": 2, "k": 2 }, doc! { "_id": 3, "k": 3, "t": zero }];
    let first: Vec<_> = first.iter().map(raw).collect();
    copy(false).insert(target, &first).await.unwrap();
    copy(false).insert(target, &first).await.unwrap();
    let moved = [raw(&doc! { "_id": 2, "k": 20 }), raw(&doc! { "_id": 4, "k": 4 })];
    let error = copy(false).insert(target, &moved).await.unwrap_err().to_string();
    for part in ["Int32(2)", "shard key", "full_sync.executor.immutable_shard_key_fallback"] {
        assert!(error.contains(part), "{error}");
    }
    copy(true).insert(target, &moved).await.unwrap();
    let mut all = half.target().await;
    all.sort_by_key(|document| document.get_i32("_id").unwrap());
    let expected = [
        doc! { "_id": 1, "k": 1 },
        doc! { "_id": 2, "k": 20 },
        doc! { "_id": 3, "k": 3, "t": zero },
        doc! { "_id": 4, "k": 4 },
    ];
    assert_eq!(all, expected);
    assert_eq!((half.bench.sink.counts().moved, half.mongos.seen().violations), (1, Vec::new()));
}
