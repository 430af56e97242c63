//! All keys of the table with their values: the file's where it gives one, the default elsewhere.
//!
//! Here a key meets its row of the table: unknown keys get a suggestion, old names lead to new ones, and a value whose
//! feature is not built is refused by name. A key whose value is wrong keeps its default and is marked, so that rules
//! between keys do not complain about the same mistake again.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::keys::{self, KeySpec, Shape, Status};
use super::raw::{Raw, RawEntry};
use super::report::{Fault, Report, nearest};
use super::uri::MongoUri;
use super::value::Value;

/// The value of one key.
#[derive(Debug)]
struct Setting {
    value: Value,
    /// `None`: the default.
    line: Option<usize>,
}

/// The values of all keys, by MongoShake's name.
#[derive(Debug)]
pub(super) struct Settings {
    values: HashMap<&'static str, Setting>,
    /// Keys with a problem of their own.
    faulty: HashSet<&'static str>,
}

impl Settings {
    /// Looks every entry up in the table; what is wrong goes to `report`.
    pub(super) fn resolve(raw: &Raw, report: &mut Report) -> Self {
        let entries = &raw.entries;
        let default = |spec: &'static KeySpec| (spec.name, Setting { value: Value::default_of(spec), line: None });
        let mut settings = Self {
            values: keys::all().map(default).collect(),
            faulty: raw.unreadable.iter().filter_map(|key| keys::find(key)).map(|spec| spec.name).collect(),
        };
        let given: HashSet<&str> = entries.iter().filter_map(|e| keys::find(&e.key)).map(|spec| spec.name).collect();
        for entry in entries {
            if let Some(spec) = current(entry, &given, report, &mut settings.faulty) {
                settings.take(spec, entry, report);
            }
        }
        settings
    }

    fn take(&mut self, spec: &'static KeySpec, entry: &RawEntry, report: &mut Report) {
        if let Some(line) = self.line(spec.name) {
            let fault = Fault::new(format!("is given on line {line} already")).suggest("keep one of the two lines");
            return self.refuse(spec, entry, fault, report);
        }
        match Value::read(spec, &entry.value) {
            Err(fault) => {
                self.refuse(spec, entry, fault, report);
                self.put(spec, Value::default_of(spec), entry.line);
            }
            Ok(value) => {
                let changed = value != Value::default_of(spec);
                match spec.status {
                    Status::DefaultOnly(feature) if changed => {
                        self.refuse(spec, entry, not_built(spec, feature), report);
                    }
                    Status::Hint(reason) => {
                        report.note(Some(entry.line), &entry.key, format!("has no effect: {reason}"))
                    }
                    Status::Inert(reason) if changed => {
                        report.note(Some(entry.line), &entry.key, format!("has no effect here: {reason}"));
                    }
                    Status::Supported
                    | Status::DefaultOnly(_)
                    | Status::Inert(_)
                    | Status::Renamed(_)
                    | Status::Removed(_) => {}
                }
                self.put(spec, value, entry.line);
            }
        }
    }

    fn put(&mut self, spec: &'static KeySpec, value: Value, line: usize) {
        self.values.insert(spec.name, Setting { value, line: Some(line) });
    }

    fn refuse(&mut self, spec: &'static KeySpec, entry: &RawEntry, fault: Fault, report: &mut Report) {
        self.faulty.insert(spec.name);
        report.problem(Some(entry.line), &entry.key, Some(entry.value.shown(Some(spec))), fault);
    }

    /// The line on which the file gives the key; `None` when it does not.
    pub(super) fn line(&self, key: &str) -> Option<usize> {
        self.values.get(key).and_then(|setting| setting.line)
    }

