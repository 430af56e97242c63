//! What is wrong with a configuration, all of it at once, and what is only worth a remark.
//!
//! An operator who starts a collector for the first time should not correct a file ten times to find ten mistakes.
//! So reading goes on after each problem, and every problem says where it is, what was given, what is allowed and,
//! when it can be guessed, what was meant. No text of a report holds a password.

use std::fmt;
use std::path::{Path, PathBuf};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub file: PathBuf,
    /// Counted from 1; `None` when the problem is that something is absent.
    pub line: Option<usize>,
    /// The dotted key; empty when the file itself cannot be read.
    pub key: String,
    /// The value as given, secrets masked.
    pub given: Option<String>,
    /// What a value must be.
    pub constraint: String,
    /// What was perhaps meant, or what to do.
    pub suggestion: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        f.write_str(": ")?;
        if !self.key.is_empty() {
            f.write_str(&self.key)?;
            if let Some(given) = &self.given {
                write!(f, " = {given}")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.constraint)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, " ({suggestion})"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with a file, in the order of its lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.0 {
            writeln!(f, "{problem}")?;
        }
        match self.0.len() {
            1 => f.write_str("1 problem"),
            count => write!(f, "{count} problems"),
        }
    }
}

impl std::error::Error for Problems {}

/// A remark on a value that is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub line: Option<usize>,
    pub key: String,
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}: {}", self.key, self.text),
            None => write!(f, "{}: {}", self.key, self.text),
        }
    }
}

/// Collects problems and notes of one file.
#[derive(Debug)]
pub(super) struct Report {
    file: PathBuf,
    problems: Vec<Problem>,
    pub(super) notes: Vec<Note>,
}

/// What is wrong with a value, before it is known where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) constraint: String,
    pub(super) suggestion: Option<String>,
}

impl Fault {
    pub(super) fn new(constraint: impl Into<String>) -> Self {
        Self { constraint: constraint.into(), suggestion: None }
    }

    pub(super) fn suggest(mut self, suggestion: impl Into<String>) -> Self {
        self.suggestion = Some(suggestion.into());
        self
    }

    /// Adds "did you mean …" when there is a likely candidate.
    pub(super) fn did_you_mean(self, candidate: Option<&str>) -> Self {
        match candidate {
            Some(candidate) => self.suggest(format!("did you mean {candidate}?")),
            None => self,
        }
    }
}

impl Report {
    pub(super) fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), problems: Vec::new(), notes: Vec::new() }
    }

    /// Records a problem; `given` must be masked already (see [`mask`]).
    pub(super) fn problem(&mut self, line: Option<usize>, key: &str, given: Option<String>, fault: Fault) {
        self.problems.push(Problem {
            file: self.file.clone(),
            line,
            key: key.to_owned(),
            given,
            constraint: fault.constraint,
            suggestion: fault.suggestion,
        });
    }

    /// Whether a problem of `section`, or of something in it, was recorded.
    pub(super) fn has_problem_of(&self, section: &str) -> bool {
        let inside = |key: &str| key.strip_prefix(section).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        self.problems.iter().any(|problem| inside(&problem.key))
    }

    pub(super) fn note(&mut self, line: Option<usize>, key: &str, text: impl Into<String>) {
        self.notes.push(Note { line, key: key.to_owned(), text: text.into() });
    }

    /// The problems in the order of their lines, those without a line last; `Ok` when there is none.
    pub(super) fn finish(mut self) -> Result<Vec<Note>, Problems> {
        self.problems.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
        self.notes.sort_by_key(|note| note.line.unwrap_or(usize::MAX));
        if self.problems.is_empty() { Ok(self.notes) } else { Err(Problems(self.problems)) }
    }
}

/// Hides what may be a password in a text that was meant to be a connection string.
pub(super) fn mask(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return match text.rsplit_once('@') {
            Some((_, after)) => format!("***@{after}"),
            None => text.to_owned(),
        };
    };
    match rest.rsplit_once('@') {
        Some((_, after)) => format!("{scheme}://***@{after}"),
        None => text.to_owned(),
    }
}

/// The candidate that is most like `given`, when one is like it at all.
pub(super) fn nearest<'a>(given: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const LIKE_ENOUGH: f64 = 0.6;
    let given = given.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::normalized_damerau_levenshtein(&given, &candidate.to_lowercase()), candidate))
        .filter(|(likeness, _)| *likeness >= LIKE_ENOUGH)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_whatever_stands_before_the_last_at_sign() {
        assert_eq!(mask("mongodb://u:p@q@h:1/db"), "mongodb://***@h:1/db");
        assert_eq!(mask("u:p@h"), "***@h");
        assert_eq!(mask("mongodb://h:1"), "mongodb://h:1");
        assert_eq!(mask("all"), "all");
    }

    #[test]
    fn suggests_only_what_is_like_it() {
        assert_eq!(nearest("ful", ["all", "full", "incr"]), Some("full"));
        assert_eq!(nearest("secondarypreferred", ["primary", "secondaryPreferred"]), Some("secondaryPreferred"));
        assert_eq!(nearest("xyz", ["all", "full", "incr"]), None);
    }
}
