//! What stands behind an address: `hello`, the server's version, and how far its writes have come.
//!
//! Everything here is readable with the privileges of the guide's users: `hello`, `buildInfo` and `connectionStatus`
//! ask for none. `replSetGetStatus` and `config.transactions` would say more and are refused to them. Nothing is
//! cached: the answers are true for one moment on one server.

use bson::{Document, doc};
use futures_util::TryStreamExt as _;
use mongodb::Client;
use mongodb::options::SelectionCriteria;
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::OpTime;

use super::classify;
use super::patience::answered;

/// `major, minor, patch` of a server.
pub type Version = [u32; 3];

/// What `hello` and `buildInfo` say about one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// Name of the replica set.
    pub replica_set: String,
    pub version: Version,
    /// Protocol version; 21 is MongoDB 7.0, 17 is 6.0, 9 is 4.4.
    pub max_wire_version: i32,
    /// `featureCompatibilityVersion`, where the user may read it.
    pub feature_compatibility: Option<String>,
    /// The server asked and how far its writes had come.
    pub member: Member,
}

/// One server of a replica set, as its `hello` describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its address in the set's configuration.
    pub address: String,
    /// Whether it takes writes now.
    pub writable_primary: bool,
    /// Addresses of the set's members, as its configuration has them.
    pub hosts: Vec<String>,
    /// Newest entry that a majority holds: no election can take it back.
    pub majority: OpTime,
    /// Newest entry that this server holds.
    pub newest: OpTime,
}

/// A replica set, or a sharded cluster behind a `mongos`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Name of the replica set; [`SHARDED`] behind a `mongos`.
    pub name: String,
    pub is_mongos: bool,
    pub version: Version,
}

/// What a sharded cluster is called where a replica set has a name; MongoShake's word.
pub const SHARDED: &str = "mongos";

impl Topology {
    /// Whether the server is at least of this version.
    #[must_use]
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        self.version >= [major, minor, 0]
    }

    /// Whether both are the same replica set, under whatever addresses they were reached.
    #[must_use]
    pub fn is_same_set(&self, other: &Self) -> bool {
        self.replica_set == other.replica_set && self.member.hosts.iter().any(|host| other.member.hosts.contains(host))
    }

    /// The version as people write it, `6.0.27`.
    #[must_use]
    pub fn version_text(&self) -> String {
        version_text(self.version)
    }
}

/// A version as people write it, `6.0.27`.
#[must_use]
pub fn version_text([major, minor, patch]: Version) -> String {
    format!("{major}.{minor}.{patch}")
}

/// Asks one server that `criteria` picks what it is.
///
/// # Errors
/// `Unsupported` for a `mongos` and for a server outside of a replica set (it has no oplog); `Unavailable`,
/// `Unauthorized`.
pub async fn inspect(side: Side, client: &Client, criteria: &SelectionCriteria) -> Result<Topology> {
    let hello = hello(side, client, criteria).await?;
    let replica_set = replica_set(side, &hello)?;
    let build = run(side, client, criteria, doc! { "buildInfo": 1 }).await?;
    Ok(Topology {
        replica_set,
        version: version(&build),
        max_wire_version: hello.get_i32("maxWireVersion").unwrap_or_default(),
        feature_compatibility: feature_compatibility(client, criteria).await,
        member: member(side, &hello)?,
    })
}

/// Asks one server that `criteria` picks how far its writes have come. One round trip.
///
/// # Errors
/// As [`inspect`].
pub async fn last_write(side: Side, client: &Client, criteria: &SelectionCriteria) -> Result<Member> {
    let hello = hello(side, client, criteria).await?;
    replica_set(side, &hello)?;
    member(side, &hello)
}

/// Asks whether this is a replica set or a cluster.
///
/// # Errors
/// As [`inspect`], but for a `mongos`.
pub async fn cluster(side: Side, client: &Client, criteria: &SelectionCriteria) -> Result<Cluster> {
    let hello = hello(side, client, criteria).await?;
    let is_mongos = is_mongos(&hello);
    let name = if is_mongos { SHARDED.to_owned() } else { replica_set(side, &hello)? };
    let build = run(side, client, criteria, doc! { "buildInfo": 1 }).await?;
    Ok(Cluster { name, is_mongos, version: version(&build) })
}

/// The replica sets behind a `mongos`, by name and members (`config.shards`).
///
/// # Errors
/// `Unauthorized` without `find` on `config`; those of the server.
pub async fn shards_of(side: Side, client: &Client) -> Result<Vec<(String, Vec<String>)>> {
    let failed = |e| classify::error(side, "read the shards of the cluster (needs `find` on `config.shards`)", e);
    let shards = client.database("config").collection::<Document>("shards");
    let found: Vec<Document> = shards.find(doc! {}).await.map_err(failed)?.try_collect().await.map_err(failed)?;
    let read = |shard: &Document| {
        let (name, members) = shard.get_str("host").ok()?.split_once('/')?;
        Some((name.to_owned(), members.split(',').map(str::to_owned).collect()))
    };
    Ok(found.iter().filter_map(read).collect())
}

