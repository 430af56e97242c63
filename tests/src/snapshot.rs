//! The full copy's reader against a real replica set, with the rights of the guide's source user.
//!
//! Every document exactly once: whatever the types of its `_id`, however the collection is split, and whether or not
//! the cursor dies on the way. Nothing is written to a target here.

use std::collections::HashMap;

use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, RawDocumentBuf, doc};
use bytes::Bytes;
use mongodb::Client;
use mongodb::options::{Acknowledgment, WriteConcern};
use oplogue_connectors::mongodb::client::{ConnectMode, ConnectOptions, connect};
use oplogue_connectors::mongodb::snapshot::{SnapshotOptions, SnapshotSource};
use oplogue_connectors::mongodb::topology;
use oplogue_engine::budget::Budget;
use oplogue_engine::error::{Kind, Side};
use oplogue_engine::model::raw::Elements;
use oplogue_engine::model::{DocumentKey, Namespace, OpTime};
use oplogue_engine::source::{CollectionPlan, Partition, ScanOrder, SnapshotCursor, SnapshotReader as _};
use oplogue_tests::servers::{Options, ReplicaSet};

use crate::oplog_source::kill_cursors;

struct Copy {
    set: ReplicaSet,
    source: SnapshotSource,
    budget: Budget,
    client: Client,
}

/// A source with small replies, so that cursors have something to do.
async fn copy() -> Copy {
    Copy::of(ReplicaSet::start(Options::guide_source()).await.unwrap()).await
}

impl Copy {
    async fn of(set: ReplicaSet) -> Self {
        let client = connect(Side::Source, &set.uri_as_user(), &ConnectOptions::default()).await.unwrap();
        let budget = Budget::new(64 << 20);
        let own_database = "mongoshake".to_owned();
        let options = SnapshotOptions { reply_bytes: 64 * 1024, own_database, ..SnapshotOptions::default() };
        Self { set, source: SnapshotSource::new(client.clone(), options, budget.clone()), budget, client }
    }

    async fn newest(&self) -> OpTime {
        let criteria = ConnectMode::Primary.criteria();
        topology::last_write(Side::Source, &self.client, &criteria).await.unwrap().majority
    }

    async fn plans(&self) -> HashMap<String, CollectionPlan> {
        let plans = self.source.collections().await.unwrap();
        plans.into_iter().map(|plan| (plan.namespace.to_string(), plan)).collect()
    }

    async fn open(&self, partition: &Partition) -> Box<dyn SnapshotCursor> {
        self.source.open(partition, self.newest().await).await.unwrap()
    }

    async fn read(&self, partition: &Partition) -> Vec<Vec<u8>> {
        rest(self.open(partition).await.as_mut()).await
    }

    /// Inserts with majority concern: the reader sees nothing else.
    async fn insert(&self, collection: &str, documents: Vec<Document>) {
        let concern = WriteConcern::builder().w(Acknowledgment::Majority).build();
        let collection = self.set.client().database("shop").collection(collection);
        collection.insert_many(documents).write_concern(concern).await.unwrap();
    }
}

async fn rest(cursor: &mut dyn SnapshotCursor) -> Vec<Vec<u8>> {
    let mut documents = Vec::new();
    while let Some((array, _permit)) = cursor.next().await.unwrap() {
        documents.extend(split(&array));
    }
    documents
}

fn split(array: &Bytes) -> Vec<Vec<u8>> {
    Elements::new(array).unwrap().map(|document| document.unwrap().value.to_vec()).collect()
}

fn keys(documents: &[Vec<u8>]) -> Vec<DocumentKey> {
    let mut keys: Vec<_> = documents.iter().map(|document| DocumentKey::of_document(document).unwrap()).collect();
    keys.sort_unstable();
    keys
}

