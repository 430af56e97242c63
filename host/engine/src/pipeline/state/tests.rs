//! Event by event: what the machine does where a barrier, the overlap mark and parked writes meet.
//!
//! The simulation finds such places by chance; the tests here hold each of them by name, so that taking a rule away fails
//! one test that says which. Events are fed in a fixed order and every command is answered by hand. Nothing is random.

use std::sync::atomic::{AtomicBool, Ordering};

use bson::rawdoc;
use bytes::Bytes;

use super::*;
use crate::budget::Budget;
use crate::model::ddl::Routed;
use crate::model::{Ddl, Operation};

/// Entries up to 1.3 are in overlap.
const MARK: OpTime = OpTime { secs: 1, inc: 3, term: 1 };

struct Bench {
    core: Core,
    seq: u64,
    namespace: NamespaceId,
    other: NamespaceId,
}

impl Bench {
    fn new() -> Self {
        let namespaces = Namespaces::shared();
        let (namespace, other) = (namespaces.intern("db.a"), namespaces.intern("db.b"));
        let options = CoreOptions {
            lanes: 2,
            overlap_until: MARK,
            single_lane: HashSet::new(),
            single_lane_collections: HashSet::new(),
            auto: false,
        };
        Self { core: Core::new(namespaces, options), seq: 0, namespace, other }
    }

    fn feed(&mut self, change: Change, permit: Permit) -> Vec<Command> {
        let last = Position::Oplog(change.time);
        let batch = ChangeBatch { seq: self.seq, changes: vec![change], last, atomic: false, permit: Arc::new(permit) };
        self.seq += 1;
        self.core.batch(batch).unwrap();
        self.core.take_commands()
    }

    fn write(&mut self, inc: u32, namespace: NamespaceId, id: i32) -> Vec<Command> {
        let body = rawdoc! { "_id": id, "at": inc as i32 };
        self.feed(change(inc, namespace, Bytes::from(body.into_bytes())), Permit::none())
    }

    fn create_indexes(&mut self, inc: u32) -> Vec<Command> {
        let mut ddl = change(inc, self.namespace, Bytes::new());
        ddl.operation = Operation::Ddl;
        ddl.ddl = Some(Box::new(Ddl::CreateIndexes { namespace: Routed::same(self.namespace), specs: Vec::new() }));
        self.feed(ddl, Permit::none())
    }

    /// All flushes of `commands` come back; `unique` are the ids that a unique index refuses.
    fn answer(&mut self, commands: Vec<Command>, unique: &[i32]) -> Vec<Command> {
        for command in commands {
            let Command::Flush { lane, writes } = command else { panic!("{command:?}") };
            let colliding = writes.iter().enumerate().filter(|(_, write)| unique.contains(&id(write)));
            let refused = colliding.map(|(at, _)| (at, collision())).collect();
            let report = FlushReport { refused, operation_time: None };
            self.core.flushed(lane, writes, &report).unwrap();
        }
        self.core.take_commands()
    }
}

fn collision() -> Refusal {
    Refusal::UniqueKey { index: "u".to_owned(), message: "E11000".to_owned() }
}

fn id(write: &Write) -> i32 {
    bson::RawDocument::from_bytes(&write.key).unwrap().get_i32("_id").unwrap()
}

fn change(inc: u32, namespace: NamespaceId, body: Bytes) -> Change {
    Change {
        operation: Operation::Replace,
        source: namespace,
        target: namespace,
        key: Bytes::new(),
        body,
        time: OpTime::new(1, inc, 1),
        wall_ms: 0,
        collection: None,
        origin: None,
        not_before_ms: 0,
        moved: false,
        creates: false,
        ddl: None,
    }
}

/// The ids of one flush, and whether they are written as in overlap.
fn flush(commands: &[Command]) -> (Vec<i32>, bool) {
    match commands {
        [Command::Flush { writes, .. }] => (writes.iter().map(id).collect(), writes.iter().all(|write| write.overlap)),
        other => panic!("not one flush: {other:?}"),
    }
}

fn mark(commands: &[Command]) -> FenceId {
    match commands {
        [Command::Mark { fence }] => *fence,
        other => panic!("not the mark: {other:?}"),
    }
}

