//! What can go wrong when a device is made or unmade.

use std::{io, path::PathBuf};

use crate::{User, config::ConfigError};

/// Why a device could not be started or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// Neither transport can be used here, or not the one asked for.
    #[error("no transport: {reason}")]
    NoTransport {
        /// What was tried, and what to do.
        reason: String,
    },
    /// The configuration is out of bounds.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The image has no bytes.
    #[error("the image is empty: a device needs at least one byte")]
    Empty,
    /// Somebody uses the device: a mount, a loop device, an open file. Nothing was changed.
    #[error("{} is in use{}; unmount or close it first, or stop it by force", path.display(), list(users))]
    Busy {
        /// The device.
        path: PathBuf,
        /// The users that could be found (at most [`crate::MAX_USERS`]); others may be in another namespace.
        users: Vec<User>,
    },
    /// A ublk control command or a queue failed.
    #[error("ublk: {operation} failed: {error}; see the kernel log")]
    Ublk {
        /// Which one.
        operation: &'static str,
        /// The kernel's reason.
        error: io::Error,
    },
    /// The driver lacks what a device needs.
    #[error("ublk: this kernel's driver does not offer {missing}; Linux 6.5 or later does (or use the FUSE transport)")]
    Driver {
        /// What it lacks.
        missing: &'static str,
    },
    /// The FUSE file system could not be mounted.
    #[error("fuse: mounting on {} failed: {reason}", path.display())]
    Mount {
        /// Where.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// What is left of a device cannot be served again. Start it anew; its old readers get errors once that is gone.
    #[error("{} cannot be taken over: {reason}", path.display())]
    NotResumable {
        /// The device.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Requests that the dead agent had read cannot be had again from this kernel: whoever waits for them would wait for ever. Stop
    /// what is left of the device (its readers get errors) and start it anew.
    #[error(
        "{} cannot be taken over: {} wait for answers of the agent that died, which this kernel cannot ask for again (Linux 6.9 or later can)",
        path.display(), many(*waiting)
    )]
    RequestsLost {
        /// The device.
        path: PathBuf,
        /// How many requests wait, where the kernel tells.
        waiting: Option<u64>,
    },
    /// The FUSE file system could not be unmounted.
    #[error("fuse: unmounting {} failed: {reason}", path.display())]
    Unmount {
        /// Where.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// A file, a thread or a descriptor could not be had.
    #[error("{operation} failed: {error}")]
    Io {
        /// What was tried.
        operation: String,
        /// The system's reason.
        error: io::Error,
    },
    /// No loop device could be had.
    #[error("loop device over {}: {operation} failed: {error}", path.display())]
    Loop {
        /// The backing file.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// The system's reason.
        error: io::Error,
    },
    /// The thread that owns the device is gone.
    #[error("the device's control thread ended; the device may be left behind, see the log")]
    ControlGone,
}

impl DeviceError {
    /// For `map_err`: an I/O error with what was tried.
    pub(crate) fn io(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let operation = operation.into();
        move |error| Self::Io { operation, error }
    }
}

fn many(requests: Option<u64>) -> String {
    requests.map_or_else(|| "an unknown number of reads".to_owned(), |number| format!("{number} reads"))
}

/// " by mount at /a, loop device loop3", or nothing.
fn list(users: &[User]) -> String {
    if users.is_empty() {
        return String::new();
    }
    let names: Vec<String> = users.iter().map(ToString::to_string).collect();
    format!(" by {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_device_names_its_users_and_the_way_out() {
        let busy = |users| DeviceError::Busy { path: "/dev/ublkb0".into(), users }.to_string();
        assert_eq!(
            busy(vec![User::Mount("/mnt/a".into()), User::Process { pid: 7, name: "dd".into() }]),
            "/dev/ublkb0 is in use by a mount on /mnt/a, process 7 (dd); unmount or close it first, or stop it by force"
        );
        assert_eq!(busy(vec![]), "/dev/ublkb0 is in use; unmount or close it first, or stop it by force");
    }
}
