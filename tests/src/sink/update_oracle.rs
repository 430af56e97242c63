//! Property test of updates, with the server as oracle: random documents, random operations, bytes compared.
//!
//! Operations run on a real source; what it logged, or showed in its change stream, goes through the sink's contract to copies in the right state, in
//! every newer state and, one entry at a time, in older and newer states, where the server's own applier says what is
//! right. `OPLOGUE_CASES` says how many (document, update) pairs (1,000 by default, 100,000 in the long run), the
//! seed is printed, `OPLOGUE_SEED` repeats it. A failing case is made smaller and printed as a line for `vectors/`.

use std::collections::BTreeMap;

use bson::{RawBson, RawBsonRef, RawDocumentBuf, doc};
use oplogue_connectors::mongodb::sink::SinkOptions;
use oplogue_engine::model::{Change, OpTime, Position};
use oplogue_engine::schedule::coalesce;
use oplogue_engine::sink::{Content, FlushReport, Patch, Refusal, Sink as _, Write};
use oplogue_tests::cases::{self, Case, Generator, OPERATIONS, shown};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::pair::Pair;
use super::support::{Bench, decoded, now, oplog};
use crate::change_stream::{Stream, is};

/// Documents side by side.
const BATCH: usize = 250;

/// Versions of a failing case that are tried.
const SHRINKS_MAX: usize = 400;

type Documents = BTreeMap<i32, RawDocumentBuf>;

/// What a source made of cases: its documents before and after each step, and its entries.
struct Trial {
    states: Vec<Documents>,
    entries: BTreeMap<i32, Vec<Logged>>,
}

struct Logged {
    key: bson::Document,
    content: Content,
    time: OpTime,
}

impl Logged {
    fn of(change: &Change) -> Option<Self> {
        let content = coalesce::content(change)?;
        let with_id = if change.key.is_empty() { &change.body } else { &change.key };
        let id = RawDocumentBuf::from_bytes(with_id.to_vec()).unwrap().get_i32("_id").unwrap();
        Some(Self { key: doc! { "_id": id }, content, time: change.time })
    }

    fn write(&self, bench: &Bench, target: &str, overlap: bool) -> Write {
        Write { time: self.time, ..bench.write("src.c", target, &self.key, self.content.clone(), overlap) }
    }
}

/// A document that came out otherwise than it should.
pub(super) struct Wrong {
    id: i32,
    what: String,
    expected: Option<RawDocumentBuf>,
    found: Option<RawDocumentBuf>,
}

impl Wrong {
    /// A write that did not go through.
    fn said(write: &Write, what: String) -> Self {
        let id = RawDocumentBuf::from_bytes(write.key.to_vec()).unwrap().get_i32("_id").unwrap();
        Self { id, what, expected: None, found: None }
    }
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |document: &Option<RawDocumentBuf>| document.as_ref().map_or("nothing".to_owned(), shown);
        let (expected, found) = (text(&self.expected), text(&self.found));
        write!(f, "document {} {}:\n expected {expected}\n found    {found}", self.id, self.what)
    }
}

