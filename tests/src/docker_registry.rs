//! Debian's `docker-registry` as a process on loopback: the real registry of the whole-system tests.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::Signal;

use crate::{
    process::Process,
    push::Repository,
    token_server::{ISSUER, SERVICE},
    workdir::Workdir,
};

/// A registry takes a fraction of a second to come up; a machine under load takes more.
const START: Duration = Duration::from_secs(60);

/// Who may use a registry that is [`DockerRegistry::with_password`].
pub const USER: &str = "kubelet";
/// And their password there.
pub const PASSWORD: &str = "Kubelets-own-password";
/// Its bcrypt, of the least cost: the registry compares with each request.
const BCRYPT: &str = "$2b$04$lpJ4IjFJRQbvuZTIyuVLBOCFBasw7Ut6BudAm7ZLiBpVxAB11AMCW";

/// A running registry with its own storage and its log of requests.
#[derive(Debug)]
pub struct DockerRegistry {
    process: Process,
    host: String,
    storage: PathBuf,
    /// What its config says about who may use it.
    auth: String,
    dir: Workdir,
}

/// A request as the registry logged it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// Such as GET.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Status of the answer.
    pub status: u16,
    /// Bytes of the answer's body.
    pub bytes: u64,
}

impl DockerRegistry {
    /// Starts it on a port chosen by the kernel, with empty storage; returns once it listens.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start() -> Self {
        let dir = Workdir::new();
        Self::over(dir.dir("storage"), dir, "")
    }

    /// A second registry over what is in this one, which gives bytes only for tokens of `issuer` (a [`crate::token_server`]) whose
    /// certificate is `bundle`; clients are sent to `realm` for them.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn with_tokens(&self, realm: &str, bundle: &Path) -> Self {
        let auth = format!(
            "auth: {{token: {{realm: '{realm}', service: {SERVICE}, issuer: {ISSUER}, rootcertbundle: {}}}}}\n",
            bundle.display()
        );
        Self::over(self.storage.clone(), Workdir::new(), &auth)
    }

    /// A second registry over what is in this one, which gives bytes only to [`USER`] with [`PASSWORD`].
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn with_password(&self) -> Self {
        let dir = Workdir::new();
        let file = dir.join("htpasswd");
        fs::write(&file, format!("{USER}:{BCRYPT}\n")).expect("the registry's users");
        let auth = format!("auth: {{htpasswd: {{realm: tests, path: {}}}}}\n", file.display());
        Self::over(self.storage.clone(), dir, &auth)
    }

    fn over(storage: PathBuf, dir: Workdir, auth: &str) -> Self {
        let (process, host) = Self::run(&storage, &dir, auth);
        Self { process, host, storage, auth: auth.to_owned(), dir }
    }

    /// A process on a port chosen by the kernel, and its address.
    fn run(storage: &Path, dir: &Workdir, auth: &str) -> (Process, String) {
        let config = format!(
            "version: 0.1\nlog: {{level: info, accesslog: {{disabled: false}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
             http: {{addr: '127.0.0.1:0'}}\n{auth}",
            storage.display()
        );
        fs::write(dir.join("config.yml"), config).expect("the registry's config");
        let mut command = Command::new("docker-registry");
        let process = Process::start(
            "docker-registry",
            command.arg("serve").arg(dir.join("config.yml")).env("OTEL_TRACES_EXPORTER", "none"),
        );
        let host = process.wait_for(START, START, |lines| lines.iter().find_map(|line| listening(line)));
        let Some(host) = host else { panic!("docker-registry does not listen: {:?}", process.lines()) };
        (process, host)
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// A repository of it.
    #[must_use]
    pub fn repository(&self, name: &str) -> Repository {
        Repository { host: self.host.clone(), name: name.to_owned() }
    }

    /// The requests answered so far, in the order of their ends. A request stands in the log once its answer was sent, so a reader
    /// that has its bytes may be ahead of the log: compare with [`DockerRegistry::settled`].
    #[must_use]
    pub fn logged(&self) -> Vec<Logged> {
        self.process.lines().iter().filter_map(|line| logged(line)).collect()
    }

    /// The requests logged before a marker request that is sent now.
    ///
    /// # Panics
    /// When the registry does not answer the marker.
    #[must_use]
    pub fn settled(&self) -> Vec<Logged> {
        let nth = self.logged().len();
        let path = format!("/v2/?settled={nth}");
        crate::http::Request::get(&path).to_host(&self.host).expect("the registry answers");
        self.logged_when(|logged| logged.iter().any(|request| request.path == path))
    }

    fn logged_when(&self, ready: impl Fn(&[Logged]) -> bool) -> Vec<Logged> {
        let seen = self.process.wait_for(START, START, |lines| {
            let logged: Vec<Logged> = lines.iter().filter_map(|line| logged(line)).collect();
            ready(&logged).then_some(logged)
        });
        without_markers(seen.expect("the log shows what is waited for"))
    }

    /// Stops its process where it stands (SIGSTOP): it takes connections, and answers nothing.
    pub fn pause(&self) {
        self.process.signal(Signal::STOP);
    }

    /// Lets a paused one go on.
    pub fn resume(&self) {
        self.process.signal(Signal::CONT);
    }

    /// Stops it, as a registry that goes away.
    pub fn stop(&mut self) {
        self.process.kill();
    }

    /// Starts it again with what it stores, at another address.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn restart(&mut self) {
        self.stop();
        (self.process, self.host) = Self::run(&self.storage, &self.dir, &self.auth);
    }
}

