//! Starts from every position that comes out, whatever is open there.
//!
//! Histories of a set and of a cluster are made up: writes, transactions of one and of several shards that overlap in every way,
//! large, small, committed, aborted, and entries of one time on several shards. A run goes on from a position of an
//! earlier run as the source would open it, and what comes out must be the rest of what comes out without any stop:
//! nothing twice, nothing left out, nothing in another order. Nothing here needs a server.

use std::collections::{HashMap, VecDeque};

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};

use super::shards::{insert, insert_of, of_streams};
use super::*;
use crate::model::{ShardPosition, ShardPositions};

/// Histories that are tried.
const SEEDS: u64 = 40;

/// How often a run that began at a position of another one is left again.
const DEPTH: usize = 3;

/// A transaction that has begun.
struct Begun {
    number: i64,
    parts: Vec<PartOf>,
    is_prepared: bool,
    is_aborted: bool,
}

/// What a shard has of it.
struct PartOf {
    stream: usize,
    /// Its last entry there.
    last: Option<u32>,
    /// Entries that are to come before the end.
    left: u32,
}

/// A history on its way.
struct History {
    random: StdRng,
    /// Each entry with its stream and time.
    entries: Vec<(usize, u32, Document)>,
    /// Of each shard.
    newest: Vec<u32>,
    begun: Vec<Begun>,
    next_id: i32,
    /// The transaction that each document is of.
    of: HashMap<i32, i64>,
    /// When each transaction that is prepared began on each of its shards.
    began: HashMap<i64, Vec<u32>>,
}

impl History {
    fn of(seed: u64, shards: usize) -> Self {
        let entries = (0..shards).map(|stream| (stream, 1, insert(1, 0))).collect();
        let random = StdRng::seed_from_u64(seed);
        let mut history = Self {
            random,
            entries,
            newest: vec![1; shards],
            begun: Vec::new(),
            next_id: 1,
            of: HashMap::new(),
            began: HashMap::new(),
        };
        for number in 1..=60 {
            let which = (!history.begun.is_empty()).then(|| history.random.random_range(0..history.begun.len()));
            match (history.random.random_range(0..4), which) {
                (0, _) => history.write(),
                (1, _) => history.begin(number),
                (_, Some(which)) => history.go_on(which),
                (_, None) => {}
            }
        }
        while !history.begun.is_empty() {
            history.go_on(0);
        }
        history.entries.sort_by_key(|(stream, at, _)| (*at, *stream));
        history
    }

    /// Behind all there is, or now and then of the same time as another shard's entry.
    fn time(&mut self, stream: usize) -> u32 {
        let newest = self.newest.iter().copied().max().unwrap_or_default();
        let same = self.newest[stream] < newest && self.random.random_bool(0.2);
        self.newest[stream] = if same { newest } else { newest + 1 };
        self.newest[stream]
    }

    fn id(&mut self) -> i32 {
        self.next_id += 1;
        self.next_id
    }

    fn write(&mut self) {
        let stream = self.random.random_range(0..self.newest.len());
        let (at, id) = (self.time(stream), self.id());
        self.entries.push((stream, at, insert(at, id)));
    }

    fn begin(&mut self, number: i64) {
        let mut streams: Vec<usize> = (0..self.newest.len()).collect();
        streams.shuffle(&mut self.random);
        streams.truncate(self.random.random_range(1..=streams.len()));
        let is_prepared = streams.len() > 1 || self.random.random_bool(0.5);
        let is_aborted = self.random.random_bool(0.2);
        let part = |stream| PartOf { stream, last: None, left: self.random.random_range(1..=2) };
        let parts = streams.into_iter().map(part).collect();
        self.begun.push(Begun { number, parts, is_prepared, is_aborted });
    }

