//! Where things are on disk: the repository, its `target/`, the fetched servers and the scratch directories.
//!
//! One module says it, so that xtask and the tests agree without passing paths around. Everything written
//! goes below `target/`; nothing is ever written elsewhere, and nothing outside a scratch directory is removed.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};

/// The repository's root, fixed when the harness is compiled.
#[must_use]
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// The build directory: `CARGO_TARGET_DIR` where set, else `target/` of the repository.
#[must_use]
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// Where `cargo xtask servers` installs one server version.
#[must_use]
pub fn server(version: &str) -> PathBuf {
    target().join("servers").join(version)
}

/// A directory of this process, removed when the handle drops unless `KEEP=1` is set.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Creates `target/test-servers/<pid>-<n>-<label>`, empty.
    ///
    /// # Errors
    /// When the directory cannot be created.
    pub fn new(label: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}-{label}", std::process::id());
        let path = target().join("test-servers").join(name);
        if path.exists() {
            std::fs::remove_dir_all(&path).with_context(|| format!("clear {}", path.display()))?;
        }
        std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self { path })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !kept() {
            // A directory left behind costs disk, never a result; `cargo clean` takes it.
            std::fs::remove_dir_all(&self.path).ok();
        }
    }
}

/// Whether `KEEP=1` asks for data and logs to stay after a run.
#[must_use]
pub fn kept() -> bool {
    std::env::var_os("KEEP").is_some_and(|value| value == "1")
}
