//! The series themselves: one struct a stage, plain atomics inside, registered once under the names of the catalogue.
//!
//! Stages increment counters they hold; nothing is looked up by name or label on the data path. Gauges that mirror the
//! [`Status`] are set when somebody asks for the exposition, so they cost nothing in between. The exposition is the
//! OpenMetrics text format, which Prometheus reads.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeMetric;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::catalog::{self, Description};
use super::conflicts::Conflicts;
use super::copy::CollectionState;
use super::labels::{ConflictKind, DropReason, Label, RulingKind, SyncStage, WriteKind};
use super::plugins::PluginMirrors;
use super::status::{Status, StatusSnapshot};
use crate::model::Operation;
use crate::plugin::ChainReport;

/// Content type of [`Metrics::encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) type LabelSet = Vec<(&'static str, String)>;
pub(super) type GaugeFamily = Family<LabelSet, Gauge>;
type SecondsGauge = Gauge<f64, AtomicU64>;

/// All series of one process. Cheap to clone; dereferences to the stages.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    stages: Stages,
    mirrors: Mirrors,
}

/// The counters, by stage.
#[derive(Debug)]
pub struct Stages {
    pub source: SourceMetrics,
    pub decode: DecodeMetrics,
    pub plugin: PluginMetrics,
    pub schedule: ScheduleMetrics,
    pub sink: SinkMetrics,
    pub pipeline: PipelineMetrics,
}

#[derive(Debug)]
pub struct SourceMetrics {
    pub entries: Counter,
    pub bytes: Counter,
    pub heartbeats: Counter,
    pub opens: Counter,
    largest: Gauge,
}

impl SourceMetrics {
    /// Counts one reply: its entries, their bytes and the largest of them. A reply without entries is a heartbeat.
    pub fn read(&self, entries: u64, bytes: u64, largest_bytes: u64) {
        if entries == 0 {
            self.heartbeats.inc();
            return;
        }
        self.entries.inc_by(entries);
        self.bytes.inc_by(bytes);
        let largest = i64::try_from(largest_bytes).unwrap_or(i64::MAX);
        self.largest.inner().fetch_max(largest, std::sync::atomic::Ordering::Relaxed);
    }

    /// Size of the largest entry since the start.
    #[must_use]
    pub fn largest_bytes(&self) -> u64 {
        self.largest.get().max(0).unsigned_abs()
    }
}

#[derive(Debug)]
pub struct DecodeMetrics {
    pub changes: Labelled<Operation>,
    pub dropped: Labelled<DropReason>,
    pub whole: Counter,
}

#[derive(Debug)]
pub struct PluginMetrics {
    pub seen: Counter,
    pub kept: Counter,
    pub dropped: Counter,
    pub delayed: Counter,
    pub dead: Counter,
}

impl PluginMetrics {
    /// Counts one batch's pass.
    pub fn passed(&self, report: &ChainReport) {
        self.seen.inc_by(report.seen);
        self.kept.inc_by(report.kept);
        self.dropped.inc_by(report.dropped);
        self.delayed.inc_by(report.delayed);
        self.dead.inc_by(report.dead);
    }
}

#[derive(Debug)]
pub struct ScheduleMetrics {
    /// Changes handed to the lanes: MongoShake's `logs_repl`.
    pub queued: Counter,
    pub coalesced: Counter,
    pub parked: Counter,
    pub barriers: Counter,
    /// Transactions that were to stay whole and were written in parts.
    pub split: Counter,
    pub busy_lanes: Gauge,
}

#[derive(Debug)]
pub struct SinkMetrics {
    pub statements: Labelled<WriteKind>,
    /// Changes accepted by the target: MongoShake's `logs_success`.
    pub changes: Counter,
    pub flushes: Counter,
    pub refused: Counter,
    pub conflicts: Labelled<ConflictKind>,
    pub rulings: Labelled<RulingKind>,
    /// Which they were.
    pub recent_conflicts: Conflicts,
    pub missing: Counter,
    pub refetched: Counter,
    /// Taken out from a former value of the target's shard key.
    pub moved: Counter,
    pub transactions: Counter,
    pub transactions_rolled_back: Counter,
    /// Observe seconds.
    pub flush_seconds: Histogram,
    pub ddl_executed: Counter,
    pub ddl_skipped: Counter,
    pub ddl_refused: Counter,
}

