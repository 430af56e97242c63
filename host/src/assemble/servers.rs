//! The connections of a run, what the servers behind them allow, and the plugin chain out of the configuration.
//!
//! One client a server: the driver pools inside it. Privileges are asked once, before the first read, and what lacks
//! one is said in words. This module starts nothing that runs.

use std::sync::Arc;
use std::time::Duration;

use mongodb::Client;
use oplogue_connectors::mongodb::alone::{self, WriterName};
use oplogue_connectors::mongodb::change_stream::{self, Shown};
use oplogue_connectors::mongodb::client::{ConnectMode, ConnectOptions, connect, connect_each};
use oplogue_connectors::mongodb::originals::Originals;
use oplogue_connectors::mongodb::privileges::{self, Privileges};
use oplogue_connectors::mongodb::shards::merged::ShardClient;
use oplogue_connectors::mongodb::shards::routing::Routing;
use oplogue_connectors::mongodb::shards::{CLUSTER_NAME, reader};
use oplogue_connectors::mongodb::topology;
use oplogue_engine::config::Config;
use oplogue_engine::config::checked::apart::kept_apart;
use oplogue_engine::config::checked::{self, FetchMethod, PluginEntry, PluginPath};
use oplogue_engine::config::uri::MongoUri;
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::Namespaces;
use oplogue_engine::plugin::PluginChain as _;
use oplogue_engine::supervise::off_thread;
use oplogue_plugin_runtime::{Chain, ChainOptions, ConflictPlugin, Handles, Limits, OnError, PluginSource, PluginSpec};
use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;

mod check;

use check::Check;

/// Connections that a client keeps to one server at most, beyond one for each lane.
const POOL_SPARE: u32 = 16;

/// How long a `mongos` that may be gone is asked who writes through it.
const ROUTER_PATIENCE: Duration = Duration::from_secs(5);

/// How long the former run's client may take to close its connections.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// Source, target and checkpoint store of a run.
pub(super) struct Servers {
    /// The replica set; of a cluster its first shard.
    pub(super) source: Client,
    /// Set when the source is a cluster.
    pub(super) cluster: Option<Cluster>,
    /// How the target is reached; each run has a client of its own.
    target: (String, ConnectOptions),
    is_cluster_target: bool,
    /// The client of the run that is on, closed before the next one.
    writing: Mutex<Option<Client>>,
    pub(super) store: Client,
    /// Name of the source's replica set, or what stands for it in the checkpoint.
    pub(super) replica_set: String,
    pub(super) mode: ConnectMode,
}

impl Servers {
    /// What is read of the source beside its stream.
    pub(super) fn originals(&self) -> Originals {
        match &self.cluster {
            None => Originals::ReplicaSet(self.source.clone()),
            Some(cluster) => cluster.originals(),
        }
    }
}

/// The shards of a sharded source, in the order of the streams' numbers, and its config servers.
pub(super) struct Cluster {
    pub(super) shards: Vec<ShardClient>,
    pub(super) config_servers: Client,
    pub(super) routing: Routing,
    /// No chunk may move: see [`Routing::has_unmarked_leftovers`].
    pub(super) unmarked_leftovers: bool,
}

impl Cluster {
    /// What the sink reads of the source.
    pub(super) fn originals(&self) -> Originals {
        Originals::Shards { shards: self.shards.clone(), routing: self.routing.clone() }
    }

    /// The names that MongoShake's checkpoints have.
    pub(super) fn names(&self) -> Vec<Arc<str>> {
        self.shards.iter().map(|shard| Arc::clone(&shard.name)).collect()
    }
}

