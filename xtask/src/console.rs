//! What xtask prints: its only output is for the person at the terminal.
//!
//! The lint that forbids printing guards the product, whose output is a log; a tool talks. All printing is here,
//! so that the exception stands once. Results go to stdout, progress and complaints to stderr.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool's output is its terminal")]

/// A line of result.
pub(crate) fn say(text: &str) {
    println!("{text}");
}

/// The title of a step, set off from the output of the tools it runs.
pub(crate) fn title(text: &str) {
    eprintln!("\n== {text}");
}

/// A line of progress.
pub(crate) fn note(text: &str) {
    eprintln!("{text}");
}

/// Why the command failed.
pub(crate) fn complain(text: &str) {
    eprintln!("error: {text}");
}
