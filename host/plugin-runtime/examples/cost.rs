//! What a plugin costs: each kind of work done by a guest and beside it by native code, in nanoseconds an entry.
//!
//! Every case of a group does the same work on the same batch, which is checked before anything is timed; then all
//! cases take turns, in one order and back again, so that what disturbs the machine disturbs all of them. The two
//! turns of a case are its A/A control: how far their medians lie apart is the noise to read the ratios with. Only
//! the pass over a batch is timed, never the making of it. It lives here because nothing but this package links
//! wasmtime; it judges nothing and fails only when a guest and native code disagree.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::hint::black_box;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bson::oid::ObjectId;
use bson::{Bson, Document, RawDocument, doc};
use bytes::Bytes;
use oplogue_engine::budget::Permit;
use oplogue_engine::model::raw::{Elements, Malformed, kind};
use oplogue_engine::model::{Change, ChangeBatch, NamespaceId, Namespaces, OpTime, Operation, Position};
use oplogue_engine::plugin::{PluginChain, retain};
use oplogue_plugin_runtime::{Chain, ChainOptions, PluginSpec};
use serde_json::{Value, json};

type Fallible<T> = Result<T, Box<dyn Error>>;
type Pass = Box<dyn FnMut(&mut ChangeBatch) -> Fallible<()>>;

const ENTRIES: usize = 1000;
const NAMESPACES: usize = 8;
/// Key and body of an average entry.
const ENTRY_BYTES: usize = 341;
const KEY_BYTES: usize = 22;
/// Share of the entries that are deletes: every tenth, and they have a key only.
const DELETE_EVERY: usize = 10;

const WARM_UP: usize = if cfg!(debug_assertions) { 2 } else { 20 };
const ROUNDS: usize = if cfg!(debug_assertions) { 10 } else { 200 };
/// Passes of a turn, the first of which is not timed.
const PASSES: usize = 5;
const TIMED: usize = 2 * ROUNDS * (PASSES - 1);
const PROFILE: &str = if cfg!(debug_assertions) { "dev" } else { "release" };

/// The namespace that the filters drop: one of eight.
const DROPPED: &str = "shop.c7";
const DELAY_MS: u32 = 1000;
const FIELD: &str = "ssn";
const MASK: &str = "***";

/// One way to do a group's work.
struct Case {
    group: &'static str,
    name: &'static str,
    pass: Pass,
    /// Nanoseconds a batch in the first and in the second turn of each round.
    turns: [Vec<f64>; 2],
}

fn main() -> Fallible<()> {
    let names = Namespaces::shared();
    let template = template(&names)?;
    let mut cases = cases(&names)?;
    check(&mut cases, &template)?;
    for round in 0..WARM_UP + ROUNDS {
        let timed = round >= WARM_UP;
        for case in &mut cases {
            turn(case, &template, 0, timed)?;
        }
        for case in cases.iter_mut().rev() {
            turn(case, &template, 1, timed)?;
        }
    }
    report(&cases, &template)
}

fn cases(names: &Arc<Namespaces>) -> Fallible<Vec<Case>> {
    let black = json!({ "black": [DROPPED] });
    let rename = json!({ "rules": ["shop:store"] });
    let filter = || PluginSpec::embedded("namespace-filter", black.clone());
    let mask = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/mask-field/mask-field.wasm");
    let case = |group, name, pass| Case { group, name, pass, turns: [Vec::new(), Vec::new()] };
    let guest = |group, name, specs| Ok::<_, Box<dyn Error>>(case(group, name, chain(names, specs)?));
    Ok(vec![
        case("route: filter", "native HashSet", native_filter(names)),
        guest("route: filter", "namespace-filter", vec![filter()])?,
        case("route: filter, rename", "native HashMap", native_rename(names)),
        guest(
            "route: filter, rename",
            "namespace-filter + namespace-rename",
            vec![filter(), PluginSpec::embedded("namespace-rename", rename)],
        )?,
        case("route: default chain", "native HashSet and op", native_default(names)),
        guest(
            "route: default chain",
            "namespace-filter + ddl-filter",
            vec![
                PluginSpec::embedded("namespace-filter", json!({})),
                PluginSpec::embedded("ddl-filter", json!({ "enable": false })),
            ],
        )?,
        case("envelope: delay", "native loop", Box::new(native_delay)),
        guest(
            "envelope: delay",
            "target-delay",
            vec![PluginSpec::embedded("target-delay", json!({ "delay_ms": DELAY_MS }))],
        )?,
        case("body: mask a field", "native walk over raw BSON", Box::new(native_mask)),
        case("body: mask a field", "native bson::Document", Box::new(document_mask)),
        guest(
            "body: mask a field",
            "mask-field",
            vec![PluginSpec::file("mask-field", mask, json!({ "mask": [FIELD], "with": MASK }))],
        )?,
    ])
}

