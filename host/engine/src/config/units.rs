//! Durations, sizes and dates as people write them.
//!
//! MongoShake counts seconds in one key, milliseconds in the next and megabytes in a third, always as a bare number.
//! Here a bare number keeps the unit that MongoShake gives the key, and a number with a unit says it itself. Only
//! whole numbers are read: `1.5h` is refused rather than rounded.

use std::time::Duration;

use super::keys::{SizeUnit, TimeUnit};

/// The units of durations with their length in milliseconds, longest name first.
const TIMES: [(&str, u64); 8] = [
    ("ms", 1),
    ("min", 60_000),
    ("sec", 1_000),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
    ("w", 604_800_000),
];

/// The units of sizes; MB and MiB are the same (1,048,576), as in MongoShake.
const SIZES: [(&str, u64); 10] = [
    ("kib", 1 << 10),
    ("kb", 1 << 10),
    ("k", 1 << 10),
    ("mib", 1 << 20),
    ("mb", 1 << 20),
    ("m", 1 << 20),
    ("gib", 1 << 30),
    ("gb", 1 << 30),
    ("g", 1 << 30),
    ("b", 1),
];

impl TimeUnit {
    pub(super) fn millis(self) -> u64 {
        match self {
            Self::Milliseconds => 1,
            Self::Seconds => 1_000,
            Self::Days => 86_400_000,
        }
    }

    /// What a bare number counts, in words.
    pub(super) fn noun(self) -> &'static str {
        match self {
            Self::Milliseconds => "milliseconds",
            Self::Seconds => "seconds",
            Self::Days => "days",
        }
    }
}

impl SizeUnit {
    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::Bytes => 1,
            Self::Kilobytes => 1 << 10,
            Self::Megabytes => 1 << 20,
        }
    }

    /// What a bare number counts, in words.
    pub(super) fn noun(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Kilobytes => "KB",
            Self::Megabytes => "MB",
        }
    }
}

/// `30m`, `500ms`, `1800` (in `unit`). `None` when the text is no duration or too long to count.
pub(super) fn duration(text: &str, unit: TimeUnit) -> Option<Duration> {
    let millis = with_unit(text, &TIMES, unit.millis())?;
    Some(Duration::from_millis(millis))
}

/// `256MB`, `4GiB`, `1024` (in `unit`).
pub(super) fn size(text: &str, unit: SizeUnit) -> Option<u64> {
    with_unit(text, &SIZES, unit.bytes())
}

fn with_unit(text: &str, units: &[(&str, u64)], bare: u64) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let (digits, suffix) = text.split_at(end);
    let number: u64 = digits.replace('_', "").parse().ok()?;
    let factor = match suffix.trim() {
        "" => bare,
        suffix => units.iter().find(|(name, _)| *name == suffix)?.1,
    };
    number.checked_mul(factor)
}

/// A duration in the largest unit that holds it without a rest.
pub(super) fn show_duration(duration: Duration) -> String {
    const UNITS: [(&str, u64); 4] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0".to_owned();
    }
    match UNITS.iter().find(|(_, length)| millis.is_multiple_of(*length)) {
        Some((name, length)) => format!("{}{name}", millis / length),
        None => format!("{millis}ms"),
    }
}

/// A size in the largest unit that holds it without a rest.
pub(super) fn show_size(bytes: u64) -> String {
    let units = [("GB", 1 << 30), ("MB", 1 << 20), ("KB", 1_u64 << 10)];
    match units.iter().find(|(_, length)| bytes > 0 && bytes.is_multiple_of(*length)) {
        Some((name, length)) => format!("{}{name}", bytes / length),
        None => format!("{bytes}B"),
    }
}

/// `2006-01-02T15:04:05Z` in seconds since 1970.
pub(super) fn date(text: &str) -> Option<u32> {
    const FORM_BYTES: usize = "2006-01-02T15:04:05Z".len();
    if text.len() != FORM_BYTES || !text.ends_with('Z') || text.as_bytes().get(10) != Some(&b'T') {
        return None;
    }
    let time: jiff::Timestamp = text.parse().ok()?;
    u32::try_from(time.as_second()).ok()
}

/// The reverse of [`date`].
pub(super) fn show_date(seconds: u32) -> String {
    jiff::Timestamp::from_second(i64::from(seconds)).map(|time| time.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_number_counts_in_the_unit_of_the_key() {
        assert_eq!(duration("1800", TimeUnit::Seconds), Some(Duration::from_secs(1800)));
        assert_eq!(duration("5000", TimeUnit::Milliseconds), Some(Duration::from_secs(5)));
        assert_eq!(duration("30m", TimeUnit::Milliseconds), Some(Duration::from_secs(1800)));
        assert_eq!(duration("0", TimeUnit::Seconds), Some(Duration::ZERO));
        assert_eq!(size("20", SizeUnit::Megabytes), Some(20 << 20));
        assert_eq!(size("256 MB", SizeUnit::Bytes), Some(256 << 20));
        assert_eq!(size("4GiB", SizeUnit::Bytes), Some(4 << 30));
    }

    #[test]
    fn refuses_what_it_would_have_to_guess() {
        for text in ["", "m", "-1", "1.5h", "18*1024*1024", "10 parsecs", "99999999999999999999d"] {
            assert_eq!(duration(text, TimeUnit::Seconds), None, "{text}");
            assert_eq!(size(text, SizeUnit::Bytes), None, "{text}");
        }
    }

    #[test]
    fn dates_have_one_form() {
        assert_eq!(date("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(date("2024-02-29T12:00:00Z").map(show_date).as_deref(), Some("2024-02-29T12:00:00Z"));
        for text in ["2024-02-30T12:00:00Z", "2024-02-01", "2024-02-01 12:00:00Z", "1969-01-01T00:00:00Z"] {
            assert_eq!(date(text), None, "{text}");
        }
    }

    #[test]
    fn shows_what_it_reads() {
        for text in ["30m", "1500ms", "7d", "0"] {
            assert_eq!(show_duration(duration(text, TimeUnit::Seconds).unwrap()), text);
        }
        assert_eq!(show_size(96 << 20), "96MB");
    }
}
