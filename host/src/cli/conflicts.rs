//! `oplogue conflicts`: the changes that the target refused for good, as they were recorded there.
//!
//! Records are written with `incr_sync.conflict_write_to = db`, and where a plugin rules so. This lists them, newest
//! first, so that an operator sees which documents to look at. It only reads: it decides about none of them.

use std::fmt::Write as _;
use std::path::PathBuf;

use bson::{Bson, Document};
use oplogue_connectors::mongodb::client::{self, ConnectOptions};
use oplogue_connectors::mongodb::conflict::{COLLECTION, ConflictLog};
use oplogue_engine::config::Config;
use oplogue_engine::error::{Result, Side};

use super::{Exit, Loaded, complain, print};
use crate::report::local_time;

/// Characters of a value in the short form.
const SHOWN_MAX: usize = 200;

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
            print(&Bson::Document(record.clone()).into_relaxed_extjson().to_string());
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

fn described(record: &Document) -> String {
    let text = |name| record.get_str(name).unwrap_or_default();
    let time = record.get_timestamp("time").map_or_else(|_| String::new(), |ts| local_time(i64::from(ts.time)));
    let mut lines = format!("{time} {} of {}: {}", text("operation"), text("namespace"), text("kind"));
    let shown = |value: &Bson| -> String {
        let whole = value.clone().into_relaxed_extjson().to_string();
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
    use bson::doc;

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
