//! Broken files: each with the key that must be named and what the message must say.
//!
//! `TOML` and `CONF` hold what a sound file needs; a case adds to it or replaces it. The messages are for people who
//! see Oplogue for the first time, so each must say what is wrong, what is allowed and, where it can be guessed, what
//! was meant, and no two mistakes may sound alike.

use std::collections::HashSet;

use super::*;

const TOML: &str = super::MINIMAL;
const CONF: &str = "sync_mode = all\nmongo_urls = mongodb://a\ntunnel.address = mongodb://b\n";

struct Case {
    /// What stands before `text`.
    base: &'static str,
    text: &'static str,
    key: &'static str,
    says: &'static [&'static str],
}

const fn toml(text: &'static str, key: &'static str, says: &'static [&'static str]) -> Case {
    Case { base: TOML, text, key, says }
}

const fn conf(text: &'static str, key: &'static str, says: &'static [&'static str]) -> Case {
    Case { base: CONF, text, key, says }
}

const fn whole(text: &'static str, key: &'static str, says: &'static [&'static str]) -> Case {
    Case { base: "", text, key, says }
}

#[rustfmt::skip]
const CASES: &[Case] = &[
    // Unknown, misspelt, removed, doubled.
    toml("incr_sync.wroker = 4", "incr_sync.wroker", &["no known key", "did you mean incr_sync.worker?"]),
    toml("collection_parallel = 4", "collection_parallel", &["no known key", "full_sync.reader.collection_parallel"]),
    conf("mongos_s_url = mongodb://c", "mongos_s_url", &["no known key", "did you mean mongo_s_url?"]),
    conf("xyzzy = 1", "xyzzy", &["xyzzy = 1:", "no known key"]),
    conf("incr_sync.move_chunk_enable = true", "incr_sync.move_chunk_enable", &["never in a release"]),
    conf("sync_mode = full", "sync_mode", &["given on line 1 already"]),
    toml("tunnel.type = \"direct\"\n[incr_sync.worker]\ncount = 2\n[incr_sync]\nworker = 3", "", &["TOML", "incr_sync.worker.count"]),
    // Form.
    conf("this line is nothing", "", &["cannot be read as \"key = value\""]),
    conf("= 3", "", &["no legal key"]),
    toml("log.level = info", "", &["cannot be read as TOML", "in quotes"]),
    whole("sync_mode = \"all\"\nmongo_urls = mongodb://a\ntunnel.address = \"mongodb://b\"", "", &["cannot be read as TOML", "in quotes"]),
    toml("filter.namespace.white = [[\"a\"]]", "filter.namespace.white", &["list of plain values"]),
    toml("incr_sync.worker = [1, 2]", "incr_sync.worker", &["one value, not a list"]),
    conf("filter.namespace.white = @@/nonexistent/white.list", "filter.namespace.white", &["/nonexistent/white.list", "cannot be read"]),
    conf("incr_sync.worker = 8 # eight", "incr_sync.worker", &["1 to 256", "comment must stand on its own line"]),
    // Values.
    whole("sync_mode = \"ful\"\nmongo_urls = \"mongodb://a\"\ntunnel.address = \"mongodb://b\"", "sync_mode", &["one of all, full, incr", "did you mean full?"]),
    toml("incr_sync.worker = 300", "incr_sync.worker", &["= 300", "from 1 to 256"]),
    toml("full_sync.reader.parallel_thread = 129", "full_sync.reader.parallel_thread", &["from 1 to 128"]),
    conf("filter.ddl_enable = yes", "filter.ddl_enable", &["true or false"]),
    conf("full_sync.collection_exist_drop =", "full_sync.collection_exist_drop", &["must not be blank", "the default, true"]),
    toml("incr_sync.target_delay = \"half an hour\"", "incr_sync.target_delay", &["a duration", "30m"]),
    toml("limits.memory_bytes = \"1MB\"", "limits.memory_bytes", &["a size from 16MB"]),
    conf("tunnel.kafka.producer.max_message_bytes = 18*1024*1024", "tunnel.kafka.producer.max_message_bytes", &["a size", "256MB"]),
    conf("checkpoint.start_position = 2024-13-01", "checkpoint.start_position", &["2006-01-02T15:04:05Z"]),
    conf("full_sync.http_port = 70000", "full_sync.http_port", &["a port from 1 to 65535"]),
    toml("monitor.listen = \"localhost:80\"", "monitor.listen", &["an IP address"]),
    toml("log.file = \"a/b.log\"", "log.file", &["a plain name"]),
    toml("mongo_connect_mode = \"secondarypreferred\"", "mongo_connect_mode", &["did you mean secondaryPreferred?"]),
    conf("filter.namespace.white = shop.*", "filter.namespace.white", &["not patterns", "write shop for the whole database"]),
    conf("filter.namespace.black = crm.(people|salaries)", "filter.namespace.black", &["crm.(people|salaries)", "parted by ';'"]),
    conf("filter.namespace.white = shop,crm", "filter.namespace.white", &["shop,crm", "no patterns"]),
    conf("transform.namespace = a.b:c.d # moved", "transform.namespace", &["# moved", "no patterns"]),
    whole("mongo_urls = mongodb://a\ntunnel.address = mongodb://a\nfilter.namespace.white = shop\ntransform.namespace = shop.orders:archive.orders", "tunnel.address", &["shop passes and keeps its name", "written over itself"]),
    conf("filter.namespace.black = sh/op.a", "filter.namespace.black", &["no legal name of a database"]),
    conf("transform.namespace = a.b=c.d", "transform.namespace", &["lacks the ':'"]),
    conf("transform.namespace = a.b:c", "transform.namespace", &["a database on one side and a collection on the other"]),
    toml("checkpoint.storage.db = \"a.b\"", "checkpoint.storage.db", &["holds no dot"]),
    conf("conf.version = 3", "conf.version", &["from 4 to 14"]),
    // Connection strings.
    whole("sync_mode = all\ntunnel.address = mongodb://b", "mongo_urls", &["is required", "source"]),
    whole("sync_mode = all\nmongo_urls = mongodb://a", "tunnel.address", &["is required", "target"]),
    whole("mongo_urls = a:27017\ntunnel.address = mongodb://b", "mongo_urls", &["must begin with mongodb://"]),
    whole("mongo_urls = mongodb://u:p@\ntunnel.address = mongodb://b", "mongo_urls", &["no readable host list", "mongodb://***@"]),
    whole("mongo_urls = mongodb://a\ntunnel.address = mongodb://b:99999", "tunnel.address", &["port outside 1 to 65535"]),
    whole("mongo_urls = mongodb://a;mongodb://a\ntunnel.address = mongodb://b", "mongo_urls", &["one source twice"]),
    whole("mongo_urls = mongodb://a;mongodb://c\ntunnel.address = mongodb://b", "mongo_urls", &["names several shards", "set mongo_cs_url"]),
    whole("mongo_urls = mongodb://a\ntunnel.address = mongodb://a", "tunnel.address", &["every write would come back"]),
    conf("checkpoint.storage.url = env:", "checkpoint.storage.url", &["environment variable"]),
    // Not built.
    whole("tunnel = kafka\nmongo_urls = mongodb://a\ntunnel.address = t@b:9092", "tunnel", &["a tunnel other than direct is not built yet", "only direct is accepted"]),
    conf("incr_sync.mongo_fetch_method = change_stream\nfilter.pass.special.db = admin", "filter.pass.special.db", &["not shown by change streams"]),
    conf("incr_sync.mongo_fetch_method = change_stream\nincr_sync.oplog.gids = a1;b2", "incr_sync.oplog.gids", &["a1", "change streams do not show the global id", "set incr_sync.mongo_fetch_method = oplog"]),
    conf("master_quorum = true", "master_quorum", &["not built yet", "only false is accepted"]),
    toml("incr_sync.loop_prevention.drop = [\"256\"]", "incr_sync.loop_prevention.drop", &["no number from 1 to 255"]),
    conf("mongo_s_url = mongodb://c", "mongo_s_url", &["of a sharded source", "set mongo_cs_url"]),
    conf("mongo_cs_url = mongodb://c", "checkpoint.storage.url", &["names no mongos", "the target will do"]),
    conf("filter.op_types = d", "filter.op_types", &["newer than version 10", "not built yet"]),
    // Rules between keys.
    toml("incr_sync.transaction = \"atomic\"\nincr_sync.mongo_fetch_method = \"change_stream\"", "incr_sync.transaction", &["only with incr_sync.mongo_fetch_method = oplog"]),
    conf("filter.namespace.black = a\nfilter.namespace.white = b", "filter.namespace.white", &["together with filter.namespace.black"]),
    conf("full_sync.http_port = 9100", "full_sync.http_port", &["differ from the other http_port"]),
    conf("system_profile_port = 9101", "system_profile_port", &["must differ from full_sync.http_port"]),
    conf("tunnel = tcp", "sync_mode", &["must be incr with tunnel = tcp"]),
    toml("incr_sync.executor.upsert = true\nincr_sync.executor.missing_document = \"stop\"", "incr_sync.executor.missing_document", &["contradicts incr_sync.executor.upsert"]),
    conf("incr_sync.shard_key = id\nincr_sync.shard_by_object_id_whitelist = a.b", "incr_sync.shard_by_object_id_whitelist", &["only with incr_sync.shard_key = collection"]),
    whole("mongo_connect_mode = standalone\nmongo_urls = mongodb://a,c\ntunnel.address = mongodb://b", "mongo_connect_mode", &["names several", "name one host"]),
    // Conflicts.
    conf("incr_sync.conflict_write_to = sdk", "incr_sync.conflict_write_to", &["which this form of the file cannot name", "oplogue convert", "[[plugin]]"]),
    toml("incr_sync.conflict_write_to = \"sdk\"", "incr_sync.conflict_write_to", &["no [[plugin]] takes them", "say handles = \"conflicts\""]),
    toml("incr_sync.conflict_write_to = \"sdk\"\n[[plugin]]\nname = \"a\"\npath = \"a.wasm\"\nhandles = \"conflicts\"\n[[plugin]]\nname = \"b\"\npath = \"b.wasm\"\nhandles = \"conflicts\"", "incr_sync.conflict_write_to", &["to one plugin, not to a, b"]),
    toml("[[plugin]]\nname = \"a\"\npath = \"a.wasm\"\nhandles = \"conflicts\"", "plugin.handles", &["a would never be asked", "conflict_write_to = \"sdk\""]),
    toml("incr_sync.conflict_write_to = \"sdk\"\nincr_sync.executor.dup_key_strategy = \"error\"\n[[plugin]]\nname = \"a\"\npath = \"a.wasm\"\nhandles = \"conflicts\"", "incr_sync.executor.dup_key_strategy", &["rules over duplicates too"]),
    toml("incr_sync.executor.dup_key_strategy = \"skipp\"", "incr_sync.executor.dup_key_strategy", &["did you mean skip?"]),
    conf("incr_sync.executor.dup_key_strategy = skip\nincr_sync.executor.dup_key_skip_rules = a.b:u_1;a.c", "incr_sync.executor.dup_key_skip_rules", &["holds a.c", "db.collection:*"]),
    toml("[[plugin]]\nname = \"a\"\npath = \"a.wasm\"\nhandles = \"conflict\"", "plugin.handles", &["did you mean conflicts?"]),
    toml("[[plugin]]\nname = \"a\"\npath = \"a.wasm\"\nkind = \"conflict\"", "plugin.kind", &["goes with handles"]),
    toml("incr_sync.conflict_write_to = \"sdk\"\n[[plugin]]\nname = \"a\"\npath = \"a.wasm\"\nhandles = \"conflicts\"\non_error = \"dead-letter\"", "plugin.on_error", &["fail, skip, drop where handles"]),
    toml("incr_sync.conflict_write_to = \"sdk\"\n[[plugin]]\nname = \"a\"\npath = \"embedded:ddl-filter\"\nhandles = \"conflicts\"", "plugin.path", &["no default plugin rules"]),
    // Plugins.
    toml("plugin = 3", "plugin", &["[[plugin]]"]),
    toml("[[plugin]]\npath = \"a.wasm\"", "plugin.name", &["required"]),
    toml("[[plugin]]\nname = \"a\"", "plugin.path", &["required", "mask.wasm"]),
    toml("[[plugin]]\nname = \"a b\"\npath = \"a.wasm\"", "plugin.name", &["ASCII letters"]),
    toml("[[plugin]]\nname = \"ddl-filter\"\npath = \"a.wasm\"", "plugin.name", &["name of a default plugin"]),
    toml("[[plugin]]\nname = \"a\"\npath = \"a.wasm\"\n[[plugin]]\nname = \"a\"\npath = \"b.wasm\"", "plugin.name", &["names two entries"]),
    toml("[[plugin]]\nname = \"a\"\npath = \"a.wasm\"\nonerror = \"skip\"", "plugin.onerror", &["no field of [[plugin]]", "did you mean on_error?"]),
    toml("[[plugin]]\nname = \"a\"\npath = \"a.wasm\"\non_error = \"ignore\"", "plugin.on_error", &["fail, skip, drop, dead-letter"]),
    toml("[[plugin]]\nname = \"a\"\npath = \"a.wasm\"\nkind = \"sink\"", "plugin.kind", &["sinks are not built yet"]),
    toml("[[plugin]]\nname = \"a\"\npath = \"embedded:delay\"", "plugin.path", &["must name a default plugin"]),
    toml("[[plugin]]\nname = \"a\"\npath = \"a.wasm\"\nconfig = 3", "plugin.config", &["must be a table"]),
    toml("[[plugin]]\nname = \"a\"\npath = \"a.wasm\"\ngrants = \"log\"", "plugin.grants", &["list of capabilities"]),
];

