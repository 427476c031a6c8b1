//! Platforms, and which entry of an index fits one.
//!
//! The rules are containerd's (`platforms.Only`): a machine runs its own variant, then older ones, then what its processor
//! also runs (386 on amd64, arm on arm64).

use std::{fmt, str::FromStr};

/// Longest part of a platform, in bytes: real ones have at most 9.
const MAX_PART_BYTES: usize = 32;
/// The rank of an entry that says no platform: better than none, worse than any that fits.
const UNSAID: u32 = u32::MAX;

/// An operating system, a processor architecture (Go's names, as the OCI image specification asks), and its variant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Platform {
    /// `linux`, `windows`, ...
    pub os: String,
    /// `amd64`, `arm64`, `arm`, ...
    pub architecture: String,
    /// `v7` of arm, `v3` of amd64; `None` is the architecture's base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// A text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a platform; write os/architecture or os/architecture/variant, like linux/amd64 or linux/arm/v7"
)]
pub struct PlatformError {
    /// What was written, cut to 64 characters.
    pub text: String,
}

impl Platform {
    /// The platform this program was built for.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "loongarch64" => "loong64",
            other => other,
        };
        Self { os: std::env::consts::OS.to_owned(), architecture: architecture.to_owned(), variant: None }.normal()
    }

    /// The one spelling of each platform (containerd's `Normalize`): `x86_64` is `amd64`, arm64's `v8` and amd64's `v1` go
    /// without saying, arm without a variant is `v7`.
    fn normal(&self) -> Self {
        let lower = |text: &str| text.to_ascii_lowercase();
        let said = self.variant.as_deref().map(lower).filter(|variant| !variant.is_empty());
        let written = lower(&self.architecture);
        let (architecture, variant) = match (written.as_str(), said.as_deref()) {
            ("amd64" | "x86_64" | "x86-64", None | Some("v1")) => ("amd64", None),
            ("x86_64" | "x86-64", Some(variant)) => ("amd64", Some(variant)),
            ("i386" | "x86", _) => ("386", None),
            ("arm64" | "aarch64", None | Some("8" | "v8" | "v8.0")) => ("arm64", None),
            ("aarch64", Some(variant)) => ("arm64", Some(variant)),
            ("armhf", _) | ("arm", None | Some("7")) => ("arm", Some("v7")),
            ("armel", _) | ("arm", Some("6")) => ("arm", Some("v6")),
            ("arm", Some("5")) => ("arm", Some("v5")),
            ("arm", Some("8")) => ("arm", Some("v8")),
            (architecture, variant) => (architecture, variant),
        };
        let os = match lower(&self.os).as_str() {
            "macos" => "darwin".to_owned(),
            os => os.to_owned(),
        };
        Self { os, architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }

    /// How well an image for `offered` fits this machine: 0 is best, `None` does not fit. `offered` of `None` is an entry
    /// that does not say what it is for: taken when nothing else fits.
    pub(crate) fn rank(&self, offered: Option<&Self>) -> Option<u32> {
        let Some(offered) = offered else { return Some(UNSAID) };
        let (wanted, offered) = (self.normal(), offered.normal());
        if wanted.os != offered.os {
            return None;
        }
        match (wanted.architecture.as_str(), offered.architecture.as_str()) {
            ("amd64", "amd64") => Some(amd64_rank(wanted.level(), offered.level())),
            ("amd64", "386") => Some(1000),
            ("arm", "arm") => arm_rank(wanted.level(), offered.level()),
            ("arm64", "arm64") => arm64_rank(wanted.variant.as_deref(), offered.variant.as_deref()),
            ("arm64", "arm") => arm_rank(8, offered.level()).map(|rank| 1000 + rank),
            (a, b) => (a == b && wanted.variant == offered.variant).then_some(0),
        }
    }

    /// The number in a variant like `v7`; 1 when there is none that can be read.
    fn level(&self) -> u32 {
        let number = self.variant.as_deref().and_then(|variant| variant.strip_prefix('v'));
        number.and_then(|number| number.parse().ok()).filter(|&level| level <= 100).unwrap_or(1)
    }
}

