//! MongoShake's file form: one `key = value` a line, `#` begins a line of comment, values unquoted.
//!
//! The form has no quoting and no escapes: everything after the first `=` is the value, so a password may hold `#`
//! and `=`. Lists and their `;` are the business of `value`. Lines of any length are read.

use super::raw::{Format, Raw, RawEntry};
use super::report::{Fault, Report, mask};
use super::value::RawValue;

/// Reads the lines; one that is no setting becomes a problem.
pub(super) fn parse(text: &str, report: &mut Report) -> Raw {
    let mut entries = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match setting(line) {
            Ok((key, value)) => {
                entries.push(RawEntry { key: key.to_owned(), value: RawValue::Text(value.to_owned()), line: index + 1 })
            }
            Err(fault) => report.problem(Some(index + 1), "", None, fault),
        }
    }
    Raw { format: Format::CollectorConf, entries, unreadable: Vec::new(), plugins: Vec::new() }
}

fn setting(line: &str) -> Result<(&str, &str), Fault> {
    let Some((key, value)) = line.split_once('=') else {
        return Err(Fault::new(format!("cannot be read as \"key = value\": {:?}", mask(line)))
            .suggest("a comment begins with # on a line of its own"));
    };
    let key = key.trim();
    let begins_well = key.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if !begins_well || key.contains(char::is_whitespace) {
        return Err(Fault::new(format!("has no legal key before its '=': {key:?}")));
    }
    Ok((key, value.trim()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn keeps_everything_after_the_first_equals_sign() {
        let mut report = Report::new(Path::new("c.conf"));
        let text = "# a comment\n\n a.b=c = d # e \nlong = ".to_owned() + &"x".repeat(5_000);
        let raw = parse(&text, &mut report);
        assert_eq!(raw.entries[0].key, "a.b");
        assert_eq!(raw.entries[0].value, RawValue::Text("c = d # e".to_owned()));
        assert_eq!((raw.entries[0].line, raw.entries[1].line), (3, 4));
        assert!(report.finish().is_ok());
    }

    #[test]
    fn reports_lines_that_are_no_settings() {
        let mut report = Report::new(Path::new("c.conf"));
        parse("sync_mode\n= all\nsync mode = all\n", &mut report);
        let problems = report.finish().unwrap_err();
        assert_eq!(problems.0.iter().map(|p| p.line).collect::<Vec<_>>(), [Some(1), Some(2), Some(3)]);
    }
}
