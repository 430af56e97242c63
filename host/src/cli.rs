//! The command line: what can be typed, and what the process returns.
//!
//! Exit codes are part of the contract with whoever starts the process: 0 clean, 1 fault, 2 configuration or usage, 3
//! shutdown not completed. MongoShake's own command line is understood too ([`argv`]), so that a start script keeps
//! working. Commands print to standard output what was asked for and everything else to standard error.

pub mod argv;
pub mod check;
pub mod checkpoint;
pub mod conflicts;
pub mod convert;
pub mod run;
pub mod signals;
pub mod stat;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use oplogue_engine::config::{self, Config};
use serde_json::Value;

use crate::monitor;

/// How a command ended, as the process's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done; for `run`: everything read is durable and the checkpoint is stored.
    Clean = 0,
    /// Stopped by a fault; nothing is lost, the operator must act.
    Fault = 1,
    /// The configuration or the command line is wrong; nothing was started.
    Configuration = 2,
    /// The shutdown's deadline passed, or a second signal came: the last stored checkpoint is the safe position.
    ShutdownIncomplete = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[derive(Debug, Parser)]
#[command(
    name = "oplogue",
    version,
    about = "Copies and follows MongoDB into MongoDB, through WebAssembly plugins",
    after_help = "MongoShake's command line works too: oplogue -conf=collector.conf -verbose 1"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Copy and follow, until stopped.
    Run(run::RunArgs),
    /// Check a configuration without connecting anywhere, and print the plugin chain that results.
    Check(FileArgs),
    /// Write a configuration in MongoShake's format as TOML to standard output.
    Convert(FileArgs),
    /// Look at or move the stored position of a job that is not running.
    Checkpoint(checkpoint::CheckpointArgs),
    /// List the conflicts that were recorded on the target.
    Conflicts(conflicts::ConflictsArgs),
    /// Print rates and positions of a running job every second.
    Stat(stat::StatArgs),
    /// Print the version.
    Version,
}

#[derive(Debug, clap::Args)]
struct FileArgs {
    /// The configuration, TOML or MongoShake's `key = value`.
    #[arg(value_name = "FILE", default_value = "collector.toml")]
    file: PathBuf,
}

/// Runs the command that `args` (the program's name first) ask for.
#[must_use]
pub fn main(args: Vec<OsString>) -> ExitCode {
    let parsed = argv::rewrite(args).map_err(|text| (text, Exit::Configuration)).and_then(|args| {
        Cli::try_parse_from(args).map_err(|error| {
            let exit = if error.use_stderr() { Exit::Configuration } else { Exit::Clean };
            (error.render().to_string(), exit)
        })
    });
    match parsed {
        Ok(cli) => dispatch(&cli.command).into(),
        Err((text, Exit::Clean)) => {
            print(&text);
            Exit::Clean.into()
        }
        Err((text, exit)) => {
            complain(&text);
            exit.into()
        }
    }
}

fn dispatch(command: &Command) -> Exit {
    match command {
        Command::Run(args) => run::run(args),
        Command::Check(args) => answer(&check::check(&args.file)),
        Command::Convert(args) => answer(&convert::convert(&args.file)),
        Command::Checkpoint(args) => checkpoint::run(args),
        Command::Conflicts(args) => conflicts::run(args),
        Command::Stat(args) => stat::run(args),
        Command::Version => {
            print(concat!("oplogue ", env!("CARGO_PKG_VERSION")));
            Exit::Clean
        }
    }
}

/// Prints what a command about a configuration answers: the result, or the problems.
fn answer(outcome: &check::Outcome) -> Exit {
    if outcome.exit_code == 0 {
        print(&outcome.text);
        Exit::Clean
    } else {
        complain(&outcome.text);
        Exit::Configuration
    }
}

/// A checked configuration and what `/conf` shows of it.
struct Loaded {
    config: Config,
    /// Effective values by key, secrets masked.
    shown: Value,
}

/// Reads and checks a configuration; all its problems go to standard error.
fn load(file: &Path) -> Result<Loaded, Exit> {
    match config::load(file) {
        Ok(loaded) => {
            let shown = monitor::conf::shown(&loaded);
            Ok(Loaded { config: loaded.config, shown })
        }
        Err(problems) => {
            complain(&problems.to_string());
            Err(Exit::Configuration)
        }
    }
}

/// Writes lines to standard output. A closed pipe (`oplogue stat | head`) is no error of ours.
pub(crate) fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _closed = writeln!(out, "{}", text.trim_end_matches('\n')).and_then(|()| out.flush());
}

/// Writes lines to standard error, passwords masked.
pub(crate) fn complain(text: &str) {
    let text = crate::logging::redact::redact(text.trim_end_matches('\n'));
    let _closed = writeln!(io::stderr().lock(), "{text}");
}

/// A runtime for a command that makes a few calls and ends.
fn small_runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn both_command_lines_reach_the_same_run() {
        let parse = |line: &str| {
            let args = argv::rewrite(line.split(' ').map(OsString::from).collect()).unwrap();
            let Command::Run(args) = Cli::try_parse_from(args).unwrap().command else { panic!("{line}") };
            (args.config, args.verbose)
        };
        let wanted = (PathBuf::from("c.conf"), Some(1));
        assert_eq!(parse("oplogue run -c c.conf --verbose 1"), wanted);
        assert_eq!(parse("collector.linux -conf=c.conf -verbose"), wanted);
    }
}
