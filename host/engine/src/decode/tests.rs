//! Entries as the server writes them, through the decoder. The documents here are of the shapes that MongoDB 6.0
//! logs; what real servers log is tested end to end in the `tests` package. Nothing here needs a server.

use bson::{Bson, Document, Timestamp, doc};
use bytes::Bytes;

use super::*;
use crate::model::{Ddl, Origin};
use crate::spill::{Spill, SpillOptions};

mod restart;
mod shards;

fn raw(entries: Vec<Document>) -> RawBatch {
    let array: bson::RawArrayBuf = entries.iter().map(|d| bson::RawDocumentBuf::try_from(d).unwrap()).collect();
    RawBatch {
        entries: Bytes::copy_from_slice(array.as_bytes()),
        reached: None,
        runs: Vec::new(),
        permit: Permit::none(),
    }
}

fn entry(inc: u32, mut fields: Document) -> Document {
    let mut entry = doc! { "ts": Timestamp { time: 100, increment: inc }, "t": 1_i64, "v": 2_i64 };
    entry.insert("wall", bson::DateTime::from_millis(100_000));
    entry.extend(std::mem::take(&mut fields));
    entry
}

fn decoder() -> Decoder {
    let options = DecodeOptions {
        own_collections: vec!["mongoshake.ckpt_default".into()],
        transaction_bytes: 1 << 20,
        ..DecodeOptions::default()
    };
    Decoder::new(Namespaces::shared(), options, OpTime::new(100, 0, 1))
}

fn options(transaction_bytes: usize) -> DecodeOptions {
    DecodeOptions { transaction_bytes, ..DecodeOptions::default() }
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
            // So a replacement by a pipeline is logged.
            update(4, doc! { "$v": 2, "diff": { "u": { "x": 1 } }, "_id": 1 }),
            update(4, doc! { "$set": 1, "_id": 1 }),
            entry(5, doc! { "op": "d", "ns": "a.b", "o": { "_id": 1 } }),
            entry(6, doc! { "op": "n", "ns": "", "o": { "msg": "periodic noop" } }),
        ]))
        .unwrap();
    let changes = &batches[0].changes;
    let operations: Vec<_> = changes.iter().map(|c| c.operation).collect();
    use Operation::{Delete, Insert, Replace, UpdateDiff, UpdateModifiers};
    assert_eq!(operations, [Insert, UpdateDiff, UpdateModifiers, Replace, Replace, Replace, Delete]);
    assert_eq!(bson::deserialize_from_slice::<Document>(&changes[1].body).unwrap(), doc! { "u": { "x": 2 } });
    assert_eq!(bson::deserialize_from_slice::<Document>(&changes[2].body).unwrap(), doc! { "$set": { "x": 3 } });
    assert_eq!(position(&batches[0]), 6);
    assert_eq!(decoder.counts().noop, 1);
}

#[test]
fn the_start_entry_is_not_applied_again() {
    let mut decoder = Decoder::new(Namespaces::shared(), DecodeOptions::default(), OpTime::new(100, 1, 1));
    let batches = decoder.decode(raw(vec![insert(1), insert(2)])).unwrap();
    assert_eq!(batches[0].changes.len(), 1);
    assert_eq!(position(&batches[0]), 2);
}

#[test]
fn a_reopened_source_repeats_its_last_entry_once() {
    let mut decoder = decoder();
    decoder.decode(raw(vec![insert(1), insert(2)])).unwrap();
    assert_eq!(decoder.reopen().time().inc, 2);
    let batches = decoder.decode(raw(vec![insert(2), insert(3)])).unwrap();
    assert_eq!((batches[0].changes.len(), position(&batches[0])), (1, 3));
}

#[test]
fn a_source_that_is_reopened_unread_begins_at_its_start() {
    let start = OpTime::new(100, 1, -1);
    let mut decoder = Decoder::new(Namespaces::shared(), DecodeOptions::default(), start).repeating_the_start();
    assert_eq!(decoder.reopen(), Position::Oplog(start));
    let batches = decoder.decode(raw(vec![insert(1), insert(2)])).unwrap();
    assert_eq!(batches[0].changes.len(), 2, "the start is applied again, since its term is not known");
}

