//! Property test of the exact path, with the server as oracle.
//!
//! Random pairs of documents are written to a source collection, so that the server computes the diffs. The diffs go
//! through the sink to documents in the right state, in an older one and in a newer one. In the right state the result
//! must equal the source's bytes; in the others it must equal what the server's own applier makes of the same entry
//! (`applyOps`). The seed is printed; set `OPLOGUE_SEED` to repeat a run.

use bson::{Bson, Document, RawDocumentBuf, doc};
use futures_util::TryStreamExt as _;
use oplogue_connectors::mongodb::sink::SinkOptions;
use oplogue_engine::sink::{Content, Patch};
use oplogue_tests::servers::ReplicaSet;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::support::{Bench, content, now, oplog, raw, shown};

const CASES: usize = 1000;
const NAMES: [&str; 14] = ["a", "b", "c", "d1", "zz", "a.b", ".", "", "$x", "$", "0", "1", "10", "é"];

fn seed() -> u64 {
    let seed = std::env::var("OPLOGUE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("OPLOGUE_SEED={seed}");
    seed
}

fn scalar(rng: &mut StdRng) -> Bson {
    match rng.random_range(0..12) {
        0 => Bson::Null,
        1 => Bson::Double(f64::from_bits(0x7ff8_0000_dead_beef)),
        2 => Bson::Double(-0.0),
        3 => Bson::String("$a.b".into()),
        4 => Bson::Boolean(rng.random()),
        5 => Bson::Timestamp(bson::Timestamp { time: 0, increment: 0 }),
        6 => Bson::Int64(rng.random_range(0..5)),
        7 => Bson::MinKey,
        8 => Bson::Decimal128("1.00".parse().unwrap()),
        _ => Bson::Int32(rng.random_range(0..50)),
    }
}

fn value(rng: &mut StdRng, depth: usize) -> Bson {
    match rng.random_range(0..6) {
        0 | 1 if depth > 0 => Bson::Document(document(rng, depth - 1)),
        2 | 3 if depth > 0 => {
            let length = rng.random_range(0..6);
            // Long strings make diffs cheaper than whole values, so that the server really logs diffs.
            let mut items: Vec<Bson> = (0..length).map(|_| value(rng, depth - 1)).collect();
            items.push(padding(rng));
            Bson::Array(items)
        }
        _ => scalar(rng),
    }
}

fn padding(rng: &mut StdRng) -> Bson {
    Bson::String("p".repeat(rng.random_range(40..80)))
}

fn document(rng: &mut StdRng, depth: usize) -> Document {
    let mut document = Document::new();
    for _ in 0..rng.random_range(0..6) {
        let name = NAMES[rng.random_range(0..NAMES.len())];
        document.insert(name, value(rng, depth));
    }
    document.insert("pad", padding(rng));
    document
}

fn mutate(rng: &mut StdRng, value: &Bson, depth: usize) -> Bson {
    if let Bson::Document(inner) = value
        && rng.random_ratio(7, 8)
    {
        return Bson::Document(mutate_document(rng, inner, depth));
    }
    let Bson::Array(items) = value else { return self::value(rng, depth) };
    let mut items = items.clone();
    for _ in 0..rng.random_range(1..3) {
        match rng.random_range(0..4) {
            0 if items.len() > 1 => items.truncate(rng.random_range(1..items.len())),
            1 => items.push(self::value(rng, depth)),
            _ if !items.is_empty() => {
                let at = rng.random_range(0..items.len());
                items[at] = mutate(rng, &items[at].clone(), depth.saturating_sub(1));
            }
            _ => {}
        }
    }
    Bson::Array(items)
}

fn mutate_document(rng: &mut StdRng, old: &Document, depth: usize) -> Document {
    let mut new = old.clone();
    for _ in 0..rng.random_range(1..4) {
        let names: Vec<String> = new.keys().filter(|k| *k != "pad" && *k != "_id").cloned().collect();
        match rng.random_range(0..5) {
            0 => {
                let name = NAMES[rng.random_range(0..NAMES.len())];
                let old = new.remove(name);
                new.insert(name, old.unwrap_or_else(|| value(rng, depth)));
            }
            1 if !names.is_empty() => {
                new.remove(&names[rng.random_range(0..names.len())]);
            }
            _ if !names.is_empty() => {
                let name = &names[rng.random_range(0..names.len())];
                let inner = new.get(name).unwrap().clone();
                new.insert(name.clone(), mutate(rng, &inner, depth.saturating_sub(1)));
            }
            _ => {
                new.insert(NAMES[rng.random_range(0..NAMES.len())], value(rng, depth));
            }
        }
    }
    new
}

/// One document's history: its states, and the contents the server logged between them.
struct Case {
    id: Document,
    states: Vec<Document>,
    changes: Vec<Content>,
}

/// Writes every state of every case to `src.c` and reads the changes back from the oplog.
async fn history(bench: &Bench, rng: &mut StdRng) -> Vec<Case> {
    let mut cases = Vec::new();
    for id in 0..i32::try_from(CASES).unwrap() {
        let mut first = doc! { "_id": id };
        first.extend(document(rng, 4));
        first.insert("filler", "f".repeat(300));
        let mut states = vec![first];
        for _ in 0..3 {
            states.push(mutate_document(rng, states.last().unwrap(), 4));
        }
        cases.push(Case { id: doc! { "_id": id }, states, changes: Vec::new() });
    }
    let since = now(&bench.client).await;
    for step in 0..4 {
        put(bench, "src.c", cases.iter().map(|case| &case.states[step])).await;
    }
    for entry in oplog(&bench.client, since, doc! { "ns": "src.c", "op": "u" }).await {
        let (id, content) = content(&entry);
        let at = usize::try_from(id.get_i32("_id").unwrap()).unwrap();
        cases[at].changes.push(content);
    }
    let diffs = cases.iter().flat_map(|c| &c.changes).filter(|c| matches!(c, Content::Patch(_))).count();
    println!("{diffs} diffs in {} updates", cases.iter().map(|c| c.changes.len()).sum::<usize>());
    assert!(diffs > CASES, "too few diffs to mean anything");
    cases
}

/// Makes each document what is given, byte for byte, by a pipeline: the server logs the difference.
async fn put<'a>(bench: &Bench, namespace: &str, documents: impl Iterator<Item = &'a Document>) {
    let (db, collection) = namespace.split_once('.').unwrap();
    let updates: Vec<Document> = documents
        .map(|d| doc! { "q": { "_id": d.get("_id").unwrap() }, "u": [{ "$replaceWith": { "$literal": d } }], "upsert": true })
        .collect();
    for chunk in updates.chunks(500) {
        let command = doc! { "update": collection, "updates": chunk, "ordered": false };
        let reply = bench.client.database(db).run_command(command).await.unwrap();
        assert!(!reply.contains_key("writeErrors"), "{reply}");
    }
}

