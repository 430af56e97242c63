//! A plugin that lies, loops, traps or eats memory, as its configuration says.
//!
//! Written against the generated bindings, since the SDK does not let an author lie. It never misbehaves on its own:
//! without a configuration it changes nothing.

#![cfg(target_arch = "wasm32")]

use std::cell::{Cell, RefCell};

use oplogue_plugin::bindings::transform as world;
use oplogue_plugin::{Json, bson};
use world::oplogue::plugin::types::{Batch, Body, Edits, Failure, Request, Route};

#[used]
#[unsafe(link_section = "oplogue:manifest")]
static MANIFEST: [u8; include_bytes!("../manifest.json").len()] = *include_bytes!("../manifest.json");

thread_local! {
    static CONFIG: RefCell<Json> = const { RefCell::new(Json::Null) };
    static CALLS: Cell<u32> = const { Cell::new(0) };
}

struct Component;

fn setting(name: &str) -> String {
    CONFIG.with_borrow(|config| config.text(name).unwrap_or("fine").to_owned())
}

fn failure(message: &str, entry: Option<u32>, retry_after_ms: Option<u32>) -> Failure {
    Failure { message: message.to_owned(), retry_after_ms, entry }
}

fn spin() -> ! {
    let mut n = 0_u64;
    loop {
        n = std::hint::black_box(n.wrapping_add(1));
    }
}

fn hog() -> ! {
    let mut held: Vec<Vec<u8>> = Vec::new();
    loop {
        held.push(std::hint::black_box(vec![1; 1 << 20]));
    }
}

impl world::exports::oplogue::plugin::lifecycle::Guest for Component {
    fn init(config: String) -> Result<(), Failure> {
        oplogue_plugin::log::set_panic_hook();
        CONFIG.set(Json::parse(&config).map_err(|e| failure(&e, None, None))?);
        match setting("init").as_str() {
            "refuse" => Err(failure("I do not like this configuration", None, None)),
            "trap" => panic!("init gave up"),
            "loop" => spin(),
            "hog" => hog(),
            _ => Ok(()),
        }
    }
}

impl world::exports::oplogue::plugin::router::Guest for Component {
    fn decide(_namespace: String) -> Route {
        match setting("decide").as_str() {
            "trap" => panic!("decide gave up"),
            "loop" => spin(),
            "bad-name" => Route::Rename("nodot".to_owned()),
            "command-name" => Route::Rename("a.$cmd".to_owned()),
            "post-image" => Route::Inspect(Request { body: Body::PostImage, ops: 0x7f }),
            _ => Route::Inspect(Request { body: Body::Full, ops: 0x7f }),
        }
    }
}

/// The bodies of a batch, without keys.
fn bodies(batch: &Batch) -> Vec<&[u8]> {
    let slice = |at: usize| &batch.arena[batch.off[at] as usize..][..batch.len[at] as usize];
    (0..batch.op.len()).map(|at| bson::split_first(slice(at)).1).collect()
}

/// `{_id: 666}`.
const OTHER_ID: [u8; 14] = [14, 0, 0, 0, 0x10, b'_', b'i', b'd', 0, 154, 2, 0, 0, 0];

/// `{_id: 1, d: {<cut>}}`.
const CUT: [u8; 23] = [23, 0, 0, 0, 0x10, b'_', b'i', b'd', 0, 1, 0, 0, 0, 3, b'd', 0, 6, 0, 0, 0, 0x10, 0, 0];

impl world::exports::oplogue::plugin::transform::Guest for Component {
    fn process(batch: Batch) -> Result<Edits, Failure> {
        let bodies = bodies(&batch);
        let mode = setting("process");
        let is_poison = |body: &&[u8]| bson::find(body, "poison").is_some();
        let poison = match mode.as_str() {
            "refuse-last-poison" => bodies.iter().rposition(is_poison),
            _ => bodies.iter().position(is_poison),
        };
        fail(&mode, poison)?;
        let mut edits = Edits {
            verdict: vec![0; batch.op.len()],
            arg: Vec::new(),
            ns: Vec::new(),
            namespaces: Vec::new(),
            out: Vec::new(),
            notes: Vec::new(),
        };
        lie_in_columns(&mode, &mut edits);
        lie_in_bodies(&mode, &batch, &mut edits);
        match (mode.as_str(), poison) {
            ("dead-letter", Some(at)) => {
                edits.verdict[at] = 5;
                edits.arg = vec![0; batch.op.len()];
                edits.notes.push("it is poison".to_owned());
            }
            ("copy", _) => {
                for (at, body) in bodies.iter().enumerate().filter(|(_, body)| !body.is_empty()) {
                    edits.verdict[at] = 2;
                    edits.out.extend_from_slice(body);
                }
            }
            _ => {}
        }
        Ok(edits)
    }
}

/// The faults that leave no answer, and the refusals.
fn fail(mode: &str, poison: Option<usize>) -> Result<(), Failure> {
    match (mode, poison) {
        ("trap-on-poison", Some(_)) => panic!("poison found"),
        ("loop-on-poison", Some(_)) => spin(),
        ("hog-on-poison", Some(_)) => hog(),
        ("refuse-poison" | "refuse-last-poison", Some(at)) => Err(failure("poison refused", Some(at as u32), None)),
        ("trap-always", _) => panic!("process gave up"),
        ("loop-always", _) => spin(),
        ("wear-out", _) => {
            CALLS.set(CALLS.get() + 1);
            if CALLS.get() > 2 { panic!("worn out") } else { Ok(()) }
        }
        ("refuse-batch", _) => Err(failure("not this batch", None, None)),
        ("retry-once", _) => {
            CALLS.set(CALLS.get() + 1);
            if CALLS.get() == 1 { Err(failure("not yet", None, Some(1))) } else { Ok(()) }
        }
        _ => Ok(()),
    }
}

/// Wrong lengths, verdicts and names.
fn lie_in_columns(mode: &str, edits: &mut Edits) {
    let count = edits.verdict.len();
    match mode {
        "long-verdict" => edits.verdict.push(0),
        "long-arg" => edits.arg = vec![0; count + 2],
        "unknown-verdict" => edits.verdict[0] = 9,
        "park" => edits.verdict[0] = 4,
        "namespace-out-of-range" => {
            edits.verdict[0] = 0x10;
            edits.ns = vec![3; count];
            edits.namespaces.push("a.b".to_owned());
        }
        "bad-namespace" => edits.namespaces.push("nodot".to_owned()),
        "move" => {
            edits.verdict = vec![0x10; count];
            edits.ns = vec![0; count];
            edits.namespaces.push("moved.here".to_owned());
        }
        _ => {}
    }
}

/// New bodies that are missing, cut, left over, or of another document.
fn lie_in_bodies(mode: &str, batch: &Batch, edits: &mut Edits) {
    let mut replace = |at: usize, body: &[u8]| {
        edits.verdict[at] = 2;
        edits.out = body.to_vec();
    };
    match mode {
        "no-body" => replace(0, &[]),
        "body-too-long" => replace(0, &[200, 0, 0, 0, 0]),
        "body-left-over" => edits.out = vec![5, 0, 0, 0, 0],
        "malformed-body" => replace(0, &[8, 0, 0, 0, 0x99, b'x', 0, 0]),
        "malformed-nested" => replace(0, &CUT),
        "changes-id" => replace(0, &OTHER_ID),
        "replaces-delete" => {
            if let Some(at) = batch.op.iter().position(|op| *op == 5) {
                replace(at, &OTHER_ID);
            }
        }
        _ => {}
    }
}

world::export_transform_world!(Component with_types_in world);
