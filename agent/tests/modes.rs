//! What the real agent leaves on disk, and who can read it.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use penstock_agent::client::Client;
use penstock_registry::Registry;

/// Ends the agent, whatever becomes of the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ended = self.0.wait();
    }
}

/// Starts the agent with the umask that hides nothing, and waits until it says that it is ready.
fn start(dir: &Path) -> Running {
    let program = env!("CARGO_BIN_EXE_penstock");
    let script = format!(
        "umask 000; exec {program} agent --device-transport fuse --state-dir {0}/state --cache-dir {0}/cache --socket {0}/run/s",
        dir.display()
    );
    let mut child = Command::new("sh").args(["-c", &script]).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let running = Running(child);
    assert!(lines.map_while(Result::ok).any(|line| line.contains("is ready on")), "the agent did not start");
    running
}

/// Everything below `dir` with its mode, but for what is mounted there.
fn walk(dir: &Path, found: &mut Vec<(PathBuf, u32)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        found.push((path.clone(), metadata.permissions().mode() & 0o7777));
        if metadata.is_dir() && !path.ends_with("state/fuse") {
            walk(&path, found);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_the_agent_writes_can_be_read_by_others_whatever_the_umask() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(dir.path());
    if rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists() {
        let registry = Registry::start(penstock_registry::Config::default()).await.unwrap();
        let layout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/overlaybd/oci-layout");
        registry.load_layout(&layout, "fixtures/overlaybd").await.unwrap();
        let request = penstock_api::Attach {
            reference: format!("{}/fixtures/overlaybd:obd-lz4", registry.host()),
            mount: None,
            transport: penstock_api::Wanted::Auto,
            platform: None,
            require_verified: false,
            policy: penstock_api::PolicyChange::default(),
        };
        Client::new(dir.path().join("run/s")).attach(&request).await.unwrap();
    } else {
        println!("skipped: an attachment's files: needs root and /dev/fuse");
    }
    let mut found = Vec::new();
    walk(dir.path(), &mut found);
    assert!(found.len() > 8, "{found:?}");
    for (path, mode) in found {
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:04o}", path.display());
    }
    // A process whose memory others of its user may not read belongs to root in /proc.
    let limits = fs::read_to_string(format!("/proc/{}/status", running.0.id())).unwrap();
    assert!(limits.contains("Umask:\t0077"), "{limits}");
}
