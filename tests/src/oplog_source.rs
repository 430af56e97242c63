//! The oplog source against a real replica set, with the rights of the guide's source user.
//!
//! What matters is where it refuses to start: a position of another history, one that left the oplog, one that is not
//! there yet. Reading itself is shown by what was written and by what happens when a cursor dies.

use bson::{Document, RawDocumentBuf, doc};
use mongodb::Client;
use mongodb::options::{Acknowledgment, WriteConcern};
use oplogue_connectors::mongodb::client::{ConnectMode, ConnectOptions, connect};
use oplogue_connectors::mongodb::oplog::{OplogOptions, OplogSource, date_start};
use oplogue_connectors::mongodb::{privileges, topology};
use oplogue_engine::budget::Budget;
use oplogue_engine::error::{Error, Kind, Side};
use oplogue_engine::model::raw::Elements;
use oplogue_engine::model::{OpTime, Position, RawBatch};
use oplogue_engine::source::Source as _;
use oplogue_tests::servers::{Options, ReplicaSet};

async fn source(uri: &str, mode: ConnectMode, budget: &Budget) -> (Client, OplogSource) {
    let options = ConnectOptions { mode, ..ConnectOptions::default() };
    let client = connect(Side::Source, uri, &options).await.unwrap();
    let options = OplogOptions { mode, ..OplogOptions::default() };
    (client.clone(), OplogSource::new(client, options, budget.clone()))
}

async fn guides_source(set: &ReplicaSet) -> OplogSource {
    source(&set.uri_as_user(), ConnectMode::Primary, &Budget::new(64 << 20)).await.1
}

fn entries(batch: &RawBatch) -> Vec<Document> {
    let elements = Elements::new(&batch.entries).unwrap();
    let raw = elements.map(|entry| RawDocumentBuf::from_bytes(entry.unwrap().value.to_vec()).unwrap());
    raw.map(|entry| Document::try_from(entry).unwrap()).collect()
}

fn time(entry: &Document) -> OpTime {
    topology::op_time(entry).unwrap()
}

/// Reads until an insert of `_id: id` went by; all entries up to and with it.
async fn read_until(source: &mut OplogSource, id: i32) -> Vec<Document> {
    let mut seen = Vec::new();
    loop {
        for entry in entries(&source.next().await.unwrap()) {
            let found = entry.get_document("o").is_ok_and(|o| o.get_i32("_id").ok() == Some(id));
            seen.push(entry);
            if found {
                return seen;
            }
        }
    }
}

/// Inserts with majority concern, so that `newest` has reached the last one afterwards.
async fn insert(client: &Client, ids: impl IntoIterator<Item = i32>) {
    insert_acknowledged(client, ids, Acknowledgment::Majority).await;
}

async fn insert_acknowledged(client: &Client, ids: impl IntoIterator<Item = i32>, by: Acknowledgment) {
    let things = client.database("shop").collection::<Document>("things");
    let concern = WriteConcern::builder().w(by).build();
    for id in ids {
        things.insert_one(doc! { "_id": id }).write_concern(concern.clone()).await.unwrap();
    }
}

async fn refused(source: &mut OplogSource, at: OpTime) -> Error {
    source.open(&Position::Oplog(at)).await.expect_err("the position was accepted")
}

