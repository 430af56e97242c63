//! From settings to the checked configuration: the rules between keys.
//!
//! Each rule is a small function that may add a problem; the configuration is made whether or not there are any, from
//! defaults where a value is wrong, and the caller throws it away when the report is not empty. Rules that MongoShake
//! has are kept unless docs/MIGRATING.md names them.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::apart;
use super::{
    Checkpoint, Config, ConnectMode, CreateIndex, DdlRefused, FetchMethod, Filter, FullSync, Handles, Incr, Limits,
    Log, LogFile, LogLevel, MissingDocument, Monitor, PluginEntry, SyncMode, Transactions,
};
use crate::config::keys::{self, Status};
use crate::config::raw::Format;
use crate::config::report::{Fault, Report};
use crate::config::settings::Settings;
use crate::config::uri::MongoUri;
use crate::config::value::{Value, split_uris};
use crate::model::Origin;

/// MongoShake's versions of its file that are read.
const VERSIONS: std::ops::RangeInclusive<i64> = 4..=14;
/// The last version whose keys all work or are refused by name.
const VERSION_KNOWN: i64 = 10;

/// What passes only at the word of `filter.pass.special.db`, beside the checkpoint's own databases. The default plugin
/// `namespace-filter` has the same list.
const SPECIAL_DBS: [&str; 6] = ["admin", "local", "config", "mongoshake", "mongoshake_conflict", "system.views"];

const FETCH_METHOD: &str = "incr_sync.mongo_fetch_method";
const CONFIG_SERVERS: &str = "mongo_cs_url";
const MONGOS: &str = "mongo_s_url";
const CHECKPOINT_URL: &str = "checkpoint.storage.url";
const UNVERIFIED_KEYS: &str = "skip.nsshardkey.verify";

pub(in crate::config) mod conflicts;

struct Builder<'a> {
    settings: &'a Settings,
    format: Format,
    report: &'a mut Report,
}

/// Makes the checked form; it is meaningful only when `report` has no problem afterwards.
pub(in crate::config) fn build(
    settings: &Settings,
    plugins: Vec<PluginEntry>,
    format: Format,
    report: &mut Report,
) -> Option<Config> {
    let mut builder = Builder { settings, format, report };
    builder.version();
    let sources = builder.sources();
    let target = builder.target();
    builder.ports();
    builder.filters();
    builder.missing_document();
    builder.change_stream();
    builder.object_id_list();
    builder.loop_prevention();
    conflicts::check(&mut builder, &plugins);
    builder.transactions();
    builder.shard_keys();
    builder.address_of_monitor();
    let (source, target) = (sources.first()?.clone(), target?);
    for source in &sources {
        builder.one_cluster(source, &target);
        builder.standalone(source);
    }
    let mut config = builder.assemble(sources, source, target, plugins);
    config.fingerprint = fingerprint(settings, &config.plugins);
    Some(config)
}

