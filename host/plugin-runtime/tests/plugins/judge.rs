//! Plugins that rule over conflicts: what they are shown, what they may answer, and what their faults come to.
//!
//! The guest `contrary` does what its configuration says. No server is asked here: a conflict is made by hand, and what a
//! ruling leads to is the sink's affair.

use std::path::Path;
use std::time::{Duration, Instant};

use bson::{RawDocumentBuf, doc};
use bytes::Bytes;
use oplogue_engine::conflict::{Conflict, Judge as _, Ruling, ViolatedIndex};
use oplogue_engine::error::Kind;
use oplogue_engine::metrics::ConflictKind;
use oplogue_engine::model::{OpTime, Operation};
use oplogue_engine::plugin::PluginChain as _;
use oplogue_plugin_runtime::{ChainOptions, ConflictPlugin, Handles, OnError, PluginSpec};
use serde_json::{Value, json};

use crate::files::{file, filter, guest, with_manifest};
use crate::fixtures::{raw, spec};

fn options() -> ChainOptions {
    let quick = Duration::from_millis(20);
    ChainOptions { poll: quick, settle: Duration::from_millis(5), ..ChainOptions::default() }
}

fn contrary(rule: &str, on_error: OnError) -> ConflictPlugin {
    let mut spec = spec("contrary", guest("contrary"), json!({ "rule": rule }));
    // On a busy machine the memory is not eaten within the time of the others.
    spec.limits.hard = Duration::from_millis(if rule == "hog" { 60_000 } else { 200 });
    spec.on_error = on_error;
    ConflictPlugin::load(spec, ChainOptions { watch: false, ..options() }).unwrap()
}

fn conflict() -> Conflict {
    Conflict {
        kind: ConflictKind::UniqueKey,
        namespace: "shop.people".to_owned(),
        operation: Operation::Insert,
        time: OpTime::new(100, 7, 1),
        code: 11000,
        message: "E11000".to_owned(),
        key: raw(&doc! { "_id": 1 }),
        body: raw(&doc! { "_id": 1, "email": "a@x", "updatedAt": 5_i64 }),
        index: Some(ViolatedIndex { name: "email_1".to_owned(), pattern: raw(&doc! { "email": 1 }) }),
        winner: raw(&doc! { "_id": 2, "email": "a@x", "updatedAt": 4_i64 }),
    }
}

fn stop(ruling: Ruling) -> String {
    let Ruling::Stop(reason) = ruling else { panic!("{ruling:?}") };
    reason
}

#[test]
fn every_ruling_comes_through() {
    let rule = |rule: &str| contrary(rule, OnError::Fail).rule(&conflict()).unwrap();
    assert_eq!(rule("keep"), Ruling::KeepTarget);
    assert_eq!(rule("overwrite"), Ruling::Overwrite);
    assert_eq!(rule("record"), Ruling::Record);
    assert_eq!(rule("stop"), Ruling::Stop("I say so".to_owned()));
    assert_eq!(rule("retry-once"), Ruling::Record, "it asked for time and got it");
}

#[test]
fn a_plugin_is_shown_the_whole_conflict() {
    let reason = stop(contrary("tell", OnError::Fail).rule(&conflict()).unwrap());
    let ts = (100_u64 << 32) | 7;
    for part in ["reason: UniqueKey", "\"shop.people\"", "op: Insert", &format!("ts: {ts}"), "11000", "\"email_1\""] {
        assert!(reason.contains(part), "{part} is not in {reason}");
    }
    assert!(reason.contains(&format!("key: {:?}", conflict().key.to_vec())), "{reason}");
    let bare = Conflict { index: None, winner: Bytes::new(), body: Bytes::new(), ..conflict() };
    let reason = stop(contrary("tell", OnError::Fail).rule(&bare).unwrap());
    assert!(reason.contains("body: []") && reason.ends_with("index: \"\", pattern: [], winner: [] }"), "{reason}");
}

