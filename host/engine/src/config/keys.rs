//! The key table: every parameter that a configuration file may hold, in one place.
//!
//! Reading, defaults, checks, suggestions, the reference file and the conversion all follow this table, so a key
//! cannot be known to one of them and not to another. Names, defaults and versions are MongoShake's (the guide's
//! appendix first, then the facts about releases 2.4 to 2.8.9); keys of our own are marked. A key of MongoShake whose
//! feature is not built stands here too, with the values that change nothing. The table holds no behaviour.

mod full_sync;
mod global;
mod incr;
mod own;

/// What a bare number of a duration counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeUnit {
    Milliseconds,
    Seconds,
    Days,
}

/// What a bare number of a size counts. Kilo and mega are powers of 1024, as in MongoShake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeUnit {
    Bytes,
    Kilobytes,
    Megabytes,
}

/// The type of a value, with its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Any text.
    Text,
    /// Text that is never printed.
    Secret,
    /// Letters, digits, `.`, `_`, `-`: part of a file name.
    Name,
    Database,
    Collection,
    Bool,
    /// A whole number from the first to the second.
    Int(i64, i64),
    /// 1 to 65535; zero and below switch the port off.
    Port,
    /// A duration between two bounds given in the unit.
    Time(TimeUnit, u64, u64),
    /// A size between two bounds given in the unit.
    Size(SizeUnit, u64, u64),
    OneOf(&'static [&'static str]),
    /// `2006-01-02T15:04:05Z`.
    Date,
    Path,
    Ip,
    /// A connection string, `env:NAME` or `file:PATH`; may be empty.
    Uri,
    /// Connection strings, one a replica set.
    Uris,
    /// The target's connection strings, or another tunnel's address.
    Address,
    /// `db` or `db.collection`.
    Namespaces,
    /// `a.b:c.d` or `a:c`.
    Renames,
    /// Any texts.
    Texts,
}