fn chain(names: &Arc<Namespaces>, specs: Vec<PluginSpec>) -> Fallible<Pass> {
    let options = ChainOptions { watch: false, ..ChainOptions::default() };
    let mut worker = Chain::build(specs, Arc::clone(names), options)?.worker()?;
    Ok(Box::new(move |batch| {
        black_box(worker.process(batch)?);
        Ok(())
    }))
}

fn native_filter(names: &Namespaces) -> Pass {
    let dropped = HashSet::from([names.intern(DROPPED)]);
    Box::new(move |batch| {
        retain(batch, |change| !dropped.contains(&change.target));
        Ok(())
    })
}

fn native_rename(names: &Namespaces) -> Pass {
    let kept = (0..NAMESPACES).map(|i| format!("c{i}")).filter(|name| !DROPPED.ends_with(name));
    let targets: HashMap<NamespaceId, NamespaceId> =
        kept.map(|name| (names.intern(&format!("shop.{name}")), names.intern(&format!("store.{name}")))).collect();
    Box::new(move |batch| {
        retain(batch, |change| match targets.get(&change.target) {
            Some(target) => {
                change.target = *target;
                true
            }
            None => false,
        });
        Ok(())
    })
}

/// Drops what the default chain drops: the server's own databases and DDL. Neither is in the batch.
fn native_default(names: &Namespaces) -> Pass {
    let dropped = HashSet::from(["admin.x", "config.x", "local.x"].map(|name| names.intern(name)));
    Box::new(move |batch| {
        retain(batch, |change| change.operation != Operation::Ddl && !dropped.contains(&change.target));
        Ok(())
    })
}

fn native_delay(batch: &mut ChangeBatch) -> Fallible<()> {
    for change in &mut batch.changes {
        if change.operation != Operation::Snapshot {
            change.not_before_ms = change.wall_ms + i64::from(DELAY_MS);
        }
    }
    Ok(())
}

/// The best that native code can do: one walk, long copies, one buffer for all new bodies.
fn native_mask(batch: &mut ChangeBatch) -> Fallible<()> {
    let mut out = Vec::with_capacity(ENTRIES * ENTRY_BYTES);
    let mut edited = Vec::with_capacity(ENTRIES);
    for (at, change) in batch.changes.iter().enumerate().filter(|(_, change)| !change.body.is_empty()) {
        let start = out.len();
        if mask(&change.body, change.operation == Operation::UpdateDiff, &mut out)? {
            edited.push((at, start..out.len()));
        } else {
            out.truncate(start);
        }
    }
    let out = Bytes::from(out);
    for (at, range) in edited {
        if let Some(change) = batch.changes.get_mut(at) {
            change.body = out.slice(range);
        }
    }
    Ok(())
}

