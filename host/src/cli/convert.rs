//! `oplogue convert`: the TOML that says the same as a MongoShake `collector.conf`.
//!
//! A thin face of the engine's conversion: text and exit code for the terminal. The text holds the passwords of the
//! original, because the file would not work without them.

use std::path::Path;

use oplogue_engine::config;

use super::check::Outcome;

/// Converts the file at `path`; the text is the TOML, or what is wrong with the file.
#[must_use]
pub fn convert(path: &Path) -> Outcome {
    match config::convert::convert(path) {
        Ok(toml) => Outcome::sound(toml),
        Err(problems) => Outcome::refused(&problems),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::check;
    use super::*;

    #[test]
    fn what_comes_out_checks() {
        let folder = tempfile::tempdir().unwrap();
        let (conf, toml) = (folder.path().join("collector.conf"), folder.path().join("collector.toml"));
        std::fs::write(&conf, "mongo_urls = mongodb://a\ntunnel = direct\ntunnel.address = mongodb://b\n").unwrap();
        let converted = convert(&conf);
        assert_eq!(converted.exit_code, 0, "{}", converted.text);
        assert!(converted.text.contains("tunnel.type = \"direct\""), "{}", converted.text);
        std::fs::write(&toml, &converted.text).unwrap();
        assert_eq!(check(&toml).exit_code, 0);
        assert_eq!(convert(&toml).exit_code, 2);
    }
}
