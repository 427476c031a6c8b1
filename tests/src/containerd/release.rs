//! The releases of containerd that the tests know, and where their programs come from.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use crate::{skip, workspace};

/// A release of containerd: that of a Debian suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// What is installed here; 1.6 on Debian 12.
    Installed,
    /// Debian 13's: 1.7. Fetched.
    Trixie,
    /// Debian's next: 2.x. Fetched.
    Sid,
}

/// What fetching a suite's packages said: the directory with the programs, or why there is none.
type Fetched = Result<PathBuf, String>;

impl Release {
    /// All of them, oldest first.
    pub const ALL: [Self; 3] = [Self::Installed, Self::Trixie, Self::Sid];

    /// Why it cannot be run here, if it cannot.
    #[must_use]
    pub fn cannot(self) -> Option<String> {
        match self.dir() {
            None => ["containerd", "ctr", "runc"].into_iter().find_map(skip::program),
            Some(Ok(_)) => skip::program("runc"),
            Some(Err(reason)) => Some(format!("no containerd of Debian {self:?} can be had through apt: {reason}")),
        }
    }

    /// One of its programs, which finds its other programs.
    ///
    /// # Panics
    /// When the release is not there: ask [`Release::cannot`] first.
    #[must_use]
    pub fn command(self, program: &str) -> Command {
        let usual = "/usr/sbin:/usr/bin:/sbin:/bin";
        let (program, path) = match self.dir() {
            None => (PathBuf::from(program), usual.to_owned()),
            // Before the installed ones: containerd takes its shim from the path.
            Some(Ok(dir)) => (dir.join(program), format!("{}:{usual}", dir.display())),
            Some(Err(reason)) => panic!("{self:?}: {reason}"),
        };
        let mut command = Command::new(program);
        command.env_clear().env("PATH", path);
        command
    }

    /// Major and minor number of its version.
    ///
    /// # Panics
    /// When it does not tell.
    #[must_use]
    pub fn version(self) -> (u32, u32) {
        let out = self.command("containerd").arg("--version").output().expect("containerd starts");
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        version(&said).unwrap_or_else(|| panic!("no version in {said:?}"))
    }

    /// Where its programs are; `None` for those that are installed.
    fn dir(self) -> Option<&'static Fetched> {
        static SID: OnceLock<Fetched> = OnceLock::new();
        match self {
            Self::Installed => None,
            Self::Trixie => Some(trixie()),
            Self::Sid => Some(SID.get_or_init(|| fetch("sid", &["containerd"]))),
        }
    }
}

/// Fetches packages of a Debian suite into the target directory, where they stay, and answers the directory of their programs.
fn fetch(suite: &str, packages: &[&str]) -> Fetched {
    unpacked(&workspace::target().join("debian").join(format!("{}-{suite}", packages.join("-"))), suite, packages)
}

/// The programs of Debian 13, fetched.
fn trixie() -> &'static Fetched {
    static TRIXIE: OnceLock<Fetched> = OnceLock::new();
    TRIXIE.get_or_init(|| fetch("trixie", &["containerd", "soci-snapshotter"]))
}

/// `soci` of Debian 13's soci-snapshotter, fetched: it makes SOCI indexes, of version 1.
///
/// # Errors
/// Why it cannot be had.
pub fn soci() -> Result<PathBuf, String> {
    let bin = trixie().as_ref().map(|bin| bin.join("soci"));
    bin.map_err(|reason| format!("no soci can be had through apt: {reason}"))
}

/// `ctr-remote` of Debian 12's stargz-snapshotter, fetched: a client that pulls lazily from releases whose own `ctr` cannot.
///
/// # Errors
/// Why it cannot be had.
pub fn ctr_remote() -> Result<PathBuf, String> {
    static FETCHED: OnceLock<Fetched> = OnceLock::new();
    let bin = FETCHED.get_or_init(|| fetch("bookworm", &["stargz-snapshotter"])).clone();
    bin.map(|bin| bin.join("ctr-remote")).map_err(|reason| format!("no ctr-remote can be had through apt: {reason}"))
}

/// Unpacks packages of a suite into `dir`, unless that was done before, and answers its `usr/bin`.
fn unpacked(dir: &Path, suite: &str, packages: &[&str]) -> Fetched {
    let script = workspace::root().join("tests/scripts/containerd.sh");
    let out = Command::new(script).arg(dir).arg(suite).args(packages).output();
    let out = out.map_err(|error| format!("tests/scripts/containerd.sh: {error}"))?;
    let last = String::from_utf8_lossy(&out.stderr).lines().last().unwrap_or_default().to_owned();
    if out.status.success() { Ok(dir.join("usr/bin")) } else { Err(last) }
}

/// The first two numbers of the version in `containerd NAME VERSION ...`.
fn version(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.split_whitespace().nth(2)?.trim_start_matches('v').split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(
            version("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3"),
            Some((1, 6))
        );
        assert_eq!(version("containerd github.com/containerd/containerd/v2 2.1.9+unknown "), Some((2, 1)));
        assert_eq!(version("containerd"), None);
    }
}
