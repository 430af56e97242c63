//! `oplogue run`: configuration → log → pid file → status server → the run → exit code.
//!
//! Everything around the run is started before it and ended after it, so that a fault at the very start is in the log,
//! on the status page and in the exit code alike. What a run does stands in [`crate::assemble`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use oplogue_engine::clock::Clock;
use oplogue_engine::config::Config;
use oplogue_engine::error::{Action, Error, Kind, Result};
use oplogue_engine::metrics::{Metrics, Status, SyncStage};
use oplogue_engine::supervise::Supervisor;
use serde_json::Value;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::signals::{Signals, Wishes};
use super::{Exit, Loaded, complain};
use crate::assemble::{self, Ended, ExitReport, Hooks};
use crate::logging::{self, Console, Destination, LogFormat};
use crate::monitor::{self, Monitored};
use crate::pid_file::PidFile;
use crate::progress::{self, Screen};
use crate::report::{CopyLines, Reporter, Tps, local_time};

/// Time for status server and reporter to end after the run.
const SURROUNDINGS_DEADLINE: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The configuration, TOML or MongoShake's `key = value`.
    #[arg(short, long, value_name = "FILE", default_value = "collector.toml", env = "OPLOGUE_CONFIG")]
    pub config: PathBuf,
    /// 0 = log file only, 1 = log file and standard output, 2 = standard output only.
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(u8).range(0..=2))]
    pub verbose: Option<u8>,
    /// Form of a log line.
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// Runs a job to its end.
pub(super) fn run(args: &RunArgs) -> Exit {
    let Loaded { config, shown } = match super::load(&args.config) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    // Before the log: a refused second instance must not write into the log of the first.
    let _pid_file = match config.log.file.as_ref().map(|file| PidFile::take(&file.dir, &config.id)).transpose() {
        Ok(pid_file) => pid_file,
        Err(error) => {
            complain(&format!("log.dir: {error}"));
            return Exit::Fault;
        }
    };
    let screen = Screen::default();
    let mut logging = match logging::start(&config.log, args.verbose, args.log_format, &screen) {
        Ok(logging) => logging,
        Err(error) => {
            complain(&format!("log.dir, log.file: {error}"));
            return Exit::Configuration;
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("oplogue").build() {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&error.to_string(), logging.destination);
            return Exit::Fault;
        }
    };
    let exit = runtime.block_on(Box::pin(surround(config, shown, screen, logging.destination)));
    // After an abort some calls may still hang in the driver: nothing waits for them.
    runtime.shutdown_timeout(Duration::from_millis(500));
    logging.flush();
    exit
}

/// An error that ends the process: in the log, and on the terminal when the log is only a file.
fn say(text: &str, destination: Destination) {
    tracing::error!("{text}");
    if destination.console == Console::None {
        complain(text);
    }
}

/// Starts what stands around the run, runs it, and ends the rest.
async fn surround(config: Config, shown: Value, screen: Screen, destination: Destination) -> Exit {
    let status = Status::new(config.id.clone(), Clock::System);
    let wishes = Wishes {
        stop: CancellationToken::new(),
        abort: CancellationToken::new(),
        status: status.clone(),
        reload: Arc::new(Notify::new()),
    };
    let metrics = Metrics::new();
    let monitored = Monitored { metrics: metrics.clone(), status: status.clone(), tps: Tps::default(), conf: shown };
    let mut around = Supervisor::new(&CancellationToken::new());
    let started = start_around(&mut around, &config, monitored, &wishes, screen, destination).await;
    let outcome = match started {
        Ok(()) => {
            tracing::info!(id = %config.id, version = env!("CARGO_PKG_VERSION"), "oplogue starts");
            let hooks = Hooks {
                metrics,
                status: status.clone(),
                stop: wishes.stop.clone(),
                reload: Arc::clone(&wishes.reload),
            };
            race(Box::pin(assemble::run(config, hooks)), &mut around, &wishes.abort).await
        }
        Err(error) => Outcome::Ended(Err(error)),
    };
    let exit = conclude(outcome, &status, destination);
    if let Err(error) = around.shutdown(SURROUNDINGS_DEADLINE).await {
        tracing::warn!(%error, "something around the run did not end cleanly");
    }
    exit
}

async fn start_around(
    around: &mut Supervisor,
    config: &Config,
    monitored: Monitored,
    wishes: &Wishes,
    screen: Screen,
    destination: Destination,
) -> Result<()> {
    around.spawn("signals", Signals::install()?.watch(wishes.clone(), around.token()));
    for listener in monitor::bind(&config.monitor).await? {
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "status server listens");
        }
        around.spawn("status server", monitor::serve(listener, monitor::router(monitored.clone()), around.token()));
    }
    if let Some(listener) = monitor::bind_profiler(&config.monitor).await? {
        around.spawn("profiler", monitor::serve(listener, monitor::profile::router(), around.token()));
    }
    let bar = progress::can_draw();
    // The bar and lines of the copy on one terminal would say the same twice; a file gets its lines always.
    let copy_lines = if bar && !destination.file { CopyLines::LeaveToBar } else { CopyLines::Write };
    let Monitored { metrics, status, tps, .. } = monitored;
    around.spawn("reporter", Reporter { metrics, status: status.clone(), tps, copy_lines }.run(around.token()));
    if bar {
        around.spawn("progress bar", progress::draw(status, screen, around.token()));
    }
    Ok(())
}

