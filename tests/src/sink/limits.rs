//! Updates at the server's limits: deep, large, and larger as a pipeline than as a diff.
//!
//! What has no statement is read whole from the source and counted. Each case is a real update of a real source, except
//! where no server can make the diff; the result is compared with the source's bytes.

use bson::{Bson, Document, RawDocumentBuf, doc};
use bytes::Bytes;
use mongodb::options::{Acknowledgment, UpdateModifications, WriteConcern};
use oplogue_connectors::mongodb::sink::SinkOptions;
use oplogue_engine::schedule::coalesce;
use oplogue_engine::sink::{Content, Patch, Sink as _, Write};

use super::pair::Pair;
use super::support::{Bench, decoded, now, oplog, raw};

/// Updates the source's document and applies what was logged to a copy of it; how many documents were read whole.
async fn follow(bench: &Bench, start: &Document, update: impl Into<UpdateModifications>, overlap: bool) -> u64 {
    let source = bench.source.database("s").collection::<Document>("c");
    let target = bench.client.database("t").collection::<Document>("c");
    source.delete_many(doc! {}).await.unwrap();
    target.delete_many(doc! {}).await.unwrap();
    source.insert_one(start).await.unwrap();
    target.insert_one(start).await.unwrap();
    let since = now(&bench.source).await;
    let majority = WriteConcern::builder().w(Acknowledgment::Majority).build();
    let id = doc! { "_id": start.get("_id").unwrap().clone() };
    source.update_one(id.clone(), update).write_concern(majority).await.unwrap();
    let before = bench.sink.counts().refetched;
    let entries = oplog(&bench.source, since, doc! { "ns": "s.c", "op": "u" }).await;
    for change in decoded(bench, since, entries) {
        let content = coalesce::content(&change).unwrap();
        let write = Write { time: change.time, ..bench.write("s.c", "t.c", &id, content, overlap) };
        assert_eq!(bench.sink.write(&[write]).await.unwrap().refused, []);
    }
    let expected = bench.source.database("s").collection::<RawDocumentBuf>("c").find_one(id.clone()).await.unwrap();
    let found = bench.client.database("t").collection::<RawDocumentBuf>("c").find_one(id).await.unwrap();
    assert!(expected == found, "the target's document is another one");
    bench.sink.counts().refetched - before
}

#[tokio::test]
async fn small_changes_of_the_largest_documents() {
    let pair = Pair::roomy().await;
    let bench = pair.bench(SinkOptions::default());
    let large = doc! { "_id": 1, "n": 0, "o": { "k": 0 }, "big": "x".repeat(16 * 1024 * 1024 - 120) };
    for overlap in [false, true] {
        for update in [doc! { "$inc": { "n": 1 } }, doc! { "$set": { "o.k": 5, "o.n": 1 } }] {
            assert_eq!(follow(&bench, &large, update, overlap).await, 0);
        }
    }
}

#[tokio::test]
async fn values_as_large_as_a_document() {
    let pair = Pair::roomy().await;
    let bench = pair.bench(SinkOptions::default());
    let small = doc! { "_id": 1, "old": 1 };
    let value = "x".repeat(16 * 1024 * 1024 - 100);
    for overlap in [false, true] {
        assert_eq!(follow(&bench, &small, doc! { "$set": { "new": &value } }, overlap).await, 0);
        assert_eq!(follow(&bench, &small, doc! { "$set": { "old": &value } }, overlap).await, 0);
    }
}

#[tokio::test]
async fn many_small_changes_that_no_pipeline_holds() {
    let pair = Pair::roomy().await;
    let bench = pair.bench(SinkOptions::default());
    let items: Vec<Bson> = (0..150_000).map(|n| Bson::Document(doc! { "n": n, "pad": "p".repeat(20) })).collect();
    let start = doc! { "_id": 1, "arr": items };
    // Old sources log the whole document then.
    let expanded = u64::from(pair.source.has("a log of diffs", (5, 0)));
    // A modifier that touches several elements is logged as the whole array, a pipeline as what differs.
    let one_more = doc! { "$mergeObjects": ["$$this", { "n": { "$add": ["$$this.n", 1] } }] };
    let update = vec![doc! { "$set": { "arr": { "$map": { "input": "$arr", "in": one_more } } } }];
    assert_eq!(follow(&bench, &start, update, true).await, expanded);
}

#[tokio::test]
async fn changes_deep_inside() {
    let pair = Pair::roomy().await;
    let bench = pair.bench(SinkOptions::default());
    for levels in [10, 35, 80, 170] {
        let mut start = doc! { "x": 0, "keep": 1 };
        let mut path = "x".to_owned();
        for _ in 0..levels {
            start = doc! { "a": start, "rest": "r".repeat(30) };
            path = format!("a.{path}");
        }
        start.insert("_id", levels);
        for overlap in [false, true] {
            let read = follow(&bench, &start, doc! { "$set": { path.clone(): 1 } }, overlap).await;
            let deep = overlap && levels > 50 && pair.source.has("a log of diffs", (5, 0));
            assert!(levels == 35 || read == u64::from(deep), "{levels} levels, overlap {overlap}: {read}");
        }
    }
}

#[tokio::test]
async fn a_diff_of_200_levels_is_replaced_by_the_document() {
    let pair = Pair::roomy().await;
    let bench = pair.bench(SinkOptions::default());
    let mut diff = bson::rawdoc! { "u": { "x": 1 } };
    for _ in 0..200 {
        diff = bson::rawdoc! { "sa": diff };
    }
    let majority = WriteConcern::builder().w(Acknowledgment::Majority).build();
    let whole = doc! { "_id": 1, "whole": true };
    let source = bench.source.database("s").collection::<Document>("c");
    source.insert_one(&whole).write_concern(majority).await.unwrap();
    bench.client.database("t").collection::<Document>("c").insert_one(doc! { "_id": 1 }).await.unwrap();
    let patch = Patch::Diff(Bytes::from(diff.into_bytes()));
    for overlap in [true, false] {
        let write = bench.write("s.c", "t.c", &doc! { "_id": 1 }, Content::Patch(vec![patch.clone()]), overlap);
        assert_eq!(bench.sink.write(&[write]).await.unwrap().refused, []);
        assert_eq!(bench.documents("t.c").await, [RawDocumentBuf::try_from(&whole).unwrap()]);
    }
}

#[tokio::test]
async fn what_fits_one_by_one_but_not_together_is_written_one_by_one() {
    let pair = Pair::roomy().await;
    let bench = pair.bench(SinkOptions::default());
    let large = |byte: &str| byte.repeat(10 * 1024 * 1024);
    let base = raw(&doc! { "_id": 1, "a": large("a") });
    // It does not fit the base, so that the server is asked.
    let first = raw(&doc! { "d": { "missing": false }, "u": { "a": 1 }, "i": { "b": large("b") } });
    let second = raw(&doc! { "u": { "b": 2 }, "i": { "c": 3 } });
    let content = Content::Patched { base, patches: vec![Patch::Diff(first), Patch::Diff(second)], inserted: false };
    let write = bench.write("s.c", "t.c", &doc! { "_id": 1 }, content, true);
    assert_eq!(bench.sink.write(&[write]).await.unwrap().refused, []);
    let expected = doc! { "_id": 1, "a": 1, "b": 2, "c": 3 };
    assert_eq!(bench.documents("t.c").await, [RawDocumentBuf::try_from(&expected).unwrap()]);
    assert_eq!(bench.sink.counts().refetched, 0);
}