/// Appends `document` with the field masked; in a diff the field stands below `u` and `i`. `false` = no such field.
fn mask(document: &[u8], diff: bool, out: &mut Vec<u8>) -> Result<bool, Malformed> {
    let start = out.len();
    let (mut copied, mut changed) = (0, false);
    for element in Elements::new(document)? {
        let element = element?;
        if element.name == FIELD.as_bytes() {
            let before = element.offset - element.name.len() - 2;
            out.extend_from_slice(document.get(copied..before).unwrap_or_default());
            out.push(kind::STRING);
            out.extend_from_slice(FIELD.as_bytes());
            out.push(0);
            out.extend_from_slice(&(MASK.len() as u32 + 1).to_le_bytes());
            out.extend_from_slice(MASK.as_bytes());
            out.push(0);
            copied = element.end();
            changed = true;
        } else if diff && matches!(element.name, b"u" | b"i") && element.kind == kind::DOCUMENT {
            out.extend_from_slice(document.get(copied..element.offset).unwrap_or_default());
            changed |= mask(element.value, false, out)?;
            copied = element.end();
        }
    }
    out.extend_from_slice(document.get(copied..).unwrap_or_default());
    let length = (out.len() - start) as u32;
    if let Some(place) = out.get_mut(start..start + 4) {
        place.copy_from_slice(&length.to_le_bytes());
    }
    Ok(changed)
}

/// What native code does that knows documents only as trees: decode, edit, encode.
fn document_mask(batch: &mut ChangeBatch) -> Fallible<()> {
    for change in batch.changes.iter_mut().filter(|change| !change.body.is_empty()) {
        let mut document = Document::try_from(RawDocument::from_bytes(&change.body)?)?;
        let changed = if change.operation == Operation::UpdateDiff {
            let parts = ["u", "i"].map(|part| document.get_document_mut(part).is_ok_and(overwrite));
            parts.contains(&true)
        } else {
            overwrite(&mut document)
        };
        if changed {
            change.body = Bytes::from(document.to_vec()?);
        }
    }
    Ok(())
}

fn overwrite(document: &mut Document) -> bool {
    document.get_mut(FIELD).map(|value| *value = Bson::String(MASK.to_owned())).is_some()
}

/// The entries that every pass begins with: half inserts, two fifths updates, one tenth deletes.
fn template(names: &Namespaces) -> Fallible<Vec<Change>> {
    (0..ENTRIES).map(|i| entry(names, i)).collect()
}

fn entry(names: &Namespaces, i: usize) -> Fallible<Change> {
    let namespace = names.intern(&format!("shop.c{}", i % NAMESPACES));
    let mut id = [0; 12];
    id.iter_mut().zip((i as u64).to_be_bytes()).for_each(|(to, byte)| *to = byte);
    let key = doc! { "_id": ObjectId::from_bytes(id) };
    let size = (ENTRY_BYTES * DELETE_EVERY - KEY_BYTES) / (DELETE_EVERY - 1);
    let (operation, key, body) = match i % DELETE_EVERY {
        9 => (Operation::Delete, key, None),
        n @ (1 | 3 | 5 | 7) => (Operation::UpdateDiff, key, Some(sized(size - KEY_BYTES, |pad| diff(i, n < 4, pad))?)),
        _ => (Operation::Insert, doc! {}, Some(sized(size, |pad| document(&key, i, pad))?)),
    };
    let inserted = operation == Operation::Insert;
    Ok(Change {
        operation,
        source: namespace,
        target: namespace,
        key: if inserted { Bytes::new() } else { Bytes::from(key.to_vec()?) },
        body: body.unwrap_or_default(),
        time: OpTime::new(1_700_000_000, i as u32 + 1, 1),
        wall_ms: 1_700_000_000_000 + i as i64,
        collection: None,
        origin: None,
        not_before_ms: 0,
        moved: false,
        creates: false,
        ddl: None,
    })
}

fn document(key: &Document, i: usize, pad: &str) -> Document {
    let mut document = key.clone();
    document.extend(doc! {
        "name": format!("customer {i}"), "n": i as i64, FIELD: format!("{i:09}"), "score": i as f64 / 3.0,
        "tags": ["a", "b", "c"], "home": { "city": "Aarhus", "zip": i as i32 }, "pad": pad,
    });
    document
}

/// Half of the updates touch the field that is masked.
fn diff(i: usize, masked: bool, pad: &str) -> Document {
    let field = if masked { FIELD } else { "note" };
    doc! { "u": { "n": i as i64, field: format!("{i:09}"), "pad": pad }, "shome": { "u": { "zip": i as i32 } } }
}

