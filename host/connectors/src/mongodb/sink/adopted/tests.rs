//! Where a target stands, told by its names alone. A move is given by a number for the collection and the names it had.
//! What becomes of a real target is tried in the `tests` package (`e2e::ddl::adopted`), never here.

use super::*;

/// All moves of these tests are behind it.
const START: OpTime = OpTime { secs: 1, inc: 0, term: -1 };

fn name(text: &str) -> Namespace {
    Namespace::of("a", text)
}

fn came(collection: u8, to: &str) -> Move {
    of(collection, Moved::Came { name: name(to), replaced: None, over_border: false })
}

fn went(collection: u8, from: &str) -> Move {
    of(collection, Moved::Went(name(from)))
}

fn renamed(collection: u8, from: &str, to: &str, replaced: Option<u8>) -> Move {
    let replaced = replaced.map(|replaced| [replaced; 16]);
    of(collection, Moved::Renamed { from: name(from), to: name(to), replaced })
}

fn of(collection: u8, what: Moved) -> Move {
    Move { time: OpTime::default(), collection: [collection; 16], what }
}

/// How many moves are done on a target of these names.
fn done(moves: &[Move], target: &[&str]) -> Result<Option<usize>, Vec<Namespace>> {
    let moves: Vec<&Move> = moves.iter().collect();
    Ok(place(&moves, 0, |wanted| target.iter().any(|there| name(there) == *wanted))?.map(|(done, _)| done))
}

/// What is to be recorded on a target of these names.
fn recorded(moves: &[Move], target: &[&str]) -> (Vec<(u8, Namespace)>, Vec<u8>) {
    let found = seen(moves, START, false, |wanted| target.iter().any(|there| name(there) == *wanted)).unwrap();
    let mut standing: Vec<_> = found.standing.into_iter().map(|(collection, name)| (collection[0], name)).collect();
    standing.sort();
    (standing, found.gone.into_iter().map(|collection| collection[0]).collect())
}

#[test]
fn a_rename_over_another_is_done_where_the_old_name_is_gone() {
    let moves = [renamed(1, "staging", "live", Some(2))];
    assert_eq!(done(&moves, &["staging", "live"]), Ok(Some(0)));
    assert_eq!(done(&moves, &["live"]), Ok(Some(1)));
    assert_eq!(done(&moves, &[]), Ok(None), "a target that never had them");
}

#[test]
fn a_drop_and_its_successor_are_told_apart() {
    let moves = [went(2, "live"), renamed(1, "staging", "live", None)];
    assert_eq!(done(&moves, &["staging", "live"]), Ok(Some(0)));
    assert_eq!(done(&moves, &["staging"]), Ok(Some(1)));
    assert_eq!(done(&moves, &["live"]), Ok(Some(2)));
}

#[test]
fn what_is_made_after_the_start_comes_back_by_itself() {
    // Whether the old one or the new one stands there: it is dropped, and everything of the new one follows.
    let moves = [went(1, "day"), came(2, "day"), went(2, "day"), came(3, "day")];
    assert_eq!(done(&moves, &["day"]), Ok(Some(0)));
    assert_eq!(done(&moves, &[]), Ok(Some(1)));
    assert_eq!(done(&[came(2, "day")], &[]), Ok(Some(0)));
}

#[test]
fn an_old_collection_is_never_taken_for_a_new_one() {
    // `n` may hold the one that is dropped or, later, the old one that was `a`.
    let moves = [came(9, "n"), went(9, "n"), renamed(1, "a", "n", None), came(8, "a")];
    assert_eq!(done(&moves, &["a", "n"]), Err(vec![name("a"), name("n")]));
}

#[test]
fn two_that_change_places_are_not_to_be_told_apart() {
    let moves = [renamed(1, "a", "t", None), renamed(2, "b", "a", None), renamed(1, "t", "b", None)];
    assert_eq!(done(&moves, &["b", "t"]), Ok(Some(1)));
    assert_eq!(done(&moves, &["a", "t"]), Ok(Some(2)));
    assert_eq!(done(&moves, &["a", "b"]), Err(vec![name("a"), name("b")]));
}

#[test]
fn there_and_back_is_the_same_place() {
    let moves = [renamed(1, "a", "b", None), renamed(1, "b", "a", None)];
    assert_eq!((done(&moves, &["a"]), done(&moves, &["b"])), (Ok(Some(0)), Ok(Some(1))));
}

#[test]
fn what_every_shard_logs_is_one_move() {
    let moves = [renamed(1, "a", "b", None), renamed(1, "a", "b", None), went(1, "b"), went(1, "b"), came(2, "b")];
    assert_eq!(done(&moves, &[]), Ok(Some(3)));
    assert_eq!(done(&moves, &["a"]), Ok(Some(0)));
}

