//! The one test binary of the repository: every test that needs a real server, or the real `oplogue`, is here.
//!
//! One binary because a link of the whole workspace costs seconds and thirty of them cost minutes. Each module
//! starts its own servers; run it with `cargo xtask test`, which fetches them first and keeps four tests at a
//! time on the machine. Nothing here tests pure logic: that stands beside the code it tests.

#[cfg(test)]
mod scripts;

#[cfg(test)]
mod harness;
#[cfg(test)]
mod sink;

#[cfg(test)]
mod change_stream;
#[cfg(test)]
mod e2e;
#[cfg(test)]
mod oplog_source;
#[cfg(test)]
mod snapshot;
#[cfg(test)]
mod store;

#[cfg(test)]
mod operator;

#[cfg(not(test))]
fn main() {}
