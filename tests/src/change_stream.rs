//! The change-stream source and its decoder against a real replica set, with the rights of the guide's source user.
//!
//! What matters is what real servers show, by version, and where the source refuses to start. Reading is shown by what was
//! written, by what an idle source reports, and by what happens when a cursor dies or an event comes in parts.

use std::time::Duration;

use bson::{Document, doc};
use bytes::Bytes;
use mongodb::Client;
use mongodb::options::{Acknowledgment, WriteConcern};
use oplogue_connectors::mongodb::change_stream::{ChangeStreamSource, StreamOptions};
use oplogue_connectors::mongodb::client::{ConnectMode, ConnectOptions, connect};
use oplogue_connectors::mongodb::privileges;
use oplogue_engine::budget::{Budget, Permit};
use oplogue_engine::decode::{Decode as _, DecodeCounts, DecodeOptions, StreamDecoder};
use oplogue_engine::error::{Kind, Result, Side};
use oplogue_engine::model::{Change, Namespaces, OpTime, Operation, Position, RawBatch};
use oplogue_engine::source::Source as _;
use oplogue_tests::servers::{Options, ReplicaSet, User};

use super::oplog_source::kill_cursors;

const PATIENCE: Duration = Duration::from_secs(120);

/// A source and its decoder, as the pipeline has them.
pub(crate) struct Stream {
    source: ChangeStreamSource,
    decoder: StreamDecoder,
    names: std::sync::Arc<Namespaces>,
    /// Position of the last batch.
    at: Position,
}

impl Stream {
    pub(crate) async fn open(uri: &str, from: Option<Position>, reply_events: u32) -> Result<Self> {
        let client = connect(Side::Source, uri, &ConnectOptions::default()).await?;
        let options = StreamOptions { mode: ConnectMode::Primary, reply_events, ..StreamOptions::default() };
        let mut source = ChangeStreamSource::new(client, options, Budget::new(64 << 20));
        let at = match from {
            Some(from) => from,
            None => Position::Oplog(source.newest().await?),
        };
        source.open(&at).await?;
        let names = Namespaces::shared();
        let decoder = StreamDecoder::new(names.clone(), DecodeOptions::default(), at.clone());
        Ok(Self { source, decoder, names, at })
    }

    /// The changes of the next reply and the position behind them.
    async fn next(&mut self) -> Result<(Vec<Change>, Position)> {
        let batches = self.decoder.decode(self.source.next().await?)?;
        self.at = batches.last().unwrap().last.clone();
        Ok((batches.into_iter().flat_map(|batch| batch.changes).collect(), self.at.clone()))
    }

    /// Reads until `is_last` went by: all changes up to the end of its reply.
    pub(crate) async fn until(&mut self, is_last: impl Fn(&Change) -> bool) -> Result<Vec<Change>> {
        let deadline = std::time::Instant::now() + PATIENCE;
        let mut seen: Vec<Change> = Vec::new();
        while !seen.iter().any(&is_last) {
            assert!(std::time::Instant::now() < deadline, "the last change never came");
            seen.append(&mut self.next().await?.0);
        }
        Ok(seen)
    }

    /// The name of the collection that a change is of.
    pub(crate) fn name(&self, change: &Change) -> String {
        self.names.name(change.source).as_str().to_owned()
    }

    pub(crate) fn counts(&self) -> DecodeCounts {
        self.decoder.counts()
    }
}

/// Whether a change is of the document of this `_id`.
pub(crate) fn is(id: &'static str) -> impl Fn(&Change) -> bool {
    move |change| change.operation != Operation::Ddl && read(change.key_document()).get_str("_id").ok() == Some(id)
}

fn read(bytes: &Bytes) -> Document {
    bson::deserialize_from_slice(bytes).unwrap()
}

fn things(client: &Client) -> mongodb::Collection<Document> {
    let concern = WriteConcern::builder().w(Acknowledgment::Majority).build();
    let options = mongodb::options::CollectionOptions::builder().write_concern(concern).build();
    client.database("shop").collection_with_options("things", options)
}