enum Outcome {
    Ended(Result<ExitReport>),
    Aborted,
}

/// Waits for the run. A status server that breaks is logged and does not stop the data.
async fn race(
    mut run: std::pin::Pin<Box<impl Future<Output = Result<ExitReport>>>>,
    around: &mut Supervisor,
    abort: &CancellationToken,
) -> Outcome {
    loop {
        tokio::select! {
            biased;
            () = abort.cancelled() => return Outcome::Aborted,
            ended = &mut run => return Outcome::Ended(ended),
            Some((name, ended)) = around.next_end() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "{name} ended; the run goes on without it");
                }
            }
        }
    }
}

/// The last lines of the log, and the exit code.
fn conclude(outcome: Outcome, status: &Status, destination: Destination) -> Exit {
    match outcome {
        Outcome::Ended(Ok(report)) => {
            let checkpoint = report.checkpoint.map_or_else(|| "none".to_owned(), |position| position.to_string());
            match report.ended {
                Ended::Clean => {
                    let read = status.positions().now().read;
                    let read = format!("{}.{}", read.secs, read.inc);
                    tracing::info!(read, %checkpoint, "ended cleanly");
                    Exit::Clean
                }
                Ended::DeadlinePassed => {
                    let late = waited_for(&status.late());
                    say(&format!("the shutdown's deadline passed{late}; {}", safe_position(status)), destination);
                    Exit::ShutdownIncomplete
                }
                Ended::Interrupted => {
                    let text = "the fault above came in the way of the shutdown";
                    say(&format!("{text}; {}", safe_position(status)), destination);
                    Exit::ShutdownIncomplete
                }
            }
        }
        Outcome::Ended(Err(error)) => {
            if status.stage() != SyncStage::Fault {
                status.fault(&error);
            }
            say(&format!("{error}; {}", advice(&error)), destination);
            exit_of(&error)
        }
        Outcome::Aborted => {
            say(&format!("a second signal ended the run at once; {}", safe_position(status)), destination);
            Exit::ShutdownIncomplete
        }
    }
}

/// Who was late, as a part of a sentence.
fn waited_for(late: &[String]) -> String {
    if late.is_empty() { String::new() } else { format!(", waiting for {}", late.join(", ")) }
}

/// What passes by itself ends a run only before it has begun.
fn advice(error: &Error) -> &'static str {
    match error.action() {
        Action::Rewind => "check the addresses and that the servers are reachable, then start again",
        Action::Stop => error.kind().advice(),
    }
}

fn exit_of(error: &Error) -> Exit {
    if error.kind() == Kind::Misconfigured { Exit::Configuration } else { Exit::Fault }
}

/// Where a restart goes on after an end that was not clean.
fn safe_position(status: &Status) -> String {
    let checkpoint = status.positions().now().checkpoint;
    if checkpoint.ts() == 0 {
        return "no checkpoint was stored in this run: a restart goes on where this one began".to_owned();
    }
    format!(
        "everything up to {} (Timestamp({}, {})) is durable and stored, a restart goes on from there and nothing is lost",
        local_time(i64::from(checkpoint.secs)),
        checkpoint.secs,
        checkpoint.inc
    )
}

#[cfg(test)]
mod tests {
    use oplogue_engine::error::Side;
    use oplogue_engine::model::OpTime;

    use super::*;

    const QUIET: Destination = Destination { file: false, console: Console::Stderr };

    #[test]
    fn each_end_has_its_exit_code() {
        let status = Status::new("job", Clock::System);
        let ended = |ended| Outcome::Ended(Ok(ExitReport { ended, checkpoint: None }));
        let fault = |kind| Outcome::Ended(Err(Error::new(Side::Source, kind, "x")));
        assert_eq!(conclude(ended(Ended::Clean), &status, QUIET), Exit::Clean);
        assert_eq!(conclude(ended(Ended::DeadlinePassed), &status, QUIET), Exit::ShutdownIncomplete);
        assert_eq!(conclude(ended(Ended::Interrupted), &status, QUIET), Exit::ShutdownIncomplete);
        assert_eq!(conclude(fault(Kind::Misconfigured), &status, QUIET), Exit::Configuration);
        assert_eq!(conclude(fault(Kind::HistoryLost), &status, QUIET), Exit::Fault);
        assert_eq!(conclude(Outcome::Aborted, &status, QUIET), Exit::ShutdownIncomplete);
        assert_eq!(status.stage(), SyncStage::Fault);
    }

    #[tokio::test]
    async fn a_second_signal_does_not_wait_for_the_run() {
        let (abort, end) = (CancellationToken::new(), CancellationToken::new());
        let mut around = Supervisor::new(&end);
        around.spawn("status server", async { Err(Error::new(Side::Internal, Kind::Exhausted, "gone")) });
        around.spawn("signals", {
            let abort = abort.clone();
            async move {
                abort.cancel();
                Ok(())
            }
        });
        let never = Box::pin(std::future::pending::<Result<ExitReport>>());
        assert!(matches!(race(never, &mut around, &abort).await, Outcome::Aborted));
    }

    #[test]
    fn an_abort_says_which_position_is_safe() {
        let status = Status::new("job", Clock::System);
        assert!(safe_position(&status).contains("no checkpoint"));
        status.positions().set_checkpoint(OpTime::new(1_700_000_000, 5, 1));
        assert!(safe_position(&status).contains("Timestamp(1700000000, 5)"));
    }
}
