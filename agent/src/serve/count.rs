//! What the listeners count.

use http::StatusCode;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Which listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Name {
    /// The unix socket.
    Unix,
    /// The TCP address.
    Tcp,
}

/// Why a connection or a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Reason {
    /// As many connections as the listener takes.
    Full,
    /// As many connections as one peer may have.
    PeerFull,
    /// A user of the node who may not use the socket.
    Stranger,
    /// A TLS handshake that failed, or took too long.
    Handshake,
    /// A path that is too long.
    Uri,
    /// More requests than one peer may send.
    Rate,
    /// A `Host` that is not this node.
    Host,
    /// No token and no certificate that is known.
    Unauthenticated,
    /// Too many of those before.
    ShutOut,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerLabel {
    listener: Name,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabel {
    listener: Name,
    reason: Reason,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnswerLabel {
    listener: Name,
    /// The first digit of the status, as `2xx`.
    status: &'static str,
}

/// The metrics of both listeners.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    connections: Family<ListenerLabel, Gauge>,
    refused: Family<RefusalLabel, Counter>,
    answers: Family<AnswerLabel, Counter>,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let this = Self::default();
        registry.register("connections", "Connections to the admin API", this.connections.clone());
        registry.register("refused", "Connections and requests refused before a route saw them", this.refused.clone());
        registry.register("answers", "Requests answered, by class of status", this.answers.clone());
        this
    }

    pub(super) fn of(&self, name: Name) -> Counts {
        Counts { all: self.clone(), name }
    }
}

/// The metrics of one listener.
#[derive(Debug, Clone)]
pub(super) struct Counts {
    all: Metrics,
    name: Name,
}

/// A connection that is counted as open until this is dropped.
#[derive(Debug)]
pub(super) struct Counted(Gauge);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Counts {
    pub(super) fn connect(&self) -> Counted {
        let gauge = self.all.connections.get_or_create(&ListenerLabel { listener: self.name }).clone();
        gauge.inc();
        Counted(gauge)
    }

    pub(super) fn refuse(&self, reason: Reason) {
        self.all.refused.get_or_create(&RefusalLabel { listener: self.name, reason }).inc();
    }

    pub(super) fn answer(&self, status: StatusCode) {
        let status = match status.as_u16() / 100 {
            1 => "1xx",
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        };
        self.all.answers.get_or_create(&AnswerLabel { listener: self.name, status }).inc();
    }
}
