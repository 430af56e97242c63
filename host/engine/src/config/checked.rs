//! The checked configuration: every value has a type and a unit, and every rule between values holds.
//!
//! Stages take the part they need ([`FullSync`], [`Incr`], …) and never look at the file again. A value stands here
//! only when its feature is built: a key of MongoShake that would change the behaviour in a way that is not built is
//! refused while reading. Names of the fields follow the keys; the docs name the key where they differ.

pub mod apart;
mod build;

use std::path::PathBuf;
use std::time::Duration;

use super::uri::MongoUri;
use crate::conflict::DuplicateKeys;
use crate::model::Origin;

pub(super) use build::{build, conflicts::for_collector_conf};

/// `sync_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMode {
    /// The full copy, then incremental.
    All,
    /// The full copy only; the process ends after it.
    Full,
    /// Incremental only, from the checkpoint or `checkpoint.start_position`.
    Incr,
}

/// `mongo_connect_mode`: which node of the source is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectMode {
    Primary,
    SecondaryPreferred,
    Secondary,
    Nearest,
    /// The one node named in the URI, without looking for its replica set.
    Standalone,
}

/// What the name of the checkpoint's database gets for the database of conflicts.
const CONFLICT_SUFFIX: &str = "__conflict";

/// `full_sync.create_index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreateIndex {
    None,
    /// After the data (unique ones at the overlap mark).
    Foreground,
    /// Non-unique ones before the data, so that they grow with the copy.
    Background,
}

/// `incr_sync.executor.missing_document`: an update, after the overlap mark, whose document the target lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingDocument {
    /// Count it and go on.
    Ignore,
    /// Read the whole document from the source and upsert it.
    Refetch,
    /// Upsert what the update carries: may create a partial document.
    Upsert,
    /// Stop with a fault that names the entry.
    Stop,
}

/// `incr_sync.mongo_fetch_method`: what changes are read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchMethod {
    /// The oplog of each replica set.
    Oplog,
    /// One change stream over everything.
    ChangeStream,
}

/// `incr_sync.transaction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transactions {
    /// Spread like any other writes.
    Split,
    /// In one transaction of the target.
    Atomic,
}

/// `incr_sync.ddl_refused`: a DDL that the target does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DdlRefused {
    /// Stop before the entry.
    Stop,
    /// Log it, count it and go on.
    Skip,
}

/// `log.level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    Debug,
    Info,
    Warning,
    Error,
}

/// `incr_sync.conflict_write_to`: a change that the target refuses for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflicts {
    /// The run stops at it.
    Stop,
    /// It is recorded on the target.
    Record,
    /// A plugin rules.
    Plugin,
}

/// `[[plugin]] kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PluginKind {
    Filter,
    Transform,
    Conflict,
}

/// `[[plugin]] handles`: what a plugin is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Handles {
    /// Every change, as a part of the chain.
    #[default]
    Changes,
    /// The changes that the target refuses for good.
    Conflicts,
}

/// `[[plugin]] on_error`: what happens to an entry on which a plugin traps or fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// The run stops before the entry.
    #[default]
    Fail,
    /// The entry goes on as it was before this plugin.
    Skip,
    /// The entry is dropped and counted.
    Drop,
    /// The entry is written to the dead letters and dropped.
    DeadLetter,
}

/// Where the collector keeps its position (`checkpoint.*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// `checkpoint.storage.url`, or the source when that is empty.
    pub url: MongoUri,
    /// `checkpoint.storage.url.mongo_ssl_root_ca_file`, or the source's when the url is the source's.
    pub root_ca_file: Option<PathBuf>,
    pub db: String,
    pub collection: String,
    /// `checkpoint.start_position` in seconds since 1970; `None` when not set (1970) or when `sync_mode` is not incr.
    pub start_position: Option<u32>,
    /// `checkpoint.start_is_exact`: the target has seen no drop and no rename behind the start.
    pub start_is_exact: bool,
    pub interval: Duration,
}

/// What passes (`filter.*`). Becomes the plugins `namespace-filter` and `ddl-filter`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// `db` or `db.collection`; never set together with `white`.
    pub black: Vec<String>,
    pub white: Vec<String>,
    pub pass_special_db: Vec<String>,
    pub ddl_enable: bool,
}