/// Three ids of every type that an `_id` can have, and the extremes.
fn odd_ids() -> Vec<Bson> {
    let mut ids = vec![
        Bson::MinKey,
        Bson::MaxKey,
        Bson::Null,
        Bson::Boolean(false),
        Bson::Boolean(true),
        Bson::Double(f64::NAN),
        Bson::Double(f64::NEG_INFINITY),
        Bson::Double(f64::INFINITY),
        Bson::Double(-0.5),
        Bson::Int64(i64::MIN),
        Bson::Int64(i64::MAX),
        Bson::Decimal128("1E+400".parse().unwrap()),
        Bson::Decimal128("0.1".parse().unwrap()),
    ];
    for n in 0..3_u8 {
        let subtypes = [BinarySubtype::Generic, BinarySubtype::Uuid, BinarySubtype::UserDefined(0x80)];
        ids.extend(subtypes.map(|subtype| Bson::Binary(Binary { subtype, bytes: vec![n; 16] })));
        ids.push(Bson::ObjectId(bson::oid::ObjectId::from_bytes([n; 12])));
        ids.push(Bson::DateTime(bson::DateTime::from_millis(i64::from(n) - 1)));
        ids.push(Bson::Timestamp(bson::Timestamp { time: u32::from(n) + 1, increment: 1 }));
        ids.push(Bson::String(format!("s{n}")));
        ids.push(Bson::Symbol(format!("y{n}")));
        ids.push(Bson::JavaScriptCode(format!("f{n}()")));
        ids.push(Bson::Document(doc! { "a": i32::from(n), "b": [1, "x"] }));
    }
    ids
}

#[tokio::test]
async fn partitions_cover_ids_of_every_type_once() {
    let copy = copy().await;
    let padding = "x".repeat(200);
    let many = (0..4000_i32).map(Bson::Int32).chain((0..2000).map(|n| Bson::String(format!("id {n}"))));
    let ids: Vec<Bson> = odd_ids().into_iter().chain(many).collect();
    let documents = ids.iter().map(|id| doc! { "_id": id.clone(), "padding": &padding }).collect();
    copy.insert("mixed", documents).await;
    let plan = copy.plans().await.remove("shop.mixed").unwrap();
    assert_eq!(plan.documents, ids.len() as u64);
    let mut expected: Vec<_> = ids
        .iter()
        .map(|id| DocumentKey::of_document(RawDocumentBuf::try_from(&doc! { "_id": id }).unwrap().as_bytes()).unwrap())
        .collect();
    expected.sort_unstable();

    for partitions in [1, 2, 7, 40, 3000] {
        let split = copy.source.partition(&plan, plan.bytes / partitions).await.unwrap();
        assert!(split.len() as u64 >= partitions.min(7) / 2, "{} of {partitions}", split.len());
        let mut read = Vec::new();
        for partition in &split {
            read.extend(copy.read(partition).await);
        }
        let found = keys(&read);
        assert_eq!(found.len(), expected.len(), "{partitions} partitions");
        assert!(found == expected, "{partitions} partitions return other documents");
    }
    assert_eq!(copy.budget.held_bytes(), 0);
}

/// The few extreme ids as bounds of their own: each range ends and begins at each of them.
#[tokio::test]
async fn every_id_can_be_a_bound() {
    let copy = copy().await;
    let ids = odd_ids();
    copy.insert("odd", ids.iter().map(|id| doc! { "_id": id.clone() }).collect()).await;
    let whole = Partition {
        namespace: Namespace::new("shop.odd"),
        min: None,
        max: None,
        order: ScanOrder::Id,
        uuid: None,
        owned: None,
    };
    let all = copy.read(&whole).await;
    assert_eq!(all.len(), ids.len());
    for (number, document) in all.iter().enumerate().skip(1) {
        let bound = Some(Bytes::from(document.clone()));
        let below = copy.read(&Partition { max: bound.clone(), ..whole.clone() }).await;
        let above = copy.read(&Partition { min: bound, ..whole.clone() }).await;
        let cut = (below.as_slice(), above.as_slice());
        assert_eq!((cut.0.len(), cut.1.len()), (number, all.len() - number), "at {:?}", ids.get(number));
        assert!(cut == all.split_at(number), "other documents at {number}");
    }
}