fn wanted() -> usize {
    std::env::var("OPLOGUE_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000)
}

/// Where the changes that a source made are read from.
#[derive(Clone)]
pub(super) enum Capture {
    Oplog,
    /// The change stream of the server behind this connection string.
    Stream(String),
}

#[tokio::test]
async fn random_updates_give_the_sources_bytes_in_every_state() {
    let pair = Pair::start().await;
    random_updates(&pair, &Capture::Oplog).await;
}

#[tokio::test]
async fn random_updates_give_the_sources_bytes_by_change_stream() {
    let pair = Pair::start().await;
    random_updates(&pair, &Capture::Stream(pair.source.uri())).await;
}

async fn random_updates(pair: &Pair, capture: &Capture) {
    let bench = pair.bench(SinkOptions::default());
    let seed = oplogue_tests::seed::seed();
    let dollars = pair.source.has("names that begin with $", (5, 0)) && pair.target().has("such names", (5, 0));
    let mut rng = StdRng::seed_from_u64(seed);
    let mut entries = 0;
    let mut done = 0;
    while done < wanted() {
        let batch: Vec<Case> =
            (0..BATCH).map(|id| Generator { dollars }.case(&mut rng, i32::try_from(id).unwrap())).collect();
        let trial = record(&bench, capture, &batch).await;
        entries += trial.entries.values().map(Vec::len).sum::<usize>();
        let applier = pair.has_applier().then_some(exchanged as Strangers);
        if let Some(wrong) = check(&bench, &trial, applier).await.into_iter().next() {
            let case = batch.into_iter().find(|case| case.id == wrong.id).unwrap();
            panic!("seed {seed}: {}", explained(&bench, capture, case, wrong, applier).await);
        }
        done += BATCH * OPERATIONS;
    }
    println!("{done} updates, {entries} entries, {:?}", bench.sink.counts());
    assert!(entries > done / 3, "the source took too little to mean anything: {entries} of {done}");
}

/// Makes a failing case smaller and says what to keep of it.
async fn explained(bench: &Bench, capture: &Capture, case: Case, wrong: Wrong, applier: Option<Strangers>) -> String {
    let (mut case, mut wrong) = (case, wrong);
    let mut tries = 0;
    'smaller: while tries < SHRINKS_MAX {
        for version in cases::smaller(&case) {
            tries += 1;
            let trial = record(bench, capture, std::slice::from_ref(&version)).await;
            if let Some(still) = check(bench, &trial, applier).await.into_iter().next() {
                (case, wrong) = (version, still);
                continue 'smaller;
            }
            if tries >= SHRINKS_MAX {
                break;
            }
        }
        break;
    }
    format!("{wrong}\n case {}\nto keep in tests/vectors/updates.txt:\n{}", case.shown(), case.to_line())
}

/// Runs cases on the source.
async fn record(bench: &Bench, capture: &Capture, batch: &[Case]) -> Trial {
    let things = bench.source.database("src").collection::<RawDocumentBuf>("c");
    things.delete_many(doc! {}).await.unwrap();
    put(&bench.source, "src", batch.iter().map(|case| &case.start)).await;
    let since = now(&bench.source).await;
    let mut states = vec![cases::documents(&bench.source, "src", "c").await.unwrap()];
    let steps = batch.iter().map(|case| case.operations.len()).max().unwrap_or_default();
    for step in 0..steps {
        cases::run(&bench.source, "src", "c", batch, step).await.unwrap();
        states.push(cases::documents(&bench.source, "src", "c").await.unwrap());
    }
    let mut entries: BTreeMap<i32, Vec<_>> = BTreeMap::new();
    let logged = match capture {
        Capture::Oplog => from_oplog(bench, since).await,
        Capture::Stream(uri) => from_stream(bench, uri, since).await,
    };
    for logged in logged {
        entries.entry(logged.key.get_i32("_id").unwrap()).or_default().push(logged);
    }
    Trial { states, entries }
}

async fn from_oplog(bench: &Bench, since: bson::Timestamp) -> Vec<Logged> {
    let entries = oplog(&bench.source, since, doc! { "ns": "src.c" }).await;
    decoded(bench, since, entries).iter().filter_map(Logged::of).collect()
}

/// What the source and the decoder of change streams make of the same entries.
async fn from_stream(bench: &Bench, uri: &str, since: bson::Timestamp) -> Vec<Logged> {
    let since = OpTime::new(since.time, since.increment, -1);
    bench.source.database("end").drop().await.unwrap();
    bench.source.database("end").collection("c").insert_one(doc! { "_id": "end" }).await.unwrap();
    let mut stream = Stream::open(uri, Some(Position::Oplog(since)), 500).await.unwrap();
    let changes = stream.until(is("end")).await.unwrap();
    // A stream shows what happened at the time it is opened at.
    let changes = changes.into_iter().filter(|change| change.time.ts() > since.ts() && stream.name(change) == "src.c");
    changes.filter_map(|change| Logged::of(&change)).collect()
}