#[tokio::test]
async fn every_update_comes_in_an_exact_form() {
    // No right to read the oplog: a change stream asks for none.
    let reader = User::new("reader", "of-streams", &[("readAnyDatabase", "admin")]);
    let set = ReplicaSet::start(Options { users: vec![reader], ..Options::default() }).await.unwrap();
    let things = things(&set.client());
    let start = doc! { "_id": "a", "arr": [1, 2, 3, 4], "o": { "k": 1 }, "0": 1, "pad": "p".repeat(200) };
    things.insert_one(start).await.unwrap();
    let user = connect(Side::Source, &set.uri_as_user(), &ConnectOptions::default()).await.unwrap();
    let granted = privileges::Privileges::ask(Side::Source, &user, &ConnectMode::Primary.criteria()).await.unwrap();
    granted.require(Side::Source, &privileges::of_stream()).unwrap();
    assert_eq!(granted.missing(&privileges::of_source()).len(), 1, "the oplog is closed to this user");

    let mut stream = Stream::open(&set.uri_as_user(), None, 3).await.unwrap();
    let a = doc! { "_id": "a" };
    let is_old = set.version().starts_with('4');
    things.update_one(a.clone(), doc! { "$set": { "o.k": 2, "arr.1": 9 }, "$unset": { "0": "" } }).await.unwrap();
    if !is_old {
        let moved = [doc! { "$replaceWith": { "$setField": { "field": "a.b", "input": "$$ROOT", "value": 7 } } }];
        things.update_one(a.clone(), moved.to_vec()).await.unwrap();
        let cut = [doc! { "$set": { "arr": { "$slice": ["$arr", 2] } } }];
        things.update_one(a.clone(), cut.to_vec()).await.unwrap();
        let moved = [doc! { "$replaceWith": { "$mergeObjects": [
        { "$unsetField": { "field": "o", "input": "$$ROOT" } }, { "o": "$o" }] } }];
        things.update_one(a.clone(), moved.to_vec()).await.unwrap();
    }
    let now: Document = things.find_one(a.clone()).await.unwrap().unwrap();
    things.replace_one(a.clone(), doc! { "z": 1 }).await.unwrap();
    things.delete_one(a).await.unwrap();
    things.insert_one(doc! { "_id": "end" }).await.unwrap();
    // A stream that is opened at a time shows what happened at that time once more.
    let changes = stream.until(is("end")).await.unwrap().split_off(1);
    let forms: Vec<_> = changes.iter().map(|change| (change.operation, read_or_empty(&change.body))).collect();
    let replaced = (Operation::Replace, doc! { "_id": "a", "z": 1 });
    if set.version().starts_with('6') {
        use Operation::UpdateDiff;
        let expected = [
            (UpdateDiff, doc! { "d": { "0": false }, "sarr": { "a": true, "u1": 9 }, "so": { "u": { "k": 2 } } }),
            (UpdateDiff, doc! { "i": { "a.b": 7 } }),
            (UpdateDiff, doc! { "sarr": { "a": true, "l": 2 } }),
            (UpdateDiff, doc! { "i": { "o": { "k": 2 } } }),
            replaced,
        ];
        assert_eq!(forms[..5], expected);
        assert!(changes.iter().all(|change| change.collection.is_some()));
    } else if is_old {
        let modifiers = doc! { "$set": { "arr.1": 9, "o.k": 2 }, "$unset": { "0": true } };
        assert_eq!(forms[..2], [(Operation::UpdateModifiers, modifiers), replaced]);
    } else {
        // Looked for while the document was there: as it was then. Looked for too late: nothing, its delete follows.
        let gone = usize::try_from(stream.counts().gone).unwrap();
        assert_eq!(stream.counts().whole + stream.counts().gone, 4);
        let whole = &forms[..4 - gone];
        assert!(
            whole.iter().all(|(form, body)| *form == Operation::Replace && (*body == now || body.contains_key("z"))),
            "{whole:?}"
        );
        assert_eq!(forms[4 - gone], replaced);
    }
    assert_eq!(changes[changes.len() - 2].operation, Operation::Delete);
}

