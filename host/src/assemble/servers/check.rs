//! What a target must be before anything is written to it.
//!
//! A target that is the source would be dropped before it is copied, and one that cannot be written to would be found out
//! in the middle of the copy. A replica set, a server alone and a `mongos` are taken; each is named in the log. Nothing
//! here writes, and the connection is closed again.

use mongodb::Client;
use oplogue_connectors::mongodb::client::{ConnectMode, ConnectOptions, connect};
use oplogue_connectors::mongodb::privileges::{self, Privileges};
use oplogue_connectors::mongodb::topology;
use oplogue_engine::config::Config;
use oplogue_engine::config::checked::SyncMode;
use oplogue_engine::error::{Error, Kind, Result, Side};

/// One look at the target.
pub(super) struct Check<'a> {
    pub(super) config: &'a Config,
    /// The source that it must not be.
    pub(super) other_than: Option<&'a Client>,
    pub(super) mode: ConnectMode,
}

impl Check<'_> {
    /// Whether the target, which may be written to, is a cluster behind a `mongos`.
    ///
    /// # Errors
    /// `Misconfigured` for the source itself and a server that takes no writes; `Unauthorized`; those of the server.
    pub(super) async fn target(&self, (uri, options): &(String, ConnectOptions)) -> Result<bool> {
        let client = connect(Side::Sink, uri, options).await?;
        let checked = self.reached(&client, uri).await;
        client.shutdown().immediate(true).await;
        checked
    }

    async fn reached(&self, target: &Client, uri: &str) -> Result<bool> {
        let criteria = ConnectMode::Primary.criteria();
        let privileges = Privileges::ask(Side::Sink, target, &criteria).await?;
        let may_write = privileges::require_some_writing(&privileges);
        match topology::inspect(Side::Sink, target, &criteria).await {
            Ok(found) => self.replica_set(&found).await?,
            Err(error) if error.kind() == Kind::Unsupported => {
                let behind = topology::cluster(Side::Sink, target, &criteria).await;
                if let Ok(found) = behind
                    && found.is_mongos
                {
                    may_write?;
                    return self.cluster(target, uri, &privileges, &found).await.map(|()| true);
                }
                // A server alone is not the replica set that is read.
            }
            Err(error) => return Err(error),
        }
        may_write.map(|()| false)
    }

    async fn replica_set(&self, found: &topology::Topology) -> Result<()> {
        let source = self.source().await;
        if source.is_some_and(|source| found.is_same_set(&source)) {
            let text = format!(
                "tunnel.address is the source itself (replica set {}, {}): the copy would drop what it is to read",
                found.replica_set, found.member.address
            );
            return Err(Error::new(Side::Config, Kind::Misconfigured, text));
        }
        if !found.member.writable_primary {
            let text = format!(
                "tunnel.address reaches {} directly, which takes no writes: name the whole set ({}) and leave out \
                 directConnection",
                found.member.address,
                found.member.hosts.join(",")
            );
            return Err(Error::new(Side::Config, Kind::Misconfigured, text));
        }
        tracing::info!(
            replica_set = %found.replica_set,
            version = %found.version_text(),
            member = %found.member.address,
            "target is there"
        );
        Ok(())
    }

    async fn cluster(
        &self,
        target: &Client,
        uri: &str,
        privileges: &Privileges,
        found: &topology::Cluster,
    ) -> Result<()> {
        let config = self.config;
        let copies = config.sync_mode != SyncMode::Incr;
        let shards = copies && config.config_servers.is_some() && !config.full_sync.do_not_shard_destination;
        privileges.require(Side::Sink, &privileges::of_cluster_target(shards))?;
        if config.incr.origin.is_some() && !topology::is_one_address(uri) {
            let text = "tunnel.address names several mongos, and incr_sync.loop_prevention.origin marks transactions, \
                        which must stay with one: name one";
            return Err(Error::new(Side::Config, Kind::Misconfigured, text));
        }
        let behind = topology::shards_of(Side::Sink, target).await?;
        let source = self.source().await;
        let is_source = source.is_some_and(|source| {
            let is_it = |member: &String| source.member.hosts.contains(member);
            behind.iter().any(|(name, members)| *name == source.replica_set && members.iter().any(is_it))
        });
        if is_source {
            let text = "tunnel.address is a mongos of the source's own cluster: the copy would drop what it is to read";
            return Err(Error::new(Side::Config, Kind::Misconfigured, text));
        }
        let version = topology::version_text(found.version);
        tracing::info!(%version, shards = behind.len(), "target is there: a cluster behind a mongos");
        Ok(())
    }

    async fn source(&self) -> Option<topology::Topology> {
        topology::inspect(Side::Source, self.other_than?, &self.mode.criteria()).await.ok()
    }
}
