//! Traps, endless loops and eaten memory: the batch is searched, the policy meets one entry, the rest goes on.
//!
//! A guest's fault must cost the one entry that causes it, so the poison stands in the middle of a hundred good ones.
//! Answers that arrive but are wrong are in `lies`, never here.

use std::time::Duration;

use bson::doc;
use oplogue_engine::model::Change;
use oplogue_engine::plugin::PluginChain as _;
use oplogue_plugin_runtime::{ChainOptions, DeadLetter, OnError, PluginSpec};
use serde_json::json;

use crate::files::guest;
use crate::fixtures::{Stream, faulty, ids, spec};

const POISON: i32 = 37;

fn changes(stream: &Stream) -> Vec<Change> {
    (0..100)
        .map(|id| {
            let mut body = doc! { "_id": id };
            if id == POISON {
                body.insert("poison", true);
            }
            stream.insert("a.b", &body)
        })
        .collect()
}

fn with(mode: &str, on_error: OnError) -> PluginSpec {
    PluginSpec { on_error, ..faulty(json!({ "process": mode })) }
}

#[track_caller]
fn finds_the_entry(mode: &str, text: &str) {
    let mut stream = Stream::new(vec![with(mode, OnError::Drop)]);
    let batch = changes(&stream);
    let expected: Vec<i32> = (0..100).filter(|id| *id != POISON).collect();
    assert_eq!(ids(&stream.run(batch)), expected, "{mode}: only the poison is gone, in order");
    // The next batch finds a working plugin.
    let batch = vec![stream.insert("a.b", &doc! { "_id": 1 })];
    assert_eq!(stream.run(batch).len(), 1);

    let mut stream = Stream::new(vec![with(mode, OnError::Fail)]);
    let batch = changes(&stream);
    let message = stream.fault(batch);
    assert!(message.contains(text), "{message:?} does not contain {text:?}");
    assert!(message.contains("entry: insert of a.b at 100.1"), "{message}");
}

#[test]
fn a_trap_in_process() {
    finds_the_entry("trap-on-poison", "poison found");
}

#[test]
fn an_endless_loop() {
    finds_the_entry("loop-on-poison", "time limit: the call took longer than 200ms");
}

#[test]
fn a_refused_entry() {
    finds_the_entry("refuse-poison", "poison refused");
}

#[test]
fn the_policy_skip_lets_the_entry_pass_unchanged() {
    let mut stream = Stream::new(vec![with("trap-on-poison", OnError::Skip)]);
    let batch = changes(&stream);
    assert_eq!(ids(&stream.run(batch)), (0..100).collect::<Vec<_>>());
}

#[test]
fn memory_is_a_fault_whatever_the_policy() {
    let mut spec = with("hog-on-poison", OnError::Drop);
    spec.limits.hard = Duration::from_secs(20);
    let mut stream = Stream::new(vec![spec]);
    let batch = changes(&stream);
    let message = stream.fault(batch);
    assert!(message.contains("memory limit") && message.contains("67108864 are allowed"), "{message}");
}

#[test]
fn dead_letters() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dead");
    let options = ChainOptions { watch: false, dead_letter: Some(path.clone()), ..ChainOptions::default() };
    // By policy and by verdict.
    for (mode, reason) in [("trap-on-poison", "poison found"), ("dead-letter", "it is poison")] {
        let mut stream = Stream::with(vec![with(mode, OnError::DeadLetter)], options.clone());
        let changes = changes(&stream);
        let mut batch = stream.batch(changes);
        let report = stream.worker.process(&mut batch).unwrap();
        assert_eq!((report.kept, report.dead, report.dropped), (99, 1, 0));
        let letter = DeadLetter::read_all(&path).unwrap().pop().unwrap();
        assert!(letter.reason.contains(reason), "{}", letter.reason);
        let body = bson::Document::from_reader(letter.body.as_slice()).unwrap();
        assert_eq!(body, doc! { "_id": POISON, "poison": true });
        assert_eq!((letter.namespace.as_str(), letter.operation.as_str()), ("a.b", "insert"));
    }
    assert_eq!(DeadLetter::read_all(&path).unwrap().len(), 2);
    let mut stream = Stream::new(vec![with("dead-letter", OnError::Fail)]);
    let batch = changes(&stream);
    assert!(stream.fault(batch).contains("no dead-letter file is configured"));
}

