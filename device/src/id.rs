//! The name of a device: short, and fit for a file name, a label and a URL.

use std::{fmt, str::FromStr, sync::Arc};

/// The longest [`DeviceId`] in bytes: it names a directory, a thread and a metric label.
pub const MAX_ID_BYTES: usize = 32;

/// What a device is called: 1 to 32 characters of `a-z`, `0-9` and `-`, the first not a `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(Arc<str>);

/// Why a text is not a [`DeviceId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a device id is 1 to 32 characters of a-z, 0-9 and '-', and does not begin with '-'; not {0:?}")]
pub struct DeviceIdError(String);

impl DeviceId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DeviceId {
    type Err = DeviceIdError;

    fn from_str(s: &str) -> Result<Self, DeviceIdError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if s.is_empty() || s.len() > MAX_ID_BYTES || s.starts_with('-') || !s.bytes().all(allowed) {
            return Err(DeviceIdError(s.chars().take(MAX_ID_BYTES + 1).collect()));
        }
        Ok(Self(s.into()))
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_safe_in_paths_are_ids() {
        for good in ["a", "0", "redis-7-1a2b", &"x".repeat(32)] {
            assert_eq!(good.parse::<DeviceId>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "A", "a/b", "..", "a b", "ä", "a\0", &"x".repeat(33)] {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad:?}");
        }
    }
}
