//! `cargo xtask plugins`: builds every guest of the repository and puts the files beside their sources.
//!
//! The files are committed, so that building the host needs no WebAssembly toolchain. `--check` builds below
//! `target/` instead and runs the runtime's tests against fresh files that are not the committed ones: behaviour is
//! compared then, since another compiler writes other bytes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use oplogue_tests::paths;

use crate::{console, steps, wasm_std};

/// What to do with the built files.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Options {
    /// Leave the committed files alone; test the fresh ones instead
    #[arg(long)]
    pub(crate) check: bool,
}

/// A guest: where its cargo workspace is, what it is built with, and the committed file.
struct Guest {
    workspace: &'static str,
    package: &'static str,
    features: &'static [&'static str],
    file: &'static str,
}

const fn guest(workspace: &'static str, package: &'static str, file: &'static str) -> Guest {
    Guest { workspace, package, features: &[], file }
}

const FIXTURES: &str = "host/plugin-runtime/tests/guests";

/// Where guests and what they are built of have their sources.
const WORKSPACES: [&str; 4] = ["plugin-sdk/rust", "plugins", "examples/mask-field", FIXTURES];

const GUESTS: &[Guest] = &[
    guest("plugins", "namespace-filter", "plugins/namespace-filter/namespace-filter.wasm"),
    guest("plugins", "namespace-rename", "plugins/namespace-rename/namespace-rename.wasm"),
    guest("plugins", "target-delay", "plugins/target-delay/target-delay.wasm"),
    guest("plugins", "ddl-filter", "plugins/ddl-filter/ddl-filter.wasm"),
    guest("examples/mask-field", "mask-field", "examples/mask-field/mask-field.wasm"),
    Guest { features: &["v2"], ..guest("examples/mask-field", "mask-field", "examples/mask-field/mask-field-v2.wasm") },
    guest("examples/newest-wins", "newest-wins", "examples/newest-wins/newest-wins.wasm"),
    guest(FIXTURES, "faulty", "host/plugin-runtime/tests/guests/faulty/faulty.wasm"),
    guest(FIXTURES, "counting", "host/plugin-runtime/tests/guests/counting/counting.wasm"),
    guest(FIXTURES, "contrary", "host/plugin-runtime/tests/guests/contrary/contrary.wasm"),
];

/// Builds all guests.
pub(crate) fn run(options: Options) -> Result<()> {
    let sysroot = wasm_std::ensure()?;
    let to = if options.check { paths::target().join("guests").join("fresh") } else { paths::root() };
    let mut differ = false;
    for guest in GUESTS {
        let built = build(guest, sysroot.as_deref())?;
        let file = to.join(guest.file);
        let folder = file.parent().context("a plugin file has a folder")?;
        std::fs::create_dir_all(folder)?;
        std::fs::copy(&built, &file).with_context(|| format!("copy to {}", file.display()))?;
        differ |= std::fs::read(&file)? != std::fs::read(paths::root().join(guest.file))?;
        let bytes = std::fs::metadata(&file)?.len();
        console::say(&format!("{:>7} bytes  {}", bytes, guest.file));
    }
    if options.check && !differ {
        console::note("the fresh files are the committed ones, byte for byte: every run of the tests tests them");
    } else if options.check {
        // The whole workspace: a package alone would build wasmtime once more, with other features.
        let mut test = steps::cargo(&["test", "--workspace", "--test", "plugins"]);
        steps::run(test.env("OPLOGUE_GUESTS", &to))?;
    }
    Ok(())
}

/// Formatting, lints and tests of what guests are made of, on this machine's own processor. Their workspaces are no part
/// of the repository's, so that no other cargo command looks at them.
pub(crate) fn test_sources() -> Result<()> {
    let target = paths::target().join("guests").join("host");
    let steps: [&[&str]; 3] = [
        &["fmt", "--all", "--check"],
        &["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"],
        &["test", "--workspace"],
    ];
    for workspace in WORKSPACES {
        for step in steps {
            let mut cargo = steps::cargo(step);
            cargo.current_dir(paths::root().join(workspace)).env("CARGO_TARGET_DIR", &target);
            steps::run(&mut cargo).with_context(|| format!("in {workspace}"))?;
        }
    }
    Ok(())
}

fn build(guest: &Guest, sysroot: Option<&Path>) -> Result<PathBuf> {
    let target = paths::target().join("guests");
    // The linker's default of 1 MiB of stack is most of a small guest's memory.
    let mut flags = "-Clink-arg=-zstack-size=131072".to_owned();
    if let Some(sysroot) = sysroot {
        flags.push_str(&format!(" --sysroot={}", sysroot.display()));
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(paths::root().join(guest.workspace))
        .args(["build", "--quiet", "--release", "--target", "wasm32-unknown-unknown", "--package", guest.package])
        .args(guest.features.iter().flat_map(|feature| ["--features", feature]))
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS", flags);
    steps::run(&mut cargo)?;
    let name = guest.package.replace('-', "_");
    Ok(target.join("wasm32-unknown-unknown/release").join(format!("{name}.wasm")))
}
