//! Entries of several shards: positions, the order that is held, transactions across shards, the start before the cut.
//!
//! The entries have the shapes that two shards of MongoDB 6.0.27 were seen to log. What a real cluster does is tested end
//! to end in the `tests` package. Nothing here needs a server.

use std::sync::Arc;

use super::*;
use crate::budget::Budget;
use crate::model::{Run, ShardPosition, ShardPositions};

fn cut(time: OpTime, shards: [OpTime; 2]) -> Position {
    let shards = ["s1", "s2"].into_iter().zip(shards).map(|(name, at)| ShardPosition {
        name: name.into(),
        at,
        open_since: None,
    });
    Position::Shards(Arc::new(ShardPositions { time, shards: shards.collect() }))
}

/// The position with what is open there.
fn open_since(position: Position, open: [Option<u32>; 2]) -> Position {
    let Position::Shards(mut cut) = position else { panic!("{position} is of no cluster") };
    for (shard, since) in Arc::make_mut(&mut cut).shards.iter_mut().zip(open) {
        shard.open_since = since.map(at);
    }
    Position::Shards(cut)
}

fn from(start: &Position) -> Decoder {
    Decoder::starting_at(
        Namespaces::shared(),
        DecodeOptions { transaction_bytes: 1 << 20, is_shard: true, ..DecodeOptions::default() },
        start,
    )
}

/// A batch of entries, each with its stream.
pub(super) fn of_streams(entries: Vec<(usize, Document)>) -> RawBatch {
    let runs = entries.iter().map(|(stream, _)| Run { stream: *stream, entries: 1 }).collect();
    RawBatch { runs, ..raw(entries.into_iter().map(|(_, entry)| entry).collect()) }
}

