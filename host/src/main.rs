//! The `oplogue` program: hands its arguments to the library and returns the exit code.
//!
//! Everything else is in the library, where tests reach it. It never decides anything itself.

use std::process::ExitCode;

fn main() -> ExitCode {
    oplogue::cli::main(std::env::args_os().collect())
}