fn without_markers(mut logged: Vec<Logged>) -> Vec<Logged> {
    logged.retain(|request| !request.path.starts_with("/v2/?settled="));
    logged
}

/// The address in docker-registry's `listening on ADDRESS` line.
fn listening(line: &str) -> Option<String> {
    let rest = line.split_once("listening on ")?.1;
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':').unwrap_or(rest.len());
    Some(rest[..end].to_owned())
}

/// A line in the combined log format: `ADDRESS - - [TIME] "METHOD PATH HTTP/1.1" STATUS BYTES "REFERRER" "AGENT"`.
fn logged(line: &str) -> Option<Logged> {
    let (_, rest) = line.split_once("] \"")?;
    let (request, rest) = rest.split_once("\" ")?;
    let [method, path, _] = request.split(' ').collect::<Vec<_>>()[..] else { return None };
    let mut numbers = rest.split(' ');
    let status = numbers.next()?.parse().ok()?;
    let bytes = numbers.next()?.parse().ok()?;
    Some(Logged { method: method.to_owned(), path: path.to_owned(), status, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_are_read() {
        let line = r#"127.0.0.1 - - [22/Nov/2026:10:00:00 +0000] "GET /v2/a/blobs/sha256:00 HTTP/1.1" 206 65536 "" "penstock/0.1""#;
        let path = "/v2/a/blobs/sha256:00".to_owned();
        assert_eq!(logged(line), Some(Logged { method: "GET".to_owned(), path, status: 206, bytes: 65536 }));
        assert_eq!(logged("time=\"2026\" level=info msg=\"x\""), None);
        let line = r#"time="2026-11-22" level=info msg="listening on 127.0.0.1:4567" go.version=go1.19"#;
        assert_eq!(listening(line).as_deref(), Some("127.0.0.1:4567"));
    }

    #[test]
    fn a_pushed_blob_is_served_in_ranges_and_logged() {
        crate::require!(crate::skip::program("docker-registry"));
        let registry = DockerRegistry::start();
        let digest = registry.repository("some/name").blob(b"0123456789");
        let path = format!("/v2/some/name/blobs/{digest}");
        let answer = crate::http::Request::get(&path).to_host(registry.host()).unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (200, b"0123456789".as_slice()));
        let gets = registry.settled().into_iter().filter(|request| request.method == "GET");
        assert_eq!(gets.map(|get| (get.path, get.bytes)).collect::<Vec<_>>(), [(path, 10)]);
    }
}
