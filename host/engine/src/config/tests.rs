//! Whole files in both forms: samples, the reference file, the conversion, and broken files.
//!
//! The modules' own tests hold the parts; these hold what an operator meets. Two of them compare committed files with the
//! key table, so that documentation cannot drift. None of them touches the network.

mod broken;
mod samples;

use std::path::Path;
use std::time::Duration;

use super::checked::{ConnectMode, CreateIndex, LogFile, OnError, PluginKind, PluginPath, SyncMode};
use super::*;
use crate::conflict::{DuplicateKeys, SkipRule};

const MINIMAL: &str = "sync_mode = \"all\"\nmongo_urls = \"mongodb://a\"\ntunnel.address = \"mongodb://b\"\n";

fn toml(text: &str) -> Loaded {
    parse(text, Path::new("/etc/oplogue/collector.toml")).unwrap_or_else(|problems| panic!("{problems}"))
}

fn conf(text: &str) -> Loaded {
    parse(text, Path::new("/etc/oplogue/collector.conf")).unwrap_or_else(|problems| panic!("{problems}"))
}

fn chain(config: &Config) -> Vec<String> {
    config.default_chain().into_iter().map(|entry| entry.name).collect()
}

#[test]
fn defaults_are_the_guides() {
    let config = toml(MINIMAL).config;
    assert_eq!(config.id, "mongoshake");
    assert_eq!(config.connect_mode, ConnectMode::SecondaryPreferred);
    assert_eq!((config.monitor.full_http_port, config.monitor.incr_http_port), (Some(9101), Some(9100)));
    assert_eq!((config.checkpoint.db.as_str(), config.checkpoint.collection.as_str()), ("mongoshake", "ckpt_default"));
    assert_eq!(config.checkpoint.url, config.sources[0]);
    assert_eq!(config.checkpoint.start_position, None);
    assert_eq!(config.checkpoint.interval, Duration::from_secs(5));
    assert_eq!(config.full_sync.create_index, CreateIndex::Foreground);
    assert_eq!(config.incr.workers, 8);
    assert_eq!(config.limits.memory_bytes, 64 << 20);
    assert_eq!(config.log.file, None);
    assert_eq!(chain(&config), ["namespace-filter", "ddl-filter"]);
}

#[test]
fn the_chain_follows_the_keys() {
    let text = MINIMAL.to_owned()
        + r#"
            filter.namespace.white = ["shop", "hr.people"]
            filter.ddl_enable = true
            transform.namespace = "shop.a:store.b;hr:people"
            incr_sync.target_delay = "30m"
            [[plugin]]
            name = "mask"
            path = "plugins/mask.wasm"
            kind = "transform"
            on_error = "dead-letter"
            grants = ["log"]
            config = { fields = ["ssn"], depth = 2, strict = true }
            [[plugin]]
            name = "second"
            path = "/opt/second.wasm"
        "#;
    let config = toml(&text).config;
    assert_eq!(
        chain(&config),
        ["namespace-filter", "ddl-filter", "mask", "second", "namespace-rename", "target-delay"]
    );
    let entries = config.default_chain();
    let filter = serde_json::json!({
        "black": [], "white": ["shop", "hr.people"], "pass_special_db": [], "checkpoint_db": "mongoshake"
    });
    assert_eq!(entries[0].config, filter);
    assert_eq!(entries[0].path, PluginPath::Embedded("namespace-filter".to_owned()));
    assert_eq!(entries[1].config, serde_json::json!({"enable": true}));
    assert_eq!(entries[2].path, PluginPath::File("/etc/oplogue/plugins/mask.wasm".into()));
    assert_eq!((entries[2].kind, entries[2].on_error), (Some(PluginKind::Transform), OnError::DeadLetter));
    assert_eq!(entries[2].config, serde_json::json!({"fields": ["ssn"], "depth": 2, "strict": true}));
    assert_eq!(entries[3].path, PluginPath::File("/opt/second.wasm".into()));
    assert_eq!(entries[4].config, serde_json::json!({"rules": ["shop.a:store.b", "hr:people"]}));
    assert_eq!(entries[5].config, serde_json::json!({"delay_ms": 1_800_000}));
}

