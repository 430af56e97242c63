//! A log file that is renamed when the day or its size is over, and whose old parts are removed by age.
//!
//! The current file keeps the configured name, so `tail -F collector.log` and MongoShake's scripts work; older ones are
//! `collector.log.2026-11-22`, and `….1`, `….2` when one day filled several. The appender of `tracing-appender` rotates
//! by time only and puts the date into the current name, which is why this one exists. Days are UTC days, as in the
//! lines. It never deletes a file whose name it would not have given.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::ToSpan as _;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use oplogue_engine::config::checked::LogFile;

/// An appending writer with rotation. Each `write` is expected to be whole lines.
#[derive(Debug)]
pub struct Rotating {
    settings: LogFile,
    today: fn() -> Date,
    file: File,
    size: u64,
    day: Date,
}

fn today() -> Date {
    jiff::Timestamp::now().to_zoned(TimeZone::UTC).date()
}

impl Rotating {
    /// Opens the file for appending, and makes its folder if need be.
    ///
    /// # Errors
    /// When the folder or the file cannot be made; the path stands in the message.
    pub fn open(settings: &LogFile) -> io::Result<Self> {
        Self::with(settings, today)
    }

    fn with(settings: &LogFile, today: fn() -> Date) -> io::Result<Self> {
        let LogFile { dir, name, .. } = settings;
        fs::create_dir_all(dir).map_err(|error| at_path(dir, &error))?;
        let (file, size) = append(&dir.join(name))?;
        // A file that an earlier run left belongs to the day of its last line.
        let day = if size == 0 { today() } else { modified(&file).unwrap_or_else(today) };
        Ok(Self { settings: settings.clone(), today, file, size, day })
    }

    fn rotate_if_due(&mut self, more: usize) -> io::Result<()> {
        let today = (self.today)();
        let full = self.size + more as u64 > self.settings.size_max;
        if self.size == 0 || (today <= self.day && !full) {
            return Ok(());
        }
        let current = self.settings.dir.join(&self.settings.name);
        fs::rename(&current, self.free_name()?)?;
        (self.file, self.size) = append(&current)?;
        self.day = today;
        self.prune()
    }

    /// The next unused name for the day of the current file.
    fn free_name(&self) -> io::Result<PathBuf> {
        let taken = self.rotated()?.into_iter().filter(|(day, _, _)| *day == self.day).map(|(_, n, _)| n).max();
        let base = format!("{}.{}", self.settings.name, self.day);
        Ok(self.settings.dir.join(match taken {
            None => base,
            Some(n) => format!("{base}.{}", n + 1),
        }))
    }

    /// Rotated files, oldest first: day, number within the day, path.
    fn rotated(&self) -> io::Result<Vec<(Date, u32, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.settings.dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if let Some((day, number)) = name.strip_prefix(&self.settings.name).and_then(rotated_suffix) {
                found.push((day, number, path));
            }
        }
        found.sort();
        Ok(found)
    }

    fn prune(&self) -> io::Result<()> {
        let oldest = self.day.saturating_sub(i64::from(self.settings.keep_days).days());
        let mut outdated = self.rotated()?.into_iter().filter(|(day, _, _)| *day < oldest);
        outdated.try_for_each(|(_, _, path)| fs::remove_file(path))
    }
}

/// Day and number out of `.2026-11-22` or `.2026-11-22.3`.
fn rotated_suffix(suffix: &str) -> Option<(Date, u32)> {
    let suffix = suffix.strip_prefix('.')?;
    match suffix.split_once('.') {
        None => Some((suffix.parse().ok()?, 0)),
        Some((day, number)) => Some((day.parse().ok()?, number.parse().ok()?)),
    }
}

fn append(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).append(true).open(path).map_err(|error| at_path(path, &error))?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

fn modified(file: &File) -> Option<Date> {
    let time = file.metadata().ok()?.modified().ok()?;
    Some(jiff::Timestamp::try_from(time).ok()?.to_zoned(TimeZone::UTC).date())
}

fn at_path(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("open {}: {error}", path.display()))
}

impl Write for Rotating {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A failed rotation (full disk, vanished folder) must not lose the line: it goes to the file that is open.
        let rotated = self.rotate_if_due(bytes.len());
        let written = self.file.write(bytes)?;
        self.size += written as u64;
        rotated.map(|()| written).or(Ok(written))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static DAY: Cell<i8> = const { Cell::new(1) };
    }

    fn test_day() -> Date {
        Date::new(2026, 11, DAY.get()).unwrap()
    }

    fn settings(dir: &Path, size_max: u64) -> LogFile {
        LogFile { dir: dir.to_owned(), name: "c.log".to_owned(), size_max, keep_days: 2 }
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_day_and_a_full_file_rotate_and_old_files_go() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("c.log.bak"), "mine").unwrap();
        DAY.set(1);
        let mut log = Rotating::with(&settings(dir.path(), 20), test_day).unwrap();
        log.write_all(b"day one, line 1\n").unwrap();
        log.write_all(b"day one, line 2\n").unwrap();
        log.write_all(b"day one, line 3\n").unwrap();
        assert_eq!(names(dir.path()), ["c.log", "c.log.2026-11-01", "c.log.2026-11-01.1", "c.log.bak"]);
        DAY.set(2);
        log.write_all(b"two\n").unwrap();
        DAY.set(3);
        log.write_all(b"three\n").unwrap();
        let first = ["c.log.2026-11-01", "c.log.2026-11-01.1", "c.log.2026-11-01.2"];
        let kept = [&["c.log"], &first[..], &["c.log.2026-11-02", "c.log.bak"]].concat();
        assert_eq!(names(dir.path()), kept, "two days are kept, however many files they fill");
        assert_eq!(fs::read_to_string(dir.path().join("c.log")).unwrap(), "three\n");
        assert_eq!(fs::read_to_string(dir.path().join("c.log.2026-11-02")).unwrap(), "two\n");
        DAY.set(4);
        log.write_all(b"four\n").unwrap();
        assert_eq!(names(dir.path()), ["c.log", "c.log.2026-11-02", "c.log.2026-11-03", "c.log.bak"]);
    }

    #[test]
    fn a_restart_appends() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["a\n", "b\n"] {
            Rotating::open(&settings(&dir.path().join("logs"), 1 << 20)).unwrap().write_all(text.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(dir.path().join("logs/c.log")).unwrap(), "a\nb\n");
    }
}
