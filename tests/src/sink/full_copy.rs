//! A full copy while the source renames and re-creates what is being copied, and the replay after it.
//!
//! The copy, the sink and the decoder are the real ones; the reader carries out commands on the source at the moment
//! at which the copy opens its first cursor, so that the races are not left to chance. The judge is the comparison of
//! both servers after everything since the noted position was replayed in overlap.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bson::{Document, doc};
use bytes::Bytes;
use mongodb::Client;
use oplogue_connectors::mongodb::client::ConnectMode;
use oplogue_connectors::mongodb::copy::{CopyOptions, MongoCopyTarget};
use oplogue_connectors::mongodb::sink::SinkOptions;
use oplogue_connectors::mongodb::snapshot::{SnapshotOptions, SnapshotSource};
use oplogue_connectors::mongodb::topology;
use oplogue_engine::budget::Budget;
use oplogue_engine::clock::Clock;
use oplogue_engine::error::{Kind, Result, Side};
use oplogue_engine::full_sync::{CopySummary, FullSync, FullSyncOptions, IndexTiming, Plan};
use oplogue_engine::metrics::{Metrics, Status};
use oplogue_engine::model::{Change, Namespace, OpTime};
use oplogue_engine::plugin::EmptyChain;
use oplogue_engine::source::{CollectionPlan, Partition, SnapshotCursor, SnapshotReader};
use tokio_util::sync::CancellationToken;

use super::ddl::{apply, assert_equal, changes, insert, rename, run, start};
use super::support::{Bench, now};

const OPTIONS: CopyOptions =
    CopyOptions { collection_exist_drop: true, resumed: false, documents_max: 128, majority: false };

const RESUMED: CopyOptions = CopyOptions { collection_exist_drop: false, resumed: true, ..OPTIONS };

const CATCH_UP: SinkOptions = SinkOptions {
    insert_on_dup_update: false,
    missing_document: oplogue_connectors::mongodb::sink::MissingDocument::Refetch,
    ddl_ignored: false,
    majority: false,
    after_copy: true,
    copied_at: None,
    ddl_refused: oplogue_connectors::mongodb::sink::DdlRefused::Stop,
    immutable_shard_key_fallback: false,
};

/// A reader that lets the source do something before the first cursor is opened, and something before the first
/// question after it where a collection is.
struct Meddling {
    inner: SnapshotSource,
    client: Client,
    meanwhile: Mutex<Vec<Document>>,
    afterwards: Mutex<Vec<Document>>,
}

impl Meddling {
    async fn run(&self, commands: &Mutex<Vec<Document>>) {
        let commands = std::mem::take(&mut *commands.lock().unwrap());
        for command in commands {
            let of_server = ["renameCollection", "configureFailPoint"].iter().any(|name| command.contains_key(name));
            let database = self.client.database(if of_server { "admin" } else { "src" });
            database.run_command(command).await.unwrap();
        }
    }
}

#[async_trait]
impl SnapshotReader for Meddling {
    async fn collections(&self) -> Result<Vec<CollectionPlan>> {
        let mut plans = self.inner.collections().await?;
        plans.retain(|plan| plan.namespace.database() == "src");
        Ok(plans)
    }

    async fn partition(&self, plan: &CollectionPlan, partition_bytes: u64) -> Result<Vec<Partition>> {
        self.inner.partition(plan, partition_bytes).await
    }

    async fn place(&self, plan: &CollectionPlan) -> Result<Option<Namespace>> {
        if self.meanwhile.lock().unwrap().is_empty() {
            self.run(&self.afterwards).await;
        }
        self.inner.place(plan).await
    }

    async fn open(&self, partition: &Partition, after: OpTime) -> Result<Box<dyn SnapshotCursor>> {
        self.run(&self.meanwhile).await;
        self.inner.open(partition, after).await
    }

    async fn indexes(&self, namespace: &Namespace) -> Result<Vec<Bytes>> {
        self.inner.indexes(namespace).await
    }
}

async fn copy(bench: &Bench, options: CopyOptions, after: OpTime, meanwhile: &[Document]) -> Result<CopySummary> {
    copy_then(bench, options, after, meanwhile, &[]).await
}

