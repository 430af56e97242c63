//! Makes sure that no earlier writer of the same job can still write to the target.
//!
//! A write whose answer never came may still be on its way: in a stalled network, in the server's socket, behind a
//! lock. Replayed changes must not begin before it has run or can run no more, else it lands on top of newer ones.
//! Every run therefore writes through connections that carry its name, and first waits until the server has no
//! connection left of an earlier one: a server reads what came and then sees the end. An instance that was paused
//! keeps its connections, so its successor waits for its end as well. What a dead run cannot end itself is ended here:
//! its open transactions would hold their documents for a minute, and whatever waits for those holds its connection.
//!
//! A `mongos` shows what its own clients do when it is asked for `localOps` (manual, "$currentOp"), and that needs no
//! privilege either; a `mongod` ignores the word. So each `mongos` that the job may have written through is asked. What
//! one that went away has passed on to a shard is seen by nobody here.

use std::time::Duration;

use bson::{Bson, Document, doc};
use futures_util::TryStreamExt as _;
use mongodb::Client;
use mongodb::options::DriverInfo;
use oplogue_engine::error::{Kind, Result, Side};
use tokio::time::Instant;

use super::classify;
use super::patience::answered;

/// What our connections are called in `currentOp`, behind the driver's own name.
const NAME: &str = "oplogue-writer";

const POLL: Duration = Duration::from_millis(50);

/// Connections of a dead process are gone in milliseconds; from here on the wait is worth a line.
const REMARKABLE: Duration = Duration::from_secs(5);

/// From here on somebody should look, and is told this often.
const LONG: Duration = Duration::from_secs(30);

/// The name that the connections of one run carry: the job's, and one that no other run has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriterName {
    job: String,
    run: String,
}

impl WriterName {
    /// A new run of a job. `job` must differ between jobs and be the same for every instance of one: the identity of
    /// its lease.
    #[must_use]
    pub fn new(job: &str) -> Self {
        Self { job: job.to_owned(), run: bson::Uuid::new().to_string() }
    }

    pub(super) fn driver_info(&self) -> DriverInfo {
        DriverInfo::builder().name(NAME).version(format!("{}/{}", self.job, self.run)).build()
    }

    /// Whether a connection belongs to another run of the same job. A driver joins our version to its own by `|`.
    fn is_of_another_run(&self, operation: &Document) -> bool {
        let version = operation
            .get_document("clientMetadata")
            .and_then(|metadata| metadata.get_document("driver"))
            .and_then(|driver| driver.get_str("version"))
            .unwrap_or_default();
        let runs = version.split('|').filter_map(|part| part.split_once('/'));
        runs.into_iter().any(|(job, run)| job == self.job && run != self.run)
    }
}

