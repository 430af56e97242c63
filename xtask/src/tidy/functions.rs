//! Functions of at most 70 lines.
//!
//! A long function is where the next person adds a flag instead of a name. The limit holds for the whole item,
//! signature and closing brace included, tests too. Older long functions may stand in the list below with the
//! length they have, which only ever shrinks.

use super::lexer::code_only;
use super::{Finding, SourceFile};

const LINES_MAX: usize = 70;

/// File, function and the length it may have: a ratchet. Remove an entry when the function is short.
const LONGER: [(&str, &str, usize); 0] = [];

pub(super) fn check(file: &SourceFile, found: &mut Vec<Finding>) {
    for function in functions(&file.text) {
        let listed = LONGER.iter().find(|(path, name, _)| *path == file.path && *name == function.name);
        let max = listed.map_or(LINES_MAX, |(_, _, lines)| *lines);
        if function.lines > max {
            let rule = format!("function {} has {} lines; {max} is the end", function.name, function.lines);
            found.push(Finding::new(&file.path, function.line, rule));
        }
    }
}

struct Function {
    name: String,
    line: usize,
    lines: usize,
}

fn functions(source: &str) -> Vec<Function> {
    let code = code_only(source);
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let before = code.get(..at).unwrap_or_default();
        if before.chars().next_back().is_some_and(|last| last.is_alphanumeric() || last == '_') {
            continue;
        }
        let rest = code.get(at + 3..).unwrap_or_default();
        let name: String = rest.chars().take_while(|next| next.is_alphanumeric() || *next == '_').collect();
        if let (false, Some(lines)) = (name.is_empty(), body_lines(rest)) {
            found.push(Function { name, line: before.lines().count().max(1), lines });
        }
    }
    found
}

/// Lines from here to the closing brace of the body; none for a declaration without one.
fn body_lines(rest: &str) -> Option<usize> {
    let (mut braces, mut brackets, mut lines) = (0_i32, 0_i32, 1);
    for next in rest.chars() {
        match next {
            '\n' => lines += 1,
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets -= 1,
            ';' if braces == 0 && brackets == 0 => return None,
            '{' => braces += 1,
            '}' => {
                braces -= 1;
                if braces == 0 {
                    return Some(lines);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_counted_from_signature_to_brace() {
        let source = "trait T { fn declared(&self, x: [u8; 3]); }\nfn two(\n) -> char { '}' }\nfn one() {}\n";
        let found: Vec<(String, usize)> =
            functions(source).into_iter().map(|function| (function.name, function.lines)).collect();
        assert_eq!(found, [("two".to_owned(), 2), ("one".to_owned(), 1)]);
    }

    #[test]
    fn a_long_function_is_reported() {
        let text = format!("fn long() {{\n{}}}\n", "    a();\n".repeat(70));
        let mut found = Vec::new();
        check(&SourceFile { path: "a.rs".to_owned(), text }, &mut found);
        assert_eq!(found.len(), 1);
    }
}
