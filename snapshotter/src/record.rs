//! One snapshot's record, and how it is written: `docs/formats/snapshots.md`.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::mounter::{Shape, Stack};

#[cfg(test)]
pub(crate) mod tests;

/// Of the format. Another one is not read.
const VERSION: u32 = 1;
/// Longest record that is read, in bytes: more than the largest request that can make one.
pub(crate) const MAX_RECORD_BYTES: u64 = 16 << 20;

/// Label keys and values by key.
pub type Labels = BTreeMap<String, String>;

/// What a snapshot is to containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Read-only, for looking at its parent.
    View,
    /// Written to, until it is committed.
    Active,
    /// Never changes again; may have children.
    Committed,
}

impl Kind {
    /// As containerd's filters and Penstock's answers write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// What a snapshot takes on disk, without its parents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Bytes allocated.
    pub size_bytes: u64,
    /// Inodes, a hard-linked one counted once.
    pub inodes: u64,
}

/// A point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Stamp {
    /// Nanoseconds since 1970: good until 2554.
    nanos: u64,
}

impl Stamp {
    /// The time now. A clock before 1970 reads as 1970.
    pub(crate) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { nanos: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX) }
    }

    /// Seconds since 1970, and nanoseconds of the next one.
    pub(crate) const fn parts(self) -> (u64, u32) {
        let since = Duration::from_nanos(self.nanos);
        (since.as_secs(), since.subsec_nanos())
    }

    pub(crate) fn to_time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.nanos)
    }
}

/// Where a snapshot's files come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Content {
    /// From its directory `fs`.
    Directory {
        /// For a layer that was asked for lazily: why it is not.
        why: Option<String>,
    },
    /// From a device that is mounted on its directory `fs`.
    Lazy {
        /// What the device shows.
        shape: Shape,
        /// Which layers it shows.
        stack: Stack,
        /// For people.
        how: String,
    },
}

/// All that is kept of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// The name of its directory; never changes, never used again while it exists.
    pub(crate) number: u64,
    /// containerd's key or name.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// The name of its parent.
    pub(crate) parent: Option<String>,
    pub(crate) labels: Labels,
    pub(crate) created: Stamp,
    pub(crate) updated: Stamp,
    pub(crate) content: Content,
    /// Known once it is committed.
    pub(crate) usage: Option<Usage>,
}

impl Record {
    pub(crate) const fn is_lazy(&self) -> bool {
        matches!(self.content, Content::Lazy { .. })
    }
}

/// A record as it is written: with the number of the commit that wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Written {
    version: u32,
    pub(crate) generation: u64,
    pub(crate) record: Record,
}

/// Why bytes are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("it is cut short or has no checksum")]
    Short,
    #[error("its checksum does not fit: it was damaged on disk")]
    Checksum,
    #[error("it is not one of this version's: {0}")]
    Format(String),
}

impl Written {
    pub(crate) const fn new(generation: u64, record: Record) -> Self {
        Self { version: VERSION, generation, record }
    }

    /// One line of JSON, and a line with its CRC-32C in hex.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let mut bytes = serde_json::to_vec(self).map_err(|e| RecordError::Format(e.to_string()))?;
        let line = format!("\n{:08x}\n", crc32c::crc32c(&bytes));
        bytes.extend_from_slice(line.as_bytes());
        Ok(bytes)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (json, sum) = bytes
            .strip_suffix(b"\n")
            .and_then(|bytes| bytes.split_at_checked(bytes.len().checked_sub(9)?))
            .ok_or(RecordError::Short)?;
        if sum != format!("\n{:08x}", crc32c::crc32c(json)).as_bytes() {
            return Err(RecordError::Checksum);
        }
        let written: Self = serde_json::from_slice(json).map_err(|e| RecordError::Format(e.to_string()))?;
        if written.version != VERSION {
            return Err(RecordError::Format(format!("its version is {}, not {VERSION}", written.version)));
        }
        Ok(written)
    }
}