fn read_or_empty(body: &Bytes) -> Document {
    if body.is_empty() { Document::new() } else { read(body) }
}

#[tokio::test]
async fn ddl_is_shown_as_the_oplog_has_it() {
    let set = ReplicaSet::start(Options::guide_source()).await.unwrap();
    if !set.has("DDL in change streams", (6, 0)) {
        return;
    }
    let shop = set.client().database("shop");
    let mut stream = Stream::open(&set.uri_as_user(), None, 5000).await.unwrap();
    let commands = [
        doc! { "create": "cc", "capped": true, "size": 4096 },
        doc! { "create": "seen", "viewOn": "cc", "pipeline": [] },
        doc! { "create": "series", "timeseries": { "timeField": "t" } },
        doc! { "createIndexes": "cc", "indexes": [{ "key": { "q": 1 }, "name": "q", "sparse": true }, { "key": { "r": 1 }, "name": "r" }] },
        doc! { "collMod": "cc", "index": { "name": "q", "hidden": true } },
        doc! { "dropIndexes": "cc", "index": "*" },
        doc! { "collMod": "seen", "viewOn": "cc", "pipeline": [{ "$match": { "q": 1 } }] },
        doc! { "drop": "seen" },
    ];
    for command in commands {
        shop.run_command(command).await.unwrap();
    }
    let series = shop.collection::<Document>("series");
    series.insert_one(doc! { "t": bson::DateTime::now(), "v": 1 }).await.unwrap();
    let admin = set.client().database("admin");
    admin.run_command(doc! { "renameCollection": "shop.cc", "to": "shop.dd" }).await.unwrap();
    let rows: Vec<Document> = (0..3).map(|n| doc! { "_id": n }).collect();
    shop.collection("plain").insert_many(rows).await.unwrap();
    shop.run_command(doc! { "convertToCapped": "plain", "size": 4096 }).await.unwrap();
    set.client().database("shop").drop().await.unwrap();
    things(&set.client()).insert_one(doc! { "_id": "end" }).await.unwrap();

    let changes = stream.until(is("end")).await.unwrap();
    let name = |change: &Change| stream.name(change);
    let of = |wanted: &str| -> Vec<&Change> {
        changes.iter().filter(|change| change.ddl.as_ref().is_some_and(|ddl| ddl.name() == wanted)).collect()
    };
    let created: Vec<String> = of("create").into_iter().map(name).collect();
    for expected in ["shop.cc", "shop.seen", "shop.system.buckets.series", "shop.plain", "shop.things"] {
        assert!(created.iter().any(|name| name == expected), "{expected} is not in {created:?}");
    }
    assert_eq!((of("createIndexes").len(), of("dropIndexes").len(), of("collMod").len()), (2, 2, 1));
    assert_eq!((of("renameCollection").len(), of("dropDatabase").len()), (2, 1));
    assert_eq!(created.iter().filter(|name| *name == "shop.seen").count(), 2, "a changed view is made anew");
    assert!(of("drop (view)").into_iter().any(|change| name(change) == "shop.seen"));
    let buckets =
        changes.iter().filter(|c| c.operation == Operation::Insert && name(c) == "shop.system.buckets.series");
    assert_eq!(buckets.count(), 1, "what a time-series holds is shown");
    let copied = changes.iter().filter(|c| c.operation == Operation::Insert && name(c).contains("convertToCapped"));
    assert_eq!(copied.count(), 3, "what convertToCapped copies is shown");
}

