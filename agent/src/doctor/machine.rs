//! The kernel, and what this process may do with it.

use std::{fs, path::Path};

use penstock_device::{Transport, Wanted};

use super::check::Check;

/// File systems of images, and the one that containers write to.
const FILE_SYSTEMS: [&str; 5] = ["overlay", "erofs", "ext4", "squashfs", "xfs"];
/// CAP_SYS_ADMIN of capability.h: to mount.
const SYS_ADMIN: u32 = 21;

/// How the kernel has a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Driver {
    /// Built in, or loaded.
    Here,
    /// As a module, which a mount loads.
    Module,
    /// Not at all.
    None,
}

/// What was seen.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    /// Name, release and machine of the kernel.
    pub(super) kernel: String,
    pub(super) may_mount: bool,
    pub(super) ublk: Result<String, String>,
    pub(super) fuse: Result<String, String>,
    pub(super) has_loop_devices: bool,
    pub(super) file_systems: Vec<(&'static str, Driver)>,
}

pub(super) fn look() -> Machine {
    let uname = rustix::system::uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    let release = text(uname.release());
    let try_one = |transport| {
        let chosen = penstock_device::choose(Wanted::Only(transport));
        chosen.map(|choice| choice.reason).map_err(|error| error.to_string())
    };
    Machine {
        kernel: format!("{} {release} {}", text(uname.sysname()), text(uname.machine())),
        may_mount: capabilities(&fs::read_to_string("/proc/self/status").unwrap_or_default()) >> SYS_ADMIN & 1 == 1,
        ublk: try_one(Transport::Ublk),
        fuse: try_one(Transport::Fuse),
        has_loop_devices: Path::new("/dev/loop-control").exists(),
        file_systems: drivers(
            &fs::read_to_string("/proc/filesystems").unwrap_or_default(),
            &fs::read_to_string(format!("/lib/modules/{release}/modules.dep")).unwrap_or_default(),
        ),
    }
}

/// The effective capabilities in a `/proc/PID/status`.
pub(super) fn capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0)
}

/// How the kernel has each file system, by `/proc/filesystems` and its `modules.dep`.
pub(super) fn drivers(known: &str, modules: &str) -> Vec<(&'static str, Driver)> {
    let of = |name: &str| {
        if known.lines().any(|line| line.split_whitespace().last() == Some(name)) {
            return Driver::Here;
        }
        let file = format!("/{name}.ko");
        let is_module = modules.lines().filter_map(|line| line.split(':').next()).any(|path| path.contains(&file));
        if is_module { Driver::Module } else { Driver::None }
    };
    FILE_SYSTEMS.iter().map(|name| (*name, of(name))).collect()
}

pub(super) fn judge(machine: &Machine, wanted: Wanted) -> Vec<Check> {
    let mut checks = vec![Check::ok("kernel", &machine.kernel), rights(machine.may_mount)];
    checks.extend(transports(machine, wanted));
    checks.push(if machine.has_loop_devices {
        Check::ok("loop devices", "/dev/loop-control")
    } else {
        let seen = "/dev/loop-control does not exist: through FUSE only EROFS can be mounted";
        Check::warning("loop devices", seen, "modprobe loop, or give the container the device")
    });
    checks.extend(machine.file_systems.iter().map(|(name, driver)| file_system(name, *driver)));
    checks
}

fn rights(may_mount: bool) -> Check {
    if may_mount {
        return Check::ok("rights", "this process may mount (CAP_SYS_ADMIN)");
    }
    let seen = "this process may not mount; what only root sees is not seen here";
    Check::warning("rights", seen, "run this as root, as the agent is")
}

fn transports(machine: &Machine, wanted: Wanted) -> Vec<Check> {
    let one = |name: &str, can: &Result<String, String>, other: bool, only: bool, next: &str| match can {
        Ok(reason) => Check::ok(name, reason),
        Err(reason) if other && !only => Check::warning(name, reason, next),
        Err(reason) => Check::failed(name, reason, next),
    };
    let only = |transport| wanted == Wanted::Only(transport);
    let ublk_next =
        "modprobe ublk_drv (Linux 6.5 or later with CONFIG_BLK_DEV_UBLK); without it devices go through FUSE";
    let fuse_next = "modprobe fuse, or give the container /dev/fuse";
    vec![
        one("ublk", &machine.ublk, machine.fuse.is_ok(), only(Transport::Ublk), ublk_next),
        one("FUSE", &machine.fuse, machine.ublk.is_ok(), only(Transport::Fuse), fuse_next),
    ]
}

fn file_system(name: &str, driver: Driver) -> Check {
    match driver {
        Driver::Here => Check::ok(name, "the kernel has it"),
        Driver::Module => Check::ok(name, "a module, which the first mount loads"),
        Driver::None if name == "overlay" => {
            let next = "modprobe overlay, or use a kernel with CONFIG_OVERLAY_FS";
            Check::failed(name, "the kernel has no overlayfs: no container can start on an image", next)
        }
        Driver::None => {
            let next = format!("modprobe {name}, if images hold it");
            Check::warning(name, "the kernel has neither driver nor module", &next)
        }
    }
}