async fn by_id(bench: &Bench, namespace: &str) -> Vec<RawDocumentBuf> {
    let (db, collection) = namespace.split_once('.').unwrap();
    let collection = bench.client.database(db).collection::<RawDocumentBuf>(collection);
    collection.find(doc! {}).sort(doc! { "_id": 1 }).await.unwrap().try_collect().await.unwrap()
}

fn assert_same(what: &str, cases: &[Case], expected: &[RawDocumentBuf], found: &[RawDocumentBuf]) {
    assert_eq!(expected.len(), found.len(), "{what}: number of documents");
    let mut wrong = 0;
    for (expected, found) in expected.iter().zip(found) {
        if expected.as_bytes() != found.as_bytes() {
            wrong += 1;
            if wrong <= 3 {
                let at = usize::try_from(expected.get_i32("_id").unwrap()).unwrap();
                println!("{what}:\n expected {}\n found    {}", shown(expected), shown(found));
                println!(" case {:?}", cases[at].changes.iter().map(readable).collect::<Vec<_>>());
            }
        }
    }
    assert_eq!(wrong, 0, "{what}: {wrong} of {} documents differ", expected.len());
}

fn readable(content: &Content) -> String {
    let bytes = match content {
        Content::Patch(patches) => match &patches[0] {
            Patch::Diff(diff) | Patch::Modifiers(diff) => diff,
        },
        Content::Insert(b) | Content::Replace(b) => b,
        other @ (Content::Patched { .. } | Content::Delete) => return format!("{other:?}"),
    };
    shown(&RawDocumentBuf::from_bytes(bytes.to_vec()).unwrap())
}

