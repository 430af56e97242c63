//! The copy that guards are taken out of: a git worktree of HEAD below `target/guards`, with a build directory of its own.
//!
//! The checkout stays as it is, so that one may go on working in it, and what is not committed is not tried. The copy
//! stays between two runs, and so does what was built of it: a guard costs the packages above it and no more. A run that
//! was cut off leaves a guard out of the copy; the next one begins by putting every file back.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use oplogue_tests::paths;
use serde_json::Value;

use super::table::Guard;
use crate::steps;

/// A worktree of HEAD, and where its builds and logs go.
pub(super) struct Copy {
    source: PathBuf,
    target: PathBuf,
    logs: PathBuf,
    commit: String,
}

/// A test binary and the directory that it expects to run in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) directory: PathBuf,
}

impl Copy {
    /// Makes the copy, or puts the one that is there to HEAD, whatever was done to it.
    pub(super) fn of_head() -> Result<Self> {
        let home = paths::target().join("guards");
        let (source, target, logs) = (home.join("source"), home.join("target"), home.join("logs"));
        for dir in [&target, &logs] {
            std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        }
        let commit = steps::output(git(&paths::root()).args(["rev-parse", "HEAD"]))?.trim().to_owned();
        if source.join(".git").exists() {
            steps::output(git(&source).args(["checkout", "--force", "--quiet", "--detach", &commit]))?;
            steps::output(git(&source).args(["clean", "--force", "-d", "--quiet"]))?;
        } else {
            // By force: after `cargo clean` git still knows the copy that is gone.
            let add = ["worktree", "add", "--force", "--quiet", "--detach"];
            steps::output(git(&paths::root()).args(add).arg(&source).arg(&commit))?;
        }
        let servers = target.join("servers");
        if !servers.exists() {
            std::os::unix::fs::symlink(paths::target().join("servers"), &servers).context("link the servers")?;
        }
        Ok(Self { source, target, logs, commit })
    }

    /// The commit that is tried.
    pub(super) fn commit(&self) -> &str {
        &self.commit
    }

    /// Where the output of builds and tests goes.
    pub(super) fn logs(&self) -> &Path {
        &self.logs
    }

    /// The build directory.
    pub(super) fn target(&self) -> &Path {
        &self.target
    }

    /// Makes sure that a guard is where its entry says.
    pub(super) fn find(&self, guard: &Guard) -> Result<()> {
        guard.place(&self.read(guard)?).map(|_| ())
    }

    /// Does something while a guard is missing, and puts it back.
    pub(super) fn without<T>(&self, guard: &Guard, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let whole = self.read(guard)?;
        guard.place(&whole)?;
        self.write(guard, &whole.replacen(&guard.text, &guard.without, 1))?;
        let done = act();
        self.write(guard, &whole)?;
        done
    }

    /// Builds the tests with servers and the collector that they start, or the unit tests of one package. What cargo
    /// prints goes to the log `<name>.build.log`.
    ///
    /// The features of dependencies depend on what is built together, so a package alone has dependencies of its own
    /// here: they are built once, and then a guard costs one small package instead of the whole workspace.
    pub(super) fn build(&self, package: Option<&str>, name: &str) -> Result<Program> {
        let arguments = match package {
            None => vec!["build", "--workspace", "--bins", "--test", "all"],
            Some(package) => vec!["test", "--package", package, "--lib", "--no-run"],
        };
        let path = self.logs.join(format!("{name}.build.log"));
        let log = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        let mut cargo = steps::cargo(&arguments);
        cargo.arg("--message-format=json-render-diagnostics");
        cargo.current_dir(&self.source).env("CARGO_TARGET_DIR", &self.target);
        let output = cargo.stdin(Stdio::null()).stderr(log).output().context("start cargo")?;
        anyhow::ensure!(output.status.success(), "{name} is not built: see {}", path.display());
        let text = String::from_utf8_lossy(&output.stdout);
        program(&text, package).with_context(|| format!("cargo names no test binary for {name}"))
    }

    fn read(&self, guard: &Guard) -> Result<String> {
        let path = self.source.join(&guard.file);
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    fn write(&self, guard: &Guard, content: &str) -> Result<()> {
        let path = self.source.join(&guard.file);
        std::fs::write(&path, content).with_context(|| format!("write {}", path.display()))
    }
}

fn git(directory: &Path) -> Command {
    let mut command = Command::new("git");
    command.arg("-C").arg(directory);
    command
}

/// The test binary among cargo's messages: that of a package's library, or the one with servers.
fn program(messages: &str, package: Option<&str>) -> Option<Program> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let is_it = |message: &Value| {
        let target = message.get("target");
        let name = target.and_then(|target| target.get("name")).and_then(Value::as_str);
        let is_test = message.pointer("/profile/test").and_then(Value::as_bool).unwrap_or(false);
        is_test && (package.is_some() || name == Some("all"))
    };
    messages.filter(is_it).find_map(|message| {
        let path = message.get("executable")?.as_str()?;
        let manifest = Path::new(message.get("manifest_path")?.as_str()?);
        Some(Program { path: PathBuf::from(path), directory: manifest.parent()?.to_path_buf() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_is_found_among_cargos_messages() {
        let messages = r#"
            {"reason":"compiler-artifact","manifest_path":"/r/xtask/Cargo.toml","target":{"name":"xtask"},"profile":{"test":false},"executable":"/t/xtask"}
            {"reason":"compiler-artifact","manifest_path":"/r/tests/Cargo.toml","target":{"name":"all"},"profile":{"test":true},"executable":"/t/all-1"}
            {"reason":"build-finished","success":true}
        "#;
        let found = program(messages, None).unwrap();
        assert_eq!(found, Program { path: "/t/all-1".into(), directory: "/r/tests".into() });
        assert_eq!(program("no json\n{}", Some("oplogue-engine")), None);
    }
}