#[tokio::test]
async fn a_lost_cursor_goes_on_behind_the_last_document() {
    let copy = copy().await;
    let documents = |n: i32| (0..n).map(|id| doc! { "_id": id, "padding": "x".repeat(300) }).collect();
    copy.insert("plain", documents(3000)).await;
    let root = copy.set.client();
    let capped = doc! { "create": "capped", "capped": true, "size": 4_000_000 };
    root.database("shop").run_command(capped).await.unwrap();
    let backwards = (0..3000).rev().map(|id| doc! { "_id": id, "padding": "x".repeat(300) });
    copy.insert("capped", backwards.collect()).await;
    let plans = copy.plans().await;

    for (name, order) in [("plain", ScanOrder::Id), ("capped", ScanOrder::Natural)] {
        let split = copy.source.partition(&plans[&format!("shop.{name}")], 1 << 40).await.unwrap();
        assert_eq!((split.len(), split[0].order), (1, order));
        let uncut = copy.read(&split[0]).await;
        assert_eq!(uncut.len(), 3000);

        let mut cursor = copy.open(&split[0]).await;
        let mut read = Vec::new();
        for _ in 0..2 {
            read.extend(super::snapshot::split(&cursor.next().await.unwrap().unwrap().0));
        }
        assert!(read.len() < 3000, "nothing is left to lose");
        kill_cursors(&root, "shop", name).await;
        read.extend(rest(cursor.as_mut()).await);
        assert_eq!(read, uncut, "{name}");
    }

    // The last document that was delivered is gone when the cursor comes back.
    let whole = Partition {
        namespace: Namespace::new("shop.plain"),
        min: None,
        max: None,
        order: ScanOrder::Id,
        uuid: None,
        owned: None,
    };
    let mut cursor = copy.open(&whole).await;
    let mut read = Vec::new();
    for _ in 0..2 {
        read.extend(split(&cursor.next().await.unwrap().unwrap().0));
    }
    let last = i32::try_from(read.len()).unwrap() - 1;
    root.database("shop").collection::<Document>("plain").delete_one(doc! { "_id": last }).await.unwrap();
    kill_cursors(&root, "shop", "plain").await;
    read.extend(rest(cursor.as_mut()).await);
    assert_eq!(read.len(), 3000, "the next document after a deleted one is not skipped");
}

#[tokio::test]
async fn a_capped_collection_may_roll_over_its_cursor() {
    let copy = copy().await;
    let shop = copy.set.client().database("shop");
    shop.run_command(doc! { "create": "capped", "capped": true, "size": 2_000_000 }).await.unwrap();
    let documents = |ids: std::ops::Range<i32>| ids.map(|id| doc! { "_id": id, "padding": "x".repeat(300) }).collect();
    copy.insert("capped", documents(0..3000)).await;
    let whole = Partition {
        namespace: Namespace::new("shop.capped"),
        min: None,
        max: None,
        order: ScanOrder::Natural,
        uuid: None,
        owned: None,
    };
    let mut cursor = copy.open(&whole).await;
    let mut read = split(&cursor.next().await.unwrap().unwrap().0);
    assert!(read.len() < 3000, "nothing is left to lose");
    copy.insert("capped", documents(10_000..20_000)).await;
    read.extend(rest(cursor.as_mut()).await);
    let left = copy.read(&whole).await;
    assert!(left.len() < 10_000, "the collection did not roll over");
    assert_eq!(read[read.len() - left.len()..], left);
}

#[tokio::test]
async fn a_dropped_call_loses_nothing() {
    let copy = copy().await;
    copy.insert("plain", (0..5000).map(|id| doc! { "_id": id, "padding": "x".repeat(300) }).collect()).await;
    let whole = Partition {
        namespace: Namespace::new("shop.plain"),
        min: None,
        max: None,
        order: ScanOrder::Id,
        uuid: None,
        owned: None,
    };
    let mut cursor = copy.open(&whole).await;
    let mut read = Vec::new();
    let mut dropped = 0;
    loop {
        let next = tokio::time::timeout(std::time::Duration::from_micros(200), cursor.next()).await;
        match next {
            Err(_) => dropped += 1,
            Ok(Err(fault)) => panic!("{fault}"),
            Ok(Ok(None)) => break,
            Ok(Ok(Some((array, _permit)))) => read.extend(split(&array)),
        }
    }
    assert!(dropped > 0, "no call was dropped");
    assert!(read == copy.read(&whole).await, "{} documents after {dropped} dropped calls", read.len());
    drop(cursor);
    assert_eq!(copy.budget.held_bytes(), 0);
}