#[tokio::test]
async fn a_position_never_stands_inside_a_transaction_and_nothing_is_lost_behind_it() {
    let set = ReplicaSet::start(Options::guide_source()).await.unwrap();
    let client = set.client();
    things(&client).insert_one(doc! { "_id": "first" }).await.unwrap();
    let mut stream = Stream::open(&set.uri_as_user(), None, 2).await.unwrap();
    let mut session = client.start_session().await.unwrap();
    for number in 0..2 {
        let majority = WriteConcern::builder().w(Acknowledgment::Majority).build();
        session.start_transaction().write_concern(majority).await.unwrap();
        for at in 0..5 {
            let id = format!("{number}.{at}");
            client
                .database("shop")
                .collection("things")
                .insert_one(doc! { "_id": id })
                .session(&mut session)
                .await
                .unwrap();
        }
        session.commit_transaction().await.unwrap();
    }
    things(&client).insert_one(doc! { "_id": "end" }).await.unwrap();
    let mut positions = vec![stream.at.clone()];
    let mut seen: Vec<Change> = Vec::new();
    while !seen.iter().any(is("end")) {
        let (mut changes, position) = stream.next().await.unwrap();
        seen.append(&mut changes);
        positions.push(position);
    }
    let ids = |changes: &[Change]| -> Vec<String> {
        changes.iter().map(|c| read(c.key_document()).get_str("_id").unwrap().to_owned()).collect()
    };
    let all = ids(&seen);
    positions.pop();
    positions.dedup();
    assert!(positions.len() >= 3, "{positions:?}");
    for position in positions {
        let mut again = Stream::open(&set.uri_as_user(), Some(position.clone()), 100).await.unwrap();
        let rest = ids(&again.until(is("end")).await.unwrap());
        assert!(all.ends_with(&rest), "{rest:?} after {position}");
        let cut = rest
            .first()
            .is_some_and(|id| id.ends_with(".1") || id.ends_with(".2") || id.ends_with(".3") || id.ends_with(".4"));
        assert!(!cut, "{position} stands in a transaction: {rest:?}");
    }
}

#[tokio::test]
async fn an_idle_source_moves_the_position() {
    let parameters = vec![("periodicNoopIntervalSecs".to_owned(), "1".to_owned())];
    let set = ReplicaSet::start(Options { parameters, ..Options::guide_source() }).await.unwrap();
    let mut stream = Stream::open(&set.uri_as_user(), None, 10).await.unwrap();
    let first = stream.next().await.unwrap().1.time();
    let moved = async {
        loop {
            let (changes, position) = stream.next().await.unwrap();
            assert_eq!(changes.len(), 0, "nothing was written");
            if position.time() > first && matches!(position, Position::Stream { .. }) {
                return position;
            }
        }
    };
    let position = tokio::time::timeout(PATIENCE, moved).await.expect("the position of an idle source stands still");
    things(&set.client()).insert_one(doc! { "_id": "end" }).await.unwrap();
    let mut again = Stream::open(&set.uri_as_user(), Some(position), 10).await.unwrap();
    assert!(again.until(is("end")).await.unwrap().iter().any(|change| change.operation == Operation::Insert));
}

#[tokio::test]
async fn a_lost_cursor_is_opened_again_behind_the_last_event() {
    let set = ReplicaSet::start(Options::guide_source()).await.unwrap();
    let mut stream = Stream::open(&set.uri_as_user(), None, 10).await.unwrap();
    things(&set.client()).insert_one(doc! { "_id": "first" }).await.unwrap();
    stream.until(is("first")).await.unwrap();
    kill_cursors(&set.client(), "admin", "$cmd.aggregate").await;
    let fault = loop {
        if let Err(fault) = stream.next().await {
            break fault;
        }
    };
    assert_eq!(fault.kind(), Kind::CursorLost, "{fault}");
    things(&set.client()).insert_one(doc! { "_id": "second" }).await.unwrap();
    let at = stream.decoder.reopen();
    stream.source.open(&at).await.unwrap();
    let seen = stream.until(is("second")).await.unwrap();
    assert!(!seen.iter().any(is("first")), "{seen:?}");
    // 1970 is the oldest entry there is.
    let oldest = oplogue_connectors::mongodb::oplog::date_start(0);
    let mut all = Stream::open(&set.uri_as_user(), Some(oldest), 100).await.unwrap();
    assert!(all.until(is("second")).await.unwrap().iter().any(is("first")));
}

