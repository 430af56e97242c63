//! Where log lines go and how they look.
//!
//! A line reads like MongoShake's, `[date time zone] [LEVEL] text key=value`, so that eyes and scripts that know one
//! know the other; `--log-format json` writes one object a line instead. The destination follows the configuration
//! (`log.dir`, `log.file`) and MongoShake's `-verbose`. Every line passes the redaction of [`redact`] on its way out,
//! as the last of several guards against a password in a log. This module never decides what is logged.

pub mod format;
pub mod redact;
pub mod rotate;

use std::backtrace::BacktraceStatus;
use std::io;

use oplogue_engine::config::checked::{Log, LogLevel};
use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::{BoxMakeWriter, MakeWriterExt};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

use crate::progress::Screen;
use format::{Line, LineJson};
use rotate::Rotating;

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// `[date time zone] [LEVEL] text key=value`.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Which console stream also gets the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    None,
    Stderr,
    Stdout,
}

/// Where lines go, decided by [`destination`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    /// Whether the configured file is written.
    pub file: bool,
    pub console: Console,
}

/// MongoShake's `-verbose`: 0 = the file only, 1 = file and standard output, 2 = standard output only. Without it the
/// configured file is written, or standard error when there is none.
#[must_use]
pub fn destination(has_file: bool, verbose: Option<u8>) -> Destination {
    let (file, console) = match verbose {
        None | Some(0) if has_file => (true, Console::None),
        None | Some(0) => (false, Console::Stderr),
        Some(1) => (has_file, Console::Stdout),
        Some(_) => (false, Console::Stdout),
    };
    Destination { file, console }
}

/// Keeps the log's writer alive: dropping it writes out what is buffered.
#[derive(Debug)]
pub struct Logging {
    guard: Option<WorkerGuard>,
    /// Where the lines go.
    pub destination: Destination,
}

impl Logging {
    /// Writes out what is buffered, for a process that is about to leave without unwinding.
    pub fn flush(&mut self) {
        self.guard = None;
    }
}

/// Starts logging for the whole process. The second call of one process is refused by the registry and has no effect.
///
/// # Errors
/// When the log's folder or file cannot be made or opened.
pub fn start(log: &Log, verbose: Option<u8>, format: LogFormat, screen: &Screen) -> io::Result<Logging> {
    let destination = destination(log.file.is_some(), verbose);
    let mut guard = None;
    let file = match &log.file {
        Some(file) if destination.file => {
            let rotating = Rotating::open(file)?;
            let (writer, kept) = file_writer(rotating, log.flush);
            guard = kept;
            writer
        }
        Some(_) | None => BoxMakeWriter::new(io::sink),
    };
    let console = match destination.console {
        Console::None => BoxMakeWriter::new(io::sink),
        Console::Stderr => BoxMakeWriter::new(screen.over(io::stderr)),
        Console::Stdout => BoxMakeWriter::new(screen.over(io::stdout)),
    };
    install(file.and(console), format, filter(log.level));
    log_panics(destination);
    Ok(Logging { guard, destination })
}

/// `log.flush = true` writes each line before the caller goes on; otherwise a thread writes behind a bounded queue
/// that never drops a line.
fn file_writer(rotating: Rotating, flush: bool) -> (BoxMakeWriter, Option<WorkerGuard>) {
    if flush {
        return (BoxMakeWriter::new(std::sync::Mutex::new(rotating)), None);
    }
    let (writer, guard): (NonBlocking, _) =
        NonBlockingBuilder::default().lossy(false).thread_name("log").finish(rotating);
    (BoxMakeWriter::new(writer), Some(guard))
}

fn install<W>(writer: W, format: LogFormat, filter: Targets)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer);
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Text => Box::new(layer.event_format(Line).with_filter(filter)),
        LogFormat::Json => Box::new(layer.event_format(LineJson).with_filter(filter)),
    };
    // A test that has a subscriber already keeps it.
    if tracing_subscriber::registry().with(layer).try_init().is_err() {
        tracing::debug!("logging was started before");
    }
}

/// A panic is a bug whose report must be where the operator looks: in the log, and on standard error if the log is only
/// a file.
fn log_panics(destination: Destination) {
    std::panic::set_hook(Box::new(move |panic| {
        let file = panic.location().map_or("", std::panic::Location::file);
        if is_farewell(file, || std::backtrace::Backtrace::force_capture().to_string()) {
            tracing::debug!("{panic}");
            return;
        }
        let trace = std::backtrace::Backtrace::capture();
        let trace = if trace.status() == BacktraceStatus::Captured { format!("; {trace}") } else { String::new() };
        tracing::error!("{panic}{trace}");
        if destination.console == Console::None {
            crate::cli::complain(&panic.to_string());
        }
    }));
}

/// The driver says good-bye to its sessions in a task of its own, which panics when the pool is closed already (3.9.1).
/// Nobody waits for that task. An operation of ours that panics at the same place is told apart by the stack.
fn is_farewell(file: &str, trace: impl FnOnce() -> String) -> bool {
    file.ends_with("cmap/connection_requester.rs") && trace().contains("end_all_sessions")
}

/// Our own lines at the configured level; those of libraries only when they warn, since the driver and the HTTP server
/// narrate every connection.
fn filter(level: LogLevel) -> Targets {
    let (ours, theirs) = match level {
        LogLevel::Debug => (Level::DEBUG, LevelFilter::INFO),
        LogLevel::Info => (Level::INFO, LevelFilter::WARN),
        LogLevel::Warning => (Level::WARN, LevelFilter::WARN),
        LogLevel::Error => (Level::ERROR, LevelFilter::ERROR),
    };
    Targets::new().with_default(theirs).with_target("oplogue", ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_drivers_farewell_is_no_error() {
        let file = "/x/mongodb-3.9.1/src/cmap/connection_requester.rs";
        let of = |frame: &str| format!("8: request\n19: {frame}\n20: poll");
        assert!(is_farewell(file, || of("mongodb::client::Client::end_all_sessions::{{closure}}")));
        assert!(!is_farewell(file, || of("oplogue::assemble::run")), "an operation of ours");
        assert!(!is_farewell("host/src/assemble.rs", || of("end_all_sessions")));
    }

    #[test]
    fn verbose_decides_as_in_mongoshake() {
        let of = |file, verbose| {
            let d = destination(file, verbose);
            (d.file, d.console)
        };
        assert_eq!(of(true, None), (true, Console::None));
        assert_eq!(of(false, None), (false, Console::Stderr));
        assert_eq!(of(true, Some(0)), (true, Console::None));
        assert_eq!(of(true, Some(1)), (true, Console::Stdout));
        assert_eq!(of(true, Some(2)), (false, Console::Stdout));
        assert_eq!(of(false, Some(1)), (false, Console::Stdout));
    }

    #[test]
    fn libraries_are_quiet_at_info() {
        let filter = filter(LogLevel::Info);
        assert!(filter.would_enable("oplogue_engine::pipeline", &Level::INFO));
        assert!(!filter.would_enable("oplogue_engine::pipeline", &Level::DEBUG));
        assert!(!filter.would_enable("mongodb::cmap", &Level::INFO));
        assert!(filter.would_enable("mongodb::cmap", &Level::WARN));
    }
}
