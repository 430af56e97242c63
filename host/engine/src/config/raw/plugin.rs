//! `[[plugin]]`: the user's own entries of the plugin chain.
//!
//! Each entry is checked here field by field, because its fields are not keys of the table. Whether the file exists
//! and is a plugin is found out when the chain is loaded: reading a configuration touches no other file.

use std::path::Path;

use serde_json::{Map, Number};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::beside;
use super::toml_file::Lines;
use crate::config::checked::{Handles, OnError, PluginEntry, PluginKind, PluginPath};
use crate::config::report::{Fault, Report, nearest};

/// The default plugins, in chain order.
pub(in crate::config) const EMBEDDED: [&str; 4] =
    ["namespace-filter", "ddl-filter", "namespace-rename", "target-delay"];

const FIELDS: [&str; 7] = ["name", "path", "kind", "handles", "config", "on_error", "grants"];

/// Reads the value of `plugin`. Entries with a problem are left out; the report has the problem.
pub(super) fn read_all(
    value: &Spanned<DeValue<'_>>,
    configuration: &Path,
    lines: &Lines<'_>,
    report: &mut Report,
) -> Vec<PluginEntry> {
    let mut entries: Vec<PluginEntry> = Vec::new();
    let DeValue::Array(items) = value.get_ref() else {
        report.problem(Some(lines.of(&value.span())), "plugin", None, not_an_entry());
        return entries;
    };
    for item in items.iter() {
        let line = lines.of(&item.span());
        let DeValue::Table(table) = item.get_ref() else {
            report.problem(Some(line), "plugin", None, not_an_entry());
            continue;
        };
        let mut reader = Reader { table, lines, line, report, sound: true };
        let entry = reader.entry(configuration);
        if !reader.sound {
            continue;
        }
        if entries.iter().any(|other| other.name == entry.name) {
            let fault = Fault::new("names two entries").suggest("every entry needs a name of its own");
            report.problem(Some(line), "plugin.name", Some(format!("{:?}", entry.name)), fault);
            continue;
        }
        entries.push(entry);
    }
    entries
}

fn not_an_entry() -> Fault {
    Fault::new("must be written as entries that begin with [[plugin]]")
}

struct Reader<'a> {
    table: &'a DeTable<'a>,
    lines: &'a Lines<'a>,
    /// The line of the entry's beginning, for what is absent.
    line: usize,
    report: &'a mut Report,
    sound: bool,
}