#[test]
fn a_comparison_of_members_changes_nothing() {
    let mut decoder = decoder();
    let check = doc! { "dbCheck": "a.b", "type": "batch", "md5": "x" };
    let batches = decoder.decode(raw(vec![insert(1), entry(2, doc! { "op": "c", "ns": "a.b", "o": check })])).unwrap();
    assert_eq!((batches[0].changes.len(), position(&batches[0])), (1, 2));
    assert_eq!(decoder.counts().internal, 1);
}

#[test]
fn a_ddl_stands_alone_with_the_position_before_it() {
    let mut decoder = decoder();
    let drop = entry(3, doc! { "op": "c", "ns": "a.$cmd", "o": { "drop": "b" } });
    let batches = decoder.decode(raw(vec![insert(1), insert(2), drop, insert(4)])).unwrap();
    let shape: Vec<_> = batches.iter().map(|b| (b.seq, b.changes.len(), position(b))).collect();
    assert_eq!(shape, [(0, 2, 2), (1, 1, 3), (2, 1, 4)]);
}

#[test]
fn own_and_migrated_entries_are_dropped_and_counted() {
    let options = DecodeOptions {
        own_collections: vec!["mongoshake.ckpt_default".into()],
        is_shard: true,
        ..DecodeOptions::default()
    };
    let mut decoder = Decoder::new(Namespaces::shared(), options, OpTime::new(100, 0, 1));
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
    let copied = |ns: &str| entry(4, doc! { "op": "i", "ns": ns, "o": { "_id": 1 }, "fromMigrate": true });
    for ns in ["a.tmpX1y2z.renameCollection", "a.tmpX1y2z.convertToCapped.b"] {
        assert_eq!(decoder.decode(raw(vec![copied(ns)])).unwrap()[0].changes.len(), 1, "{ns}");
    }
    assert!(decoder.decode(raw(vec![copied("a.tmpX1y2z.other")])).unwrap()[0].changes.is_empty());
}