impl Servers {
    /// Connects and looks: what the servers are, and whether the users may do what the run needs.
    pub(super) async fn connect(config: &Config) -> Result<Self> {
        let mut mode = mode(config.connect_mode);
        if let [uri] = config.sources.as_slice()
            && uri.resolve()?.to_ascii_lowercase().contains("directconnection=true")
        {
            // One node is asked for, under whatever name: its set may call it by another.
            mode = ConnectMode::Standalone;
        }
        let workers = u32::try_from(config.incr.workers).unwrap_or(u32::MAX);
        let pool_max = Some(workers.saturating_mul(4).saturating_add(POOL_SPARE));
        let options = |mode, ca_file: &Option<_>| ConnectOptions {
            mode,
            ca_file: ca_file.clone(),
            pool_max,
            ..ConnectOptions::default()
        };
        let source_options = options(mode, &config.source_root_ca_file);
        let mut shards = Vec::new();
        for uri in &config.sources {
            shards.push(Self::connect_source(config, uri, &source_options).await?);
        }
        let Some(first) = shards.first() else {
            return Err(Error::new(Side::Config, Kind::Misconfigured, "mongo_urls is empty"));
        };
        let (source, replica_set) = (first.client.clone(), first.name.to_string());
        let target_options = options(ConnectMode::Primary, &config.target_root_ca_file);
        let target = (config.target.resolve()?, target_options);
        // Refused here if it is wrong; a connection is made by the first run.
        drop(connect(Side::Sink, &target.0, &target.1).await?);
        let store = if config.sources.first() == Some(&config.checkpoint.url) {
            source.clone()
        } else {
            let options = options(ConnectMode::Primary, &config.checkpoint.root_ca_file);
            connect(Side::Store, &config.checkpoint.url.resolve()?, &options).await?
        };
        // As `oplogue check` has it, which sees only what the addresses are called.
        let kept_apart = kept_apart(&config.filter.white, &config.transform_namespace).is_ok();
        let mut is_cluster_target = false;
        for shard in &shards {
            let checked = Check { config, other_than: (!kept_apart).then_some(&shard.client), mode };
            is_cluster_target = checked.target(&target).await?;
        }
        let writing = Mutex::default();
        let Some(uri) = &config.config_servers else {
            let cluster = None;
            return Ok(Self { source, cluster, target, is_cluster_target, writing, store, replica_set, mode });
        };
        let config_options = options(ConnectMode::Primary, &config.source_root_ca_file);
        let config_servers = connect(Side::Source, &uri.resolve()?, &config_options).await?;
        // Entries of one time come in the shards' order, which a checkpoint counts on, however `mongo_urls` lists them.
        shards.sort_by(|a, b| a.name.cmp(&b.name));
        let routing = reader::routing(&config_servers, &shards).await?;
        let is_followed = config.sync_mode != checked::SyncMode::Full;
        let unmarked_leftovers = is_followed && routing.has_unmarked_leftovers().await?;
        let cluster = Some(Cluster { shards, config_servers, routing, unmarked_leftovers });
        let replica_set = CLUSTER_NAME.to_owned();
        Ok(Self { source, cluster, target, is_cluster_target, writing, store, replica_set, mode })
    }

    /// One replica set, or what shows a change stream: its name, and whether the user may read it.
    async fn connect_source(config: &Config, uri: &MongoUri, options: &ConnectOptions) -> Result<ShardClient> {
        let client = connect(Side::Source, &uri.resolve()?, options).await?;
        let name = match config.incr.fetch_method {
            FetchMethod::Oplog => Self::inspect(&client, options.mode).await?,
            FetchMethod::ChangeStream => Self::inspect_stream(&client, options.mode, config.filter.ddl_enable).await?,
        };
        Ok(ShardClient { name: name.into(), client })
    }

    /// The name of the replica set whose oplog is read.
    async fn inspect(source: &Client, mode: ConnectMode) -> Result<String> {
        let found = topology::inspect(Side::Source, source, &mode.criteria()).await?;
        tracing::info!(
            replica_set = %found.replica_set,
            version = %found.version_text(),
            member = %found.member.address,
            "source is there"
        );
        let privileges = Privileges::ask(Side::Source, source, &mode.criteria()).await?;
        privileges.require(Side::Source, &privileges::of_source())?;
        Ok(found.replica_set)
    }

    /// A client to write through, when nothing of an earlier run can reach the target any more.
    pub(super) async fn writer(&self, lease: &str) -> Result<Client> {
        let former = self.writing.lock().await.take();
        if let Some(former) = former {
            // What it still has on its way is the server's to finish or to drop.
            tokio::time::timeout(CLOSE_WAIT, former.shutdown().immediate(true)).await.ok();
        }
        let name = WriterName::new(lease);
        let (uri, options) = &self.target;
        let client =
            connect(Side::Sink, uri, &ConnectOptions { writer: Some(name.clone()), ..options.clone() }).await?;
        *self.writing.lock().await = Some(client.clone());
        alone::wait_until_alone(&client, &self.routers().await?, &name).await?;
        Ok(client)
    }

    /// Clients of each `mongos` of the target, where there are several: an earlier run may have written through any.
    async fn routers(&self) -> Result<Vec<Client>> {
        if !self.is_cluster_target {
            return Ok(Vec::new());
        }
        let (uri, options) = &self.target;
        let options = ConnectOptions { selection_timeout: ROUTER_PATIENCE, pool_max: Some(1), ..options.clone() };
        connect_each(Side::Sink, uri, &options).await
    }

    /// Says before the first DDL comes which of them the target will refuse. Many sources never log one of those, so it
    /// is no fault yet; `incr_sync.ddl_refused` says what becomes of it then.
    pub(super) async fn look_at_ddl(target: &Client) -> Result<()> {
        let privileges = Privileges::ask(Side::Sink, target, &ConnectMode::Primary.criteria()).await?;
        let needs = privileges::of_ddl();
        let missing: Vec<String> = privileges.missing(&needs).iter().map(ToString::to_string).collect();
        if !missing.is_empty() {
            let missing = missing.join("; ");
            tracing::info!(%missing, "the target's user may not run every DDL; see incr_sync.ddl_refused");
        }
        Ok(())
    }