#[derive(Debug)]
pub struct PipelineMetrics {
    pub rewinds: Counter,
    pub checkpoint_saves: Counter,
}

/// Gauges that mirror the status when the exposition is made.
struct Mirrors {
    stage: GaugeFamily,
    lag: SecondsGauge,
    shard_lag: GaugeFamily,
    start: SecondsGauge,
    position: GaugeFamily,
    budget_held: Gauge,
    budget_limit: Gauge,
    plugins: PluginMirrors,
    copy_collections: GaugeFamily,
    copy_documents_total: Gauge,
    copy_documents_done: Gauge,
    copy_bytes_total: Gauge,
    copy_bytes_done: Gauge,
}

/// One counter for each value of a label.
#[derive(Debug)]
pub struct Labelled<L> {
    counters: Box<[Counter]>,
    /// Takes what a wrong [`Label::place`] would lose; the labels' test shows that none is.
    spare: Counter,
    label: PhantomData<fn(L)>,
}

impl<L: Label> Labelled<L> {
    /// The counter of `value`.
    #[must_use]
    pub fn of(&self, value: L) -> &Counter {
        self.counters.get(value.place()).unwrap_or(&self.spare)
    }

    /// The sum over all values.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.counters.iter().map(|counter| counter.get()).sum()
    }
}

impl Metrics {
    /// A fresh set of series, all 0. One a process, except in tests.
    #[must_use]
    pub fn new() -> Self {
        let mut to = Registrar(Registry::default());
        let stages = stages(&mut to);
        let mirrors = mirrors(&mut to);
        Self { inner: Arc::new(Inner { registry: to.0, stages, mirrors }) }
    }

