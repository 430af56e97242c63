//! Entries as the server writes them, through the decoder. The documents here are of the shapes that MongoDB 6.0
//! logs; what real servers log is tested end to end in the `tests` package. Nothing here needs a server.

use bson::{Bson, Document, Timestamp, doc};
use bytes::Bytes;

use super::*;
use crate::budget::Permit;

fn raw(entries: Vec<Document>) -> RawBatch {
    let array: bson::RawArrayBuf = entries.iter().map(|d| bson::RawDocumentBuf::try_from(d).unwrap()).collect();
    RawBatch { entries: Bytes::copy_from_slice(array.as_bytes()), reached: None, permit: Permit::none() }
}

fn entry(inc: u32, mut fields: Document) -> Document {
    let mut entry = doc! { "ts": Timestamp { time: 100, increment: inc }, "t": 1_i64, "v": 2_i64 };
    entry.insert("wall", bson::DateTime::from_millis(100_000));
    entry.extend(std::mem::take(&mut fields));
    entry
}

fn decoder() -> Decoder {
    let options = DecodeOptions { own_collections: vec!["mongoshake.ckpt_default".into()], ..DecodeOptions::default() };
    Decoder::new(Namespaces::shared(), options, OpTime::new(100, 0, 1))
}

fn session(number: i64) -> Document {
    doc! { "lsid": { "id": Bson::Binary(bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes: vec![7; 16] }) }, "txnNumber": number }
}

fn with(mut a: Document, b: Document) -> Document {
    a.extend(b);
    a
}

fn position(batch: &ChangeBatch) -> u32 {
    batch.last.time().inc
}

#[test]
fn tells_the_forms_of_updates_apart() {
    let mut decoder = decoder();
    let update = |inc, o: Document| entry(inc, doc! { "op": "u", "ns": "a.b", "o": o, "o2": { "_id": 1 } });
    let batches = decoder
        .decode(raw(vec![
            entry(1, doc! { "op": "i", "ns": "a.b", "o": { "_id": 1, "x": 1 } }),
            update(2, doc! { "$v": 2, "diff": { "u": { "x": 2 } } }),
            update(3, doc! { "$v": 1, "$set": { "x": 3 } }),
            update(4, doc! { "_id": 1, "$v": "a field" }),
            entry(5, doc! { "op": "d", "ns": "a.b", "o": { "_id": 1 } }),
            entry(6, doc! { "op": "n", "ns": "", "o": { "msg": "periodic noop" } }),
        ]))
        .unwrap();
    let changes = &batches[0].changes;
    let operations: Vec<_> = changes.iter().map(|c| c.operation).collect();
    use Operation::{Delete, Insert, Replace, UpdateDiff, UpdateModifiers};
    assert_eq!(operations, [Insert, UpdateDiff, UpdateModifiers, Replace, Delete]);
    assert_eq!(bson::deserialize_from_slice::<Document>(&changes[1].body).unwrap(), doc! { "u": { "x": 2 } });
    assert_eq!(bson::deserialize_from_slice::<Document>(&changes[2].body).unwrap(), doc! { "$set": { "x": 3 } });
    assert_eq!(position(&batches[0]), 6);
    assert_eq!(decoder.counts().noop, 1);
}

#[test]
fn the_start_entry_is_not_applied_again() {
    let mut decoder = Decoder::new(Namespaces::shared(), DecodeOptions::default(), OpTime::new(100, 1, 1));
    let insert = |inc| entry(inc, doc! { "op": "i", "ns": "a.b", "o": { "_id": inc } });
    let batches = decoder.decode(raw(vec![insert(1), insert(2)])).unwrap();
    assert_eq!(batches[0].changes.len(), 1);
    assert_eq!(position(&batches[0]), 2);
}

#[test]
fn a_reopened_source_repeats_its_last_entry_once() {
    let mut decoder = decoder();
    let insert = |inc| entry(inc, doc! { "op": "i", "ns": "a.b", "o": { "_id": inc } });
    decoder.decode(raw(vec![insert(1), insert(2)])).unwrap();
    assert_eq!(decoder.reopen().time().inc, 2);
    let batches = decoder.decode(raw(vec![insert(2), insert(3)])).unwrap();
    assert_eq!((batches[0].changes.len(), position(&batches[0])), (1, 3));
}

#[test]
fn a_ddl_stands_alone_with_the_position_before_it() {
    let mut decoder = decoder();
    let insert = |inc| entry(inc, doc! { "op": "i", "ns": "a.b", "o": { "_id": inc } });
    let drop = entry(3, doc! { "op": "c", "ns": "a.$cmd", "o": { "drop": "b" } });
    let batches = decoder.decode(raw(vec![insert(1), insert(2), drop, insert(4)])).unwrap();
    let shape: Vec<_> = batches.iter().map(|b| (b.seq, b.changes.len(), position(b))).collect();
    assert_eq!(shape, [(0, 2, 2), (1, 1, 3), (2, 1, 4)]);
}

