//! The TOML form: tables are flattened to dotted keys, `[[plugin]]` is read apart.
//!
//! The parser recovers from errors, so that a file with a broken line still has all its other lines checked in the
//! same run. Positions of values become line numbers here and nowhere else.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::plugin;
use super::{Format, Raw, RawEntry};
use crate::config::report::{Fault, Report};
use crate::config::value::RawValue;

/// Line numbers by byte position.
pub(super) struct Lines<'a>(pub(super) &'a str);

impl Lines<'_> {
    /// The line, counted from 1, of the span's beginning.
    pub(super) fn of(&self, span: &Range<usize>) -> usize {
        let before = self.0.as_bytes().get(..span.start).unwrap_or(self.0.as_bytes());
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }
}

pub(super) fn parse(text: &str, path: &Path, report: &mut Report) -> Raw {
    let lines = Lines(text);
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut raw = Raw { format: Format::Toml, entries: Vec::new(), unreadable: Vec::new(), plugins: Vec::new() };
    let mut broken_lines = Vec::new();
    for error in errors {
        let line = error.span().map(|span| lines.of(&span));
        report.problem(line, "", None, syntax(error.message()));
        broken_lines.extend(line);
    }
    for (key, value) in root.get_ref() {
        if key.get_ref() == "plugin" {
            raw.plugins = plugin::read_all(value, path, &lines, report);
        } else {
            flatten(key.get_ref().to_string(), value, &lines, &mut raw.entries, report);
        }
    }
    // What the parser made of a broken line is not what its author meant.
    let (broken, sound) = raw.entries.into_iter().partition(|entry| broken_lines.contains(&entry.line));
    raw.entries = sound;
    raw.unreadable = Vec::into_iter(broken).map(|entry: RawEntry| entry.key).collect();
    raw.unreadable.extend(broken_lines.iter().filter_map(|line| key_on(text, *line)));
    raw.entries.sort_by_key(|entry| entry.line);
    raw
}

/// The text before the `=` of a line.
fn key_on(text: &str, line: usize) -> Option<String> {
    let (key, _) = text.lines().nth(line.checked_sub(1)?)?.split_once('=')?;
    Some(key.trim().to_owned())
}

fn syntax(message: &str) -> Fault {
    let fault = Fault::new(format!("cannot be read as TOML: {message}"));
    // A value and a table of one name: the most likely slip of somebody who knows MongoShake's names.
    if message.contains("duplicate") || message.contains("extend") {
        return fault.suggest(
            "in TOML write tunnel.type, incr_sync.worker.count, checkpoint.storage.type beside the keys below them",
        );
    }
    fault.suggest("texts stand in quotes")
}

fn flatten(
    key: String,
    value: &Spanned<DeValue<'_>>,
    lines: &Lines<'_>,
    entries: &mut Vec<RawEntry>,
    report: &mut Report,
) {
    let line = lines.of(&value.span());
    let mut push = |value| entries.push(RawEntry { key: key.clone(), value, line });
    match value.get_ref() {
        DeValue::Table(table) => {
            for (name, inner) in table {
                flatten(format!("{key}.{}", name.get_ref()), inner, lines, entries, report);
            }
        }
        DeValue::Array(items) => {
            let texts: Option<Vec<_>> = items.iter().map(|item| scalar(item.get_ref())).collect();
            match texts {
                Some(texts) => push(RawValue::List(texts)),
                None => report.problem(Some(line), &key, None, Fault::new("must be a list of plain values")),
            }
        }
        DeValue::String(_) | DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => {
            if let Some(text) = scalar(value.get_ref()) {
                push(RawValue::Text(text));
            }
        }
    }
}

/// The text of a value that is neither a list nor a table.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok().map(|n| n.to_string()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(value) => Some(value.to_string()),
        DeValue::Datetime(time) => Some(time.to_string()),
        DeValue::Array(_) | DeValue::Table(_) => None,
    }
}