#[test]
fn what_stands_there_and_what_is_gone_is_recorded() {
    let moves = [renamed(1, "staging", "live", Some(2)), came(3, "staging"), went(3, "staging"), came(4, "other")];
    assert_eq!(recorded(&moves[..1], &["live"]), (vec![(1, name("live"))], vec![2]));
    assert_eq!(recorded(&moves[..1], &["live", "staging"]), (vec![], vec![]), "at the start");
    let all = [renamed(1, "a", "b", Some(2)), went(1, "b"), came(5, "a")];
    assert_eq!(recorded(&all, &["a"]), (vec![(5, name("a"))], vec![1, 2]), "`b` is not there, so it is the new `a`");
}

#[test]
fn names_that_have_nothing_to_do_with_each_other_are_judged_apart() {
    // `tmp` is not there, for whatever reason; that says nothing of the others.
    let mut moves = vec![went(2, "live"), renamed(1, "staging", "live", None), came(3, "staging"), went(4, "tmp")];
    let error = seen(&moves, START, false, |wanted| *wanted != name("tmp")).unwrap_err();
    assert_eq!(error, vec![name("live")]);
    moves.remove(2);
    assert_eq!(recorded(&moves, &["staging", "live"]), (vec![], vec![4]));
    assert_eq!(recorded(&moves, &["live", "tmp"]), (vec![(1, name("live"))], vec![2]));
}

#[test]
fn what_came_over_the_border_is_copied_when_its_turn_comes() {
    let swapped = |collection, replaced| {
        let replaced = Some([replaced; 16]);
        of(collection, Moved::Came { name: name("live"), replaced, over_border: true })
    };
    assert_eq!(recorded(&[swapped(2, 1), swapped(3, 2)], &["live"]), (vec![], vec![]));
}

#[test]
fn a_younger_collection_never_comes_into_what_another_one_holds() {
    let all = [came(1, "staging"), renamed(1, "staging", "live", Some(9)), came(2, "staging")];
    let error = seen(&all, START, false, |_| true).unwrap_err();
    assert_eq!(error, [name("live"), name("staging")], "the first edition stands under either name");
    assert_eq!(
        recorded(&all, &["live"]),
        (vec![], vec![]),
        "at the start, or two moves on: it is dropped and comes again"
    );
}

#[test]
fn what_leaves_the_filter_and_comes_back_is_one_group() {
    let moves = [went(1, "a"), came(1, "b")];
    assert_eq!(groups(&moves).len(), 1);
    assert_eq!(recorded(&moves, &["b"]), (vec![(1, name("b"))], vec![]));
}

#[test]
fn where_no_place_fits_what_stands_is_not_touched() {
    // `next` was empty, and the target never had it: `live` holds what was `staging`.
    let moves = [renamed(1, "staging", "live", Some(9)), renamed(3, "next", "staging", None)];
    assert_eq!(done(&moves, &["live"]), Err(vec![name("live")]));
    assert_eq!(done(&moves, &[]), Ok(None));
}

#[test]
fn what_came_over_the_border_and_went_on_has_no_known_past() {
    let crossed = of(1, Moved::Came { name: name("b"), replaced: None, over_border: true });
    let moves = [crossed, renamed(1, "b", "c", None)];
    assert_eq!(done(&moves, &["c"]), Err(vec![name("c")]));
    assert_eq!(done(&moves, &["b"]), Ok(Some(1)), "it is copied under that name");
    assert_eq!(done(&moves, &[]), Ok(Some(0)));
    assert_eq!(done(&[came(1, "b"), renamed(1, "b", "c", None)], &["c"]), Ok(Some(2)));
}

#[test]
fn what_stands_at_the_very_start_is_done() {
    // A new `staging` was made since: the names are those before the rename, too.
    let moves = [renamed(1, "staging", "live", Some(9)), came(2, "staging")];
    let there = |wanted: &Namespace| [name("live"), name("staging")].contains(wanted);
    let mut at_start = moves.clone();
    at_start[0].time = START;
    let pairs = |found: Seen| {
        let mut standing: Vec<_> = found.standing.into_iter().map(|(collection, name)| (collection[0], name)).collect();
        standing.sort();
        (standing, found.gone.into_iter().map(|collection| collection[0]).collect::<Vec<_>>())
    };
    assert!(seen(&moves, START, false, there).is_err());
    let found = seen(&at_start, START, false, there).unwrap();
    assert_eq!(pairs(found), (vec![(1, name("live")), (2, name("staging"))], vec![9]));
    let found = seen(&at_start[..1], START, true, there).unwrap();
    assert_eq!(pairs(found), (vec![(1, name("live"))], vec![9]));
    assert_eq!(seen(&moves[..1], START, true, there).unwrap(), Seen::default());
    // What only passed the drop still has the collection.
    let mut drop = [went(1, "staging")];
    drop[0].time = START;
    assert_eq!(seen(&drop, START, false, there).unwrap(), Seen::default());
    assert_eq!(pairs(seen(&drop, START, false, |_| false).unwrap()), (vec![], vec![1]));
}