#[test]
fn no_migration_goes_into_a_capped_collection() {
    let uuid = |byte: u8| bson::Uuid::from_bytes([byte; 16]);
    let options = DecodeOptions { is_shard: true, capped: [[1; 16]].into(), ..DecodeOptions::default() };
    let mut decoder = Decoder::new(Namespaces::shared(), options, OpTime::new(100, 0, 1));
    let create = |n, byte, capped: bool| {
        entry(n, doc! { "op": "c", "ns": "a.$cmd", "ui": uuid(byte), "o": { "create": "c", "capped": capped } })
    };
    let copied =
        |n, byte| entry(n, doc! { "op": "i", "ns": "a.c", "ui": uuid(byte), "o": { "_id": n }, "fromMigrate": true });
    let entries = vec![create(1, 2, true), create(2, 3, false), copied(3, 1), copied(4, 2), copied(5, 3)];
    let batches = decoder.decode(raw(entries)).unwrap();
    let inserted = batches.iter().flat_map(|batch| &batch.changes).filter(|change| change.ddl.is_none());
    assert_eq!(inserted.map(|change| change.time.inc).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(decoder.counts().from_migrate, 1);
}

#[test]
fn a_replica_set_has_no_migrations_whatever_the_flag_says() {
    let copied = entry(1, doc! { "op": "i", "ns": "a.ccc", "o": { "_id": 1 }, "fromMigrate": true });
    assert_eq!(decoder().decode(raw(vec![copied])).unwrap()[0].changes.len(), 1);
}

#[test]
fn what_a_server_keeps_for_itself_stays_there() {
    let mut decoder = decoder();
    let batches = decoder
        .decode(raw(vec![
            entry(1, doc! { "op": "i", "ns": "admin.system.users", "o": { "_id": "admin.u" } }),
            entry(2, doc! { "op": "c", "ns": "admin.$cmd", "o": { "create": "system.keys" } }),
            entry(3, doc! { "op": "u", "ns": "config.system.sessions", "o": { "$v": 1 }, "o2": { "_id": 1 } }),
            entry(4, doc! { "op": "i", "ns": "admin.notes", "o": { "_id": 1 } }),
            entry(5, doc! { "op": "i", "ns": "a.system.js", "o": { "_id": "f" } }),
            entry(6, doc! { "op": "i", "ns": "admin.system.js", "o": { "_id": "f" } }),
            entry(7, doc! { "op": "i", "ns": "admin.system.buckets.t", "o": { "_id": 1 } }),
            entry(8, doc! { "op": "d", "ns": "admin.system.views", "o": { "_id": "admin.v" } }),
        ]))
        .unwrap();
    let names: Vec<_> = batches.into_iter().flat_map(|batch| batch.changes).map(|change| change.source).collect();
    let passed = ["admin.notes", "a.system.js", "admin.system.js", "admin.system.buckets.t", "admin.v"];
    assert_eq!(names, passed.map(|name| decoder.namespaces.intern(name)));
    assert_eq!(decoder.counts().internal, 3);
}

#[test]
fn views_are_commands_though_they_are_logged_as_documents() {
    let ns = "a.system.views";
    let view = |on: &str| doc! { "_id": "a.v", "viewOn": on, "pipeline": [{ "$match": { "x": 1 } }] };
    let mut decoder = decoder();
    let batches = decoder
        .decode(raw(vec![
            entry(1, doc! { "op": "c", "ns": "a.$cmd", "o": { "create": "system.views" } }),
            entry(2, doc! { "op": "i", "ns": ns, "o": view("b") }),
            entry(3, doc! { "op": "u", "ns": ns, "o": view("c"), "o2": { "_id": "a.v" } }),
            entry(4, doc! { "op": "i", "ns": ns, "o": view("system.buckets.v") }),
            entry(5, doc! { "op": "d", "ns": ns, "o": { "_id": "a.v" } }),
            entry(6, doc! { "op": "c", "ns": "a.$cmd", "o": { "drop": "system.views" } }),
        ]))
        .unwrap();
    let changes: Vec<_> = batches.into_iter().flat_map(|batch| batch.changes).collect();
    let ddl: Vec<_> = changes.iter().map(|change| change.ddl.as_deref().unwrap()).collect();
    let shown: Vec<_> = ddl.iter().map(|ddl| ddl.name()).collect();
    assert_eq!(shown, ["create", "create", "drop (view)", "drop system.views"]);
    let Ddl::Create { options, namespace } = ddl[1] else { panic!("{:?}", ddl[1]) };
    let options: Document = bson::deserialize_from_slice(options).unwrap();
    assert_eq!(options, doc! { "viewOn": "c", "pipeline": [{ "$match": { "x": 1 } }] });
    assert_eq!(decoder.namespaces.name(namespace.source).as_str(), "a.v");
    assert_eq!(decoder.counts().internal, 2);
    let modified =
        entry(7, doc! { "op": "u", "ns": ns, "o": { "$v": 1, "$set": { "pipeline": [] } }, "o2": { "_id": "a.v" } });
    assert_eq!(decoder.decode(raw(vec![modified])).unwrap_err().kind(), Kind::CannotApply);
}

#[test]
fn a_document_that_looks_like_a_command_is_a_document() {
    let mut inc = 0;
    let mut decoder = decoder();
    for ns in ["a.b", "a.b.$cmd", "a.c$cmd", "a.drop", "mongoshake.x.$cmd"] {
        for o in [doc! { "drop": "b", "_id": 1 }, doc! { "create": "ckpt_default", "_id": 2 }, doc! { "applyOps": [] }]
        {
            inc += 1;
            let batches = decoder.decode(raw(vec![entry(inc, doc! { "op": "i", "ns": ns, "o": o.clone() })])).unwrap();
            let [change] = batches[0].changes.as_slice() else { panic!("{ns} {o}") };
            assert_eq!(change.operation, Operation::Insert);
            assert_eq!(bson::deserialize_from_slice::<Document>(&change.body).unwrap(), o);
        }
    }
}

#[test]
fn an_unknown_command_stops_with_its_time() {
    let error = decoder()
        .decode(raw(vec![entry(9, doc! { "op": "c", "ns": "a.$cmd", "o": { "repairCollection": "b" } })]))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::CannotApply);
    let text = error.to_string();
    assert!(text.contains("100.9") && text.contains("repairCollection"), "{text}");
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
    let batches = decoder
        .decode(raw(vec![
            prepare(1, 1),
            prepare(2, 2),
            end(3, 1, at(1), "abortTransaction"),
            end(4, 2, at(2), "commitTransaction"),
        ]))
        .unwrap();
    assert_eq!((batches[0].changes.len(), position(&batches[0])), (1, 4));
    assert_eq!(decoder.counts().aborted, 1);
}

const NULL_TIME: OpTime = OpTime { secs: 0, inc: 0, term: -1 };

fn link(time: OpTime) -> Document {
    doc! { "prevOpTime": { "ts": Timestamp { time: time.secs, increment: time.inc }, "t": time.term } }
}

