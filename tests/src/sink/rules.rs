//! Single diffs and whole documents over documents that are not what they expect, with the bytes that must come out.
//!
//! In overlap a diff meets documents in states that the source never had, and the server's own applier has a rule for
//! each: what is no object becomes null, an array is padded with nulls. They are written out here, so that a change of
//! the compiled forms cannot lose one unnoticed, and the applier confirms them where it can be asked. After the mark a
//! diff means the same. Nothing here reads an oplog.

use bson::{RawBson, RawDocumentBuf, rawbson, rawdoc};
use bytes::Bytes;
use oplogue_connectors::mongodb::sink::SinkOptions;
use oplogue_engine::sink::{Content, Patch, Sink as _};

use super::pair::Pair;
use super::support::Bench;

const PLACE: &str = "rules.c";

async fn put(bench: &Bench, start: &RawDocumentBuf) {
    let things = bench.client.database("rules").collection::<RawDocumentBuf>("c");
    things.delete_many(bson::doc! {}).await.unwrap();
    things.insert_one(start).await.unwrap();
}

fn bytes(document: &RawDocumentBuf) -> Bytes {
    Bytes::copy_from_slice(document.as_bytes())
}

/// Diffs over documents, with what they make of them.
async fn try_diffs(pair: &Pair, vectors: &[(RawDocumentBuf, RawDocumentBuf, RawDocumentBuf)], overlaps: &[bool]) {
    let bench = pair.bench(SinkOptions::default());
    let id = bson::doc! { "_id": 1 };
    for (start, diff, expected) in vectors {
        for &overlap in overlaps {
            put(&bench, start).await;
            let patch = Content::Patch(vec![Patch::Diff(bytes(diff))]);
            let write = bench.write(PLACE, PLACE, &id, patch, overlap);
            assert_eq!(bench.sink.write(&[write]).await.unwrap().refused, []);
            let found = bench.documents(PLACE).await;
            assert_eq!(found, std::slice::from_ref(expected), "{diff:?} over {start:?}, overlap: {overlap}");
        }
        if pair.has_applier() {
            put(&bench, start).await;
            let entry = rawdoc! { "op": "u", "ns": PLACE, "o": { "$v": 2, "diff": diff.clone() }, "o2": { "_id": 1 } };
            let command = rawdoc! { "applyOps": [entry] };
            bench.client.database("admin").run_raw_command(command).await.unwrap();
            let found = bench.documents(PLACE).await;
            assert_eq!(found, std::slice::from_ref(expected), "the applier: {diff:?} over {start:?}");
        }
    }
}

#[tokio::test]
async fn diffs_that_others_lose_are_applied() {
    let pair = Pair::start().await;
    let whole = |x: i32, arr: RawBson, two: RawBson, obj: RawDocumentBuf| rawdoc! { "_id": 1, "x": x, "arr": arr, "two": two, "obj": obj };
    let (four, three) = (|| rawbson!(["a", "b", "c", "d"]), || rawbson!([1, 2, 3]));
    let obj = || rawdoc! { "k": 0, "a.b": 0 };
    let start = whole(0, four(), three(), obj());
    let vectors = [
        (rawdoc! { "u": { "x": 1 }, "sarr": { "a": true, "l": 2 } }, whole(1, rawbson!(["a", "b"]), three(), obj())),
        (rawdoc! { "sarr": { "a": true, "l": 2, "u0": "new" } }, whole(0, rawbson!(["new", "b"]), three(), obj())),
        (
            rawdoc! { "sarr": { "a": true, "l": 2 }, "sobj": { "u": { "k": 9 } } },
            whole(0, rawbson!(["a", "b"]), three(), rawdoc! { "k": 9, "a.b": 0 }),
        ),
        (
            rawdoc! { "sarr": { "a": true, "l": 2 }, "stwo": { "a": true, "l": 1 } },
            whole(0, rawbson!(["a", "b"]), rawbson!([1]), obj()),
        ),
        (rawdoc! { "sobj": { "u": { "a.b": 1 } } }, whole(0, four(), three(), rawdoc! { "k": 0, "a.b": 1 })),
    ];
    try_diffs(&pair, &vectors.map(|(diff, expected)| (start.clone(), diff, expected)), &[true, false]).await;
}

