//! The only unsafe code of the crate: what the kernel and the C library offer and no crate wraps.
#![expect(
    unsafe_code,
    reason = "loop ioctls, a borrowed and an inherited descriptor and the heap have no safe wrapper; every block says why it is sound"
)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
};

use libublk::io::UblkDev;
use rustix::ioctl::{Ioctl, IoctlOutput, NoArg, Opcode, Setter, ioctl};

/// `LOOP_CLR_FD`, `LOOP_CONFIGURE`, `LOOP_CTL_GET_FREE` of `<linux/loop.h>`: numbers from before the `_IO` encoding.
const LOOP_CLR_FD: Opcode = 0x4C01;
const LOOP_CONFIGURE: Opcode = 0x4C0A;
const LOOP_CTL_GET_FREE: Opcode = 0x4C82;

/// `LO_FLAGS_*` of `<linux/loop.h>`.
pub(crate) const LO_FLAGS_READ_ONLY: u32 = 1;
pub(crate) const LO_FLAGS_AUTOCLEAR: u32 = 4;
pub(crate) const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_info64` of `<linux/loop.h>`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of `<linux/loop.h>`, since Linux 5.8.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

/// The kernel refuses a structure of another size; these are the sizes on every 64-bit Linux.
const _: () = assert!(size_of::<LoopInfo64>() == 232 && size_of::<LoopConfig>() == 304);

/// `LOOP_CTL_GET_FREE`: no argument, the answer is the returned number.
struct GetFree;

// SAFETY: the ioctl takes no argument and writes no memory; the pointer is null and never followed.
unsafe impl Ioctl for GetFree {
    type Output = IoctlOutput;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        LOOP_CTL_GET_FREE
    }

    fn as_ptr(&mut self) -> *mut core::ffi::c_void {
        core::ptr::null_mut()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut core::ffi::c_void) -> rustix::io::Result<IoctlOutput> {
        Ok(out)
    }
}

/// The number of a loop device that is free now; another process may take it before us.
pub(crate) fn loop_free(control: impl AsFd) -> io::Result<u32> {
    // SAFETY: LOOP_CTL_GET_FREE has no argument (see `GetFree`).
    let number = unsafe { ioctl(control, GetFree) }?;
    u32::try_from(number).map_err(io::Error::other)
}

/// Backs the loop device `device` with `file`, shown as `name` in its status, in one step.
pub(crate) fn loop_configure(device: impl AsFd, file: BorrowedFd<'_>, flags: u32, name: &[u8]) -> io::Result<()> {
    let fd = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
    let mut file_name = [0; 64];
    let shown = name.len().min(file_name.len() - 1);
    file_name[..shown].copy_from_slice(&name[..shown]);
    let info = LoopInfo64 {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        sizelimit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags,
        file_name,
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    let config = LoopConfig { fd, block_size: 0, info, reserved: [0; 8] };
    // SAFETY: LOOP_CONFIGURE reads one `struct loop_config`, which `LoopConfig` mirrors (size checked above), and keeps no
    // pointer to it.
    unsafe { ioctl(device, Setter::<LOOP_CONFIGURE, LoopConfig>::new(config)) }?;
    Ok(())
}

/// Takes the file from a loop device: at once, or when its last opener closes it.
pub(crate) fn loop_clear(device: impl AsFd) -> io::Result<()> {
    // SAFETY: LOOP_CLR_FD has no argument.
    unsafe { ioctl(device, NoArg::<LOOP_CLR_FD>::new()) }?;
    Ok(())
}

/// The character device `/dev/ublkcN` that `dev` holds open. It cannot be opened a second time (EBUSY).
pub(crate) fn cdev(dev: &UblkDev) -> BorrowedFd<'_> {
    // SAFETY: `fds[0]` is the descriptor of the file that `dev` owns and closes only when dropped; the result borrows `dev`.
    unsafe { BorrowedFd::borrow_raw(dev.tgt.fds[0]) }
}

/// The first descriptor that a process can be given besides its standard ones: `SD_LISTEN_FDS_START` of sd_listen_fds(3).
const FIRST_INHERITED: i32 = 3;

/// Takes the `count` descriptors, from number 3 on, that this process was started with (sd_listen_fds(3)), and sees to it that no child
/// inherits them. Call it first in `main`, before anything else opens a file.
///
/// # Errors
/// When one of them is not open, or when they were taken before: none is taken then.
pub fn inherited(count: usize) -> io::Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let count = i32::try_from(count).map_err(io::Error::other)?;
    if count == 0 {
        return Ok(Vec::new());
    }
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(io::Error::other("the descriptors that the process was started with are taken already"));
    }
    let numbers = FIRST_INHERITED..FIRST_INHERITED.saturating_add(count);
    let open = |number: i32| {
        // SAFETY: only asked whether it is open and told not to be inherited; nothing is read, written or closed.
        let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
        rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)
            .map_err(|error| io::Error::new(error.kind(), format!("descriptor {number} was not given: {error}")))
    };
    numbers.clone().try_for_each(open)?;
    // SAFETY: they are open (just checked), they were open before `main` (the caller's word), so that nothing in this process owns
    // them, and they are taken once (`TAKEN`).
    Ok(numbers.map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect())
}

/// Heaps that all threads share. glibc makes eight for each CPU, and what was freed in one is of no use to the others: buffers of a
/// burst of fetches would stay in several.
#[cfg(target_env = "gnu")]
const HEAPS: i32 = 2;

/// Lets all threads share a few heaps, where the C library is glibc (mallopt(3), `M_ARENA_MAX`). Call it before there are other threads:
/// a heap that there is stays.
pub fn share_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number that malloc reads under its own lock; nothing of ours is read or written.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
    }
}

/// Gives the kernel back all whole pages that were freed, where the C library is glibc (malloc_trim(3)). It takes milliseconds: not for
/// a thread that somebody waits for.
pub fn trim_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes malloc's own locks, and only touches pages of which no allocation has a byte.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
#[cfg(target_env = "gnu")]
mod tests {
    use super::*;

    /// Resident memory that is not pages of files.
    fn anonymous_kib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    }

    #[test]
    fn what_was_freed_below_a_block_in_use_goes_back_to_the_kernel() {
        let mut blocks: Vec<Box<[u8]>> = (0..16 << 10).map(|_| vec![1; 4 << 10].into_boxed_slice()).collect();
        let last = blocks.pop();
        drop(blocks);
        let before = anonymous_kib();
        trim_heaps();
        let after = anonymous_kib();
        assert!(after + (48 << 10) < before, "{after} KiB of {before} KiB are left");
        assert_eq!(last.map(|block| block.len()), Some(4 << 10));
    }
}