#[test]
fn a_plugin_that_rules_over_conflicts_is_no_part_of_the_chain() {
    let text = MINIMAL.to_owned()
        + r#"
            incr_sync.conflict_write_to = "sdk"
            [[plugin]]
            name = "newest"
            path = "newest-wins.wasm"
            handles = "conflicts"
            on_error = "skip"
        "#;
    let config = toml(&text).config;
    assert_eq!(chain(&config), ["namespace-filter", "ddl-filter"]);
    assert_eq!(config.incr.conflicts, checked::Conflicts::Plugin);
    let judge = config.conflict_plugin().unwrap();
    assert_eq!((judge.name.as_str(), judge.on_error), ("newest", OnError::Skip));
    assert_ne!(config.sha256(), toml(&text.replace("skip", "drop")).config.sha256());
    let plain = toml(MINIMAL).config;
    assert_eq!((plain.incr.conflicts, plain.conflict_plugin()), (checked::Conflicts::Stop, None));
}

#[test]
fn strategies_for_duplicate_keys_are_read_in_both_forms() {
    let keys = |text: &str| conf(&format!("mongo_urls = mongodb://a\ntunnel.address = mongodb://b\n{text}"));
    assert_eq!(keys("").config.incr.duplicate_keys, DuplicateKeys::Ignore);
    let strategy = "incr_sync.executor.dup_key_strategy = ";
    assert_eq!(keys(&format!("{strategy}error")).config.incr.duplicate_keys, DuplicateKeys::Error);
    let retry = keys(&format!("{strategy}delete_and_retry")).config.incr.duplicate_keys;
    assert_eq!(retry, DuplicateKeys::DeleteAndRetry);
    let rules = "incr_sync.executor.dup_key_skip_rules = a.b:u_1,v_1;a.c:*";
    let skip = keys(&format!("{strategy}skip\n{rules}")).config.incr.duplicate_keys;
    let expected = ["a.b:u_1,v_1", "a.c:*"].map(|rule| SkipRule::parse(rule).unwrap()).to_vec();
    assert_eq!(skip, DuplicateKeys::Skip(expected));
    let idle = keys(rules);
    assert!(idle.notes.iter().any(|note| note.text.contains("has no effect")), "{:?}", idle.notes);
    let empty = keys(&format!("{strategy}skip"));
    assert!(empty.notes.iter().any(|note| note.text.contains("names no index")), "{:?}", empty.notes);
}

#[test]
fn a_file_that_hands_conflicts_to_a_plugin_can_be_converted() {
    let text = "mongo_urls = mongodb://a\ntunnel.address = mongodb://b\nincr_sync.conflict_write_to = sdk\n";
    let converted = convert::convert_with(text, Path::new("c.conf"), &|_| Ok(String::new())).unwrap();
    assert!(converted.contains("conflict_write_to = \"sdk\""), "{converted}");
}

#[test]
fn both_spellings_of_a_moved_key_are_read_in_toml() {
    assert_eq!(toml(&format!("{MINIMAL}incr_sync.worker = 3")).config.incr.workers, 3);
    let text = format!("{MINIMAL}[incr_sync.worker]\ncount = 3\nbatch_queue_size = 64");
    assert_eq!(toml(&text).config.incr.workers, 3);
}

#[test]
fn the_log_goes_to_a_file_where_mongoshake_would_write_one() {
    let text = "mongo_urls = mongodb://a\ntunnel.address = mongodb://b\n";
    let name = "collector.log".to_owned();
    let file = LogFile { dir: "logs".into(), name, size_max: 20 << 20, keep_days: 7 };
    assert_eq!(conf(text).config.log.file, Some(file.clone()));
    assert_eq!(conf(&format!("{text}log.dir =\n")).config.log.file, Some(file.clone()));
    assert_eq!(toml(&format!("{MINIMAL}log.dir = \"\"")).config.log.file, Some(file));
    assert_eq!(toml(&format!("{MINIMAL}log.level = \"debug\"")).config.log.file, None);
}

#[test]
fn the_start_position_is_for_incr_only() {
    let start = "checkpoint.start_position = \"2024-05-06T07:08:09Z\"\n";
    let loaded = toml(&format!("{MINIMAL}{start}"));
    assert_eq!(loaded.config.checkpoint.start_position, None);
    assert!(loaded.notes.iter().any(|note| note.key == "checkpoint.start_position"));
    let incr = MINIMAL.replace("\"all\"", "\"incr\"") + start;
    assert_eq!(toml(&incr).config.checkpoint.start_position, Some(1_714_979_289));
}

#[test]
fn the_fingerprint_is_of_what_a_run_does() {
    let fingerprint = |text: &str| toml(text).config.sha256().to_owned();
    let base = MINIMAL.replace("mongodb://a", "mongodb://u:one@a");
    assert_eq!(fingerprint(&base).len(), 64);
    assert_eq!(fingerprint(&base), fingerprint(&base.replace("one", "two")));
    assert_eq!(fingerprint(&base), fingerprint(&format!("# x\n{base}log.level = \"debug\"\nincr_sync.worker = 8")));
    assert_ne!(fingerprint(&base), fingerprint(&format!("{base}filter.ddl_enable = true")));
    assert_ne!(fingerprint(&base), fingerprint(&format!("{base}[[plugin]]\nname = \"a\"\npath = \"a.wasm\"")));
}