#[tokio::test]
async fn a_position_outside_of_the_history_is_refused_with_the_window() {
    // What is behind the last checkpoint of its storage stays.
    let arguments = vec!["--syncdelay=1".to_owned()];
    let options = Options { oplog_mb: Some(1), arguments, ..Options::guide_source() };
    let set = ReplicaSet::start(options).await.unwrap();
    let mut stream = Stream::open(&set.uri_as_user(), None, 10).await.unwrap();
    things(&set.client()).insert_one(doc! { "_id": "first" }).await.unwrap();
    stream.until(is("first")).await.unwrap();
    let token = stream.at.clone();
    let time = token.time();
    let before = stream.source.window().await.unwrap();
    let full_at = std::time::Instant::now() + PATIENCE;
    let mut number = 0;
    // While the server cuts it off, it cannot always say where it begins.
    while stream.source.window().await.is_ok_and(|window| window.oldest.ts() <= time.ts()) {
        assert!(std::time::Instant::now() < full_at, "the oplog never drops its oldest entry");
        number += 1;
        let filler = doc! { "_id": number, "f": "f".repeat(200_000) };
        set.client().database("shop").collection("filler").insert_one(filler).await.unwrap();
    }
    let refused = |position: Position| async {
        let fault =
            Stream::open(&set.uri_as_user(), Some(position), 10).await.err().expect("the position was accepted");
        assert_eq!(fault.kind(), Kind::HistoryLost, "{fault}");
        fault.to_string()
    };
    for lost in [token, Position::Oplog(time), Position::Oplog(before.oldest)] {
        let text = refused(lost.clone()).await;
        assert!(text.contains("the oplog holds") && text.contains(&lost.to_string()), "{text}");
    }
    let ahead = OpTime::new(time.secs + 10_000, 1, -1);
    let text = refused(Position::Oplog(ahead)).await;
    assert!(text.contains("has not come that far"), "{text}");
}

#[tokio::test]
async fn an_event_that_no_reply_can_hold_stops_the_run_with_advice() {
    // Its key stands in the document, in the event and twice as long in the token: not even its parts fit.
    let set = ReplicaSet::start(Options { cache_gb: 1.0, ..Options::guide_source() }).await.unwrap();
    let mut stream = Stream::open(&set.uri_as_user(), None, 10).await.unwrap();
    let document = doc! { "_id": "i".repeat(1 << 20), "rest": "r".repeat(14 << 20) };
    things(&set.client()).insert_one(&document).await.unwrap();
    let fault = stream.until(is("end")).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::CannotApply, "{fault}");
    assert!(fault.to_string().contains("incr_sync.mongo_fetch_method = oplog"), "{fault}");
}

