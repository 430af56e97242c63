//! The table of guards, `tests/guards.toml`: what a guard is in the code, and which tests miss it.
//!
//! It is data, so that a guard is added where the tests are and without a word of Rust. An entry holds the guard's text
//! as it stands in its file, because a line number would go stale unseen; text that is not found, or found twice, is an
//! error. The head of the file says what is left out and why.

use anyhow::{Context as _, Result};
use oplogue_tests::paths;
use serde::Deserialize;

/// The table, from the repository's root.
pub(super) const FILE: &str = "tests/guards.toml";

/// One guard.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Guard {
    /// Short and unique: names its logs, and is what the command's filters look at.
    pub(super) name: String,
    /// The item of the list of silent losses, or the invariant, that it holds up.
    pub(super) stands_for: String,
    /// The file that it stands in, from the repository's root.
    pub(super) file: String,
    /// What is replaced; stands in the file once.
    pub(super) text: String,
    /// What is put there: compiles, and guards nothing.
    pub(super) without: String,
    /// The package whose unit tests are run; none = the tests with servers.
    pub(super) package: Option<String>,
    /// Full names of the tests that must fail, each by itself.
    pub(super) tests: Vec<String>,
    /// A test that does not end within its time counts as failed.
    #[serde(default)]
    pub(super) hangs: bool,
    /// How long each test may take.
    #[serde(default = "three_minutes")]
    pub(super) timeout_s: u64,
}

impl Guard {
    /// A test's name with the binary that has it.
    pub(super) fn shown(&self, test: &str) -> String {
        format!("{}: {test}", self.package.as_deref().unwrap_or("tests"))
    }

    /// Where its text begins in the content of its file.
    pub(super) fn place(&self, content: &str) -> Result<usize> {
        let found: Vec<usize> = content.match_indices(&self.text).map(|(at, _)| at).collect();
        match found.as_slice() {
            [only] => Ok(*only),
            others => {
                anyhow::bail!("{FILE}: the text of {} stands {} times in {}", self.name, others.len(), self.file)
            }
        }
    }
}

fn three_minutes() -> u64 {
    180
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    guard: Vec<Guard>,
}

/// Reads the table of the checkout.
pub(super) fn read() -> Result<Vec<Guard>> {
    let text = std::fs::read_to_string(paths::root().join(FILE)).with_context(|| format!("read {FILE}"))?;
    let Table { guard: guards } = toml::from_str(&text).with_context(|| format!("read {FILE}"))?;
    for (at, guard) in guards.iter().enumerate() {
        let twice = guards.iter().skip(at + 1).any(|other| other.name == guard.name);
        anyhow::ensure!(!twice, "{FILE}: two guards are named {}", guard.name);
        let empty = guard.tests.is_empty() || guard.text == guard.without;
        anyhow::ensure!(!empty, "{FILE}: {} names no test, or takes nothing out", guard.name);
    }
    Ok(guards)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_guard_stands_where_the_table_says() {
        for guard in read().unwrap() {
            let content = std::fs::read_to_string(paths::root().join(&guard.file)).unwrap();
            guard.place(&content).unwrap();
        }
    }
}