#[test]
fn no_secret_is_printed() {
    let text = "mongo_urls = mongodb://u:geheim@a\ntunnel.address = mongodb://u:geheim@b\n\
                tunnel.kafka.sasl.auth = user@geheim\n";
    let loaded = conf(text);
    assert!(!format!("{loaded:?}").contains("geheim"), "{loaded:?}");
    let broken = text.replace("mongodb://u:geheim@a", "mongodb:/u:geheim@a")
        + "mongo_url = mongodb://x:geheim@a\nx\nkafka.password = geheim\n";
    let problems = parse(&broken, Path::new("c.conf")).unwrap_err();
    assert!(!format!("{problems} {problems:?}").contains("geheim"), "{problems}");
}

#[test]
fn hints_are_named() {
    let loaded = toml(&format!("{MINIMAL}incr_sync.fetcher.buffer_capacity = 256\ntunnel.message = \"json\""));
    let keys: Vec<_> = loaded.notes.iter().map(|note| (note.key.as_str(), note.line)).collect();
    assert_eq!(keys, [("incr_sync.fetcher.buffer_capacity", Some(4)), ("tunnel.message", Some(5))]);
    assert!(loaded.notes[0].text.contains("limits.memory_bytes"));
}

#[test]
fn damaged_files_are_answered_and_never_panic() {
    use rand::{Rng as _, SeedableRng as _};
    let seed = crate::seed::seed();
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let reference = reference::render();
    let originals = [samples::VERSION_4, samples::VERSION_10, samples::RARE, MINIMAL, reference.as_str()];
    let noise =
        ["", "=", "\n", "\"", "[", "]", "[[plugin]]\n", "#", "@", "@@", ";", "{", "é", "\0", "9".repeat(30).as_str()]
            .map(str::to_owned);
    for round in 0..150 {
        let mut text: Vec<char> = originals[round % originals.len()].chars().collect();
        for _ in 0..random.random_range(1..6) {
            let at = random.random_range(0..text.len());
            let end = (at + random.random_range(0..8)).min(text.len());
            let piece = &noise[random.random_range(0..noise.len())];
            text.splice(at..end, piece.chars());
        }
        let text: String = text.into_iter().collect();
        let answer = parse_with(&text, Path::new("c.conf"), &|_| Err(std::io::Error::other("no disk")));
        if let Err(problems) = answer {
            assert!(!problems.0.is_empty(), "refused without a reason: {text}");
        }
    }
}

/// Run with `OPLOGUE_BLESS=1` to write the file.
#[test]
fn the_reference_file_is_rendered_from_the_table() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../collector.toml"));
    if std::env::var_os("OPLOGUE_BLESS").is_some() {
        std::fs::write(path, reference::render()).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), reference::render(), "run this test with OPLOGUE_BLESS=1");
    let config = load(path).unwrap_or_else(|problems| panic!("{problems}")).config;
    assert_eq!(config.sync_mode, SyncMode::All);
}

#[test]
fn the_reference_file_shows_every_default_as_it_is_read() {
    let text = reference::render();
    let shown = |line: &str| line.strip_prefix('#').is_some_and(|l| l.starts_with(|c: char| c.is_ascii_lowercase()));
    let settings = text.split("# ---- Plugins").next().unwrap();
    let open: Vec<_> = settings.lines().map(|line| if shown(line) { &line[1..] } else { line }).collect();
    let open = toml(&open.join("\n"));
    let plain = toml(&text);
    // Naming log.dir switches the log file on; everything else is the same.
    assert!(open.config.log.file.is_some());
    assert_eq!(Config { log: plain.config.log.clone(), ..open.config }, plain.config);
    assert_eq!(open.changed, plain.changed);
    for spec in keys::all().filter(|spec| !matches!(spec.status, Status::Removed(_))) {
        assert!(text.contains(spec.toml), "{} is not in the reference file", spec.toml);
    }
}

#[test]
fn the_migration_page_names_every_key_that_is_treated_otherwise() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/MIGRATING.md");
    let text = std::fs::read_to_string(path).unwrap();
    let special = keys::all().filter(|spec| spec.status != Status::Supported);
    let missing: Vec<_> = special
        .filter(|spec| spec.name != "incr_sync.move_chunk_enable" && !text.contains(&format!("`{}`", spec.name)))
        .map(|spec| spec.name)
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}
