//! What each plugin did, in the exposition: series by the plugins' names, set when somebody asks for them.
//!
//! The plugin runtime counts, and the [`Status`](super::status::Status) asks it at each snapshot; nothing here is
//! touched on the data path. A plugin's own counters come under one name with the counter's as a label, since a guest
//! may choose that freely.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::catalog;
use super::families::{GaugeFamily, LabelSet, Registrar, whole};
use crate::plugin::PluginStats;

type CounterFamily = Family<LabelSet, Counter>;

/// Series that mirror [`PluginStats`].
pub(super) struct PluginMirrors {
    generation: GaugeFamily,
    calls: CounterFamily,
    entries: CounterFamily,
    seconds: Family<LabelSet, Counter<f64, AtomicU64>>,
    slow: CounterFamily,
    faults: CounterFamily,
    swaps: CounterFamily,
    rollbacks: CounterFamily,
    custom: CounterFamily,
}

impl PluginMirrors {
    pub(super) fn new(to: &mut Registrar) -> Self {
        Self {
            generation: to.family(catalog::PLUGIN_GENERATION),
            calls: to.family(catalog::PLUGIN_CALLS),
            entries: to.family(catalog::PLUGIN_ENTRIES),
            seconds: to.family(catalog::PLUGIN_SECONDS),
            slow: to.family(catalog::PLUGIN_SLOW),
            faults: to.family(catalog::PLUGIN_FAULTS),
            swaps: to.family(catalog::PLUGIN_SWAPS),
            rollbacks: to.family(catalog::PLUGIN_ROLLBACKS),
            custom: to.family(catalog::PLUGIN_CUSTOM),
        }
    }

    pub(super) fn set(&self, plugins: &[PluginStats]) {
        self.generation.clear();
        for stats in plugins {
            let named = |label, value: &str| vec![("plugin", stats.plugin.clone()), (label, value.to_owned())];
            let generation = self.generation.get_or_create_owned(&named("version", &stats.version));
            generation.set(whole(stats.generation));
            let plugin = vec![("plugin", stats.plugin.clone())];
            let counted = [
                (&self.calls, stats.calls),
                (&self.entries, stats.entries),
                (&self.slow, stats.slow),
                (&self.faults, stats.faults),
                (&self.swaps, stats.swaps),
                (&self.rollbacks, stats.rollbacks),
            ];
            for (family, count) in counted {
                family.get_or_create_owned(&plugin).inner().store(count, Ordering::Relaxed);
            }
            let seconds = stats.nanos as f64 / 1e9;
            self.seconds.get_or_create_owned(&plugin).inner().store(seconds.to_bits(), Ordering::Relaxed);
            for (name, count) in &stats.custom {
                self.custom.get_or_create_owned(&named("name", name)).inner().store(*count, Ordering::Relaxed);
            }
        }
    }
}
