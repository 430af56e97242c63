//! A reader for a plugin's configuration, which is small JSON that the host has already checked against the schema.
//!
//! It exists so that a plugin stays at some tens of kilobytes; use `serde_json` in your own plugin if you want more.
//! Numbers are read as `f64`, and escapes outside the basic plane need not be paired.

use std::iter::Peekable;
use std::str::Chars;

/// A JSON value.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Reads one value.
    ///
    /// # Errors
    /// What was expected, for the operator.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut reader = Reader { chars: text.chars().peekable(), depth: 0 };
        let value = reader.value()?;
        reader.space();
        match reader.chars.next() {
            None => Ok(value),
            Some(c) => Err(format!("unexpected {c:?} behind the JSON value")),
        }
    }

    /// A member of an object.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Object(members) => members.iter().find(|(key, _)| key == name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// A text member.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A member that is a whole number.
    #[must_use]
    pub fn integer(&self, name: &str) -> Option<i64> {
        match self.get(name)? {
            Self::Number(n) if n.fract() == 0.0 => Some(*n as i64),
            _ => None,
        }
    }

    /// A boolean member.
    #[must_use]
    pub fn boolean(&self, name: &str) -> Option<bool> {
        match self.get(name)? {
            Self::Bool(b) => Some(*b),
            _ => None,
        }
    }

    /// The texts of a list member; nothing if it is absent.
    pub fn texts(&self, name: &str) -> impl Iterator<Item = &str> {
        let list = match self.get(name) {
            Some(Self::List(list)) => list.as_slice(),
            _ => &[],
        };
        list.iter().filter_map(|item| match item {
            Self::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }
}

struct Reader<'a> {
    chars: Peekable<Chars<'a>>,
    depth: usize,
}

impl Reader<'_> {
    fn space(&mut self) {
        while self.chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        self.space();
        match self.chars.next() {
            Some(c) if c == wanted => Ok(()),
            other => Err(format!("expected {wanted:?}, found {other:?}")),
        }
    }

    fn value(&mut self) -> Result<Json, String> {
        self.depth += 1;
        if self.depth > 64 {
            return Err("JSON is nested too deeply".to_owned());
        }
        self.space();
        let value = match self.chars.peek() {
            Some('{') => self.object(),
            Some('[') => self.list(),
            Some('"') => self.string().map(Json::Text),
            Some('t') => self.word("true", Json::Bool(true)),
            Some('f') => self.word("false", Json::Bool(false)),
            Some('n') => self.word("null", Json::Null),
            _ => self.number(),
        };
        self.depth -= 1;
        value
    }

    fn word(&mut self, word: &str, value: Json) -> Result<Json, String> {
        for c in word.chars() {
            if self.chars.next() != Some(c) {
                return Err(format!("expected {word}"));
            }
        }
        Ok(value)
    }

    fn number(&mut self) -> Result<Json, String> {
        let mut text = String::new();
        while let Some(c) = self.chars.next_if(|c| matches!(c, '0'..='9' | '-' | '+' | '.' | 'e' | 'E')) {
            text.push(c);
        }
        text.parse().map(Json::Number).map_err(|_| format!("{text:?} is no JSON value"))
    }

    /// Reads `item` until `close`, with commas between.
    fn items(&mut self, close: char, mut item: impl FnMut(&mut Self) -> Result<(), String>) -> Result<(), String> {
        self.chars.next();
        self.space();
        if self.chars.next_if_eq(&close).is_some() {
            return Ok(());
        }
        loop {
            item(self)?;
            self.space();
            match self.chars.next() {
                Some(',') => {}
                Some(c) if c == close => return Ok(()),
                other => return Err(format!("expected ',' or {close:?}, found {other:?}")),
            }
        }
    }

    fn object(&mut self) -> Result<Json, String> {
        let mut members = Vec::new();
        self.items('}', |reader| {
            reader.space();
            let name = reader.string()?;
            reader.expect(':')?;
            members.push((name, reader.value()?));
            Ok(())
        })?;
        Ok(Json::Object(members))
    }

    fn list(&mut self) -> Result<Json, String> {
        let mut list = Vec::new();
        self.items(']', |reader| {
            list.push(reader.value()?);
            Ok(())
        })?;
        Ok(Json::List(list))
    }

    fn string(&mut self) -> Result<String, String> {
        self.expect('"')?;
        let mut text = String::new();
        loop {
            match self.chars.next().ok_or("a JSON string has no end")? {
                '"' => return Ok(text),
                '\\' => text.push(self.escape()?),
                c => text.push(c),
            }
        }
    }

    fn escape(&mut self) -> Result<char, String> {
        Ok(match self.chars.next().ok_or("a JSON string has no end")? {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'u' => {
                let high = self.unit()?;
                if (0xd800..0xdc00).contains(&high) {
                    self.expect('\\')?;
                    self.expect('u')?;
                    let low = self.unit()?;
                    let code = 0x10000 + ((high - 0xd800) << 10) + low.wrapping_sub(0xdc00);
                    return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                }
                char::from_u32(high).unwrap_or(char::REPLACEMENT_CHARACTER)
            }
            c => c,
        })
    }

    fn unit(&mut self) -> Result<u32, String> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.chars.next().and_then(|c| c.to_digit(16)).ok_or("a \\u escape has no 4 digits")?;
            code = code << 4 | digit;
        }
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_configuration() {
        let json =
            Json::parse(r#" {"a": ["x", "y\n\u00e9\ud83d\ude00"], "n": -12, "t": true, "o": {"z": null}} "#).unwrap();
        assert_eq!(json.texts("a").collect::<Vec<_>>(), ["x", "y\né😀"]);
        assert_eq!(json.integer("n"), Some(-12));
        assert_eq!(json.boolean("t"), Some(true));
        assert_eq!(json.get("o").unwrap().get("z"), Some(&Json::Null));
    }

    #[test]
    fn broken_json_is_an_error() {
        for text in ["", "{", "[1,", "\"x", "{\"a\" 1}", "tru", "1 2", &"[".repeat(100)] {
            assert!(Json::parse(text).is_err(), "{text}");
        }
    }
}
