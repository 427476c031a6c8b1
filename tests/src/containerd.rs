//! A real containerd as a process under test: of several releases, with everything that it writes below one directory.
//!
//! What it needs on a machine without systemd and without CAP_SYS_RESOURCE: `restrict_oom_score_adj`, pods in the host's network (so no
//! CNI), a sandbox image from the test's own registry.

mod config;
mod family;
mod release;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::Signal;

pub use self::{
    config::Snapshotter,
    release::{Release, ctr_remote, soci},
};
use crate::{agent::Ended, layer_device::run, process::Process};

/// It is up within a second; a machine under load takes more.
const START: Duration = Duration::from_secs(120);

/// Where a containerd lives and how it is set up. Outlives the processes that are started in it.
#[derive(Debug, Clone)]
pub struct Place {
    release: Release,
    dir: PathBuf,
    /// `address:port` of the one registry that it knows.
    registry: String,
    /// Reference of the image that holds a pod's namespaces.
    sandbox: String,
    snapshotter: Snapshotter,
}

impl Place {
    /// A containerd of `release` in `dir`, with images from `registry`, where `sandbox` is the image that keeps pods.
    ///
    /// # Panics
    /// When its files cannot be written.
    #[must_use]
    pub fn new(release: Release, dir: &Path, (registry, sandbox): (&str, &str), snapshotter: Snapshotter) -> Self {
        fs::create_dir_all(dir).expect("a directory");
        let dir = dir.canonicalize().expect("a directory");
        let place = Self { release, dir, registry: registry.to_owned(), sandbox: sandbox.to_owned(), snapshotter };
        for name in ["opt", "cni-bin", "cni-conf", "logs", "runc"] {
            fs::create_dir_all(place.dir.join(name)).expect("a directory");
        }
        config::write(&place);
        place
    }

    /// Its gRPC socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    /// Which release runs.
    #[must_use]
    pub fn release(&self) -> Release {
        self.release
    }

    /// Its main config.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    /// Its persistent directory: content store, metadata, what its own snapshotters keep.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// Its directory of running things, which a reboot empties.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Where pods' logs go.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// Where it is told how to reach registries.
    #[must_use]
    pub fn hosts(&self) -> PathBuf {
        self.dir.join("certs.d")
    }

    /// The cgroup below which its containers are.
    #[must_use]
    pub fn cgroup(&self) -> String {
        // The directory's own name is unique on this machine.
        let name = self.dir.parent().and_then(Path::file_name).unwrap_or_default();
        format!("/{}", name.to_string_lossy())
    }

    /// The snapshotter that it uses.
    #[must_use]
    pub fn snapshotter(&self) -> &str {
        self.snapshotter.name()
    }

    /// A rootfs directory of a running container, as the host sees it.
    #[must_use]
    pub fn rootfs(&self, namespace: &str, container: &str) -> PathBuf {
        self.state().join("io.containerd.runtime.v2.task").join(namespace).join(container).join("rootfs")
    }