async fn flush(bench: &Bench, target: &str, cases: &[Case], overlap: bool, content: impl Fn(&Case) -> Option<Content>) {
    let writes: Vec<_> =
        cases.iter().filter_map(|case| Some(bench.write("src.c", target, &case.id, content(case)?, overlap))).collect();
    use oplogue_engine::sink::Sink as _;
    for chunk in writes.chunks(400) {
        let report = bench.sink.write(chunk).await.unwrap();
        assert_eq!(report.refused, [], "{target}");
    }
}

#[tokio::test]
async fn exact_updates_give_the_sources_bytes_in_the_right_state() {
    let set = ReplicaSet::single().await.unwrap();
    let bench = Bench::new(set.client(), SinkOptions::default());
    let mut rng = StdRng::seed_from_u64(seed());
    let cases = history(&bench, &mut rng).await;
    let expected = by_id(&bench, "src.c").await;
    for (target, overlap) in [("exact.c", true), ("fast.c", false)] {
        put(&bench, target, cases.iter().map(|case| &case.states[0])).await;
        for step in 0..3 {
            flush(&bench, target, &cases, overlap, |case| case.changes.get(step).cloned()).await;
        }
        assert_same(target, &cases, &expected, &by_id(&bench, target).await);
    }
    let counts = bench.sink.counts();
    println!("{counts:?}");
    assert!(counts.fast > 0 && counts.exact > 0, "{counts:?}");
    assert_eq!((counts.refetched, counts.missing), (0, 0), "{counts:?}");
    // Several updates as one statement, over what stands there and over a whole document.
    let patches = |case: &Case| -> Option<Vec<Patch>> {
        let one = |c: &Content| match c {
            Content::Patch(patches) => Some(patches[0].clone()),
            Content::Insert(_) | Content::Replace(_) | Content::Patched { .. } | Content::Delete => None,
        };
        (case.changes.len() == 3).then(|| case.changes.iter().map(one).collect())?
    };
    let joined: Vec<&Case> = cases.iter().filter(|case| patches(case).is_some()).collect();
    assert!(joined.len() > 100);
    let ids: Vec<i32> = joined.iter().map(|case| case.id.get_i32("_id").unwrap()).collect();
    let expected: Vec<_> = expected.into_iter().filter(|d| ids.contains(&d.get_i32("_id").unwrap())).collect();
    put(&bench, "joined.c", joined.iter().map(|case| &case.states[0])).await;
    flush(&bench, "joined.c", &cases, true, |case| patches(case).map(Content::Patch)).await;
    assert_same("joined", &cases, &expected, &by_id(&bench, "joined.c").await);
    flush(&bench, "patched.c", &cases, true, |case| {
        Some(Content::Patched { base: raw(&case.states[0]), patches: patches(case)? })
    })
    .await;
    assert_same("patched", &cases, &expected, &by_id(&bench, "patched.c").await);
}

#[tokio::test]
async fn exact_updates_do_what_the_servers_applier_does_in_any_state() {
    let set = ReplicaSet::single().await.unwrap();
    let bench = Bench::new(set.client(), SinkOptions::default());
    let mut rng = StdRng::seed_from_u64(seed());
    let cases = history(&bench, &mut rng).await;
    // Every change meets an older state, a newer one, and a stranger's.
    let strangers: Vec<Document> = cases
        .iter()
        .map(|case| {
            let mut stranger = case.id.clone();
            stranger.extend(document(&mut rng, 3));
            stranger
        })
        .collect();
    for (round, state) in [("newer", 3), ("older", 0), ("stranger", 9)] {
        let change = |case: &Case| match state {
            3 => case.changes.first().cloned(),
            0 => case.changes.get(2).cloned(),
            _ => case.changes.get(1).cloned(),
        };
        let change = |case: &Case| change(case).filter(|c| matches!(c, Content::Patch(_)));
        let (ours, theirs) = (format!("ours.{round}"), format!("theirs.{round}"));
        for namespace in [&ours, &theirs] {
            let start = cases.iter().zip(&strangers).map(|(case, stranger)| case.states.get(state).unwrap_or(stranger));
            put(&bench, namespace, start).await;
        }
        apply_ops(&bench, &theirs, &cases, change).await;
        flush(&bench, &ours, &cases, true, change).await;
        assert_same(round, &cases, &by_id(&bench, &theirs).await, &by_id(&bench, &ours).await);
        // Applying it again changes nothing more than the server's applier would.
        apply_ops(&bench, &theirs, &cases, change).await;
        flush(&bench, &ours, &cases, true, change).await;
        assert_same(&format!("{round} twice"), &cases, &by_id(&bench, &theirs).await, &by_id(&bench, &ours).await);
    }
}