/// Puts documents into an emptied `db.c`, byte for byte.
async fn put<'a>(client: &mongodb::Client, db: &str, all: impl Iterator<Item = &'a RawDocumentBuf>) {
    let things = client.database(db).collection::<RawDocumentBuf>("c");
    things.delete_many(doc! {}).await.unwrap();
    let (literal, plain): (Vec<_>, Vec<_>) =
        all.partition(|d| oplogue_connectors::mongodb::literal::needs_literal(d.as_bytes()).unwrap());
    if !plain.is_empty() {
        things.insert_many(plain).await.unwrap();
    }
    let mut updates = bson::RawArrayBuf::new();
    for document in &literal {
        let stage = bson::rawdoc! { "$replaceWith": { "$literal": (*document).clone() } };
        updates.push(bson::rawdoc! { "q": { "_id": document.get_i32("_id").unwrap() }, "u": [stage], "upsert": true });
    }
    if !literal.is_empty() {
        let command = bson::rawdoc! { "update": "c", "updates": updates };
        let reply = client.database(db).run_raw_command(command).await.unwrap();
        assert!(!reply.contains_key("writeErrors"), "{reply}");
    }
}

/// Documents that have nothing to do with the entries, each with the number of the entry that meets it.
type Strangers = fn(&Trial) -> Vec<(usize, Documents)>;

/// Applies what the source logged to copies in all states. With `applier` the server's own is asked too, about
/// strangers as well.
async fn check(bench: &Bench, trial: &Trial, applier: Option<Strangers>) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    let last = trial.states.last().unwrap();
    for (number, state) in trial.states.iter().enumerate() {
        for overlap in [false, true] {
            // After the mark the target is in the right state, or the source is asked.
            if number > 0 && !overlap {
                continue;
            }
            put(&bench.client, "copy", state.values()).await;
            let rounds = trial.entries.values().map(Vec::len).max().unwrap_or_default();
            for round in 0..rounds {
                wrong.extend(apply(bench, trial, "copy.c", overlap, round).await);
            }
            let found = cases::documents(&bench.client, "copy", "c").await.unwrap();
            wrong.extend(compare(&format!("from state {number}, overlap {overlap}"), last, &found));
        }
    }
    wrong.extend(settled(bench, trial).await);
    for base in [Base::Target, Base::Replaced, Base::Inserted] {
        wrong.extend(joined(bench, trial, base).await);
    }
    if let Some(strangers) = applier {
        let strangers = strangers(trial);
        let states = [("a newer", 0, last), ("an older", 2, &trial.states[0]), ("an older", 1, &trial.states[0])];
        let strangers = strangers.iter().map(|(round, state)| ("a stranger's", *round, state));
        for (what, round, state) in states.into_iter().chain(strangers) {
            wrong.extend(against_the_applier(bench, trial, round, state, what).await);
        }
    }
    wrong
}

/// All entries at once, as they are settled when they collide on a unique key.
async fn settled(bench: &Bench, trial: &Trial) -> Vec<Wrong> {
    put(&bench.client, "copy", trial.states[0].values()).await;
    let writes: Vec<Write> = trial.entries.values().flatten().map(|e| e.write(bench, "copy.c", false)).collect();
    let mut wrong = match bench.sink.settle(&writes, true).await {
        Ok(report) => refused("settled", &writes, &report),
        // All of them go together: the first stands for all.
        Err(error) => writes.first().map(|write| Wrong::said(write, format!("settled: {error}"))).into_iter().collect(),
    };
    let found = cases::documents(&bench.client, "copy", "c").await.unwrap();
    wrong.extend(compare("settled in a transaction", trial.states.last().unwrap(), &found));
    wrong
}

/// What diffs that are joined are applied to.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Base {
    /// What the target has.
    Target,
    /// A document that goes with them and replaces the target's, in overlap.
    Replaced,
    /// A new document that goes with them.
    Inserted,
}

