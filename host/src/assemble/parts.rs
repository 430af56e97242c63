//! Makes the parts of a run out of the configuration and the servers.
//!
//! Each maker says which settings a part has and which servers it talks to; what is joined to what stands in
//! `assemble.rs`. A part is made anew for every attempt to follow the source, since it knows what may have been rolled
//! back meanwhile.

use std::collections::HashSet;
use std::sync::Arc;

use oplogue_connectors::mongodb::change_stream::{ChangeStreamSource, Shown, StreamOptions};
use oplogue_connectors::mongodb::conflict::ConflictLog;
use oplogue_connectors::mongodb::copy::{CopyOptions, MongoCopyTarget, Sharding};
use oplogue_connectors::mongodb::mark::Marks;
use oplogue_connectors::mongodb::oplog::{OplogOptions, OplogSource};
use oplogue_connectors::mongodb::shards::merged::MergedSource;
use oplogue_connectors::mongodb::shards::reader::ShardedReader;
use oplogue_connectors::mongodb::sink::{DdlRefused, MissingDocument, MongoSink, Rules, SinkOptions};
use oplogue_connectors::mongodb::snapshot::{SnapshotOptions, SnapshotSource};
use oplogue_connectors::mongodb::topology;
use oplogue_engine::budget::Budget;
use oplogue_engine::checkpoint::Stage;
use oplogue_engine::config::checked::{self, Conflicts, CreateIndex, FetchMethod};
use oplogue_engine::conflict::Judge;
use oplogue_engine::decode::{BehindCut, Decode, DecodeOptions, Decoder, MustStay, StreamDecoder};
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::full_sync::{FullSyncOptions, IndexTiming};
use oplogue_engine::model::{CollectionUuid, OpTime, Position};
use oplogue_engine::plugin::PluginChain;
use oplogue_engine::source::{SnapshotReader, Source};
use oplogue_engine::spill::{Spill, SpillOptions};

use super::servers::{Cluster, Servers};
use super::{Job, start};

/// A collection larger than this is copied in several `_id` ranges.
const PARTITION_BYTES: u64 = 64 << 20;

/// How often a document of the full copy is in memory while it is on its way, with what the allocator keeps of
/// buffers of that size (measured: 140 MB of memory for 21 MB of replies).
const COPIES_OF_A_DOCUMENT: usize = 5;

impl Job {
    pub(super) fn chain(&self) -> Arc<dyn PluginChain> {
        Arc::clone(&self.chain) as Arc<dyn PluginChain>
    }

    pub(super) fn source(&self) -> Box<dyn Source> {
        let (client, budget) = (self.servers.source.clone(), self.budget.clone());
        let (mode, entries) = (self.servers.mode, u32::try_from(self.config.incr.fetch_batch_size).unwrap_or(u32::MAX));
        let options = OplogOptions { mode, reply_entries: entries, ..OplogOptions::default() };
        match (self.config.incr.fetch_method, &self.servers.cluster) {
            (FetchMethod::Oplog, None) => Box::new(OplogSource::new(client, options, budget)),
            (FetchMethod::Oplog, Some(Cluster { shards, routing, .. })) => {
                let (routing, status) = (routing.clone(), self.hooks.status.clone());
                let database = &self.config.checkpoint.db;
                Box::new(MergedSource::new(shards, routing, &options, &budget, database, status))
            }
            (FetchMethod::ChangeStream, _) => {
                let needs_ddl = self.config.filter.ddl_enable;
                let options = StreamOptions { mode, reply_events: entries, needs_ddl, ..StreamOptions::default() };
                Box::new(ChangeStreamSource::new(client, options, budget))
            }
        }
    }

    /// Refuses what the change stream of an older source says nothing about, rather than to copy it and leave it there.
    pub(super) async fn refuse_hidden(&self) -> Result<()> {
        let follows = self.config.sync_mode != checked::SyncMode::Full;
        // With DDL no such member is read at all.
        let needs_ddl = self.config.filter.ddl_enable;
        if !follows || needs_ddl || self.config.incr.fetch_method != FetchMethod::ChangeStream {
            return Ok(());
        }
        let found = topology::cluster(Side::Source, &self.servers.source, &self.servers.mode.criteria()).await?;
        if Shown::by(found.version).ddl {
            return Ok(());
        }
        let hidden = start::system_collections(&*self.reader(), &self.chain(), &self.namespaces).await?;
        if hidden.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = hidden.iter().map(ToString::to_string).collect();
        let text = format!(
            "the change streams of MongoDB {} show no change of {}: read the oplog instead \
             (incr_sync.mongo_fetch_method = oplog), or leave it out (filter.namespace.black)",
            topology::version_text(found.version),
            names.join(", ")
        );
        Err(Error::new(Side::Source, Kind::Unsupported, text))
    }

