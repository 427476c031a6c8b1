//! Which release of containerd it is about, and what differs between releases.

use std::{fmt, str::FromStr};

/// A release of containerd, as far as its settings depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    major: u32,
    minor: u32,
}

/// The oldest whose settings are known.
const OLDEST: Release = Release::new(1, 6);
/// The newest major release whose settings are known.
const NEWEST_MAJOR: u32 = 2;

impl Release {
    /// `MAJOR.MINOR`.
    #[must_use]
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// The newest version of config files that it reads.
    pub(super) const fn newest_config(self) -> i64 {
        if self.major >= 2 { 3 } else { 2 }
    }

    /// Whether images have a plugin of their own, `io.containerd.cri.v1.images`.
    pub(super) const fn splits_cri(self) -> bool {
        self.major >= 2
    }

    /// Whether a plugin's settings in a later file take the place of all before; else they are merged, key by key.
    pub(super) const fn replaces_sections(self) -> bool {
        self.major < 2
    }

    /// Whether a runtime may have a snapshotter of its own.
    pub(super) fn has_runtime_snapshotters(self) -> bool {
        self >= Self::new(1, 7)
    }

    /// Whether it tells CRI the directory of a snapshotter's data.
    pub(super) fn has_exports(self) -> bool {
        self >= Self::new(1, 7)
    }

    /// Whether `ctr images pull` goes through its transfer service, and that may pass the labels of layers.
    pub(super) fn transfers_lazily(self) -> bool {
        self >= Self::new(2, 1)
    }

    /// Whether it reads `/etc/containerd/conf.d/*.toml` when its config names no imports.
    pub(super) fn imports_by_default(self) -> bool {
        self >= Self::new(2, 2)
    }

    /// The release that `containerd --version` names in `line`: `containerd REPOSITORY VERSION REVISION`.
    pub(super) fn of_program(line: &str) -> Option<Self> {
        line.split_whitespace().nth(2)?.parse().ok()
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for Release {
    type Err = String;

    /// `1.6`, and all that containerd calls itself: `v1.7.24`, `1.6.20~ds1`, `2.1.9+unknown`.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: Option<&str>| {
            let digits = part?.split(|c: char| !c.is_ascii_digit()).next()?;
            digits.parse().ok()
        };
        let mut parts = text.strip_prefix('v').unwrap_or(text).splitn(3, '.');
        let release = number(parts.next()).zip(number(parts.next())).map(|(major, minor)| Self { major, minor });
        let release =
            release.ok_or_else(|| format!("{text:?} is no release of containerd; write 1.6, 1.7, 2.1 ..."))?;
        if release < OLDEST || release.major > NEWEST_MAJOR {
            return Err(format!(
                "the settings of containerd {release} are not known; those of {OLDEST} to {NEWEST_MAJOR}.x are"
            ));
        }
        Ok(release)
    }
}

/// The release whose settings are written, and why that one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chosen {
    /// The release.
    pub(super) release: Release,
    /// What says so, for people.
    pub(super) why: String,
}

/// Why no release can be chosen. Each text is one line that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// Neither a running containerd nor a program.
    #[error(
        "cannot find out which containerd this is for ({running}; {program}); name its release with --version, such as 1.7"
    )]
    Nobody {
        /// Why the running one did not say.
        running: String,
        /// Why the program did not say.
        program: String,
    },
    /// The running one is not the installed one.
    #[error(
        "containerd {running} runs, and {program} is installed: they read different settings; restart containerd first, or name one with --version"
    )]
    Two {
        /// The release that answers on the socket.
        running: Release,
        /// That of the program.
        program: Release,
    },
}

/// The release to write settings for: the one named; else the one that runs and will start again. What was not asked of them is `Err` with
/// the reason.
///
/// # Errors
/// [`Unknown`].
pub(super) fn choose(
    named: Option<Release>,
    running: Result<Release, String>,
    program: Result<(Release, String), String>,
) -> Result<Chosen, Unknown> {
    let chosen = |release, why: &str| Ok(Chosen { release, why: why.to_owned() });
    match (named, running, program) {
        (Some(release), ..) => chosen(release, "--version"),
        (None, Ok(running), Ok((program, _))) if running != program => Err(Unknown::Two { running, program }),
        (None, Ok(running), _) => chosen(running, "it answers on its socket"),
        (None, Err(_), Ok((program, path))) => chosen(program, &format!("{path} --version; no containerd answers")),
        (None, Err(running), Err(program)) => Err(Unknown::Nobody { running, program }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_as_containerd_writes_them() {
        for (text, major, minor) in
            [("1.6", 1, 6), ("v1.7.24", 1, 7), ("1.6.20~ds1", 1, 6), ("2.1.9+unknown", 2, 1), ("2.3-rc.1", 2, 3)]
        {
            assert_eq!(text.parse(), Ok(Release::new(major, minor)), "{text}");
        }
        for text in ["", "1", "2.x", "auto", "v", "1.5.18", "3.0", "-1.6", "99999999999.1"] {
            assert!(text.parse::<Release>().is_err(), "{text}");
        }
        let line = "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3\n";
        assert_eq!(Release::of_program(line), Some(Release::new(1, 6)));
        assert_eq!(Release::of_program("containerd github.com/containerd/containerd"), None);
    }

    #[test]
    fn the_named_release_wins_then_the_running_one_unless_another_is_installed() {
        let (old, new) = (Release::new(1, 6), Release::new(2, 1));
        let why = |running: Option<Release>, program: Option<Release>, named| {
            let program = program.map(|release| (release, "/usr/bin/containerd".to_owned()));
            choose(named, running.ok_or("r".to_owned()), program.ok_or("p".to_owned()))
        };
        assert_eq!(why(Some(new), Some(old), Some(old)).unwrap().release, old);
        assert_eq!(why(Some(new), None, None).unwrap().release, new);
        assert_eq!(why(Some(new), Some(new), None).unwrap().why, "it answers on its socket");
        let program = why(None, Some(old), None).unwrap();
        assert_eq!((program.release, program.why.starts_with("/usr/bin/containerd --version")), (old, true));
        assert_eq!(why(Some(new), Some(old), None), Err(Unknown::Two { running: new, program: old }));
        let nobody = why(None, None, None).unwrap_err().to_string();
        assert!(nobody.contains("(r; p)") && nobody.contains("--version"), "{nobody}");
    }
}