    /// The name of the replica set whose change stream is read, unless the stream lacks what was asked for.
    async fn inspect_stream(source: &Client, mode: ConnectMode, ddl: bool) -> Result<String> {
        let found = topology::cluster(Side::Source, source, &mode.criteria()).await?;
        change_stream::refuse_cluster(&found)?;
        let shown = Shown::by(found.version);
        let version = topology::version_text(found.version);
        tracing::info!(source = %found.name, %version, ?shown, "source is there, its change stream is read");
        if ddl && !shown.ddl {
            let text = format!(
                "filter.ddl_enable = true, but the change streams of MongoDB {version} show no create, createIndexes, \
                 dropIndexes and collMod, and no identity of collections: set incr_sync.mongo_fetch_method = oplog, or \
                 filter.ddl_enable = false"
            );
            return Err(Error::new(Side::Source, Kind::Unsupported, text));
        }
        let privileges = Privileges::ask(Side::Source, source, &mode.criteria()).await?;
        privileges.require(Side::Source, &privileges::of_stream())?;
        Ok(found.name)
    }
}

fn mode(mode: checked::ConnectMode) -> ConnectMode {
    match mode {
        checked::ConnectMode::Primary => ConnectMode::Primary,
        checked::ConnectMode::SecondaryPreferred => ConnectMode::SecondaryPreferred,
        checked::ConnectMode::Secondary => ConnectMode::Secondary,
        checked::ConnectMode::Nearest => ConnectMode::Nearest,
        checked::ConnectMode::Standalone => ConnectMode::Standalone,
    }
}

/// Loads the chain that the configuration describes.
pub(super) fn plugin_chain(config: &Config, namespaces: &Arc<Namespaces>) -> Result<Arc<Chain>> {
    let specs = config.default_chain().into_iter().map(|entry| plugin(config, entry)).collect::<Result<Vec<_>>>()?;
    let folder = config.log.file.as_ref().map(|file| file.dir.clone()).unwrap_or_default();
    let has_letters = specs.iter().any(|spec| spec.on_error == OnError::DeadLetter);
    let dead_letter = has_letters.then(|| folder.join(format!("{}.dead-letters", config.id)));
    Chain::build(specs, Arc::clone(namespaces), ChainOptions { dead_letter, ..ChainOptions::default() })
}

/// Loads the plugin that rules over conflicts, where there is one.
pub(super) fn conflict_plugin(config: &Config) -> Result<Option<ConflictPlugin>> {
    let Some(entry) = config.conflict_plugin() else { return Ok(None) };
    ConflictPlugin::load(plugin(config, entry.clone())?, ChainOptions::default()).map(Some)
}

fn plugin(config: &Config, entry: PluginEntry) -> Result<PluginSpec> {
    let source = match entry.path {
        PluginPath::File(path) => PluginSource::Path(path),
        PluginPath::Embedded(name) => PluginSource::Embedded(match name.as_str() {
            "namespace-filter" => "namespace-filter",
            "ddl-filter" => "ddl-filter",
            "namespace-rename" => "namespace-rename",
            "target-delay" => "target-delay",
            _ => {
                let text = format!("no plugin called {name} is part of this program");
                return Err(Error::new(Side::Config, Kind::Misconfigured, text));
            }
        }),
    };
    Ok(PluginSpec {
        name: entry.name,
        source,
        config: entry.config,
        handles: match entry.handles {
            checked::Handles::Changes => Handles::Changes,
            checked::Handles::Conflicts => Handles::Conflicts,
        },
        on_error: match entry.on_error {
            checked::OnError::Fail => OnError::Fail,
            checked::OnError::Skip => OnError::Skip,
            checked::OnError::Drop => OnError::Drop,
            checked::OnError::DeadLetter => OnError::DeadLetter,
        },
        limits: Limits {
            memory_bytes: config.limits.guest_memory_bytes,
            hard: config.limits.guest_batch_time,
            ..Limits::default()
        },
        grants: entry.grants,
    })
}

/// Looks at every plugin again whenever `reload` is notified (SIGHUP). What does not load leaves the running
/// generation alone; the chain logs why.
pub(super) async fn reload_on_request(
    chains: Vec<Arc<Chain>>,
    reload: Arc<Notify>,
    stop: CancellationToken,
) -> Result<()> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = reload.notified() => {}
        }
        let active = |chain: &Arc<Chain>| chain.generations().into_iter().map(|active| active.plugin).collect();
        let all = chains.iter().map(|chain| (Arc::clone(chain), active(chain)));
        let all: Vec<(Arc<Chain>, Vec<String>)> = all.collect();
        // Compiling takes its time.
        off_thread("plugin reload", move || {
            for (chain, names) in all {
                names.iter().for_each(|name| reload_one(&chain, name));
            }
        })
        .await?;
    }
}

fn reload_one(chain: &Chain, plugin: &str) {
    match chain.reload(plugin) {
        Ok(now) => tracing::info!(%plugin, generation = now.generation, "plugin was looked at again"),
        Err(error) => tracing::warn!(%plugin, %error, "plugin was not reloaded"),
    }
}

/// This machine's name, for the lease; the process id makes it unique.
pub(super) fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| "unknown".to_owned(), |n| n.trim().to_owned())
}