#[test]
fn own_and_migrated_entries_are_dropped_and_counted() {
    let mut decoder = decoder();
    let batches = decoder
        .decode(raw(vec![
            entry(1, doc! { "op": "u", "ns": "mongoshake.ckpt_default", "o": { "_id": 1 }, "o2": { "_id": 1 } }),
            entry(2, doc! { "op": "i", "ns": "a.b", "o": { "_id": 1 }, "fromMigrate": true }),
            entry(3, doc! { "op": "c", "ns": "mongoshake.$cmd", "o": { "create": "ckpt_default" } }),
        ]))
        .unwrap();
    assert!(batches[0].changes.is_empty());
    assert_eq!(position(&batches[0]), 3);
    assert_eq!((decoder.counts().own, decoder.counts().from_migrate), (2, 1));
}

#[test]
fn an_unknown_command_stops_with_its_time() {
    let error = decoder()
        .decode(raw(vec![entry(9, doc! { "op": "c", "ns": "a.$cmd", "o": { "emptycapped": "b" } })]))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::CannotApply);
    let text = error.to_string();
    assert!(text.contains("100.9") && text.contains("emptycapped"), "{text}");
}

#[test]
fn a_chained_transaction_holds_the_position_back_until_its_end() {
    let mut decoder = decoder();
    let ops = |id: i32| doc! { "applyOps": [{ "op": "i", "ns": "a.b", "o": { "_id": id } }] };
    let null = doc! { "prevOpTime": { "ts": Timestamp { time: 0, increment: 0 }, "t": -1_i64 } };
    let link = doc! { "prevOpTime": { "ts": Timestamp { time: 100, increment: 2 }, "t": 1_i64 } };
    let command = |inc, o, extra: &Document| {
        entry(inc, with(with(doc! { "op": "c", "ns": "admin.$cmd", "o": o }, session(5)), extra.clone()))
    };
    let begin = command(2, with(ops(1), doc! { "partialTxn": true }), &null);
    let insert = |inc| entry(inc, doc! { "op": "i", "ns": "a.b", "o": { "_id": inc } });
    let open = decoder.decode(raw(vec![insert(1), begin, insert(3)])).unwrap();
    assert_eq!((open[0].changes.len(), position(&open[0])), (2, 1), "the position stays before the open transaction");
    let end = command(4, with(ops(2), doc! { "count": 2_i64 }), &link);
    let closed = decoder.decode(raw(vec![end])).unwrap();
    assert_eq!((closed[0].changes.len(), position(&closed[0])), (2, 4));
    assert!(closed[0].changes.iter().all(|c| c.time.inc == 4));
}

#[test]
fn a_prepared_transaction_counts_at_its_commit_and_an_aborted_one_never() {
    let mut decoder = decoder();
    let prepare = |inc, number| {
        let o = doc! { "applyOps": [{ "op": "i", "ns": "a.b", "o": { "_id": inc } }], "prepare": true };
        entry(inc, with(doc! { "op": "c", "ns": "admin.$cmd", "o": o }, session(number)))
    };
    let end =
        |inc, number, o: Document| entry(inc, with(doc! { "op": "c", "ns": "admin.$cmd", "o": o }, session(number)));
    let batches = decoder
        .decode(raw(vec![
            prepare(1, 1),
            prepare(2, 2),
            end(3, 1, doc! { "abortTransaction": 1 }),
            end(4, 2, doc! { "commitTransaction": 1 }),
        ]))
        .unwrap();
    assert_eq!((batches[0].changes.len(), position(&batches[0])), (1, 4));
    assert_eq!(decoder.counts().aborted, 1);
}

#[test]
fn the_end_of_a_transaction_whose_start_was_not_seen_stops_the_run() {
    let o = doc! { "commitTransaction": 1 };
    let error = decoder()
        .decode(raw(vec![entry(4, with(doc! { "op": "c", "ns": "admin.$cmd", "o": o }, session(2)))]))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::CannotApply);
}

#[test]
fn every_cut_of_an_entry_is_an_error_and_never_a_panic() {
    let whole = raw(vec![entry(1, doc! { "op": "u", "ns": "a.b", "o": { "$v": 2, "diff": {} }, "o2": { "_id": 1 } })]);
    for at in 0..whole.entries.len() {
        let mut bytes = whole.entries.to_vec();
        bytes[at] ^= 0xff;
        let flipped = RawBatch { entries: bytes.into(), reached: None, permit: Permit::none() };
        // Some flips are legal BSON; none may panic.
        let _outcome = decoder().decode(flipped).is_ok();
    }
}
