//! MongoShake's command line, turned into ours before it is parsed.
//!
//! MongoShake's flags follow Go's habits: one dash or two, `-flag=value` or `-flag value`. Its guide calls
//! `collector.linux -conf=collector.conf -verbose`, from a version in which `-verbose` took no value; later ones take 0,
//! 1 or 2. Both are read. A command line that begins with a command of ours is returned as it is.

use std::ffi::OsString;

/// The flags of MongoShake's `collector`.
#[derive(Debug, Default)]
struct MongoShakeArgs {
    conf: Option<String>,
    verbose: Option<u8>,
    version: bool,
}

/// Rewrites MongoShake's form (`-conf=FILE -verbose 1`) to ours (`run -c FILE --verbose 1`); leaves ours alone.
///
/// # Errors
/// A sentence for the operator when a line begins like MongoShake's but holds something that MongoShake does not know.
pub fn rewrite(args: Vec<OsString>) -> Result<Vec<OsString>, String> {
    let first = args.get(1).and_then(|arg| arg.to_str()).unwrap_or_default();
    if !flag(first).is_some_and(|(name, _)| matches!(name, "conf" | "verbose" | "version")) {
        return Ok(args);
    }
    let words = args
        .iter()
        .skip(1)
        .map(|arg| arg.to_str().map(str::to_owned).ok_or_else(|| format!("{} is not valid UTF-8", arg.display())))
        .collect::<Result<Vec<_>, _>>()?;
    let read = read(&words)?;
    let program = args.into_iter().next().unwrap_or_else(|| OsString::from("oplogue"));
    let mut ours = vec![program];
    if read.version {
        ours.push("version".into());
        return Ok(ours);
    }
    let conf = read.conf.ok_or("-conf=FILE is missing: the configuration file")?;
    ours.extend(["run".into(), "--config".into(), OsString::from(conf)]);
    if let Some(level) = read.verbose {
        ours.extend(["--verbose".into(), OsString::from(level.to_string())]);
    }
    Ok(ours)
}

fn read(words: &[String]) -> Result<MongoShakeArgs, String> {
    let mut read = MongoShakeArgs::default();
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        let (name, value) = flag(word).ok_or_else(|| unknown(word))?;
        match name {
            "conf" => {
                let value = value.map(str::to_owned).or_else(|| words.next().cloned());
                read.conf = Some(value.filter(|v| !v.is_empty()).ok_or("-conf needs a file")?);
            }
            "verbose" => {
                let value = value.map(str::to_owned).or_else(|| words.next_if(|next| flag(next).is_none()).cloned());
                read.verbose = Some(verbosity(value.as_deref())?);
            }
            "version" => read.version = true,
            _ => return Err(unknown(word)),
        }
    }
    Ok(read)
}

/// Name and value of `-name`, `--name`, `-name=value`; `None` for anything else.
fn flag(word: &str) -> Option<(&str, Option<&str>)> {
    let body = word.strip_prefix("--").or_else(|| word.strip_prefix('-'))?;
    match body.split_once('=') {
        Some((name, value)) => Some((name, Some(value))),
        None => Some((body, None)),
    }
}

fn verbosity(value: Option<&str>) -> Result<u8, String> {
    match value {
        // The guide's form: show the log on the screen as well.
        None | Some("true" | "1") => Ok(1),
        Some("false" | "0") => Ok(0),
        Some("2") => Ok(2),
        Some(other) => Err(format!("-verbose {other}: must be 0 (log file), 1 (file and screen) or 2 (screen only)")),
    }
}

fn unknown(word: &str) -> String {
    format!(
        "{word} is not a flag of MongoShake's collector: -conf=FILE, -verbose [0|1|2], -version (see also oplogue --help)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(line: &str) -> Result<String, String> {
        let args = rewrite(line.split_whitespace().map(OsString::from).collect())?;
        Ok(args.iter().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn every_form_of_mongoshake_becomes_ours() {
        let cases = [
            ("c.linux -conf=a.conf -verbose", "c.linux run --config a.conf --verbose 1"),
            ("c.linux -conf a.conf", "c.linux run --config a.conf"),
            ("c --conf=a.conf --verbose 2", "c run --config a.conf --verbose 2"),
            ("c -verbose -conf=a.conf", "c run --config a.conf --verbose 1"),
            ("c -verbose 0 -conf a.conf", "c run --config a.conf --verbose 0"),
            ("c -conf=a.conf -verbose=2", "c run --config a.conf --verbose 2"),
            ("c -conf=a.conf -verbose=true", "c run --config a.conf --verbose 1"),
            ("c -conf=a=b.conf", "c run --config a=b.conf"),
            ("c -version", "c version"),
            ("c -conf=a.conf -version", "c version"),
            ("c --version", "c version"),
        ];
        for (given, wanted) in cases {
            assert_eq!(rewritten(given).as_deref(), Ok(wanted), "{given}");
        }
    }

    #[test]
    fn ours_is_left_alone() {
        for line in ["oplogue", "oplogue run -c a.toml", "oplogue --help", "oplogue -h", "oplogue stat --port 9100"] {
            assert_eq!(rewritten(line).as_deref(), Ok(line));
        }
    }

    #[test]
    fn a_mistake_is_named() {
        for (line, part) in [
            ("c -conf", "-conf needs a file"),
            ("c -conf=", "-conf needs a file"),
            ("c -verbose 1", "-conf=FILE is missing"),
            ("c -conf=a -verbose 7", "-verbose 7"),
            ("c -conf=a -daemon", "-daemon is not a flag"),
            ("c -conf=a extra", "extra is not a flag"),
        ] {
            let error = rewritten(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
