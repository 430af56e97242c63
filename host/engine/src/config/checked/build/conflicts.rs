//! The rules between the keys about conflicts and the plugins that rule over them.
//!
//! Two places may rule over a duplicate, the strategy for duplicate keys and a plugin, so both at once is refused
//! rather than ranked. A plugin that would never be asked is refused too: it would look as if it were. What only
//! MongoShake's form of the file lacks is said in [`for_collector_conf`], which a conversion does not ask.

use super::Builder;
use crate::config::checked::{Conflicts, Handles, PluginEntry};
use crate::config::raw::Format;
use crate::config::report::{Fault, Report};
use crate::config::settings::Settings;
use crate::conflict::{DuplicateKeys, SkipRule};

const WRITE_TO: &str = "incr_sync.conflict_write_to";
const STRATEGY: &str = "incr_sync.executor.dup_key_strategy";
const SKIP_RULES: &str = "incr_sync.executor.dup_key_skip_rules";

/// `incr_sync.conflict_write_to`.
pub(super) fn conflicts(s: &Settings) -> Conflicts {
    match s.text(WRITE_TO) {
        "db" => Conflicts::Record,
        "sdk" => Conflicts::Plugin,
        _ => Conflicts::Stop,
    }
}

/// `incr_sync.executor.dup_key_strategy` and its rules.
pub(super) fn duplicate_keys(s: &Settings) -> DuplicateKeys {
    match s.text(STRATEGY) {
        "error" => DuplicateKeys::Error,
        "delete_and_retry" => DuplicateKeys::DeleteAndRetry,
        "skip" => DuplicateKeys::Skip(s.list(SKIP_RULES).iter().filter_map(|rule| SkipRule::parse(rule)).collect()),
        _ => DuplicateKeys::Ignore,
    }
}

/// Adds what is wrong with the keys and the plugins together.
pub(super) fn check(builder: &mut Builder<'_>, plugins: &[PluginEntry]) {
    let by_plugin = conflicts(builder.settings) == Conflicts::Plugin;
    let judges: Vec<&str> = plugins
        .iter()
        .filter(|plugin| plugin.handles == Handles::Conflicts)
        .map(|plugin| plugin.name.as_str())
        .collect();
    if builder.format == Format::Toml && by_plugin {
        match judges.as_slice() {
            [_] => {}
            // An entry with a problem of its own is not among them.
            [] if builder.report.has_problem_of("plugin") => {}
            [] => {
                let fault = Fault::new("sdk hands conflicts to a plugin, and no [[plugin]] takes them");
                builder.fault(WRITE_TO, fault.suggest("say handles = \"conflicts\" in the [[plugin]] that shall rule"));
            }
            [..] => {
                let fault = Fault::new(format!("sdk hands each conflict to one plugin, not to {}", judges.join(", ")));
                builder.fault(WRITE_TO, fault.suggest("leave handles = \"conflicts\" in one [[plugin]]"));
            }
        }
    }
    if let Some(name) = judges.first().filter(|_| !by_plugin) {
        let fault = Fault::new(format!("goes only with {WRITE_TO} = \"sdk\": {name} would never be asked"));
        let fault = fault.suggest(format!("set {WRITE_TO} = \"sdk\", or delete the [[plugin]]"));
        builder.report.problem(None, "plugin.handles", Some("\"conflicts\"".to_owned()), fault);
    }
    strategy(builder, by_plugin);
}

fn strategy(builder: &mut Builder<'_>, by_plugin: bool) {
    let strategy = builder.settings.text(STRATEGY);
    if by_plugin && strategy != "ignore" {
        let fault = Fault::new(format!("contradicts {WRITE_TO} = sdk: the plugin rules over duplicates too"));
        builder.fault(STRATEGY, fault.suggest("delete one of the two lines"));
    }
    let rules = builder.settings.list(SKIP_RULES);
    if let Some(wrong) = rules.iter().find(|rule| SkipRule::parse(rule).is_none()) {
        let fault = Fault::new(format!("holds {wrong}, which is no list of a collection's indexes"));
        builder.fault(SKIP_RULES, fault.suggest("write db.collection:index_name,index_name or db.collection:*"));
    }
    if strategy == "skip" && rules.is_empty() {
        builder.note(STRATEGY, &format!("{SKIP_RULES} names no index: the run stops at every duplicate"));
    }
    if strategy != "skip" && !rules.is_empty() {
        builder.note(SKIP_RULES, &format!("has no effect: it matters only with {STRATEGY} = skip"));
    }
}

/// Refuses what MongoShake's form of the file cannot say: which plugin rules.
pub(in crate::config) fn for_collector_conf(settings: &Settings, report: &mut Report) {
    if conflicts(settings) == Conflicts::Plugin {
        let fault = Fault::new("sdk hands conflicts to a plugin, which this form of the file cannot name");
        let hint =
            "convert it (oplogue convert) and name the plugin in the TOML: [[plugin]] with handles = \"conflicts\"";
        report.problem(settings.line(WRITE_TO), WRITE_TO, Some("sdk".to_owned()), fault.suggest(hint));
    }
}