/// An index is being built, a change of its collection waits for it, and the mark comes up behind both.
fn held_at_the_mark() -> (Bench, FenceId) {
    let mut bench = Bench::new();
    let commands = bench.create_indexes(1);
    let [Command::Ddl { fence: index, .. }] = commands.as_slice() else { panic!("{commands:?}") };
    let (namespace, other) = (bench.namespace, bench.other);
    assert!(bench.write(2, namespace, 2).is_empty(), "it waits for the index");
    assert!(bench.write(4, other, 4).is_empty(), "it waits for the mark, which waits for the index");
    (bench, *index)
}

#[test]
fn a_change_held_by_an_index_passes_the_mark_that_came_up_meanwhile() {
    let (mut bench, index) = held_at_the_mark();
    bench.core.fence_done(index).unwrap();
    let commands = bench.core.take_commands();
    assert_eq!(flush(&commands), (vec![2], true), "in overlap, before the mark");
    let commands = bench.answer(commands, &[]);
    let mark = mark(&commands);
    assert_eq!(bench.core.take_watermark(), Some(Position::Oplog(OpTime::new(1, 2, 1))));
    bench.core.fence_done(mark).unwrap();
    let commands = bench.core.take_commands();
    assert_eq!(flush(&commands), (vec![4], false), "after it");
    bench.answer(commands, &[]);
    assert!(bench.core.is_idle());
}

#[test]
fn a_change_held_by_an_index_that_is_put_off_passes_the_mark_too() {
    let (mut bench, index) = held_at_the_mark();
    bench.core.ddl_postponed(index).unwrap();
    let commands = bench.core.take_commands();
    assert_eq!(flush(&commands), (vec![2], true));
    let commands = bench.answer(commands, &[]);
    let mark = mark(&commands);
    assert_eq!(bench.core.take_watermark(), None, "the index of 1.1 is not built yet");
    bench.core.fence_done(mark).unwrap();
    assert_eq!(bench.core.take_watermark(), Some(Position::Oplog(OpTime::new(1, 2, 1))));
}

#[test]
fn a_change_held_while_parked_writes_are_settled_passes_the_mark() {
    let mut bench = Bench::new();
    let (namespace, other) = (bench.namespace, bench.other);
    let commands = bench.write(1, namespace, 1);
    assert!(bench.answer(commands, &[1]).is_empty(), "parked: in overlap it waits");
    let commands = bench.create_indexes(2);
    let [Command::Settle { fence: index, writes, .. }] = commands.as_slice() else { panic!("{commands:?}") };
    assert_eq!(writes.len(), 1);
    assert!(bench.write(3, namespace, 3).is_empty(), "it waits for the index");
    assert!(bench.write(4, other, 4).is_empty());
    // It collides even so, goes back to the parked ones, and the index goes on.
    let report = FlushReport { refused: vec![(0, collision())], operation_time: None };
    bench.core.settled(*index, &report).unwrap();
    let commands = bench.core.take_commands();
    let [Command::Ddl { fence, .. }] = commands.as_slice() else { panic!("{commands:?}") };
    bench.core.fence_done(*fence).unwrap();
    let commands = bench.core.take_commands();
    assert_eq!(flush(&commands), (vec![3], true));
    let commands = bench.answer(commands, &[]);
    let [Command::Settle { fence, writes, .. }] = commands.as_slice() else { panic!("{commands:?}") };
    assert_eq!(writes.iter().map(id).collect::<Vec<_>>(), [1], "the mark settles what is parked");
    bench.core.settled(*fence, &FlushReport::default()).unwrap();
    mark(&bench.core.take_commands());
    assert_eq!(bench.core.take_watermark(), Some(Position::Oplog(OpTime::new(1, 3, 1))));
}

/// A write of collection `uuid`.
fn of_collection(bench: &mut Bench, inc: u32, namespace: NamespaceId, id: i32, uuid: u8) -> Vec<Command> {
    let body = Bytes::from(rawdoc! { "_id": id, "at": inc as i32 }.into_bytes());
    let change = Change { collection: Some([uuid; 16]), ..change(inc, namespace, body) };
    bench.feed(change, Permit::none())
}