async fn copy_then(
    bench: &Bench,
    options: CopyOptions,
    after: OpTime,
    meanwhile: &[Document],
    afterwards: &[Document],
) -> Result<CopySummary> {
    let budget = Budget::new(64 << 20);
    let inner = SnapshotSource::new(bench.source.clone(), SnapshotOptions::default(), budget);
    let (meanwhile, afterwards) = (Mutex::new(meanwhile.to_vec()), Mutex::new(afterwards.to_vec()));
    let reader = Meddling { inner, client: bench.source.clone(), meanwhile, afterwards };
    // As the job does: DDL before this is in what is listed.
    let criteria = ConnectMode::Primary.criteria();
    let newest = topology::last_write(Side::Source, &bench.source, &criteria).await.unwrap().majority;
    bench.sink.catalogue_read_at(newest).await.unwrap();
    let copy = FullSync {
        reader: Arc::new(reader),
        target: Arc::new(MongoCopyTarget::new(Arc::clone(&bench.sink), options)),
        chain: Arc::new(EmptyChain),
        namespaces: Arc::clone(&bench.names),
        metrics: Metrics::new(),
        status: Status::new("test", Clock::System),
        options: FullSyncOptions {
            readers: 1,
            inserts_in_flight: 2,
            partition_bytes: 1 << 20,
            indexes: IndexTiming::AfterData,
        },
        after,
    };
    let listed = copy.reader.collections().await?;
    let plan = Plan::make(listed, &copy.chain, &copy.namespaces)?;
    Ok(copy.run_plan(plan, &CancellationToken::new()).await?.unwrap())
}

fn index(collection: &str, field: &str) -> Document {
    doc! { "createIndexes": collection, "indexes": [{ "key": { field: 1 }, "name": field }] }
}

/// Replays everything since `since` into what a copy left behind, as a run that catches up does.
async fn catch_up(
    bench: &Bench,
    since: bson::Timestamp,
    options: SinkOptions,
    keep: impl Fn(&Change) -> bool,
) -> Bench {
    let store = Arc::clone(&bench.store);
    let later = Bench::over(bench.source.clone(), bench.client.clone(), options, store);
    let all: Vec<Change> = changes(&later, since).await.into_iter().filter(keep).collect();
    apply(&later, &all, true).await;
    later
}

fn op_time(at: bson::Timestamp) -> OpTime {
    OpTime::new(at.time, at.increment, -1)
}

#[tokio::test]
async fn a_collection_that_is_renamed_in_the_copy_keeps_its_documents_and_indexes() {
    for successor in [vec![], vec![insert("events", 100..105), index("events", "new")]] {
        let (_source, _target, bench) = start().await;
        run(&bench, &[insert("events", 0..50), index("events", "old"), insert("other", 0..5)]).await;
        let since = now(&bench.source).await;
        let mut meanwhile = vec![rename("events", "events_05", false), insert("events_05", 60..65)];
        meanwhile.extend(successor.clone());
        let summary = copy(&bench, OPTIONS, op_time(since), &meanwhile).await.unwrap();
        assert!(summary.documents >= 60);
        catch_up(&bench, since, CATCH_UP, |_| true).await;
        assert_equal(&bench, &format!("{} commands of a successor", successor.len())).await;
    }
}

/// Read by its name alone, the copy would find the other one's documents, and at the end every name in its place.
#[tokio::test]
async fn a_collection_that_is_away_while_it_is_read_and_back_afterwards_is_read_again() {
    for taken in [true, false] {
        let (source, _target, bench) = start().await;
        source.take_no_identities().await.unwrap();
        run(&bench, &[insert("events", 0..50), insert("other", 100..105)]).await;
        let since = now(&bench.source).await;
        let mut away = vec![rename("events", "tmp", false)];
        let mut back = vec![rename("tmp", "events", false)];
        if taken {
            away.push(rename("other", "events", false));
            back.insert(0, rename("events", "other", false));
        }
        copy_then(&bench, OPTIONS, op_time(since), &away, &back).await.unwrap();
        catch_up(&bench, since, CATCH_UP, |_| true).await;
        assert_equal(&bench, if taken { "another one had its name" } else { "nobody had its name" }).await;
    }
}

