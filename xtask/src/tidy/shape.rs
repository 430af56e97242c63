//! The shape of files: not too long, `name.rs` beside `name/`, and a module doc that says something.
//!
//! A reader meets a file through its first lines, so these are checked for substance by the one measure a
//! program has: three sentences. Length is the other early sign of a file that does two things. Tables of data
//! are no exception: they belong in several files too.

use super::{Finding, SourceFile};

const LINES_MAX: usize = 800;
const SENTENCES_MIN: usize = 3;

pub(super) fn check(file: &SourceFile, found: &mut Vec<Finding>) {
    if !file.is_rust() {
        return;
    }
    let lines = file.text.lines().count();
    if lines > LINES_MAX {
        found.push(Finding::new(&file.path, lines, format!("{lines} lines; {LINES_MAX} is the end")));
    }
    if file.path.ends_with("/mod.rs") {
        found.push(Finding::new(&file.path, 1, "a module is name.rs beside name/, never mod.rs"));
    }
    let sentences = sentences(&file.text);
    if sentences < SENTENCES_MIN {
        let rule = format!(
            "a module doc has {SENTENCES_MIN} sentences or more (what, why here, what never); found {sentences}"
        );
        found.push(Finding::new(&file.path, 1, rule));
    }
}

fn sentences(text: &str) -> usize {
    let doc: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("//!")).collect();
    let doc = doc.join(" ");
    doc.split_whitespace().filter(|word| ends_sentence(word)).count()
}

fn ends_sentence(word: &str) -> bool {
    let word = word.trim_end_matches(['`', ')', '"', '*', '\'']);
    word.ends_with(['.', '!', '?'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, text: &str) -> usize {
        let mut found = Vec::new();
        check(&SourceFile { path: path.to_owned(), text: text.to_owned() }, &mut found);
        found.len()
    }

    #[test]
    fn a_short_documented_file_passes_and_the_others_do_not() {
        let good = "//! What it is. Why it\n//! is here (and `not there`). What it never does.\nfn a() {}\n";
        assert_eq!(rules("host/src/a.rs", good), 0);
        assert_eq!(rules("host/src/a.rs", "//! One. Two v1.2 only.\n"), 1);
        assert_eq!(rules("host/src/a/mod.rs", good), 1);
        assert_eq!(rules("host/src/a.rs", &good.repeat(300)), 1);
    }
}