fn at(inc: u32) -> OpTime {
    OpTime::new(100, inc, 1)
}

fn insert(inc: u32) -> Document {
    entry(inc, doc! { "op": "i", "ns": "a.b", "o": { "_id": inc } })
}

/// An entry of the transaction `number` that inserts a document of `padding` bytes, behind the entry at `previous`.
fn part(inc: u32, number: i64, previous: OpTime, mark: &str, padding: usize) -> Document {
    let mut o = doc! { "applyOps": [{ "op": "i", "ns": "a.b", "o": { "_id": inc, "p": "x".repeat(padding) } }] };
    if !mark.is_empty() {
        o.insert(mark, true);
    }
    entry(inc, with(with(doc! { "op": "c", "ns": "admin.$cmd", "o": o }, session(number)), link(previous)))
}

fn end(inc: u32, number: i64, previous: OpTime, name: &str) -> Document {
    let o = doc! { name: 1 };
    entry(inc, with(with(doc! { "op": "c", "ns": "admin.$cmd", "o": o }, session(number)), link(previous)))
}

/// Drives a decoder as the reader does: (ids and position of each batch, what was needed).
async fn drive(decoder: &mut Decoder, log: &[Document], entries: Vec<Document>) -> (Vec<(Vec<u32>, u32)>, Vec<String>) {
    let dir = std::env::temp_dir();
    let spill = Spill::new(SpillOptions { dir, job: format!("decode-{:p}", decoder), bytes_max: 1 << 30 });
    let (mut batches, mut needs) = (Vec::new(), Vec::new());
    decoder.begin(raw(entries));
    loop {
        match decoder.step().unwrap() {
            Step::Batch(batch) => batches.push((batch.changes.iter().map(id).collect(), position(&batch))),
            Step::Need(Need::Memory { .. }) => decoder.granted(Permit::none()),
            Step::Need(Need::Entry { time, .. }) => {
                needs.push(format!("entry {}", time.inc));
                let found = log.iter().find(|e| e.get_timestamp("ts").unwrap().increment == time.inc).unwrap();
                decoder.entry(Bytes::from(bson::serialize_to_vec(found).unwrap())).unwrap();
            }
            Step::Need(Need::Store(operations)) => {
                needs.push("store".into());
                decoder.stored(spill.store(operations).await.unwrap()).unwrap();
            }
            Step::Need(Need::Load(stored)) => {
                needs.push("load".into());
                decoder.loaded(spill.load(stored).await.unwrap()).unwrap();
            }
            Step::Done => return (batches, needs),
        }
    }
}

fn id(change: &Change) -> u32 {
    let body = bson::deserialize_from_slice::<Document>(&change.body).unwrap();
    u32::try_from(body.get_i32("_id").unwrap()).unwrap()
}

#[tokio::test]
async fn a_prepared_transaction_from_before_the_start_is_completed_backwards() {
    let log = [part(1, 7, NULL_TIME, "partialTxn", 1), part(2, 7, at(1), "prepare", 1)];
    let mut decoder = Decoder::new(Namespaces::shared(), options(1 << 20), at(5));
    let reply = vec![insert(5), insert(6), end(7, 7, at(2), "commitTransaction"), insert(8)];
    let (batches, needs) = drive(&mut decoder, &log, reply).await;
    assert_eq!(needs, ["entry 2", "entry 1"]);
    // The position does not stand between the pieces: it stays before the end until the last one.
    assert_eq!(batches, [(vec![6], 6), (vec![1], 6), (vec![2], 7), (vec![8], 8)]);
}

#[tokio::test]
async fn a_start_inside_a_chain_walks_back_only_if_it_ends_well() {
    let log = [part(1, 7, NULL_TIME, "partialTxn", 1), part(2, 7, at(1), "partialTxn", 1)];
    for name in ["commitTransaction", "abortTransaction"] {
        let mut decoder = Decoder::new(Namespaces::shared(), options(1 << 20), at(2));
        let reply = vec![part(2, 7, at(1), "partialTxn", 1), part(3, 7, at(2), "prepare", 1), insert(4)];
        let (open, needs) = drive(&mut decoder, &log, reply).await;
        assert!(needs.is_empty());
        assert_eq!(open, [(vec![4], 2)], "the position stays before the first entry that was read");
        let (ended, needs) = drive(&mut decoder, &log, vec![end(5, 7, at(3), name)]).await;
        if name == "commitTransaction" {
            assert_eq!(needs, ["entry 2", "entry 1"]);
            assert_eq!(ended, [(vec![1], 2), (vec![2], 2), (vec![3], 5)]);
        } else {
            assert!(needs.is_empty());
            assert_eq!(ended, [(vec![], 5)]);
        }
    }
}

