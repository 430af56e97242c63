//! `oplogue check`: what a configuration means, or everything that is wrong with it.
//!
//! Nothing is connected and nothing is started: the answer depends on the file alone, so that it can be asked on any
//! machine. A sound file is answered with what differs from the defaults, which keys have no effect, and the plugin
//! chain that results, because the chain is what MongoShake's filter and rename keys turn into.

use std::fmt::Write as _;
use std::path::Path;

use oplogue_engine::config::checked::{PluginEntry, PluginPath};
use oplogue_engine::config::{self, Changed, Format, Loaded};

/// What a command about a configuration answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// For standard output when `exit_code` is 0, for standard error otherwise. Ends with a line break.
    pub text: String,
    /// 0, or 2 when the configuration has problems.
    pub exit_code: u8,
}

impl Outcome {
    pub(super) fn sound(text: String) -> Self {
        Self { text, exit_code: 0 }
    }

    pub(super) fn refused(problems: &config::Problems) -> Self {
        Self { text: format!("{problems}\n"), exit_code: 2 }
    }
}

/// Checks the file of either form at `path`.
#[must_use]
pub fn check(path: &Path) -> Outcome {
    match config::load(path) {
        Ok(loaded) => Outcome::sound(describe(path, &loaded)),
        Err(problems) => Outcome::refused(&problems),
    }
}

fn describe(path: &Path, loaded: &Loaded) -> String {
    let form = match loaded.format {
        Format::Toml => "TOML",
        Format::CollectorConf => "MongoShake's form",
    };
    let mut lines = vec![format!("{}: OK ({form})", path.display())];
    section(&mut lines, "differs from the defaults", loaded.changed.iter().map(difference));
    section(&mut lines, "remarks", loaded.notes.iter().map(ToString::to_string));
    let chain = loaded.config.default_chain();
    section(&mut lines, "plugin chain", chain.iter().enumerate().map(|(at, entry)| plugin(at + 1, entry)));
    let judge = loaded.config.conflict_plugin();
    section(&mut lines, "conflicts are handed to", judge.into_iter().map(named));
    lines.join("\n") + "\n"
}

fn difference(changed: &Changed) -> String {
    let Changed { key, value, default } = changed;
    match default.as_str() {
        "" | "\"\"" | "[]" => format!("{key} = {value}"),
        default => format!("{key} = {value} (default {default})"),
    }
}

fn section(lines: &mut Vec<String>, title: &str, items: impl Iterator<Item = String>) {
    let mut items = items.peekable();
    if items.peek().is_some() {
        lines.push(String::new());
        lines.push(format!("{title}:"));
        lines.extend(items.map(|item| format!("  {item}")));
    }
}

fn named(entry: &PluginEntry) -> String {
    let from = match &entry.path {
        PluginPath::Embedded(_) => "built in".to_owned(),
        PluginPath::File(file) => file.display().to_string(),
    };
    format!("{} ({from})", entry.name)
}

fn plugin(place: usize, entry: &PluginEntry) -> String {
    let mut text = format!("{place}. {}", named(entry));
    // A user's plugin may have a secret in its configuration; only the default ones are shown with it.
    let shown = matches!(entry.path, PluginPath::Embedded(_)).then(|| entry.config.to_string());
    if let Some(config) = shown {
        // Writing to a string cannot fail.
        let _written = write!(text, " {config}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: &str = "sync_mode = all\nmongo_urls = mongodb://u:geheim@a\ntunnel.address = mongodb://b\n\
                         filter.namespace.white = shop\ntransform.namespace = shop:store\n\
                         incr_sync.worker.batch_queue_size = 64\n";

    fn check_text(name: &str, text: &str) -> Outcome {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        check(&path)
    }

    #[test]
    fn a_sound_file_is_explained() {
        let outcome = check_text("collector.conf", SOUND);
        assert_eq!(outcome.exit_code, 0, "{}", outcome.text);
        for part in [
            "collector.conf: OK (MongoShake's form)",
            "sync_mode = \"all\" (default \"incr\")",
            "line 6: incr_sync.worker.batch_queue_size: has no effect",
            "1. namespace-filter (built in) {\"black\":[],\"white\":[\"shop\"]",
            "2. ddl-filter (built in) {\"enable\":false}",
            "3. namespace-rename (built in) {\"rules\":[\"shop:store\"]}",
            "mongodb://u:***@a",
        ] {
            assert!(outcome.text.contains(part), "{part} is not in {}", outcome.text);
        }
        assert!(!outcome.text.contains("geheim"));
    }

    #[test]
    fn the_plugin_that_rules_over_conflicts_is_shown_beside_the_chain() {
        let text = "mongo_urls = \"mongodb://a\"\ntunnel.address = \"mongodb://b\"\n\
                    incr_sync.conflict_write_to = \"sdk\"\n[[plugin]]\nname = \"newest\"\n\
                    path = \"/opt/newest-wins.wasm\"\nhandles = \"conflicts\"\n";
        let outcome = check_text("collector.toml", text);
        assert_eq!(outcome.exit_code, 0, "{}", outcome.text);
        assert!(
            outcome.text.ends_with("conflicts are handed to:\n  newest (/opt/newest-wins.wasm)\n"),
            "{}",
            outcome.text
        );
        assert!(!outcome.text.contains(". newest"), "{}", outcome.text);
    }

    #[test]
    fn a_broken_file_is_refused_with_all_its_problems() {
        let outcome = check_text("collector.conf", &format!("{SOUND}nonsense = 1\nincr_sync.worker = 0\n"));
        assert_eq!(outcome.exit_code, 2);
        assert!(outcome.text.ends_with("2 problems\n"), "{}", outcome.text);
    }

    #[test]
    fn the_reference_file_is_sound() {
        let outcome = check(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../collector.toml")));
        assert_eq!(outcome.exit_code, 0, "{}", outcome.text);
        assert!(outcome.text.contains("OK (TOML)"), "{}", outcome.text);
    }
}
