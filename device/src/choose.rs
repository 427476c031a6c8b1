//! Which transport this machine can use. Looks, and changes nothing: no module is loaded, no file system mounted.

use std::{fmt, fs::File, io, process::Command, str::FromStr};

use libublk::ctrl::UblkCtrl;

use crate::{DeviceError, ublk};

/// How a device is shown to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A block device `/dev/ublkbN`.
    Ublk,
    /// A read-only file in a FUSE file system.
    Fuse,
}

/// What a person asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wanted {
    /// ublk where it can be used, FUSE otherwise.
    #[default]
    Auto,
    /// This one or an error.
    Only(Transport),
}

/// Which transport, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The transport to use.
    pub transport: Transport,
    /// A sentence for logs and people.
    pub reason: String,
}

/// A text that names no transport.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a transport is auto, ublk or fuse, not {0:?}")]
pub struct TransportError(String);

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ublk => "ublk",
            Self::Fuse => "fuse",
        })
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(transport) => transport.fmt(f),
        }
    }
}

impl FromStr for Wanted {
    type Err = TransportError;

    fn from_str(s: &str) -> Result<Self, TransportError> {
        match s {
            "auto" => Ok(Self::Auto),
            "ublk" => Ok(Self::Only(Transport::Ublk)),
            "fuse" => Ok(Self::Only(Transport::Fuse)),
            other => Err(TransportError(other.to_owned())),
        }
    }
}

/// Finds the transport to use, by trying to open what each one needs. Short, but does system calls: not for an async thread
/// that must not wait.
///
/// # Errors
/// [`DeviceError::NoTransport`] with what is missing and how to get it.
pub fn choose(wanted: Wanted) -> Result<Choice, DeviceError> {
    decide(wanted, ublk_usable, fuse_usable)
}

/// The decision, apart from the machine: each probe answers why its transport cannot be used.
fn decide(
    wanted: Wanted,
    ublk: impl FnOnce() -> Result<(), String>,
    fuse: impl FnOnce() -> Result<(), String>,
) -> Result<Choice, DeviceError> {
    let chosen = |transport, reason: String| Ok(Choice { transport, reason });
    let refused = |reason: String| Err(DeviceError::NoTransport { reason });
    match wanted {
        Wanted::Only(Transport::Ublk) => match ublk() {
            Ok(()) => chosen(Transport::Ublk, "ublk was asked for and can be used".into()),
            Err(why) => refused(format!("ublk was asked for, but {why}")),
        },
        Wanted::Only(Transport::Fuse) => match fuse() {
            Ok(()) => chosen(Transport::Fuse, "FUSE was asked for and can be used".into()),
            Err(why) => refused(format!("FUSE was asked for, but {why}")),
        },
        Wanted::Auto => match ublk() {
            Ok(()) => chosen(Transport::Ublk, "/dev/ublk-control can be used".into()),
            Err(no_ublk) => match fuse() {
                Ok(()) => chosen(Transport::Fuse, format!("no ublk ({no_ublk}); /dev/fuse can be used")),
                Err(no_fuse) => refused(format!("no ublk ({no_ublk}) and no FUSE ({no_fuse})")),
            },
        },
    }
}

fn ublk_usable() -> Result<(), String> {
    open_both_ways(ublk::CONTROL).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            format!("{} does not exist: the kernel lacks ublk, or `modprobe ublk_drv` was not run", ublk::CONTROL)
        }
        _ => format!("{} cannot be opened: {error}", ublk::CONTROL),
    })?;
    io_uring::IoUring::new(1).map_err(|error| {
        format!("io_uring is not allowed here ({error}): a seccomp profile or kernel.io_uring_disabled")
    })?;
    // libublk keeps a control ring per thread: ask on one that ends.
    let features = std::thread::spawn(UblkCtrl::get_features).join().ok().flatten();
    let Some(features) = features else {
        return Err("the ublk driver does not tell its features (Linux 6.5 or later does)".into());
    };
    ublk::missing_features(features).map_or(Ok(()), |missing| Err(format!("the ublk driver lacks {missing}")))
}

fn fuse_usable() -> Result<(), String> {
    open_both_ways("/dev/fuse").map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            "/dev/fuse does not exist: run `modprobe fuse`, or give the container the device".into()
        }
        _ => format!("/dev/fuse cannot be opened: {error}"),
    })?;
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    match Command::new("fusermount3").arg("--version").output() {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("fusermount3, which mounts for users other than root, cannot be run: {error}")),
    }
}

fn open_both_ways(path: &str) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no(why: &str) -> impl FnOnce() -> Result<(), String> {
        let why = why.to_owned();
        move || Err(why)
    }

    #[test]
    fn auto_takes_ublk_then_fuse_and_says_why() {
        let choice = decide(Wanted::Auto, || Ok(()), no("unused")).unwrap();
        assert_eq!((choice.transport, choice.reason.as_str()), (Transport::Ublk, "/dev/ublk-control can be used"));
        let choice = decide(Wanted::Auto, no("not there"), || Ok(())).unwrap();
        assert_eq!(choice.transport, Transport::Fuse);
        assert_eq!(choice.reason, "no ublk (not there); /dev/fuse can be used");
        let error = decide(Wanted::Auto, no("a"), no("b")).unwrap_err();
        assert_eq!(error.to_string(), "no transport: no ublk (a) and no FUSE (b)");
    }

    #[test]
    fn what_was_asked_for_is_never_replaced() {
        let error = decide(Wanted::Only(Transport::Ublk), no("a"), || Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "no transport: ublk was asked for, but a");
        let choice = decide(Wanted::Only(Transport::Fuse), || Ok(()), || Ok(())).unwrap();
        assert_eq!(choice.transport, Transport::Fuse);
    }

    #[test]
    fn transports_are_named_as_they_are_written() {
        for text in ["auto", "ublk", "fuse"] {
            assert_eq!(text.parse::<Wanted>().unwrap().to_string(), text);
        }
        assert!("nbd".parse::<Wanted>().is_err());
    }
}
