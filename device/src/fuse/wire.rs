//! The FUSE protocol, as far as one read-only file needs it. Pure: bytes in, a verdict out.
//!
//! Facts from `<linux/fuse.h>`; the structures are fuse-backend-rs' (its `abi`). A directory with one file, `disk`, that never
//! changes: names and attributes may be cached for ever.

use fuse_backend_rs::abi::fuse_abi::{
    Attr, AttrOut, Dirent, EntryOut, FsOptions, InHeader, InitIn, InitOut, InterruptIn, KERNEL_VERSION, Kstatfs,
    Opcode as Op, OpenOptions, OpenOut, OutHeader, ROOT_ID, ReadIn,
};
use penstock_blob::ByteRange;
use rustix::io::Errno;
use vm_memory::ByteValued;

/// The name of the one file.
pub(crate) const FILE_NAME: &str = "disk";
/// Its inode.
const FILE_ID: u64 = 2;
/// The largest read that FUSE can ask for: 256 pages of 4 KiB.
pub(crate) const MAX_READ_BYTES: u32 = 1 << 20;
/// Seconds for which the kernel may keep names and attributes: for ever, near enough.
const VALID_SECONDS: u64 = 365 * 24 * 3600;
/// Reads that the kernel may have open in the background (read-ahead, asynchronous reads of EROFS and loop). Its default of
/// 12 would let 12 slow fetches hold up the read-ahead of every other reader.
const MAX_BACKGROUND: u16 = 512;
/// Size of the largest write that the kernel must not send: its minimum. It sizes the request buffer.
const MAX_WRITE_BYTES: u32 = 4096;
/// `FOPEN_NOFLUSH` of `<linux/fuse.h>`: no FLUSH on close.
const FOPEN_NOFLUSH: u32 = 1 << 5;
/// `FUSE_INIT_EXT`: `flags2` is there, in the question from protocol 7.36 on (Linux 5.17).
const INIT_EXT: u32 = 1 << 30;
/// `FUSE_HAS_RESEND`, bit 39 of all flags, so bit 7 of `flags2` (protocol 7.40, Linux 6.9): requests that were read and not
/// answered can be asked for again.
const HAS_RESEND: u32 = 1 << 7;
/// `FUSE_NOTIFY_RESEND` of `enum fuse_notify_code`.
const NOTIFY_RESEND: i32 = 7;
/// The oldest protocol that has everything used here (`max_pages` of 7.28; Linux 4.20).
const OLDEST_MINOR: u32 = 28;
/// The protocol whose structures these are.
const OUR_MINOR: u32 = 33;
/// File types of readdir(3).
const DT_DIR: u32 = 4;
const DT_REG: u32 = 8;
/// File types and permissions of stat(2). Only the owner may read: an image may hold what not every user of the node may see.
const DIRECTORY_MODE: u32 = 0o040_500;
const FILE_MODE: u32 = 0o100_400;

/// The one file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct File {
    pub(crate) size_bytes: u64,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) page_bytes: u32,
}

/// What to do about a message of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Answer with these bytes behind the header.
    Reply(Vec<u8>),
    /// Answer with an error.
    Refuse(Errno),
    /// The kernel expects no answer.
    Silent,
    /// Read these bytes of the file and answer with them.
    Read(ByteRange),
    /// A reader of request `unique` was signalled. Expects no answer.
    Interrupt {
        /// The request.
        unique: u64,
    },
}

/// The header of a message, and its body; `None` when it is shorter than a header or than it says.
pub(crate) fn open(message: &[u8]) -> Option<(InHeader, &[u8])> {
    let header: InHeader = head(message)?;
    let len = usize::try_from(header.len).ok()?;
    Some((header, message.get(size_of::<InHeader>()..len)?))
}

/// The header of an answer to request `unique` with `body_bytes` behind it, or with an error and nothing.
pub(crate) fn header(unique: u64, answer: Result<usize, Errno>) -> [u8; size_of::<OutHeader>()] {
    let (body_bytes, error) = match answer {
        Ok(bytes) => (bytes, 0),
        Err(errno) => (0, -errno.raw_os_error()),
    };
    let len = u32::try_from(size_of::<OutHeader>() + body_bytes).unwrap_or(u32::MAX);
    let mut bytes = [0; size_of::<OutHeader>()];
    bytes.copy_from_slice(OutHeader { len, error, unique }.as_slice());
    bytes
}

/// The message that makes the kernel queue again every request that was read and not answered. It numbers them anew: the same
/// number with the highest bit (`FUSE_UNIQUE_RESEND`) set, by which they must be answered. A kernel that cannot do it refuses the
/// message with EINVAL, so that nothing of the handshake has to be remembered.
pub(crate) fn resend() -> [u8; size_of::<OutHeader>()] {
    let len = u32::try_from(size_of::<OutHeader>()).unwrap_or(u32::MAX);
    let mut bytes = [0; size_of::<OutHeader>()];
    // A message about no request (unique 0) is a notification, with its code where answers have their error.
    bytes.copy_from_slice(OutHeader { len, error: NOTIFY_RESEND, unique: 0 }.as_slice());
    bytes
}