impl Reader<'_> {
    fn entry(&mut self, configuration: &Path) -> PluginEntry {
        for key in self.table.keys() {
            let name = key.get_ref().as_ref();
            if !FIELDS.contains(&name) {
                let fault = Fault::new(format!("is no field of [[plugin]]; its fields are {}", FIELDS.join(", ")))
                    .did_you_mean(nearest(name, FIELDS));
                self.fail(self.lines.of(&key.span()), &format!("plugin.{name}"), None, fault);
            }
        }
        let entry = PluginEntry {
            name: self.name(),
            path: self.path(configuration),
            kind: self.kind(),
            handles: self.handles(),
            config: self.config(),
            on_error: self.on_error(),
            grants: self.grants(),
        };
        self.fits(&entry);
        entry
    }

    /// What goes only with one of the two things that a plugin may handle.
    fn fits(&mut self, entry: &PluginEntry) {
        let conflicts = entry.handles == Handles::Conflicts;
        if entry.kind.is_some_and(|kind| (kind == PluginKind::Conflict) != conflicts) {
            let fault = Fault::new("conflict goes with handles = \"conflicts\", and every other kind without it");
            self.fail(self.line_of("kind"), "plugin.kind", None, fault.suggest("delete the line kind"));
        }
        if conflicts && entry.on_error == OnError::DeadLetter {
            let fault = Fault::new("must be one of fail, skip, drop where handles = \"conflicts\"");
            let fault = fault.suggest("skip records the change on the target, with the document that won");
            self.fail(self.line_of("on_error"), "plugin.on_error", Some("\"dead-letter\"".to_owned()), fault);
        }
        if conflicts && matches!(entry.path, PluginPath::Embedded(_)) {
            let fault = Fault::new("must name a file: no default plugin rules over conflicts");
            self.fail(self.line_of("path"), "plugin.path", None, fault);
        }
    }

    /// Where a field stands.
    fn line_of(&self, field: &str) -> usize {
        self.table.get(field).map_or(self.line, |value| self.lines.of(&value.span()))
    }

    fn fail(&mut self, line: usize, key: &str, given: Option<String>, fault: Fault) {
        self.sound = false;
        self.report.problem(Some(line), key, given, fault);
    }

    /// A field that must be a text; the line is where it stands.
    fn text(&mut self, field: &str) -> Option<(String, usize)> {
        let value = self.table.get(field)?;
        let line = self.lines.of(&value.span());
        match text_of(value) {
            Some(text) => Some((text, line)),
            None => {
                self.fail(line, &format!("plugin.{field}"), None, Fault::new("must be a text in quotes"));
                None
            }
        }
    }

    fn required(&mut self, field: &str, example: &str) -> Option<(String, usize)> {
        if !self.table.contains_key(field) {
            let fault = Fault::new("is required in every [[plugin]]").suggest(format!("such as {example}"));
            self.fail(self.line, &format!("plugin.{field}"), None, fault);
        }
        self.text(field)
    }

    fn name(&mut self) -> String {
        let Some((name, line)) = self.required("name", "name = \"mask-names\"") else {
            return String::new();
        };
        let given = Some(format!("{name:?}"));
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || !name.chars().all(legal) {
            let fault = Fault::new("must be a name of ASCII letters, digits, '-' and '_'");
            self.fail(line, "plugin.name", given, fault);
        } else if EMBEDDED.contains(&name.as_str()) {
            let fault = Fault::new("is the name of a default plugin").suggest("choose another name");
            self.fail(line, "plugin.name", given, fault);
        }
        name
    }

    fn path(&mut self, configuration: &Path) -> PluginPath {
        let Some((path, line)) = self.required("path", "path = \"plugins/mask.wasm\"") else {
            return PluginPath::File(Path::new("").to_owned());
        };
        match path.strip_prefix("embedded:") {
            Some(name) if EMBEDDED.contains(&name) => PluginPath::Embedded(name.to_owned()),
            Some(name) => {
                let fault = Fault::new(format!("must name a default plugin: {}", EMBEDDED.join(", ")))
                    .did_you_mean(nearest(name, EMBEDDED));
                self.fail(line, "plugin.path", Some(format!("{path:?}")), fault);
                PluginPath::Embedded(name.to_owned())
            }
            None => {
                if path.is_empty() {
                    self.fail(line, "plugin.path", Some("\"\"".to_owned()), Fault::new("must name a .wasm file"));
                }
                PluginPath::File(beside(configuration, &path))
            }
        }
    }

    fn word<T: Copy>(&mut self, field: &str, words: &[(&str, T)], constraint: &str) -> Option<T> {
        let (given, line) = self.text(field)?;
        let found = words.iter().find(|(word, _)| *word == given).map(|(_, value)| *value);
        if found.is_none() {
            let fault = Fault::new(constraint).did_you_mean(nearest(&given, words.iter().map(|(word, _)| *word)));
            self.fail(line, &format!("plugin.{field}"), Some(format!("{given:?}")), fault);
        }
        found
    }

    fn kind(&mut self) -> Option<PluginKind> {
        let words =
            [("filter", PluginKind::Filter), ("transform", PluginKind::Transform), ("conflict", PluginKind::Conflict)];
        self.word("kind", &words, "must be filter, transform or conflict (sinks are not built yet)")
    }

    fn handles(&mut self) -> Handles {
        let words = [("changes", Handles::Changes), ("conflicts", Handles::Conflicts)];
        self.word("handles", &words, "must be changes or conflicts").unwrap_or_default()
    }

    fn on_error(&mut self) -> OnError {
        let words = [
            ("fail", OnError::Fail),
            ("skip", OnError::Skip),
            ("drop", OnError::Drop),
            ("dead-letter", OnError::DeadLetter),
        ];
        self.word("on_error", &words, "must be one of fail, skip, drop, dead-letter").unwrap_or_default()
    }

    fn config(&mut self) -> serde_json::Value {
        let Some(value) = self.table.get("config") else {
            return serde_json::Value::Object(Map::new());
        };
        let line = self.lines.of(&value.span());
        if !matches!(value.get_ref(), DeValue::Table(_)) {
            let fault = Fault::new("must be a table: [plugin.config] below the entry");
            self.fail(line, "plugin.config", None, fault);
        }
        match json(value.get_ref()) {
            Some(json) => json,
            None => {
                self.fail(line, "plugin.config", None, Fault::new("holds a number that JSON cannot hold"));
                serde_json::Value::Null
            }
        }
    }

    fn grants(&mut self) -> Vec<String> {
        let Some(value) = self.table.get("grants") else {
            return Vec::new();
        };
        let line = self.lines.of(&value.span());
        let texts = match value.get_ref() {
            DeValue::Array(items) => items.iter().map(text_of).collect::<Option<Vec<_>>>(),
            DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Table(_) => None,
        };
        texts.unwrap_or_else(|| {
            self.fail(line, "plugin.grants", None, Fault::new("must be a list of capabilities in quotes"));
            Vec::new()
        })
    }
}

fn text_of(value: &Spanned<DeValue<'_>>) -> Option<String> {
    if let DeValue::String(text) = value.get_ref() { Some(text.to_string()) } else { None }
}

/// TOML as JSON; a date becomes its text.
fn json(value: &DeValue<'_>) -> Option<serde_json::Value> {
    Some(match value {
        DeValue::String(text) => serde_json::Value::String(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(&number.as_str().replace('_', ""), number.radix()).ok()?.into(),
        DeValue::Float(number) => Number::from_f64(number.as_str().replace('_', "").parse().ok()?)?.into(),
        DeValue::Boolean(value) => (*value).into(),
        DeValue::Datetime(time) => time.to_string().into(),
        DeValue::Array(items) => {
            serde_json::Value::Array(items.iter().map(|item| json(item.get_ref())).collect::<Option<_>>()?)
        }
        DeValue::Table(table) => {
            let fields = table.iter().map(|(key, value)| Some((key.get_ref().to_string(), json(value.get_ref())?)));
            serde_json::Value::Object(fields.collect::<Option<_>>()?)
        }
    })
}
