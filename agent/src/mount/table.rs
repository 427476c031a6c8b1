//! The kernel's table of mounts, as `/proc/self/mountinfo` shows it (proc_pid_mountinfo(5)).

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

/// One mount of this process's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it is.
    pub dir: PathBuf,
    /// The driver, such as `ext4` or `fuse.penstock`.
    pub file_system: String,
    /// What is mounted, as it was named when mounting.
    pub source: PathBuf,
}

/// All mounts of this process's namespace, oldest first.
///
/// # Errors
/// What reading `/proc/self/mountinfo` says.
pub fn read() -> std::io::Result<Vec<Entry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The mounts listed by a mountinfo file. Lines of another shape are left out: the kernel only ever adds fields.
#[must_use]
pub fn parse(text: &[u8]) -> Vec<Entry> {
    text.split(|&byte| byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Entry> {
    let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    let dir = unescape(fields.get(4)?);
    // Optional fields end at a lone dash; file system, source and its options follow.
    let dash = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    let file_system = String::from_utf8_lossy(fields.get(dash + 1)?).into_owned();
    Some(Entry { dir, file_system, source: unescape(fields.get(dash + 2)?) })
}

/// The topmost mount at `dir`, which is the one that its users see.
#[must_use]
pub fn at<'a>(table: &'a [Entry], dir: &Path) -> Option<&'a Entry> {
    table.iter().rev().find(|entry| entry.dir == dir)
}

/// Space, tab, newline and backslash are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let code = match after {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if first == b'\\' => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        bytes.push(code.unwrap_or(first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_with_their_escapes_and_optional_fields() {
        let text = b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
            40 22 0:35 / /mnt/a\\040b ro - fuse.penstock penstock ro,user_id=0\n\
            41 22 7:0 / /mnt/c\\134d ro master:1 shared:7 - erofs /state/fuse/d1/image ro\n\
            broken line\n";
        let table = parse(text);
        let seen: Vec<_> = table
            .iter()
            .map(|e| (e.dir.to_str().unwrap(), e.file_system.as_str(), e.source.to_str().unwrap()))
            .collect();
        assert_eq!(
            seen,
            [
                ("/", "ext4", "/dev/vda"),
                ("/mnt/a b", "fuse.penstock", "penstock"),
                ("/mnt/c\\d", "erofs", "/state/fuse/d1/image"),
            ]
        );
    }

    #[test]
    fn the_topmost_mount_of_a_directory_is_found() {
        let table = parse(b"1 0 0:1 / /m rw - a x rw\n2 1 0:2 / /m rw - b y rw\n");
        assert_eq!(at(&table, Path::new("/m")).unwrap().file_system, "b");
        assert_eq!(at(&table, Path::new("/n")), None);
    }

    #[test]
    fn any_bytes_parse_without_a_panic() {
        for text in [
            &b""[..],
            b"\n\n",
            b"\\",
            b"1 2 3 4 \\0 6 - a \\08",
            b"1 2 3 4 5 6 -",
            b"\xff \xff \xff \xff \xff \xff - \xff \xff",
        ] {
            assert!(parse(text).len() <= 1);
        }
        assert!(read().unwrap().iter().any(|entry| entry.dir == Path::new("/")));
    }
}
