//! What becomes of a document that is inserted again into a capped collection: inserted, moved as it stands, or left out.
//!
//! The rule alone, over what is known of the target's room, its oldest documents and the source. It goes through the
//! inserts as the server would and says for each whether something that the source still has would have to go for it. It
//! asks nobody; [`super`] finds out what is known and carries out what comes of it.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::Bytes;
use oplogue_engine::model::DocumentKey;

/// What a collection holds and may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) documents: u64,
    pub(super) bytes: u64,
    pub(super) documents_max: u64,
    pub(super) bytes_max: u64,
}

impl Room {
    /// Taken as full: the source is asked about everything.
    pub(super) const UNKNOWN: Self = Self { documents: 0, bytes: 1, documents_max: u64::MAX, bytes_max: 0 };

    pub(super) fn is_over(self) -> bool {
        self.documents > self.documents_max || self.bytes > self.bytes_max
    }

    fn with(self, bytes: u64) -> Self {
        Self { documents: self.documents + 1, bytes: self.bytes + bytes, ..self }
    }

    pub(super) fn without(self, bytes: u64) -> Self {
        Self { documents: self.documents.saturating_sub(1), bytes: self.bytes.saturating_sub(bytes), ..self }
    }

    /// When everything was inserted and nothing had to go.
    pub(super) fn with_all(self, repeated: &[Repeated]) -> Self {
        let rest = repeated.iter().filter_map(|one| one.standing).fold(self, Self::without);
        repeated.iter().fold(rest, |room, one| room.with(one.bytes))
    }
}

/// A document that is to be inserted again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Repeated {
    pub(super) key: DocumentKey,
    pub(super) bytes: u64,
    /// The size of the target's document of this `_id`.
    pub(super) standing: Option<u64>,
}

/// What becomes of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is inserted as it was.
    Insert,
    /// The target's document is put at the end as it is.
    Move,
    /// The source has it no more.
    LeaveOut,
}

/// A document of the target.
pub(super) struct Sized {
    /// With its `_id`.
    pub(super) selector: Bytes,
    pub(super) key: DocumentKey,
    pub(super) bytes: u64,
}

/// Where documents stand in the source's order, by the collection that was asked for them.
pub(super) type Order = HashMap<DocumentKey, (usize, i64)>;

/// What the source says of repeated documents and of those in front of them.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) order: Order,
    /// Repeated ones that were deleted after what is repeated. What the source has under their keys was inserted anew.
    pub(super) deleted: HashSet<DocumentKey>,
    /// Nobody could say which were, so the order of documents must, where the limit is their number. Of bytes it cannot: a
    /// plugin may have made documents larger than they are on the source.
    pub(super) by_order: bool,
}

/// Goes through repeated inserts as the server would, with the documents that it would evict first in `front`.
pub(super) fn fates(mut room: Room, front: &[Sized], repeated: &[Repeated], source: &Known) -> Vec<Fate> {
    let moved = moved(repeated);
    let mut front: VecDeque<&Sized> = front.iter().filter(|document| !moved.contains(&document.key)).collect();
    let mut fates = Vec::with_capacity(repeated.len());
    for one in repeated {
        // What stands there and comes later keeps its room: it goes out before anything is inserted, and comes back.
        let rest = one.standing.map_or(room, |standing| room.without(standing));
        let fate = fate(rest, &front, one, source);
        room = match fate {
            Fate::Insert => rest.with(one.bytes),
            Fate::Move | Fate::LeaveOut => room,
        };
        while room.is_over()
            && let Some(evicted) = front.pop_front()
        {
            room = room.without(evicted.bytes);
        }
        fates.push(fate);
    }
    fates
}

/// Those that stand on the target and go to its end.
pub(super) fn moved(repeated: &[Repeated]) -> HashSet<DocumentKey> {
    repeated.iter().filter(|one| one.standing.is_some()).map(|one| one.key).collect()
}

fn fate(room: Room, front: &VecDeque<&Sized>, one: &Repeated, source: &Known) -> Fate {
    let after = room.with(one.bytes);
    let is_over_number = after.documents > after.documents_max;
    match (one.standing, source.order.get(&one.key)) {
        _ if !after.is_over() => Fate::Insert,
        (Some(standing), _) if standing < one.bytes => Fate::Move,
        (Some(_), _) => Fate::Insert,
        (None, None) => Fate::LeaveOut,
        // It comes once more, and the source had room for it beside those that would have to go for it now.
        (None, Some(own)) if source.deleted.contains(&one.key) || (source.by_order && is_over_number) => {
            let is_before = |document: &Sized| {
                source.order.get(&document.key).is_some_and(|(of, number)| *of == own.0 && *number < own.1)
            };
            if evicted(after, front).any(is_before) { Fate::LeaveOut } else { Fate::Insert }
        }
        (None, Some(_)) => Fate::Insert,
    }
}

