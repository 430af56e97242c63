//! Events as servers show them, through the decoder: shapes of MongoDB 4.4, 5.0 and 6.0. What real servers show is tested
//! end to end in the `tests` package. Nothing here needs a server.

use bson::{Binary, Bson, Document, Timestamp, doc, spec::BinarySubtype};

use super::*;
use crate::model::{Ddl, OpTime};

fn token(inc: u32, rest: &str) -> Document {
    doc! { "_data": format!("82{:08X}{inc:08X}{rest}", 100) }
}

fn position(token: &Document) -> Position {
    Position::of_token(Bytes::from(bson::RawDocumentBuf::try_from(token).unwrap().into_bytes())).unwrap()
}

fn reply(events: &[Document], reached: Option<&Document>) -> RawBatch {
    let array: bson::RawArrayBuf = events.iter().map(|d| bson::RawDocumentBuf::try_from(d).unwrap()).collect();
    let entries = Bytes::copy_from_slice(array.as_bytes());
    RawBatch { entries, reached: reached.map(position), runs: Vec::new(), permit: Permit::none() }
}

fn event(inc: u32, operation: &str, fields: Document) -> Document {
    let mut event = doc! {
        "_id": token(inc, "2B"), "operationType": operation, "clusterTime": Timestamp { time: 100, increment: inc },
        "wallTime": bson::DateTime::from_millis(100_000), "ns": { "db": "a", "coll": "b" },
    };
    event.extend(fields);
    event
}

fn insert(inc: u32, id: i32) -> Document {
    event(inc, "insert", doc! { "documentKey": { "_id": id }, "fullDocument": { "_id": id } })
}

fn in_transaction(inc: u32, id: i32, number: i64) -> Document {
    let mut event = insert(inc, id);
    event.insert("_id", token(inc, &format!("46{id:02}")));
    event.extend(doc! { "lsid": { "id": uuid(7) }, "txnNumber": number });
    event
}

fn uuid(byte: u8) -> Binary {
    Binary { subtype: BinarySubtype::Uuid, bytes: vec![byte; 16] }
}

fn start() -> Position {
    Position::Oplog(OpTime::new(100, 0, 1))
}

fn decoder() -> StreamDecoder {
    let own_collections = vec!["mongoshake.ckpt_default".to_owned()];
    let options = DecodeOptions { own_collections, ..DecodeOptions::default() };
    StreamDecoder::new(Namespaces::shared(), options, start())
}

fn read(bytes: &Bytes) -> Document {
    bson::deserialize_from_slice(bytes).unwrap()
}

#[test]
fn each_form_of_an_update_is_told_apart() {
    let key = || doc! { "documentKey": { "_id": 1 } };
    let with = |mut fields: Document, more: Document| {
        fields.extend(more);
        fields
    };
    let events = [
        event(1, "replace", with(key(), doc! { "fullDocument": { "$set": 1, "_id": 1 } })),
        event(2, "update", with(key(), doc! { "rawUpdateDescription": { "$v": 2, "diff": { "u": { "a.b": 2 } } } })),
        event(
            3,
            "update",
            with(key(), doc! { "updateDescription": { "updatedFields": { "n.0": 7 }, "removedFields": ["x", "y.z"] } }),
        ),
        event(
            4,
            "update",
            with(key(), doc! { "updateDescription": { "truncatedArrays": [] }, "fullDocument": { "_id": 1, "x": 4 } }),
        ),
        event(
            5,
            "update",
            with(key(), doc! { "updateDescription": { "truncatedArrays": [] }, "fullDocument": Bson::Null }),
        ),
        event(6, "delete", key()),
    ];
    let mut decoder = decoder();
    let batches = decoder.decode(reply(&events, None)).unwrap();
    let changes = &batches[0].changes;
    use Operation::{Delete, Replace, UpdateDiff, UpdateModifiers};
    let operations: Vec<_> = changes.iter().map(|c| c.operation).collect();
    assert_eq!(operations, [Replace, UpdateDiff, UpdateModifiers, Replace, Delete]);
    assert_eq!(read(&changes[0].body), doc! { "$set": 1, "_id": 1 });
    assert_eq!(read(&changes[1].body), doc! { "u": { "a.b": 2 } });
    assert_eq!(read(&changes[2].body), doc! { "$set": { "n.0": 7 }, "$unset": { "x": true, "y.z": true } });
    assert_eq!(read(&changes[3].body), doc! { "_id": 1, "x": 4 });
    assert_eq!((decoder.counts().whole, decoder.counts().gone), (1, 1));
    assert_eq!((changes[4].time, changes[4].wall_ms), (OpTime::new(100, 6, -1), 100_000));
}