/// Each document's entries as one statement, where all of them are diffs.
async fn joined(bench: &Bench, trial: &Trial, base: Base) -> Vec<Wrong> {
    let stands = trial.states[0].values().filter(|_| base != Base::Inserted);
    put(&bench.client, "copy", stands).await;
    let mut writes = Vec::new();
    let mut expected = Documents::new();
    for (id, entries) in &trial.entries {
        let diffs: Option<Vec<Patch>> = entries.iter().map(|logged| diff(&logged.content)).collect();
        let (Some(patches), Some(start)) = (diffs, trial.states[0].get(id)) else { continue };
        let document = bytes::Bytes::copy_from_slice(start.as_bytes());
        let content = match base {
            Base::Target => Content::Patch(patches),
            Base::Replaced => Content::Patched { base: document, patches, inserted: false },
            Base::Inserted => Content::Patched { base: document, patches, inserted: true },
        };
        let overlap = base != Base::Inserted;
        let time = entries.last().unwrap().time;
        writes.push(Write { time, ..bench.write("src.c", "copy.c", &doc! { "_id": *id }, content, overlap) });
        expected.extend(trial.states.last().unwrap().get(id).map(|document| (*id, document.clone())));
    }
    let what = format!("in one statement, over {base:?}");
    let mut wrong = write(bench, &what, &writes).await;
    let mut found = cases::documents(&bench.client, "copy", "c").await.unwrap();
    found.retain(|id, _| expected.contains_key(id));
    wrong.extend(compare(&what, &expected, &found));
    wrong
}

fn diff(content: &Content) -> Option<Patch> {
    let Content::Patch(patches) = content else { return None };
    patches.first().filter(|patch| matches!(patch, Patch::Diff(_))).cloned()
}

/// Every document's place taken by what another one is.
fn exchanged(trial: &Trial) -> Vec<(usize, Documents)> {
    let documents = &trial.states[0];
    let others = documents.values().skip(1).chain(documents.values().take(1));
    let with_id = |id: i32, other: &RawDocumentBuf| {
        let mut document = bson::rawdoc! { "_id": id };
        let fields = other.iter().flatten().filter(|(name, _)| name.as_str() != "_id");
        fields.for_each(|(name, value)| document.append(name, value));
        document
    };
    vec![(0, documents.keys().zip(others).map(|(id, other)| (*id, with_id(*id, other))).collect())]
}

