//! From MongoShake's file form to TOML.
//!
//! The result says the same: read again it gives the same checked configuration, which a test holds for the samples.
//! Keys without effect are kept and marked, so that nobody wonders where they went; old names become today's names.
//! Comments of the original are not carried over. Passwords are, since the file would not work without them.

use std::path::Path;

use toml::Value as Toml;

use super::keys::{self, KeySpec, Shape, SizeUnit, Status, TimeUnit};
use super::raw::{Format, Raw, ReadFile};
use super::report::{Fault, Problems, Report};
use super::settings::Settings;
use super::value::{Value, split_uris};
use super::{checked, units};

/// The TOML for a file in MongoShake's form. Lists by `@@` become part of it.
///
/// # Errors
/// All problems of the file, or that it is TOML already.
pub fn convert(path: &Path) -> Result<String, Problems> {
    let text = super::read(path)?;
    convert_with(&text, path, &|path| std::fs::read_to_string(path))
}

pub(super) fn convert_with(text: &str, path: &Path, read_file: ReadFile<'_>) -> Result<String, Problems> {
    let mut report = Report::new(path);
    let raw = Raw::parse(text, path, read_file, &mut report);
    if raw.format == Format::Toml {
        report.problem(None, "", None, Fault::new("is TOML already"));
    }
    let settings = Settings::resolve(&raw, &mut report);
    checked::build(&settings, raw.plugins, raw.format, &mut report);
    report.finish()?;
    Ok(render(&settings, path))
}

fn render(settings: &Settings, path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut out = format!("# Converted from {name}. Every key with its default: see the reference collector.toml.\n");
    for (title, specs) in keys::sections() {
        let lines: Vec<_> = specs.iter().filter_map(|spec| line(settings, spec)).collect();
        if !lines.is_empty() {
            out.push_str(&format!("\n# {title}\n{}\n", lines.join("\n")));
        }
    }
    out
}

fn line(settings: &Settings, spec: &'static KeySpec) -> Option<String> {
    // MongoShake's form always logs to a file; in TOML that has to be said.
    let said = settings.line(spec.name).is_some() || spec.name == "log.dir";
    if !said || spec.name == "conf.version" {
        return None;
    }
    let value = literal(spec, settings.value(spec.name)?);
    let remark = match spec.status {
        Status::Hint(_) | Status::Inert(_) => " # no effect",
        Status::Supported | Status::DefaultOnly(_) | Status::Renamed(_) | Status::Removed(_) => "",
    };
    Some(format!("{} = {value}{remark}", spec.toml))
}

/// A value as TOML writes it.
pub(super) fn literal(spec: &KeySpec, value: &Value) -> String {
    let text = |text: String| Toml::String(text).to_string();
    match value {
        Value::Text(address) if spec.shape == Shape::Address => one_or_list(split_uris(address)),
        Value::Text(value) | Value::Secret(value) => text(value.clone()),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Time(value) => {
            let unit = if let Shape::Time(unit, ..) = spec.shape { unit } else { TimeUnit::Milliseconds };
            let millis = u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
            if millis.is_multiple_of(unit.millis()) {
                (millis / unit.millis()).to_string()
            } else {
                text(units::show_duration(*value))
            }
        }
        Value::Size(value) => {
            let unit = if let Shape::Size(unit, ..) = spec.shape { unit } else { SizeUnit::Bytes };
            if unit != SizeUnit::Bytes && value.is_multiple_of(unit.bytes()) {
                (value / unit.bytes()).to_string()
            } else {
                text(units::show_size(*value))
            }
        }
        Value::Date(value) => text(units::show_date(*value)),
        Value::Ip(value) => text(value.to_string()),
        Value::Uri(value) => text(value.as_ref().map(|uri| uri.expose()).unwrap_or_default()),
        Value::Uris(values) => one_or_list(values.iter().map(|uri| uri.expose()).collect()),
        Value::List(items) => Toml::from(items.clone()).to_string(),
    }
}

fn one_or_list(items: Vec<String>) -> String {
    match items.as_slice() {
        [] => "\"\"".to_owned(),
        [one] => Toml::String(one.clone()).to_string(),
        several => Toml::from(several.to_vec()).to_string(),
    }
}