/// Where a key comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// MongoShake, from this `conf.version` on (at most 10).
    Conf(u8),
    /// MongoShake, from this release on, before `conf.version` 11.
    Release(&'static str),
    /// MongoShake accepts it; its sample file does not show it.
    Hidden,
    /// MongoShake after `conf.version` 10: the version or release.
    Newer(&'static str),
    /// Oplogue's own.
    Oplogue,
}

/// What Oplogue does with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Supported,
    /// Only the default is accepted: this feature is not built yet.
    DefaultOnly(&'static str),
    /// Every valid value is accepted and changes nothing, for this reason.
    Hint(&'static str),
    /// Matters only together with something that is refused; every valid value is accepted.
    Inert(&'static str),
    /// An old name of another key.
    Renamed(&'static str),
    /// No longer a key, for this reason.
    Removed(&'static str),
}

/// One parameter.
#[derive(Debug, Clone, Copy)]
pub struct KeySpec {
    /// The dotted name of MongoShake.
    pub name: &'static str,
    /// The path in TOML: the name, except where a name is also the beginning of another.
    pub toml: &'static str,
    pub shape: Shape,
    /// In MongoShake's notation: lists by `;`, bare numbers in the key's unit.
    pub default: &'static str,
    pub since: Since,
    pub status: Status,
    /// Sentences for the reference file.
    pub doc: &'static str,
}

const fn key(
    name: &'static str,
    shape: Shape,
    default: &'static str,
    since: Since,
    status: Status,
    doc: &'static str,
) -> KeySpec {
    KeySpec { name, toml: name, shape, default, since, status, doc }
}

impl KeySpec {
    /// The same key at another place in TOML.
    const fn at(mut self, toml: &'static str) -> Self {
        self.toml = toml;
        self
    }

    /// Whether MongoShake got the key after configuration version 10.
    #[must_use]
    pub fn is_newer(&self) -> bool {
        matches!(self.since, Since::Newer(_))
    }

    /// Whether values of this key must not be printed as they are.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        matches!(self.shape, Shape::Secret)
    }
}

/// All sections in the order of the reference file, with their titles.
#[must_use]
pub fn sections() -> [(&'static str, &'static [KeySpec]); 4] {
    [
        ("The job, its source, its target and its filters", global::KEYS),
        ("The full copy", full_sync::KEYS),
        ("Incremental", incr::KEYS),
        ("Oplogue's own keys", own::KEYS),
    ]
}

/// Every key.
pub fn all() -> impl Iterator<Item = &'static KeySpec> {
    sections().into_iter().flat_map(|(_, keys)| keys.iter())
}

/// The key of this name, in MongoShake's or in TOML's spelling.
#[must_use]
pub fn find(name: &str) -> Option<&'static KeySpec> {
    all().find(|spec| spec.name == name).or_else(|| all().find(|spec| spec.toml == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parameters of the guide's appendix, in its order.
    const GUIDE: &[&str] = &[
        "conf.version",
        "id",
        "master_quorum",
        "full_sync.http_port",
        "incr_sync.http_port",
        "system_profile_port",
        "log.level",
        "log.dir",
        "log.file",
        "log.flush",
        "sync_mode",
        "mongo_urls",
        "mongo_cs_url",
        "mongo_s_url",
        "tunnel",
        "tunnel.address",
        "tunnel.message",
        "mongo_connect_mode",
        "filter.namespace.black",
        "filter.namespace.white",
        "filter.pass.special.db",
        "filter.ddl_enable",
        "checkpoint.storage.url",
        "checkpoint.storage.db",
        "checkpoint.storage.collection",
        "checkpoint.start_position",
        "transform.namespace",
        "full_sync.reader.collection_parallel",
        "full_sync.reader.write_document_parallel",
        "full_sync.reader.document_batch_size",
        "full_sync.collection_exist_drop",
        "full_sync.create_index",
        "full_sync.executor.insert_on_dup_update",
        "full_sync.executor.filter.orphan_document",
        "full_sync.executor.majority_enable",
        "incr_sync.mongo_fetch_method",
        "incr_sync.oplog.gids",
        "incr_sync.shard_key",
        "incr_sync.worker",
        "incr_sync.worker.oplog_compressor",
        "incr_sync.target_delay",
        "incr_sync.worker.batch_queue_size",
        "incr_sync.adaptive.batching_max_size",
        "incr_sync.fetcher.buffer_capacity",
        "incr_sync.executor.upsert",
        "incr_sync.executor.insert_on_dup_update",
        "incr_sync.conflict_write_to",
        "incr_sync.executor.majority_enable",
    ];

    /// What the releases 2.4.6 to 2.8.4 accept beyond the guide, hidden keys and old names included.
    const REFERENCE: &[&str] = &[
        "mongo_ssl_root_ca_file",
        "tunnel.kafka.partition_number",
        "tunnel.json.format",
        "tunnel.mongo_ssl_root_ca_file",
        "filter.oplog.gids",
        "checkpoint.storage.url.mongo_ssl_root_ca_file",
        "special.source.db.flag",
        "skip.nsshardkey.verify",
        "checkpoint.storage",
        "checkpoint.interval",
        "full_sync.reader.fetch_batch_size",
        "full_sync.reader.parallel_thread",
        "full_sync.reader.parallel_index",
        "full_sync.reader.oplog_store_disk",
        "full_sync.reader.oplog_store_disk_max_size",
        "full_sync.executor.debug",
        "incr_sync.change_stream.watch_full_document",
        "incr_sync.shard_by_object_id_whitelist",
        "incr_sync.tunnel.write_thread",
        "incr_sync.reader.fetch_batch_size",
        "incr_sync.executor",
        "incr_sync.executor.debug",
        "incr_sync.collision_detection",
        "incr_sync.reader.debug",
        "incr_sync.reader.buffer_time",
        "incr_sync.dbref",
        "incr_sync.tunnel.kafka.debug",
        "incr_sync.tunnel",
        "incr_sync.tunnel.address",
        "incr_sync.tunnel.message",
        "http_profile",
        "system_profile",
    ];

    #[test]
    fn every_key_of_the_guide_and_of_the_releases_is_there() {
        for name in GUIDE.iter().chain(REFERENCE) {
            let spec = find(name).unwrap_or_else(|| panic!("{name} is missing"));
            assert!(!spec.is_newer(), "{name} is older than that");
            assert!(!matches!(spec.status, Status::Removed(_)), "{name}");
        }
    }

    #[test]
    fn no_toml_path_is_another_one_or_its_beginning() {
        let paths: Vec<_> = all().map(|spec| spec.toml).collect();
        for (i, a) in paths.iter().enumerate() {
            for (j, b) in paths.iter().enumerate() {
                assert!(i == j || a != b, "{a} twice");
                assert!(!b.starts_with(&format!("{a}.")), "{a} would be a value and a table ({b})");
                assert_ne!(*a, "plugin");
            }
        }
    }

    #[test]
    fn only_colliding_names_move() {
        let names: Vec<_> = all().map(|spec| spec.name).collect();
        for spec in all().filter(|spec| spec.name != spec.toml) {
            let collides = |other: &&str| {
                other.starts_with(&format!("{}.", spec.name)) || spec.name.starts_with(&format!("{other}."))
            };
            assert!(names.iter().any(collides), "{} moves without need", spec.name);
            assert!(!names.contains(&spec.toml), "{} moves onto another key", spec.name);
        }
    }

    #[test]
    fn names_are_unique_and_renames_lead_somewhere() {
        let mut seen = std::collections::HashSet::new();
        for spec in all() {
            assert!(seen.insert(spec.name), "{} twice", spec.name);
            if let Status::Renamed(new) = spec.status {
                assert_eq!(find(new).unwrap().shape, spec.shape, "{}", spec.name);
            }
        }
    }
}