pub(super) fn insert(inc: u32, id: i32) -> Document {
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

pub(super) fn insert_of(id: i32) -> Document {
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
            // The commit that was seen, and the part whose commit is to come, are read again from there.
            let needed = [0, 1].map(|stream| Some(if stream == first { 8 } else { at(stream) }));
            let read = cut(super::at(9), [9, if first == 1 { 8 } else { at(1) }].map(super::at));
            assert_eq!(batches.last().map(|batch| &batch.last), Some(&open_since(read, needed)));
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

/// A part of a prepared transaction that goes on with the entry at `previous`; `mark`: `partialTxn` or `prepare`.
fn piece(inc: u32, previous: Option<u32>, mark: &str, operations: Vec<Document>) -> Document {
    let mut o = doc! { "applyOps": operations };
    o.insert(mark, true);
    let previous = previous.map_or(NULL_TIME, at);
    with(entry(inc, doc! { "op": "c", "ns": "admin.$cmd", "o": o }), with(link(previous), session(1)))
}

/// Two shards' parts, of three entries each with 400 kB of documents: shard 0 deletes what shard 1 inserts, and the
/// other way round; 30 is deleted and inserted again on shard 1, 40 inserted and deleted again on shard 0.
fn large_parts() -> Vec<(usize, Document)> {
    let wide = |id: i32| doc! { "op": "i", "ns": "a.b", "o": { "_id": id, "p": "x".repeat(400_000) } };
    vec![
        (0, piece(5, None, "partialTxn", vec![wide(20), delete_of(10)])),
        (1, piece(6, None, "partialTxn", vec![wide(10), delete_of(30)])),
        (0, piece(7, Some(5), "partialTxn", vec![wide(21), delete_of(11), wide(40)])),
        (1, piece(8, Some(6), "partialTxn", vec![wide(11), delete_of(20)])),
        (0, piece(9, Some(7), "prepare", vec![wide(22), delete_of(40)])),
        (1, piece(10, Some(8), "prepare", vec![delete_of(21), delete_of(22), wide(30)])),
    ]
}

/// Of a batch its operations on documents, its position, and the memory it holds.
type Passed = (Vec<(Operation, i32)>, u32, usize);

/// What came out.
struct Driven {
    batches: Vec<Passed>,
    held_max: usize,
    needs: usize,
}

/// Drives a decoder with memory of a budget of 1 MiB, whose batches are done at once.
async fn drive_within_budget(decoder: &mut Decoder, entries: Vec<(usize, Document)>) -> Driven {
    let budget = Budget::new(1 << 20);
    let dir = std::env::temp_dir();
    let spill = Spill::new(SpillOptions { dir, job: format!("shards-{:p}", decoder), bytes_max: 1 << 30 });
    let mut driven = Driven { batches: Vec::new(), held_max: 0, needs: 0 };
    decoder.begin(of_streams(entries));
    loop {
        match decoder.step().unwrap() {
            Step::Batch(batch) => {
                let of = |change: &Change| {
                    let key = bson::RawDocument::from_bytes(change.key_document()).unwrap();
                    (change.operation, key.get_i32("_id").unwrap())
                };
                let changes = batch.changes.iter().map(of).collect();
                driven.batches.push((changes, batch.last.time().inc, batch.permit.bytes()));
            }
            Step::Need(Need::Memory { bytes }) => {
                assert!(bytes < 900_000, "{bytes} bytes are asked for at once");
                assert_eq!(budget.held_bytes(), 0, "who waits for memory holds none");
                decoder.granted(budget.acquire(bytes).await);
                driven.held_max = driven.held_max.max(budget.held_bytes());
            }
            Step::Need(Need::Store(operations)) => decoder.stored(spill.store(operations).await.unwrap()).unwrap(),
            Step::Need(Need::Load(stored)) => {
                driven.needs += 1;
                decoder.loaded(spill.load(stored).await.unwrap()).unwrap();
            }
            Step::Need(need @ Need::Entry { .. }) => panic!("{need:?}"),
            Step::Done => return driven,
        }
    }
}

#[tokio::test]
async fn a_large_transaction_across_shards_passes_in_pieces_deletes_first() {
    for transaction_bytes in [100_000, 1 << 30] {
        let options = DecodeOptions { transaction_bytes, is_shard: true, ..DecodeOptions::default() };
        let mut decoder = Decoder::starting_at(Namespaces::shared(), options, &cut(at(1), [at(1), at(1)]));
        let open = drive_within_budget(&mut decoder, large_parts()).await;
        assert!(open.batches.iter().all(|(changes, _, _)| changes.is_empty()), "{:?}", open.batches);
        let entries = decoder.counts().entries;
        let driven = drive_within_budget(&mut decoder, vec![(1, committed(12, 10)), (0, insert(13, 1))]).await;
        let changes: Vec<_> = driven.batches.iter().flat_map(|(changes, _, _)| changes.clone()).collect();
        let (delete, insert) = (Operation::Delete, Operation::Insert);
        let expected = [
            // The committing shard's part comes first, within a turn.
            vec![(delete, 20), (delete, 21), (delete, 22), (delete, 10), (delete, 11), (insert, 40), (delete, 40)],
            vec![(insert, 10), (delete, 30), (insert, 11), (insert, 30), (insert, 20), (insert, 21), (insert, 22)],
            vec![(insert, 1)],
        ];
        assert_eq!(changes, expected.concat());
        assert_eq!(decoder.counts().entries - entries, 16, "each operation and entry is counted once");
        // The position does not stand between two pieces.
        let positions: Vec<u32> = driven.batches.iter().map(|(_, last, _)| *last).collect();
        let (of_pieces, at_end) = positions.split_at(positions.len() - 2);
        assert!(of_pieces.iter().all(|last| *last == 10) && at_end == [12, 13], "{positions:?}");
        let of_transaction = driven.batches.iter().filter(|(changes, _, _)| changes != &[(insert, 1)]);
        assert!(of_transaction.clone().count() >= 6 && of_transaction.clone().all(|(_, _, held)| *held > 300_000));
        assert!(driven.held_max < 900_000, "{}", driven.held_max);
        assert_eq!(driven.needs, if transaction_bytes == 100_000 { 18 } else { 0 });
        let driven = drive_within_budget(&mut decoder, vec![(0, committed(14, 9))]).await;
        assert_eq!(driven.batches, [(Vec::new(), 14, 0)]);
    }
}

#[tokio::test]
async fn a_small_transaction_across_shards_is_one_batch_with_memory_for_all_of_it() {
    let mut decoder = from(&cut(at(1), [at(1), at(1)]));
    let wide = |id: i32| doc! { "op": "i", "ns": "a.b", "o": { "_id": id, "p": "x".repeat(100_000) } };
    let parts = vec![(0, prepared(5, vec![wide(1), delete_of(2)])), (1, prepared(6, vec![wide(2)]))];
    drive_within_budget(&mut decoder, parts).await;
    let driven = drive_within_budget(&mut decoder, vec![(0, committed(8, 5))]).await;
    let expected = vec![(Operation::Delete, 2), (Operation::Insert, 1), (Operation::Insert, 2)];
    assert_eq!(driven.batches.len(), 1);
    assert_eq!(driven.batches[0].0, expected);
    assert!(driven.batches[0].2 > 200_000, "{}", driven.batches[0].2);
}

#[test]
fn before_the_cut_the_position_stays_and_what_began_earlier_is_there_already() {
    let early = OpTime::new(100, 2, -1);
    let start = cut(at(8), [early, early]);
    let mut decoder = from(&start);
    let unseen = decoder.decode(of_streams(vec![(0, insert(5, 1)), (1, committed(7, 1))])).unwrap();
    assert_eq!((operations(&unseen), &unseen[0].last), (vec![Operation::Insert], &start));
    let batches = decoder.decode(of_streams(vec![(0, insert(9, 1))])).unwrap();
    assert_eq!(batches[0].last, cut(at(9), [at(9), at(7)]));
    let error = decoder.decode(of_streams(vec![(1, committed(10, 1))])).unwrap_err();
    assert!(error.to_string().contains("open for long"), "{error}");
}

/// One part was prepared before reading began, the other one behind that: to know it as the whole would take half of the
/// transaction away from the copy, which has all of it.
#[test]
fn behind_a_copy_a_transaction_that_is_known_by_half_is_left_out() {
    let early = OpTime::new(100, 2, -1);
    let start = cut(at(20), [early, early]);
    let part = || (1, prepared(4, vec![delete_of(9)]));
    let nothing = |batches: &[ChangeBatch]| operations(batches).is_empty();
    // Read for its transactions only until 8. Both are committed by then, or one of them later.
    for (deleted, inserted) in [(6, 7), (7, 10), (10, 7), (12, 10)] {
        let mut decoder = from(&start);
        let mut entries = vec![part(), (1, committed(deleted, 4)), (0, committed(inserted, 1))];
        entries.sort_by_key(|(_, entry)| entry.get_timestamp("ts").unwrap());
        assert!(nothing(&decoder.decode(of_streams(entries)).unwrap()), "{deleted} {inserted}");
        assert_eq!(operations(&decoder.decode(of_streams(vec![(0, insert(21, 1))])).unwrap()).len(), 1);
    }
    // Not all of it is in the copy.
    let mut decoder = from(&start);
    assert!(nothing(&decoder.decode(of_streams(vec![part(), (0, committed(10, 1))])).unwrap()));
    let error = decoder.decode(of_streams(vec![(1, committed(21, 4))])).unwrap_err();
    assert!(error.to_string().contains("was being committed"), "{error}");
    // It was open for long, and half of it is on its way.
    let mut decoder = from(&start);
    let half = decoder.decode(of_streams(vec![part(), (1, committed(9, 4))])).unwrap();
    assert_eq!(operations(&half), [Operation::Delete]);
    let error = decoder.decode(of_streams(vec![(0, committed(10, 1))])).unwrap_err();
    assert!(error.to_string().contains("open for long"), "{error}");
}

/// A shard whose oplog had nothing that old when the position was stored.
#[test]
fn a_moment_of_one_shard_makes_no_cut() {
    let start = cut(at(30), [at(30), OpTime::new(0, 0, -1)]);
    let mut decoder = exactly_from(&start);
    let batches = decoder.decode(of_streams(vec![(0, insert(30, 1)), (1, insert(30, 2)), (1, insert(50, 3))])).unwrap();
    assert_eq!(operations(&batches).len(), 2, "of one time, on the shard that had nothing yet");
}

/// As [`from`], with everything up to the cut on the target.
fn exactly_from(start: &Position) -> Decoder {
    let options = DecodeOptions {
        transaction_bytes: 1 << 20,
        is_shard: true,
        behind_cut: BehindCut::LeftOut,
        ..DecodeOptions::default()
    };
    Decoder::starting_at(Namespaces::shared(), options, start)
}

#[test]
fn what_the_target_has_at_an_exact_cut_is_left_out() {
    let early = OpTime::new(100, 2, -1);
    let mut decoder = exactly_from(&cut(at(8), [early, early]));
    let dropped = with(entry(6, doc! { "op": "c", "ns": "a.$cmd", "o": { "drop": "b" } }), doc! {});
    let parts = vec![(0, prepared(3, vec![delete_of(9)])), (1, prepared(4, vec![insert_of(9)])), (0, insert(5, 1))];
    assert!(operations(&decoder.decode(of_streams(parts)).unwrap()).is_empty());
    let unknown = entry(6, doc! { "op": "c", "ns": "a.$cmd", "o": { "somethingNew": "b" } });
    let ended = vec![(0, dropped), (1, unknown), (1, committed(7, 4)), (0, committed(8, 3))];
    assert!(operations(&decoder.decode(of_streams(ended)).unwrap()).is_empty());
    let batches = decoder.decode(of_streams(vec![(1, insert(9, 2))])).unwrap();
    assert_eq!((operations(&batches), &batches[0].last), (vec![Operation::Insert], &cut(at(9), [at(8), at(9)])));
}

#[test]
fn what_is_open_at_an_exact_cut_is_applied_whole_or_not_at_all() {
    let early = OpTime::new(100, 2, -1);
    let parts = || vec![(0, prepared(3, vec![delete_of(9)])), (1, prepared(4, vec![insert_of(9)]))];
    let mut decoder = exactly_from(&cut(at(8), [early, early]));
    decoder.decode(of_streams(parts())).unwrap();
    let batches = decoder.decode(of_streams(vec![(1, committed(9, 4)), (0, committed(10, 3))])).unwrap();
    assert_eq!(operations(&batches), [Operation::Delete, Operation::Insert]);
    let mut decoder = exactly_from(&cut(at(8), [early, early]));
    decoder.decode(of_streams(parts())).unwrap();
    assert!(operations(&decoder.decode(of_streams(vec![(1, committed(7, 4))])).unwrap()).is_empty());
    let error = decoder.decode(of_streams(vec![(0, committed(10, 3))])).unwrap_err();
    assert!(error.to_string().contains("was being committed"), "{error}");
}

/// A copied job that goes on from before its cut, since a transaction was open there. The order is the source's: a part
/// that is applied again is followed by all that came after it.
#[test]
fn behind_a_copy_everything_is_applied_again() {
    let early = OpTime::new(100, 2, -1);
    let mut decoder = from(&cut(at(8), [early, early]));
    let parts = vec![(0, prepared(3, vec![delete_of(9)])), (1, prepared(4, vec![insert_of(9)])), (1, committed(5, 4))];
    let whole = decoder.decode(of_streams(parts)).unwrap();
    assert_eq!(operations(&whole), [Operation::Delete, Operation::Insert]);
    let later = vec![(0, committed(6, 3)), (1, insert(7, 9))];
    assert_eq!(operations(&decoder.decode(of_streams(later)).unwrap()), [Operation::Insert]);
}

#[test]
fn a_part_that_is_open_is_read_again_among_entries_of_one_time() {
    let mut decoder = from(&cut(at(1), [at(1), at(1)]));
    let batches = decoder.decode(of_streams(vec![(0, insert(10, 1)), (1, prepared(10, vec![insert_of(9)]))])).unwrap();
    assert_eq!(batches[0].last, open_since(cut(at(10), [at(10), at(10)]), [None, Some(10)]));
    let mut decoder = from(&batches[0].last);
    let again = vec![(0, insert(10, 1)), (1, prepared(10, vec![insert_of(9)])), (1, committed(11, 10))];
    let batches = decoder.decode(of_streams(again)).unwrap();
    assert_eq!((batches[0].changes.len(), &batches[0].last), (1, &cut(at(11), [at(10), at(11)])));
}

#[test]
fn what_resharding_fills_is_no_change_and_its_end_stops_the_run() {
    let mut decoder = from(&cut(at(1), [at(1), at(1)]));
    let copied = entry(3, doc! { "op": "i", "ns": "a.system.resharding.0123", "o": { "_id": 1 } });
    assert!(operations(&decoder.decode(of_streams(vec![(0, copied)])).unwrap()).is_empty());
    let o = doc! { "renameCollection": "a.system.resharding.0123", "to": "a.b" };
    let renamed = entry(4, doc! { "op": "c", "ns": "a.$cmd", "o": o, "fromMigrate": true });
    let error = decoder.decode(of_streams(vec![(0, renamed.clone())])).unwrap_err();
    assert!(error.to_string().contains("reshardCollection"), "{error}");
    // In the copy that was made since, it is over.
    let early = OpTime::new(100, 2, -1);
    let options = DecodeOptions { is_shard: true, behind_cut: BehindCut::Copied, ..DecodeOptions::default() };
    let mut decoder = Decoder::starting_at(Namespaces::shared(), options, &cut(at(5), [early, early]));
    assert!(operations(&decoder.decode(of_streams(vec![(0, renamed)])).unwrap()).is_empty());
}