#[tokio::test]
async fn reads_what_was_written_from_its_position_on() {
    let set = ReplicaSet::start(Options::guide_source()).await.unwrap();
    let budget = Budget::new(64 << 20);
    let (client, mut source) = source(&set.uri_as_user(), ConnectMode::Primary, &budget).await;
    let criteria = ConnectMode::Primary.criteria();
    let granted = privileges::Privileges::ask(Side::Source, &client, &criteria).await.unwrap();
    granted.require(Side::Source, &privileges::of_source()).unwrap();
    granted.require(Side::Store, &privileges::of_store("mongoshake", "ckpt_default")).unwrap();
    let shop = privileges::of_store("shop", "things");
    assert_eq!(granted.missing(&shop).len(), 3, "the guide's user only reads there");
    let asked = topology::inspect(Side::Source, &client, &criteria).await.unwrap();
    assert_eq!((asked.replica_set.as_str(), asked.member.writable_primary), ("source", true));
    assert!(asked.at_least(4, 4), "{asked:?}");

    insert(&set.client(), [0]).await;
    let start = source.newest().await.unwrap();
    source.open(&Position::Oplog(start)).await.unwrap();
    insert(&set.client(), 1..=50).await;
    let seen = read_until(&mut source, 50).await;
    assert_eq!(time(&seen[0]), start, "the first entry is the position's own");
    let ids: Vec<_> = seen.iter().filter(|entry| entry.get_str("ns").ok() == Some("shop.things")).collect();
    assert_eq!(ids.iter().filter(|entry| time(entry) > start).count(), 50);

    // Idle: a heartbeat without entries and without memory, sooner or later between the server's own no-ops.
    while !entries(&source.next().await.unwrap()).is_empty() {}
    drop(source);
    assert_eq!(budget.held_bytes(), 0);
}

#[tokio::test]
async fn a_position_of_another_history_is_refused() {
    let set = ReplicaSet::start(Options::guide_source()).await.unwrap();
    let mut source = guides_source(&set).await;
    insert(&set.client(), [1]).await;
    let newest = source.newest().await.unwrap();

    let other_term = OpTime { term: newest.term + 1, ..newest };
    let fault = refused(&mut source, other_term).await;
    assert_eq!(fault.kind(), Kind::HistoryLost, "{fault}");
    assert!(fault.to_string().contains("rolled back") && fault.to_string().contains("the oplog holds"), "{fault}");

    let unknown_term = OpTime { term: -1, ..newest };
    source.open(&Position::Oplog(unknown_term)).await.unwrap();
    assert_eq!(time(&entries(&source.next().await.unwrap())[0]), newest);

    let ahead = OpTime { secs: newest.secs + 10_000, ..newest };
    let fault = refused(&mut source, ahead).await;
    assert_eq!(fault.kind(), Kind::HistoryLost, "{fault}");
    assert!(fault.to_string().contains("has not come that far"), "{fault}");
}

#[tokio::test]
async fn single_entries_are_read_and_missing_ones_are_lost_history() {
    let set = ReplicaSet::start(Options::guide_source()).await.unwrap();
    let mut source = guides_source(&set).await;
    insert(&set.client(), [1, 2]).await;
    let newest = source.newest().await.unwrap();
    source.open(&Position::Oplog(newest)).await.unwrap();
    let entry = RawDocumentBuf::from_bytes(source.entry_at(0, newest).await.unwrap().to_vec()).unwrap();
    assert_eq!(time(&Document::try_from(entry).unwrap()), newest);
    let window = source.window().await.unwrap();
    let fallen_off = OpTime { secs: window.oldest.secs - 5, inc: 1, ..window.oldest };
    let never = OpTime { inc: newest.inc + 1000, ..newest };
    let other_history = OpTime { term: newest.term + 1, ..newest };
    for lost in [fallen_off, never, other_history] {
        let fault = source.entry_at(0, lost).await.unwrap_err();
        assert_eq!(fault.kind(), Kind::HistoryLost, "{fault}");
        assert!(fault.to_string().contains("the oplog holds"), "{fault}");
    }
}