#[tokio::test]
async fn a_fault_can_be_waited_out() {
    let copy = copy().await;
    copy.insert("plain", (0..3000).map(|id| doc! { "_id": id, "padding": "x".repeat(300) }).collect()).await;
    let whole = Partition {
        namespace: Namespace::new("shop.plain"),
        min: None,
        max: None,
        order: ScanOrder::Id,
        uuid: None,
        owned: None,
    };
    let mut cursor = copy.open(&whole).await;
    let mut read = Vec::new();
    for _ in 0..2 {
        read.extend(split(&cursor.next().await.unwrap().unwrap().0));
    }
    for (code, kind) in [(11_600, Kind::FailedOver), (89, Kind::Unavailable)] {
        let data = doc! { "failCommands": ["getMore", "find"], "errorCode": code, "appName": "oplogue" };
        copy.set.fail_command(doc! { "times": 1 }, data).await.unwrap();
        let fault = cursor.next().await.unwrap_err();
        assert_eq!(fault.kind(), kind, "{fault}");
    }
    copy.set.heal_commands().await.unwrap();
    read.extend(rest(cursor.as_mut()).await);
    assert_eq!(read, copy.read(&whole).await);
}

/// In natural order the place where a lost cursor stood is found by the last document, which can go meanwhile.
#[tokio::test]
async fn a_place_that_is_gone_costs_no_document() {
    let copy = copy().await;
    if !copy.set.has("deletes in capped collections", (6, 0)) {
        return;
    }
    let create = doc! { "create": "log", "capped": true, "size": 16 << 20 };
    copy.set.client().database("shop").run_command(create).await.unwrap();
    copy.insert("log", (0..6000).map(|id| doc! { "_id": id, "padding": "x".repeat(300) }).collect()).await;
    let whole = Partition {
        namespace: Namespace::new("shop.log"),
        min: None,
        max: None,
        order: ScanOrder::Natural,
        uuid: None,
        owned: None,
    };
    let mut cursor = copy.open(&whole).await;
    let mut read = split(&cursor.next().await.unwrap().unwrap().0);
    let data = doc! { "failCommands": ["getMore"], "errorCode": 89, "appName": "oplogue" };
    copy.set.fail_command(doc! { "times": 1 }, data).await.unwrap();
    assert_eq!(cursor.next().await.unwrap_err().kind(), Kind::Unavailable);
    // The question whether it is still there is answered; the scan behind it comes too late.
    let slow = doc! { "failCommands": ["find"], "blockConnection": true, "blockTimeMS": 1_500, "appName": "oplogue" };
    copy.set.fail_command(doc! { "skip": 1 }, slow).await.unwrap();
    let id_of = |bytes: &Vec<u8>| RawDocumentBuf::from_bytes(bytes.clone()).unwrap().get_i32("_id").unwrap();
    let last = id_of(read.last().unwrap());
    let gone = async {
        tokio::time::sleep(std::time::Duration::from_millis(700)).await;
        let log = copy.set.client().database("shop").collection::<Document>("log");
        let majority = WriteConcern::builder().w(Acknowledgment::Majority).build();
        let deleted = log.delete_one(doc! { "_id": last }).write_concern(majority).await.unwrap();
        assert_eq!(deleted.deleted_count, 1);
    };
    let (more, ()) = tokio::join!(cursor.next(), gone);
    copy.set.heal_commands().await.unwrap();
    read.extend(more.unwrap().iter().flat_map(|(array, _)| split(array)));
    read.extend(rest(cursor.as_mut()).await);
    let ids: std::collections::BTreeSet<i32> = read.iter().map(id_of).collect();
    assert_eq!(ids.len(), 6000, "{} were read", read.len());
}