/// Whether the kernel, in its first question, offers to send requests again.
fn offers_resend(flags: u32, body: &[u8]) -> bool {
    let flags2: u32 = body.get(size_of::<InitIn>()..).and_then(head).unwrap_or(0);
    flags & INIT_EXT != 0 && flags2 & HAS_RESEND != 0
}

impl File {
    /// Decides about a message.
    pub(crate) fn judge(&self, header: &InHeader, body: &[u8]) -> Verdict {
        let judged = match header.opcode {
            op::INIT => Self::init(self.page_bytes, body),
            op::LOOKUP => self.lookup(header.nodeid, body),
            op::GETATTR => self.attributes(header.nodeid),
            op::OPEN => Self::opened(header.nodeid == FILE_ID, body),
            op::OPENDIR => Self::opened_directory(header.nodeid),
            op::READ => self.read(header.nodeid, body),
            op::READDIR => Self::list(header.nodeid, body),
            op::STATFS => Some(Verdict::Reply(self.statfs().as_slice().to_vec())),
            op::INTERRUPT => head(body).map(|i: InterruptIn| Verdict::Interrupt { unique: i.unique }),
            op::RELEASE | op::RELEASEDIR | op::ACCESS | op::FLUSH | op::FSYNC | op::DESTROY => {
                Some(Verdict::Reply(Vec::new()))
            }
            op::FORGET | op::BATCH_FORGET | op::NOTIFY_REPLY => Some(Verdict::Silent),
            other => Some(Verdict::Refuse(if op::CHANGES.contains(&other) { Errno::ROFS } else { Errno::NOSYS })),
        };
        judged.unwrap_or(Verdict::Refuse(Errno::INVAL))
    }

    /// The handshake. Passthrough is not negotiated: EROFS refuses files of stacked mounts.
    fn init(page_bytes: u32, body: &[u8]) -> Option<Verdict> {
        let asked: InitIn = head(body)?;
        if asked.major != KERNEL_VERSION || asked.minor < OLDEST_MINOR {
            return Some(Verdict::Refuse(Errno::PROTO));
        }
        let wanted = FsOptions::ASYNC_READ | FsOptions::ASYNC_DIO | FsOptions::PARALLEL_DIROPS | FsOptions::MAX_PAGES;
        // All wanted flags of this structure lie in the lower half.
        let flags = u32::try_from(wanted.bits()).ok()? & asked.flags;
        let (ext, flags2) = if offers_resend(asked.flags, body) { (INIT_EXT, HAS_RESEND) } else { (0, 0) };
        let answer = InitOut {
            major: KERNEL_VERSION,
            minor: OUR_MINOR,
            max_readahead: asked.max_readahead,
            flags: flags | ext,
            flags2,
            max_background: MAX_BACKGROUND,
            congestion_threshold: MAX_BACKGROUND / 4 * 3,
            max_write: MAX_WRITE_BYTES,
            time_gran: 1,
            max_pages: u16::try_from(MAX_READ_BYTES / page_bytes.max(1)).ok()?.max(1),
            ..InitOut::default()
        };
        Some(Verdict::Reply(answer.as_slice().to_vec()))
    }

    fn lookup(&self, parent: u64, body: &[u8]) -> Option<Verdict> {
        let name = body.strip_suffix(&[0])?;
        if parent != ROOT_ID || name != FILE_NAME.as_bytes() {
            return Some(Verdict::Refuse(Errno::NOENT));
        }
        let (entry_valid, attr_valid) = (VALID_SECONDS, VALID_SECONDS);
        let entry =
            EntryOut { nodeid: FILE_ID, entry_valid, attr_valid, attr: self.attr(FILE_ID)?, ..EntryOut::default() };
        Some(Verdict::Reply(entry.as_slice().to_vec()))
    }

    fn attributes(&self, id: u64) -> Option<Verdict> {
        let Some(attr) = self.attr(id) else { return Some(Verdict::Refuse(Errno::NOENT)) };
        Some(Verdict::Reply(AttrOut { attr_valid: VALID_SECONDS, attr, ..AttrOut::default() }.as_slice().to_vec()))
    }

    fn attr(&self, id: u64) -> Option<Attr> {
        let (mode, nlink, size) = match id {
            ROOT_ID => (DIRECTORY_MODE, 2, 0),
            FILE_ID => (FILE_MODE, 1, self.size_bytes),
            _ => return None,
        };
        let (uid, gid, blocks) = (self.uid, self.gid, size.div_ceil(512));
        Some(Attr { ino: id, size, blocks, mode, nlink, uid, gid, blksize: 4096, ..Attr::default() })
    }

