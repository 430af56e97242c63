//! The list of all metrics: name, kind, label and the one sentence that describes each.
//!
//! Dashboards and alerts are built on these names, so they are constants in one file and change as rarely as a file
//! format does. Names follow `oplogue_<stage>_<noun>_<unit>[_total]` and every label has a closed set of values (or the
//! names of the configured plugins). The list never holds a namespace as a label: a source may have 100,000 of them.

/// What kind of series a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows; starts at 0 with the process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Buckets of observed values.
    Histogram,
}

/// One metric as the operator knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Description {
    /// Full name in the exposition, with `_total` for counters.
    pub name: &'static str,
    /// Kind of series.
    pub kind: MetricKind,
    /// Label names; empty for a single series.
    pub labels: &'static [&'static str],
    /// One sentence, without the full stop that the exposition adds.
    pub help: &'static str,
}

impl Description {
    /// The name under which the series is registered: the exposition adds `_total` to counters itself.
    #[must_use]
    pub fn registered_name(&self) -> &'static str {
        self.name.strip_suffix("_total").unwrap_or(self.name)
    }
}

/// Declares the constants and [`ALL`] together, so that no metric exists without standing in the list.
macro_rules! catalog {
    ($($constant:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: Description =
                Description { name: $name, kind: MetricKind::$kind, labels: &[$($label),*], help: $help };
        )*
        /// Every metric, in the order of the stages.
        pub const ALL: &[Description] = &[$($constant),*];
    };
}

