//! Which file systems can be shown with mapped user and group ids, on which kernels. containerd makes the mapped mounts; what it is
//! handed has to be something that can be mapped.

use std::{io, path::Path};

use rustix::fs::statfs;

/// Version and patch level.
pub(crate) type Kernel = (u32, u32);

/// overlayfs takes mapped lowers since then.
const OVERLAYFS: Kernel = (5, 19);

/// File systems of images: magic (statfs(2), linux/magic.h), name, since when their mounts can be mapped.
const FILE_SYSTEMS: &[(u64, &str, Kernel)] = &[
    (0xEF53, "ext4", (5, 12)),
    (0x5846_5342, "xfs", (5, 12)),
    (0x9123_683E, "btrfs", (5, 15)),
    (0xE0F5_E1E2, "EROFS", (5, 19)),
    (0x7371_7368, "squashfs", (6, 2)),
];

/// This kernel, when it can map at all; else why not.
pub(crate) fn kernel() -> Result<Kernel, String> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let kernel = parse(&release);
    match kernel {
        Some(kernel) if kernel >= OVERLAYFS => Ok(kernel),
        _ => Err(format!(
            "the pod wants a user namespace of its own, and Linux {release} cannot map ids below overlayfs: that takes Linux 5.19, or hostUsers: true"
        )),
    }
}

fn parse(release: &str) -> Option<Kernel> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

/// Why the ids of what is shown at `files` cannot be mapped; none: they can.
pub(crate) fn refusal(kernel: Kernel, name: &str, files: &Path) -> io::Result<Option<String>> {
    let magic = u64::try_from(statfs(files)?.f_type).map_err(io::Error::other)?;
    Ok(judge(kernel, magic).err().map(|reason| {
        format!("the pod wants a user namespace of its own, and the ids of layer {name:?} cannot be mapped: {reason}; use hostUsers: true")
    }))
}

fn judge(kernel: Kernel, magic: u64) -> Result<(), String> {
    let (_, name, since) = FILE_SYSTEMS
        .iter()
        .find(|(of, ..)| *of == magic)
        .ok_or_else(|| format!("its file system ({magic:#x}) is not one whose mounts can be mapped"))?;
    if kernel >= *since {
        return Ok(());
    }
    Err(format!("{name} takes Linux {}.{} for that, and this is {}.{}", since.0, since.1, kernel.0, kernel.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_mapped_from_its_kernel_on_and_an_unknown_one_never() {
        assert_eq!(judge((5, 19), 0xE0F5_E1E2), Ok(()));
        assert!(judge((5, 18), 0xE0F5_E1E2).expect_err("too old").contains("EROFS takes Linux 5.19"));
        assert!(judge((6, 1), 0x7371_7368).is_err());
        assert_eq!(judge((6, 12), 0x7371_7368), Ok(()));
        assert!(judge((6, 12), 0x6573_5546).expect_err("FUSE").contains("0x65735546"));
    }

    #[test]
    fn releases_are_read_as_distributions_write_them() {
        assert_eq!(parse("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(parse("5.19.17"), Some((5, 19)));
        assert_eq!(parse("6.18+deb"), Some((6, 18)));
        assert_eq!(parse("linux"), None);
    }
}
