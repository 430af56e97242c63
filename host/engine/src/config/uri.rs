//! Connection strings: accepted as people write them, handed to the driver as it wants them, printed without secrets.
//!
//! MongoShake's guide warns that a password with an at sign breaks the connection; here such a password is found and
//! percent-encoded. A value `env:NAME` or `file:PATH` names where the string is kept, and is resolved when a
//! connection is made: reading the configuration stays free of side effects. Nothing prints a password.

use std::fmt;

use crate::error::{Error, Kind, Result, Side};

/// A connection string, or where to find one. `Display` and `Debug` print `***` for the password.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MongoUri {
    form: Form,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Form {
    Literal(Parts),
    Env(String),
    File(String),
}

/// A connection string in its parts, user and password percent-encoded.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Parts {
    scheme: &'static str,
    credentials: Option<(String, Option<String>)>,
    hosts: String,
    /// From the `/` or `?` after the hosts to the end.
    rest: String,
}

const SCHEMES: [&str; 2] = ["mongodb://", "mongodb+srv://"];

impl MongoUri {
    /// Reads a connection string, `env:NAME` or `file:PATH`.
    ///
    /// # Errors
    /// A sentence that says what a correct value looks like; it never quotes the password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let form = if let Some(name) = text.strip_prefix("env:") {
            Form::Env(filled(name, "env:NAME needs the name of an environment variable")?)
        } else if let Some(path) = text.strip_prefix("file:") {
            Form::File(filled(path, "file:PATH needs a path")?)
        } else {
            Form::Literal(Parts::parse(text)?)
        };
        Ok(Self { form })
    }

    /// The full connection string with its password, for the driver only. Reads the environment or the file now.
    ///
    /// # Errors
    /// `Misconfigured` when the variable or file is not there or holds no connection string.
    pub fn resolve(&self) -> Result<String> {
        let text = match &self.form {
            Form::Literal(parts) => return Ok(parts.expose()),
            Form::Env(name) => std::env::var(name).map_err(|error| unresolved(self).caused_by(error))?,
            Form::File(path) => std::fs::read_to_string(path).map_err(|error| unresolved(self).caused_by(error))?,
        };
        let parts = Parts::parse(text.trim())
            .map_err(|reason| Error::new(Side::Config, Kind::Misconfigured, format!("read {self}: {reason}")))?;
        Ok(parts.expose())
    }

    /// The host list, for log lines; empty when it stands elsewhere (`env:`, `file:`).
    #[must_use]
    pub fn hosts(&self) -> &str {
        match &self.form {
            Form::Literal(parts) => &parts.hosts,
            Form::Env(_) | Form::File(_) => "",
        }
    }

    /// The text as it should be written to a file: with the password.
    pub(crate) fn expose(&self) -> String {
        match &self.form {
            Form::Literal(parts) => parts.expose(),
            Form::Env(name) => format!("env:{name}"),
            Form::File(path) => format!("file:{path}"),
        }
    }
}

fn filled(text: &str, otherwise: &str) -> Result<String, String> {
    if text.is_empty() { Err(otherwise.to_owned()) } else { Ok(text.to_owned()) }
}

fn unresolved(uri: &MongoUri) -> Error {
    Error::new(Side::Config, Kind::Misconfigured, format!("read the connection string from {uri}"))
}

impl Parts {
    fn parse(text: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = SCHEMES.iter().find_map(|s| text.strip_prefix(s).map(|rest| (*s, rest))) else {
            return Err("must begin with mongodb:// or mongodb+srv://, or be env:NAME or file:PATH".to_owned());
        };
        let (credentials, tail) = split_credentials(rest)?;
        let end = tail.find(['/', '?']).unwrap_or(tail.len());
        let (hosts, rest) = tail.split_at(end);
        check_hosts(hosts)?;
        // The driver wants the slash before options.
        let rest = if rest.starts_with('?') { format!("/{rest}") } else { rest.to_owned() };
        Ok(Self { scheme, credentials, hosts: hosts.to_owned(), rest })
    }

    fn write(&self, password_shown: &str) -> String {
        let mut text = self.scheme.to_owned();
        if let Some((user, password)) = &self.credentials {
            text.push_str(user);
            if password.is_some() {
                text.push(':');
                text.push_str(password_shown);
            }
            text.push('@');
        }
        text.push_str(&self.hosts);
        text
    }

    fn show(&self) -> String {
        self.write("***") + &mask_options(&self.rest)
    }

    fn expose(&self) -> String {
        let password = self.credentials.as_ref().and_then(|(_, password)| password.as_deref());
        self.write(password.unwrap_or_default()) + &self.rest
    }
}

/// Hides the values of options that hold a secret (connection string options of the driver specification).
fn mask_options(rest: &str) -> String {
    const SECRET: [&str; 3] = ["tlscertificatekeyfilepassword", "proxypassword", "authmechanismproperties"];
    let Some((path, options)) = rest.split_once('?') else {
        return rest.to_owned();
    };
    let shown = options.split('&').map(|option| match option.split_once('=') {
        Some((name, _)) if SECRET.contains(&name.to_lowercase().as_str()) => {
            format!("{name}=***")
        }
        _ => option.to_owned(),
    });
    format!("{path}?{}", shown.collect::<Vec<_>>().join("&"))
}

type Credentials = Option<(String, Option<String>)>;