#[tokio::test]
async fn a_collection_that_is_dropped_in_the_copy_does_not_stop_it() {
    let (_source, _target, bench) = start().await;
    run(&bench, &[insert("x", 0..50), insert("y", 0..5)]).await;
    let since = now(&bench.source).await;
    copy(&bench, OPTIONS, op_time(since), &[doc! { "drop": "x" }, insert("x", 20..30)]).await.unwrap();
    catch_up(&bench, since, CATCH_UP, |_| true).await;
    assert_equal(&bench, "after the replay").await;
}

/// A fault that passes costs a pause and not the copy; one that does not ends it.
#[tokio::test]
async fn a_passing_fault_of_the_source_does_not_end_the_copy() {
    let (_source, _target, bench) = start().await;
    run(&bench, &[insert("x", 0..50)]).await;
    let since = now(&bench.source).await;
    let failing = |mode: bson::Bson| {
        doc! { "configureFailPoint": "failCommand", "mode": mode, "data": { "failCommands": ["find"], "errorCode": 91 } }
    };
    copy(&bench, OPTIONS, op_time(since), &[failing(doc! { "times": 3 }.into())]).await.unwrap();
    assert_equal(&bench, "after the copy").await;
    let again = bench.restarted();
    let failed = copy(&again, RESUMED, op_time(since), &[failing("alwaysOn".into())]).await.unwrap_err();
    assert_eq!(failed.kind(), Kind::FailedOver);
}

/// A copy was killed; the source renames and swaps before the next one begins.
#[tokio::test]
async fn a_resumed_copy_makes_anew_what_holds_another_collection() {
    let (_source, _target, bench) = start().await;
    run(&bench, &[insert("events", 0..50), insert("a", 0..5), insert("b", 10..15)]).await;
    let since = now(&bench.source).await;
    copy(&bench, OPTIONS, op_time(since), &[]).await.unwrap();
    run(&bench, &[rename("events", "events_05", false), insert("events", 100..105)]).await;
    run(&bench, &[rename("a", "tmp", false), rename("b", "a", false), rename("tmp", "b", false)]).await;
    // Made, and killed before it was recorded.
    bench.client.database("src").create_collection("late").await.unwrap();
    run(&bench, &[insert("late", 0..3)]).await;
    let again = bench.restarted();
    copy(&again, RESUMED, op_time(since), &[]).await.unwrap();
    assert_equal(&again, "after the second copy").await;
    catch_up(&again, since, CATCH_UP, |_| true).await;
    assert_equal(&again, "after the replay").await;
}

#[tokio::test]
async fn a_resumed_copy_never_drops_the_documents_of_somebody_else() {
    let (_source, _target, bench) = start().await;
    run(&bench, &[insert("x", 0..3)]).await;
    bench.client.database("src").collection("x").insert_one(doc! { "_id": "theirs" }).await.unwrap();
    let since = now(&bench.source).await;
    let refused = copy(&bench, RESUMED, op_time(since), &[]).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Misconfigured);
    assert_eq!(bench.documents("src.x").await.len(), 1);
}

#[tokio::test]
async fn the_copy_waits_for_collections_without_documents_too() {
    let (_source, _target, bench) = start().await;
    run(&bench, &[doc! { "create": "empty" }]).await;
    let since = now(&bench.source).await;
    let before = op_time(now(&bench.client).await);
    let made = copy(&bench, OPTIONS, op_time(since), &[]).await.unwrap().target_time.unwrap();
    assert!(made.ts() > before.ts());
    let again = bench.restarted();
    let kept = copy(&again, RESUMED, op_time(since), &[]).await.unwrap().target_time.unwrap();
    assert!(kept.ts() >= made.ts(), "an earlier run's collection may not be in the majority yet");
}

/// The copy saw only the second collection of the name; what is replayed of the first one stays out of it.
#[tokio::test]
async fn writes_of_a_predecessor_stay_out_of_the_copied_collection() {
    for ddl_ignored in [false, true] {
        let (_source, _target, bench) = start().await;
        run(&bench, &[insert("x", 0..2)]).await;
        let since = now(&bench.source).await;
        run(&bench, &[insert("x", 2..4), doc! { "drop": "x" }, doc! { "create": "x" }, insert("x", 10..12)]).await;
        copy(&bench, OPTIONS, op_time(since), &[]).await.unwrap();
        let options = SinkOptions { ddl_ignored, ..CATCH_UP };
        let later = catch_up(&bench, since, options, |change| !ddl_ignored || change.ddl.is_none()).await;
        assert_equal(&later, &format!("DDL ignored: {ddl_ignored}")).await;
        assert_eq!(later.sink.counts().superseded, 2);
    }
}

