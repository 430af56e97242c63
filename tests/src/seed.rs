//! The seed of a randomised test: taken from the environment or the clock, printed, and written where xtask finds it.
//!
//! A passing test's output is hidden by cargo, but the seed that passed is part of what a run has shown. So every test that
//! draws lots gets its seed here, under its own name, and `cargo xtask test` prints the lines of all of them at the end. The
//! engine's own tests include this file by path, since a package of servers is no dependency of theirs; it knows neither.

use std::io::Write as _;

/// Where the lines go: a file that is appended to, named by `cargo xtask test`.
pub const FILE_VARIABLE: &str = "OPLOGUE_SEEDS";

/// The seed for this run: `OPLOGUE_SEED`, else the clock's. Say it in the message of whatever fails.
#[must_use]
pub fn seed() -> u64 {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    seed_or(u64::from(since_epoch.subsec_nanos()) ^ since_epoch.as_secs())
}

/// The same with a seed of the caller's where the environment names none.
#[must_use]
pub fn seed_or(own: u64) -> u64 {
    let given = std::env::var("OPLOGUE_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or(own);
    say(seed);
    seed
}

/// A thread of the test program is named after its test.
#[allow(clippy::print_stdout, reason = "cargo shows it with a failing test, and keeps it out of the lines it counts")]
fn say(seed: u64) {
    let thread = std::thread::current();
    let line = format!("seed: {} {seed}", thread.name().unwrap_or("unnamed"));
    println!("{line}");
    if let Some(path) = std::env::var_os(FILE_VARIABLE) {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        // One write, since other test programs append too.
        if let Err(error) = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())) {
            println!("the seed is not written to {}: {error}", path.display());
        }
    }
}