#[tokio::test]
async fn a_start_before_the_window_is_refused_and_1970_means_the_oldest() {
    let set = ReplicaSet::start(Options::guide_source()).await.unwrap();
    let mut source = guides_source(&set).await;
    let window = source.window().await.unwrap();
    assert!(window.oldest <= window.newest);
    let fallen_off = OpTime { secs: window.oldest.secs - 5, inc: 1, ..window.oldest };
    for position in [Position::Oplog(fallen_off), date_start(fallen_off.secs)] {
        let fault = source.open(&position).await.unwrap_err();
        assert_eq!(fault.kind(), Kind::HistoryLost, "{fault}");
        let text = fault.to_string();
        assert!(text.contains("illegal start") && text.contains(&window.oldest.to_string()), "{text}");
    }

    source.open(&date_start(1)).await.unwrap();
    assert_eq!(time(&entries(&source.next().await.unwrap())[0]), window.oldest);

    // A date inside the window: the first entry at or after it.
    let mut id = 0;
    while source.newest().await.unwrap().secs <= window.oldest.secs {
        insert(&set.client(), [id]).await;
        id += 1;
    }
    let date = source.newest().await.unwrap().secs;
    source.open(&date_start(date)).await.unwrap();
    assert_eq!(time(&entries(&source.next().await.unwrap())[0]).secs, date);
}

#[tokio::test]
async fn a_lost_cursor_is_a_fault_to_reopen_from() {
    let set = ReplicaSet::start(Options::guide_source()).await.unwrap();
    let mut source = guides_source(&set).await;
    insert(&set.client(), [1]).await;
    let start = source.newest().await.unwrap();
    source.open(&Position::Oplog(start)).await.unwrap();
    insert(&set.client(), [2]).await;
    let last = time(read_until(&mut source, 2).await.last().unwrap());

    kill_cursors(&set.client(), "local", "oplog.rs").await;
    let fault = loop {
        if let Err(fault) = source.next().await {
            break fault;
        }
    };
    assert_eq!(fault.kind(), Kind::CursorLost, "{fault}");
    insert(&set.client(), [3]).await;
    source.open(&Position::Oplog(last)).await.unwrap();
    let seen = read_until(&mut source, 3).await;
    assert_eq!(time(&seen[0]), last);
}

/// Kills the cursors of a collection, idle or busy.
pub(crate) async fn kill_cursors(client: &Client, database: &str, collection: &str) {
    let listing = doc! {
        "aggregate": 1,
        "pipeline": [
            { "$currentOp": { "allUsers": true, "idleCursors": true } },
            { "$match": { "ns": format!("{database}.{collection}"), "cursor.cursorId": { "$exists": true } } },
        ],
        "cursor": {},
    };
    let listed = client.database("admin").run_command(listing).await.unwrap();
    let found = listed.get_document("cursor").unwrap().get_array("firstBatch").unwrap();
    let ids: Vec<i64> = found
        .iter()
        .map(|op| op.as_document().unwrap().get_document("cursor").unwrap().get_i64("cursorId").unwrap())
        .collect();
    assert!(!ids.is_empty(), "no cursor is open on {database}.{collection}");
    client.database(database).run_command(doc! { "killCursors": collection, "cursors": ids }).await.unwrap();
}

#[tokio::test]
async fn secondaries_and_lone_members_are_read_too() {
    let set = ReplicaSet::start(Options::default().with_members(3)).await.unwrap();
    // A member that has written nothing yet cannot say how far it is.
    insert_acknowledged(&set.client(), [1], Acknowledgment::Nodes(3)).await;
    let secondary = set.secondary().await.unwrap();
    let modes = [
        (set.uri(), ConnectMode::SecondaryPreferred),
        (set.uri(), ConnectMode::Nearest),
        (set.member_uri(secondary), ConnectMode::Standalone),
    ];
    for (number, (uri, mode)) in (10..).zip(modes) {
        let (client, mut source) = source(&uri, mode, &Budget::new(64 << 20)).await;
        let start = source.newest().await.unwrap();
        source.open(&Position::Oplog(start)).await.unwrap();
        insert(&set.client(), [number]).await;
        let seen = read_until(&mut source, number).await;
        assert_eq!(time(&seen[0]), start, "{mode:?}");
        let asked = topology::last_write(Side::Source, &client, &mode.criteria()).await.unwrap();
        if mode == ConnectMode::SecondaryPreferred {
            assert!(!asked.writable_primary, "{asked:?}");
        }
    }
}
