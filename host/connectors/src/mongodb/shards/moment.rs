//! A cluster time that one server knows, carried to another.
//!
//! Servers of a cluster learn the time from each other by what clients carry between them, signed. A read *after* a time
//! that its server does not know is refused, so the time is brought along. On a shard's primary such a read also makes
//! the oplog pass that time: the primary writes a no-op when nothing else has come. Nothing else is written.

use bson::doc;
use mongodb::options::{ReadPreference, SelectionCriteria};
use mongodb::{Client, ClusterTime};
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::OpTime;

use crate::mongodb::classify;

/// A moment of the cluster.
#[derive(Debug, Clone)]
pub(crate) struct Moment {
    pub(crate) time: OpTime,
    /// The server's word for it; may be newer than `time`.
    proof: ClusterTime,
}

impl Moment {
    /// The newest time that the primary behind a client knows.
    ///
    /// # Errors
    /// `Unsupported` when the server is outside of a cluster; `Unavailable`.
    pub(crate) async fn of(client: &Client) -> Result<Self> {
        let failed = |e| classify::error(Side::Source, "ask a server of the cluster for its time", e);
        let mut session = client.start_session().await.map_err(failed)?;
        let admin = client.database("admin");
        let ping = admin.run_command(doc! { "ping": 1 }).session(&mut session).selection_criteria(primary());
        let reply = ping.await.map_err(failed)?;
        let time = reply.get_document("$clusterTime").and_then(|time| time.get_timestamp("clusterTime")).ok();
        match (time, session.cluster_time()) {
            (Some(time), Some(proof)) => {
                Ok(Self { time: OpTime::new(time.time, time.increment, -1), proof: proof.clone() })
            }
            _ => {
                let text = "a server of the source reports no cluster time: it is no member of a cluster";
                Err(Error::new(Side::Source, Kind::Unsupported, text))
            }
        }
    }

    /// An earlier moment that the same server knows.
    pub(crate) fn not_before(self, time: OpTime) -> Self {
        Self { time, ..self }
    }

    /// Returns when the primary behind a client has come to this moment: all it writes afterwards is younger. Later
    /// reads of this client may ask any member for this time. `database` is one that the user may read; `level` of
    /// `majority` waits until what is older is majority-committed.
    ///
    /// # Errors
    /// `Unavailable`, `Unauthorized`.
    pub(crate) async fn pass_on(&self, client: &Client, database: &str, level: &str) -> Result<()> {
        let failed = |e| classify::error(Side::Source, "bring a shard to the cluster's time", e);
        let mut session = client.start_session().await.map_err(failed)?;
        session.advance_cluster_time(&self.proof);
        let after = self.time.timestamp();
        // It need not be there.
        let command = doc! {
            "find": "oplogue.time",
            "limit": 1,
            "singleBatch": true,
            "readConcern": { "level": level, "afterClusterTime": after },
        };
        let database = client.database(database);
        let read = database.run_command(command).session(&mut session).selection_criteria(primary());
        read.await.map(|_| ()).map_err(failed)
    }
}

fn primary() -> SelectionCriteria {
    SelectionCriteria::ReadPreference(ReadPreference::PrimaryPreferred { options: None })
}