/// Ends the transactions and statements that other runs of this job have left on the target, and waits until it has no
/// connection of theirs. All that is looked at belongs to the same user, for which no privilege is needed.
///
/// `routers` are clients of each `mongos` of the target alone; empty for anything but a cluster with several. One that
/// cannot be reached is left out: it has lost its clients, or nobody could wait for it.
///
/// A server that does not tell (a missing privilege, an unknown stage) is taken at its word that there is none, and
/// the log says so. Cancel it by dropping it.
///
/// # Errors
/// `Unavailable`, `FailedOver`.
pub async fn wait_until_alone(target: &Client, routers: &[Client], own: &WriterName) -> Result<()> {
    let began = Instant::now();
    let mut next_line = REMARKABLE;
    loop {
        let others = match others_of_all(target, routers, own).await {
            Ok(others) => others,
            Err(fault) if matches!(fault.kind(), Kind::Unauthorized | Kind::Unsupported) => {
                tracing::info!(%fault, "whether an earlier run can still write is not to be seen on this target");
                return Ok(());
            }
            Err(fault) => return Err(fault),
        };
        let Some(first) = others.first() else { return Ok(()) };
        for client in std::iter::once(target).chain(routers) {
            end_sessions(client, &others).await;
        }
        let waited = began.elapsed();
        if waited >= next_line {
            say(first.get_str("client").unwrap_or("unknown"), others.len(), waited);
            next_line = if next_line < LONG { LONG } else { waited + LONG };
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Kills the sessions of these operations. Failing is no fault: the server ends them by itself in the end.
async fn end_sessions(target: &Client, operations: &[Document]) {
    let sessions: Vec<Bson> = operations.iter().filter_map(|operation| operation.get("lsid").cloned()).collect();
    if sessions.is_empty() {
        return;
    }
    let doing = "end what an earlier run left on the target";
    let admin = target.database("admin");
    let ended = admin.run_command(doc! { "killSessions": sessions });
    let ended = answered(Side::Sink, doing, ended).await;
    if let Err(error) = ended.and_then(|ended| ended.map_err(|fault| classify::error(Side::Sink, doing, fault))) {
        tracing::debug!(%error, "it ends by itself");
    }
}

fn say(client: &str, count: usize, waited: Duration) {
    let waited_s = waited.as_secs();
    if waited < LONG {
        tracing::info!(%client, count, waited_s, "waiting for the end of an earlier run's connections to the target");
        return;
    }
    tracing::warn!(
        %client,
        count,
        waited_s,
        "an earlier run of this job still has connections to the target: writes on them could overtake newer ones, so \
         this run waits; stop the other instance, or the server ends them when their network is gone"
    );
}

async fn others_of_all(target: &Client, routers: &[Client], own: &WriterName) -> Result<Vec<Document>> {
    let mut all = others(target, own).await?;
    for router in routers {
        match others(router, own).await {
            Ok(found) => all.extend(found),
            Err(fault) if fault.kind() == Kind::Unavailable => {
                tracing::info!(%fault, "a mongos of the target does not say whether an earlier run writes through it");
            }
            Err(fault) => return Err(fault),
        }
    }
    Ok(all)
}

/// What the server has of other runs: operations, idle connections, transactions between two statements.
async fn others(target: &Client, own: &WriterName) -> Result<Vec<Document>> {
    let doing = "look for connections of an earlier run on the target";
    let failed = |e| classify::error(Side::Sink, doing, e);
    let stages = [doc! { "$currentOp": { "idleConnections": true, "idleSessions": true, "localOps": true } }];
    let admin = target.database("admin");
    let list = async { admin.aggregate(stages).await?.try_collect().await };
    let mut operations: Vec<Document> = answered(Side::Sink, doing, list).await?.map_err(failed)?;
    operations.retain(|operation| own.is_of_another_run(operation) && !is_monitor(operation));
    Ok(operations)
}

/// A driver's monitor waits for news of the topology, writes nothing, and is slow to notice that its client is gone.
fn is_monitor(operation: &Document) -> bool {
    let command = operation.get_document("command").ok();
    let name = command.and_then(|command| command.keys().next());
    name.is_some_and(|name| matches!(name.as_str(), "hello" | "isMaster" | "ismaster"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(version: &str) -> Document {
        doc! { "clientMetadata": { "driver": { "name": "mongo-rust-driver|oplogue-writer", "version": version } } }
    }

    #[test]
    fn only_other_runs_of_the_same_job_are_met() {
        let own = WriterName::new("lease-a");
        let version = |name: &WriterName| format!("3.9.1|{}", name.driver_info().version.unwrap());
        assert!(!own.is_of_another_run(&operation(&version(&own))));
        assert!(own.is_of_another_run(&operation(&version(&WriterName::new("lease-a")))));
        assert!(!own.is_of_another_run(&operation(&version(&WriterName::new("lease-b")))));
        assert!(!own.is_of_another_run(&operation("3.9.1")));
        assert!(!own.is_of_another_run(&doc! {}));
    }

    #[test]
    fn a_monitor_writes_nothing() {
        assert!(is_monitor(&doc! { "command": { "hello": 1, "topologyVersion": {} } }));
        assert!(!is_monitor(&doc! { "command": { "update": "c" } }));
        assert!(!is_monitor(&doc! {}));
    }
}