    /// Direct I/O: the file system above keeps the pages, the same pages here would be kept twice.
    fn opened(is_file: bool, body: &[u8]) -> Option<Verdict> {
        let open: fuse_backend_rs::abi::fuse_abi::OpenIn = head(body)?;
        // O_ACCMODE: anything but reading is refused.
        if !is_file || open.flags & 3 != 0 {
            return Some(Verdict::Refuse(if is_file { Errno::ROFS } else { Errno::ISDIR }));
        }
        let open_flags = OpenOptions::DIRECT_IO.bits() | FOPEN_NOFLUSH;
        Some(Verdict::Reply(OpenOut { open_flags, ..OpenOut::default() }.as_slice().to_vec()))
    }

    fn opened_directory(id: u64) -> Option<Verdict> {
        if id != ROOT_ID {
            return Some(Verdict::Refuse(Errno::NOTDIR));
        }
        Some(Verdict::Reply(OpenOut::default().as_slice().to_vec()))
    }

    fn read(&self, id: u64, body: &[u8]) -> Option<Verdict> {
        let asked: ReadIn = head(body)?;
        if id != FILE_ID || asked.size > MAX_READ_BYTES {
            return None;
        }
        let end = asked.offset.checked_add(asked.size.into())?.min(self.size_bytes);
        // A read at or behind the end, or of nothing, gets nothing.
        Some(ByteRange::new(asked.offset, end).map_or_else(|_| Verdict::Reply(Vec::new()), Verdict::Read))
    }

    /// Directory entries from the offset asked for on, each padded to 8 bytes, as many as fit.
    fn list(id: u64, body: &[u8]) -> Option<Verdict> {
        let asked: ReadIn = head(body)?;
        if id != ROOT_ID {
            return Some(Verdict::Refuse(Errno::NOTDIR));
        }
        let room = usize::try_from(asked.size).ok()?;
        let all = [(ROOT_ID, DT_DIR, "."), (ROOT_ID, DT_DIR, ".."), (FILE_ID, DT_REG, FILE_NAME)];
        let mut bytes = Vec::new();
        for (off, (ino, type_, name)) in (1..).zip(all).filter(|(off, _)| *off > asked.offset) {
            let mut entry = Dirent { ino, off, namelen: u32::try_from(name.len()).ok()?, type_ }.as_slice().to_vec();
            entry.extend_from_slice(name.as_bytes());
            entry.resize(entry.len().next_multiple_of(8), 0);
            if bytes.len() + entry.len() > room {
                break;
            }
            bytes.extend_from_slice(&entry);
        }
        Some(Verdict::Reply(bytes))
    }

    fn statfs(&self) -> Kstatfs {
        let blocks = self.size_bytes.div_ceil(4096);
        Kstatfs { blocks, files: 1, bsize: 4096, frsize: 4096, namelen: 255, ..Kstatfs::default() }
    }
}

/// Operations by number. fuse-backend-rs' own conversion from a number is not for numbers that it does not know: those between
/// its known ones make an invalid enum.
mod op {
    use super::Op;

    pub(super) const LOOKUP: u32 = Op::Lookup as u32;
    pub(super) const FORGET: u32 = Op::Forget as u32;
    pub(super) const GETATTR: u32 = Op::Getattr as u32;
    pub(super) const OPEN: u32 = Op::Open as u32;
    pub(super) const READ: u32 = Op::Read as u32;
    pub(super) const STATFS: u32 = Op::Statfs as u32;
    pub(super) const RELEASE: u32 = Op::Release as u32;
    pub(super) const FSYNC: u32 = Op::Fsync as u32;
    pub(super) const FLUSH: u32 = Op::Flush as u32;
    pub(super) const INIT: u32 = Op::Init as u32;
    pub(super) const OPENDIR: u32 = Op::Opendir as u32;
    pub(super) const READDIR: u32 = Op::Readdir as u32;
    pub(super) const RELEASEDIR: u32 = Op::Releasedir as u32;
    pub(super) const ACCESS: u32 = Op::Access as u32;
    pub(super) const INTERRUPT: u32 = Op::Interrupt as u32;
    pub(super) const DESTROY: u32 = Op::Destroy as u32;
    pub(super) const NOTIFY_REPLY: u32 = Op::NotifyReply as u32;
    pub(super) const BATCH_FORGET: u32 = Op::BatchForget as u32;

    /// Those that would change the file system.
    pub(super) const CHANGES: [u32; 15] = [
        Op::Setattr as u32,
        Op::Symlink as u32,
        Op::Mknod as u32,
        Op::Mkdir as u32,
        Op::Unlink as u32,
        Op::Rmdir as u32,
        Op::Rename as u32,
        Op::Rename2 as u32,
        Op::Link as u32,
        Op::Write as u32,
        Op::Setxattr as u32,
        Op::Removexattr as u32,
        Op::Create as u32,
        Op::Fallocate as u32,
        Op::CopyFileRange as u32,
    ];
}

/// The structure that `bytes` begin with.
fn head<T: ByteValued + Default>(bytes: &[u8]) -> Option<T> {
    let mut value = T::default();
    value.as_mut_slice().copy_from_slice(bytes.get(..size_of::<T>())?);
    Some(value)
}

#[cfg(test)]
mod tests;
