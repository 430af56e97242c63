//! The PID file `<id>.pid` in the log folder: one live process a job and folder.
//!
//! It is held by a file lock and not by its content, so a file that a killed process left behind refuses nobody and a
//! reused process number fools nobody. It guards one machine only; two machines are told apart by the checkpoint's lease.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// A held PID file; removed when dropped.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    _locked: File,
}

impl PidFile {
    /// Takes `dir/<id>.pid` and writes our process number into it.
    ///
    /// # Errors
    /// `AlreadyExists` with the holder's number when a live process holds it; otherwise what the file system says.
    pub fn take(dir: &Path, id: &str) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let path = dir.join(format!("{}.pid", id.replace(['/', '\\'], "_")));
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(held(&path, &mut file)),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Self { path, _locked: file })
    }
}

fn held(path: &Path, file: &mut File) -> io::Error {
    let mut holder = String::new();
    let holder = match file.read_to_string(&mut holder) {
        Ok(_) => holder.trim(),
        Err(_) => "unknown",
    };
    let message =
        format!("{} is held by the running process {holder}: another instance with the same id", path.display());
    io::Error::new(io::ErrorKind::AlreadyExists, message)
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // A file that stays is only untidy: the lock is gone with the process.
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "the pid file stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_holder_is_refused_and_a_stale_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job.pid");
        fs::write(&path, "999999\n").unwrap();
        let held = PidFile::take(dir.path(), "job").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        let error = PidFile::take(dir.path(), "job").unwrap_err();
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        assert!(PidFile::take(dir.path(), "other").is_ok());
        drop(held);
        assert!(!path.exists());
        assert!(PidFile::take(dir.path(), "job").is_ok());
    }
}
