//! The state machine against a model target, by seed: random changes, random completion order, crashes and replays.
//!
//! The model applies what the core flushes to maps of documents; a document is the list of the patches it got. After
//! any crash or shutdown the stream is replayed from the last watermark, in overlap, and at the end the target must equal the
//! source. A printed seed replays the failing run exactly.

use std::collections::{BTreeMap, VecDeque};

use bson::rawdoc;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::model::ddl::Routed;
use crate::model::{Ddl, Operation};
use crate::sink::{Content, Patch};

type Docs = BTreeMap<(NamespaceId, i32), Vec<i32>>;

/// A source: its log and the state after each entry.
struct Source {
    log: Vec<Change>,
    state: Docs,
}

fn number(body: &[u8], field: &str) -> i32 {
    bson::RawDocument::from_bytes(body).unwrap().get_i32(field).unwrap()
}

fn bytes(doc: bson::RawDocumentBuf) -> Bytes {
    Bytes::from(doc.into_bytes())
}

fn change(operation: Operation, ns: NamespaceId, inc: u32, key: Bytes, body: Bytes) -> Change {
    Change {
        operation,
        source: ns,
        target: ns,
        key,
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

fn source(seed: &mut StdRng, namespaces: &Namespaces, entries: u32) -> Source {
    let all: Vec<_> = (0..3).map(|n| namespaces.intern(&format!("db.c{n}"))).collect();
    let mut made = Source { log: Vec::new(), state: Docs::new() };
    for inc in 1..=entries {
        let ns = all[seed.random_range(0..all.len())];
        let id = seed.random_range(0..6);
        let key = bytes(rawdoc! { "_id": id });
        let stamp = inc as i32;
        let known = made.state.contains_key(&(ns, id));
        let entry = match seed.random_range(0..20) {
            0 => {
                made.state.retain(|(other, _), _| *other != ns);
                let mut drop = change(Operation::Ddl, ns, inc, Bytes::new(), Bytes::new());
                drop.ddl = Some(Box::new(Ddl::Drop { namespace: Routed::same(ns) }));
                drop
            }
            1 => {
                let mut create = change(Operation::Ddl, ns, inc, Bytes::new(), Bytes::new());
                let options = bytes(rawdoc! {});
                create.ddl = Some(Box::new(Ddl::Create { namespace: Routed::same(ns), options }));
                create
            }
            2..=5 if known => {
                made.state.remove(&(ns, id));
                change(Operation::Delete, ns, inc, key, Bytes::new())
            }
            6..=13 if known => {
                made.state.get_mut(&(ns, id)).unwrap().push(stamp);
                change(Operation::UpdateDiff, ns, inc, key, bytes(rawdoc! { "p": stamp }))
            }
            _ if known => {
                made.state.insert((ns, id), vec![stamp]);
                change(Operation::Replace, ns, inc, key, bytes(rawdoc! { "_id": id, "p": stamp }))
            }
            _ => {
                made.state.insert((ns, id), vec![stamp]);
                change(Operation::Insert, ns, inc, Bytes::new(), bytes(rawdoc! { "_id": id, "p": stamp }))
            }
        };
        made.log.push(entry);
    }
    made
}

/// The model target. `dropped` stands for the identity map: a drop of that time was executed already.
#[derive(Default)]
struct Target {
    docs: Docs,
    executed: std::collections::HashSet<u32>,
    rng: Option<StdRng>,
}

impl Target {
    fn apply(&mut self, write: &Write) {
        let id = number(&write.key, "_id");
        let at = (write.target, id);
        let patch = |doc: &mut Vec<i32>, patches: &[Patch]| {
            for patch in patches {
                let (Patch::Diff(body) | Patch::Modifiers(body)) = patch;
                let stamp = number(body, "p");
                // Idempotent like `$set`: a patch applied again moves nothing.
                if !doc.contains(&stamp) {
                    doc.push(stamp);
                }
            }
        };
        match &write.content {
            Content::Insert(doc) | Content::Replace(doc) => {
                self.docs.insert(at, vec![number(doc, "p")]);
            }
            Content::Patch(patches) => match self.docs.get_mut(&at) {
                Some(doc) => patch(doc, patches),
                None => assert!(write.overlap, "an update of a missing document after the mark: {write:?}"),
            },
            Content::Patched { base, patches, .. } => {
                let mut doc = vec![number(base, "p")];
                patch(&mut doc, patches);
                self.docs.insert(at, doc);
            }
            Content::Delete => {
                self.docs.remove(&at);
            }
        }
    }

    /// Applies a flush, refusing some writes as a unique index would, when the rng says so.
    fn write(&mut self, writes: &[Write]) -> FlushReport {
        let mut report = FlushReport::default();
        for (at, write) in writes.iter().enumerate() {
            let refuse = self.rng.as_mut().is_some_and(|rng| rng.random_range(0..30) == 0);
            if refuse && !matches!(write.content, Content::Delete) {
                report.refused.push((at, Refusal::UniqueKey { index: "u".into(), message: String::new() }));
            } else {
                self.apply(write);
            }
        }
        report
    }
}

/// Batches of the log from `from` (index), each DDL alone, as the decoder makes them.
fn batches(rng: &mut StdRng, log: &[Change], from: usize) -> VecDeque<ChangeBatch> {
    let mut out = VecDeque::new();
    let mut at = from;
    while at < log.len() {
        let most = rng.random_range(1..8).min(log.len() - at);
        let n = log[at..at + most].iter().position(|c| c.ddl.is_some()).map_or(most, |ddl| ddl.max(1));
        let changes = log[at..at + n].to_vec();
        let last = Position::Oplog(changes.last().unwrap().time);
        let atomic = changes[0].ddl.is_none() && rng.random_bool(0.3);
        out.push_back(ChangeBatch { seq: out.len() as u64, changes, last, atomic, permit: Arc::new(Permit::none()) });
        at += n;
    }
    out
}

/// Does what a command says on the model target, and tells the core.
fn answer(core: &mut Core, target: &mut Target, command: Command, safe: &mut usize) {
    match command {
        Command::Flush { lane, writes } => {
            let report = target.write(&writes);
            core.flushed(lane, writes, &report).unwrap();
        }
        Command::Ddl { fence, change, .. } => {
            let inc = change.time.inc;
            if let Some(Ddl::Drop { namespace }) = change.ddl.as_deref() {
                // What precedes a destructive DDL is stored before it runs.
                *safe = (*safe).max(core.take_watermark().map_or(*safe, |p| p.time().inc as usize));
                assert_eq!(*safe as u32 + 1, inc, "the position before the drop is not safe");
                if target.executed.insert(inc) {
                    target.docs.retain(|(ns, _), _| *ns != namespace.target);
                }
            }
            core.fence_done(fence).unwrap();
        }
        Command::Settle { fence, writes, .. } => {
            writes.iter().for_each(|write| target.apply(write));
            core.settled(fence, &FlushReport::default()).unwrap();
        }
        Command::Whole { fence, waves } => {
            waves.iter().flatten().for_each(|write| target.apply(write));
            core.whole_done(fence, waves, &FlushReport::default()).unwrap();
        }
        Command::Mark { fence } => core.fence_done(fence).unwrap(),
    }
}

/// How a run of the simulation ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// With the log.
    Complete,
    /// At any moment, with whatever was in flight.
    Crash,
    /// Asked for at any moment: nothing more is read, and what was read runs dry.
    Shutdown,
}

/// One run until its end; returns the watermark it reached.
fn run(
    rng: &mut StdRng,
    namespaces: &Arc<Namespaces>,
    log: &[Change],
    from: usize,
    target: &mut Target,
    until: OpTime,
    end: End,
) -> usize {
    let single_lane = if rng.random_bool(0.3) { HashSet::from([namespaces.intern("db.c0")]) } else { HashSet::new() };
    let options = CoreOptions {
        lanes: rng.random_range(1..5),
        overlap_until: until,
        single_lane,
        single_lane_collections: HashSet::new(),
        auto: rng.random_bool(0.3),
    };
    let mut core = Core::new(Arc::clone(namespaces), options);
    let mut todo = batches(rng, log, from);
    let mut out: Vec<Command> = Vec::new();
    let mut safe = from;
    let mut steps_left = if end == End::Complete { usize::MAX } else { rng.random_range(0..60) };
    let (mut fed, mut draining) = (from, false);
    while !(todo.is_empty() && out.is_empty() && (core.is_idle() || draining)) {
        if steps_left == 0 {
            if end == End::Crash {
                return safe;
            }
            (draining, steps_left) = (true, usize::MAX);
            todo.clear();
            core.drain();
            continue;
        }
        steps_left -= 1;
        if !todo.is_empty() && (out.is_empty() || rng.random_bool(0.5)) {
            let batch = todo.pop_front().unwrap();
            fed = batch.last.time().inc as usize;
            core.batch(batch).unwrap();
        } else {
            assert!(!out.is_empty(), "nothing is in flight and the core is not idle: {core:#?}");
            let at = rng.random_range(0..out.len());
            answer(&mut core, target, out.swap_remove(at), &mut safe);
        }
        out.extend(core.take_commands());
        if let Some(position) = core.take_watermark() {
            let now = position.time().inc as usize;
            assert!(now >= safe, "the watermark went back");
            safe = now;
        }
    }
    if draining {
        assert!(!core.is_busy(), "what was handed out has come back: {core:#?}");
        assert!(core.left().is_nothing() || !core.passed_mark(), "after the mark nothing is left: {core:#?}");
        assert_eq!(safe == fed, core.left().is_nothing(), "what was read is safe unless something is left");
    }
    safe
}

#[test]
fn target_equals_source_after_any_order_and_any_crash() {
    let base = crate::seed::seed_or(1);
    for seed in base..base + 1500 {
        let mut rng = StdRng::seed_from_u64(seed);
        let namespaces = Namespaces::shared();
        let source = source(&mut rng, &namespaces, 120);
        let mut target = Target { rng: Some(StdRng::seed_from_u64(seed)), ..Target::default() };
        let mut from = 0;
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let crashes = rng.random_range(0..4);
            for crash in 0..crashes {
                // A restart is in overlap until the newest entry at that moment.
                let until = if crash == 0 { OpTime::default() } else { OpTime::new(1, 120, 1) };
                let end = if rng.random_bool(0.5) { End::Crash } else { End::Shutdown };
                from = run(&mut rng, &namespaces, &source.log, from, &mut target, until, end);
            }
            let until = OpTime::new(1, if crashes == 0 { 60 } else { 120 }, 1);
            from = run(&mut rng, &namespaces, &source.log, from, &mut target, until, End::Complete);
            assert_eq!(from, source.log.len());
            assert_eq!(target.docs, source.state);
        }));
        if let Err(panic) = caught {
            eprintln!("failing seed: OPLOGUE_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
