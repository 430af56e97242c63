//! What failed, said once more where everybody looks: at the end.
//!
//! The runner prints a failed test's output behind all results of its binary, and more binaries follow it; a log that
//! is cut to its last lines has none of it. So the sections are noted as they go by, without stack traces, and each
//! one's beginning and end are repeated behind everything else.

use std::collections::VecDeque;

/// Lines of a section that are kept at its beginning and at its end: the fault, and the last lines of a log.
const KEPT: usize = 8;

/// What is kept of a line, in characters.
const LINE_MAX: usize = 400;

/// The output of the tests that failed.
#[derive(Debug, Default)]
pub(super) struct Failures {
    sections: Vec<Section>,
    is_inside: bool,
}

#[derive(Debug)]
struct Section {
    test: String,
    first: Vec<String>,
    last: VecDeque<String>,
    left_out: usize,
}

impl Failures {
    /// Takes a line that the runner printed.
    pub(super) fn line(&mut self, line: &str) {
        let title = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"));
        if let Some(test) = title {
            let section = Section { test: test.to_owned(), first: Vec::new(), last: VecDeque::new(), left_out: 0 };
            self.sections.push(section);
            self.is_inside = true;
        } else if line.eq_ignore_ascii_case("stack backtrace:") || line == "failures:" {
            // What follows a trace is the next section.
            self.is_inside = false;
        } else if let Some(section) = self.sections.last_mut().filter(|_| self.is_inside && !line.trim().is_empty()) {
            section.add(line.chars().take(LINE_MAX).collect());
        }
    }

    /// What is to be said of them.
    pub(super) fn say(&self) -> Vec<String> {
        self.sections.iter().flat_map(Section::say).collect()
    }
}

impl Section {
    fn add(&mut self, line: String) {
        if self.first.len() < KEPT {
            self.first.push(line);
            return;
        }
        self.last.push_back(line);
        if self.last.len() > KEPT {
            self.last.pop_front();
            self.left_out += 1;
        }
    }

    fn say(&self) -> Vec<String> {
        let left_out = (self.left_out > 0).then(|| format!("[{} lines]", self.left_out));
        let lines = self.first.iter().cloned().chain(left_out).chain(self.last.iter().cloned());
        std::iter::once(format!("failed: {}", self.test)).chain(lines.map(|line| format!("    {line}"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_and_the_end_of_each_failure_are_kept() {
        let mut failures = Failures::default();
        let log: Vec<String> = (0..20).map(|number| format!("log {number}")).collect();
        let head = ["test a ... FAILED", "failures:", "", "---- a stdout ----", "Error: not equal", ""];
        let tail = ["Stack backtrace:", "   0: main", "", "---- b stdout ----", "panicked", "", "failures:", "    a"];
        head.iter().copied().chain(log.iter().map(String::as_str)).chain(tail).for_each(|line| failures.line(line));
        let said = failures.say();
        assert_eq!(said[..3], ["failed: a", "    Error: not equal", "    log 0"]);
        assert_eq!(said[9..11], ["    [5 lines]", "    log 12"]);
        assert_eq!(said[17..], ["    log 19", "failed: b", "    panicked"].map(str::to_owned)[..]);
    }
}