/// The documents that have to go until no more is in it than may be.
fn evicted<'f>(mut room: Room, front: &'f VecDeque<&Sized>) -> impl Iterator<Item = &'f Sized> {
    front.iter().copied().take_while(move |document| {
        let has_to_go = room.is_over();
        room = room.without(document.bytes);
        has_to_go
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{RawDocumentBuf, rawdoc};

    fn key(id: i32) -> DocumentKey {
        DocumentKey::of_document(rawdoc! { "_id": id }.as_bytes()).unwrap()
    }

    fn sized(ids: &[(i32, u64)]) -> Vec<Sized> {
        let selector = |id: i32| RawDocumentBuf::into_bytes(rawdoc! { "_id": id }).into();
        ids.iter().map(|(id, bytes)| Sized { selector: selector(*id), key: key(*id), bytes: *bytes }).collect()
    }

    fn again(id: i32, bytes: u64, standing: Option<u64>) -> Repeated {
        Repeated { key: key(id), bytes, standing }
    }

    fn order(ids: &[i32]) -> Known {
        let order = ids.iter().zip(1..).map(|(id, at)| (key(*id), (0, at))).collect();
        Known { order, deleted: HashSet::new(), by_order: false }
    }

    fn and_deleted(known: Known, ids: &[i32]) -> Known {
        Known { deleted: ids.iter().map(|id| key(*id)).collect(), ..known }
    }

    const ROOM: Room = Room { documents: 3, bytes: 300, documents_max: 3, bytes_max: 1000 };

    #[test]
    fn what_was_deleted_since_pushes_nothing_out() {
        let front = sized(&[(1, 100), (3, 100), (4, 100)]);
        let repeated = [again(2, 100, None), again(3, 100, Some(100)), again(4, 100, Some(100))];
        let expected = [Fate::LeaveOut, Fate::Insert, Fate::Insert];
        assert_eq!(fates(ROOM, &front, &repeated, &order(&[1, 3, 4])), expected);
    }

    #[test]
    fn new_documents_push_out_what_the_source_has_no_more() {
        let front = sized(&[(1, 100), (2, 100), (3, 100)]);
        let repeated = [again(4, 100, None), again(5, 100, None)];
        assert_eq!(fates(ROOM, &front, &repeated, &order(&[3, 4, 5])), [Fate::Insert, Fate::Insert]);
        // 1 was evicted and came back behind 4.
        assert_eq!(fates(ROOM, &front, &repeated, &order(&[3, 4, 5, 1])), [Fate::Insert, Fate::Insert]);
    }

    #[test]
    fn what_comes_back_later_pushes_out_nothing_that_the_source_still_has() {
        let front = sized(&[(1, 100), (2, 100), (3, 100)]);
        let repeated = [again(4, 100, None)];
        let back = and_deleted(order(&[1, 2, 4]), &[4]);
        assert_eq!(fates(ROOM, &front, &repeated, &back), [Fate::LeaveOut]);
        assert_eq!(fates(ROOM, &front, &repeated, &order(&[1, 2, 4])), [Fate::Insert], "nothing was deleted");
        let by_bytes = Room { documents_max: u64::MAX, bytes_max: 300, ..ROOM };
        assert_eq!(fates(by_bytes, &front, &repeated, &back), [Fate::LeaveOut]);
        assert_eq!(fates(by_bytes, &front, &repeated, &order(&[1, 2, 4])), [Fate::Insert]);
        // The first is gone, and one alone does not make room enough.
        let larger = [again(4, 150, None)];
        assert_eq!(fates(by_bytes, &front, &larger, &and_deleted(order(&[2, 3, 4]), &[4])), [Fate::LeaveOut]);
        assert_eq!(fates(by_bytes, &front, &repeated, &and_deleted(order(&[2, 3, 4]), &[4])), [Fate::Insert]);
        // Nobody could say.
        let by_order = Known { by_order: true, ..order(&[1, 2, 4]) };
        assert_eq!(fates(ROOM, &front, &repeated, &by_order), [Fate::LeaveOut]);
        assert_eq!(fates(by_bytes, &front, &repeated, &by_order), [Fate::Insert]);
        assert_eq!(fates(Room::UNKNOWN, &front, &repeated, &by_order), [Fate::Insert]);
        // It came back before them: they are of later.
        assert_eq!(fates(by_bytes, &front, &repeated, &and_deleted(order(&[4, 1, 2]), &[4])), [Fate::Insert]);
    }

    #[test]
    fn a_document_that_shrank_since_is_moved_as_it_is() {
        let room = Room { bytes: 950, documents_max: 9, ..ROOM };
        let front = sized(&[(1, 400), (2, 150), (3, 400)]);
        assert_eq!(fates(room, &front, &[again(2, 300, Some(150))], &order(&[1, 2, 3])), [Fate::Move]);
        assert_eq!(fates(room, &front, &[again(2, 150, Some(300))], &order(&[1, 2, 3])), [Fate::Insert]);
        assert_eq!(fates(room, &front, &[again(4, 300, None)], &order(&[2, 3, 4])), [Fate::Insert]);
    }

    #[test]
    fn where_nothing_is_known_of_the_room_only_the_source_counts() {
        let repeated = [again(1, 100, Some(100)), again(2, 100, None), again(3, 100, None), again(4, 200, Some(100))];
        let expected = [Fate::Insert, Fate::LeaveOut, Fate::Insert, Fate::Move];
        assert_eq!(fates(Room::UNKNOWN, &sized(&[(1, 100)]), &repeated, &order(&[1, 3, 4])), expected);
    }
}