/// Splits at the first `@` after which a host list and a plain database name follow, so that a password may hold
/// `@`, `:`, `/` and `?` itself.
fn split_credentials(rest: &str) -> Result<(Credentials, &str), String> {
    if !rest.contains('@') || plausible_tail(rest) {
        return Ok((None, rest));
    }
    for (at, _) in rest.match_indices('@') {
        let (userinfo, tail) = (rest.get(..at).unwrap_or_default(), rest.get(at + 1..).unwrap_or_default());
        if plausible_tail(tail) {
            let (user, password) = match userinfo.split_once(':') {
                Some((user, password)) => (user, Some(encode(password))),
                None => (userinfo, None),
            };
            if user.is_empty() {
                return Err("names no user before the password".to_owned());
            }
            return Ok((Some((encode(user), password)), tail));
        }
    }
    Err("has no readable host list after the password: write host:port[,host:port]".to_owned())
}

fn plausible_tail(tail: &str) -> bool {
    let (before_options, _) = tail.split_once('?').unwrap_or((tail, ""));
    let (hosts, database) = before_options.split_once('/').unwrap_or((before_options, ""));
    check_hosts(hosts).is_ok() && !database.contains(['@', ':', '/'])
}

fn check_hosts(hosts: &str) -> Result<(), String> {
    if hosts.is_empty() {
        return Err("names no host".to_owned());
    }
    for host in hosts.split(',') {
        check_host(host)?;
    }
    Ok(())
}

fn check_host(host: &str) -> Result<(), String> {
    let (name, port) = match host.strip_prefix('[') {
        Some(inner) => match inner.split_once(']') {
            Some((name, port)) => (name, port.strip_prefix(':')),
            None => return Err(format!("has an unclosed address {host:?}")),
        },
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let legal = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '%' | ':');
    if name.is_empty() || !name.chars().all(legal) {
        return Err("has an empty or unreadable host name in its list (write host:port[,host:port])".to_owned());
    }
    match port.map(str::parse::<u16>) {
        None => Ok(()),
        Some(Ok(port)) if port > 0 => Ok(()),
        Some(_) => Err(format!("has a port outside 1 to 65535 after the host {name:?}")),
    }
}

/// Percent-encodes what a user name or password may not hold. What is already encoded stays.
fn encode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    for (i, &byte) in bytes.iter().enumerate() {
        let hex = |offset: usize| bytes.get(i + offset).is_some_and(u8::is_ascii_hexdigit);
        let kept =
            byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte) || (byte == b'%' && hex(1) && hex(2));
        if kept {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

impl fmt::Display for MongoUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.form {
            Form::Literal(parts) => f.write_str(&parts.show()),
            Form::Env(name) => write!(f, "env:{name}"),
            Form::File(path) => write!(f, "file:{path}"),
        }
    }
}

impl fmt::Debug for MongoUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(text: &str) -> String {
        MongoUri::parse(text).unwrap().resolve().unwrap()
    }

    #[test]
    fn keeps_what_is_already_right() {
        for text in [
            "mongodb://h:1",
            "mongodb://u:p@h:1,h2:2/admin?replicaSet=rs",
            "mongodb+srv://u:p%40q@cluster.example.net/",
            "mongodb://h:27017/?appName=a@b",
            "mongodb://[::1]:27017/",
            "mongodb://u@h/?authMechanism=MONGODB-X509",
        ] {
            assert_eq!(full(text), text);
        }
    }

    #[test]
    fn encodes_awkward_passwords() {
        assert_eq!(full("mongodb://u:p@ss@h:1"), "mongodb://u:p%40ss@h:1");
        assert_eq!(full("mongodb://u:a/b?c:d@h:1/db"), "mongodb://u:a%2Fb%3Fc%3Ad@h:1/db");
        assert_eq!(full("mongodb://u:p@x/y@h:1/db?a=b@c"), "mongodb://u:p%40x%2Fy@h:1/db?a=b@c");
        assert_eq!(full("mongodb://u:50%@h"), "mongodb://u:50%25@h");
        assert_eq!(full("mongodb://h?replicaSet=rs"), "mongodb://h/?replicaSet=rs");
    }

    #[test]
    fn never_prints_the_password() {
        let uri = MongoUri::parse("mongodb://root:geheim@h:1/admin").unwrap();
        assert_eq!(uri.to_string(), "mongodb://root:***@h:1/admin");
        assert!(!format!("{uri:?}").contains("geheim"));
        assert_eq!(uri.hosts(), "h:1");
        let uri = MongoUri::parse("mongodb://h/?tls=true&tlsCertificateKeyFilePassword=geheim").unwrap();
        assert_eq!(uri.to_string(), "mongodb://h/?tls=true&tlsCertificateKeyFilePassword=***");
        assert!(uri.resolve().unwrap().ends_with("geheim"));
    }

    #[test]
    fn refuses_without_quoting_secrets() {
        for (text, part) in [
            ("http://h:1", "mongodb://"),
            ("mongodb://", "no host"),
            ("mongodb://u:geheim@", "host list"),
            ("mongodb://h:70000", "port"),
            ("mongodb://:geheim@h", "no user"),
            ("env:", "environment variable"),
        ] {
            let reason = MongoUri::parse(text).unwrap_err();
            assert!(reason.contains(part), "{text}: {reason}");
            assert!(!reason.contains("geheim"), "{reason}");
        }
    }

    #[test]
    fn resolves_late() {
        let uri = MongoUri::parse("env:OPLOGUE_TEST_NOT_SET").unwrap();
        assert_eq!(uri.to_string(), "env:OPLOGUE_TEST_NOT_SET");
        assert!(uri.resolve().unwrap_err().to_string().contains("OPLOGUE_TEST_NOT_SET"));
        let file = tempfile_with("mongodb://u:p@s@h\n");
        assert_eq!(full(&format!("file:{}", file.display())), "mongodb://u:p%40s@h");
        std::fs::remove_file(file).unwrap();
    }

    fn tempfile_with(text: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("oplogue-uri-{}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        path
    }
}