#[tokio::test]
async fn large_heads_are_read_again_in_their_turn() {
    let log = [part(1, 7, NULL_TIME, "partialTxn", 100_000), part(2, 7, at(1), "partialTxn", 100_000)];
    let mut decoder = Decoder::new(Namespaces::shared(), options(1 << 20), at(2));
    let reply = vec![part(3, 7, at(2), "", 10)];
    let (batches, needs) = drive(&mut decoder, &log, reply).await;
    assert_eq!(needs, ["entry 2", "entry 1", "entry 1", "entry 2"]);
    assert_eq!(batches, [(vec![1], 2), (vec![2], 2), (vec![3], 3)]);
}

#[tokio::test]
async fn what_does_not_fit_into_memory_is_put_aside_and_comes_back_in_order() {
    let mut decoder = Decoder::new(Namespaces::shared(), options(250_000), at(0));
    let reply = vec![
        insert(1),
        part(2, 7, NULL_TIME, "partialTxn", 100_000),
        part(3, 8, NULL_TIME, "prepare", 100_000),
        part(4, 7, at(2), "partialTxn", 100_000),
        insert(5),
        part(6, 7, at(4), "", 100_000),
        insert(7),
    ];
    let (batches, needs) = drive(&mut decoder, &[], reply).await;
    assert_eq!(needs, ["store", "load"]);
    let expected = [(vec![1, 5], 1), (vec![2], 1), (vec![4], 1), (vec![6], 2), (vec![7], 2)];
    assert_eq!(batches, expected, "the other one is still open behind entry 2");
    let (batches, _) = drive(&mut decoder, &[], vec![end(8, 8, at(3), "abortTransaction")]).await;
    assert_eq!(batches, [(vec![], 8)]);
    // What ended gave its memory back.
    let reply = vec![part(9, 9, NULL_TIME, "partialTxn", 200_000), part(10, 9, at(9), "", 10)];
    let (batches, needs) = drive(&mut decoder, &[], reply).await;
    assert_eq!((batches, needs), (vec![(vec![9, 10], 10)], Vec::new()));
}

/// The ids of each batch, and whether it is to become visible at once.
fn shapes(batches: &[ChangeBatch]) -> Vec<(Vec<u32>, bool)> {
    batches.iter().map(|batch| (batch.changes.iter().map(id).collect(), batch.atomic)).collect()
}

#[test]
fn a_transaction_that_stays_whole_is_a_batch_of_its_own() {
    let whole = DecodeOptions { atomic_bytes: 250_000, ..options(1 << 20) };
    let mut decoder = Decoder::new(Namespaces::shared(), whole, at(0));
    let two = |inc: u32, padding: usize| {
        let insert = |n: u32| doc! { "op": "i", "ns": "a.b", "o": { "_id": n, "p": "x".repeat(padding) } };
        let o = doc! { "applyOps": [insert(inc), insert(inc + 1000)] };
        entry(inc, with(with(doc! { "op": "c", "ns": "admin.$cmd", "o": o }, session(1)), link(NULL_TIME)))
    };
    let reply = vec![insert(1), two(2, 10), insert(3), two(4, 200_000), part(5, 7, NULL_TIME, "", 10), insert(6)];
    let batches = decoder.decode(raw(reply)).unwrap();
    let expected =
        [(vec![1], false), (vec![2, 1002], true), (vec![3], false), (vec![4, 1004], false), (vec![5, 6], false)];
    assert_eq!(shapes(&batches), expected, "one that is too large is split, one of one change needs no care");
    assert_eq!(decoder.counts().split, 1);
}

