//! Values of keys: text from the file in, a typed value out, or the reason why not.
//!
//! Both file forms come here, so a number means the same in TOML and in MongoShake's form. The reasons are written for
//! the operator and never hold a password. Rules between two keys are not here; see `checked::build`.

mod names;

use std::net::IpAddr;
use std::time::Duration;

use super::keys::{KeySpec, Shape, Status};
use super::report::{Fault, mask, nearest};
use super::units;
use super::uri::MongoUri;

/// A value as the file holds it: MongoShake's form has texts only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RawValue {
    Text(String),
    List(Vec<String>),
}

/// A value of the shape its key asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Secret(String),
    Bool(bool),
    Int(i64),
    Time(Duration),
    Size(u64),
    Date(u32),
    Ip(IpAddr),
    Uri(Option<MongoUri>),
    Uris(Vec<MongoUri>),
    List(Vec<String>),
}

impl RawValue {
    /// The value for a report, with passwords masked.
    pub(super) fn shown(&self, spec: Option<&KeySpec>) -> String {
        if spec.is_some_and(KeySpec::is_secret) {
            return "***".to_owned();
        }
        match self {
            Self::Text(text) if is_bare(text) => text.clone(),
            Self::Text(text) if text.starts_with("@@") => format!("{text:?}"),
            Self::Text(text) => format!("{:?}", mask(text)),
            Self::List(items) => format!("{:?}", items.iter().map(|item| mask(item)).collect::<Vec<_>>()),
        }
    }

    /// The items of a list: MongoShake parts them with `;`.
    fn items(&self) -> Vec<String> {
        match self {
            Self::Text(text) => text.split(';').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect(),
            Self::List(items) => items.iter().map(|item| item.trim().to_owned()).collect(),
        }
    }

    fn text(&self) -> Result<&str, Fault> {
        match self {
            Self::Text(text) => Ok(text.trim()),
            Self::List(_) => Err(Fault::new("must be one value, not a list")),
        }
    }
}

impl Value {
    /// The default of a key. The table's test holds that every default reads.
    pub(super) fn default_of(spec: &KeySpec) -> Self {
        Self::read(spec, &RawValue::Text(spec.default.to_owned())).unwrap_or(Self::Text(String::new()))
    }

    /// Reads a raw value as the key's shape. A blank text is the default of a key of words, and an error for a number
    /// or a switch, as in MongoShake.
    pub(super) fn read(spec: &KeySpec, raw: &RawValue) -> Result<Self, Fault> {
        match spec.shape {
            Shape::Uris => return uris(raw).map(Self::Uris),
            Shape::Namespaces => {
                return names::each(raw.items(), names::filter_rule).map(Self::List);
            }
            Shape::Renames => return names::renames(raw.items()).map(Self::List),
            Shape::Texts => return names::each(raw.items(), names::no_blank).map(Self::List),
            Shape::Address => {
                let text = match raw {
                    RawValue::Text(text) => text.trim().to_owned(),
                    RawValue::List(items) => items.join(";"),
                };
                return Ok(Self::Text(text));
            }
            Shape::Text
            | Shape::Secret
            | Shape::Name
            | Shape::Database
            | Shape::Collection
            | Shape::Bool
            | Shape::Int(..)
            | Shape::Port
            | Shape::Time(..)
            | Shape::Size(..)
            | Shape::OneOf(_)
            | Shape::Date
            | Shape::Path
            | Shape::Ip
            | Shape::Uri => {}
        }
        let text = raw.text()?;
        let text = if text.is_empty() { blank(spec)? } else { text };
        Self::read_text(spec, text)
    }

    fn read_text(spec: &KeySpec, text: &str) -> Result<Self, Fault> {
        Ok(match spec.shape {
            Shape::Bool => Self::Bool(switch(text)?),
            Shape::Int(min, max) => Self::Int(int(text, min, max)?),
            Shape::Port => Self::Int(int(text, i64::from(i32::MIN), i64::from(u16::MAX))?.max(0)),
            Shape::Time(unit, min, max) => {
                let bound = |n: u64| Duration::from_millis(n * unit.millis());
                let value = units::duration(text, unit).filter(|v| (bound(min)..=bound(max)).contains(v));
                Self::Time(value.ok_or_else(|| {
                    let (min, max) = (units::show_duration(bound(min)), units::show_duration(bound(max)));
                    Fault::new(format!(
                        "must be a duration from {min} to {max}: a whole number of {}, or with a unit (500ms, 30s, 30m, 2h)",
                        unit.noun()
                    ))
                })?)
            }
            Shape::Size(unit, min, max) => {
                let bounds = min * unit.bytes()..=max.saturating_mul(unit.bytes());
                let value = units::size(text, unit).filter(|v| bounds.contains(v));
                Self::Size(value.ok_or_else(|| {
                    let (min, max) = (units::show_size(*bounds.start()), units::show_size(*bounds.end()));
                    Fault::new(format!(
                        "must be a size from {min} to {max}: a whole number of {}, or with a unit (64KB, 256MB, 2GB)",
                        unit.noun()
                    ))
                })?)
            }
            Shape::OneOf(words) => Self::Text(one_of(text, words)?),
            Shape::Date => Self::Date(
                units::date(text)
                    .ok_or_else(|| Fault::new("must be a time in UTC after 1970, written as 2006-01-02T15:04:05Z"))?,
            ),
            Shape::Ip => Self::Ip(text.parse().map_err(|_| Fault::new("must be an IP address, such as 127.0.0.1"))?),
            Shape::Uri => Self::Uri(uri(text)?),
            Shape::Secret => Self::Secret(text.to_owned()),
            Shape::Name => Self::Text(names::file_name(text)?),
            Shape::Database => Self::Text(names::database(text)?),
            Shape::Collection => Self::Text(names::collection(text)?),
            Shape::Text
            | Shape::Path
            | Shape::Address
            | Shape::Uris
            | Shape::Namespaces
            | Shape::Renames
            | Shape::Texts => Self::Text(text.to_owned()),
        })
    }