impl Builder<'_> {
    /// Adds a problem to a key that has none yet.
    fn fault(&mut self, key: &str, fault: Fault) {
        if !self.settings.is_faulty(key) {
            let line = self.settings.line(key);
            let given = line.and_then(|_| self.settings.value(key)).map(Value::shown);
            self.report.problem(line, key, given, fault);
        }
    }

    fn note(&mut self, key: &str, text: &str) {
        self.report.note(self.settings.line(key), key, text);
    }

    fn version(&mut self) {
        const KEY: &str = "conf.version";
        let version = self.settings.int(KEY);
        if self.settings.line(KEY).is_none() || self.settings.is_faulty(KEY) {
            return;
        }
        if !VERSIONS.contains(&version) {
            let fault = Fault::new(format!(
                "must be from {} to {}, the versions of MongoShake 2.4.6 and later",
                VERSIONS.start(),
                VERSIONS.end()
            ));
            self.fault(KEY, fault.suggest("bring the file to version 10 first, or write TOML without this key"));
        } else if version > VERSION_KNOWN {
            self.note(KEY, "keys that are newer than version 10 and not built are accepted only with their defaults");
        }
    }

    fn sources(&mut self) -> Vec<MongoUri> {
        const KEY: &str = "mongo_urls";
        let sources = self.settings.uris(KEY);
        let unique: std::collections::BTreeSet<_> = sources.iter().map(MongoUri::expose).collect();
        if sources.is_empty() {
            let fault = Fault::new("is required: the connection string of the source");
            self.fault(KEY, fault.suggest("such as mongodb://user:password@host1:27017,host2:27017"));
        } else if unique.len() < sources.len() {
            self.fault(
                KEY,
                Fault::new("names one source twice").suggest("hosts of one replica set are parted by commas"),
            );
        } else if sources.len() > 1 && self.settings.uri(CONFIG_SERVERS).is_none() {
            let fault =
                Fault::new("names several shards, and mongo_cs_url does not say where their config servers are");
            self.fault(KEY, fault.suggest("set mongo_cs_url; hosts of one replica set are parted by commas"));
        }
        self.sharded();
        sources
    }

    /// What goes only with a sharded source, and what it needs.
    fn sharded(&mut self) {
        let is_sharded = self.settings.uri(CONFIG_SERVERS).is_some();
        let has_mongos = self.settings.uri(MONGOS).is_some();
        if is_sharded && self.settings.text(FETCH_METHOD) == "change_stream" {
            let fault = Fault::new("reads one stream, and mongo_cs_url says that the shards are read one by one");
            self.fault(FETCH_METHOD, fault.suggest("use oplog"));
        }
        if has_mongos && !is_sharded {
            let fault = Fault::new("is of a sharded source, whose config servers mongo_cs_url must name");
            self.fault(MONGOS, fault.suggest("set mongo_cs_url and one mongo_urls entry for each shard"));
        }
        if is_sharded && !has_mongos && self.settings.uri(CHECKPOINT_URL).is_none() {
            let fault =
                Fault::new("is required with a sharded source that names no mongos: no shard can keep it for all");
            self.fault(CHECKPOINT_URL, fault.suggest("the target will do, or set mongo_s_url"));
        }
    }

    fn target(&mut self) -> Option<MongoUri> {
        const KEY: &str = "tunnel.address";
        let tunnel = self.settings.text("tunnel");
        if tunnel != "direct" {
            let mode = self.settings.text("sync_mode");
            if mode != "incr" {
                let fault = Fault::new(format!("must be incr with tunnel = {tunnel}: only direct takes a full copy"));
                self.fault("sync_mode", fault);
            }
            return None;
        }
        let addresses = split_uris(self.settings.text(KEY));
        let Some(first) = addresses.first() else {
            let fault = Fault::new("is required: the connection string of the target");
            self.fault(KEY, fault.suggest("such as mongodb://user:password@host1:27017,host2:27017"));
            return None;
        };
        if addresses.len() > 1 {
            let fault = Fault::new("writing to several addresses is not built yet; only one is accepted");
            self.fault(KEY, fault.suggest("hosts of one replica set are parted by commas"));
        }
        match MongoUri::parse(first) {
            Ok(uri) => Some(uri),
            Err(reason) => {
                self.fault(KEY, Fault::new(reason));
                None
            }
        }
    }

    fn ports(&mut self) {
        let (full, incr) = (self.settings.int("full_sync.http_port"), self.settings.int("incr_sync.http_port"));
        if full == incr && full > 0 {
            let key = if self.settings.line("incr_sync.http_port").is_some() {
                "incr_sync.http_port"
            } else {
                "full_sync.http_port"
            };
            self.fault(key, Fault::new("must differ from the other http_port").suggest("0 switches one of them off"));
        }
        let profile = self.settings.int("system_profile_port");
        if profile > 0 && (profile == full || profile == incr) {
            let fault = Fault::new("must differ from full_sync.http_port and incr_sync.http_port");
            self.fault("system_profile_port", fault.suggest("0 switches the profiler off"));
        }
    }

    fn filters(&mut self) {
        let black = self.settings.list("filter.namespace.black");
        let white = self.settings.list("filter.namespace.white");
        if !black.is_empty() && !white.is_empty() {
            let fault = Fault::new("must not be set together with filter.namespace.black");
            self.fault(
                "filter.namespace.white",
                fault.suggest("keep the white list: what it lacks is left out anyway"),
            );
        }
        self.names_and_patterns();
        let checkpoint_db = self.settings.text("checkpoint.storage.db");
        let conflict_db = format!("{checkpoint_db}{}", super::CONFLICT_SUFFIX);
        let special = |db: &str| SPECIAL_DBS.contains(&db) || db == checkpoint_db || db == conflict_db;
        let passing = self.settings.list("filter.pass.special.db");
        if let Some(db) = passing.iter().find(|db| !special(db)) {
            self.note("filter.pass.special.db", &format!("{db} is no special database: it passes anyway"));
        }
        if passing.iter().any(|db| db == "local") {
            self.note(
                "filter.pass.special.db",
                "local belongs to each server: it is never copied, and never in the oplog",
            );
        }
        if passing.iter().any(|db| db == "system.views") {
            let text = "a view is followed as a view, by its own name, so nothing of system.views is left to pass";
            self.note("filter.pass.special.db", text);
        }
        let held = white.iter().filter_map(|rule| rule.split('.').next()).find(|db| special(db));
        if let Some(db) = held.filter(|db| !passing.iter().any(|passed| passed == db)) {
            let text = format!("{db} is a special database: it passes only when filter.pass.special.db names it too");
            self.note("filter.namespace.white", &text);
        }
    }

    /// Rules are plain names. What looks like a pattern or like several names is refused in MongoShake's form, where it
    /// may have been one, and said in TOML, where a collection may be called so.
    fn names_and_patterns(&mut self) {
        const RENAMES: &str = "transform.namespace";
        for key in ["filter.namespace.black", "filter.namespace.white", RENAMES] {
            let items = self.settings.list(key);
            let Some(item) = items.iter().find(|item| item.contains(apart::NOT_OF_NAMES)) else { continue };
            let fault = Fault::new(format!("holds {item:?}: rules are plain names, parted by ';', and no patterns"));
            match self.format {
                Format::CollectorConf => {
                    let hint = "list the names; if a collection is called so, convert the file to TOML";
                    self.fault(key, fault.suggest(hint));
                }
                Format::Toml => self.note(key, &format!("{item:?} is taken for a name, not for a pattern")),
            }
        }
        let renames = self.settings.list(RENAMES);
        let sources: Vec<&str> = renames.iter().filter_map(|rule| Some(rule.split_once(':')?.0)).collect();
        for (at, later) in sources.iter().enumerate() {
            let before = sources.iter().take(at).find(|first| apart::covers(first, later));
            if let Some(first) = before {
                let text =
                    format!("the rule for {later} never holds: the one for {first} stands before it and fits too");
                self.note(RENAMES, &text);
            }
        }
    }

    fn missing_document(&mut self) {
        const KEY: &str = "incr_sync.executor.missing_document";
        let policy = self.settings.text(KEY);
        let given = self.settings.line(KEY).is_some();
        if given && self.settings.flag("incr_sync.executor.upsert") && matches!(policy, "ignore" | "stop") {
            let fault = Fault::new("contradicts incr_sync.executor.upsert = true, which is the same as \"refetch\"");
            self.fault(KEY, fault.suggest("delete one of the two lines"));
        }
    }

    /// What a change stream never shows is refused here; what depends on the source's version is said.
    fn change_stream(&mut self) {
        const SPECIAL: &str = "filter.pass.special.db";
        if self.settings.text(FETCH_METHOD) != "change_stream" {
            return;
        }
        let hidden = |db: &String| matches!(db.as_str(), "admin" | "local" | "config");
        if let Some(db) = self.settings.list(SPECIAL).iter().find(|db| hidden(db)) {
            let fault = Fault::new(format!("{db} is not shown by change streams"));
            self.fault(SPECIAL, fault.suggest("delete it, or set incr_sync.mongo_fetch_method = oplog"));
        }
        let lacks = if self.settings.flag("filter.ddl_enable") {
            "with filter.ddl_enable = true the source must be MongoDB 6.0 or later: older change streams show no create, \
             createIndexes, dropIndexes and collMod"
        } else {
            "a source older than MongoDB 6.0 shows no exact form of updates: 5.0 is asked for the whole document of each"
        };
        self.note(FETCH_METHOD, lacks);
    }

    fn object_id_list(&mut self) {
        const KEY: &str = "incr_sync.shard_by_object_id_whitelist";
        if !self.settings.list(KEY).is_empty() && self.settings.text("incr_sync.shard_key") != "collection" {
            self.fault(KEY, Fault::new("goes only with incr_sync.shard_key = collection"));
        }
    }

    /// A change stream does not tell who wrote what is not in a transaction, and shows no global ids.
    fn loop_prevention(&mut self) {
        const DROP: &str = "incr_sync.loop_prevention.drop";
        const GIDS: &str = "incr_sync.oplog.gids";
        let stream = self.settings.text(FETCH_METHOD) == "change_stream";
        if stream && !self.settings.list(GIDS).is_empty() {
            let fault = Fault::new("change streams do not show the global id of an entry, so nothing would be dropped");
            self.fault(GIDS, fault.suggest("delete it, or set incr_sync.mongo_fetch_method = oplog"));
        }
        let dropped = self.settings.list(DROP);
        if let Some(wrong) = dropped.iter().find(|text| origin(text).is_none()) {
            self.fault(DROP, Fault::new(format!("names {wrong}, which is no number from 1 to 255")));
        }
        if !dropped.is_empty() && stream {
            let fault = Fault::new("needs incr_sync.mongo_fetch_method = oplog: change streams do not show the marks");
            self.fault(DROP, fault);
        }
        if self.settings.int("incr_sync.loop_prevention.origin") > 0 && self.settings.flag("filter.ddl_enable") {
            let text = "DDL carries no mark: of two collectors in opposite directions only one may replicate it";
            self.note("incr_sync.loop_prevention.origin", text);
        }
    }

    fn transactions(&mut self) {
        const KEY: &str = "incr_sync.transaction";
        let stream = self.settings.text("incr_sync.mongo_fetch_method") == "change_stream";
        if stream && self.settings.text(KEY) == "atomic" {
            let fault = Fault::new("atomic goes only with incr_sync.mongo_fetch_method = oplog");
            self.fault(KEY, fault.suggest("with a change stream transactions are split"));
        }
    }

    /// Keys about shard keys that would do nothing.
    fn shard_keys(&mut self) {
        let is_sharded = self.settings.uri(CONFIG_SERVERS).is_some();
        if !is_sharded && self.settings.flag("full_sync.do_not_shard_destination") {
            self.note("full_sync.do_not_shard_destination", "matters only with a sharded source (mongo_cs_url)");
        }
        let named = self.settings.list(UNVERIFIED_KEYS);
        if let Some(database) = named.iter().find(|name| !name.contains('.')) {
            let fault = Fault::new(format!("{database} is no collection, and only collections have shard keys"));
            self.fault(UNVERIFIED_KEYS, fault.suggest("name db.collection"));
        } else if !is_sharded && !named.is_empty() {
            self.note(UNVERIFIED_KEYS, "matters only with a sharded source (mongo_cs_url)");
        }
    }

    fn address_of_monitor(&mut self) {
        if !self.settings.ip("monitor.listen").is_loopback() {
            self.note("monitor.listen", "the status ports have no authentication and are open to the network");
        }
    }

    /// Source and target in one cluster need names that differ, or the copy drops what it reads and every write comes
    /// back as a change.
    fn one_cluster(&mut self, source: &MongoUri, target: &MongoUri) {
        if source.hosts().is_empty() || source.hosts() != target.hosts() {
            return;
        }
        let white = self.settings.list("filter.namespace.white");
        if let Err(reason) = apart::kept_apart(&white, &self.settings.list("transform.namespace")) {
            let fault = Fault::new(format!("has the hosts of mongo_urls, and {reason}"));
            self.fault("tunnel.address", fault.suggest(apart::HINT));
        }
    }

    fn standalone(&mut self, source: &MongoUri) {
        if self.settings.text("mongo_connect_mode") == "standalone" && source.hosts().contains(',') {
            let fault = Fault::new("reads the one node that mongo_urls names, and mongo_urls names several");
            self.fault("mongo_connect_mode", fault.suggest("name one host, or use secondaryPreferred"));
        }
    }

    fn assemble(
        &mut self,
        sources: Vec<MongoUri>,
        source: MongoUri,
        target: MongoUri,
        plugins: Vec<PluginEntry>,
    ) -> Config {
        let sync_mode = sync_mode(self.settings.text("sync_mode"));
        Config {
            id: self.settings.text("id").to_owned(),
            sync_mode,
            sources,
            config_servers: self.settings.uri(CONFIG_SERVERS),
            source_root_ca_file: path(self.settings, "mongo_ssl_root_ca_file"),
            connect_mode: connect_mode(self.settings.text("mongo_connect_mode")),
            target,
            target_root_ca_file: path(self.settings, "tunnel.mongo_ssl_root_ca_file"),
            checkpoint: self.checkpoint(source, sync_mode),
            filter: filter(self.settings),
            transform_namespace: self.settings.list("transform.namespace"),
            full_sync: full_sync(self.settings),
            incr: incr(self.settings),
            plugins,
            log: log(self.settings, self.format),
            monitor: monitor(self.settings),
            limits: limits(self.settings),
            fingerprint: String::new(),
        }
    }

    fn checkpoint(&mut self, source: MongoUri, sync_mode: SyncMode) -> Checkpoint {
        let s = self.settings;
        let start = s.date("checkpoint.start_position");
        if start > 0 && sync_mode != SyncMode::Incr {
            self.note("checkpoint.start_position", "is used only with sync_mode = incr: ignored");
        }
        let own = s.uri(CHECKPOINT_URL);
        let own_ca = path(s, "checkpoint.storage.url.mongo_ssl_root_ca_file");
        let root_ca_file = match own {
            Some(_) => own_ca,
            None => own_ca.or_else(|| path(s, "mongo_ssl_root_ca_file")),
        };
        Checkpoint {
            url: own.or_else(|| s.uri(MONGOS)).unwrap_or(source),
            root_ca_file,
            db: s.text("checkpoint.storage.db").to_owned(),
            collection: s.text("checkpoint.storage.collection").to_owned(),
            start_position: (start > 0 && sync_mode == SyncMode::Incr).then_some(start),
            start_is_exact: s.flag("checkpoint.start_is_exact"),
            interval: s.time("checkpoint.interval"),
        }
    }
}