    /// The exposition in OpenMetrics text ([`CONTENT_TYPE`]), with the status mirrored into its gauges.
    ///
    /// # Errors
    /// Only if formatting into a string fails, which it does not.
    pub fn encode(&self, status: &Status) -> Result<String, fmt::Error> {
        self.inner.mirrors.set(&status.snapshot());
        let mut text = String::with_capacity(16 * 1024);
        encode(&mut text, &self.inner.registry)?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for Metrics {
    type Target = Stages;

    fn deref(&self) -> &Stages {
        &self.inner.stages
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.stages.fmt(f)
    }
}

/// Makes series and registers them under their description.
pub(super) struct Registrar(Registry);

impl Registrar {
    fn counter(&mut self, of: Description) -> Counter {
        let counter = Counter::default();
        self.0.register(of.registered_name(), of.help, counter.clone());
        counter
    }

    fn labelled<L: Label>(&mut self, of: Description) -> Labelled<L> {
        let family = Family::<[(&'static str, &'static str); 1], Counter>::default();
        self.0.register(of.registered_name(), of.help, family.clone());
        let counters = L::ALL.iter().map(|value| family.get_or_create_owned(&[(L::NAME, value.text())])).collect();
        Labelled { counters, spare: Counter::default(), label: PhantomData }
    }

    fn gauge(&mut self, of: Description) -> Gauge {
        let gauge = Gauge::default();
        self.0.register(of.registered_name(), of.help, gauge.clone());
        gauge
    }

    fn seconds(&mut self, of: Description) -> SecondsGauge {
        let gauge = SecondsGauge::default();
        self.0.register(of.registered_name(), of.help, gauge.clone());
        gauge
    }

    pub(super) fn family<M>(&mut self, of: Description) -> Family<LabelSet, M>
    where
        M: Default + EncodeMetric + TypedMetric + fmt::Debug + Send + Sync + 'static,
    {
        let family = Family::default();
        self.0.register(of.registered_name(), of.help, family.clone());
        family
    }

    fn histogram(&mut self, of: Description, buckets: impl Iterator<Item = f64>) -> Histogram {
        let histogram = Histogram::new(buckets);
        self.0.register(of.registered_name(), of.help, histogram.clone());
        histogram
    }
}

fn stages(to: &mut Registrar) -> Stages {
    Stages {
        source: SourceMetrics {
            entries: to.counter(catalog::SOURCE_ENTRIES),
            bytes: to.counter(catalog::SOURCE_BYTES),
            largest: to.gauge(catalog::SOURCE_LARGEST),
            heartbeats: to.counter(catalog::SOURCE_HEARTBEATS),
            opens: to.counter(catalog::SOURCE_OPENS),
        },
        decode: DecodeMetrics {
            changes: to.labelled(catalog::DECODE_CHANGES),
            dropped: to.labelled(catalog::DECODE_DROPPED),
            whole: to.counter(catalog::DECODE_WHOLE),
        },
        plugin: PluginMetrics {
            seen: to.counter(catalog::PLUGIN_SEEN),
            kept: to.counter(catalog::PLUGIN_KEPT),
            dropped: to.counter(catalog::PLUGIN_DROPPED),
            delayed: to.counter(catalog::PLUGIN_DELAYED),
            dead: to.counter(catalog::PLUGIN_DEAD),
        },
        schedule: ScheduleMetrics {
            queued: to.counter(catalog::SCHEDULE_QUEUED),
            coalesced: to.counter(catalog::SCHEDULE_COALESCED),
            parked: to.counter(catalog::SCHEDULE_PARKED),
            barriers: to.counter(catalog::SCHEDULE_BARRIERS),
            split: to.counter(catalog::SCHEDULE_SPLIT),
            busy_lanes: to.gauge(catalog::SCHEDULE_BUSY_LANES),
        },
        sink: sink(to),
        pipeline: PipelineMetrics {
            rewinds: to.counter(catalog::PIPELINE_REWINDS),
            checkpoint_saves: to.counter(catalog::CHECKPOINT_SAVES),
        },
    }
}

fn sink(to: &mut Registrar) -> SinkMetrics {
    SinkMetrics {
        statements: to.labelled(catalog::SINK_STATEMENTS),
        changes: to.counter(catalog::SINK_CHANGES),
        flushes: to.counter(catalog::SINK_FLUSHES),
        refused: to.counter(catalog::SINK_REFUSED),
        conflicts: to.labelled(catalog::SINK_CONFLICTS),
        rulings: to.labelled(catalog::SINK_RULINGS),
        recent_conflicts: Conflicts::default(),
        missing: to.counter(catalog::SINK_MISSING),
        refetched: to.counter(catalog::SINK_REFETCHED),
        moved: to.counter(catalog::SINK_MOVED),
        transactions: to.counter(catalog::SINK_TRANSACTIONS),
        transactions_rolled_back: to.counter(catalog::SINK_TRANSACTIONS_ROLLED_BACK),
        // 0.25 ms to 16 s: a local round trip to a target that is about to be called lost.
        flush_seconds: to.histogram(catalog::SINK_FLUSH_SECONDS, exponential_buckets(0.000_25, 2.0, 17)),
        ddl_executed: to.counter(catalog::SINK_DDL_EXECUTED),
        ddl_skipped: to.counter(catalog::SINK_DDL_SKIPPED),
        ddl_refused: to.counter(catalog::SINK_DDL_REFUSED),
    }
}

fn mirrors(to: &mut Registrar) -> Mirrors {
    let build: GaugeFamily = to.family(catalog::BUILD);
    build.get_or_create_owned(&vec![("version", env!("CARGO_PKG_VERSION").to_owned())]).set(1);
    Mirrors {
        stage: to.family(catalog::PIPELINE_STAGE),
        lag: to.seconds(catalog::PIPELINE_LAG),
        shard_lag: to.family(catalog::SHARD_LAG),
        start: to.seconds(catalog::PIPELINE_START),
        position: to.family(catalog::POSITION),
        budget_held: to.gauge(catalog::BUDGET_HELD),
        budget_limit: to.gauge(catalog::BUDGET_LIMIT),
        plugins: PluginMirrors::new(to),
        copy_collections: to.family(catalog::COPY_COLLECTIONS),
        copy_documents_total: to.gauge(catalog::COPY_DOCUMENTS_TOTAL),
        copy_documents_done: to.gauge(catalog::COPY_DOCUMENTS_DONE),
        copy_bytes_total: to.gauge(catalog::COPY_BYTES_TOTAL),
        copy_bytes_done: to.gauge(catalog::COPY_BYTES_DONE),
    }
}

impl Mirrors {
    fn set(&self, status: &StatusSnapshot) {
        for stage in SyncStage::ALL {
            put(&self.stage, SyncStage::NAME, stage.text(), u64::from(*stage == status.stage));
        }
        self.lag.set(status.positions.lag_ms as f64 / 1000.0);
        self.start.set(status.start_ms as f64 / 1000.0);
        let positions = &status.positions;
        for (at, time) in [
            ("newest", positions.newest),
            ("read", positions.read),
            ("accepted", positions.accepted),
            ("durable", positions.durable),
            ("checkpoint", positions.checkpoint),
        ] {
            put(&self.position, "at", at, u64::from(time.secs));
        }
        let (held, limit) = status.budget.unwrap_or_default();
        self.budget_held.set(whole(held as u64));
        self.budget_limit.set(whole(limit as u64));
        for shard in &status.shards {
            put(&self.shard_lag, "shard", &shard.name, shard.lag_seconds());
        }
        self.plugins.set(&status.plugins);
        self.set_copy(status);
    }

    fn set_copy(&self, status: &StatusSnapshot) {
        let copy = &status.copy;
        for (state, count) in [
            (CollectionState::Waiting, copy.waiting),
            (CollectionState::Processing, copy.processing),
            (CollectionState::Finished, copy.finished),
        ] {
            put(&self.copy_collections, "state", state.name(), count);
        }
        self.copy_documents_total.set(whole(copy.documents_total));
        self.copy_documents_done.set(whole(copy.documents_done));
        self.copy_bytes_total.set(whole(copy.bytes_total));
        self.copy_bytes_done.set(whole(copy.bytes_done));
    }
}

fn put(family: &GaugeFamily, label: &'static str, value: &str, number: u64) {
    family.get_or_create_owned(&vec![(label, value.to_owned())]).set(whole(number));
}

pub(super) fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::plugin::PluginStats;

    #[test]
    fn every_metric_of_the_catalogue_is_in_the_exposition_with_its_help() {
        let status = Status::new("job", Clock::System);
        status.add_plugins(|| {
            let plugin =
                PluginStats { plugin: "mask".into(), generation: 3, version: "1.0.0".into(), ..Default::default() };
            vec![PluginStats { nanos: 1_500_000_000, custom: [("masked".to_owned(), 7)].into(), ..plugin }]
        });
        status.shards().set_newest(&"s1".into(), crate::model::OpTime::new(7, 1, 1));
        let text = Metrics::new().encode(&status).unwrap();
        for description in catalog::ALL {
            assert!(
                text.contains(&format!("# HELP {} {}.", description.registered_name(), description.help)),
                "{}",
                description.name
            );
            let series = text.lines().any(|line| !line.starts_with('#') && line.starts_with(description.name));
            assert!(series, "{} has no series", description.name);
            for label in description.labels {
                assert!(text.contains(&format!("{label}=\"")), "{label}");
            }
        }
        assert!(text.contains("oplogue_plugin_generation_number{plugin=\"mask\",version=\"1.0.0\"} 3"));
        assert!(text.contains("oplogue_plugin_call_seconds_total{plugin=\"mask\"} 1.5\n"), "{text}");
        assert!(text.contains("oplogue_plugin_custom_total{plugin=\"mask\",name=\"masked\"} 7\n"));
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn counters_land_under_their_label() {
        let metrics = Metrics::new();
        metrics.decode.changes.of(Operation::UpdateModifiers).inc_by(3);
        metrics.decode.changes.of(Operation::UpdateDiff).inc();
        metrics.decode.dropped.of(DropReason::Noop).inc();
        metrics.source.read(10, 4000, 900);
        metrics.source.read(1, 100, 100);
        metrics.source.read(0, 0, 0);
        let text = metrics.encode(&Status::new("job", Clock::System)).unwrap();
        assert!(text.contains("oplogue_decode_decoded_changes_total{op=\"update\"} 4\n"), "{text}");
        assert!(text.contains("oplogue_decode_dropped_entries_total{reason=\"noop\"} 1\n"));
        assert!(text.contains("oplogue_source_read_entries_total 11\n"));
        assert!(text.contains("oplogue_source_heartbeat_batches_total 1\n"));
        assert_eq!(metrics.source.largest_bytes(), 900);
        assert_eq!(metrics.decode.changes.sum(), 4);
    }
}
