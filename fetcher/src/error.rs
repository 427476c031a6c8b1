//! What can go wrong when an image is looked up.

use std::time::Duration;

use penstock_blob::Digest;

use crate::{
    Platform, Reference,
    failure::{Class, Failure},
    manifest::ManifestError,
};

/// Why a reference could not be resolved to a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// The registry knows no such repository, tag or digest. (Some registries say so for private ones, too.)
    #[error("{reference} was not found: {endpoint} {reason}; check the name and the tag, and whether it needs a login")]
    NotFound {
        /// What was looked for.
        reference: Reference,
        /// Who was asked.
        endpoint: String,
        /// Its answer.
        reason: String,
    },
    /// The registry refused the credentials, or asks for some.
    #[error("{endpoint} refused access to {reference}: {reason}; run `docker login {}` or name a docker config that holds its credentials", reference.registry())]
    Denied {
        /// What was looked for.
        reference: Reference,
        /// Who was asked.
        endpoint: String,
        /// Its answer.
        reason: String,
    },
    /// The registry gave an answer that is no manifest: another try may help.
    #[error("{reference} is not available from {endpoint}: {reason}; try again, or check the registry")]
    Unavailable {
        /// What was looked for.
        reference: Reference,
        /// Who was asked.
        endpoint: String,
        /// What happened last.
        reason: String,
    },
    /// The deadline passed.
    #[error(
        "{reference}: {endpoint} gave no answer within {after:?}; last: {last}; check the network and the registry's address"
    )]
    Deadline {
        /// What was looked for.
        reference: Reference,
        /// Who was asked.
        endpoint: String,
        /// How long was waited.
        after: Duration,
        /// The last failure met while waiting.
        last: String,
    },
    /// The manifest's bytes are not those that the digest names.
    #[error(
        "{reference}: {endpoint} sent a manifest with digest {actual} instead of {expected}; do not use this registry until it is known why"
    )]
    Digest {
        /// What was looked for.
        reference: Reference,
        /// Who was asked.
        endpoint: String,
        /// The digest asked for, or that the registry itself named.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// The manifest cannot be used.
    #[error("the manifest of {reference} cannot be used: {error}")]
    Manifest {
        /// What was looked for.
        reference: Reference,
        /// Why.
        error: ManifestError,
    },
    /// The index holds nothing for the platform.
    #[error("{reference} has no image for {wanted}; it has {offered}; choose another tag or another platform")]
    Platform {
        /// What was looked for.
        reference: Reference,
        /// The platform asked for.
        wanted: Platform,
        /// The platforms it has, at most eight of them named.
        offered: String,
    },
    /// Indexes within indexes, deeper than the bound.
    #[error("{reference} is an index of indexes, more than {depth} deep; no real image is")]
    Depth {
        /// What was looked for.
        reference: Reference,
        /// The bound.
        depth: u32,
    },
}

impl ResolveError {
    /// Whether asking again may succeed without anything being changed by an operator.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Deadline { .. } | Self::Digest { .. })
    }

    pub(crate) fn of(failure: Failure, reference: &Reference, endpoint: &str) -> Self {
        let (reference, endpoint, reason) = (reference.clone(), endpoint.to_owned(), failure.reason);
        match failure.class {
            Class::Missing => Self::NotFound { reference, endpoint, reason },
            Class::Denied | Class::Lapsed => Self::Denied { reference, endpoint, reason },
            _ => Self::Unavailable { reference, endpoint, reason },
        }
    }
}
