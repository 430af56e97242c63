//! Words that may not stand in the repository: marks of unfinished work and names of package registries.
//!
//! Unfinished work is an issue, not a comment that nobody reads. Which registry or mirror a machine uses is that
//! machine's business, so no file of ours names one; lock files are written by tools and left out. The words
//! below are put together from halves, so that this file passes its own check.

use super::{Finding, SourceFile};

const UNFINISHED: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];

const REGISTRIES: [&str; 12] = [
    concat!("index.crates", ".io"),
    concat!("static.crates", ".io"),
    concat!("crates.io", "-index"),
    concat!("pypi", ".org"),
    concat!("files.python", "hosted.org"),
    concat!("registry.npm", "js.org"),
    concat!("registry.yarn", "pkg.com"),
    concat!("proxy.go", "lang.org"),
    concat!("repo1.ma", "ven.org"),
    concat!("repo.maven.", "apache.org"),
    concat!("deb.deb", "ian.org"),
    concat!("static.rust", "-lang.org"),
];

pub(super) fn check(file: &SourceFile, found: &mut Vec<Finding>) {
    for (number, line) in file.text.lines().enumerate() {
        for word in UNFINISHED.iter().filter(|word| has_word(line, word)) {
            let rule = format!("{word}: write an issue, or finish it");
            found.push(Finding::new(&file.path, number + 1, rule));
        }
        for host in REGISTRIES.iter().filter(|host| line.contains(*host)) {
            let rule = format!("names the registry {host}: leave it to the machine's configuration");
            found.push(Finding::new(&file.path, number + 1, rule));
        }
    }
}

fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        let after = line.get(at + word.len()..).and_then(|text| text.chars().next());
        let joins = |next: Option<char>| next.is_some_and(|next| next.is_alphanumeric() || next == '_');
        !joins(before) && !joins(after)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_words_only() {
        let word = UNFINISHED[0];
        assert!(has_word(&format!("// {word}: later"), word));
        assert!(!has_word(&format!("MAS{word}N"), word));
    }

    #[test]
    fn a_registry_is_found_with_its_line() {
        let text = format!("a\nhttps://{}/simple\n", REGISTRIES[3]);
        let mut found = Vec::new();
        check(&SourceFile { path: "docs/x.md".to_owned(), text }, &mut found);
        assert_eq!(found[0].line, 2);
    }
}