/// The renaming of collection `uuid`, up to where it is executed. What is parked then collides once more.
fn rename(bench: &mut Bench, inc: u32, uuid: u8) {
    let mut ddl = Change { collection: Some([uuid; 16]), ..change(inc, bench.namespace, Bytes::new()) };
    ddl.operation = Operation::Ddl;
    let (from, to) = (Routed::same(bench.namespace), Routed::same(bench.other));
    ddl.ddl = Some(Box::new(Ddl::Rename { from, to, drop_target: None }));
    let commands = bench.feed(ddl, Permit::none());
    let [Command::Settle { fence, writes, .. }] = commands.as_slice() else { panic!("{commands:?}") };
    let refused = (0..writes.len()).map(|at| (at, collision())).collect();
    bench.core.settled(*fence, &FlushReport { refused, operation_time: None }).unwrap();
    let commands = bench.core.take_commands();
    let [Command::Ddl { fence, .. }] = commands.as_slice() else { panic!("{commands:?}") };
    bench.core.fence_done(*fence).unwrap();
    assert!(bench.core.take_commands().is_empty());
}

#[test]
fn a_parked_document_is_found_under_the_new_name_of_its_collection() {
    let mut bench = Bench::new();
    let (namespace, other) = (bench.namespace, bench.other);
    let commands = of_collection(&mut bench, 1, namespace, 1, 7);
    assert!(bench.answer(commands, &[1]).is_empty(), "parked");
    rename(&mut bench, 2, 7);
    // It waits behind the older one, for the mark, which has come.
    let commands = of_collection(&mut bench, 3, other, 1, 7);
    let [Command::Settle { writes, .. }] = commands.as_slice() else { panic!("{commands:?}") };
    assert_eq!(
        (writes.len(), writes[0].target, writes[0].time.inc),
        (1, other, 3),
        "the newer one, under the new name"
    );
}

#[test]
fn documents_of_two_collections_of_one_name_are_never_joined() {
    let mut bench = Bench::new();
    let other = bench.other;
    let commands = of_collection(&mut bench, 1, other, 1, 8);
    assert!(bench.answer(commands, &[1]).is_empty(), "parked");
    rename(&mut bench, 2, 7);
    let commands = of_collection(&mut bench, 3, other, 1, 7);
    let [Command::Settle { writes, .. }] = commands.as_slice() else { panic!("{commands:?}") };
    let collections: Vec<_> = writes.iter().map(|write| (write.collection.unwrap()[0], write.time.inc)).collect();
    assert_eq!(collections, [(8, 1), (7, 3)]);
}

/// A reply of the source that says when its memory is given back.
struct Reply {
    bytes: Vec<u8>,
    gone: Arc<AtomicBool>,
}

impl AsRef<[u8]> for Reply {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::SeqCst);
    }
}

/// Parks one write of a mebibyte that came in a reply of its own, under a permit of its own.
async fn park_one(bench: &mut Bench, budget: &Budget, number: i32) -> Result<Arc<AtomicBool>> {
    let binary = bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: vec![7; 1 << 20] };
    let body = rawdoc! { "_id": number, "pad": binary }.into_bytes();
    let gone = Arc::new(AtomicBool::new(false));
    let body = Bytes::from_owner(Reply { bytes: body, gone: Arc::clone(&gone) });
    let permit = budget.acquire(1 << 20).await;
    let commands = bench.feed(change(1, bench.namespace, body), permit);
    for command in commands {
        let Command::Flush { lane, writes } = command else { panic!("{command:?}") };
        let report = FlushReport { refused: vec![(0, collision())], operation_time: None };
        bench.core.flushed(lane, writes, &report)?;
    }
    Ok(gone)
}

