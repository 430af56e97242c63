//! A configuration file as keys with texts, whichever of the two forms it has.
//!
//! TOML and MongoShake's `key = value` form meet here, so everything after this module is the same for both. Nothing
//! is judged yet but the form itself: whether a key exists and what its value means is the business of the table and
//! of `value`. Lists by `@@FILE` are read here, through a function that the caller hands in.

mod plugin;
mod toml_file;

use std::path::{Path, PathBuf};

use super::checked::PluginEntry;
use super::collector_conf;
use super::report::{Fault, Report};
use super::value::RawValue;

/// The form of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Toml,
    /// MongoShake's `key = value`.
    CollectorConf,
}

/// One line, or one TOML value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RawEntry {
    pub(super) key: String,
    pub(super) value: RawValue,
    pub(super) line: usize,
}

/// A file before its keys are looked at.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) format: Format,
    pub(super) entries: Vec<RawEntry>,
    /// Keys on lines that cannot be read: nobody need be told that they are absent.
    pub(super) unreadable: Vec<String>,
    /// Already checked one by one.
    pub(super) plugins: Vec<PluginEntry>,
}

/// Reads the text of another file: `@@` lists. Handed in so that tests need no disk.
pub(super) type ReadFile<'a> = &'a dyn Fn(&Path) -> std::io::Result<String>;

impl Raw {
    /// Parses `text` in the form it shows; what is wrong goes to `report`.
    pub(super) fn parse(text: &str, path: &Path, read_file: ReadFile<'_>, report: &mut Report) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut raw = match detect(text, path) {
            Format::Toml => toml_file::parse(text, path, report),
            Format::CollectorConf => collector_conf::parse(text, report),
        };
        for entry in &mut raw.entries {
            include_lists(entry, path, read_file, report);
        }
        raw
    }
}

/// The form of a text. What only TOML has decides (a section, a quoted value, an array); without any of it the
/// file's ending and, last, whether it reads as TOML.
fn detect(text: &str, path: &Path) -> Format {
    let mut settings = false;
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        settings = true;
        let value = line.split_once('=').map(|(_, value)| value.trim_start()).unwrap_or_default();
        if line.starts_with('[') || value.starts_with(['"', '\'', '[', '{']) {
            return Format::Toml;
        }
    }
    let named_toml = path.extension().is_some_and(|ending| ending == "toml");
    if named_toml && (!settings || toml::de::DeTable::parse(text).is_ok()) {
        Format::Toml
    } else {
        Format::CollectorConf
    }
}

/// Replaces a value `@@FILE` by the lines of that file. A relative path is looked for beside the configuration file.
fn include_lists(entry: &mut RawEntry, path: &Path, read_file: ReadFile<'_>, report: &mut Report) {
    let RawValue::Text(text) = &entry.value else {
        return;
    };
    let Some(name) = text.trim().strip_prefix("@@") else {
        return;
    };
    let file = beside(path, name.trim());
    match read_file(&file) {
        Ok(lines) => {
            let items = lines.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            let items = items.flat_map(|line| line.split(';')).map(str::trim).filter(|item| !item.is_empty());
            entry.value = RawValue::List(items.map(str::to_owned).collect());
        }
        Err(error) => {
            let fault =
                Fault::new(format!("names a list in the file {}, which cannot be read: {error}", file.display()))
                    .suggest("a relative path is looked for beside the configuration file");
            report.problem(Some(entry.line), &entry.key, Some(entry.value.shown(None)), fault);
            entry.value = RawValue::List(Vec::new());
        }
    }
}

/// A path of the configuration: relative ones are meant from the configuration file's folder.
pub(super) fn beside(configuration: &Path, name: &str) -> PathBuf {
    match configuration.parent() {
        Some(folder) => folder.join(name),
        None => PathBuf::from(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_seen_in_the_text() {
        let form = |text: &str, name: &str| detect(text, Path::new(name));
        assert_eq!(form("sync_mode = all\n", "collector.conf"), Format::CollectorConf);
        assert_eq!(form("sync_mode = all\n", "x.toml"), Format::CollectorConf);
        assert_eq!(form("sync_mode = \"all\"\n", "collector.conf"), Format::Toml);
        assert_eq!(form("[log]\nlevel = 3", "x"), Format::Toml);
        assert_eq!(form("incr_sync.target_delay = 3", "x.toml"), Format::Toml);
        assert_eq!(form("incr_sync.target_delay = 3", "x.conf"), Format::CollectorConf);
        assert_eq!(form("# nothing yet", "x.toml"), Format::Toml);
    }

    #[test]
    fn a_list_may_stand_in_a_file() {
        let mut report = Report::new(Path::new("/etc/c.conf"));
        let read = |path: &Path| {
            assert_eq!(path, Path::new("/etc/white.txt"));
            Ok("# shop\na.b; c\n\nd.e\n".to_owned())
        };
        let text = "filter.namespace.white = @@white.txt";
        let raw = Raw::parse(text, Path::new("/etc/c.conf"), &read, &mut report);
        let expected = ["a.b", "c", "d.e"].map(str::to_owned).to_vec();
        assert_eq!(raw.entries[0].value, RawValue::List(expected));
        assert!(report.finish().is_ok());
    }
}
