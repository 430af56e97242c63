//! Bytes that do not fit into memory, put aside in files until they are asked for again.
//!
//! Open transactions can be larger than what the engine may hold, and a prepared one can stay open for hours. What is
//! put aside belongs to one run: a restart reads it from the source again, so nothing here is ever recovered, synced
//! or kept. Each run has a folder of its own with a locked file in it; a folder whose lock is free belonged to a
//! process that is dead, and the next run removes it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::error::{Error, Kind, Result, Side};
use crate::supervise::off_thread;

/// The file in a run's folder that its process holds locked.
const LOCK: &str = "lock";

/// Where and how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpillOptions {
    /// The folder in which each run makes its own.
    pub dir: PathBuf,
    /// Names the job: letters, digits, `.`, `_`, `-`.
    pub job: String,
    /// Bytes on disk at most.
    pub bytes_max: u64,
}

/// A place for bytes on disk. Cheap to clone; the files go when the last holder of the place and of its parts is gone.
#[derive(Debug, Clone)]
pub struct Spill {
    place: Arc<Place>,
}

#[derive(Debug)]
struct Place {
    options: SpillOptions,
    /// The run's own folder and its lock, made when first needed.
    own: std::sync::OnceLock<(PathBuf, File)>,
    next: AtomicU64,
    used: AtomicU64,
    /// The most that ever was there at once.
    peak: AtomicU64,
}

/// Bytes that were put aside; their file is removed with it.
#[derive(Debug)]
pub struct Stored {
    place: Arc<Place>,
    path: PathBuf,
    bytes: usize,
}

impl Spill {
    /// A place in `options.dir`, after the leftovers of dead runs of the same job were removed there. Makes no folder
    /// before something is put aside.
    #[must_use]
    pub fn new(options: SpillOptions) -> Self {
        sweep(&options);
        let own = std::sync::OnceLock::new();
        let (next, used, peak) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Self { place: Arc::new(Place { options, own, next, used, peak }) }
    }

    /// Puts bytes aside.
    ///
    /// # Errors
    /// `Exhausted` when the bound is reached, or the disk does not take them.
    pub async fn store(&self, bytes: Bytes) -> Result<Stored> {
        let place = Arc::clone(&self.place);
        off_thread("spill", move || place.store(&bytes)).await?
    }

    /// Reads bytes back. Their file goes with the last who holds them.
    ///
    /// # Errors
    /// `Exhausted` when the file cannot be read as it was written.
    pub async fn load(&self, stored: Arc<Stored>) -> Result<Bytes> {
        off_thread("spill", move || stored.read()).await?
    }

    /// The most bytes that were on disk at once.
    #[must_use]
    pub fn peak_bytes(&self) -> u64 {
        self.place.peak.load(Ordering::Relaxed)
    }
}

impl Place {
    fn store(self: Arc<Self>, bytes: &[u8]) -> Result<Stored> {
        let used = self.used.fetch_add(bytes.len() as u64, Ordering::Relaxed) + bytes.len() as u64;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let folder = self.folder();
        let path = folder.as_ref().map(|folder| folder.join(number.to_string())).unwrap_or_default();
        // Made first: whatever fails below, dropping it gives the bytes back and removes what was written.
        let stored = Stored { place: Arc::clone(&self), path, bytes: bytes.len() };
        if used > self.options.bytes_max {
            let text = format!(
                "open transactions need more than limits.spill_bytes = {} on disk (in {})",
                self.options.bytes_max,
                self.options.dir.display()
            );
            return Err(Error::new(Side::Internal, Kind::Exhausted, text));
        }
        self.peak.fetch_max(used, Ordering::Relaxed);
        folder.and_then(|_| fs::write(&stored.path, bytes)).map_err(|e| self.failed("put a transaction aside", e))?;
        Ok(stored)
    }

    fn folder(&self) -> std::io::Result<&Path> {
        if let Some((folder, _)) = self.own.get() {
            return Ok(folder);
        }
        let folder = self.options.dir.join(format!("{}{}", prefix(&self.options.job), unique()));
        fs::create_dir_all(&folder)?;
        let lock = File::create(folder.join(LOCK))?;
        lock.lock()?;
        Ok(&self.own.get_or_init(|| (folder, lock)).0)
    }

    fn failed(&self, doing: &str, e: std::io::Error) -> Error {
        let text = format!("{doing} in {} (limits.spill_dir)", self.options.dir.display());
        Error::new(Side::Internal, Kind::Exhausted, text).caused_by(e)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some((folder, _)) = self.own.get() {
            remove(folder);
        }
    }
}

