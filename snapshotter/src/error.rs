//! What a call can fail with.

use std::{io, path::PathBuf};

use crate::mounter::MountError;

/// Why a snapshotter cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{root} is in use by another agent: one root serves one agent")]
    InUse {
        /// The root directory.
        root: PathBuf,
    },
    /// The root directory cannot be prepared or read.
    #[error("{path} cannot be used: {source}; check its file system and permissions")]
    Io {
        /// What could not be made or read.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// The metadata neither opens nor can be set aside.
    #[error(
        "the metadata in {root} cannot be opened: {reason}; it is rebuilt from the snapshots when `metadata` is moved away"
    )]
    Metadata {
        /// The root directory.
        root: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Why a call about a snapshot failed. Each is one status of gRPC's to containerd.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SnapshotError {
    /// No snapshot has this name.
    #[error(
        "snapshot {name:?} does not exist; if containerd lists it, its record was lost: `penstock snapshotter repair` says what \
         can be done"
    )]
    NotFound {
        /// The name.
        name: String,
    },
    /// A snapshot has this name already; or, of a layer, it is there and need not be unpacked.
    #[error("snapshot {name:?} already exists")]
    Exists {
        /// The name.
        name: String,
    },
    /// The snapshot is not in a state for this.
    #[error("{reason}")]
    Precondition {
        /// What stands in the way, and what would remove it.
        reason: String,
    },
    /// The request makes no sense.
    #[error("{reason}")]
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// Another try may help.
    #[error("{reason}")]
    Unavailable {
        /// What does not answer.
        reason: String,
    },
    /// The disk failed, or this program did.
    #[error("{reason}")]
    Internal {
        /// What failed.
        reason: String,
    },
}

impl SnapshotError {
    pub(crate) fn not_found(name: &str) -> Self {
        Self::NotFound { name: name.to_owned() }
    }

    pub(crate) fn exists(name: &str) -> Self {
        Self::Exists { name: name.to_owned() }
    }

    pub(crate) fn precondition(reason: impl Into<String>) -> Self {
        Self::Precondition { reason: reason.into() }
    }

    pub(crate) fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid { reason: reason.into() }
    }

    pub(crate) fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable { reason: reason.into() }
    }

    pub(crate) fn internal(what: &str, error: &dyn std::fmt::Display) -> Self {
        Self::Internal { reason: format!("{what}: {error}") }
    }

    /// Whether the same call may succeed later without anything being changed.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

impl From<MountError> for SnapshotError {
    fn from(error: MountError) -> Self {
        match &error {
            MountError::Busy { .. } | MountError::Permanent { .. } => Self::precondition(error.to_string()),
            MountError::Transient { .. } => Self::unavailable(error.to_string()),
        }
    }
}