/// A cluster's number, 1 to 255.
fn origin(text: &str) -> Option<Origin> {
    text.trim().parse().ok().and_then(Origin::new)
}

fn path(s: &Settings, key: &str) -> Option<PathBuf> {
    Some(s.text(key)).filter(|text| !text.is_empty()).map(PathBuf::from)
}

fn sync_mode(word: &str) -> SyncMode {
    match word {
        "all" => SyncMode::All,
        "full" => SyncMode::Full,
        _ => SyncMode::Incr,
    }
}

fn connect_mode(word: &str) -> ConnectMode {
    match word {
        "primary" => ConnectMode::Primary,
        "secondary" => ConnectMode::Secondary,
        "nearest" => ConnectMode::Nearest,
        "standalone" => ConnectMode::Standalone,
        _ => ConnectMode::SecondaryPreferred,
    }
}

fn filter(s: &Settings) -> Filter {
    Filter {
        black: s.list("filter.namespace.black"),
        white: s.list("filter.namespace.white"),
        pass_special_db: s.list("filter.pass.special.db"),
        ddl_enable: s.flag("filter.ddl_enable"),
    }
}

fn full_sync(s: &Settings) -> FullSync {
    FullSync {
        collection_parallel: s.count("full_sync.reader.collection_parallel"),
        write_document_parallel: s.count("full_sync.reader.write_document_parallel"),
        document_batch_size: s.count("full_sync.reader.document_batch_size"),
        collection_exist_drop: s.flag("full_sync.collection_exist_drop"),
        create_index: match s.text("full_sync.create_index") {
            "none" => CreateIndex::None,
            "background" => CreateIndex::Background,
            _ => CreateIndex::Foreground,
        },
        majority_enable: s.flag("full_sync.executor.majority_enable"),
        do_not_shard_destination: s.flag("full_sync.do_not_shard_destination"),
        immutable_shard_key_fallback: s.flag("full_sync.executor.immutable_shard_key_fallback"),
        unverified_shard_keys: s.list(UNVERIFIED_KEYS),
    }
}