/// Without DDL a collection that is made anew after the copy goes on under the old one's name.
#[tokio::test]
async fn writes_of_a_successor_reach_the_copied_collection_when_ddl_is_ignored() {
    let (_source, _target, bench) = start().await;
    run(&bench, &[insert("x", 0..2)]).await;
    let since = now(&bench.source).await;
    copy(&bench, OPTIONS, op_time(since), &[]).await.unwrap();
    run(&bench, &[doc! { "drop": "x" }, doc! { "create": "x" }, insert("x", 10..12)]).await;
    let options = SinkOptions { ddl_ignored: true, ..CATCH_UP };
    let later = catch_up(&bench, since, options, |change| change.ddl.is_none()).await;
    assert_eq!(later.documents("src.x").await.len(), 4);
}

fn expiring(collection: &str, seconds: i32) -> Document {
    doc! { "createIndexes": collection, "indexes": [{ "key": { "at": 1 }, "name": "ttl", "expireAfterSeconds": seconds }] }
}

#[tokio::test]
async fn an_index_that_lets_documents_expire_waits_for_the_mark() {
    let (_source, _target, bench) = start().await;
    run(&bench, &[insert("x", 0..3), expiring("x", 1_000_000)]).await;
    let since = now(&bench.source).await;
    let summary = copy(&bench, OPTIONS, op_time(since), &[]).await.unwrap();
    assert_eq!(summary.unique_indexes_waiting, 1);
    let names = bench.client.database("src").collection::<Document>("x").list_index_names().await.unwrap();
    assert_eq!(names, ["_id_"]);
}

/// What waits for the mark goes where its collection goes.
#[tokio::test]
async fn a_waiting_index_is_dropped_renamed_and_changed_with_its_collection() {
    let (_source, _target, bench) = start().await;
    let since = now(&bench.source).await;
    let change = doc! { "collMod": "z", "index": { "name": "ttl", "expireAfterSeconds": 2_000_000 } };
    for name in ["x", "y", "z"] {
        run(&bench, &[doc! { "create": name }, expiring(name, 1_000_000)]).await;
    }
    run(&bench, &[doc! { "drop": "x" }, insert("x", 0..2), rename("y", "y2", false), change]).await;
    let later = catch_up(&bench, since, CATCH_UP, |_| true).await;
    let names = bench.client.database("src").collection::<Document>("y2").list_index_names().await.unwrap();
    assert_eq!(names, ["_id_"], "it waits");
    later.sink.build_postponed_indexes().await.unwrap();
    assert_equal(&later, "after the mark").await;
}

/// The target's own clock removed the document before the update came that prolongs its life.
#[tokio::test]
async fn an_update_of_an_expired_document_reads_it_from_the_source() {
    for expires in [true, false] {
        let (_source, _target, bench) = start().await;
        let create = if expires { expiring("x", 1_000_000) } else { index("x", "plain") };
        run(&bench, &[insert("x", 0..3), create]).await;
        let since = now(&bench.source).await;
        copy(&bench, OPTIONS, op_time(since), &[]).await.unwrap();
        let things = bench.client.database("src").collection::<Document>("x");
        if expires {
            let options = mongodb::options::IndexOptions::builder()
                .name("ttl".to_owned())
                .expire_after(std::time::Duration::from_secs(1_000_000))
                .build();
            let index = mongodb::IndexModel::builder().keys(doc! { "at": 1 }).options(options).build();
            things.create_index(index).await.unwrap();
        }
        let prolong = doc! { "q": { "_id": 1 }, "u": { "$set": { "at": bson::DateTime::now() } } };
        run(&bench, &[doc! { "update": "x", "updates": [prolong] }]).await;
        things.delete_one(doc! { "_id": 1 }).await.unwrap();
        let later = catch_up(&bench, since, CATCH_UP, |_| true).await;
        assert_eq!(later.sink.counts().refetched, u64::from(expires));
        assert_eq!(later.documents("src.x").await.len(), if expires { 3 } else { 2 });
        if expires {
            assert_equal(&later, "after the replay").await;
        }
    }
}