/// Nobody has the name when the cursor is opened, and its owner is back when that is asked for.
#[tokio::test]
async fn a_name_that_nobody_had_shows_no_empty_collection() {
    let copy = copy().await;
    copy.set.take_no_identities().await.unwrap();
    copy.insert("c", vec![doc! { "_id": 1 }]).await;
    // So that there is a choice of plans.
    let two = mongodb::IndexModel::builder().keys(doc! { "_id": 1, "x": 1 }).build();
    copy.set.client().database("shop").collection::<Document>("c").create_index(two).await.unwrap();
    let shop = copy.set.client().database("shop");
    for max_key_left in [false, true] {
        let plan = copy.plans().await.remove("shop.c").unwrap();
        let [whole] = copy.source.partition(&plan, 1 << 30).await.unwrap().try_into().unwrap();
        let part = Partition { min: max_key_left.then(|| bound_of(&doc! { "_id": bson::Bson::MaxKey })), ..whole };
        let mut cursor = copy.open(&part).await;
        assert_eq!(rest(cursor.as_mut()).await.len(), usize::from(!max_key_left));
        assert!(!cursor.moved(), "it is there");
        let mut cursor = copy.open(&part).await;
        rename(&copy, "c", "away").await;
        let slow = doc! { "failCommands": ["listCollections"], "blockConnection": true, "blockTimeMS": 1_500, "appName": "oplogue" };
        copy.set.fail_command(doc! { "times": 1 }, slow).await.unwrap();
        let back = async {
            tokio::time::sleep(std::time::Duration::from_millis(700)).await;
            rename(&copy, "away", "c").await;
        };
        let (read, ()) = tokio::join!(cursor.next(), back);
        copy.set.heal_commands().await.unwrap();
        assert!(read.unwrap().is_none() && cursor.moved(), "an empty collection was read that is none");
    }
    assert_eq!(shop.collection::<Document>("c").count_documents(doc! {}).await.unwrap(), 1);
}

async fn rename(copy: &Copy, from: &str, to: &str) {
    let command = doc! { "renameCollection": format!("shop.{from}"), "to": format!("shop.{to}") };
    copy.set.client().database("admin").run_command(command).await.unwrap();
}

fn bound_of(document: &Document) -> bytes::Bytes {
    bytes::Bytes::from(RawDocumentBuf::try_from(document).unwrap().into_bytes())
}

/// A server says what it has itself. A drop that an election may take back is no reason to leave documents unread.
#[tokio::test]
async fn a_collection_is_gone_when_a_majority_has_dropped_it() {
    let set = ReplicaSet::start(Options { members: 3, ..Options::guide_source() }).await.unwrap();
    let copy = Copy::of(set).await;
    copy.insert("c", vec![doc! { "_id": 1 }]).await;
    let plan = copy.plans().await.remove("shop.c").unwrap();
    let primary = copy.set.primary().await.unwrap();
    let others = [(primary + 1) % 3, (primary + 2) % 3];
    copy.set.hold_back(&others, true).await.unwrap();
    let shop = copy.set.client().database("shop");
    shop.run_command(doc! { "drop": "c", "writeConcern": { "w": 1 } }).await.unwrap();
    let mut asked = copy.source.place(&plan);
    let early = tokio::time::timeout(std::time::Duration::from_secs(1), &mut asked).await;
    assert!(early.is_err(), "believed too early: {early:?}");
    copy.set.hold_back(&others, false).await.unwrap();
    assert_eq!(asked.await.unwrap(), None);
}

