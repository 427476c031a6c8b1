//! What the fetcher has to say to operators. Each is said once for a change of state, not for each read.

use std::fmt;

use penstock_blob::{ByteRange, Digest};

use crate::Provider;

/// Something that an operator should know. No text holds a credential or a URL's query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Reads from a registry began to fail, whoever was asked. Said again after one has succeeded.
    FetchFailed {
        /// The registry, as references name it.
        registry: String,
        /// What was read first.
        blob: Digest,
        /// What happened last.
        reason: String,
    },
    /// An endpoint is passed over from now on, while there are others.
    EndpointBroken {
        /// Its host.
        endpoint: String,
        /// What happened last.
        reason: String,
    },
    /// It is asked again.
    EndpointHealed {
        /// Its host.
        endpoint: String,
    },
    /// An endpoint gave bytes that are not those asked for. They were thrown away, and it is asked last for this blob.
    WrongBytes {
        /// Its host.
        endpoint: String,
        /// The blob.
        blob: Digest,
        /// The bytes, where that is known.
        range: Option<ByteRange>,
        /// What is wrong with them.
        reason: String,
        /// Whether somebody else gave a part of them too, so that it may have been the other one.
        shared: bool,
    },
    /// What `hosts.toml` says about a registry cannot be used. What it said before holds, else the registry itself is asked.
    HostsRefused {
        /// The registry, as references name it.
        registry: String,
        /// What is wrong and where.
        reason: String,
    },
    /// What `hosts.toml` says about a registry is used, after it could not be or was different.
    HostsTaken {
        /// The registry, as references name it.
        registry: String,
        /// Who is asked, in this order.
        endpoints: Vec<String>,
    },
    /// A registry, or its token server, refuses the credentials of a provider, which it did not refuse before.
    CredentialsRefused {
        /// The registry or mirror.
        host: String,
        /// Who had them.
        provider: Provider,
        /// What it says.
        reason: String,
    },
    /// Credentials of a provider that were refused, or those in their place, are accepted.
    CredentialsRefreshed {
        /// The registry or mirror.
        host: String,
        /// Who has them.
        provider: Provider,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FetchFailed { registry, blob, reason } => {
                write!(f, "reads from {registry} fail, first of blob {blob}: {reason}")
            }
            Self::EndpointBroken { endpoint, reason } => write!(f, "{endpoint} is passed over for now: {reason}"),
            Self::EndpointHealed { endpoint } => write!(f, "{endpoint} answers again"),
            Self::WrongBytes { endpoint, blob, range, reason, shared } => {
                let gave = if *shared { "gave some of the bytes that are wrong" } else { "gave wrong bytes" };
                write!(f, "{endpoint} {gave} of blob {blob}")?;
                if let Some(range) = range {
                    write!(f, ", bytes {range}")?;
                }
                write!(f, ": {reason}")
            }
            Self::HostsRefused { registry, reason } => {
                write!(f, "the hosts of {registry} cannot be used, and what held before still does: {reason}")
            }
            Self::CredentialsRefused { host, provider: Provider::Anonymous, reason } => {
                write!(f, "{host} asks for credentials, and no provider has any for it: {reason}")
            }
            Self::CredentialsRefused { host, provider, reason } => {
                write!(f, "{host} refuses the credentials of {provider}, and others are picked up: {reason}")
            }
            Self::CredentialsRefreshed { host, provider } => {
                write!(f, "{host} accepts the credentials of {provider} again")
            }
            Self::HostsTaken { registry, endpoints } => {
                write!(f, "{registry} is asked for at {}", endpoints.join(", "))
            }
        }
    }
}