/// The document that `make` makes with as much padding as brings it to `bytes`.
fn sized(bytes: usize, make: impl Fn(&str) -> Document) -> Fallible<Bytes> {
    let bare = make("").to_vec()?.len();
    Ok(Bytes::from(make(&"x".repeat(bytes.saturating_sub(bare))).to_vec()?))
}

fn batch(template: &[Change]) -> ChangeBatch {
    let last = Position::Oplog(OpTime::new(1_700_000_001, 1, 1));
    ChangeBatch { seq: 0, changes: template.to_vec(), last, atomic: false, permit: Arc::new(Permit::none()) }
}

/// Every case of a group must do to a batch what the group's first one does.
fn check(cases: &mut [Case], template: &[Change]) -> Fallible<()> {
    let mut first: HashMap<&str, Vec<_>> = HashMap::new();
    for case in cases {
        let mut batch = batch(template);
        (case.pass)(&mut batch)?;
        let done: Vec<_> = batch
            .changes
            .into_iter()
            .map(|change| (change.operation, change.target, change.key, change.body, change.not_before_ms))
            .collect();
        if let Some(expected) = first.get(case.group)
            && *expected != done
        {
            return Err(format!("{}: {} does other work than native code", case.group, case.name).into());
        }
        first.entry(case.group).or_insert(done);
    }
    Ok(())
}

/// Passes over several batches and times all but the first: what the case before left in caches and in the
/// allocator is not this one's cost.
fn turn(case: &mut Case, template: &[Change], which: usize, timed: bool) -> Fallible<()> {
    for pass in 0..PASSES {
        let mut batch = black_box(batch(template));
        let started = Instant::now();
        (case.pass)(&mut batch)?;
        let took = started.elapsed();
        black_box(&batch);
        if timed
            && pass > 0
            && let Some(times) = case.turns.get_mut(which)
        {
            times.push(took.as_nanos() as f64);
        }
    }
    Ok(())
}

fn report(cases: &[Case], template: &[Change]) -> Fallible<()> {
    let bytes = (template.iter().map(Change::bytes).sum::<usize>() + ENTRIES / 2) / ENTRIES;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{ENTRIES} entries of {bytes} bytes in {NAMESPACES} namespaces, {TIMED} timed passes, {PROFILE} build"
    )?;
    writeln!(out, "{:<24}{:<38}{:>10}{:>8}{:>8}", "", "", "ns/entry", "ratio", "A/A %")?;
    let rows: Vec<_> = cases.iter().map(|case| (case, Row::of(case, cases))).collect();
    for (case, row) in &rows {
        let noise = row.noise * 100.0;
        writeln!(out, "{:<24}{:<38}{:>10.1}{:>8.2}{noise:>8.1}", case.group, case.name, row.ns, row.ratio)?;
    }
    for (case, row) in &rows {
        writeln!(out, "{}", row.json(case))?;
    }
    Ok(())
}

/// A case's result.
struct Row {
    ns: f64,
    /// To the first case of the group, which is native.
    ratio: f64,
    /// How far the medians of the two turns lie apart, as a share of the smaller one.
    noise: f64,
}

impl Row {
    fn of(case: &Case, all: &[Case]) -> Self {
        let native = all.iter().find(|other| other.group == case.group).unwrap_or(case);
        let ns = |case: &Case| median(case.turns.iter().flatten().copied().collect()) / ENTRIES as f64;
        let [a, b] = case.turns.each_ref().map(|times| median(times.clone()));
        Self { ns: ns(case), ratio: ns(case) / ns(native), noise: (a - b).abs() / a.min(b) }
    }

    fn json(&self, case: &Case) -> Value {
        let round = |value: f64| (value * 1000.0).round() / 1000.0;
        json!({
            "bench": "plugins", "group": case.group, "case": case.name, "ns_per_entry": round(self.ns),
            "ratio": round(self.ratio), "noise": round(self.noise), "passes": TIMED, "profile": PROFILE,
        })
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}
