//! Masks passwords of connection strings in text that is about to leave the process.
//!
//! The types that hold secrets print `***` by themselves; this is the net below them, for text of libraries and of
//! servers. It knows one shape, `scheme://user:password@`, and touches nothing else.

use std::borrow::Cow;

/// `text` with every `://user:password@` turned into `://user:***@`.
#[must_use]
pub fn redact(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        out.push_str(before);
        out.push_str("://");
        rest = after;
        // The authority ends at white space, a quote or the path; the last at sign in it ends the credentials.
        let end = after.find(|c: char| c.is_whitespace() || "/?\"'`,;<>".contains(c)).unwrap_or(after.len());
        let (authority, _) = after.split_at(end);
        // A password may hold any of those characters unescaped: then the at sign stands behind `end`.
        let authority = if authority.contains('@') { authority } else { up_to_at_sign(after) };
        if let Some((user, password)) = authority.rsplit_once('@').and_then(|(c, _)| c.split_once(':')) {
            out.push_str(user);
            out.push_str(":***");
            rest = after.get(user.len() + 1 + password.len()..).unwrap_or_default();
        }
    }
    if out.is_empty() {
        return Cow::Borrowed(text);
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// The text up to and with the next at sign of the same word, if a `user:` stands first.
fn up_to_at_sign(text: &str) -> &str {
    let word = text.find(char::is_whitespace).unwrap_or(text.len());
    let (word, _) = text.split_at(word);
    match word.rfind('@') {
        Some(at) => word.get(..=at).unwrap_or_default(),
        None => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_go_and_the_rest_stays() {
        let cases = [
            ("connect to mongodb://u:s3cret@h:27017/admin failed", "connect to mongodb://u:***@h:27017/admin failed"),
            ("mongodb+srv://u:p%40ss@h", "mongodb+srv://u:***@h"),
            ("mongodb://u:p@ss@h,h2/?replicaSet=rs", "mongodb://u:***@h,h2/?replicaSet=rs"),
            ("mongodb://u:pa/ss@h/x", "mongodb://u:***@h/x"),
            ("mongodb://h:27017/ and http://u:x@y", "mongodb://h:27017/ and http://u:***@y"),
            ("mongodb://h:27017", "mongodb://h:27017"),
            ("nothing here", "nothing here"),
            ("two mongodb://a:b@c mongodb://d:e@f", "two mongodb://a:***@c mongodb://d:***@f"),
        ];
        for (given, wanted) in cases {
            assert_eq!(redact(given), wanted);
        }
    }
}
