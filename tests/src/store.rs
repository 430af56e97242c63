//! The checkpoint store against a real replica set, with the rights of the guide's source user.
//!
//! Shown are the guards: a holder that lost its lease writes nothing, a position never moves back, an operator's word
//! fences a running instance, and a MongoShake document is taken over and left as it is. No job runs here.

use bson::{Document, doc};
use mongodb::options::{CollectionOptions, WriteConcern};
use mongodb::{Client, Collection};
use oplogue_connectors::mongodb::client::{ConnectOptions, connect};
use oplogue_connectors::mongodb::store::{MongoStore, StoreOptions, StoredKind};
use oplogue_engine::checkpoint::{Checkpoint, CheckpointStore as _, Found, Identity, Stage, ViewPair};
use oplogue_engine::error::{Kind, Side};
use oplogue_engine::model::{Namespace, OpTime, Position};
use oplogue_tests::servers::{Options, ReplicaSet};

const SECS: u32 = 1_700_000_000;

/// Where checkpoints are. A store reads what a majority has, which a write of an older server does not wait for by itself.
fn checkpoints(client: &Client) -> Collection<Document> {
    let options = CollectionOptions::builder().write_concern(WriteConcern::majority()).build();
    client.database("mongoshake").collection_with_options("ckpt_default", options)
}

fn store(client: &Client, holder: &str) -> MongoStore {
    store_of("copy-shop", client, holder)
}

fn store_of(job: &str, client: &Client, holder: &str) -> MongoStore {
    let options = StoreOptions {
        database: "mongoshake".to_owned(),
        collection: "ckpt_default".to_owned(),
        job: job.to_owned(),
        replica_set: "source".to_owned(),
        holder: holder.to_owned(),
    };
    MongoStore::new(client, options)
}

fn at(secs: u32, inc: u32) -> Checkpoint {
    Checkpoint {
        stage: Stage::Incremental,
        position: Position::Oplog(OpTime::new(secs, inc, 2)),
        plugins: Vec::new(),
        configuration: "c0ffee".to_owned(),
    }
}

async fn guides_client(set: &ReplicaSet) -> Client {
    connect(Side::Store, &set.uri_as_user(), &ConnectOptions::default()).await.unwrap()
}

#[tokio::test]
async fn only_the_holder_of_the_lease_writes_and_only_forwards() {
    let set = ReplicaSet::start(Options::guide_source()).await.unwrap();
    let client = guides_client(&set).await;
    let first = store(&client, "host-a:1");
    assert_eq!(first.save(&at(SECS, 1)).await.unwrap_err().kind(), Kind::Bug, "no lease was taken");
    assert_eq!(first.acquire().await.unwrap(), Found::Nothing);
    first.save(&at(SECS, 1)).await.unwrap();
    first.save(&at(SECS, 5)).await.unwrap();
    first.save(&at(SECS, 5)).await.unwrap();
    let back = first.save(&at(SECS, 4)).await.unwrap_err();
    assert_eq!(back.kind(), Kind::Bug, "{back}");

    let second = store(&client, "host-b:2");
    assert_eq!(second.acquire().await.unwrap(), Found::Ours(at(SECS, 5)));
    let late = first.save(&at(SECS, 9)).await.unwrap_err();
    assert_eq!(late.kind(), Kind::Fenced, "{late}");
    assert!(late.to_string().contains("host-b:2"), "{late}");
    assert_eq!(first.record_identity(pair(1, 2)).await.unwrap_err().kind(), Kind::Fenced);
    assert_eq!(first.forget_identity([1; 16]).await.unwrap_err().kind(), Kind::Fenced);
    assert_eq!(first.record_view(&view("a.v", "b.v")).await.unwrap_err().kind(), Kind::Fenced);
    assert_eq!(first.forget_view(&Namespace::new("a.v")).await.unwrap_err().kind(), Kind::Fenced);
    second.save(&at(SECS + 1, 1)).await.unwrap();
    assert_eq!(store(&client, "c").acquire().await.unwrap(), Found::Ours(at(SECS + 1, 1)));
}

fn pair(source: u8, target: u8) -> Identity {
    Identity { source: [source; 16], target: [target; 16], copied: None }
}