/// Applies diffs with the server's own applier.
async fn apply_ops(bench: &Bench, namespace: &str, cases: &[Case], change: impl Fn(&Case) -> Option<Content>) {
    let mut entries = Vec::new();
    for case in cases {
        let Some(Content::Patch(patches)) = change(case) else { continue };
        let Patch::Diff(diff) = &patches[0] else { continue };
        let mut o = RawDocumentBuf::new();
        o.append(bson::cstr!("$v"), 2);
        o.append(bson::cstr!("diff"), RawDocumentBuf::from_bytes(diff.to_vec()).unwrap());
        let mut entry = RawDocumentBuf::new();
        entry.append(bson::cstr!("op"), "u");
        entry.append(bson::cstr!("ns"), namespace);
        entry.append(bson::cstr!("o"), o);
        entry.append(bson::cstr!("o2"), RawDocumentBuf::try_from(&case.id).unwrap());
        entries.push(entry);
    }
    for chunk in entries.chunks(200) {
        let mut list = bson::RawArrayBuf::new();
        chunk.iter().for_each(|entry| list.push(entry.clone()));
        let mut command = RawDocumentBuf::new();
        command.append(bson::cstr!("applyOps"), list);
        let reply = bench.client.database("admin").run_raw_command(command).await.unwrap();
        let results = reply.get_array("results").unwrap();
        assert!(results.iter().all(|r| r.as_bool() == Some(true)), "{reply}");
    }
}

#[tokio::test]
async fn diffs_that_others_lose_are_applied() {
    let set = ReplicaSet::single().await.unwrap();
    let bench = Bench::new(set.client(), SinkOptions::default());
    let start = doc! { "_id": 1, "x": 0, "arr": ["a", "b", "c", "d"], "two": [1, 2, 3], "obj": { "k": 0, "a.b": 0 } };
    let vectors = [
        (
            doc! { "u": { "x": 1 }, "sarr": { "a": true, "l": 2 } },
            doc! { "_id": 1, "x": 1, "arr": ["a", "b"], "two": [1, 2, 3], "obj": { "k": 0, "a.b": 0 } },
        ),
        (
            doc! { "sarr": { "a": true, "l": 2, "u0": "new" } },
            doc! { "_id": 1, "x": 0, "arr": ["new", "b"], "two": [1, 2, 3], "obj": { "k": 0, "a.b": 0 } },
        ),
        (
            doc! { "sarr": { "a": true, "l": 2 }, "sobj": { "u": { "k": 9 } } },
            doc! { "_id": 1, "x": 0, "arr": ["a", "b"], "two": [1, 2, 3], "obj": { "k": 9, "a.b": 0 } },
        ),
        (
            doc! { "sarr": { "a": true, "l": 2 }, "stwo": { "a": true, "l": 1 } },
            doc! { "_id": 1, "x": 0, "arr": ["a", "b"], "two": [1], "obj": { "k": 0, "a.b": 0 } },
        ),
        (
            doc! { "sobj": { "u": { "a.b": 1 } } },
            doc! { "_id": 1, "x": 0, "arr": ["a", "b", "c", "d"], "two": [1, 2, 3], "obj": { "k": 0, "a.b": 1 } },
        ),
    ];
    use oplogue_engine::sink::Sink as _;
    for overlap in [true, false] {
        for (diff, expected) in &vectors {
            let id = doc! { "_id": 1 };
            let things = bench.client.database("vec").collection::<Document>("c");
            things.delete_many(doc! {}).await.unwrap();
            things.insert_one(&start).await.unwrap();
            let patch = Content::Patch(vec![Patch::Diff(raw(diff))]);
            let write = bench.write("vec.c", "vec.c", &id, patch, overlap);
            assert_eq!(bench.sink.write(&[write]).await.unwrap().refused, []);
            assert_eq!(&things.find_one(id).await.unwrap().unwrap(), expected, "{diff}");
        }
    }
}
