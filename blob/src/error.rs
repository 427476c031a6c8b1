//! What can go wrong when bytes are asked for.

use std::time::Duration;

use crate::{ByteRange, Digest};

/// Why a read got no bytes. Cloned to every waiter of a shared fill, so facts are owned and small.
///
/// Text fields never hold credentials or full URLs with query strings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The range does not lie inside the blob. Permanent: the caller or the format is wrong.
    #[error("bytes {range} lie outside blob {blob} of {size_bytes} bytes")]
    OutOfBounds {
        /// The blob asked.
        blob: Digest,
        /// The bytes asked for.
        range: ByteRange,
        /// The blob's size.
        size_bytes: u64,
    },
    /// No source below knows where the blob is, or the registry says that it does not exist. Permanent.
    #[error("blob {blob} was not found: {reason}")]
    NotFound {
        /// The blob asked.
        blob: Digest,
        /// Who said so.
        reason: String,
    },
    /// The registry refused the credentials, or asks for some. Permanent until they change.
    #[error("{endpoint} refused access to blob {blob}: {reason}; check the credentials for this registry")]
    Denied {
        /// The blob asked.
        blob: Digest,
        /// The registry's host.
        endpoint: String,
        /// Its answer.
        reason: String,
    },
    /// No answer, a server error, a broken connection: another try may help.
    #[error("blob {blob} is not available from {endpoint}: {reason}")]
    Unavailable {
        /// The blob asked.
        blob: Digest,
        /// The registry's host.
        endpoint: String,
        /// What happened last.
        reason: String,
    },
    /// Bytes came, but not the ones asked for (wrong range, short body, failed check). They were thrown away.
    #[error("blob {blob}, bytes {range}: {endpoint} sent wrong bytes: {reason}")]
    WrongBytes {
        /// The blob asked.
        blob: Digest,
        /// The bytes asked for.
        range: ByteRange,
        /// Who sent them.
        endpoint: String,
        /// Which check failed.
        reason: String,
    },
    /// The deadline of the fetch passed. Another try may help.
    #[error("blob {blob}, bytes {range}: no answer within {after:?}; last: {last}")]
    Deadline {
        /// The blob asked.
        blob: Digest,
        /// The bytes asked for.
        range: ByteRange,
        /// How long was waited.
        after: Duration,
        /// The last failure met while waiting.
        last: String,
    },
    /// The local disk failed in a way that the registry could not make good.
    #[error("local storage failed for blob {blob}: {reason}")]
    Storage {
        /// The blob asked.
        blob: Digest,
        /// The failed operation and the system's reason.
        reason: String,
    },
    /// The source is shutting down.
    #[error("the agent is stopping")]
    Stopping,
}

impl ReadError {
    /// Whether asking the same source again may succeed without anything being changed by an operator.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable { .. } | Self::WrongBytes { .. } | Self::Deadline { .. } | Self::Storage { .. } => true,
            Self::OutOfBounds { .. } | Self::NotFound { .. } | Self::Denied { .. } | Self::Stopping => false,
        }
    }
}
