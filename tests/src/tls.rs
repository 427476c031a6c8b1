//! A private certificate authority, made with the `openssl` program, for servers on loopback.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A certificate authority of one test, and what it has signed, in files.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
}

/// A server's certificate and its key, in PEM files.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Authority {
    /// A new authority with its files in `dir`.
    ///
    /// # Panics
    /// When `openssl` fails.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        fs::create_dir_all(&dir).expect("a directory");
        let this = Self { dir };
        let subject = ["-subj", "/CN=penstock test authority"];
        let mut command = this.openssl(&["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
        command.args(["-nodes", "-days", "2", "-keyout", "ca.key", "-out", "ca.pem"]).args(subject);
        run(command.args(["-addext", "basicConstraints=critical,CA:TRUE"]));
        this
    }

    /// The authority's own certificate, which clients must trust.
    #[must_use]
    pub fn bundle(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// A certificate for a server at 127.0.0.1 and localhost.
    ///
    /// # Panics
    /// When `openssl` fails.
    #[must_use]
    pub fn issue(&self, name: &str) -> Certificate {
        let (key, request, certificate) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        let mut command = self.openssl(&["req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]);
        run(command.args(["-keyout", &key, "-out", &request]));
        fs::write(self.dir.join("names"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n").expect("a file");
        let mut command = self.openssl(&["x509", "-req", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]);
        run(command.args(["-days", "2", "-extfile", "names", "-in", &request, "-out", &certificate]));
        Certificate { certificate: self.dir.join(certificate), key: self.dir.join(key) }
    }

    fn openssl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("openssl");
        command.current_dir(&self.dir).args(arguments);
        command
    }
}

impl Certificate {
    /// The certificate in DER, base64: one element of a token's `x5c`.
    ///
    /// # Panics
    /// When the file is not as `openssl` wrote it.
    #[must_use]
    pub fn base64(&self) -> String {
        let pem = fs::read_to_string(&self.certificate).expect("a certificate");
        let body = pem.split("-----").nth(2).expect("a PEM body");
        body.split_whitespace().collect()
    }

    /// Signs `text` with RSA and SHA-256 (PKCS #1 v1.5), as a token's RS256.
    ///
    /// # Panics
    /// When `openssl` fails.
    #[must_use]
    pub fn sign(&self, text: &str, scratch: &Path) -> Vec<u8> {
        fs::write(scratch, text).expect("a file");
        let mut command = Command::new("openssl");
        run(command.args(["dgst", "-sha256", "-sign"]).arg(&self.key).arg(scratch))
    }
}

/// The standard output of a command that must succeed.
pub(crate) fn run(command: &mut Command) -> Vec<u8> {
    let out = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}
