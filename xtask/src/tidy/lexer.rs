//! Blanks comments, strings and character literals out of Rust source.
//!
//! The checks count braces and look for keywords, and both occur in strings and comments too. Every blanked
//! character becomes a space and line breaks stay, so positions in the result are positions in the file. It is
//! no parser: it knows just enough to tell code from text, raw strings and nested comments included.

/// The source with everything that is not code replaced by spaces.
pub(super) fn code_only(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    while let Some(&current) = chars.get(at) {
        let length = text_length(&chars, at);
        if length == 0 {
            out.push(current);
            at += 1;
            continue;
        }
        let text = chars.get(at..at + length).unwrap_or_default();
        out.extend(text.iter().map(|&blank| if blank == '\n' { '\n' } else { ' ' }));
        at += length.max(1);
    }
    out
}

/// Length of the comment or literal that begins here; zero when code begins here.
fn text_length(chars: &[char], at: usize) -> usize {
    let rest = chars.get(at..).unwrap_or_default();
    match rest {
        ['/', '/', ..] => rest.iter().position(|&next| next == '\n').unwrap_or(rest.len()),
        ['/', '*', ..] => block_comment(rest),
        ['"', ..] => quoted(rest),
        ['r', '"' | '#', ..] if !is_name(chars, at) => raw_string(rest, 1),
        ['b', 'r', '"' | '#', ..] if !is_name(chars, at) => raw_string(rest, 2),
        ['\'', '\\', ..] => quoted(rest),
        ['\'', _, '\'', ..] => 3,
        _ => 0,
    }
}

fn is_name(chars: &[char], at: usize) -> bool {
    let before = at.checked_sub(1).and_then(|before| chars.get(before));
    before.is_some_and(|before| before.is_alphanumeric() || *before == '_')
}

fn block_comment(rest: &[char]) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        match rest.get(at..).unwrap_or_default() {
            ['/', '*', ..] => {
                depth += 1;
                at += 2;
            }
            ['*', '/', ..] => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    at
}

/// A string or character literal with escapes, quotes included.
fn quoted(rest: &[char]) -> usize {
    let Some(&quote) = rest.first() else { return 0 };
    let mut at = 1;
    while let Some(&next) = rest.get(at) {
        at += match next {
            '\\' => 2,
            next if next == quote => return at + 1,
            _ => 1,
        };
    }
    rest.len()
}

/// `r"…"` and `r#"…"#`; `prefix` is the length of `r` or `br`. A raw identifier is code.
fn raw_string(rest: &[char], prefix: usize) -> usize {
    let hashes = rest.iter().skip(prefix).take_while(|&&next| next == '#').count();
    let open = prefix + hashes;
    if rest.get(open) != Some(&'"') {
        return 0;
    }
    let mut at = open + 1;
    while at < rest.len() {
        let closes = rest.get(at) == Some(&'"')
            && rest.iter().skip(at + 1).take(hashes).filter(|&&next| next == '#').count() == hashes;
        if closes {
            return at + 1 + hashes;
        }
        at += 1;
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::code_only;

    #[test]
    fn text_goes_and_code_stays_in_place() {
        let source = "a /* { /* } */ */ \"{\\\"\" r#\"}\"}\"# 'x' '\\'' b // {\nc<'a>('{')";
        let code = code_only(source);
        assert_eq!(code.chars().count(), source.chars().count());
        assert!(!code.contains(['{', '}', '"']));
        assert_eq!(code.split_whitespace().collect::<Vec<_>>(), ["a", "b", "c<'a>(", ")"]);
    }
}