    /// The value for people, with passwords masked.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Text(text) => format!("{:?}", mask(text)),
            Self::Secret(text) if text.is_empty() => "\"\"".to_owned(),
            Self::Secret(_) => "***".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => value.to_string(),
            Self::Time(value) => units::show_duration(*value),
            Self::Size(value) => units::show_size(*value),
            Self::Date(value) => units::show_date(*value),
            Self::Ip(value) => value.to_string(),
            Self::Uri(value) => value.as_ref().map(ToString::to_string).unwrap_or_else(|| "\"\"".to_owned()),
            Self::Uris(values) => values.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
            Self::List(items) => format!("{items:?}"),
        }
    }
}

fn blank(spec: &KeySpec) -> Result<&'static str, Fault> {
    // MongoShake's own sample of version 9 leaves one such key blank.
    if matches!(spec.status, Status::Hint(_) | Status::Inert(_)) {
        return Ok(spec.default);
    }
    match spec.shape {
        Shape::Bool | Shape::Int(..) | Shape::Port | Shape::Time(..) | Shape::Size(..) => {
            Err(Fault::new("must not be blank")
                .suggest(format!("delete the line to get the default, {}", spec.default)))
        }
        Shape::Text
        | Shape::Secret
        | Shape::Name
        | Shape::Database
        | Shape::Collection
        | Shape::OneOf(_)
        | Shape::Date
        | Shape::Path
        | Shape::Ip
        | Shape::Uri
        | Shape::Uris
        | Shape::Address
        | Shape::Namespaces
        | Shape::Renames
        | Shape::Texts => Ok(spec.default),
    }
}

/// Numbers and switches are shown without quotes.
fn is_bare(text: &str) -> bool {
    text.parse::<i64>().is_ok() || text.parse::<bool>().is_ok()
}

fn switch(text: &str) -> Result<bool, Fault> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(trailing_comment(text, Fault::new("must be true or false"))),
    }
}

fn int(text: &str, min: i64, max: i64) -> Result<i64, Fault> {
    let fault = || {
        let constraint = match (min, max) {
            (0, i64::MAX) => "must be a whole number".to_owned(),
            (i64::MIN..0, max) => format!("must be a port from 1 to {max}, or 0 for off"),
            (min, max) => format!("must be a whole number from {min} to {max}"),
        };
        trailing_comment(text, Fault::new(constraint))
    };
    let value: i64 = text.replace('_', "").parse().map_err(|_| fault())?;
    if (min..=max).contains(&value) { Ok(value) } else { Err(fault()) }
}

fn one_of(text: &str, words: &[&str]) -> Result<String, Fault> {
    if words.contains(&text) {
        return Ok(text.to_owned());
    }
    let listed: Vec<_> = words.iter().map(|word| if word.is_empty() { "(blank)" } else { word }).collect();
    let fault = Fault::new(format!("must be one of {}", listed.join(", ")));
    Err(trailing_comment(text, fault.did_you_mean(nearest(text, words.iter().copied()))))
}

fn trailing_comment(text: &str, fault: Fault) -> Fault {
    if text.contains('#') { fault.suggest("a comment must stand on its own line") } else { fault }
}

fn uri(text: &str) -> Result<Option<MongoUri>, Fault> {
    if text.is_empty() { Ok(None) } else { MongoUri::parse(text).map(Some).map_err(Fault::new) }
}

/// Parts a list of connection strings. A `;` inside a password does not part: what follows has no scheme.
fn uris(raw: &RawValue) -> Result<Vec<MongoUri>, Fault> {
    let items = match raw {
        RawValue::List(items) => items.clone(),
        RawValue::Text(text) => split_uris(text),
    };
    items.iter().map(|item| MongoUri::parse(item).map_err(Fault::new)).collect()
}

/// See [`uris`].
pub(super) fn split_uris(text: &str) -> Vec<String> {
    let mut items: Vec<String> = Vec::new();
    for piece in text.split(';') {
        let begins =
            ["mongodb://", "mongodb+srv://", "env:", "file:"].iter().any(|s| piece.trim_start().starts_with(s));
        match items.last_mut() {
            Some(last) if !begins && !piece.trim().is_empty() => {
                last.push(';');
                last.push_str(piece);
            }
            _ if piece.trim().is_empty() => {}
            _ => items.push(piece.to_owned()),
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::super::keys;
    use super::*;

    #[test]
    fn every_default_reads_as_its_shape() {
        for spec in keys::all() {
            let read = Value::read(spec, &RawValue::Text(spec.default.to_owned()));
            assert!(read.is_ok(), "{}: {read:?}", spec.name);
        }
    }

    #[test]
    fn semicolons_part_connection_strings_but_not_passwords() {
        assert_eq!(split_uris("mongodb://a;mongodb://b;"), ["mongodb://a", "mongodb://b"]);
        assert_eq!(split_uris("mongodb://u:a;b@h"), ["mongodb://u:a;b@h"]);
        assert!(split_uris("").is_empty());
    }
}