/// The full copy (`full_sync.*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FullSync {
    /// `reader.collection_parallel`: collections, or ranges of large ones, copied at once.
    pub collection_parallel: usize,
    /// `reader.write_document_parallel`: writers of one collection.
    pub write_document_parallel: usize,
    /// `reader.document_batch_size`: most documents of one insert command.
    pub document_batch_size: usize,
    pub collection_exist_drop: bool,
    pub create_index: CreateIndex,
    pub majority_enable: bool,
    pub do_not_shard_destination: bool,
    /// `executor.immutable_shard_key_fallback`.
    pub immutable_shard_key_fallback: bool,
    /// `skip.nsshardkey.verify`: target collections, `db.collection`.
    pub unverified_shard_keys: Vec<String>,
}

/// Incremental (`incr_sync.*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incr {
    pub fetch_method: FetchMethod,
    /// `incr_sync.worker`: lanes, 1 to 256.
    pub workers: usize,
    /// `incr_sync.shard_key = auto`: collections whose unique keys collide too often go on in one lane.
    pub auto_lanes: bool,
    /// Zero = at once. Becomes the plugin `target-delay`.
    pub target_delay: Duration,
    pub missing_document: MissingDocument,
    pub ddl_refused: DdlRefused,
    pub insert_on_dup_update: bool,
    /// `executor.immutable_shard_key_fallback`.
    pub immutable_shard_key_fallback: bool,
    pub majority_enable: bool,
    pub conflicts: Conflicts,
    /// `incr_sync.executor.dup_key_strategy` with its rules.
    pub duplicate_keys: DuplicateKeys,
    /// `incr_sync.oplog.gids`; empty: not looked at.
    pub global_ids: Vec<String>,
    /// `incr_sync.loop_prevention.origin`: marks writes.
    pub origin: Option<Origin>,
    /// `incr_sync.loop_prevention.drop`.
    pub drop_origins: Vec<Origin>,
    /// `incr_sync.transaction`.
    pub transactions: Transactions,
    /// `incr_sync.reader.fetch_batch_size`: entries asked for in one cursor reply.
    pub fetch_batch_size: usize,
}

/// Where the log goes (`log.*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    pub level: LogLevel,
    /// `None`: standard error only (a TOML file that sets neither `log.dir` nor `log.file`).
    pub file: Option<LogFile>,
    /// Write every line at once instead of through a buffer.
    pub flush: bool,
}

/// A log file with rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    /// Created when absent; relative to the working directory.
    pub dir: PathBuf,
    pub name: String,
    /// `log.max_size_mb`: a file beyond this size is put aside, in bytes.
    pub size_max: u64,
    /// `log.max_age`: days for which files put aside are kept, at least 1.
    pub keep_days: u32,
}

/// The status servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Monitor {
    /// `monitor.listen`: loopback unless the operator says otherwise.
    pub listen: std::net::IpAddr,
    /// `full_sync.http_port`; `None` = off.
    pub full_http_port: Option<u16>,
    /// `incr_sync.http_port`; `None` = off.
    pub incr_http_port: Option<u16>,
    /// `system_profile_port`; `None` = off.
    pub profile_port: Option<u16>,
}

/// Bounds (`limits.*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The byte budget that every batch between source and acknowledgement is taken from.
    pub memory_bytes: usize,
    /// What open transactions hold in memory.
    pub transaction_bytes: usize,
    /// Where the rest of them goes; `None` = the system's folder for temporary files.
    pub spill_dir: Option<PathBuf>,
    /// What may lie there at once.
    pub spill_bytes: u64,
    /// Linear memory of one plugin instance.
    pub guest_memory_bytes: usize,
    /// A batch that a plugin holds longer is a fault of the plugin.
    pub guest_batch_time: Duration,
    /// A server may be silent that long.
    pub answer_time: Duration,
    /// Time for an ordered shutdown; then exit code 3.
    pub shutdown_time: Duration,
}

/// Where a plugin's module comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PluginPath {
    /// A default plugin inside the binary, by name.
    Embedded(String),
    /// A file; relative paths were resolved against the folder of the configuration file.
    File(PathBuf),
}

