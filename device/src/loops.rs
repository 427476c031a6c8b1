//! A loop device over a file: for file systems that the kernel mounts from block devices only (ext4, squashfs, xfs).

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use rustix::io::Errno;

use crate::{DeviceError, sys};

/// Where free loop devices are asked for.
const CONTROL: &str = "/dev/loop-control";

/// How often another process may take the free device first before this is an error.
const TRIES: u32 = 16;

/// A loop device. It goes away by itself when its last user closes it (autoclear), so that a crash leaves nothing behind;
/// until something is mounted from it, this value is that user.
#[derive(Debug)]
pub struct Loop {
    path: PathBuf,
    file: PathBuf,
    device: File,
    direct_io: bool,
}

impl Loop {
    /// Backs a free loop device with `file`. With `direct_io` the pages of the file are not cached a second time, where the
    /// file system below can do that ([`Loop::direct_io`] tells).
    ///
    /// # Errors
    /// [`DeviceError::Loop`] with the step that failed.
    pub fn attach(file: &Path, read_only: bool, direct_io: bool) -> Result<Self, DeviceError> {
        let failed =
            |operation: &'static str| move |error| DeviceError::Loop { path: file.to_owned(), operation, error };
        let backing = File::options().read(true).write(!read_only).open(file).map_err(failed("opening it"))?;
        let control =
            File::options().read(true).write(true).open(CONTROL).map_err(failed("opening /dev/loop-control"))?;
        let mut flags = sys::LO_FLAGS_AUTOCLEAR;
        flags |= if read_only { sys::LO_FLAGS_READ_ONLY } else { 0 };
        flags |= if direct_io { sys::LO_FLAGS_DIRECT_IO } else { 0 };
        for _ in 0..TRIES {
            let number = sys::loop_free(&control).map_err(failed("finding a free loop device"))?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device =
                File::options().read(true).write(!read_only).open(&path).map_err(failed("opening /dev/loopN"))?;
            match sys::loop_configure(&device, backing.as_fd(), flags, file.as_os_str().as_bytes()) {
                Ok(()) => {
                    let direct_io = uses_direct_io(number);
                    return Ok(Self { path, file: file.to_owned(), device, direct_io });
                }
                // Another process took it between the two calls.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) => {}
                Err(error) => return Err(failed("LOOP_CONFIGURE")(error)),
            }
        }
        Err(failed("finding a loop device that stays free")(io::ErrorKind::ResourceBusy.into()))
    }

    /// `/dev/loopN`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it really reads its file directly.
    #[must_use]
    pub const fn direct_io(&self) -> bool {
        self.direct_io
    }

    /// Takes the file away: now, or when what is mounted from the device is unmounted.
    ///
    /// # Errors
    /// [`DeviceError::Loop`] when the kernel refuses.
    pub fn detach(self) -> Result<(), DeviceError> {
        sys::loop_clear(&self.device).map_err(|error| DeviceError::Loop {
            path: self.file,
            operation: "LOOP_CLR_FD",
            error,
        })
    }
}

/// What sysfs says about direct I/O: the kernel turns it off without an error where the file cannot do it.
fn uses_direct_io(number: u32) -> bool {
    std::fs::read_to_string(format!("/sys/block/loop{number}/loop/dio")).is_ok_and(|text| text.trim() == "1")
}