#[test]
fn an_update_that_only_a_later_server_describes_so_stops_the_run() {
    let description = doc! { "updatedFields": { "a.b": 7 }, "removedFields": [], "truncatedArrays": [] };
    let event = event(3, "update", doc! { "documentKey": { "_id": 1 }, "updateDescription": description });
    let fault = decoder().decode(reply(&[event], None)).unwrap_err();
    assert_eq!(fault.kind(), Kind::CannotApply);
    assert!(fault.to_string().contains("100.3"), "{fault}");
    let unknown = decoder().decode(reply(&[super::tests::event(4, "reshardCollection", doc! {})], None)).unwrap_err();
    assert_eq!(unknown.kind(), Kind::CannotApply);
}

#[test]
fn a_position_never_stands_inside_a_transaction() {
    let mut decoder = decoder();
    let (before, second) = (insert(1, 1), in_transaction(2, 3, 5));
    let events = [before.clone(), in_transaction(2, 2, 5), second.clone()];
    let at = |event: &Document| position(event.get_document("_id").unwrap());
    // The reply is full: its last event's token says nothing about what follows.
    let full = decoder.decode(reply(&events, second.get_document("_id").ok())).unwrap();
    assert_eq!((full[0].changes.len(), &full[0].last), (3, &at(&before)));
    assert_eq!(decoder.reopen(), at(&second), "reading goes on where it was");
    let third = in_transaction(2, 4, 5);
    let more = decoder.decode(reply(std::slice::from_ref(&third), third.get_document("_id").ok())).unwrap();
    assert_eq!(more[0].last, at(&before));
    let empty = decoder.decode(reply(&[], third.get_document("_id").ok())).unwrap();
    assert_eq!(empty[0].last, at(&third), "nothing more came of it");
    // Another transaction at once behind it ends the first.
    let (one, two) = (in_transaction(5, 7, 6), in_transaction(6, 8, 7));
    let both = decoder.decode(reply(&[one.clone(), two.clone()], two.get_document("_id").ok())).unwrap();
    assert_eq!(both[0].last, at(&one));
    let later = token(9, "29");
    assert_eq!(decoder.decode(reply(&[], Some(&later))).unwrap()[0].last, position(&later));
}

#[test]
fn an_idle_stream_moves_the_position() {
    let mut decoder = decoder();
    let batches = decoder.decode(reply(&[], Some(&token(40, "29")))).unwrap();
    assert_eq!((batches[0].changes.len(), batches[0].last.time()), (0, OpTime::new(100, 40, -1)));
}

#[test]
fn the_fragments_of_an_event_are_put_together() {
    let fragment = |number: i32, mut fields: Document| {
        fields.insert("_id", token(3, &format!("FF{number:02}")));
        fields.insert("splitEvent", doc! { "fragment": number, "of": 3 });
        fields
    };
    let whole = insert(3, 9);
    let part = |names: &[&str]| -> Document {
        names.iter().map(|name| ((*name).to_owned(), whole.get(name).unwrap().clone())).collect()
    };
    let first = fragment(1, part(&["operationType", "clusterTime", "ns", "wallTime"]));
    let second = fragment(2, part(&["fullDocument"]));
    let third = fragment(3, part(&["documentKey"]));
    let mut decoder = decoder();
    let cut = decoder.decode(reply(&[insert(1, 1), first, second.clone()], second.get_document("_id").ok())).unwrap();
    assert_eq!((cut[0].changes.len(), cut[0].last.time().inc), (1, 1), "a part moves no position");
    let batches = decoder.decode(reply(std::slice::from_ref(&third), third.get_document("_id").ok())).unwrap();
    assert_eq!(read(&batches[0].changes[0].body), doc! { "_id": 9 });
    assert_eq!(batches[0].last, position(third.get_document("_id").unwrap()));
    let fault = decoder.decode(reply(&[second], None)).unwrap_err();
    assert!(fault.to_string().contains("fragment 2 of 3"), "{fault}");
}

#[test]
fn fragments_are_forgotten_when_the_stream_is_opened_again() {
    let mut first = insert(3, 9);
    first.insert("splitEvent", doc! { "fragment": 1, "of": 2 });
    let mut decoder = decoder();
    decoder.decode(reply(&[insert(1, 1), first.clone()], None)).unwrap();
    assert_eq!(decoder.reopen().time().inc, 1);
    decoder.decode(reply(&[first], None)).unwrap();
}

