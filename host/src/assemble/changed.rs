//! What a run with a checkpoint does otherwise than the one that stored it.
//!
//! Lists, renames and plugins hold for what comes from now on. What was copied, left out or written under another name
//! before stays as it is, so a chain that changed between two runs is said in the log, plugin by plugin. That a running
//! chain swaps a plugin is no business of this.

use oplogue_engine::plugin::GenerationInfo;

/// How a chain differs from the one of a checkpoint.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Another configuration, a plugin more or less, another order: what passes may be another choice.
    pub choice: Vec<String>,
    /// Other versions.
    pub versions: Vec<String>,
}

/// Compares the chain of a checkpoint with the present one.
#[must_use]
pub fn between(stored: &[GenerationInfo], now: &[GenerationInfo]) -> Changed {
    // A delay chooses nothing.
    let chooses = |all: &[GenerationInfo]| -> Vec<GenerationInfo> {
        all.iter().filter(|plugin| plugin.plugin != "target-delay").cloned().collect()
    };
    let (stored, now): (&[_], &[_]) = (&chooses(stored), &chooses(now));
    let mut changed = Changed::default();
    let find = |all: &[GenerationInfo], name: &str| all.iter().find(|plugin| plugin.plugin == name).cloned();
    for was in stored {
        let Some(is) = find(now, &was.plugin) else {
            changed.choice.push(format!("{} is gone", was.plugin));
            continue;
        };
        // Earlier versions of Oplogue stored no digest of the configuration.
        if !was.configuration.is_empty() && was.configuration != is.configuration {
            changed.choice.push(format!("{} is configured otherwise", was.plugin));
        }
        if was.sha256 != is.sha256 {
            changed.versions.push(format!("{} {} instead of {}", was.plugin, is.version, was.version));
        }
    }
    let new = now.iter().filter(|plugin| find(stored, &plugin.plugin).is_none());
    changed.choice.extend(new.map(|plugin| format!("{} is new", plugin.plugin)));
    let in_both = |all: &[GenerationInfo], others: &[GenerationInfo]| -> Vec<String> {
        let both = all.iter().filter(|plugin| find(others, &plugin.plugin).is_some());
        both.map(|plugin| plugin.plugin.clone()).collect()
    };
    if in_both(stored, now) != in_both(now, stored) {
        changed.choice.push("their order is another".to_owned());
    }
    changed
}

/// Says in the log what changed since the checkpoint was stored.
pub fn report(stored: &[GenerationInfo], now: &[GenerationInfo]) {
    let Changed { choice, versions } = between(stored, now);
    if !choice.is_empty() {
        tracing::warn!(
            changed = choice.join(", "),
            "filters, renames or plugins are not those of the checkpoint; they hold from here on, and what was copied or \
             left out before stays as it is (`oplogue checkpoint reset` and a new copy would apply them to everything)"
        );
    }
    if !versions.is_empty() {
        tracing::info!(versions = versions.join(", "), "plugins have other versions than at the checkpoint");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(name: &str, version: &str, configuration: &str) -> GenerationInfo {
        GenerationInfo {
            plugin: name.to_owned(),
            generation: 1,
            version: version.to_owned(),
            sha256: version.to_owned(),
            configuration: configuration.to_owned(),
        }
    }

    #[test]
    fn every_difference_is_named_and_none_is_made_up() {
        let stored = [plugin("filter", "1", "a"), plugin("rename", "1", "b"), plugin("mask", "1", "c")];
        assert_eq!(between(&stored, &stored), Changed::default());
        let now = [
            plugin("mask", "2", "c"),
            plugin("filter", "1", "z"),
            plugin("guard", "1", "d"),
            plugin("target-delay", "1", "e"),
        ];
        let changed = between(&stored, &now);
        let choice = ["filter is configured otherwise", "rename is gone", "guard is new", "their order is another"];
        assert_eq!(changed.choice, choice);
        assert_eq!(changed.versions, ["mask 2 instead of 1"]);
    }

    #[test]
    fn a_checkpoint_without_digests_says_nothing_about_configurations() {
        assert_eq!(between(&[plugin("filter", "1", "")], &[plugin("filter", "1", "z")]), Changed::default());
    }
}