    /// Refuses to begin where a shard has leftovers of moved chunks, and its oplog will not tell writes to them from others.
    pub(super) async fn refuse_leftovers(&self) -> Result<()> {
        let Some(cluster) = self.servers.cluster.as_ref().filter(|cluster| cluster.unmarked_leftovers) else {
            return Ok(());
        };
        let MustStay(must_stay) = self.passes();
        for shard in &cluster.shards {
            let Some(left) = shard.leftovers().await? else {
                tracing::warn!(
                    shard = %shard.name,
                    "whether leftovers of moved chunks are there is not to be seen: let the user read the shard's database \
                     `config`, or see to it that its config.rangeDeletions is empty"
                );
                continue;
            };
            for name in left {
                if must_stay(&name)? {
                    let text = format!(
                        "{} still has leftovers of a chunk of {name} that has moved away, and before 6.0 the oplogs do not \
                         tell writes to them from others: wait until its config.rangeDeletions is empty",
                        shard.name
                    );
                    return Err(Error::new(Side::Source, Kind::Unsupported, text));
                }
            }
        }
        Ok(())
    }

    pub(super) fn decoder(
        &self,
        from: &Position,
        behind_cut: BehindCut,
        capped: &HashSet<CollectionUuid>,
    ) -> Box<dyn Decode> {
        let options = DecodeOptions { behind_cut, capped: capped.clone(), ..self.decode_options() };
        let namespaces = Arc::clone(&self.namespaces);
        match (self.config.incr.fetch_method, from) {
            (FetchMethod::ChangeStream, _) => Box::new(StreamDecoder::new(namespaces, options, from.clone())),
            (FetchMethod::Oplog, Position::Shards(_)) => Box::new(Decoder::starting_at(namespaces, options, from)),
            (FetchMethod::Oplog, Position::Oplog(time)) if time.term >= 0 => {
                Box::new(Decoder::new(namespaces, options, *time))
            }
            // A time that came out of a change stream, MongoShake's too, may stand among several events: they are
            // applied again.
            (FetchMethod::Oplog, Position::Oplog(time) | Position::Stream { time, .. }) => {
                Box::new(Decoder::new(namespaces, options, *time).repeating_the_start())
            }
        }
    }

    pub(super) fn reader(&self) -> Arc<dyn SnapshotReader> {
        let options = SnapshotOptions {
            mode: self.servers.mode,
            special_databases: self.config.filter.pass_special_db.clone(),
            own_database: self.config.checkpoint.db.clone(),
            own_collection: self.config.checkpoint.collection.clone(),
            skip_databases: vec![self.config.conflict_db()],
            unfinished_indexes: !self.config.filter.ddl_enable,
            ..SnapshotOptions::default()
        };
        // A document of the copy is held on its way in the reply, in the command and in the driver's message.
        let budget = Budget::new(self.config.limits.memory_bytes / COPIES_OF_A_DOCUMENT);
        match &self.servers.cluster {
            None => Arc::new(SnapshotSource::new(self.servers.source.clone(), options, budget)),
            Some(Cluster { shards, config_servers, routing, .. }) => {
                let servers = (config_servers.clone(), routing.clone());
                Arc::new(ShardedReader::new(shards, servers, &options, &budget, &self.config.checkpoint.db))
            }
        }
    }

