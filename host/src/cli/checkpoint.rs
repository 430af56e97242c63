//! `oplogue checkpoint`: the stored position of a job, to look at and to move by hand.
//!
//! `show` lists every job in the collection, `set` makes the next run go on elsewhere, `reset` makes it a first run.
//! The two that write fence an instance that still runs: it stops with a fault at its next save instead of writing its
//! own position over the operator's. They change nothing without `--yes`.

use std::fmt::Write as _;
use std::path::PathBuf;

use oplogue_connectors::mongodb::client::{self, ConnectMode, ConnectOptions};
use oplogue_connectors::mongodb::shards::CLUSTER_NAME;
use oplogue_connectors::mongodb::store::{MongoStore, StoreOptions, Stored, StoredKind};
use oplogue_connectors::mongodb::topology;
use oplogue_engine::config::{Config, checked};
use oplogue_engine::error::{Error, Kind, Result, Side};
use oplogue_engine::model::{OpTime, Position, ShardPosition};

use super::{Exit, Loaded, complain, print};
use crate::report::local_time;

#[derive(Debug, clap::Args)]
pub struct CheckpointArgs {
    #[command(subcommand)]
    command: CheckpointCommand,
}

#[derive(Debug, clap::Subcommand)]
enum CheckpointCommand {
    /// List the checkpoints of the configured collection.
    Show {
        #[command(flatten)]
        job: JobArgs,
        /// Print the documents as they are stored, one a line.
        #[arg(long)]
        json: bool,
    },
    /// Make the next run go on at POSITION, in incremental mode.
    Set {
        #[command(flatten)]
        job: JobArgs,
        /// A date (2026-11-22T23:40:01Z), Unix seconds, seconds.increment, or MongoShake's 64-bit value.
        #[arg(value_name = "POSITION", value_parser = position)]
        position: OpTime,
        /// Really write it.
        #[arg(long)]
        yes: bool,
    },
    /// Make the next run a first run: forget position, identities of collections and names of views.
    Reset {
        #[command(flatten)]
        job: JobArgs,
        /// Really forget it.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, clap::Args)]
struct JobArgs {
    /// The job's configuration.
    #[arg(short, long, value_name = "FILE", default_value = "collector.toml", env = "OPLOGUE_CONFIG")]
    config: PathBuf,
    /// Name of the source's replica set, when the source cannot be asked.
    #[arg(long, value_name = "NAME")]
    replica_set: Option<String>,
}

/// Shows or moves the position.
pub(super) fn run(args: &CheckpointArgs) -> Exit {
    let job = match &args.command {
        CheckpointCommand::Show { job, .. }
        | CheckpointCommand::Set { job, .. }
        | CheckpointCommand::Reset { job, .. } => job,
    };
    let Loaded { config, .. } = match super::load(&job.config) {
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
    match runtime.block_on(Box::pin(act(&args.command, &config, job.replica_set.as_deref()))) {
        Ok(exit) => exit,
        Err(error) => {
            complain(&format!("{error}; {}", error.kind().advice()));
            Exit::Fault
        }
    }
}

async fn act(command: &CheckpointCommand, config: &Config, replica_set: Option<&str>) -> Result<Exit> {
    match command {
        CheckpointCommand::Show { json, .. } => show(config, *json).await,
        CheckpointCommand::Set { position, yes, .. } => {
            let store = open(config, &replica_set_of(config, replica_set).await?).await?;
            let change = format!("go on at {}", time_text(*position));
            let stored = store.show().await?.into_iter().find(|one| one.id == store.id());
            if let Some(stored) =
                stored.and_then(|one| one.position).filter(|stored| stored.time().ts() < position.ts())
            {
                print(&format!(
                    "WARNING: what happened after {} and before {} is then never applied",
                    time_text(stored.time()),
                    time_text(*position)
                ));
            }
            if !agreed(&store, &change, *yes).await? {
                return Ok(Exit::Configuration);
            }
            store.set(&Position::Oplog(*position)).await?;
            print("done: a run with this configuration goes on there");
            Ok(Exit::Clean)
        }
        CheckpointCommand::Reset { yes, .. } => {
            let store = open(config, &replica_set_of(config, replica_set).await?).await?;
            if !agreed(&store, "forget the position, identities of collections and names of views", *yes).await? {
                return Ok(Exit::Configuration);
            }
            store.reset().await?;
            print("done: the next run is a first run");
            Ok(Exit::Clean)
        }
    }
}

async fn show(config: &Config, json: bool) -> Result<Exit> {
    // The list holds every job, so the replica set's name is not needed.
    let stored = open(config, "").await?.show().await?;
    if json {
        for one in &stored {
            print(&bson::Bson::Document(one.document.clone()).into_relaxed_extjson().to_string());
        }
        return Ok(Exit::Clean);
    }
    if stored.is_empty() {
        let checked::Checkpoint { db, collection, .. } = &config.checkpoint;
        print(&format!("{db}.{collection} holds no checkpoint"));
    }
    for one in &stored {
        print(&described(one));
    }
    Ok(Exit::Clean)
}

/// Says what is there and what would change; whether the operator agreed beforehand.
async fn agreed(store: &MongoStore, change: &str, yes: bool) -> Result<bool> {
    for one in store.show().await? {
        print(&described(&one));
    }
    print(&format!("change: {change}"));
    if !yes {
        complain("nothing was changed: stop the job, then say --yes");
    }
    Ok(yes)
}

fn described(one: &Stored) -> String {
    let mut text = match one.kind {
        StoredKind::Ours => one.id.clone(),
        StoredKind::MongoShake => format!("{} (MongoShake's, replica set {})", one.id, one.name),
    };
    let position = one.position.as_ref().map_or_else(|| "none".to_owned(), position_text);
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            // Writing into a string cannot fail.
            let _never = write!(text, "\n  {name:<9} {value}");
        }
    };
    line("position", &position);
    for ShardPosition { name, at, open_since } in one.position.as_ref().map_or(&[][..], |position| position.shards()) {
        let open = open_since.map(|since| format!(", read from {} for open transactions", time_text(since)));
        line("", &format!("{name}: {}{}", time_text(*at), open.unwrap_or_default()));
    }
    line("stage", &one.stage);
    if one.epoch > 0 {
        line("lease", &format!("epoch {}, taken by {}", one.epoch, one.holder));
    }
    text
}

/// The time, and for a change stream the beginning of its resume token: `--json` has all of it.
fn position_text(position: &Position) -> String {
    const DIGITS_SHOWN: usize = 40;
    let time = time_text(position.time());
    let Position::Stream { token, .. } = position else {
        return time;
    };
    let token = bson::RawDocument::from_bytes(token).ok().and_then(|token| token.get_str("_data").ok());
    let shown: String = token.unwrap_or_default().chars().take(DIGITS_SHOWN).collect();
    format!("{time}, change stream behind token {shown}…")
}

fn time_text(time: OpTime) -> String {
    let OpTime { secs, inc, .. } = time;
    format!("{} (Timestamp({secs}, {inc}), {})", local_time(i64::from(secs)), time.ts())
}

/// The replica set's name: given, or asked of the source.
async fn replica_set_of(config: &Config, given: Option<&str>) -> Result<String> {
    if config.config_servers.is_some() {
        return Ok(CLUSTER_NAME.to_owned());
    }
    if let Some(name) = given {
        return Ok(name.to_owned());
    }
    let uri =
        config.sources.first().ok_or_else(|| Error::new(Side::Config, Kind::Misconfigured, "mongo_urls is empty"))?;
    let mode = connect_mode(config.connect_mode);
    let options = ConnectOptions { mode, ca_file: config.source_root_ca_file.clone(), ..ConnectOptions::default() };
    let source = client::connect(Side::Source, &uri.resolve()?, &options).await?;
    let cluster = topology::cluster(Side::Source, &source, &mode.criteria()).await;
    Ok(cluster.map_err(|e| e.context("ask the source for its replica set (--replica-set NAME avoids it)"))?.name)
}

async fn open(config: &Config, replica_set: &str) -> Result<MongoStore> {
    let options = ConnectOptions { ca_file: config.checkpoint.root_ca_file.clone(), ..ConnectOptions::default() };
    let client = client::connect(Side::Store, &config.checkpoint.url.resolve()?, &options).await?;
    let options = StoreOptions {
        database: config.checkpoint.db.clone(),
        collection: config.checkpoint.collection.clone(),
        job: config.id.clone(),
        replica_set: replica_set.to_owned(),
        holder: format!("operator, process {}", std::process::id()),
    };
    Ok(MongoStore::new(&client, options))
}

fn connect_mode(mode: checked::ConnectMode) -> ConnectMode {
    match mode {
        checked::ConnectMode::Primary => ConnectMode::Primary,
        checked::ConnectMode::SecondaryPreferred => ConnectMode::SecondaryPreferred,
        checked::ConnectMode::Secondary => ConnectMode::Secondary,
        checked::ConnectMode::Nearest => ConnectMode::Nearest,
        checked::ConnectMode::Standalone => ConnectMode::Standalone,
    }
}

/// Reads a position as an operator has it: from a calendar, a log line, `/repl` or a MongoShake document.
fn position(text: &str) -> Result<OpTime, String> {
    let of = |secs: u64, inc: u64| match (u32::try_from(secs), u32::try_from(inc)) {
        // Without a term the history cannot be proved, as with MongoShake's checkpoints.
        (Ok(secs), Ok(inc)) if secs > 0 => Ok(OpTime::new(secs, inc, -1)),
        _ => Err(format!("{text} is no source time: seconds from 1 to {}", u32::MAX)),
    };
    if let Ok(number) = text.parse::<u64>() {
        return if number > u64::from(u32::MAX) { of(number >> 32, number & 0xffff_ffff) } else { of(number, 0) };
    }
    if let Some((Ok(secs), Ok(inc))) = text.split_once('.').map(|(s, i)| (s.parse(), i.parse())) {
        return of(secs, inc);
    }
    match text.parse::<jiff::Timestamp>() {
        Ok(stamp) => of(stamp.as_second().max(0).unsigned_abs(), 0),
        Err(_) => {
            Err("must be a date such as 2026-11-22T23:40:01Z, seconds, seconds.increment, or a 64-bit value".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_in_every_form() {
        let at = |secs, inc| Ok(OpTime::new(secs, inc, -1));
        assert_eq!(position("2024-01-01T00:00:00Z"), at(1_704_067_200, 0));
        assert_eq!(position("2024-01-01T02:00:00+02:00"), at(1_704_067_200, 0));
        assert_eq!(position("1704067200"), at(1_704_067_200, 0));
        assert_eq!(position("1704067200.7"), at(1_704_067_200, 7));
        assert_eq!(position("7332946510847410178"), at(1_707_334_656, 2));
        for bad in ["", "0", "yesterday", "1.2.3", "1960-01-01T00:00:00Z", "-5", "99999999999999999999"] {
            assert!(position(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_description_says_where_a_run_goes_on() {
        let stored = Stored {
            id: "job/rs0".into(),
            kind: StoredKind::Ours,
            name: "rs0".into(),
            stage: "incremental".into(),
            position: Some(Position::Oplog(OpTime::new(1_704_067_200, 7, 2))),
            epoch: 3,
            holder: "host, process 9".into(),
            document: bson::doc! {},
        };
        let text = described(&stored);
        assert!(
            text.contains("job/rs0") && text.contains("Timestamp(1704067200, 7)") && text.contains("epoch 3"),
            "{text}"
        );
    }
}