#[tokio::test]
async fn what_a_diff_does_not_find_as_it_was_follows_the_appliers_rules() {
    let pair = Pair::start().await;
    let of = |v: RawBson| rawdoc! { "_id": 1, "v": v, "z": 1 };
    let inside = || rawdoc! { "sv": { "u": { "k": 1 } } };
    let element = || rawdoc! { "sv": { "a": true, "s1": { "u": { "k": 1 } } } };
    let null = || of(RawBson::Null);
    let vectors = [
        // A diff of an object over what is none.
        (of(5.into()), inside(), null()),
        (of("text".into()), inside(), null()),
        (of(rawbson!([{ "k": 0 }])), inside(), null()),
        (of(RawBson::Null), inside(), null()),
        // A diff of an array over what is none.
        (of(rawbson!({ "0": 0, "1": 0 })), element(), null()),
        (of(7.into()), rawdoc! { "sv": { "a": true, "l": 1 } }, null()),
        (of(RawBson::Null), rawdoc! { "sv": { "a": true, "u0": 1 } }, null()),
        // An element that is no object, or of the other kind.
        (of(rawbson!(["a", "b", "c"])), element(), of(rawbson!(["a", null, "c"]))),
        (of(rawbson!(["a", ["k"], "c"])), element(), of(rawbson!(["a", null, "c"]))),
        // A length beyond the end, and elements beyond it.
        (of(rawbson!(["a"])), rawdoc! { "sv": { "a": true, "l": 3 } }, of(rawbson!(["a", null, null]))),
        (of(rawbson!([])), rawdoc! { "sv": { "a": true, "l": 2 } }, of(rawbson!([null, null]))),
        (of(rawbson!(["a"])), rawdoc! { "sv": { "a": true, "u3": "x" } }, of(rawbson!(["a", null, null, "x"]))),
        (of(rawbson!([])), rawdoc! { "sv": { "a": true, "u1": { "k": 1 } } }, of(rawbson!([null, { "k": 1 }]))),
        (of(rawbson!(["a"])), rawdoc! { "sv": { "a": true, "l": 4, "u2": "x" } }, of(rawbson!(["a", null, "x", null]))),
    ];
    try_diffs(&pair, &vectors, &[true, false]).await;
    // Fields of the top: one that stands goes to the end, what is missing comes there or is passed over.
    let at_the_top = [
        (of(0.into()), rawdoc! { "i": { "v": 5 } }, rawdoc! { "_id": 1, "z": 1, "v": 5 }),
        (rawdoc! { "_id": 1, "z": 1 }, rawdoc! { "u": { "v": 5 } }, rawdoc! { "_id": 1, "z": 1, "v": 5 }),
        (rawdoc! { "_id": 1, "z": 1 }, inside(), rawdoc! { "_id": 1, "z": 1 }),
    ];
    try_diffs(&pair, &at_the_top, &[true]).await;
    // After the mark a path makes what is missing, and takes an object of numeric names for an array; no document is in
    // such a state then.
    let only_in_overlap = [
        (
            of(rawbson!(["a", { "0": 1 }])),
            rawdoc! { "sv": { "a": true, "s1": { "a": true, "u0": 2 } } },
            of(rawbson!(["a", null])),
        ),
        (
            of(rawbson!(["a"])),
            rawdoc! { "sv": { "a": true, "s2": { "u": { "k": 1 } } } },
            of(rawbson!(["a", null, null])),
        ),
    ];
    try_diffs(&pair, &only_in_overlap, &[true]).await;
}

/// `1` and `NumberLong(1)` are one `_id` to the server and other bytes, so a document that was deleted and inserted again
/// can come back with the other.
#[tokio::test]
async fn a_document_takes_the_bytes_of_its_new_id() {
    let pair = Pair::start().await;
    let bench = pair.bench(SinkOptions::default());
    let old = rawdoc! { "_id": 1, "x": 0 };
    let plain = rawdoc! { "_id": 1_i64, "x": 1, "y": "new" };
    // One that only a pipeline writes as it is.
    let literal = rawdoc! { "_id": 1_i64, "x": 1, "t": bson::Timestamp { time: 0, increment: 0 } };
    let double = rawdoc! { "_id": 1.0, "x": 2 };
    for new in [plain, literal, double] {
        for content in [Content::Replace(bytes(&new)), Content::Insert(bytes(&new))] {
            // After the mark an insert that finds its `_id` taken is a matter of policy.
            let insert = matches!(content, Content::Insert(_));
            for overlap in [true, false].into_iter().filter(|overlap| *overlap || !insert) {
                put(&bench, &old).await;
                let id = bson::Document::try_from(rawdoc! { "_id": new.get("_id").unwrap().unwrap() }).unwrap();
                let write = bench.write(PLACE, PLACE, &id, content.clone(), overlap);
                assert_eq!(bench.sink.write(std::slice::from_ref(&write)).await.unwrap().refused, []);
                let found = bench.documents(PLACE).await;
                assert_eq!(found, std::slice::from_ref(&new), "{content:?}, overlap: {overlap}");
                put(&bench, &old).await;
                assert_eq!(bench.sink.settle(&[write], true).await.unwrap().refused, []);
                assert_eq!(bench.documents(PLACE).await, std::slice::from_ref(&new), "{content:?}, settled");
            }
        }
    }
}
