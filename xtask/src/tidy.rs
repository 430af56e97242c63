//! `cargo xtask tidy`: the rules of docs/STYLE.md that a program can check.
//!
//! A check outranks prose: what stands here is enforced by the test run, and what cannot stand here is for
//! reviewers. Each check reads the repository's files as text and reports what it finds with file and line.
//! It changes nothing, and it knows no exception that is not listed in the check itself.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use oplogue_tests::paths;

use crate::console;

mod functions;
mod lexer;
mod manifests;
mod shape;
mod words;

/// Directories that hold nothing of ours.
const SKIPPED: [&str; 5] = ["target", ".git", "node_modules", "logs", "diagnostic"];

/// A text file of the repository.
pub(crate) struct SourceFile {
    /// Relative to the root, with forward slashes.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl SourceFile {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

/// A broken rule.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    path: String,
    line: usize,
    rule: String,
}

impl Finding {
    pub(crate) fn new(path: &str, line: usize, rule: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, rule: rule.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}: {}", self.path, self.line, self.rule)
    }
}

/// Checks the whole repository.
pub(crate) fn run() -> Result<()> {
    let files = read(&paths::root())?;
    let found = check(&files)?;
    for finding in &found {
        console::say(&finding.to_string());
    }
    anyhow::ensure!(found.is_empty(), "{} rules of docs/STYLE.md are broken", found.len());
    console::note(&format!("tidy: {} files", files.len()));
    Ok(())
}

fn check(files: &[SourceFile]) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for file in files {
        shape::check(file, &mut found);
        words::check(file, &mut found);
        if file.is_rust() {
            functions::check(file, &mut found);
        }
        if file.path.ends_with("Cargo.toml") {
            manifests::check(file, &mut found).with_context(|| format!("read {}", file.path))?;
        }
    }
    Ok(found)
}

fn read(root: &Path) -> Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type()?.is_dir() {
                if !SKIPPED.contains(&name.as_str()) {
                    dirs.push(entry.path());
                }
            } else if let Some(text) = text(&entry.path(), &name)? {
                let path = entry.path();
                let path = path.strip_prefix(root).map_or_else(|_| path.clone(), PathBuf::from);
                files.push(SourceFile { path: path.to_string_lossy().replace('\\', "/"), text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn text(path: &Path, name: &str) -> Result<Option<String>> {
    let kinds = ["rs", "toml", "md", "wit", "sh", "ts", "js", "json", "py", "yml", "yaml", "conf"];
    let known = path.extension().is_some_and(|kind| kinds.iter().any(|known| kind == *known));
    if !(known || name == "run") || name == "Cargo.lock" {
        return Ok(None);
    }
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Ok(String::from_utf8(bytes).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_tidy() {
        let found = check(&read(&paths::root()).unwrap()).unwrap();
        let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(lines.is_empty(), "\n{}", lines.join("\n"));
    }
}