fn problems_of(case: &Case) -> Problems {
    let text = format!("{}{}", case.base, case.text);
    parse(&text, Path::new("broken.conf")).err().unwrap_or_else(|| panic!("{} loads", case.text))
}

#[test]
fn every_broken_file_gets_a_clear_message() {
    let mut wrong = Vec::new();
    for case in CASES {
        let problems = problems_of(case);
        let fits = |problem: &&Problem| {
            let message = problem.to_string();
            problem.key == case.key && case.says.iter().all(|part| message.contains(part))
        };
        if !problems.0.iter().any(|problem| fits(&problem)) {
            wrong.push(format!("{:?}\n  wants {:?} {:?}\n  gets {problems}", case.text, case.key, case.says));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(CASES.len() >= 40);
}

#[test]
fn one_mistake_is_one_problem() {
    for case in CASES {
        let problems = problems_of(case);
        // A tunnel that is not built breaks MongoShake's own rule about sync_mode too.
        let two = case.text.starts_with("tunnel = tcp");
        assert_eq!(problems.0.len(), if two { 2 } else { 1 }, "{:?}: {problems}", case.text);
    }
}

#[test]
fn no_two_mistakes_sound_alike() {
    let mut seen = HashSet::new();
    for case in CASES {
        for problem in problems_of(case).0 {
            let message = Problem { line: None, ..problem.clone() }.to_string();
            let fresh = seen.insert(message.clone());
            // The tunnel's own problem stands in two cases.
            assert!(fresh || problem.key == "tunnel", "{message}");
        }
    }
}

#[test]
fn all_problems_come_in_one_report_in_the_order_of_lines() {
    let text = "conf.version = 2\nsync_mode = al\nmongo_urls = mongodb://a\nincr_sync.worker = 0\n\
                filter.namespace.black = a\nfilter.namespace.white = b\nmaster_quorum = true\nnonsense = 1\n";
    let problems = parse(text, Path::new("c.conf")).unwrap_err();
    let found: Vec<_> = problems.0.iter().map(|problem| (problem.line, problem.key.as_str())).collect();
    let expected = [
        (Some(1), "conf.version"),
        (Some(2), "sync_mode"),
        (Some(4), "incr_sync.worker"),
        (Some(6), "filter.namespace.white"),
        (Some(7), "master_quorum"),
        (Some(8), "nonsense"),
        (None, "tunnel.address"),
    ];
    assert_eq!(found, expected);
    let shown = problems.to_string();
    assert!(shown.starts_with("c.conf:1: conf.version = 2: must be from 4 to 14"), "{shown}");
    assert!(shown.ends_with("7 problems"), "{shown}");
}

#[test]
fn lines_of_toml_are_counted() {
    let text = format!("{TOML}\n[incr_sync]\nshard_key = \"id\"\nworker = 0\n\n[[plugin]]\nname = \"a\"\npath = 3\n");
    let problems = parse(&text, Path::new("c.toml")).unwrap_err();
    let found: Vec<_> = problems.0.iter().map(|problem| (problem.line, problem.key.as_str())).collect();
    assert_eq!(found, [(Some(7), "incr_sync.worker"), (Some(11), "plugin.path")]);
}

#[test]
fn a_file_that_is_not_there_says_so() {
    let problems = load(Path::new("/nonexistent/collector.conf")).unwrap_err();
    assert!(problems.to_string().starts_with("/nonexistent/collector.conf: cannot be read"), "{problems}");
}
