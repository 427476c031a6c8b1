//! Why an image is not in the content store.

use std::path::PathBuf;

use penstock_blob::{Digest, ReadError};
use tonic::{Code, Status};

use crate::service::code_name;

/// Why containerd does not have it. Each text says what to do next; what was written so far is kept for another try.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nobody answers at its socket.
    #[error("containerd does not answer at {} ({reason}); start it, or name its socket with --containerd", socket.display())]
    Away {
        /// The socket.
        socket: PathBuf,
        /// What was seen.
        reason: String,
    },
    /// The namespace is none.
    #[error(
        "{namespace:?} is no namespace of containerd; `ctr namespaces list` shows those there are (the kubelet's is k8s.io)"
    )]
    Namespace {
        /// As it was given.
        namespace: String,
    },
    /// Somebody else writes the same blob.
    #[error(
        "somebody else puts {blob} into the content store at this moment; run the same command again when that has ended"
    )]
    Busy {
        /// The blob.
        blob: Digest,
    },
    /// What was read is not the blob.
    #[error(
        "the bytes read for {blob} are not those of its digest; they were dropped, so run the same command again to fetch them anew"
    )]
    WrongBytes {
        /// The blob.
        blob: Digest,
    },
    /// A blob cannot be read.
    #[error("{0}; what containerd has so far is kept, so that the same command goes on from there")]
    Read(#[from] ReadError),
    /// containerd refused, or failed.
    #[error("containerd did not {what}: {text} ({code}); see containerd's log")]
    Refused {
        /// What it was asked to do.
        what: &'static str,
        /// gRPC's code.
        code: &'static str,
        /// containerd's own words.
        text: String,
    },
}

impl StoreError {
    /// Whether another try may help without anybody doing anything else.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Away { .. } | Self::Busy { .. } | Self::WrongBytes { .. } => true,
            Self::Read(error) => error.is_transient(),
            Self::Namespace { .. } | Self::Refused { .. } => false,
        }
    }

    /// What a call's status means, when the call was to do `what`.
    pub(super) fn of(status: &Status, what: &'static str, socket: &std::path::Path) -> Self {
        let text = status.message().to_owned();
        match status.code() {
            Code::Unavailable => Self::Away { socket: socket.to_path_buf(), reason: text },
            code => Self::Refused { what, code: code_name(code), text },
        }
    }
}
