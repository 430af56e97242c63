//! Collections that keep their order as a whole: under every name they have while changes are replayed.
//!
//! A replayed change has the name of its time, and the collection may have another one by now. How many lanes its
//! changes go to is all that is looked at here; nothing is written.

use super::*;
use crate::budget::Permit;
use crate::model::Operation;
use crate::sink::Content;

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
        moved: false,
        creates: false,
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

#[test]
fn a_document_that_is_deleted_and_inserted_again_leaves_its_place() {
    let namespaces = Namespaces::shared();
    let target = namespaces.intern("a.x");
    for (collection, expected) in [(Some(CAPPED), "insert 2, delete, insert 1"), (None, "insert 2, replace 1")] {
        let mut core = core(&namespaces, &[CAPPED]);
        let delete = Change { operation: Operation::Delete, ..insert(1, 2, target, collection) };
        let changes = vec![insert(2, 1, target, collection), delete, insert(1, 3, target, collection)];
        let last = Position::Oplog(OpTime::new(1, 3, 1));
        core.batch(ChangeBatch { seq: 0, changes, last, atomic: false, permit: Arc::new(Permit::none()) }).unwrap();
        let mut seen = Vec::new();
        loop {
            let commands = core.take_commands();
            if commands.is_empty() {
                break;
            }
            for command in commands {
                let Command::Flush { lane, writes } = command else { continue };
                for write in &writes {
                    let id = |document: &[u8]| bson::RawDocument::from_bytes(document).unwrap().get_i32("_id").unwrap();
                    seen.push(match &write.content {
                        Content::Insert(document) => format!("insert {}", id(document)),
                        Content::Replace(document) => format!("replace {}", id(document)),
                        Content::Delete => "delete".to_owned(),
                        other @ (Content::Patch(_) | Content::Patched { .. }) => format!("{other:?}"),
                    });
                }
                core.flushed(lane, writes, &FlushReport::default()).unwrap();
            }
        }
        seen.sort_by_key(|shown| collection.is_none() && shown.starts_with("replace"));
        assert_eq!(seen.join(", "), expected);
    }
}