    /// One more entry of a transaction: a part of it or, when all is prepared, one shard's end.
    fn go_on(&mut self, which: usize) {
        let mut transaction = self.begun.swap_remove(which);
        let unfinished = transaction.parts.iter().filter(|part| part.left > 0).count();
        let chosen = (unfinished > 0).then(|| self.random.random_range(0..unfinished));
        let part = chosen.and_then(|chosen| transaction.parts.iter_mut().filter(|part| part.left > 0).nth(chosen));
        if let Some(part) = part {
            let at = self.time(part.stream);
            let ids = [self.id(), self.id()];
            self.of.extend(ids.map(|id| (id, transaction.number)));
            if part.last.is_none() && transaction.is_prepared {
                self.began.entry(transaction.number).or_default().push(at);
            }
            let mut o = doc! { "applyOps": [insert_of(ids[0]), insert_of(ids[1])] };
            match (part.left, transaction.is_prepared) {
                (1, true) => _ = o.insert("prepare", true),
                (1, false) => {}
                _ => _ = o.insert("partialTxn", true),
            }
            self.entries.push((part.stream, at, command(at, o, part.last, transaction.number)));
            (part.last, part.left) = (Some(at), part.left - 1);
        } else if let Some(part) = transaction.parts.pop() {
            // Everything is prepared before the first commit, so that is of a later time than all of it.
            let at = self.newest.iter().copied().max().unwrap_or_default() + 1;
            self.newest[part.stream] = at;
            let o = match transaction.is_aborted {
                true => doc! { "abortTransaction": 1 },
                false => doc! { "commitTransaction": 1, "commitTimestamp": Timestamp { time: 100, increment: 7 } },
            };
            self.entries.push((part.stream, at, command(at, o, part.last, transaction.number)));
        }
        let ends_by_itself = !transaction.is_prepared && transaction.parts.iter().all(|part| part.left == 0);
        if !transaction.parts.is_empty() && !ends_by_itself {
            self.begun.push(transaction);
        }
    }

    /// What a source delivers that is opened at a position: of each shard the entry that is named, and all behind it.
    fn from(&self, position: &Position) -> VecDeque<(usize, Document)> {
        let starts: Vec<OpTime> = match position {
            Position::Shards(cut) => cut.shards.iter().map(|shard| shard.open_since.unwrap_or(shard.at)).collect(),
            Position::Oplog(_) | Position::Stream { .. } => vec![position.time()],
        };
        for (stream, start) in starts.iter().enumerate().filter(|(_, start)| start.term >= 0) {
            let is_there = self.entries.iter().any(|(of, at, _)| (*of, *at) == (stream, start.inc));
            assert!(is_there, "{position} names an entry that is not there");
        }
        let there = self.entries.iter().filter(|(stream, at, _)| starts[*stream].inc <= *at);
        there.map(|(stream, _, entry)| (*stream, entry.clone())).collect()
    }
}

fn command(inc: u32, o: Document, previous: Option<u32>, number: i64) -> Document {
    let fields = doc! { "op": "c", "ns": "admin.$cmd", "o": o };
    with(entry(inc, fields), with(link(previous.map_or(NULL_TIME, at)), session(number)))
}

/// What came out, each document with the time at which it became visible, and all positions, each with the number of changes before it.
#[derive(Default)]
struct Run {
    ids: Vec<(i32, u32)>,
    positions: Vec<(Position, usize)>,
}

/// Reads all of it, in replies of any length, from a source whose cursor is lost now and then.
fn run(history: &History, start: &Position, options: &DecodeOptions, random: &mut StdRng) -> Result<Run> {
    let mut decoder = Decoder::starting_at(Namespaces::shared(), options.clone(), start);
    // A later start in a cluster names what it needs.
    let walks_back = start.shards().iter().all(|shard| shard.at.term < 0);
    let mut out = Run::default();
    let mut entries = history.from(start);
    while !entries.is_empty() {
        let count = random.random_range(1..=4).min(entries.len());
        decoder.begin(of_streams(entries.drain(..count).collect()));
        loop {
            match decoder.step()? {
                Step::Batch(batch) => {
                    out.ids.extend(batch.changes.iter().map(|change| {
                        let key = bson::RawDocument::from_bytes(change.key_document()).unwrap();
                        (key.get_i32("_id").unwrap(), change.time.inc)
                    }));
                    out.positions.push((batch.last, out.ids.len()));
                }
                Step::Need(Need::Memory { .. }) => decoder.granted(Permit::none()),
                Step::Need(Need::Entry { stream, time }) if walks_back => {
                    let found = history.entries.iter().find(|(of, at, _)| (*of as u32, *at) == (stream, time.inc));
                    let (_, _, entry) = found.unwrap();
                    let bytes = bson::RawDocumentBuf::try_from(entry).unwrap().into_bytes();
                    decoder.entry(Bytes::from(bytes)).unwrap();
                }
                Step::Need(need) => panic!("{need:?}"),
                Step::Done => break,
            }
        }
        if random.random_bool(0.1) {
            entries = history.from(&decoder.reopen());
        }
    }
    Ok(out)
}

