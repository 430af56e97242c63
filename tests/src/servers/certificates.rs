//! A certificate authority for one test, and the server's certificate that it signed.
//!
//! Made with the machine's `openssl`, anew for every test, so that no key lies in the repository and none runs out.
//! The certificate names 127.0.0.1 and serves both ends, because members of a set are each other's clients.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, Result};

use crate::paths::Scratch;

/// The files of one authority; they go with the last handle.
#[derive(Debug, Clone)]
pub struct Certificates {
    dir: Arc<Scratch>,
}

impl Certificates {
    /// Makes an authority and a server's certificate.
    ///
    /// # Errors
    /// When `openssl` is not there or refuses.
    pub fn generate() -> Result<Self> {
        let dir = Scratch::new("certificates")?;
        let path = dir.path();
        let extensions = "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n";
        std::fs::write(path.join("extensions"), extensions).context("write the certificate's extensions")?;
        let key = "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        openssl(path, &format!("{key} -x509 -keyout ca.key -out ca.pem -days 30 -subj /CN=oplogue-tests"))?;
        openssl(path, &format!("{key} -keyout server.key -out server.csr -subj /O=oplogue/CN=127.0.0.1"))?;
        let sign = "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.crt -days 30";
        openssl(path, &format!("{sign} -extfile extensions"))?;
        let both = [std::fs::read(path.join("server.key"))?, std::fs::read(path.join("server.crt"))?].concat();
        std::fs::write(path.join("server.pem"), both).context("write the server's certificate")?;
        Ok(Self { dir: Arc::new(dir) })
    }

    /// The authority's certificate, PEM.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// What a server that takes nothing but TLS is started with.
    pub(super) fn arguments(&self) -> Vec<String> {
        let server = self.dir.path().join("server.pem");
        vec![
            "--tlsMode=requireTLS".to_owned(),
            "--tlsAllowConnectionsWithoutCertificates".to_owned(),
            format!("--tlsCertificateKeyFile={}", server.display()),
            format!("--tlsCAFile={}", self.authority().display()),
        ]
    }
}

fn openssl(dir: &Path, arguments: &str) -> Result<()> {
    let mut command = Command::new("openssl");
    command.args(arguments.split(' ')).current_dir(dir).stdin(Stdio::null());
    let output = command.output().context("run openssl")?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "openssl {arguments}: {said}");
    Ok(())
}