/// The highest level at or below the wanted one is best. What is above it comes last but fits: a variant of amd64 says how a
/// program was compiled, and a disk can be shown all the same.
const fn amd64_rank(wanted: u32, offered: u32) -> u32 {
    if offered <= wanted { wanted - offered } else { 100 + offered }
}

/// The same variant, then older ones down to v5. A newer one would not run.
const fn arm_rank(wanted: u32, offered: u32) -> Option<u32> {
    if offered <= wanted { Some(wanted - offered) } else { None }
}

/// The same variant, or the base.
fn arm64_rank(wanted: Option<&str>, offered: Option<&str>) -> Option<u32> {
    match (wanted, offered) {
        (a, b) if a == b => Some(0),
        (Some(_), None) => Some(1),
        _ => None,
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let is_part = |part: &str| {
            (1..=MAX_PART_BYTES).contains(&part.len())
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        let parts: Vec<&str> = text.splitn(4, '/').collect();
        let refused = || PlatformError { text: text.chars().take(64).collect() };
        if !parts.iter().copied().all(is_part) {
            return Err(refused());
        }
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_owned())),
            _ => return Err(refused()),
        };
        Ok(Self { os: os.to_owned(), architecture: architecture.to_owned(), variant }.normal())
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    /// The offered platforms that fit, best first.
    fn order(wanted: &str, offered: &[&str]) -> Vec<String> {
        let wanted = platform(wanted);
        let raw = |text: &str| {
            let mut parts = text.split('/').map(str::to_owned);
            Platform { os: parts.next().unwrap(), architecture: parts.next().unwrap(), variant: parts.next() }
        };
        let mut fits: Vec<(u32, String)> =
            offered.iter().filter_map(|text| Some((wanted.rank(Some(&raw(text)))?, (*text).to_owned()))).collect();
        fits.sort_by_key(|(rank, _)| *rank);
        fits.into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn spellings_of_one_platform_are_equal() {
        for (a, b) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("Linux/i386", "linux/386"),
        ] {
            assert_eq!(platform(a), platform(b), "{a} and {b}");
        }
        assert_eq!(platform("linux/arm/v6").to_string(), "linux/arm/v6");
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in [
            "",
            "linux",
            "linux/",
            "/amd64",
            "linux/amd64/v1/x",
            "linux/amd 64",
            "linux/é",
            &format!("linux/{}", "a".repeat(33)),
        ] {
            assert!(bad.parse::<Platform>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn older_arm_variants_serve_newer_machines() {
        let all =
            ["linux/arm/v5", "linux/arm/v6", "linux/arm", "linux/arm/v8", "linux/arm64", "linux/amd64", "windows/arm"];
        assert_eq!(order("linux/arm/v7", &all), ["linux/arm", "linux/arm/v6", "linux/arm/v5"]);
        assert_eq!(order("linux/arm/v6", &all), ["linux/arm/v6", "linux/arm/v5"]);
        assert_eq!(
            order("linux/arm64", &all),
            ["linux/arm64", "linux/arm/v8", "linux/arm", "linux/arm/v6", "linux/arm/v5"]
        );
    }

    #[test]
    fn no_variant_of_amd64_is_refused_and_the_nearest_wins() {
        let all = ["linux/amd64/v4", "linux/386", "linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/arm64"];
        assert_eq!(
            order("linux/amd64", &all),
            ["linux/amd64", "linux/amd64/v2", "linux/amd64/v3", "linux/amd64/v4", "linux/386"]
        );
        assert_eq!(order("linux/amd64/v3", &all)[..3], ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"]);
        assert_eq!(order("linux/amd64", &["linux/amd64/v3"]), ["linux/amd64/v3"]);
    }

    #[test]
    fn an_entry_without_a_platform_comes_after_all_that_fit() {
        let host = platform("linux/amd64");
        assert!(host.rank(None) > host.rank(Some(&platform("linux/386"))));
        assert_eq!(host.rank(Some(&platform("linux/s390x"))), None);
        assert_eq!(platform("linux/riscv64").rank(Some(&platform("linux/riscv64"))), Some(0));
    }

    #[test]
    fn the_host_is_a_platform() {
        let host = Platform::host();
        assert_eq!(host.to_string().parse::<Platform>().unwrap(), host);
        assert_eq!(host.rank(Some(&host)), Some(0));
    }
}
