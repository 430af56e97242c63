//! Collections that keep their order as a whole: under every name they have while changes are replayed.
//!
//! A replayed change has the name of its time, and the collection may have another one by now. How many lanes its
//! changes go to is all that is looked at here; nothing is written.

use super::*;
use crate::budget::Permit;
use crate::model::Operation;

const CAPPED: CollectionUuid = [7; 16];

fn insert(id: i32, inc: u32, target: NamespaceId, collection: Option<CollectionUuid>) -> Change {
    Change {
        operation: Operation::Insert,
        source: target,
        target,
        key: bytes::Bytes::new(),
        body: bytes::Bytes::from(bson::rawdoc! { "_id": id }.into_bytes()),
        time: OpTime::new(1, inc, 1),
        wall_ms: 0,
        collection,
        origin: None,
        not_before_ms: 0,
        ddl: None,
    }
}

/// How many lanes the inserts of one collection go to.
fn lanes_used(core: &mut Core, seq: u64, target: NamespaceId, collection: Option<CollectionUuid>) -> usize {
    let first = u32::try_from(seq).unwrap() * 100;
    let changes = (0..64).map(|id| insert(id, first + id.cast_unsigned(), target, collection)).collect();
    let last = Position::Oplog(OpTime::new(1, first + 99, 1));
    core.batch(ChangeBatch { seq, changes, last, atomic: false, permit: Arc::new(Permit::none()) }).unwrap();
    let mut used = HashSet::new();
    loop {
        let commands = core.take_commands();
        if commands.is_empty() {
            return used.len();
        }
        for command in commands {
            let Command::Flush { lane, writes } = command else { continue };
            used.insert(lane);
            core.flushed(lane, writes, &FlushReport::default()).unwrap();
        }
    }
}

fn spreads(core: &mut Core, seq: u64, target: NamespaceId, collection: Option<CollectionUuid>) -> bool {
    lanes_used(core, seq, target, collection) > 1
}

fn core(namespaces: &Arc<Namespaces>, ordered: &[CollectionUuid]) -> Core {
    let options = CoreOptions {
        lanes: 8,
        overlap_until: OpTime::new(9, 0, 1),
        single_lane: HashSet::new(),
        single_lane_collections: ordered.iter().copied().collect(),
        auto: false,
    };
    Core::new(Arc::clone(namespaces), options)
}

#[test]
fn a_capped_collection_keeps_its_order_under_a_former_name_too() {
    let namespaces = Namespaces::shared();
    let (old, new) = (namespaces.intern("a.old"), namespaces.intern("a.new"));
    let mut core = core(&namespaces, &[CAPPED]);
    assert!(!spreads(&mut core, 0, old, Some(CAPPED)));
    assert!(!spreads(&mut core, 1, new, Some(CAPPED)));
    assert!(spreads(&mut core, 2, namespaces.intern("a.other"), Some([8; 16])), "others are spread");
}

#[test]
fn one_that_is_created_or_copied_now_keeps_its_order_wherever_it_goes() {
    let namespaces = Namespaces::shared();
    let mut core = core(&namespaces, &[]);
    core.copied_in(Some(CAPPED), true, OpTime::new(10, 0, 1));
    assert!(!spreads(&mut core, 0, namespaces.intern("a.x"), Some(CAPPED)));
    assert!(!core.passed_mark());
}

/// The ids of all writes until nothing is left to write, in the order in which they are sent.
fn sent(core: &mut Core) -> Vec<i32> {
    let id = |write: &Write| bson::RawDocument::from_bytes(&write.key).unwrap().get_i32("_id").unwrap();
    let mut sent = Vec::new();
    loop {
        let commands = core.take_commands();
        if commands.is_empty() {
            return sent;
        }
        for command in commands {
            let Command::Flush { lane, writes } = command else { continue };
            sent.extend(writes.iter().map(id));
            core.flushed(lane, writes, &FlushReport::default()).unwrap();
        }
    }
}

#[test]
fn what_comes_back_stands_behind_what_came_meanwhile() {
    let namespaces = Namespaces::shared();
    let target = namespaces.intern("a.ring");
    let mut core = core(&namespaces, &[CAPPED]);
    let of = |id, inc| insert(id, inc, target, Some(CAPPED));
    let key = bytes::Bytes::from(bson::rawdoc! { "_id": 1 }.into_bytes());
    let delete = Change { operation: Operation::Delete, key, body: bytes::Bytes::new(), ..of(1, 4) };
    // The first is on its way while the others come, so that those wait together.
    for (seq, changes) in [vec![of(0, 1)], vec![of(1, 2), of(2, 3), delete, of(1, 5)]].into_iter().enumerate() {
        let (seq, last) = (seq as u64, Position::Oplog(changes.last().unwrap().time));
        core.batch(ChangeBatch { seq, changes, last, atomic: false, permit: Arc::new(Permit::none()) }).unwrap();
    }
    assert_eq!(sent(&mut core), [0, 1, 2, 1], "the delete and the insert are one write, behind that of 2");
}
