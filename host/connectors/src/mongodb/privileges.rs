//! What the connected user may do, asked before the work starts.
//!
//! A refusal in the middle of a copy costs hours; one question at the start costs a round trip. The answer of
//! `connectionStatus` is compared with a list of needs, each of which names the feature that needs it. Nothing is
//! refused here: a missing privilege is a message, and what to do about it is the caller's affair.

use std::fmt;

use bson::{Bson, Document, doc};
use mongodb::Client;
use mongodb::options::SelectionCriteria;
use oplogue_engine::error::{Error, Kind, Result, Side};

use super::classify;

/// Something that a feature must be allowed to do. An empty name means "any": any database, or any collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// Database name; empty for all databases.
    pub database: String,
    /// Collection name; empty for all collections of the database.
    pub collection: String,
    /// Action name of the server's manual ("Privilege Actions").
    pub action: &'static str,
    /// What does not work without it, and the role that gives it.
    pub purpose: String,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let database = if self.database.is_empty() { "every database" } else { &self.database };
        let dot = if self.collection.is_empty() { "" } else { "." };
        write!(f, "`{}` on {database}{dot}{}: {}", self.action, self.collection, self.purpose)
    }
}

/// The needs of reading a source with the oplog and the full copy.
#[must_use]
pub fn of_source() -> Vec<Need> {
    let oplog = Need {
        database: "local".to_owned(),
        collection: "oplog.rs".to_owned(),
        action: "find",
        purpose: "tailing the oplog (role `read` on `local`)".to_owned(),
    };
    std::iter::once(oplog).chain(of_copy()).collect()
}

/// The needs of reading a source with a change stream and the full copy.
#[must_use]
pub fn of_stream() -> Vec<Need> {
    let stream = everywhere("changeStream", "the change stream (role `readAnyDatabase`)");
    std::iter::once(stream).chain(of_copy()).collect()
}

fn of_copy() -> [Need; 3] {
    [
        everywhere("find", "the full copy (role `readAnyDatabase`)"),
        everywhere("listCollections", "the full copy (role `readAnyDatabase`)"),
        everywhere("listIndexes", "copying indexes (role `readAnyDatabase`)"),
    ]
}

/// Whether the user of a target may write anywhere at all. Which database that must be is known only when names have
/// passed the plugins, so nothing more is asked before.
///
/// # Errors
/// `Unauthorized`.
pub fn require_some_writing(privileges: &Privileges) -> Result<()> {
    for action in ["insert", "update", "remove", "createCollection", "createIndex"] {
        if privileges.users > 0 && !privileges.grants.iter().any(|grant| grant.actions.iter().any(|a| a == action)) {
            let text = format!(
                "the user of the target lacks the privilege `{action}` on every database: writing \
                 (role `readWriteAnyDatabase`)"
            );
            return Err(Error::new(Side::Sink, Kind::Unauthorized, text));
        }
    }
    Ok(())
}

fn everywhere(action: &'static str, purpose: &str) -> Need {
    Need { database: String::new(), collection: String::new(), action, purpose: purpose.to_owned() }
}

/// The needs of replaying DDL on a target (`filter.ddl_enable`). A `dropDatabase` is replayed as the drop of each
/// collection, so its own action is none of them.
#[must_use]
pub fn of_ddl() -> Vec<Need> {
    let need = |action, command: &str, role: &str| Need {
        database: String::new(),
        collection: String::new(),
        action,
        purpose: format!("replaying {command} (role `{role}`)"),
    };
    let of_writers = |action, command| need(action, command, "readWriteAnyDatabase");
    vec![
        of_writers("createCollection", "create"),
        of_writers("dropCollection", "drop and dropDatabase"),
        of_writers("createIndex", "createIndexes"),
        of_writers("dropIndex", "dropIndexes"),
        of_writers("renameCollectionSameDB", "renameCollection"),
        of_writers("convertToCapped", "convertToCapped"),
        need("collMod", "collMod", "dbAdminAnyDatabase"),
    ]
}

/// The needs of a target that is a cluster; `sharding`: the full copy is to shard collections there.
#[must_use]
pub fn of_cluster_target(sharding: bool) -> Vec<Need> {
    let config = Need {
        database: "config".to_owned(),
        collection: "collections".to_owned(),
        action: "find",
        purpose: "knowing how the target's collections are sharded (role `read` on `config`)".to_owned(),
    };
    let shard = everywhere(
        "enableSharding",
        "sharding collections as on the source (role `clusterManager` on `admin`), which          full_sync.do_not_shard_destination = true leaves out",
    );
    std::iter::once(config).chain(sharding.then_some(shard)).collect()
}

/// The needs of the checkpoint store.
#[must_use]
pub fn of_store(database: &str, collection: &str) -> Vec<Need> {
    let need = |action| Need {
        database: database.to_owned(),
        collection: collection.to_owned(),
        action,
        purpose: format!("storing checkpoints (role `readWrite` on `{database}`)"),
    };
    ["find", "insert", "update", "remove"].map(need).into()
}

/// What the connected user may do.
#[derive(Debug, Clone, Default)]
pub struct Privileges {
    /// Empty when nobody is logged in: the server then either lets everybody do everything, or will refuse with a
    /// message of its own.
    users: usize,
    grants: Vec<Grant>,
}

