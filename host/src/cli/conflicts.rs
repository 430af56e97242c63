//! `oplogue conflicts`: the changes that the target refused for good, as they were recorded there.
//!
//! Records are written with `incr_sync.conflict_write_to = db`, and where a plugin rules so. This lists them, newest
//! first, so that an operator sees which documents to look at. It only reads: it decides about none of them.

use std::fmt::Write as _;
use std::path::PathBuf;

use bson::{Bson, Document, doc};
use oplogue_connectors::mongodb::client::{self, ConnectOptions};
use oplogue_connectors::mongodb::conflict::{COLLECTION, ConflictLog};
use oplogue_engine::config::Config;
use oplogue_engine::error::{Result, Side};

use super::{Exit, Loaded, complain, print};
use crate::report::local_time;

/// Characters of a value in the short form.
const SHOWN_MAX: usize = 200;

const LAST_OF_9999_MS: i64 = 253_402_300_799_999;

#[derive(Debug, clap::Args)]
pub struct ConflictsArgs {
    /// The job's configuration.
    #[arg(short, long, value_name = "FILE", default_value = "collector.toml", env = "OPLOGUE_CONFIG")]
    config: PathBuf,
    /// How many to list.
    #[arg(long, value_name = "NUMBER", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    limit: u16,
    /// Print the records as they are stored, one a line.
    #[arg(long)]
    json: bool,
}

/// Lists the last conflicts.
pub(super) fn run(args: &ConflictsArgs) -> Exit {
    let Loaded { config, .. } = match super::load(&args.config) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let runtime = match super::small_runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&error.to_string());
            return Exit::Fault;
        }
    };
    match runtime.block_on(Box::pin(list(&config, i64::from(args.limit)))) {
        Ok(records) => {
            show(&config, &records, args.json);
            Exit::Clean
        }
        Err(error) => {
            complain(&format!("{error}; {}", error.kind().advice()));
            Exit::Fault
        }
    }
}

async fn list(config: &Config, limit: i64) -> Result<Vec<Document>> {
    let options = ConnectOptions { ca_file: config.target_root_ca_file.clone(), ..ConnectOptions::default() };
    let target = client::connect(Side::Sink, &config.target.resolve()?, &options).await?;
    ConflictLog::new(target, &config.conflict_db(), &config.id).last(limit).await
}

fn show(config: &Config, records: &[Document], json: bool) {
    if json {
        for record in records {
            print(&as_json(record));
        }
        return;
    }
    if records.is_empty() {
        print(&format!("{}.{COLLECTION} on the target holds no conflict", config.conflict_db()));
    }
    for record in records {
        print(&described(record));
    }
}

/// A record as one line of extended JSON: what JSON has no number for (NaN, infinities) stands as text under its type.
fn as_json(record: &Document) -> String {
    exact(Bson::Document(record.clone())).into_relaxed_extjson().to_string()
}

/// The driver shows a time after the year 9999 as the last moment of that year; here it is shown by its number.
fn exact(value: Bson) -> Bson {
    #[allow(clippy::wildcard_enum_match_arm, reason = "all other values hold no time, or are no values any more")]
    match value {
        Bson::DateTime(at) if at.timestamp_millis() > LAST_OF_9999_MS => {
            Bson::Document(doc! { "$date": { "$numberLong": at.timestamp_millis().to_string() } })
        }
        Bson::Document(document) => {
            Bson::Document(document.into_iter().map(|(name, value)| (name, exact(value))).collect())
        }
        Bson::Array(values) => Bson::Array(values.into_iter().map(exact).collect()),
        other => other,
    }
}

fn described(record: &Document) -> String {
    let text = |name| record.get_str(name).unwrap_or_default();
    let time = record.get_timestamp("time").map_or_else(|_| String::new(), |ts| local_time(i64::from(ts.time)));
    let mut lines = format!("{time} {} of {}: {}", text("operation"), text("namespace"), text("kind"));
    let shown = |value: &Bson| -> String {
        let whole = exact(value.clone()).into_relaxed_extjson().to_string();
        whole.chars().take(SHOWN_MAX).collect()
    };
    for name in ["key", "error", "document", "updates", "winner"] {
        if let Some(value) = record.get(name) {
            // Writing into a string cannot fail.
            let _never = write!(lines, "\n  {name:<9} {}", shown(value));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_json_holds_every_value_whatever_it_is() {
        let record = doc! {
            "kind": "unique_key", "namespace": "a.b", "error": "a \"quoted\" line\nand another",
            "document": {
                "_id": f64::NAN, "more": [f64::INFINITY, f64::NEG_INFINITY, -0.0, 1.5, i64::MAX],
                "decimal": "NaN".parse::<bson::Decimal128>().unwrap(),
                "time": bson::DateTime::from_millis(i64::MAX), "bytes": bson::Binary {
                    subtype: bson::spec::BinarySubtype::Generic, bytes: vec![0, 255],
                },
                "": null, "min": Bson::MinKey, "max": Bson::MaxKey, "u": Bson::Undefined,
            },
        };
        let line = as_json(&record);
        assert!(!line.contains('\n'), "{line}");
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        let document = &read["document"];
        assert_eq!(document["_id"], serde_json::json!({ "$numberDouble": "NaN" }));
        assert_eq!(document["more"][0], serde_json::json!({ "$numberDouble": "Infinity" }));
        assert_eq!(document["more"][1], serde_json::json!({ "$numberDouble": "-Infinity" }));
        assert_eq!(document["more"].as_array().unwrap().len(), 5);
        // Back to BSON nothing is missing; a NaN is no equal of itself, so the texts are compared.
        let back: Document = Bson::try_from(read).unwrap().as_document().unwrap().clone();
        assert_eq!(back.to_string(), record.to_string());
    }

    #[test]
    fn a_description_names_both_documents() {
        let text = described(&doc! {
            "kind": "unique_key", "namespace": "a.b", "operation": "insert", "key": { "_id": 7 },
            "time": bson::Timestamp { time: 1_704_067_200, increment: 1 },
            "error": "E11000", "document": { "_id": 7, "u": 1 }, "winner": { "_id": 9, "u": 1 },
        });
        assert!(text.contains("insert of a.b: unique_key"), "{text}");
        assert!(text.contains("{\"_id\":7,\"u\":1}") && text.contains("{\"_id\":9,\"u\":1}"), "{text}");
    }
}
