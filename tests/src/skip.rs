//! Skips that are seen: a test that cannot run here says so in a line which `make test` collects and counts.

use std::{path::Path, process::Command};

/// Prints `skipped: NAME: REASON`, the line that `make test` collects, and returns from the test.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        println!("skipped: {}: {}", $crate::skip::test_name(), format_args!($($reason)*));
        return;
    }};
}

/// Skips the test unless every requirement given (each an `Option<String>`: why not) is met.
#[macro_export]
macro_rules! require {
    ($($requirement:expr),+ $(,)?) => {
        $(if let Some(reason) = $requirement { $crate::skip!("{reason}"); })+
    };
}

/// The running test's name: libtest names its threads so.
#[must_use]
pub fn test_name() -> String {
    std::thread::current().name().unwrap_or("a test").to_owned()
}

/// Why this process is not root, if it is not.
#[must_use]
pub fn root() -> Option<String> {
    (!rustix::process::geteuid().is_root()).then(|| "needs root to mount".to_owned())
}

/// Why `program` cannot be run, if it cannot.
#[must_use]
pub fn program(program: &str) -> Option<String> {
    let found = Command::new("sh").args(["-c", "command -v -- \"$0\"", program]).output();
    let missing = found.is_err() || found.is_ok_and(|out| !out.status.success());
    missing.then(|| format!("{program} is not installed (`make test` as root installs it)"))
}

/// Why FUSE cannot be used, if it cannot.
#[must_use]
pub fn fuse() -> Option<String> {
    let open = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    open.err().map(|error| format!("/dev/fuse cannot be opened: {error}"))
}

/// Why loop devices cannot be made, if they cannot.
#[must_use]
pub fn loop_devices() -> Option<String> {
    (!Path::new("/dev/loop-control").exists()).then(|| "this kernel has no loop devices (/dev/loop-control)".to_owned())
}

/// Why the kernel cannot mount `filesystem`, if it does not know it now and no module is there to be loaded.
#[must_use]
pub fn filesystem(filesystem: &str) -> Option<String> {
    let known = || {
        std::fs::read_to_string("/proc/filesystems")
            .is_ok_and(|list| list.lines().any(|l| l.split_whitespace().last() == Some(filesystem)))
    };
    if known() {
        return None;
    }
    // A module would be loaded by mount(8) just so; asking first makes the reason plain.
    let _ = Command::new("modprobe").arg(filesystem).output();
    (!known()).then(|| format!("this kernel has no {filesystem}"))
}

/// Why an image from Debian's registry cannot be shown through FUSE and mounted as this file system.
#[must_use]
pub fn mounting_from_docker_registry(file_system: &str) -> Option<String> {
    root()
        .or_else(fuse)
        .or_else(loop_devices)
        .or_else(|| program("docker-registry"))
        .or_else(|| filesystem(file_system))
}