#[test]
fn faults_meet_the_policy_and_the_next_conflict_is_ruled_again() {
    for fault in ["trap", "loop", "refuse"] {
        let error = contrary(fault, OnError::Fail).rule(&conflict()).unwrap_err();
        assert_eq!(error.kind(), Kind::PluginFault, "{error}");
        let text = error.to_string();
        assert!(text.contains("plugin contrary (generation 1") && text.contains("insert of shop.people"), "{text}");
        let skipping = contrary(fault, OnError::Skip);
        for _ in 0..2 {
            assert_eq!(skipping.rule(&conflict()).unwrap(), Ruling::Record, "{fault}");
        }
        assert_eq!(skipping.chain().stats()[0].faults, 2);
        assert_eq!(contrary(fault, OnError::Drop).rule(&conflict()).unwrap(), Ruling::KeepTarget, "{fault}");
    }
    let says = |rule| contrary(rule, OnError::Fail).rule(&conflict()).unwrap_err().to_string();
    assert!(says("trap").contains("no ruling from me"));
    assert!(says("loop").contains("time limit"));
}

#[test]
fn an_instance_that_is_worn_out_costs_no_ruling() {
    let judge = contrary("wear-out", OnError::Fail);
    for _ in 0..9 {
        assert_eq!(judge.rule(&conflict()).unwrap(), Ruling::Record);
    }
    assert_eq!(judge.chain().stats()[0].faults, 4, "two conflicts an instance");
}

#[test]
fn a_memory_limit_stops_the_run_whatever_the_policy() {
    for policy in [OnError::Fail, OnError::Skip, OnError::Drop] {
        let error = contrary("hog", policy).rule(&conflict()).unwrap_err().to_string();
        assert!(error.contains("memory limit"), "{error}");
    }
}

#[test]
fn a_ruling_that_cannot_be_carried_out_is_a_lie() {
    let bare = Conflict { winner: Bytes::new(), ..conflict() };
    let error = contrary("overwrite", OnError::Fail).rule(&bare).unwrap_err().to_string();
    assert!(error.contains("answered what it must not: overwrite, where no document"), "{error}");
    assert_eq!(contrary("overwrite", OnError::Skip).rule(&bare).unwrap(), Ruling::Record);
}

#[test]
fn one_that_never_rules_stops_the_run_in_the_end() {
    let judge = contrary("refuse", OnError::Skip);
    for _ in 0..63 {
        assert_eq!(judge.rule(&conflict()).unwrap(), Ruling::Record);
    }
    assert!(judge.rule(&conflict()).unwrap_err().to_string().contains("the breaker is open"));
}

#[test]
fn a_plugin_of_another_kind_is_refused_on_either_side() {
    let of_changes = ConflictPlugin::load(spec("x", filter(), json!({})), options()).err().unwrap().to_string();
    assert!(of_changes.contains("a filter plugin") && of_changes.contains("delete the line handles"), "{of_changes}");
    let judge = spec("contrary", guest("contrary"), Value::Null);
    assert_eq!(judge.handles, Handles::Changes);
    let names = oplogue_engine::model::Namespaces::shared();
    let in_chain = oplogue_plugin_runtime::Chain::build(vec![judge], names, options()).err().unwrap().to_string();
    assert!(in_chain.contains("say handles = \"conflicts\""), "{in_chain}");
    let manifest = json!({ "name": "x", "version": "1", "kind": "conflict", "config": { "type": "object" } });
    let posing = spec("x", with_manifest(&filter(), Some(&manifest)), Value::Null);
    let posing = ConflictPlugin::load(posing, options()).err().unwrap().to_string();
    assert!(posing.contains("wrong world: a conflict plugin exports oplogue:plugin/conflicts@0.1.0"), "{posing}");
}