/// Starts at all positions of a run, and at some of the runs from there. A position that is held back is that of fewer
/// changes than came out before it.
fn try_everywhere(seed: u64, shards: usize, start: Position, exactly: bool) {
    let history = History::of(seed, shards);
    let mut random = StdRng::seed_from_u64(seed);
    let options = DecodeOptions {
        transaction_bytes: 1 << 20,
        is_shard: shards > 1,
        // Is about a first start's cut only.
        behind_cut: if random.random_bool(0.5) { BehindCut::LeftOut } else { BehindCut::Repeated },
        atomic_bytes: if random.random_bool(0.5) { 1 << 20 } else { 0 },
        ..DecodeOptions::default()
    };
    let whole = run(&history, &start, &options, &mut random).unwrap();
    let mut ahead = vec![(start, 0, 0)];
    while let Some((position, out, depth)) = ahead.pop() {
        let rest = run(&history, &position, &options, &mut random).unwrap();
        let done = whole.ids.len() - rest.ids.len();
        assert!(if exactly { done == out } else { done <= out }, "seed {seed}, {done} of {out}, from {position}");
        assert_eq!(rest.ids, whole.ids[done..], "seed {seed}, from {position}");
        // All positions of the first run; of every other one any one.
        let any = random.random_range(0..rest.positions.len().max(1));
        let chosen = rest.positions.into_iter().enumerate().filter(|(n, _)| depth == 0 || *n == any);
        let deeper = chosen.filter(|_| depth < DEPTH);
        ahead.extend(deeper.map(|(_, (position, count))| (position, done + count, depth + 1)));
    }
}

#[test]
fn a_start_from_any_position_gives_the_rest() {
    for seed in 0..SEEDS {
        let first = |name: &str| ShardPosition { name: name.into(), at: at(1), open_since: None };
        let shards = ["s1", "s2", "s3"].map(first).to_vec();
        let start = Position::Shards(Arc::new(ShardPositions { time: at(1), shards }));
        try_everywhere(seed, 3, start, true);
    }
}

#[test]
fn a_start_on_a_set_gives_the_rest_too() {
    for seed in 0..SEEDS {
        try_everywhere(seed, 1, Position::Oplog(at(1)), false);
    }
}

/// A first start at any time. What was visible by then is left out where the target is said to have it. Where a copy has
/// it, a transaction is known as a whole or left out, and only such are left out of which a part began before reading
/// did. Nothing of what comes later is missing. Or the run stops and says why; where it did not, nor does a later one.
#[test]
fn a_first_start_takes_transactions_whole_or_not_at_all() {
    let (mut stopped, tried) = (0, SEEDS * 4);
    for seed in 0..tried {
        let history = History::of(seed, 3);
        let mut random = StdRng::seed_from_u64(seed);
        let shards = |at| ["s1", "s2", "s3"].map(|name| ShardPosition { name: name.into(), at, open_since: None });
        let oldest = Position::Shards(Arc::new(ShardPositions { time: at(1), shards: shards(at(1)).to_vec() }));
        let behind_cut = if random.random_bool(0.5) { BehindCut::LeftOut } else { BehindCut::Repeated };
        let options =
            DecodeOptions { transaction_bytes: 1 << 20, is_shard: true, behind_cut, ..DecodeOptions::default() };
        let whole = run(&history, &oldest, &options, &mut random).unwrap().ids;
        let last = whole.last().map_or(2, |(_, time)| *time);
        let cut = random.random_range(2..=last.max(2));
        let from = random.random_range(1..=(cut / 2));
        let moments = shards(OpTime::new(100, from, -1)).to_vec();
        let start = Position::Shards(Arc::new(ShardPositions { time: at(cut), shards: moments }));
        let Run { ids, positions } = match run(&history, &start, &options, &mut random) {
            Ok(rest) => rest,
            Err(fault) => {
                let why = fault.to_string();
                assert!(why.contains("open for long") || why.contains("was being committed"), "{why}");
                stopped += 1;
                continue;
            }
        };
        let shown = || format!("seed {seed}: {ids:?} of {whole:?} from {start}");
        let later = match behind_cut {
            BehindCut::LeftOut => cut,
            BehindCut::Repeated | BehindCut::Copied => from + (cut - from) / 3,
        };
        let mut expected = whole.clone();
        expected.retain(|(id, time)| {
            let began = history.of.get(id).and_then(|number| history.began.get(number));
            let is_known = began.is_none_or(|began| began.iter().all(|at| *at >= from));
            *time > cut || *time > later && is_known
        });
        assert_eq!(ids, expected, "{}", shown());
        for (position, count) in positions.choose_multiple(&mut random, 3) {
            let rest = run(&history, position, &options, &mut random).unwrap().ids;
            let done = ids.len() - rest.len();
            assert!(rest == ids[done..] && done <= *count, "{rest:?} from {position}, {}", shown());
        }
    }
    assert!(stopped * 2 < tried, "{stopped} of {tried}");
}
