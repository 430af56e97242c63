//! What a replica set is started with, and the two users of the guide.
//!
//! The defaults are the common case: one member, no authentication, the version that most tests run on.
//! Users turn authentication on, and with it a key file and a root user for the harness itself. Nothing here
//! touches a process.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use bson::{Bson, Document, doc};

use super::certificates::Certificates;
use super::member::Member;

/// The version that tests run on unless they or the environment say otherwise.
pub const DEFAULT_VERSION: &str = "6.0.27";

/// The version of servers that play no part: `OPLOGUE_MONGOD_VERSION`, else [`DEFAULT_VERSION`].
#[must_use]
pub fn default_version() -> String {
    std::env::var("OPLOGUE_MONGOD_VERSION").unwrap_or_else(|_| DEFAULT_VERSION.to_owned())
}

/// The version of a source or a target: the part's own variable, else [`default_version`].
fn version_of(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| default_version())
}

/// The first two numbers of a version.
pub(super) fn series(version: &str) -> (u32, u32) {
    let mut numbers = version.split('.').map_while(|part| part.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Whether a version is of this series or a newer one; says aloud what is left out where it is not.
#[allow(clippy::print_stdout, reason = "what a test leaves out stands in its output")]
pub(super) fn has(version: &str, feature: &str, since: (u32, u32)) -> bool {
    let found = series(version) >= since;
    if !found {
        println!("left out on MongoDB {version}: {feature} (needs {}.{})", since.0, since.1);
    }
    found
}

const ROOT: (&str, &str) = ("root", "root-of-the-test-set");

/// How a replica set is started. Fill what matters and leave the rest to `..Options::default()`.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the set; the label of its directory too.
    pub name: String,
    /// Number of data-bearing voting members.
    pub members: usize,
    /// How many of them, the last ones, have neither vote nor priority: they follow and decide nothing.
    pub non_voting: usize,
    /// Server version, one that `cargo xtask servers` knows. `MONGOD` in the environment overrides it.
    pub version: String,
    /// Users to create; not empty means that authentication is on.
    pub users: Vec<User>,
    /// Further `--setParameter name=value`.
    pub parameters: Vec<(String, String)>,
    /// Further arguments, passed as they are.
    pub arguments: Vec<String>,
    /// Oplog size in MB; the server's default when none. The server's minimum is 990 unless a fraction of the
    /// disk is smaller, so tests that need a short oplog use `replSetResizeOplog` and truncation points.
    pub oplog_mb: Option<u32>,
    /// WiredTiger's cache in GB.
    pub cache_gb: f32,
    /// A proxy stands before every member; only its port is known to clients of the set ([`crate::proxy`]).
    pub proxied: bool,
    /// The servers take nothing but TLS, with certificates of this authority.
    pub tls: Option<Certificates>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "rs".to_owned(),
            members: 1,
            non_voting: 0,
            version: default_version(),
            users: Vec::new(),
            parameters: Vec::new(),
            arguments: Vec::new(),
            oplog_mb: None,
            cache_gb: 0.25,
            proxied: false,
            tls: None,
        }
    }
}

impl Options {
    /// A source with the guide's user: `readAnyDatabase`, `read` on local, `readWrite` on mongoshake. Its version is
    /// `OPLOGUE_SOURCE_VERSION` where that is set.
    #[must_use]
    pub fn guide_source() -> Self {
        let version = version_of("OPLOGUE_SOURCE_VERSION");
        Self { name: "source".to_owned(), users: vec![User::guide_source()], version, ..Self::default() }
    }

    /// A target with the guide's user: `readWriteAnyDatabase`. Its version is `OPLOGUE_TARGET_VERSION` where that is
    /// set.
    #[must_use]
    pub fn guide_target() -> Self {
        let version = version_of("OPLOGUE_TARGET_VERSION");
        Self { name: "target".to_owned(), users: vec![User::guide_target()], version, ..Self::default() }
    }

    /// The same set under another name.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    /// The same set with that many members.
    #[must_use]
    pub fn with_members(self, members: usize) -> Self {
        Self { members, ..self }
    }

    /// The same set behind proxies.
    #[must_use]
    pub fn behind_proxies(self) -> Self {
        Self { proxied: true, ..self }
    }

    pub(super) fn root(&self) -> Option<(&'static str, &'static str)> {
        (!self.users.is_empty()).then_some(ROOT)
    }

    /// Writes the key by which members trust each other; none without authentication.
    pub(super) fn key_file(&self, dir: &Path) -> Result<Option<PathBuf>> {
        if self.users.is_empty() {
            return Ok(None);
        }
        let path = dir.join("key");
        if !path.exists() {
            let mut open = std::fs::OpenOptions::new();
            let mut file = open.write(true).create_new(true).mode(0o600).open(&path).context("write key file")?;
            file.write_all(b"b3Bsb2d1ZSB0ZXN0IHNldCBrZXk=\n").context("write key file")?;
        }
        Ok(Some(path))
    }

    /// `replSetInitiate` with elections that take a second or two instead of ten.
    pub(super) fn initiate_command(&self, members: &[Member]) -> Document {
        let voting = members.len().saturating_sub(self.non_voting);
        let list: Vec<Bson> = members
            .iter()
            .enumerate()
            .map(|(number, member)| {
                let weight = i32::from(number < voting);
                let id = i32::try_from(number).unwrap_or_default();
                let host = format!("127.0.0.1:{}", member.known_port());
                Bson::Document(doc! { "_id": id, "host": host, "priority": weight, "votes": weight })
            })
            .collect();
        // Where others may be elected a busy machine must not be taken for a dead primary.
        let election_ms = if voting > 1 { 6_000 } else { 2_000 };
        let settings = doc! { "electionTimeoutMillis": election_ms, "heartbeatIntervalMillis": 500 };
        let mut config = doc! { "_id": &self.name, "members": list, "settings": settings };
        if self.arguments.iter().any(|argument| argument == "--configsvr") {
            config.insert("configsvr", true);
        }
        doc! { "replSetInitiate": config }
    }
}

/// A user of the admin database.
#[derive(Debug, Clone)]
pub struct User {
    /// Name, of characters that need no escaping in a connection string.
    pub name: String,
    /// Password, likewise.
    pub password: String,
    /// Pairs of role and database.
    pub roles: Vec<(String, String)>,
}

impl User {
    /// A user with roles given as (role, database).
    #[must_use]
    pub fn new(name: &str, password: &str, roles: &[(&str, &str)]) -> Self {
        let roles = roles.iter().map(|(role, db)| ((*role).to_owned(), (*db).to_owned())).collect();
        Self { name: name.to_owned(), password: password.to_owned(), roles }
    }

    /// The guide's source user.
    #[must_use]
    pub fn guide_source() -> Self {
        let roles = [("readAnyDatabase", "admin"), ("read", "local"), ("readWrite", "mongoshake")];
        Self::new("guide_source", "source-password", &roles)
    }

    /// The guide's target user.
    #[must_use]
    pub fn guide_target() -> Self {
        Self::new("guide_target", "target-password", &[("readWriteAnyDatabase", "admin")])
    }

    /// `createUser`, answered when every member has the user: a harness that asks a member alone logs in there.
    pub(super) fn create_command(&self, members: usize) -> Document {
        let roles: Vec<Bson> =
            self.roles.iter().map(|(role, db)| Bson::Document(doc! { "role": role, "db": db })).collect();
        let everywhere = doc! { "w": i64::try_from(members).unwrap_or(1), "wtimeout": 60_000 };
        doc! { "createUser": &self.name, "pwd": &self.password, "roles": roles, "writeConcern": everywhere }
    }
}