    /// Blobs in its content store, by digest, smallest first, with their sizes in bytes.
    ///
    /// # Panics
    /// When the store cannot be read.
    #[must_use]
    pub fn content(&self) -> Vec<(u64, String)> {
        let dir = self.root().join("io.containerd.content.v1.content/blobs/sha256");
        let entries = fs::read_dir(dir).into_iter().flatten().map(|entry| entry.expect("a blob"));
        let sized = |entry: fs::DirEntry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (entry.metadata().expect("a blob's size").len(), format!("sha256:{name}"))
        };
        let mut blobs: Vec<_> = entries.map(sized).collect();
        blobs.sort();
        blobs
    }

    /// Runs `ctr` in `namespace`, and answers how it ended.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn ctr(&self, namespace: &str, arguments: &[&str]) -> Ended {
        ended(self.ctr_command(namespace).args(arguments))
    }

    /// `ctr` in `namespace`, to be started by the caller.
    #[must_use]
    pub fn ctr_command(&self, namespace: &str) -> Command {
        let mut ctr = self.release.command("ctr");
        ctr.arg("-a").arg(self.socket()).args(["-n", namespace]);
        ctr
    }

    /// Runs `ctr run` of `image` in `namespace` as the container `name`, with more flags; `command` empty is the image's own.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn run(&self, namespace: &str, of: (&str, &str), flags: &[&str], command: &[&str]) -> Ended {
        ended(&mut self.run_command(namespace, of, flags, command))
    }

    /// As [`Place::run`], to be started by the caller.
    #[must_use]
    pub fn run_command(
        &self,
        namespace: &str,
        (image, name): (&str, &str),
        flags: &[&str],
        command: &[&str],
    ) -> Command {
        let mut ctr = self.ctr_command(namespace);
        ctr.args(["run", "--snapshotter", self.snapshotter(), "--cgroup"]).arg(format!("{}/ctr", self.cgroup()));
        ctr.arg("--runc-root").arg(self.dir.join("runc")).args(flags).args([image, name]).args(command);
        ctr
    }

    /// Calls `see` with the tree that a container of an image in `namespace` begins with, by `snapshotter`, mounted in `dir`.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn shown<T>(
        &self,
        (namespace, snapshotter): (&str, &str),
        (reference, dir): (&str, &Path),
        see: impl FnOnce(&Path) -> T,
    ) -> T {
        const NAME: &str = "shown";
        // A snapshot that no container holds is collected at any time.
        let create = ["containers", "create", "--snapshotter", snapshotter, reference, NAME];
        let _ = self.ctr(namespace, &create).ok();
        let target = dir.to_str().expect("UTF-8");
        let mount = self.ctr(namespace, &["snapshots", "--snapshotter", snapshotter, "mounts", target, NAME]).ok();
        let sh = |command: &str| run(Command::new("sh").args(["-e", "-c", command, target]));
        sh(&mount);
        let seen = see(dir);
        sh("umount \"$0\"");
        let _ = self.ctr(namespace, &["containers", "rm", NAME]).ok();
        seen
    }

    /// The digest of an image by containerd's own list.
    ///
    /// # Panics
    /// When it is not there.
    #[must_use]
    pub fn digest(&self, namespace: &str, reference: &str) -> String {
        let listed = self.ctr(namespace, &["images", "ls", &format!("name=={reference}")]).ok();
        let digest = listed.split_whitespace().find(|word| word.starts_with("sha256:"));
        digest.unwrap_or_else(|| panic!("{reference} in {listed}")).to_owned()
    }

    /// Starts it and waits until it serves.
    ///
    /// # Panics
    /// When it ends or does not serve in time.
    #[must_use]
    pub fn start(&self) -> Containerd {
        Containerd { process: Some(self.spawn()), place: self.clone() }
    }

    fn spawn(&self) -> Process {
        let mut command = self.release.command("containerd");
        let process = Process::start("containerd", command.arg("-c").arg(self.config()));
        let up = process.wait_for(START, START, |lines| {
            lines.iter().any(|line| line.contains("containerd successfully booted")).then_some(())
        });
        assert!(up.is_some(), "containerd does not start");
        process
    }
}

/// Runs a command to its end.
fn ended(command: &mut Command) -> Ended {
    let out = command.output().expect("ctr starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended { code: out.status.code(), stdout: text(&out.stdout), stderr: text(&out.stderr) }
}

/// A running containerd. Dropping it ends it and all that it started.
#[derive(Debug)]
pub struct Containerd {
    process: Option<Process>,
    place: Place,
}

impl Containerd {
    /// Where it lives.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// What it has printed since it was started last.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.process.as_ref().map(Process::lines).unwrap_or_default()
    }

    /// Waits until `found` finds something; asked again with each line of the log and each `tick`.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn until<T>(&self, mut found: impl FnMut() -> Option<T>) -> T {
        let process = self.process.as_ref().expect("containerd runs");
        process.wait_for(START, Duration::from_millis(50), |_| found()).expect("what is waited for comes")
    }

    /// SIGTERM; its containers stay.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop(&mut self) {
        let mut process = self.process.take().expect("containerd runs");
        process.signal(Signal::TERM);
        assert!(process.wait(START).is_some(), "containerd does not end");
    }

    /// Stops it and starts it again; its containers stay.
    ///
    /// # Panics
    /// When it does not end, or does not come up.
    pub fn restart(&mut self) {
        self.stop();
        self.process = Some(self.place.spawn());
    }

    /// Ends it and all processes that it started, at once, and takes away what a reboot takes away: mounts below its directory and
    /// the state of running things. [`Place::start`] then finds what a containerd finds after a reboot.
    ///
    /// # Panics
    /// When a process does not end or a file stays.
    pub fn power_off(mut self) {
        self.end();
        crate::workdir::unmount_below(&self.place.dir);
        for dir in [self.place.state(), self.place.dir.join("runc")] {
            fs::remove_dir_all(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        }
        fs::create_dir_all(self.place.dir.join("runc")).expect("a directory");
    }

    fn end(&mut self) {
        // First, so that nothing new is started.
        if let Some(mut process) = self.process.take() {
            process.kill_alone();
        }
        family::end(&self.place.socket());
        family::remove_cgroup(&self.place.cgroup());
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(process) = &self.process
        {
            eprintln!("--- containerd's warnings ---");
            let notable = |line: &&String| line.contains("level=error") || line.contains("level=warn");
            process.lines().iter().filter(notable).for_each(|line| eprintln!("{line}"));
        }
        self.end();
    }
}
