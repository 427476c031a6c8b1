//! Why one try failed, and whether another may help. Everything that can go wrong below the retry policy becomes a [`Failure`].

use std::{error::Error as _, time::Duration};

use penstock_blob::{Blob, ByteRange, ReadError};
use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};

use crate::names::NameError;

/// Longest reason kept, in characters.
const MAX_REASON_CHARS: usize = 300;

/// What kind of failure: the label of the metric, and what the retry policy goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    /// No connection: refused, TLS.
    Connect,
    /// There is no such host.
    Unresolved,
    /// Nothing came for too long.
    Timeout,
    /// The connection broke, or the body ended early.
    Broken,
    /// The server says that it failed (5xx).
    Server,
    /// The server asks to come more slowly (429).
    Throttled,
    /// Credentials are missing, refused, or cannot be had.
    Denied,
    /// Credentials that were accepted before are refused now: others may come, and are picked up.
    Lapsed,
    /// It does not exist there.
    Missing,
    /// It came, but is not what was asked for.
    Wrong,
    /// Another answer that no protocol foresees.
    Refused,
}

impl EncodeLabelValue for Class {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), std::fmt::Error> {
        let name = match self {
            Self::Connect => "connect",
            Self::Unresolved => "unresolved",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::Server => "server",
            Self::Throttled => "throttled",
            Self::Denied => "denied",
            Self::Lapsed => "lapsed",
            Self::Missing => "missing",
            Self::Wrong => "wrong",
            Self::Refused => "refused",
        };
        name.encode(encoder)
    }
}

/// What another try may do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// Another try may help, until the deadline.
    Patience,
    /// Another try or two may help; then it is not going to.
    Doubt,
    /// No other try will help at this place.
    None,
}

/// One try that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The kind.
    pub(crate) class: Class,
    /// What happened, for a person. Never holds a secret or a URL's query.
    pub(crate) reason: String,
    /// How long the server asks to wait.
    pub(crate) retry_after: Option<Duration>,
}

impl Failure {
    pub(crate) fn new(class: Class, reason: &str) -> Self {
        Self { class, reason: reason.chars().take(MAX_REASON_CHARS).collect(), retry_after: None }
    }

    pub(crate) fn denied(reason: String) -> Self {
        Self::new(Class::Denied, &reason)
    }

    pub(crate) fn timeout(reason: String) -> Self {
        Self::new(Class::Timeout, &reason)
    }

    pub(crate) fn wrong(reason: &str) -> Self {
        Self::new(Class::Wrong, reason)
    }

    /// What `reqwest` met, without the URL: a redirected one carries a signature in its query.
    pub(crate) fn transport(error: reqwest::Error) -> Self {
        let is_untrusted = is_untrusted(&error);
        let class = if is_untrusted {
            Class::Refused
        } else if let Some(name) = cause::<NameError>(&error) {
            match name {
                NameError::Unknown { .. } => Class::Unresolved,
                NameError::Failed { .. } => Class::Connect,
                NameError::Refused { .. } => Class::Refused,
            }
        } else if error.is_connect() {
            Class::Connect
        } else if error.is_timeout() {
            Class::Timeout
        } else {
            Class::Broken
        };
        let error = error.without_url();
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if !reason.contains(&text) {
                reason = format!("{reason}: {text}");
            }
            source = cause.source();
        }
        if is_untrusted {
            reason.push_str("; name its authority in the CA bundle if it should be trusted");
        }
        Self::new(class, &reason)
    }

    pub(crate) const fn remedy(&self) -> Remedy {
        match self.class {
            Class::Connect
            | Class::Unresolved
            | Class::Timeout
            | Class::Broken
            | Class::Server
            | Class::Throttled
            | Class::Lapsed => Remedy::Patience,
            Class::Wrong | Class::Refused => Remedy::Doubt,
            Class::Denied | Class::Missing => Remedy::None,
        }
    }

    /// The answer for a reader, once no other try is made.
    pub(crate) fn into_read_error(self, blob: &Blob, range: ByteRange, endpoint: &str) -> ReadError {
        let (blob, reason, endpoint) = (blob.digest, self.reason, endpoint.to_owned());
        match self.class {
            Class::Missing => ReadError::NotFound { blob, reason: format!("{endpoint}: {reason}") },
            Class::Denied | Class::Lapsed => ReadError::Denied { blob, endpoint, reason },
            Class::Wrong => ReadError::WrongBytes { blob, range, endpoint, reason },
            Class::Connect
            | Class::Unresolved
            | Class::Timeout
            | Class::Broken
            | Class::Server
            | Class::Throttled
            | Class::Refused => ReadError::Unavailable { blob, endpoint, reason },
        }
    }
}

/// Whether the server showed a certificate that is not trusted: waiting will not change that.
fn is_untrusted(error: &reqwest::Error) -> bool {
    matches!(cause::<rustls::Error>(error), Some(rustls::Error::InvalidCertificate(_)))
}

/// Whether what answered does not speak TLS.
pub(crate) fn is_not_tls(error: &reqwest::Error) -> bool {
    let content = rustls::InvalidMessage::InvalidContentType;
    cause::<rustls::Error>(error).is_some_and(|cause| *cause == rustls::Error::InvalidMessage(content))
}

/// The first cause of an error that is an `E`.
fn cause<E: std::error::Error + 'static>(error: &reqwest::Error) -> Option<&E> {
    std::iter::successors(error.source(), |&cause| {
        // What an I/O error carries is not its source, but the source of its source.
        match cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(carried) => Some(carried),
            None => cause.source(),
        }
    })
    .find_map(|cause| cause.downcast_ref::<E>())
}