#[tokio::test]
async fn identities_are_kept_by_job() {
    let set = ReplicaSet::start(Options::guide_source()).await.unwrap();
    let client = guides_client(&set).await;
    let held = store(&client, "a");
    held.acquire().await.unwrap();
    held.record_identity(pair(1, 2)).await.unwrap();
    held.record_identity(pair(3, 4)).await.unwrap();
    let copied = Some(OpTime::new(SECS, 7, -1));
    held.record_identity(Identity { copied, ..pair(1, 2) }).await.unwrap();
    held.record_identity(pair(1, 5)).await.unwrap();
    held.forget_identity([3; 16]).await.unwrap();
    held.forget_identity([9; 16]).await.unwrap();
    assert_eq!(held.identities().await.unwrap(), [Identity { copied, ..pair(1, 5) }], "the time of a copy stays");
    let next = store(&client, "b");
    next.acquire().await.unwrap();
    next.record_identity(pair(1, 6)).await.unwrap();
    assert_eq!(next.identities().await.unwrap(), [Identity { copied, ..pair(1, 6) }]);
}

fn view(source: &str, target: &str) -> ViewPair {
    ViewPair { source: Namespace::new(source), target: Namespace::new(target) }
}

#[tokio::test]
async fn views_are_kept_by_job() {
    let set = ReplicaSet::start(Options::guide_source()).await.unwrap();
    let client = guides_client(&set).await;
    let held = store(&client, "a");
    held.acquire().await.unwrap();
    for (source, target) in [("a.v", "b.v"), ("a.w", "b.w"), ("a.v", "b.x"), ("a.dotted.name", "a.dotted.name")] {
        held.record_view(&view(source, target)).await.unwrap();
    }
    held.record_identity(pair(1, 2)).await.unwrap();
    let other = store_of("other", &client, "a");
    other.acquire().await.unwrap();
    other.record_view(&view("a.v", "c.v")).await.unwrap();
    held.forget_view(&Namespace::new("a.w")).await.unwrap();
    held.forget_view(&Namespace::new("never.met")).await.unwrap();
    let mut kept = store(&client, "b").views().await.unwrap();
    kept.sort_by(|a, b| a.source.cmp(&b.source));
    assert_eq!(kept, [view("a.dotted.name", "a.dotted.name"), view("a.v", "b.x")]);
    assert_eq!(held.identities().await.unwrap(), [pair(1, 2)]);
    assert_eq!(other.views().await.unwrap(), [view("a.v", "c.v")]);
    assert_eq!(held.show().await.unwrap().len(), 2, "what stands beside a checkpoint is none");
}

#[tokio::test]
async fn a_mongoshake_checkpoint_is_taken_over_and_left_alone() {
    let set = ReplicaSet::start(Options::guide_source()).await.unwrap();
    let client = guides_client(&set).await;
    let documents = checkpoints(&client);
    let shake = doc! {
        "name": "source",
        "ckpt": (i64::from(SECS) << 32) | 7,
        "version": 2,
        "fetch_method": "oplog",
        "oplog_disk_queue": "",
        "oplog_disk_queue_apply_finish_ts": 1_i64,
    };
    documents.insert_one(&shake).await.unwrap();
    let held = store(&client, "a");
    let expected = Position::Oplog(OpTime::new(SECS, 7, -1));
    assert_eq!(held.acquire().await.unwrap(), Found::MongoShake(expected.clone()));
    held.save(&at(SECS + 1, 1)).await.unwrap();
    assert_eq!(held.acquire().await.unwrap(), Found::Ours(at(SECS + 1, 1)));

    let mut left = documents.find_one(doc! { "format": { "$exists": false } }).await.unwrap().unwrap();
    left.remove("_id");
    assert_eq!(left, shake);
    let shown = held.show().await.unwrap();
    let kinds: Vec<_> = shown.iter().map(|stored| (stored.kind, stored.position.clone())).collect();
    assert!(kinds.contains(&(StoredKind::MongoShake, Some(expected))), "{kinds:?}");
    assert!(kinds.contains(&(StoredKind::Ours, Some(at(SECS + 1, 1).position))), "{kinds:?}");
    let own = documents.find_one(doc! { "_id": "copy-shop/source" }).await.unwrap().unwrap();
    assert_eq!(own.get_i64("ckpt").unwrap(), (i64::from(SECS + 1) << 32) | 1, "a way back to MongoShake");
}