#[tokio::test]
async fn pieces_of_a_whole_transaction_come_in_one_batch_as_far_as_the_limit_allows() {
    for (atomic_bytes, expected) in [
        (400_000, vec![(vec![1, 2, 3], true), (vec![4], false)]),
        (250_000, vec![(vec![1], false), (vec![2], false), (vec![3], false), (vec![4], false)]),
    ] {
        let log = [part(1, 7, NULL_TIME, "partialTxn", 100_000), part(2, 7, at(1), "partialTxn", 100_000)];
        let options = DecodeOptions { atomic_bytes, ..options(1 << 20) };
        let mut decoder = Decoder::new(Namespaces::shared(), options, at(2));
        decoder.begin(raw(vec![part(3, 7, at(2), "", 100_000), insert(4)]));
        let (mut batches, mut asked) = (Vec::new(), Vec::new());
        loop {
            match decoder.step().unwrap() {
                Step::Batch(batch) => batches.push(batch),
                Step::Need(Need::Memory { bytes }) => {
                    asked.push(bytes / 100_000);
                    decoder.granted(Permit::none());
                }
                Step::Need(Need::Entry { time, .. }) => {
                    let found = &log[time.inc as usize - 1];
                    decoder.entry(Bytes::from(bson::serialize_to_vec(found).unwrap())).unwrap();
                }
                Step::Need(need @ (Need::Store(_) | Need::Load(_))) => panic!("{need:?}"),
                Step::Done => break,
            }
        }
        assert_eq!(shapes(&batches), expected);
        let whole = expected.len() == 2;
        assert_eq!(asked[0], if whole { 3 } else { 1 }, "memory is asked for all of it, or for each piece");
        assert_eq!(decoder.counts().split, u64::from(!whole));
    }
}

#[test]
fn ddl_inside_a_transaction_splits_it() {
    let whole = DecodeOptions { atomic_bytes: 250_000, ..options(1 << 20) };
    let mut decoder = Decoder::new(Namespaces::shared(), whole, at(0));
    let create = doc! { "op": "c", "ns": "a.$cmd", "o": { "create": "b" } };
    let o = doc! { "applyOps": [create, { "op": "i", "ns": "a.b", "o": { "_id": 1 } }] };
    let entry = entry(1, with(doc! { "op": "c", "ns": "admin.$cmd", "o": o }, session(1)));
    let batches = decoder.decode(raw(vec![entry])).unwrap();
    assert_eq!((batches.len(), batches[0].atomic, decoder.counts().split), (1, false, 1));
}

#[test]
fn statements_of_retryable_writes_are_no_chain() {
    let retryable = |inc, previous| {
        let plain = doc! { "op": "i", "ns": "a.b", "o": { "_id": inc }, "stmtId": 1 };
        entry(inc, with(with(plain, session(3)), link(previous)))
    };
    let image = entry(3, with(doc! { "op": "n", "ns": "a.b", "o": { "_id": 1_i64 }, "stmtId": 0 }, session(4)));
    let find_and_modify = with(retryable(4, NULL_TIME), doc! { "needsRetryImage": "preImage" });
    let entries = vec![retryable(1, NULL_TIME), retryable(2, at(1)), image, find_and_modify];
    let batches = decoder().decode(raw(entries)).unwrap();
    assert_eq!((batches[0].changes.len(), position(&batches[0])), (3, 4));
}

#[test]
fn the_command_apply_ops_is_taken_as_it_took_effect() {
    let update = |o: Document| doc! { "op": "u", "ns": "a.b", "o": o, "o2": { "_id": 2, "n": 5 } };
    let command = |ops: Vec<Document>| entry(1, doc! { "op": "c", "ns": "admin.$cmd", "o": { "applyOps": ops } });
    let ops = vec![
        doc! { "op": "i", "ns": "a.b", "o": { "x": 1, "_id": 1 } },
        update(doc! { "$set": { "x": 2 } }),
        doc! { "op": "d", "ns": "a.b", "o": { "_id": 3, "n": 5 } },
    ];
    let batches = decoder().decode(raw(vec![command(ops)])).unwrap();
    let read = |bytes: &Bytes| bson::deserialize_from_slice::<Document>(bytes).unwrap();
    let seen: Vec<_> = batches[0].changes.iter().map(|c| (c.operation, read(&c.key))).collect();
    use Operation::{Delete, Replace, UpdateModifiers};
    let expected = [(Replace, doc! {"_id": 1}), (UpdateModifiers, doc! {"_id": 2}), (Delete, doc! {"_id": 3})];
    assert_eq!(seen, expected);
    let creates: Vec<_> = batches[0].changes.iter().map(|change| change.creates).collect();
    assert_eq!(creates, [false, true, false], "the command makes what it does not find");
    let replaced = decoder().decode(raw(vec![command(vec![update(doc! { "a": 1 })])])).unwrap();
    assert_eq!(read(&replaced[0].changes[0].body), doc! { "_id": 2, "a": 1 });
    for o in [doc! { "$inc": { "n": 1 } }, doc! { "$v": 1, "$push": { "n": 1 } }] {
        let error = decoder().decode(raw(vec![command(vec![update(o)])])).unwrap_err();
        assert_eq!(error.kind(), Kind::CannotApply, "{error}");
    }
}

