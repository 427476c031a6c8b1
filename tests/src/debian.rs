//! A clean Debian in a directory, for what changes a whole system: packages, and guides that are followed to the letter.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use crate::{agent::Ended, skip, workdir::Workdir, workspace};

/// The directory that every [`Debian`] begins as, or why there is none.
fn base() -> Result<&'static Path, String> {
    static BASE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let base = BASE.get_or_init(|| {
        let dir = workspace::target().join("debian/clean");
        let script = workspace::root().join("tests/scripts/debian.sh");
        let out = Command::new(script).arg(&dir).stdin(Stdio::null()).output();
        let out = out.map_err(|error| format!("tests/scripts/debian.sh: {error}"))?;
        let said = String::from_utf8_lossy(&out.stderr);
        let last = said.lines().last().unwrap_or_default();
        if out.status.success() {
            Ok(dir)
        } else {
            Err(format!("no clean Debian can be had through mmdebstrap: {last}"))
        }
    });
    base.as_deref().map_err(Clone::clone)
}

/// Why there can be none here.
#[must_use]
pub fn cannot() -> Option<String> {
    skip::root().or_else(|| skip::program("mmdebstrap")).or_else(|| base().err())
}

/// The clean one itself, with python3, without anything mounted in it. It is everybody's: nobody may write there.
///
/// # Panics
/// When there is none: ask [`cannot`] first.
#[must_use]
pub fn clean() -> &'static Path {
    base().expect("a clean Debian, asked for with `cannot`")
}

/// A root directory of its own, with `/proc`, `/sys` and this machine's devices. What is written there is gone with it.
#[derive(Debug)]
pub struct Debian {
    root: PathBuf,
    // Undoes the mounts.
    _work: Workdir,
}

impl Debian {
    /// A clean one, as after its installation.
    ///
    /// # Panics
    /// When it cannot be mounted: ask [`cannot`] first.
    #[must_use]
    pub fn new() -> Self {
        let work = Workdir::new();
        let (root, upper, scratch) = (work.dir("root"), work.dir("upper"), work.dir("scratch"));
        let base = base().expect("a clean Debian, asked for with `cannot`");
        let layers = format!("lowerdir={},upperdir={},workdir={}", base.display(), upper.display(), scratch.display());
        let mount = |arguments: &[&str], target: &Path| {
            let mut command = Command::new("mount");
            let status = command.args(arguments).arg(target).status().expect("mount starts");
            assert!(status.success(), "{command:?}");
        };
        mount(&["-t", "overlay", "overlay", "-o", &layers], &root);
        mount(&["-t", "proc", "proc"], &root.join("proc"));
        mount(&["-t", "tmpfs", "run"], &root.join("run"));
        // overlayfs does not stand on overlayfs, and containers' do on this.
        let (containerd, shown) = (work.dir("containerd"), work.dir("root/var/lib/containerd"));
        mount(&["--bind", &containerd.display().to_string()], &shown);
        for dir in ["dev", "sys"] {
            mount(&["--rbind", &format!("/{dir}")], &root.join(dir));
            // What is unmounted there stays mounted here.
            mount(&["--make-rslave"], &root.join(dir));
        }
        Self { root, _work: work }
    }

    /// Its root directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path in it, as this machine has it.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        self.root.join(inside.trim_start_matches('/'))
    }

    /// Whether there is something at a path in it.
    #[must_use]
    pub fn has(&self, inside: &str) -> bool {
        fs::symlink_metadata(self.path(inside)).is_ok()
    }

    /// The text of a file in it.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn text(&self, inside: &str) -> String {
        fs::read_to_string(self.path(inside)).unwrap_or_else(|error| panic!("{inside}: {error}"))
    }

    /// Puts a program at a path in it, in the place of what is there.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn program(&self, inside: &str, script: &str) {
        let path = self.path(inside);
        // Not through a link: an absolute one leads out of the root, to this machine's own.
        if fs::symlink_metadata(&path).is_ok() {
            fs::remove_file(&path).expect("what is there goes");
        }
        fs::write(&path, script).expect("a program");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
    }

    /// A command that runs in it, as root, with none of the caller's settings.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("chroot");
        command.arg(&self.root).args(words).stdin(Stdio::null()).env_clear();
        command.envs([
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("HOME", "/root"),
            ("LC_ALL", "C.UTF-8"),
            ("DEBIAN_FRONTEND", "noninteractive"),
        ]);
        command
    }

    /// Runs a line of shell in it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn sh(&self, line: &str) -> Ended {
        let out = self.command(&["sh", "-c", line]).output().expect("chroot starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ended { code: out.status.code(), stdout: text(&out.stdout), stderr: text(&out.stderr) }
    }
}

impl Default for Debian {
    fn default() -> Self {
        Self::new()
    }
}