/// Whether a connection string names one address and no list of them elsewhere.
#[must_use]
pub fn is_one_address(uri: &str) -> bool {
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    let hosts = rest.rsplit_once('@').map_or(rest, |(_, hosts)| hosts);
    let hosts = hosts.split(['/', '?']).next().unwrap_or_default();
    !uri.starts_with("mongodb+srv") && !hosts.contains(',')
}

fn is_mongos(hello: &Document) -> bool {
    hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid")
}

async fn hello(side: Side, client: &Client, criteria: &SelectionCriteria) -> Result<Document> {
    run(side, client, criteria, doc! { "hello": 1 }).await
}

async fn run(side: Side, client: &Client, criteria: &SelectionCriteria, command: Document) -> Result<Document> {
    let admin = client.database("admin");
    let doing = "ask the server what it is";
    let asked = admin.run_command(command).selection_criteria(criteria.clone());
    answered(side, doing, asked).await?.map_err(|e| classify::error(side, doing, e))
}

fn replica_set(side: Side, hello: &Document) -> Result<String> {
    if is_mongos(hello) {
        let text = "the address is a mongos of a sharded cluster, which this version does not read; \
                    give the addresses of a replica set";
        return Err(Error::new(side, Kind::Unsupported, text));
    }
    hello.get_str("setName").map(str::to_owned).map_err(|_| {
        let text = "the server is no member of a replica set: it has no oplog; start it with --replSet";
        Error::new(side, Kind::Unsupported, text)
    })
}

fn member(side: Side, hello: &Document) -> Result<Member> {
    let write = hello.get_document("lastWrite").ok();
    let time = |name| write.and_then(|write| op_time(write.get_document(name).ok()?));
    // An arbiter, or a member before its first write, has no lastWrite; another member will have.
    let missing = || Error::new(side, Kind::Unavailable, "ask the server what it is: it reports no lastWrite yet");
    Ok(Member {
        address: hello.get_str("me").unwrap_or_default().to_owned(),
        writable_primary: hello.get_bool("isWritablePrimary").unwrap_or(false),
        hosts: hello.get_array("hosts").into_iter().flatten().filter_map(|h| h.as_str().map(str::to_owned)).collect(),
        majority: time("majorityOpTime").ok_or_else(missing)?,
        newest: time("opTime").ok_or_else(missing)?,
    })
}

/// Reads `{ts, t}`.
#[must_use]
pub fn op_time(document: &Document) -> Option<OpTime> {
    let ts = document.get_timestamp("ts").ok()?;
    let term = document.get_i64("t").ok().or_else(|| document.get_i32("t").ok().map(i64::from));
    Some(OpTime::new(ts.time, ts.increment, term.unwrap_or(-1)))
}

/// `major, minor, patch` out of the answer of `buildInfo`.
#[must_use]
pub fn version(build: &Document) -> Version {
    let numbers = build.get_array("versionArray").ok();
    let number = |n: usize| {
        let found = numbers.and_then(|numbers| numbers.get(n)).and_then(bson::Bson::as_i32);
        found.and_then(|number| u32::try_from(number).ok()).unwrap_or_default()
    };
    [number(0), number(1), number(2)]
}

/// Readable by administrators only; others go without.
async fn feature_compatibility(client: &Client, criteria: &SelectionCriteria) -> Option<String> {
    let command = doc! { "getParameter": 1, "featureCompatibilityVersion": 1 };
    let answer = client.database("admin").run_command(command).selection_criteria(criteria.clone()).await.ok()?;
    answer.get_document("featureCompatibilityVersion").ok()?.get_str("version").ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_counted_behind_the_user() {
        assert!(is_one_address("mongodb://u,x:p@a:1/?readPreference=primary"));
        assert!(!is_one_address("mongodb://a:1,b:2/db") && !is_one_address("mongodb+srv://cluster"));
    }

    #[test]
    fn a_mongos_and_a_lone_server_are_refused_by_name() {
        let mongos = replica_set(Side::Source, &doc! { "msg": "isdbgrid" }).unwrap_err();
        assert!(mongos.to_string().contains("mongos"), "{mongos}");
        let lone = replica_set(Side::Source, &doc! { "isWritablePrimary": true }).unwrap_err();
        assert!(lone.to_string().contains("--replSet"), "{lone}");
    }

    #[test]
    fn versions_compare_by_number() {
        let version = version(&doc! { "versionArray": [6, 0, 27, 0] });
        let member = Member {
            address: String::new(),
            writable_primary: true,
            hosts: vec!["a:1".to_owned(), "b:1".to_owned()],
            majority: OpTime::default(),
            newest: OpTime::default(),
        };
        let topology = Topology {
            replica_set: "rs".to_owned(),
            version,
            max_wire_version: 17,
            feature_compatibility: None,
            member,
        };
        assert!(topology.at_least(5, 3) && topology.at_least(6, 0) && !topology.at_least(6, 1));
        assert_eq!(topology.version_text(), "6.0.27");

        let mut other = topology.clone();
        other.member.hosts = vec!["b:1".to_owned(), "c:1".to_owned()];
        assert!(topology.is_same_set(&other), "one member moved");
        other.member.hosts.remove(0);
        assert!(!topology.is_same_set(&other), "another set of the same name");
    }
}