#[derive(Debug, Clone)]
struct Grant {
    /// `None` = a resource of another kind (cluster), `Some(any)` = any resource or these names.
    database: Option<String>,
    collection: Option<String>,
    any: bool,
    actions: Vec<String>,
}

impl Privileges {
    /// Asks the server (`connectionStatus`, which everybody may run).
    ///
    /// # Errors
    /// `Unavailable`, `Unauthorized`.
    pub async fn ask(side: Side, client: &Client, criteria: &SelectionCriteria) -> Result<Self> {
        let command = doc! { "connectionStatus": 1, "showPrivileges": true };
        let answer = client.database("admin").run_command(command).selection_criteria(criteria.clone()).await;
        let answer = answer.map_err(|e| classify::error(side, "ask for the user's privileges", e))?;
        Ok(Self::read(answer.get_document("authInfo").unwrap_or(&Document::new())))
    }

    fn read(info: &Document) -> Self {
        let count = |name| info.get_array(name).map_or(0, Vec::len);
        let granted = info.get_array("authenticatedUserPrivileges").into_iter().flatten();
        Self {
            users: count("authenticatedUsers"),
            grants: granted.filter_map(Bson::as_document).filter_map(Grant::read).collect(),
        }
    }

    /// Whether `need` is granted. True when nobody is logged in.
    #[must_use]
    pub fn allows(&self, need: &Need) -> bool {
        self.users == 0 || self.grants.iter().any(|grant| grant.covers(need))
    }

    /// Those of `needs` that are not granted.
    #[must_use]
    pub fn missing<'a>(&self, needs: &'a [Need]) -> Vec<&'a Need> {
        needs.iter().filter(|need| !self.allows(need)).collect()
    }

    /// An error that names every missing privilege, unless there is none.
    ///
    /// # Errors
    /// `Unauthorized`.
    pub fn require(&self, side: Side, needs: &[Need]) -> Result<()> {
        let missing: Vec<_> = self.missing(needs).iter().map(ToString::to_string).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let text = format!("the user lacks the privilege {}", missing.join("; "));
        Err(Error::new(side, Kind::Unauthorized, text))
    }
}

impl Grant {
    fn read(privilege: &Document) -> Option<Self> {
        let resource = privilege.get_document("resource").ok()?;
        let name = |key| resource.get_str(key).ok().map(str::to_owned);
        let actions = privilege.get_array("actions").ok()?.iter().filter_map(Bson::as_str).map(str::to_owned);
        Some(Self {
            database: name("db"),
            collection: name("collection"),
            any: resource.get_bool("anyResource").unwrap_or(false),
            actions: actions.collect(),
        })
    }

    /// An empty database name of a grant means every database but `local` and `config` (manual, "Resource Document");
    /// an empty collection name every collection that is no system collection.
    fn covers(&self, need: &Need) -> bool {
        let names = match (&self.database, &self.collection) {
            (Some(database), Some(collection)) => {
                let special = matches!(need.database.as_str(), "local" | "config");
                let database = *database == need.database || (database.is_empty() && !special);
                database && (collection.is_empty() || *collection == need.collection)
            }
            _ => self.any,
        };
        names && self.actions.iter().any(|action| action == need.action)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(privileges: Vec<Document>) -> Privileges {
        Privileges::read(&doc! {
            "authenticatedUsers": [{ "user": "reader", "db": "admin" }],
            "authenticatedUserPrivileges": privileges,
        })
    }

    #[test]
    fn every_missing_privilege_is_named() {
        let all = doc! { "resource": { "db": "", "collection": "" },
        "actions": ["find", "listCollections", "listIndexes"] };
        let error = granted(vec![all.clone()]).require(Side::Source, &of_source()).unwrap_err();
        assert!(error.to_string().contains("`find` on local.oplog.rs: tailing the oplog"), "{error}");
        let local = doc! { "resource": { "db": "local", "collection": "" }, "actions": ["find"] };
        assert!(granted(vec![all, local]).missing(&of_source()).is_empty());
    }

    #[test]
    fn a_cluster_is_written_to_with_a_look_at_its_configuration() {
        let writer = doc! { "resource": { "db": "", "collection": "" }, "actions": ["find", "insert"] };
        let error = granted(vec![writer.clone()]).require(Side::Sink, &of_cluster_target(false)).unwrap_err();
        assert!(error.to_string().contains("`find` on config.collections"), "{error}");
        let config = doc! { "resource": { "db": "config", "collection": "" }, "actions": ["find"] };
        let reads = granted(vec![writer, config]);
        assert!(reads.missing(&of_cluster_target(false)).is_empty());
        assert_eq!(reads.missing(&of_cluster_target(true)).len(), 1);
    }

    #[test]
    fn any_resource_allows_everything_and_nobody_knows_nothing() {
        let any = doc! { "resource": { "anyResource": true }, "actions": ["find", "insert", "update", "remove"] };
        assert!(granted(vec![any]).missing(&of_store("mongoshake", "ckpt_default")).is_empty());
        assert!(Privileges::default().missing(&of_source()).is_empty());
        assert_eq!(granted(vec![]).missing(&of_store("m", "c")).len(), 4);
    }
}