/// One plugin.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginEntry {
    /// Unique in the chain.
    pub name: String,
    pub path: PluginPath,
    /// `None`: what the manifest says.
    pub kind: Option<PluginKind>,
    /// Handed to the plugin's `init` as JSON.
    pub config: serde_json::Value,
    pub handles: Handles,
    pub on_error: OnError,
    /// Capabilities the operator allows; the manifest asks for them.
    pub grants: Vec<String>,
}

/// Everything a run needs to know, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Names the job: lock file, lease.
    pub id: String,
    pub sync_mode: SyncMode,
    /// `mongo_urls`: the replica set, or one entry a shard.
    pub sources: Vec<MongoUri>,
    /// `mongo_cs_url`: the source is a sharded cluster.
    pub config_servers: Option<MongoUri>,
    /// `mongo_ssl_root_ca_file`.
    pub source_root_ca_file: Option<PathBuf>,
    pub connect_mode: ConnectMode,
    /// `tunnel.address`.
    pub target: MongoUri,
    /// `tunnel.mongo_ssl_root_ca_file`.
    pub target_root_ca_file: Option<PathBuf>,
    pub checkpoint: Checkpoint,
    pub filter: Filter,
    /// `transform.namespace`: `a.b:c.d` or `a:c`.
    pub transform_namespace: Vec<String>,
    pub full_sync: FullSync,
    pub incr: Incr,
    /// The user's plugins, in order. [`Config::default_chain`] has those that handle changes in their place among the
    /// default ones, [`Config::conflict_plugin`] the other one.
    pub plugins: Vec<PluginEntry>,
    pub log: Log,
    pub monitor: Monitor,
    pub limits: Limits,
    /// Hexadecimal SHA-256 of the effective values, secrets masked; see [`Config::sha256`].
    pub(crate) fingerprint: String,
}

impl Config {
    /// Hexadecimal SHA-256 of what this configuration does: all values that differ from their defaults and the
    /// plugins, with passwords masked. A password change or a comment keeps it.
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.fingerprint
    }

    /// The database for conflicts on the target; its changes are never replicated.
    #[must_use]
    pub fn conflict_db(&self) -> String {
        format!("{}{CONFLICT_SUFFIX}", self.checkpoint.db)
    }

    /// The whole chain, in order: namespace-filter, ddl-filter, the user's plugins, namespace-rename, target-delay.
    /// Entries that would do nothing are left out.
    #[must_use]
    pub fn default_chain(&self) -> Vec<PluginEntry> {
        let mut chain = vec![
            embedded(
                "namespace-filter",
                serde_json::json!({
                    "black": self.filter.black,
                    "white": self.filter.white,
                    "pass_special_db": self.filter.pass_special_db,
                    "checkpoint_db": self.checkpoint.db,
                }),
            ),
            embedded("ddl-filter", serde_json::json!({ "enable": self.filter.ddl_enable })),
        ];
        chain.extend(self.plugins.iter().filter(|entry| entry.handles == Handles::Changes).cloned());
        if !self.transform_namespace.is_empty() {
            chain.push(embedded("namespace-rename", serde_json::json!({ "rules": self.transform_namespace })));
        }
        if !self.incr.target_delay.is_zero() {
            let delay_ms = u64::try_from(self.incr.target_delay.as_millis()).unwrap_or(u64::MAX);
            chain.push(embedded("target-delay", serde_json::json!({ "delay_ms": delay_ms })));
        }
        chain
    }
}

impl Config {
    /// The plugin that rules over conflicts: there is one exactly when `incr_sync.conflict_write_to = sdk`.
    #[must_use]
    pub fn conflict_plugin(&self) -> Option<&PluginEntry> {
        self.plugins.iter().find(|entry| entry.handles == Handles::Conflicts)
    }
}

fn embedded(name: &str, config: serde_json::Value) -> PluginEntry {
    PluginEntry {
        name: name.to_owned(),
        path: PluginPath::Embedded(name.to_owned()),
        kind: None,
        config,
        handles: Handles::Changes,
        on_error: OnError::Fail,
        grants: Vec::new(),
    }
}