    /// Whether the key has a problem already.
    pub(super) fn is_faulty(&self, key: &str) -> bool {
        self.faulty.contains(key)
    }

    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.values.get(key).map(|setting| &setting.value)
    }

    pub(super) fn text(&self, key: &str) -> &str {
        if let Some(Value::Text(text)) = self.value(key) { text } else { "" }
    }

    pub(super) fn flag(&self, key: &str) -> bool {
        self.value(key) == Some(&Value::Bool(true))
    }

    pub(super) fn int(&self, key: &str) -> i64 {
        if let Some(Value::Int(number)) = self.value(key) { *number } else { 0 }
    }

    /// A number that the table keeps within the bounds of a count.
    pub(super) fn count(&self, key: &str) -> usize {
        usize::try_from(self.int(key)).unwrap_or_default()
    }

    pub(super) fn time(&self, key: &str) -> Duration {
        if let Some(Value::Time(time)) = self.value(key) { *time } else { Duration::ZERO }
    }

    pub(super) fn bytes(&self, key: &str) -> usize {
        if let Some(Value::Size(bytes)) = self.value(key) { usize::try_from(*bytes).unwrap_or(usize::MAX) } else { 0 }
    }

    pub(super) fn date(&self, key: &str) -> u32 {
        if let Some(Value::Date(seconds)) = self.value(key) { *seconds } else { 0 }
    }

    pub(super) fn ip(&self, key: &str) -> IpAddr {
        if let Some(Value::Ip(ip)) = self.value(key) { *ip } else { IpAddr::V4(Ipv4Addr::LOCALHOST) }
    }

    pub(super) fn uri(&self, key: &str) -> Option<MongoUri> {
        if let Some(Value::Uri(uri)) = self.value(key) { uri.clone() } else { None }
    }

    pub(super) fn uris(&self, key: &str) -> Vec<MongoUri> {
        if let Some(Value::Uris(uris)) = self.value(key) { uris.clone() } else { Vec::new() }
    }

    pub(super) fn list(&self, key: &str) -> Vec<String> {
        if let Some(Value::List(items)) = self.value(key) { items.clone() } else { Vec::new() }
    }
}

/// The table's row that an entry speaks of today, `None` when there is none or another line goes before.
fn current(
    entry: &RawEntry,
    given: &HashSet<&str>,
    report: &mut Report,
    faulty: &mut HashSet<&'static str>,
) -> Option<&'static KeySpec> {
    let Some(spec) = keys::find(&entry.key) else {
        let candidate = likely_key(&entry.key);
        let fault = Fault::new("is no known key").did_you_mean(candidate);
        // A misspelt key must not be reported as an absent one too.
        faulty.extend(candidate.and_then(keys::find).map(|spec| spec.name));
        report.problem(Some(entry.line), &entry.key, Some(shown_unknown(entry)), fault);
        return None;
    };
    match spec.status {
        Status::Removed(reason) => {
            let given = Some(entry.value.shown(None));
            report.problem(Some(entry.line), &entry.key, given, Fault::new(format!("is no key any more: {reason}")));
            None
        }
        Status::Renamed(new) if given.contains(new) => {
            report.note(
                Some(entry.line),
                &entry.key,
                format!("is the old name of {new}, which is given too: this line is ignored"),
            );
            None
        }
        Status::Renamed(new) => {
            report.note(Some(entry.line), &entry.key, format!("is the old name of {new}"));
            keys::find(new)
        }
        Status::Supported | Status::DefaultOnly(_) | Status::Hint(_) | Status::Inert(_) => Some(spec),
    }
}

/// The value of a key of which nothing is known but its name.
fn shown_unknown(entry: &RawEntry) -> String {
    let key = entry.key.to_lowercase();
    if ["pass", "secret", "auth", "token"].iter().any(|word| key.contains(word)) {
        return "***".to_owned();
    }
    entry.value.shown(None)
}

/// The key that was probably meant: alike in spelling, or the same without its section.
fn likely_key(given: &str) -> Option<&'static str> {
    let names = || keys::all().filter(|spec| !matches!(spec.status, Status::Renamed(_) | Status::Removed(_)));
    let below = format!(".{given}");
    nearest(given, names().map(|spec| spec.name))
        .or_else(|| names().map(|spec| spec.name).find(|name| name.ends_with(&below)))
}

fn not_built(spec: &KeySpec, feature: &str) -> Fault {
    let newer = match spec.since {
        keys::Since::Newer(version) => {
            format!("came to MongoShake with {version}, newer than version 10; ")
        }
        keys::Since::Conf(_) | keys::Since::Release(_) | keys::Since::Hidden | keys::Since::Oplogue => String::new(),
    };
    let accepted = match (spec.shape, spec.default) {
        (Shape::OneOf(_) | Shape::Bool, default) if !default.is_empty() => {
            format!("only {default} is accepted")
        }
        _ => "only a blank value is accepted".to_owned(),
    };
    Fault::new(format!("{newer}{feature} is not built yet; {accepted}"))
}