#[tokio::test]
async fn parked_writes_are_outside_of_the_budget_and_bounded_by_themselves() {
    let mut bench = Bench::new();
    // Room for two replies: a parked write that held its reply or its permit would stop the third.
    let budget = Budget::new(2 << 20);
    let mut parked = 0;
    let error = loop {
        let parking = tokio::time::timeout(std::time::Duration::from_secs(60), park_one(&mut bench, &budget, parked));
        match parking.await.expect("the reading goes on") {
            Ok(gone) => {
                assert_eq!(budget.held_bytes(), 0, "the permit is given back");
                assert!(gone.load(Ordering::SeqCst), "so is the reply");
            }
            Err(error) => break error,
        }
        parked += 1;
    };
    assert!((60..=64).contains(&parked), "{parked} MiB were parked");
    assert_eq!(error.kind(), Kind::Exhausted);
    assert!(error.to_string().contains("collide on unique indexes of the target"), "{error}");
    assert_eq!(bench.core.take_watermark(), None, "nothing parked is passed");
}

/// A bench whose mark is passed.
fn behind_the_mark() -> Bench {
    let mut bench = Bench::new();
    let commands = bench.write(4, bench.other, 4);
    bench.core.fence_done(mark(&commands)).unwrap();
    let commands = bench.core.take_commands();
    assert!(bench.answer(commands, &[]).is_empty());
    bench
}

/// A replacement of a mebibyte.
fn large(bench: &Bench, inc: u32, id: i32) -> Change {
    let binary = bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: vec![7; 1 << 20] };
    change(inc, bench.namespace, Bytes::from(rawdoc! { "_id": id, "pad": binary }.into_bytes()))
}

#[test]
fn what_was_settled_counts_no_more_as_parked() {
    let mut bench = behind_the_mark();
    // Each round parks two mebibytes: together twice what may be parked at one time.
    for round in 5..70 {
        for id in [1, 2] {
            let commands = bench.feed(large(&bench, round, id), Permit::none());
            let commands = bench.answer(commands, &[id]);
            let [Command::Settle { fence, .. }] = commands.as_slice() else { panic!("{commands:?}") };
            bench.core.settled(*fence, &FlushReport::default()).unwrap();
            assert!(bench.core.take_commands().is_empty());
        }
    }
    assert!(bench.core.is_idle());
}

#[test]
fn what_replaces_a_parked_document_takes_its_place() {
    let mut bench = Bench::new();
    let commands = bench.feed(large(&bench, 1, 1), Permit::none());
    assert!(bench.answer(commands, &[1]).is_empty());
    for _ in 0..100 {
        assert!(bench.feed(large(&bench, 2, 1), Permit::none()).is_empty());
    }
    let mut delete = large(&bench, 2, 1);
    delete.operation = Operation::Delete;
    delete.key = Bytes::from(rawdoc! { "_id": 1 }.into_bytes());
    delete.body = Bytes::new();
    let commands = bench.feed(delete, Permit::none());
    assert_eq!(flush(&commands), (vec![1], true), "a delete collides with nothing");
    assert!(bench.answer(commands, &[]).is_empty());
    assert!(bench.core.is_idle());
}

#[test]
fn a_shutdown_leaves_what_waits_for_the_mark_and_a_copy_over_the_border() {
    let mut bench = Bench::new();
    let commands = bench.write(1, bench.namespace, 1);
    assert!(bench.answer(commands, &[1]).is_empty(), "parked: it waits for the mark");
    let commands = bench.write(2, bench.other, 2);
    bench.core.drain();
    let mut copy = change(3, bench.namespace, Bytes::new());
    copy.operation = Operation::Ddl;
    copy.ddl = Some(Box::new(Ddl::CopyIn { namespace: Routed::same(bench.namespace), drop_target: None }));
    assert!(bench.feed(copy, Permit::none()).is_empty(), "the flush before it is out");
    assert!(bench.write(3, bench.other, 3).is_empty(), "it waits for the copy");
    assert!(bench.core.is_busy());
    assert!(!bench.core.outstanding().is_empty());
    assert!(bench.answer(commands, &[]).is_empty(), "a copy takes as long as it takes: it is not begun");
    assert!(!bench.core.is_busy());
    assert_eq!(bench.core.left(), Left { parked: 1, postponed: 0, copies: 1, held: 1 });
    assert_eq!(bench.core.take_watermark(), None, "the position stands before what is left");
}
