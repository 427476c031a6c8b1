//! The processes that a containerd started and that outlive it: its shims, their containers, and the cgroups of those.

use std::{
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

/// Longest time in which a process dies of SIGKILL.
const DEATH: Duration = Duration::from_secs(60);

/// Kills what the containerd at `socket` started, containers before their shims, and waits until they are gone.
pub(super) fn end(socket: &Path) {
    for shim in shims(socket) {
        for child in children(shim) {
            kill(child);
        }
        kill(shim);
    }
}

/// The shims of that containerd: each was told its socket.
fn shims(socket: &Path) -> Vec<Pid> {
    let is_shim = |pid: &Pid| {
        let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|&byte| byte == 0).collect();
        words[0].ends_with(b"containerd-shim-runc-v2") && words.contains(&socket.as_os_str().as_bytes())
    };
    let entries = fs::read_dir("/proc").expect("/proc is mounted").filter_map(Result::ok);
    entries.filter_map(|entry| pid(&entry.file_name().to_string_lossy())).filter(is_shim).collect()
}

fn pid(text: &str) -> Option<Pid> {
    Pid::from_raw(text.parse().ok()?)
}

/// The children of all threads of `parent`.
fn children(parent: Pid) -> Vec<Pid> {
    let tasks = fs::read_dir(format!("/proc/{}/task", parent.as_raw_nonzero())).into_iter().flatten();
    let lists = tasks.filter_map(Result::ok).filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(pid).collect::<Vec<_>>()).collect()
}

fn kill(pid: Pid) {
    // Gone already is as good.
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    let _ = pidfd_send_signal(&process, Signal::KILL);
    let patience = Timespec::try_from(DEATH).expect("a sane limit");
    let gone = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience));
    if gone != Ok(1) {
        // Not a panic: this runs in drops.
        eprintln!("process {} does not die of SIGKILL: {gone:?}", pid.as_raw_nonzero());
    }
}

/// Removes the cgroups `name` and below it in every hierarchy; they hold no process any more.
pub(super) fn remove_cgroup(name: &str) {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().filter_map(Result::ok);
    let below = |dir: PathBuf| dir.join(name.trim_start_matches('/'));
    for dir in hierarchies.map(|entry| below(entry.path())).chain([below("/sys/fs/cgroup".into())]) {
        remove_dirs(&dir);
    }
}

/// Removes a tree of cgroups: its directories alone, deepest first.
fn remove_dirs(dir: &Path) {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .for_each(|entry| remove_dirs(&entry.path()));
    let _ = fs::remove_dir(dir);
}