fn incr(s: &Settings) -> Incr {
    Incr {
        fetch_method: match s.text(FETCH_METHOD) {
            "change_stream" => FetchMethod::ChangeStream,
            _ => FetchMethod::Oplog,
        },
        workers: s.count("incr_sync.worker"),
        auto_lanes: s.text("incr_sync.shard_key") == "auto",
        target_delay: s.time("incr_sync.target_delay"),
        missing_document: match s.text("incr_sync.executor.missing_document") {
            "ignore" => MissingDocument::Ignore,
            "upsert" => MissingDocument::Upsert,
            "stop" => MissingDocument::Stop,
            _ => MissingDocument::Refetch,
        },
        ddl_refused: match s.text("incr_sync.ddl_refused") {
            "skip" => DdlRefused::Skip,
            _ => DdlRefused::Stop,
        },
        insert_on_dup_update: s.flag("incr_sync.executor.insert_on_dup_update"),
        immutable_shard_key_fallback: s.flag("incr_sync.executor.immutable_shard_key_fallback"),
        majority_enable: s.flag("incr_sync.executor.majority_enable"),
        conflicts: conflicts::conflicts(s),
        duplicate_keys: conflicts::duplicate_keys(s),
        global_ids: s.list("incr_sync.oplog.gids"),
        origin: u8::try_from(s.int("incr_sync.loop_prevention.origin")).ok().and_then(Origin::new),
        drop_origins: s.list("incr_sync.loop_prevention.drop").iter().filter_map(|text| origin(text)).collect(),
        transactions: match s.text("incr_sync.transaction") {
            "atomic" => Transactions::Atomic,
            _ => Transactions::Split,
        },
        fetch_batch_size: s.count("incr_sync.reader.fetch_batch_size"),
    }
}

