//! Runs the programs that xtask is made of: cargo, python, the servers themselves.
//!
//! One place turns an exit status into an error that names the command, and one knows how to find a Python with
//! pip. Output passes through to the terminal unless it is asked for. Nothing is run through a shell.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use oplogue_tests::paths;

/// Runs a command with its output on the terminal.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    let status = command.status().with_context(|| format!("start `{line}`"))?;
    anyhow::ensure!(status.success(), "`{line}` ended with {status}");
    Ok(())
}

/// Runs a command and shows its standard output line by line to `watch`, which may print it.
pub(crate) fn run_watched(command: &mut Command, mut watch: impl FnMut(&str)) -> Result<()> {
    let line = line(command);
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("start `{line}`"))?;
    let output = child.stdout.take().context("the output of a command is a pipe")?;
    for printed in BufReader::new(output).split(b'\n') {
        watch(&String::from_utf8_lossy(&printed.with_context(|| format!("read what `{line}` says"))?));
    }
    let status = child.wait().with_context(|| format!("wait for `{line}`"))?;
    anyhow::ensure!(status.success(), "`{line}` ended with {status}");
    Ok(())
}

/// Runs a command and returns its standard output; its standard error is part of the error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = line(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start `{line}`"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "`{line}` ended with {}:\n{}", output.status, errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `cargo` in the repository's root, the same one that runs us.
///
/// What the outer cargo said about *this* package is taken out of the environment: build scripts such as ring's
/// ask to be run again when it changes, and every nested build would compile the TLS stack and the driver anew.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(arguments).current_dir(paths::root());
    let about_us = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];
    for (name, _) in std::env::vars_os() {
        if about_us.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

/// A Python that has pip: `PYTHON`, `python3`, or a private environment made once below `target/`.
pub(crate) fn python() -> Result<PathBuf> {
    let own = paths::target().join("tools").join("python");
    let given = std::env::var_os("PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from);
    for program in [given.clone(), own.join("bin").join("python")] {
        if output(Command::new(&program).args(["-m", "pip", "--version"])).is_ok() {
            return Ok(program);
        }
    }
    output(Command::new(&given).args(["-m", "venv"]).arg(&own))
        .context("Python 3 with pip is needed to fetch servers: install python3-pip or python3-venv, or set PYTHON")?;
    Ok(own.join("bin").join("python"))
}

/// Creates `to` with all of its content or not at all: `fill` works in a directory beside it.
pub(crate) fn install_dir(to: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = to.parent().context("a directory to install to has a parent")?;
    std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let work = parent.join(format!(".{name}.{}", std::process::id()));
    std::fs::create_dir_all(&work).with_context(|| format!("create {}", work.display()))?;
    let filled = fill(&work).and_then(|()| {
        if to.exists() {
            std::fs::remove_dir_all(to).with_context(|| format!("remove the old {}", to.display()))?;
        }
        std::fs::rename(&work, to).with_context(|| format!("move into {}", to.display()))
    });
    if filled.is_err() {
        std::fs::remove_dir_all(&work).ok();
    }
    filled
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