catalog! {
    SOURCE_ENTRIES = Counter "oplogue_source_read_entries_total" []
        "Entries read from the source's oplog or change stream, heartbeats and noops included";
    SOURCE_BYTES = Counter "oplogue_source_read_bytes_total" []
        "Bytes of the entries read from the source";
    SOURCE_LARGEST = Gauge "oplogue_source_largest_entry_bytes" []
        "Size of the largest entry since the start";
    SOURCE_HEARTBEATS = Counter "oplogue_source_heartbeat_batches_total" []
        "Replies of the source without any entry";
    SOURCE_OPENS = Counter "oplogue_source_opened_cursors_total" []
        "Cursors opened on the source for following it: 1 plus the reconnects";
    DECODE_CHANGES = Counter "oplogue_decode_decoded_changes_total" ["op"]
        "Changes found in the entries, by operation; inner operations of transactions count one each";
    DECODE_DROPPED = Counter "oplogue_decode_dropped_entries_total" ["reason"]
        "Entries that carry nothing to replicate, by reason";
    DECODE_WHOLE = Counter "oplogue_decode_whole_documents_total" []
        "Updates that a change stream showed as whole documents, since the server tells no exact form of them";
    PLUGIN_SEEN = Counter "oplogue_plugin_seen_changes_total" []
        "Changes given to the plugin chain; always kept + dropped + dead";
    PLUGIN_KEPT = Counter "oplogue_plugin_kept_changes_total" []
        "Changes that the chain let through, changed or not";
    PLUGIN_DROPPED = Counter "oplogue_plugin_dropped_changes_total" []
        "Changes that a plugin dropped";
    PLUGIN_DELAYED = Counter "oplogue_plugin_delayed_changes_total" []
        "Changes that a plugin let through for a later time";
    PLUGIN_DEAD = Counter "oplogue_plugin_dead_changes_total" []
        "Changes sent to the dead letters";
    PLUGIN_CALLS = Counter "oplogue_plugin_calls_total" ["plugin"]
        "Calls into a plugin with entries or a conflict; a route is asked once a namespace and not counted";
    PLUGIN_ENTRIES = Counter "oplogue_plugin_shown_entries_total" ["plugin"]
        "Entries that a plugin was shown";
    PLUGIN_SECONDS = Counter "oplogue_plugin_call_seconds_total" ["plugin"]
        "Time spent inside these calls";
    PLUGIN_SLOW = Counter "oplogue_plugin_slow_calls_total" ["plugin"]
        "Calls that went beyond the soft time limit";
    PLUGIN_FAULTS = Counter "oplogue_plugin_faults_total" ["plugin"]
        "Traps, time-outs, limits and lies of a plugin, whatever the policy did about them";
    PLUGIN_SWAPS = Counter "oplogue_plugin_swaps_total" ["plugin"]
        "Versions of a plugin that became active while the stream ran";
    PLUGIN_ROLLBACKS = Counter "oplogue_plugin_rollbacks_total" ["plugin"]
        "Those of them that were taken back because they faulted on trial";
    PLUGIN_CUSTOM = Counter "oplogue_plugin_custom_total" ["plugin", "name"]
        "What a plugin counts itself, where the metrics are granted to it";
    PLUGIN_GENERATION = Gauge "oplogue_plugin_generation_number" ["plugin", "version"]
        "Active generation of each plugin";
    SCHEDULE_QUEUED = Counter "oplogue_schedule_queued_changes_total" []
        "Changes handed to the lanes";
    SCHEDULE_COALESCED = Counter "oplogue_schedule_coalesced_changes_total" []
        "Changes that were merged into another change of the same document";
    SCHEDULE_PARKED = Counter "oplogue_schedule_parked_changes_total" []
        "Changes put aside because of a unique key, to be settled with their collection drained";
    SCHEDULE_BARRIERS = Counter "oplogue_schedule_barriers_total" []
        "Fences that a DDL or a unique-key conflict raised over its own scope";
    SCHEDULE_SPLIT = Counter "oplogue_schedule_split_transactions_total" []
        "Transactions that were to stay whole and were written in parts (incr_sync.transaction = atomic)";
    SCHEDULE_BUSY_LANES = Gauge "oplogue_schedule_busy_lanes" []
        "Lanes with a flush in flight";
    SINK_STATEMENTS = Counter "oplogue_sink_written_statements_total" ["op"]
        "Statements the target accepted, by kind, after coalescing";
    SINK_CHANGES = Counter "oplogue_sink_accepted_changes_total" []
        "Changes whose effect the target accepted, before coalescing";
    SINK_FLUSHES = Counter "oplogue_sink_flushes_total" []
        "Flushes sent to the target";
    SINK_REFUSED = Counter "oplogue_sink_refused_statements_total" []
        "Statements that the target refused";
    SINK_CONFLICTS = Counter "oplogue_sink_conflicts_total" ["kind"]
        "Changes that the target refused for good, by reason";
    SINK_RULINGS = Counter "oplogue_sink_rulings_total" ["ruling"]
        "What became of the changes that the target refused for good";
    SINK_MISSING = Counter "oplogue_sink_missing_documents_total" []
        "Updates whose document was not on the target";
    SINK_REFETCHED = Counter "oplogue_sink_refetched_documents_total" []
        "Whole documents read again from the source for an update that could not be applied as it stood";
    SINK_MOVED = Counter "oplogue_sink_moved_documents_total" []
        "Documents deleted where they stood on a sharded target, to be written whole under another value of its shard key";
    SINK_TRANSACTIONS = Counter "oplogue_sink_transactions_total" []
        "Flushes written in one transaction of the target";
    SINK_TRANSACTIONS_ROLLED_BACK = Counter "oplogue_sink_rolled_back_transactions_total" []
        "Such transactions that the target rolled back: their statements were written apart at once";
    SINK_FLUSH_SECONDS = Histogram "oplogue_sink_flush_seconds" []
        "Time of one flush, from sending to the last reply";
    SINK_DDL_EXECUTED = Counter "oplogue_sink_executed_ddl_total" []
        "DDL commands executed on the target";
    SINK_DDL_SKIPPED = Counter "oplogue_sink_skipped_ddl_total" []
        "DDL commands found to be done already, by collection identity";
    SINK_DDL_REFUSED = Counter "oplogue_sink_refused_ddl_total" []
        "DDL commands that the target refused and that were skipped (incr_sync.ddl_refused = skip)";
    PIPELINE_REWINDS = Counter "oplogue_pipeline_rewinds_total" []
        "Returns to the last durable position after a fault that passes by itself";
    PIPELINE_STAGE = Gauge "oplogue_pipeline_stage" ["stage"]
        "1 for the stage the run is in, 0 for the others";
    PIPELINE_LAG = Gauge "oplogue_pipeline_lag_seconds" []
        "Age of the oldest change that is not durable on the target; 0 when nothing is outstanding";
    SHARD_LAG = Gauge "oplogue_source_shard_lag_seconds" ["shard"]
        "Seconds between a shard's newest entry and its last one that is durable on the target; no series for a replica set";
    PIPELINE_START = Gauge "oplogue_pipeline_start_time_seconds" []
        "When the process started, Unix time";
    POSITION = Gauge "oplogue_position_timestamp_seconds" ["at"]
        "Source time of a position, Unix time: newest, read, accepted, durable, checkpoint";
    CHECKPOINT_SAVES = Counter "oplogue_checkpoint_saves_total" []
        "Checkpoints stored";
    BUDGET_HELD = Gauge "oplogue_budget_held_bytes" []
        "Memory held by batches between the source's socket and their acknowledgement";
    BUDGET_LIMIT = Gauge "oplogue_budget_limit_bytes" []
        "The whole memory budget";
    COPY_COLLECTIONS = Gauge "oplogue_full_sync_collections" ["state"]
        "Collections of the full copy, by state";
    COPY_DOCUMENTS_TOTAL = Gauge "oplogue_full_sync_planned_documents" []
        "Estimated documents of the full copy";
    COPY_DOCUMENTS_DONE = Gauge "oplogue_full_sync_copied_documents" []
        "Documents copied so far";
    COPY_BYTES_TOTAL = Gauge "oplogue_full_sync_planned_bytes" []
        "Estimated uncompressed bytes of the full copy";
    COPY_BYTES_DONE = Gauge "oplogue_full_sync_copied_bytes" []
        "Bytes of the documents copied so far";
    BUILD = Gauge "oplogue_build_version_info" ["version"]
        "Always 1; the label carries the version of the running program";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_follow_the_rule_and_are_unique() {
        let names: BTreeSet<_> = ALL.iter().map(|d| d.name).collect();
        assert_eq!(names.len(), ALL.len());
        for description in ALL {
            let name = description.name;
            assert!(name.starts_with("oplogue_"), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert_eq!(name.ends_with("_total"), description.kind == MetricKind::Counter, "{name}");
            assert!(!description.help.ends_with('.'), "{name}");
        }
    }
}