#[tokio::test]
async fn an_operators_word_fences_a_running_instance() {
    let set = ReplicaSet::start(Options::guide_source()).await.unwrap();
    let client = guides_client(&set).await;
    let documents = checkpoints(&client);
    documents.insert_one(doc! { "name": "source", "ckpt": (i64::from(SECS) << 32) | 7 }).await.unwrap();
    let running = store(&client, "running");
    running.acquire().await.unwrap();
    running.save(&at(SECS, 50)).await.unwrap();
    running.record_identity(pair(1, 2)).await.unwrap();
    running.record_view(&view("a.v", "b.v")).await.unwrap();

    let operator = store(&client, "operator");
    operator.set(&Position::Oplog(OpTime::new(SECS, 3, -1))).await.unwrap();
    assert_eq!(running.save(&at(SECS, 60)).await.unwrap_err().kind(), Kind::Fenced);
    let found = store(&client, "next").acquire().await.unwrap();
    let Found::Ours(found) = found else { panic!("{found:?}") };
    assert_eq!(found.position, Position::Oplog(OpTime::new(SECS, 3, -1)), "backwards");

    // What a copy has left to the mark is still to be done, and half a copy is not to be followed.
    let next = store(&client, "next");
    next.acquire().await.unwrap();
    for (stage, kept) in [(Stage::CatchUp, true), (Stage::FullSync, false)] {
        next.save(&Checkpoint { stage, ..at(SECS, 80) }).await.unwrap();
        let set = operator.set(&Position::Oplog(OpTime::new(SECS, 4, -1))).await;
        assert_eq!(set.is_ok(), kept, "{set:?}");
        let stored = next.save(&Checkpoint { stage, ..at(SECS, 80) }).await;
        assert_eq!(stored.is_err(), kept, "a command that is refused fences nobody: {stored:?}");
        let Found::Ours(found) = next.acquire().await.unwrap() else { panic!("{stage:?}") };
        assert_eq!((found.stage, found.position.time().inc), (stage, if kept { 4 } else { 80 }));
    }

    // What cannot be read is said anew, or forgotten; nobody is left with a document that no command takes.
    documents.update_one(doc! { "stage": { "$exists": true } }, doc! { "$set": { "position": "?" } }).await.unwrap();
    assert_eq!(next.acquire().await.unwrap_err().kind(), Kind::Malformed);
    documents.update_one(doc! { "position": "?" }, doc! { "$set": { "stage": "catch-up" } }).await.unwrap();
    operator.set(&Position::Oplog(OpTime::new(SECS, 5, -1))).await.unwrap();
    let Found::Ours(found) = next.acquire().await.unwrap() else { panic!("nothing was stored") };
    assert_eq!((found.stage, found.position.time().inc), (Stage::CatchUp, 5));
    documents.update_one(doc! { "stage": "catch-up" }, doc! { "$set": { "stage": "?" } }).await.unwrap();
    let refused = operator.set(&Position::Oplog(OpTime::new(SECS, 6, -1))).await.unwrap_err();
    assert!(refused.to_string().contains("correct it"), "{refused}");

    operator.reset().await.unwrap();
    let next = store(&client, "next");
    assert_eq!(next.acquire().await.unwrap(), Found::Nothing, "not MongoShake's either");
    assert!(next.identities().await.unwrap().is_empty());
    assert!(next.views().await.unwrap().is_empty());
    assert_eq!(running.save(&at(SECS, 70)).await.unwrap_err().kind(), Kind::Fenced, "the epoch went on");
    next.save(&at(SECS, 1)).await.unwrap();
}

#[tokio::test]
async fn a_missing_privilege_is_named() {
    let mut options = Options::guide_source();
    options.users[0].roles.retain(|(_, database)| database != "mongoshake");
    let set = ReplicaSet::start(options).await.unwrap();
    let fault = store(&guides_client(&set).await, "a").acquire().await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Unauthorized, "{fault}");
    assert!(fault.to_string().contains("needs `readWrite` on `mongoshake`"), "{fault}");
    assert!(!fault.to_string().contains("source-password"), "{fault}");
}