/// What a kept case has in none of its states: every field of another type, arrays that end early, elements that are no
/// documents, and nothing at all. Each entry of the case meets each of them.
fn contrary(trial: &Trial) -> Vec<(usize, Documents)> {
    let changes: [fn(RawBsonRef<'_>) -> Option<RawBson>; 4] = [
        |value| Some(if value.as_document().is_some() { 5.into() } else { bson::rawdoc! { "0": 1, "k": [1] }.into() }),
        |value| Some(if value.as_array().is_some() { bson::RawArrayBuf::new().into() } else { value.into() }),
        |value| Some(if value.as_array().is_some() { bson::rawbson!(["s", 7]) } else { bson::rawbson!([[1], "s"]) }),
        |_| None,
    ];
    let rounds = trial.entries.values().map(Vec::len).max().unwrap_or_default();
    let mut all = Vec::new();
    for change in changes {
        let of = |document: &RawDocumentBuf| {
            let mut stranger = RawDocumentBuf::new();
            for (name, value) in document.iter().flatten() {
                let value = if name.as_str() == "_id" { Some(value.into()) } else { change(value) };
                value.into_iter().for_each(|value: RawBson| stranger.append(name, value));
            }
            stranger
        };
        for state in [trial.states.first(), trial.states.last()].into_iter().flatten() {
            let strangers: Documents = state.iter().map(|(id, document)| (*id, of(document))).collect();
            all.extend((0..rounds).map(|round| (round, strangers.clone())));
        }
    }
    all
}

/// One entry of each document over another state, once and again, beside what the server's applier makes of it.
async fn against_the_applier(bench: &Bench, trial: &Trial, round: usize, state: &Documents, what: &str) -> Vec<Wrong> {
    put(&bench.client, "ours", state.values()).await;
    put(&bench.source, "theirs", state.values()).await;
    let mut writes = Vec::new();
    let mut list = Vec::new();
    // The applier refuses updates of documents that are not there.
    for (_, entries) in trial.entries.iter().filter(|(id, _)| state.contains_key(id)) {
        let Some(logged) = entries.get(round) else { continue };
        let Some(Patch::Diff(diff)) = diff(&logged.content) else { continue };
        writes.push(logged.write(bench, "ours.c", true));
        list.push(entry("theirs.c", &logged.key, &diff));
    }
    let mut wrong = Vec::new();
    for time in ["once", "twice"] {
        wrong.extend(write(bench, &format!("entry {round} over {what} state, {time}"), &writes).await);
        for chunk in list.chunks(100) {
            let mut entries = bson::RawArrayBuf::new();
            chunk.iter().for_each(|entry| entries.push(entry.clone()));
            let command = bson::rawdoc! { "applyOps": entries };
            bench.source.database("admin").run_raw_command(command).await.unwrap();
        }
        let expected = cases::documents(&bench.source, "theirs", "c").await.unwrap();
        let found = cases::documents(&bench.client, "ours", "c").await.unwrap();
        wrong.extend(compare(&format!("entry {round} over {what} state, {time}"), &expected, &found));
    }
    wrong
}

fn entry(namespace: &str, key: &bson::Document, diff: &[u8]) -> RawDocumentBuf {
    let diff = RawDocumentBuf::from_bytes(diff.to_vec()).unwrap();
    let key = RawDocumentBuf::try_from(key).unwrap();
    bson::rawdoc! { "op": "u", "ns": namespace, "o": { "$v": 2, "diff": diff }, "o2": key }
}

/// Applies the entry `round` of each document.
async fn apply(bench: &Bench, trial: &Trial, target: &str, overlap: bool, round: usize) -> Vec<Wrong> {
    let at = trial.entries.values().filter_map(|entries| entries.get(round));
    let writes: Vec<_> = at.map(|logged| logged.write(bench, target, overlap)).collect();
    write(bench, &format!("entry {round}, overlap {overlap}"), &writes).await
}

/// Writes; what is refused, or fails altogether, belongs to a case like a document that came out wrong.
async fn write(bench: &Bench, what: &str, writes: &[Write]) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    for chunk in writes.chunks(100) {
        match bench.sink.write(chunk).await {
            Ok(report) => wrong.extend(refused(what, chunk, &report)),
            Err(_) => {
                for write in chunk {
                    let alone = bench.sink.write(std::slice::from_ref(write)).await;
                    wrong.extend(alone.err().map(|error| Wrong::said(write, format!("{what}: {error}"))));
                }
            }
        }
    }
    wrong
}

fn refused(what: &str, writes: &[Write], report: &FlushReport) -> Vec<Wrong> {
    let of = |(at, refusal): &(usize, Refusal)| Wrong::said(&writes[*at], format!("{what}: refused: {refusal:?}"));
    report.refused.iter().map(of).collect()
}

fn compare(what: &str, expected: &Documents, found: &Documents) -> Vec<Wrong> {
    let mut ids: Vec<&i32> = expected.keys().chain(found.keys()).collect();
    ids.sort_unstable();
    ids.dedup();
    let bytes = |document: Option<&RawDocumentBuf>| document.map(|document| document.as_bytes().to_vec());
    let differs = ids.into_iter().filter(|id| bytes(expected.get(id)) != bytes(found.get(id)));
    differs
        .map(|id| Wrong {
            id: *id,
            what: what.to_owned(),
            expected: expected.get(id).cloned(),
            found: found.get(id).cloned(),
        })
        .collect()
}

/// Tries kept cases, each on its own, so that the message names all that fail.
pub(super) async fn try_kept(pair: &Pair, capture: &Capture, kept: &[(String, Case)], applier: bool) {
    let bench = pair.bench(SinkOptions::default());
    let applier = applier.then_some(contrary as Strangers);
    let mut failed = Vec::new();
    for (name, case) in kept {
        let trial = record(&bench, capture, std::slice::from_ref(case)).await;
        let wrong = check(&bench, &trial, applier).await;
        failed.extend(wrong.first().map(|wrong| format!("{name}: {wrong}\n case {}", case.shown())));
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