#[tokio::test]
async fn the_parts_of_a_large_event_are_put_together() {
    let set = ReplicaSet::start(Options { cache_gb: 1.0, ..Options::guide_source() }).await.unwrap();
    let mut stream = Stream::open(&set.uri_as_user(), None, 10).await.unwrap();
    stream.next().await.unwrap();
    if set.version() != "6.0.27" {
        println!("left out on MongoDB {}: it cannot split events", set.version());
        return;
    }
    let asked = pipeline_of_the_stream(&set).await;
    assert!(asked.contains("$changeStreamSplitLargeEvent"), "{asked}");
    // The events that this source asks for fit into a reply; with the whole document beside the diff they do not.
    let start = stream.source.newest().await.unwrap();
    things(&set.client()).insert_one(doc! { "_id": "a" }).await.unwrap();
    let large = doc! { "$set": { "one": "1".repeat(9 << 20) } };
    things(&set.client()).update_one(doc! { "_id": "a" }, large).await.unwrap();
    let mut decoder = StreamDecoder::new(stream.names.clone(), DecodeOptions::default(), Position::Oplog(start));
    let mut changes = Vec::new();
    let mut parts = 0;
    let (mut cursor, replies) = large_events(&set.client(), start).await;
    for reply in replies {
        parts += reply.len();
        changes.extend(decoder.decode(batch(&reply)).unwrap().into_iter().flat_map(|batch| batch.changes));
    }
    while !changes.iter().any(|change: &Change| change.operation == Operation::UpdateDiff) {
        let reply = more(&set.client(), &mut cursor).await;
        parts += reply.len();
        changes.extend(decoder.decode(batch(&reply)).unwrap().into_iter().flat_map(|batch| batch.changes));
    }
    assert!(parts > changes.len(), "{parts} documents for {} changes: nothing was split", changes.len());
    let update = changes.iter().find(|change| change.operation == Operation::UpdateDiff).unwrap();
    let expected = doc! { "i": { "one": "1".repeat(9 << 20) } };
    assert!(read(&update.body) == expected && read(&update.key) == doc! { "_id": "a" });
}

/// The pipeline of the cursor that is open on the cluster's changes.
async fn pipeline_of_the_stream(set: &ReplicaSet) -> String {
    let listing = doc! { "aggregate": 1, "cursor": {}, "pipeline": [
    { "$currentOp": { "allUsers": true, "idleCursors": true } },
    { "$match": { "cursor.originatingCommand.pipeline.$changeStream": { "$exists": true } } } ] };
    let listed = set.client().database("admin").run_command(listing).await.unwrap();
    listed.get_document("cursor").unwrap().get_array("firstBatch").unwrap().iter().map(ToString::to_string).collect()
}

/// Opens a stream that shows whole documents too.
async fn large_events(client: &Client, start: OpTime) -> (i64, Vec<Vec<Document>>) {
    let start = bson::Timestamp { time: start.secs, increment: start.inc };
    let stream = doc! { "allChangesForCluster": true, "startAtOperationTime": start, "fullDocument": "updateLookup",
    "showExpandedEvents": true, "showRawUpdateDescription": true };
    let pipeline = [doc! { "$changeStream": stream }, doc! { "$changeStreamSplitLargeEvent": {} }].to_vec();
    let command = doc! { "aggregate": 1, "pipeline": pipeline, "cursor": { "batchSize": 1 } };
    let reply = client.database("admin").run_command(command).await.unwrap();
    let cursor = reply.get_document("cursor").unwrap();
    (cursor.get_i64("id").unwrap(), vec![documents(cursor.get_array("firstBatch").unwrap())])
}

async fn more(client: &Client, cursor: &mut i64) -> Vec<Document> {
    let command = doc! { "getMore": *cursor, "collection": "$cmd.aggregate", "batchSize": 1 };
    let reply = client.database("admin").run_command(command).await.unwrap();
    documents(reply.get_document("cursor").unwrap().get_array("nextBatch").unwrap())
}

fn documents(array: &[bson::Bson]) -> Vec<Document> {
    array.iter().map(|event| event.as_document().unwrap().clone()).collect()
}

fn batch(events: &[Document]) -> RawBatch {
    let array: bson::RawArrayBuf = events.iter().map(|d| bson::RawDocumentBuf::try_from(d).unwrap()).collect();
    let token = events.last().map(|event| bson::RawDocumentBuf::try_from(event.get_document("_id").unwrap()).unwrap());
    let reached = token.map(|token| Position::of_token(Bytes::from(token.into_bytes())).unwrap());
    RawBatch { entries: Bytes::copy_from_slice(array.as_bytes()), reached, runs: Vec::new(), permit: Permit::none() }
}