#[test]
fn an_entry_of_another_session_is_no_part() {
    let mut decoder = decoder();
    let end = end(2, 8, at(1), "commitTransaction");
    let error = decoder.decode(raw(vec![part(1, 7, NULL_TIME, "prepare", 1), end])).unwrap_err();
    assert_eq!(error.kind(), Kind::Malformed);
}

#[test]
fn every_cut_of_an_entry_is_an_error_and_never_a_panic() {
    let whole = raw(vec![entry(1, doc! { "op": "u", "ns": "a.b", "o": { "$v": 2, "diff": {} }, "o2": { "_id": 1 } })]);
    for at in 0..whole.entries.len() {
        let mut bytes = whole.entries.to_vec();
        bytes[at] ^= 0xff;
        let flipped = RawBatch { entries: bytes.into(), reached: None, runs: Vec::new(), permit: Permit::none() };
        // Some flips are legal BSON; none may panic.
        let _outcome = decoder().decode(flipped).is_ok();
    }
}

#[test]
fn changes_that_came_from_the_target_are_dropped_and_move_the_position() {
    let (here, there, third) = (Origin::new(1).unwrap(), Origin::new(2).unwrap(), Origin::new(3).unwrap());
    let options = DecodeOptions { drop_origins: vec![there], ..DecodeOptions::default() };
    let mut decoder = Decoder::new(Namespaces::shared(), options, OpTime::new(100, 0, 1));
    let insert = |id: i32| doc! { "op": "i", "ns": "a.b", "o": { "_id": id } };
    let transaction = |ids: [i32; 2], more: Document| {
        let inner: Vec<Document> = ids.map(insert).to_vec();
        with(doc! { "op": "c", "ns": "admin.$cmd", "o": with(doc! { "applyOps": inner }, more) }, doc! {})
    };
    let previous = |inc| doc! { "prevOpTime": { "ts": Timestamp { time: 100, increment: inc }, "t": 1_i64 } };
    let batches = decoder
        .decode(raw(vec![
            entry(1, insert(1)),
            entry(2, with(insert(2), session(there.transaction(5)))),
            entry(3, with(insert(3), session(third.transaction(6)))),
            entry(4, with(insert(4), session(7))),
            entry(5, with(transaction([5, 6], doc! {}), session(here.transaction(8)))),
            entry(6, with(transaction([7, 8], doc! { "partialTxn": true }), session(there.transaction(9)))),
            entry(7, with(with(transaction([9, 10], doc! {}), session(there.transaction(9))), previous(6))),
        ]))
        .unwrap();
    let changes: Vec<_> = batches.iter().flat_map(|batch| &batch.changes).collect();
    let ids = changes.iter().map(|c| bson::RawDocument::from_bytes(&c.body).unwrap().get_i32("_id").unwrap());
    assert_eq!(ids.collect::<Vec<_>>(), [1, 3, 4, 5, 6]);
    let origins: Vec<_> = changes.iter().map(|change| change.origin).collect();
    assert_eq!(origins, [None, Some(third), None, Some(here), Some(here)]);
    assert_eq!((decoder.counts().looped, position(batches.last().unwrap())), (3, 7));
}

#[test]
fn with_global_ids_only_their_entries_pass() {
    let options = DecodeOptions { global_ids: vec!["here".into()], ..DecodeOptions::default() };
    let mut decoder = Decoder::new(Namespaces::shared(), options, OpTime::new(100, 0, 1));
    let insert = |id: i32| doc! { "op": "i", "ns": "a.b", "o": { "_id": id } };
    let batches = decoder
        .decode(raw(vec![
            entry(1, with(insert(1), doc! { "g": "here" })),
            entry(2, with(insert(2), doc! { "g": "there" })),
            entry(3, insert(3)),
            entry(4, doc! { "op": "n", "ns": "", "o": { "msg": "periodic noop" } }),
        ]))
        .unwrap();
    assert_eq!(batches[0].changes.len(), 1);
    assert_eq!((decoder.counts().looped, decoder.counts().noop, position(&batches[0])), (2, 1, 4));
}
