//! Entries of several shards: positions, the order that is held, transactions across shards, the start before the cut.
//!
//! The entries have the shapes that two shards of MongoDB 6.0.27 were seen to log. What a real cluster does is tested end
//! to end in the `tests` package. Nothing here needs a server.

use std::sync::Arc;

use super::*;
use crate::model::{Run, ShardPosition, ShardPositions};

fn at(inc: u32) -> OpTime {
    OpTime::new(100, inc, 1)
}

fn cut(time: OpTime, shards: [OpTime; 2]) -> Position {
    let shards = ["s1", "s2"].into_iter().zip(shards).map(|(name, at)| ShardPosition { name: name.into(), at });
    Position::Shards(Arc::new(ShardPositions { time, shards: shards.collect() }))
}

fn from(start: &Position) -> Decoder {
    Decoder::starting_at(
        Namespaces::shared(),
        DecodeOptions { transaction_bytes: 1 << 20, is_shard: true, ..DecodeOptions::default() },
        start,
    )
}

/// A batch of entries, each with its stream.
fn of_streams(entries: Vec<(usize, Document)>) -> RawBatch {
    let runs = entries.iter().map(|(stream, _)| Run { stream: *stream, entries: 1 }).collect();
    RawBatch { runs, ..raw(entries.into_iter().map(|(_, entry)| entry).collect()) }
}

fn insert(inc: u32, id: i32) -> Document {
    entry(inc, doc! { "op": "i", "ns": "a.b", "o": { "_id": id } })
}

/// A part of a prepared transaction.
fn prepared(inc: u32, operations: Vec<Document>) -> Document {
    let o = doc! { "applyOps": operations, "prepare": true };
    let none = doc! { "ts": Timestamp { time: 0, increment: 0 }, "t": -1_i64 };
    with(entry(inc, doc! { "op": "c", "ns": "admin.$cmd", "o": o, "prevOpTime": none }), session(1))
}

/// The commit of what was prepared at `prepared`.
fn committed(inc: u32, prepared: u32) -> Document {
    let o = doc! { "commitTransaction": 1, "commitTimestamp": Timestamp { time: 100, increment: 7 } };
    let before = doc! { "ts": Timestamp { time: 100, increment: prepared }, "t": 1_i64 };
    with(entry(inc, doc! { "op": "c", "ns": "admin.$cmd", "o": o, "prevOpTime": before }), session(1))
}

fn delete_of(id: i32) -> Document {
    doc! { "op": "d", "ns": "a.b", "o": { "_id": id } }
}

fn insert_of(id: i32) -> Document {
    doc! { "op": "i", "ns": "a.b", "o": { "_id": id }, "o2": { "_id": id } }
}

fn operations(batches: &[ChangeBatch]) -> Vec<Operation> {
    batches.iter().flat_map(|batch| &batch.changes).map(|change| change.operation).collect()
}

#[test]
fn each_shard_has_its_own_place_in_the_position() {
    let mut decoder = from(&cut(at(4), [at(4), at(3)]));
    let batches = decoder.decode(of_streams(vec![(1, insert(3, 1)), (0, insert(4, 2)), (1, insert(6, 3))])).unwrap();
    assert_eq!(operations(&batches), [Operation::Insert], "what was handed on before is passed over");
    assert_eq!(batches[0].last, cut(at(6), [at(4), at(6)]));
    assert_eq!(decoder.reopen(), cut(at(6), [at(4), at(6)]));
    let batches = decoder.decode(of_streams(vec![(0, insert(4, 2)), (1, insert(6, 3)), (0, insert(7, 4))])).unwrap();
    assert_eq!((operations(&batches).len(), &batches[0].last), (1, &cut(at(7), [at(7), at(6)])));
}

#[test]
fn entries_out_of_the_order_of_time_are_a_fault() {
    let mut decoder = from(&cut(at(1), [at(1), at(1)]));
    let error = decoder.decode(of_streams(vec![(0, insert(5, 1)), (1, insert(4, 1))])).unwrap_err();
    assert!(error.to_string().contains("came after"), "{error}");
}

#[test]
fn a_document_that_changes_its_shard_is_there_whoever_commits_first() {
    for deleting in [0, 1] {
        let inserting = 1 - deleting;
        for first in [0, 1] {
            let mut decoder = from(&cut(at(1), [at(1), at(1)]));
            let parts = vec![(deleting, prepared(5, vec![delete_of(9)])), (inserting, prepared(6, vec![insert_of(9)]))];
            let at = |stream| if stream == deleting { 5 } else { 6 };
            let open = decoder.decode(of_streams(parts)).unwrap();
            assert!(operations(&open).is_empty());
            let batches =
                decoder.decode(of_streams(vec![(first, committed(8, at(first))), (0, insert(9, 1))])).unwrap();
            assert_eq!(operations(&batches), [Operation::Delete, Operation::Insert, Operation::Insert]);
            assert_eq!(batches[0].last.time().inc, 1, "a restart meets both commits or none");
            let batches = decoder.decode(of_streams(vec![(1 - first, committed(10, at(1 - first)))])).unwrap();
            assert_eq!((operations(&batches).len(), batches[0].last.time().inc), (0, 10));
        }
    }
}

#[test]
fn of_two_exchanged_documents_both_stay() {
    let mut decoder = from(&cut(at(1), [at(1), at(1)]));
    let left = prepared(5, vec![delete_of(1), insert_of(2)]);
    let right = prepared(6, vec![delete_of(2), insert_of(1)]);
    decoder.decode(of_streams(vec![(0, left), (1, right)])).unwrap();
    let batches = decoder.decode(of_streams(vec![(1, committed(8, 6))])).unwrap();
    let (first, second) = batches[0].changes.split_at(2);
    assert!(first.iter().all(|change| change.operation == Operation::Delete));
    assert!(second.iter().all(|change| change.operation == Operation::Insert));
}

#[test]
fn before_the_cut_the_position_stays_and_what_began_earlier_is_there_already() {
    let early = OpTime::new(100, 2, -1);
    let start = cut(at(8), [early, early]);
    let mut decoder = from(&start);
    let unseen = decoder.decode(of_streams(vec![(0, insert(3, 1)), (1, committed(7, 1))])).unwrap();
    assert_eq!((operations(&unseen), &unseen[0].last), (vec![Operation::Insert], &start));
    let batches = decoder.decode(of_streams(vec![(0, insert(9, 1))])).unwrap();
    assert_eq!(batches[0].last, cut(at(9), [at(9), at(7)]));
    let error = decoder.decode(of_streams(vec![(1, committed(10, 1))])).unwrap_err();
    assert!(error.to_string().contains("open for long"), "{error}");
}

#[test]
fn what_resharding_fills_is_no_change_and_its_end_stops_the_run() {
    let mut decoder = from(&cut(at(1), [at(1), at(1)]));
    let copied = entry(3, doc! { "op": "i", "ns": "a.system.resharding.0123", "o": { "_id": 1 } });
    assert!(operations(&decoder.decode(of_streams(vec![(0, copied)])).unwrap()).is_empty());
    let o = doc! { "renameCollection": "a.system.resharding.0123", "to": "a.b" };
    let renamed = entry(4, doc! { "op": "c", "ns": "a.$cmd", "o": o, "fromMigrate": true });
    let error = decoder.decode(of_streams(vec![(0, renamed)])).unwrap_err();
    assert!(error.to_string().contains("reshardCollection"), "{error}");
}