fn log(s: &Settings, format: Format) -> Log {
    let wanted = format == Format::CollectorConf || s.line("log.dir").is_some() || s.line("log.file").is_some();
    const DAY_SECS: u64 = 86_400;
    Log {
        level: match s.text("log.level") {
            "debug" => LogLevel::Debug,
            "warning" => LogLevel::Warning,
            "error" => LogLevel::Error,
            _ => LogLevel::Info,
        },
        file: wanted.then(|| LogFile {
            dir: PathBuf::from(s.text("log.dir")),
            name: s.text("log.file").to_owned(),
            size_max: s.bytes("log.max_size_mb") as u64,
            keep_days: u32::try_from(s.time("log.max_age").as_secs() / DAY_SECS).unwrap_or(u32::MAX).max(1),
        }),
        flush: s.flag("log.flush"),
    }
}

fn monitor(s: &Settings) -> Monitor {
    let port = |key| u16::try_from(s.int(key)).ok().filter(|port| *port > 0);
    Monitor {
        listen: s.ip("monitor.listen"),
        full_http_port: port("full_sync.http_port"),
        incr_http_port: port("incr_sync.http_port"),
        profile_port: port("system_profile_port"),
    }
}

fn limits(s: &Settings) -> Limits {
    Limits {
        memory_bytes: s.bytes("limits.memory_bytes"),
        transaction_bytes: s.bytes("limits.transaction_bytes"),
        spill_dir: path(s, "limits.spill_dir"),
        spill_bytes: s.bytes("limits.spill_bytes") as u64,
        guest_memory_bytes: s.bytes("limits.guest_memory_bytes"),
        guest_batch_time: s.time("limits.guest_batch_time"),
        answer_time: s.time("limits.answer_time"),
        shutdown_time: s.time("limits.shutdown_time"),
    }
}

/// Keys that say how a run looks and not what it does.
fn is_cosmetic(name: &str) -> bool {
    let sections = ["log.", "limits.", "monitor."];
    name == "conf.version" || name.ends_with("_port") || sections.iter().any(|section| name.starts_with(section))
}

fn fingerprint(settings: &Settings, plugins: &[PluginEntry]) -> String {
    let mut hash = Sha256::new();
    for spec in keys::all().filter(|spec| spec.status == Status::Supported && !is_cosmetic(spec.name)) {
        let value = settings.value(spec.name).filter(|value| **value != Value::default_of(spec));
        if let Some(value) = value {
            hash.update(format!("{}={}\n", spec.name, value.shown()));
        }
    }
    for plugin in plugins {
        let PluginEntry { name, path, kind, handles, config, on_error, grants } = plugin;
        hash.update(format!("{name} {path:?} {kind:?} {config} {on_error:?} {grants:?}\n"));
        if *handles == Handles::Conflicts {
            hash.update("handles conflicts\n");
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