/// As a careful author replaces a file: written beside it, then renamed.
fn replace(path: &Path, bytes: &[u8]) {
    let staged = path.with_extension("new");
    std::fs::write(&staged, bytes).unwrap();
    std::fs::rename(&staged, path).unwrap();
}

fn until(judge: &ConflictPlugin, what: &str, mut done: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < give_up, "{what} never happened; log: {:?}", judge.chain().reload_log());
        std::thread::yield_now();
    }
}

fn newest_wins() -> Vec<u8> {
    std::fs::read(file("examples/newest-wins/newest-wins.wasm")).unwrap()
}

/// Both files take this configuration; the one traps with it, the other does not know the word.
fn with_version(bytes: &[u8], version: &str) -> Vec<u8> {
    let manifest = json!({ "name": "j", "version": version, "kind": "conflict", "config": { "type": "object" } });
    with_manifest(bytes, Some(&manifest))
}

#[test]
fn a_replaced_file_rules_over_the_next_conflict_and_a_bad_one_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("judge.wasm");
    std::fs::write(&path, with_version(&newest_wins(), "1")).unwrap();
    let judge = ConflictPlugin::load(PluginSpec::file("j", &path, json!({ "rule": "keep" })), options()).unwrap();
    assert_eq!(judge.rule(&conflict()).unwrap(), Ruling::Overwrite, "the change is newer");
    replace(&path, b"not wasm");
    until(&judge, "the refusal", || !judge.chain().reload_log().is_empty());
    assert_eq!(judge.rule(&conflict()).unwrap(), Ruling::Overwrite);
    replace(&path, &filter());
    until(&judge, "the second refusal", || judge.chain().reload_log().len() > 1);
    assert_eq!(judge.rule(&conflict()).unwrap(), Ruling::Overwrite, "a filter cannot take its place");
    replace(&path, &with_version(&guest("contrary"), "2"));
    until(&judge, "the swap", || judge.rule(&conflict()).unwrap() == Ruling::KeepTarget);
    assert_eq!(judge.generation().unwrap().version, "2");
}

#[test]
fn a_new_version_that_faults_on_trial_is_rolled_back_and_the_old_one_rules() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("judge.wasm");
    std::fs::write(&path, with_version(&newest_wins(), "1")).unwrap();
    let judge = ConflictPlugin::load(PluginSpec::file("j", &path, json!({ "rule": "trap" })), options()).unwrap();
    replace(&path, &with_version(&guest("contrary"), "2"));
    until(&judge, "the roll-back", || {
        assert_eq!(judge.rule(&conflict()).unwrap(), Ruling::Overwrite, "no conflict meets the trap");
        judge.chain().reload_log().len() > 1
    });
    assert_eq!(judge.generation().unwrap().version, "1");
}

#[test]
fn the_example_keeps_what_was_changed_later() {
    let spec = spec("newest-wins", newest_wins(), json!({ "field": "updatedAt" }));
    let judge = ConflictPlugin::load(spec, ChainOptions { watch: false, ..options() }).unwrap();
    let against = |winner: RawDocumentBuf| {
        let winner = Bytes::from(winner.into_bytes());
        judge.rule(&Conflict { winner, ..conflict() }).unwrap()
    };
    assert_eq!(against(bson::rawdoc! { "updatedAt": 4_i64 }), Ruling::Overwrite);
    assert_eq!(against(bson::rawdoc! { "updatedAt": 6_i64 }), Ruling::KeepTarget);
    assert_eq!(against(bson::rawdoc! { "updatedAt": "yesterday" }), Ruling::Record);
    let update =
        Conflict { operation: Operation::UpdateDiff, body: raw(&doc! { "u": { "updatedAt": 9_i64 } }), ..conflict() };
    assert_eq!(judge.rule(&update).unwrap(), Ruling::Overwrite);
    let invalid = Conflict { kind: ConflictKind::Validation, ..conflict() };
    assert_eq!(judge.rule(&invalid).unwrap(), Ruling::Record);
}