#[test]
fn ddl_stands_alone_and_reads_like_the_oplogs() {
    let described = |inc, operation: &str, description: Document| {
        event(inc, operation, doc! { "collectionUUID": uuid(3), "operationDescription": description })
    };
    let events = [
        insert(1, 1),
        described(2, "create", doc! { "capped": true, "size": 4096, "idIndex": { "v": 2 } }),
        described(
            3,
            "createIndexes",
            doc! { "indexes": [
            { "v": 2, "key": { "q": 1 }, "name": "q_1", "sparse": true }, { "v": 2, "key": { "r": 1 }, "name": "r_1" } ] },
        ),
        described(4, "dropIndexes", doc! { "indexes": [{ "v": 2, "key": { "q": 1 }, "name": "q_1" }] }),
        described(5, "modify", doc! { "index": { "name": "r_1", "hidden": true } }),
        event(
            6,
            "rename",
            doc! { "collectionUUID": uuid(3), "to": { "db": "a", "coll": "c.d" },
            "operationDescription": { "to": { "db": "a", "coll": "c.d" }, "dropTarget": uuid(4) } },
        ),
        event(7, "drop", doc! { "ns": { "db": "a", "coll": "c.d" }, "collectionUUID": uuid(3) }),
        event(8, "dropDatabase", doc! { "ns": { "db": "a" } }),
        insert(9, 2),
    ];
    let mut decoder = decoder();
    let batches = decoder.decode(reply(&events, None)).unwrap();
    let shape: Vec<_> = batches.iter().map(|b| (b.changes.len(), b.last.time().inc)).collect();
    assert_eq!(shape, [(1, 1), (1, 2), (2, 3), (1, 4), (1, 5), (1, 6), (1, 7), (1, 8), (1, 9)]);
    let name = |id| decoder.namespaces.name(id).as_str().to_owned();
    let ddl = |batch: usize, change: usize| batches[batch].changes[change].ddl.as_deref().unwrap();
    let Ddl::Create { namespace, options } = ddl(1, 0) else { panic!("{:?}", ddl(1, 0)) };
    assert_eq!((name(namespace.source), read(options).get_i32("size").unwrap()), ("a.b".to_owned(), 4096));
    let Ddl::CreateIndexes { specs, .. } = ddl(2, 1) else { panic!("{:?}", ddl(2, 1)) };
    assert_eq!(read(&specs[0]), doc! { "v": 2, "key": { "r": 1 }, "name": "r_1" });
    assert!(matches!(ddl(3, 0), Ddl::DropIndexes { name, .. } if name == "q_1"));
    assert!(
        matches!(ddl(4, 0), Ddl::CollMod { options, .. } if read(options) == doc! { "index": { "name": "r_1", "hidden": true } })
    );
    let Ddl::Rename { from, to, drop_target } = ddl(5, 0) else { panic!("{:?}", ddl(5, 0)) };
    assert_eq!((name(from.source), name(to.source), *drop_target), ("a.b".into(), "a.c.d".into(), Some([4; 16])));
    assert_eq!(batches[5].changes[0].collection, Some([3; 16]));
    assert!(matches!(ddl(6, 0), Ddl::Drop { namespace } if name(namespace.source) == "a.c.d"));
    assert!(matches!(ddl(7, 0), Ddl::DropDatabase { database } if name(database.source) == "a.$cmd"));
}

/// A view has no identity. Changed, it is made anew, as it is by the oplog; and nothing that is no view goes for one.
#[test]
fn views_read_like_the_oplogs() {
    let view = doc! { "viewOn": "base", "pipeline": [{ "$match": { "x": 1 } }], "collation": { "locale": "de" } };
    let events = [
        event(1, "create", doc! { "operationDescription": view.clone() }),
        event(2, "modify", doc! { "operationDescription": view.clone() }),
        event(3, "drop", doc! {}),
    ];
    let mut decoder = decoder();
    let batches = decoder.decode(reply(&events, None)).unwrap();
    let ddl = |batch: usize| batches[batch].changes[0].ddl.as_deref().unwrap();
    for made in [ddl(0), ddl(1)] {
        assert!(matches!(made, Ddl::Create { options, .. } if read(options) == view), "{made:?}");
    }
    assert!(matches!(ddl(2), Ddl::DropView { .. }), "{:?}", ddl(2));
}

#[test]
fn own_collections_and_notices_are_counted() {
    let mut decoder = decoder();
    let own = event(
        1,
        "insert",
        doc! { "ns": { "db": "mongoshake", "coll": "ckpt_default" },
        "documentKey": { "_id": 1 }, "fullDocument": { "_id": 1 } },
    );
    let own_ddl = event(2, "drop", doc! { "ns": { "db": "mongoshake", "coll": "ckpt_default" } });
    let notice = event(3, "shardCollection", doc! { "operationDescription": {} });
    let batches = decoder.decode(reply(&[own, own_ddl, notice], None)).unwrap();
    assert_eq!((batches[0].changes.len(), batches[0].last.time().inc), (0, 3));
    assert_eq!((decoder.counts().own, decoder.counts().noop), (2, 1));
}

/// A time-series logs the change of its view beside that of its buckets.
#[test]
fn the_view_of_a_time_series_is_not_changed_by_itself() {
    let modify = |inc, on: &str| {
        let description = doc! { "viewOn": on, "pipeline": [{ "$match": { "a": 1 } }] };
        event(inc, "modify", doc! { "operationDescription": description })
    };
    let events = [modify(1, "system.buckets.ts"), modify(2, "base"), insert(3, 1)];
    let batches = decoder().decode(reply(&events, None)).unwrap();
    let shape: Vec<_> = batches.iter().map(|b| (b.changes.len(), b.last.time().inc)).collect();
    assert_eq!(shape, [(1, 2), (1, 3)]);
    assert!(matches!(batches[0].changes[0].ddl.as_deref(), Some(Ddl::Create { .. })));
}
