//! Which file system a disk holds, and how its driver is kept from writing.

use std::fmt;

use penstock_image::FileSystem;

/// Bytes of a device that [`find`] looks at: superblocks begin at 0 or 1024.
pub const LOOKED_AT_BYTES: usize = 2048;

/// Why no file system can be mounted from a disk: what the disk begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotFound {
    /// A partition table.
    Partitioned,
    /// Only zeros.
    Blank,
    /// Something else.
    Unknown,
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Partitioned => {
                "it holds a partition table, and only whole disks are mounted; attach it without --mount and mount a partition of the device"
            }
            Self::Blank => "its beginning is blank",
            Self::Unknown => {
                "it holds neither EROFS, ext4, squashfs nor XFS; attach it without --mount to use the device itself"
            }
        })
    }
}

/// The file system of a disk that begins with `head`, at best [`LOOKED_AT_BYTES`] long.
///
/// # Errors
/// [`NotFound`], which says what the disk seems to hold instead.
pub fn find(head: &[u8]) -> Result<FileSystem, NotFound> {
    let has = |at: usize, magic: &[u8]| head.get(at..at + magic.len()) == Some(magic);
    match FileSystem::recognise(head) {
        Some(file_system) => Ok(file_system),
        // MBR signature at 510, or a GPT header in the second sector (UEFI specification, 5.3.2).
        None if has(510, &[0x55, 0xAA]) || has(512, b"EFI PART") => Err(NotFound::Partitioned),
        None if head.iter().all(|&byte| byte == 0) => Err(NotFound::Blank),
        None => Err(NotFound::Unknown),
    }
}

/// Options that keep the driver from writing to a disk that takes no writes: no journal replay; for XFS also no refusal of a second
/// device of the same image, which has the same UUID.
pub(super) const fn options(file_system: FileSystem) -> &'static str {
    match file_system {
        FileSystem::Ext => "noload",
        FileSystem::Xfs => "norecovery,nouuid",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut head = vec![0; LOOKED_AT_BYTES];
        head[at..at + bytes.len()].copy_from_slice(bytes);
        head
    }

    #[test]
    fn what_a_disk_holds_is_told_from_its_beginning() {
        for (at, magic, expected) in [
            (1024, &[0xE2, 0xE1, 0xF5, 0xE0][..], Ok(FileSystem::Erofs)),
            (1080, &[0x53, 0xEF], Ok(FileSystem::Ext)),
            (0, b"hsqs", Ok(FileSystem::Squashfs)),
            (0, b"XFSB", Ok(FileSystem::Xfs)),
            (510, &[0x55, 0xAA], Err(NotFound::Partitioned)),
            (512, b"EFI PART", Err(NotFound::Partitioned)),
            (0, b"", Err(NotFound::Blank)),
            (3, b"\x1f\x8b", Err(NotFound::Unknown)),
        ] {
            assert_eq!(find(&head(at, magic)), expected, "{magic:?} at {at}");
        }
    }

    #[test]
    fn a_short_disk_is_no_panic() {
        for len in 0..LOOKED_AT_BYTES {
            assert_eq!(find(&vec![0; len]), Err(NotFound::Blank), "{len}");
        }
    }
}
