//! The collector's binary as a library: command line, assembly, and what an operator sees.
//!
//! Read [`assemble`] first: it builds a run from source to checkpoint in one function. The other modules stand around
//! it: [`cli`] parses and decides the exit code, [`monitor`], [`logging`], [`report`] and [`progress`] show what happens.
//! Nothing here touches a change on its way; that is the engine's work.

pub mod cli;

pub mod assemble;

pub mod logging;
pub mod monitor;
pub mod pid_file;
pub mod progress;
pub mod report;