impl Stored {
    /// How many bytes there are.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn read(&self) -> Result<Bytes> {
        let bytes = fs::read(&self.path).map_err(|e| self.place.failed("read back a transaction", e))?;
        if bytes.len() != self.bytes {
            let text = format!("{} holds {} bytes where {} were written", self.path.display(), bytes.len(), self.bytes);
            return Err(Error::new(Side::Internal, Kind::Exhausted, text));
        }
        Ok(Bytes::from(bytes))
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        self.place.used.fetch_sub(self.bytes as u64, Ordering::Relaxed);
        // Missing when it could not be written; left behind otherwise, it goes with its folder.
        fs::remove_file(&self.path).ok();
    }
}

fn prefix(job: &str) -> String {
    format!("oplogue-spill-{job}-")
}

/// A name that no other run on this machine has: its process and the moment.
fn unique() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}", std::process::id(), now.as_nanos())
}

/// Removes the folders of runs of this job that are dead: those whose lock is free.
fn sweep(options: &SpillOptions) {
    let prefix = prefix(&options.job);
    for entry in fs::read_dir(&options.dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let ours = name.to_str().and_then(|name| name.strip_prefix(&prefix)).is_some_and(is_unique);
        if ours && File::open(entry.path().join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok()) {
            tracing::info!(folder = %entry.path().display(), "what a dead run had put aside is removed");
            remove(&entry.path());
        }
    }
}

/// Whether this is what [`unique`] makes, so that job `a` leaves those of job `a-b` alone.
fn is_unique(text: &str) -> bool {
    let mut parts = text.split('-');
    let number = |part: Option<&str>| part.is_some_and(|part| part.parse::<u128>().is_ok());
    number(parts.next()) && number(parts.next()) && parts.next().is_none()
}

fn remove(folder: &Path) {
    if let Err(error) = fs::remove_dir_all(folder) {
        tracing::warn!(folder = %folder.display(), %error, "a folder of put aside transactions could not be removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(test: &str, bytes_max: u64) -> SpillOptions {
        let dir = std::env::temp_dir().join(format!("oplogue-test-{test}-{}", unique()));
        fs::create_dir_all(&dir).unwrap();
        SpillOptions { dir, job: "test".into(), bytes_max }
    }

    fn folders(options: &SpillOptions) -> usize {
        fs::read_dir(&options.dir).unwrap().count()
    }

    #[tokio::test]
    async fn what_was_stored_comes_back_and_leaves_nothing() {
        let options = options("spill", 1000);
        let spill = Spill::new(options.clone());
        assert_eq!(folders(&options), 0, "nothing is made before it is needed");
        let first = spill.store(Bytes::from_static(b"first")).await.unwrap();
        let second = Arc::new(spill.store(Bytes::from_static(b"second")).await.unwrap());
        assert_eq!((first.bytes(), spill.peak_bytes()), (5, 11));
        assert_eq!(spill.load(Arc::new(first)).await.unwrap(), "first");
        for _ in 0..2 {
            assert_eq!(spill.load(Arc::clone(&second)).await.unwrap(), "second", "as often as it is asked for");
        }
        drop(spill);
        assert_eq!(folders(&options), 1, "a part keeps its folder");
        drop(second);
        assert_eq!(folders(&options), 0);
        fs::remove_dir_all(&options.dir).unwrap();
    }

    #[tokio::test]
    async fn the_bound_holds_and_bytes_come_free_again() {
        let options = options("bound", 8);
        let spill = Spill::new(options.clone());
        let held = spill.store(Bytes::from_static(b"123456")).await.unwrap();
        let error = spill.store(Bytes::from_static(b"789")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Exhausted);
        assert!(error.to_string().contains("limits.spill_bytes"), "{error}");
        drop(held);
        spill.store(Bytes::from_static(b"789")).await.unwrap();
        drop(spill);
        fs::remove_dir_all(&options.dir).unwrap();
    }

    #[tokio::test]
    async fn folders_of_the_dead_go_and_those_of_the_living_stay() {
        let options = options("sweep", 100);
        let living = Spill::new(options.clone());
        let part = living.store(Bytes::from_static(b"x")).await.unwrap();
        let dead = options.dir.join("oplogue-spill-test-1-2");
        let other = options.dir.join("oplogue-spill-test-b-1-2");
        for folder in [&dead, &other] {
            fs::create_dir_all(folder).unwrap();
            fs::write(folder.join(LOCK), "").unwrap();
            fs::write(folder.join("0"), "left behind").unwrap();
        }
        let next = Spill::new(options.clone());
        assert!(!dead.exists() && other.exists());
        assert_eq!(living.load(Arc::new(part)).await.unwrap(), "x");
        drop((living, next));
        fs::remove_dir_all(&options.dir).unwrap();
    }

    #[tokio::test]
    async fn a_place_that_cannot_be_written_is_named() {
        let spill = Spill::new(SpillOptions { dir: "/proc/nowhere".into(), job: "test".into(), bytes_max: 100 });
        let error = spill.store(Bytes::from_static(b"x")).await.unwrap_err();
        assert!(error.kind() == Kind::Exhausted && error.to_string().contains("limits.spill_dir"), "{error}");
    }
}