    /// A sink whose writes no write of an earlier run can overtake.
    pub(super) async fn sink(&self, stage: Stage, copied_at: Option<OpTime>) -> Result<Arc<MongoSink>> {
        let client = self.servers.writer(&self.lease).await?;
        if self.config.filter.ddl_enable && stage != Stage::FullSync {
            Servers::look_at_ddl(&client).await?;
        }
        let options = SinkOptions {
            insert_on_dup_update: self.config.incr.insert_on_dup_update,
            missing_document: match self.config.incr.missing_document {
                checked::MissingDocument::Ignore => MissingDocument::Ignore,
                checked::MissingDocument::Refetch => MissingDocument::Refetch,
                checked::MissingDocument::Upsert => MissingDocument::Upsert,
                checked::MissingDocument::Stop => MissingDocument::Stop,
            },
            ddl_ignored: !self.config.filter.ddl_enable,
            majority: self.config.incr.majority_enable,
            after_copy: stage == Stage::CatchUp,
            copied_at,
            ddl_refused: match self.config.incr.ddl_refused {
                checked::DdlRefused::Stop => DdlRefused::Stop,
                checked::DdlRefused::Skip => DdlRefused::Skip,
            },
            immutable_shard_key_fallback: self.config.incr.immutable_shard_key_fallback,
        };
        // A plugin may rule that a conflict is recorded, so it has the place for that too.
        let records = self.config.incr.conflicts != Conflicts::Stop;
        let conflicts = records.then(|| ConflictLog::new(client.clone(), &self.config.conflict_db(), &self.config.id));
        let rules = match &self.judge {
            Some(judge) => Rules::Plugin(Arc::clone(judge) as Arc<dyn Judge>),
            None => Rules::Settings(self.config.incr.duplicate_keys.clone()),
        };
        let sink = MongoSink::new(
            client,
            Some(self.servers.source.clone()),
            Arc::clone(&self.store),
            Arc::clone(&self.namespaces),
            options,
        );
        let sink = sink.measured_by(self.hooks.metrics.clone()).recording_to(conflicts).ruled_by(rules);
        let sink = sink.marked_by(self.config.incr.origin.map(Marks::new)).passing(self.chain());
        Ok(Arc::new(match &self.servers.cluster {
            None => sink,
            Some(cluster) => sink.reading(cluster.originals()),
        }))
    }

    pub(super) fn copy_target(&self, sink: &Arc<MongoSink>, resumed: bool) -> Arc<MongoCopyTarget> {
        let full = &self.config.full_sync;
        let options = CopyOptions {
            collection_exist_drop: full.collection_exist_drop,
            resumed,
            documents_max: full.document_batch_size,
            majority: full.majority_enable,
        };
        Arc::new(MongoCopyTarget::new(Arc::clone(sink), options).sharding(self.sharding()))
    }

    pub(super) fn sharding(&self) -> Sharding {
        let full = &self.config.full_sync;
        Sharding {
            like_source: !full.do_not_shard_destination,
            unverified: full.unverified_shard_keys.clone(),
            immutable_shard_key_fallback: full.immutable_shard_key_fallback,
        }
    }

    pub(super) fn copy_options(&self) -> FullSyncOptions {
        let full = &self.config.full_sync;
        FullSyncOptions {
            readers: full.collection_parallel,
            inserts_in_flight: full.write_document_parallel,
            partition_bytes: PARTITION_BYTES,
            indexes: match full.create_index {
                CreateIndex::None => IndexTiming::None,
                CreateIndex::Foreground => IndexTiming::AfterData,
                CreateIndex::Background => IndexTiming::BeforeData,
            },
        }
    }

    pub(super) fn spill(&self) -> Spill {
        let limits = &self.config.limits;
        Spill::new(SpillOptions {
            dir: limits.spill_dir.clone().unwrap_or_else(std::env::temp_dir),
            job: self.config.id.clone(),
            bytes_max: limits.spill_bytes,
        })
    }

    /// What the chain lets pass.
    fn passes(&self) -> MustStay {
        let (chain, namespaces) = (self.chain(), Arc::clone(&self.namespaces));
        MustStay(Arc::new(move |name| Ok(chain.route(namespaces.intern(name))?.is_some())))
    }

    fn decode_options(&self) -> DecodeOptions {
        let checkpoint = &self.config.checkpoint;
        DecodeOptions {
            own_collections: vec![format!("{}.{}", checkpoint.db, checkpoint.collection)],
            own_databases: vec![self.config.conflict_db()],
            drop_origins: self.config.incr.drop_origins.clone(),
            global_ids: self.config.incr.global_ids.clone(),
            transaction_bytes: self.config.limits.transaction_bytes,
            atomic_bytes: match self.config.incr.transactions {
                checked::Transactions::Split => 0,
                checked::Transactions::Atomic => self.config.limits.transaction_bytes,
            },
            is_shard: self.servers.cluster.is_some(),
            capped: HashSet::new(),
            must_stay: self
                .servers
                .cluster
                .as_ref()
                .filter(|cluster| cluster.unmarked_leftovers)
                .map(|_| self.passes()),
            behind_cut: BehindCut::default(),
        }
    }
}