/// Collections of every kind that the server has; whether it has time-series is the answer.
async fn create_every_kind(copy: &Copy) -> bool {
    let root = copy.set.client();
    let shop = root.database("shop");
    let clustered = copy.set.has("clustered collections", (6, 0));
    let timed = copy.set.has("time series", (5, 0));
    for command in [
        doc! { "create": "plain", "validator": { "price": { "$not": { "$lt": 0 } } }, "collation": { "locale": "de" } },
        doc! { "create": "empty" },
        doc! { "create": "capped", "capped": true, "size": 65536 },
        doc! { "create": "cheap", "viewOn": "plain", "pipeline": [{ "$match": { "price": 1 } }] },
        doc! { "create": "system.js" },
        doc! { "createIndexes": "plain", "indexes": [{ "key": { "price": -1 }, "name": "by price", "sparse": true }] },
    ] {
        shop.run_command(command).await.unwrap();
    }
    if clustered {
        let index = doc! { "key": { "_id": 1 }, "unique": true };
        shop.run_command(doc! { "create": "clustered", "clusteredIndex": index }).await.unwrap();
    }
    if timed {
        let series = doc! { "timeField": "at", "metaField": "where" };
        shop.run_command(doc! { "create": "weather", "timeseries": series }).await.unwrap();
    }
    root.database("mongoshake").collection("x").insert_one(doc! {}).await.unwrap();
    let ids = |n: i32| (0..n).map(|id| doc! { "_id": id, "padding": "x".repeat(300) }).collect::<Vec<_>>();
    copy.insert("plain", ids(10)).await;
    copy.insert("clustered", ids(2000)).await;
    let at = |n: i64| bson::DateTime::from_millis(1_700_000_000_000 + n * 1000);
    let weather = (0..2000_i64).map(|n| doc! { "at": at(n), "where": format!("w{}", n % 50), "value": n });
    copy.insert("weather", weather.collect()).await;
    timed
}

#[tokio::test]
async fn the_catalogue_is_complete_and_raw() {
    let copy = copy().await;
    let timed = create_every_kind(&copy).await;
    let plans = copy.plans().await;
    let mut found: Vec<_> = plans.values().map(|plan| (plan.namespace.as_str(), plan.kind.as_str())).collect();
    found.sort_unstable();
    let kind = if timed { "timeseries" } else { "collection" };
    let expected = [
        ("shop.capped", "collection"),
        ("shop.cheap", "view"),
        ("shop.clustered", "collection"),
        ("shop.empty", "collection"),
        ("shop.plain", "collection"),
        ("shop.system.js", "collection"),
        ("shop.weather", kind),
    ];
    assert_eq!(found, expected);
    let plain = &plans["shop.plain"];
    let options = Document::try_from(RawDocumentBuf::from_bytes(plain.options.to_vec()).unwrap()).unwrap();
    assert_eq!(options.get_document("collation").unwrap().get_str("locale").unwrap(), "de");
    assert_eq!((plain.documents, plain.uuid.is_some()), (10, true));
    assert!(plans["shop.weather"].uuid.is_some() && plans["shop.cheap"].uuid.is_none());

    let specs = copy.source.indexes(&plain.namespace).await.unwrap();
    let names: Vec<_> = specs
        .iter()
        .map(|spec| RawDocumentBuf::from_bytes(spec.to_vec()).unwrap().get_str("name").unwrap().to_owned())
        .collect();
    assert_eq!(names, ["_id_", "by price"]);
    assert!(copy.source.indexes(&Namespace::new("shop.cheap")).await.unwrap().is_empty());
    assert!(copy.source.indexes(&Namespace::new("shop.gone")).await.unwrap().is_empty());

    assert!(copy.source.partition(&plans["shop.cheap"], 1).await.unwrap().is_empty());
    for (name, count) in [("empty", 0), ("clustered", 2000), ("weather", if timed { 50 } else { 2000 })] {
        let plan = &plans[&format!("shop.{name}")];
        for parts in [1, 5] {
            let split = copy.source.partition(plan, plan.bytes / parts).await.unwrap();
            let mut read = Vec::new();
            for partition in &split {
                read.extend(copy.read(partition).await);
            }
            let mut once = keys(&read);
            once.dedup();
            assert_eq!((read.len(), once.len()), (count, count), "{name} in {} partitions", split.len());
        }
    }
}