#[test]
fn the_breaker_opens() {
    for mode in ["trap-always", "refuse-batch"] {
        let mut stream = Stream::new(vec![with(mode, OnError::Skip)]);
        let batch = changes(&stream);
        let message = stream.fault(batch);
        assert!(message.contains("64 entries in a row failed, the breaker is open"), "{message}");
    }
}

#[test]
fn bad_entries_among_good_ones_are_no_row() {
    for (mode, count) in [("refuse-poison", 4000), ("refuse-last-poison", 4000), ("trap-on-poison", 200)] {
        let mut stream = Stream::new(vec![with(mode, OnError::Drop)]);
        let document = |id: i32| {
            if id % 2 == 0 {
                doc! { "_id": id }
            } else {
                doc! { "_id": id, "poison": true }
            }
        };
        let batch = (0..count).map(|id| stream.insert("a.b", &document(id))).collect();
        let good: Vec<i32> = (0..count).step_by(2).collect();
        assert_eq!(ids(&stream.run(batch)), good, "{mode}");
    }
}

#[test]
fn a_plugin_that_always_loops_stops_the_stream_soon() {
    let mut stream = Stream::new(vec![with("loop-always", OnError::Fail)]);
    let batch = changes(&stream);
    assert!(stream.fault(batch).contains("time limit"));
}

#[test]
fn faults_in_decide_stop_the_stream_whatever_the_policy() {
    for (mode, text) in [("trap", "decide gave up"), ("loop", "time limit")] {
        let spec = PluginSpec { on_error: OnError::Drop, ..faulty(json!({ "decide": mode })) };
        let mut stream = Stream::new(vec![spec]);
        let change = stream.insert("a.b", &doc! { "_id": 1 });
        let message = stream.fault(vec![change]);
        assert!(message.contains(text) && message.contains("asked for the route of a.b"), "{message}");
    }
}

#[test]
fn an_instance_that_is_worn_out_condemns_no_entry() {
    let mut stream = Stream::new(vec![with("wear-out", OnError::Drop)]);
    for id in 0..10 {
        let batch = vec![stream.insert("a.b", &doc! { "_id": id })];
        assert_eq!(ids(&stream.run(batch)), [id], "alone in its batch");
    }
    for _ in 0..10 {
        let batch = changes(&stream);
        assert_eq!(stream.run(batch).len(), 100);
    }
}

#[test]
fn a_plugin_may_ask_for_time() {
    let mut stream = Stream::new(vec![with("retry-once", OnError::Fail)]);
    let batch = changes(&stream);
    assert_eq!(stream.run(batch).len(), 100);
}

#[test]
fn granted_counters_count() {
    let mut spec = spec("counting", guest("counting"), serde_json::Value::Null);
    spec.grants.push("metrics".to_owned());
    let mut stream = Stream::new(vec![spec]);
    let batch = changes(&stream);
    stream.run(batch);
    let stats = stream.chain.stats();
    assert_eq!((stats[0].entries, stats[0].calls, stats[0].custom["seen"]), (100, 1, 100));
}

#[test]
fn a_kept_batch_stays_what_it_was() {
    let mut stream = Stream::new(vec![with("keep", OnError::Fail)]);
    let batch = changes(&stream);
    let before: Vec<_> = batch.iter().map(|c| c.body.as_ptr()).collect();
    let after: Vec<_> = stream.run(batch).iter().map(|c| c.body.as_ptr()).collect();
    assert_eq!(after, before, "no body was copied");
}
