//! What happened lately, for operators: one bounded ring that all parts of an agent write to.
//!
//! An event is said once for a change of state, not for each read. Each is logged, counted by [`Kind`] and, unless it is a mere
//! [`Severity::Detail`], kept in the ring.

pub(crate) mod cache;
pub(crate) mod credentials;
pub(crate) mod fetcher;
mod follow;
mod kind;

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use penstock_api::{Event, Timestamp};
use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use follow::Audience;
pub use follow::FOLLOWERS;
use kind::KindLabel;
pub use kind::{Kind, Severity};

/// Events kept: as many as one answer of the API lists. Older ones are dropped and counted as lost to who asks for them.
pub const KEPT: usize = penstock_api::EVENTS_LISTED;

/// Bytes of text or of one fact that are kept; the rest is cut. Keeps the ring below 4 MiB whatever a registry answers.
const TEXT_BYTES: usize = 1024;

/// The ring. Cheap to clone; all clones are the same ring.
#[derive(Debug, Clone)]
pub struct Events {
    started_at: Timestamp,
    ring: Arc<Mutex<Ring>>,
    counts: Family<KindLabel, Counter>,
    audience: Audience,
}

#[derive(Debug, Default)]
struct Ring {
    newest: u64,
    kept: VecDeque<Event>,
}

impl Events {
    /// An empty ring of an agent that starts now.
    #[must_use]
    pub fn new() -> Self {
        let counts = Family::default();
        for &kind in Kind::ALL {
            // A series from the start, so that the first occurrence is an increase.
            drop(counts.get_or_create(&KindLabel::from(kind)));
        }
        Self { started_at: Timestamp::now(), ring: Arc::default(), counts, audience: Audience::default() }
    }

    /// Shows the counts of events by kind in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "events",
            "Events by kind, those included that the ring no longer keeps",
            self.counts.clone(),
        );
    }

    /// When the agent started.
    #[must_use]
    pub const fn started_at(&self) -> Timestamp {
        self.started_at
    }

    /// Logs an event, counts it, and keeps it. `text` is a sentence for people, `facts` are by name; none of them holds a credential.
    pub fn record(&self, kind: Kind, text: &str, facts: &[(&str, &str)]) {
        self.counts.get_or_create(&KindLabel::from(kind)).inc();
        // The one fact worth a field of its own in the log; an absent one is left out there.
        let device = facts.iter().find(|(name, _)| *name == "device").map(|(_, fact)| *fact);
        let name = kind.name();
        let severity = match kind.severity() {
            Severity::Detail => {
                tracing::debug!(target: "penstock_agent::event", kind = name, device, "{text}");
                return;
            }
            Severity::Note => {
                tracing::info!(target: "penstock_agent::event", kind = name, device, "{text}");
                penstock_api::Severity::Note
            }
            Severity::Warning => {
                tracing::warn!(target: "penstock_agent::event", kind = name, device, "{text}");
                penstock_api::Severity::Warning
            }
        };
        let fields = facts.iter().map(|(name, fact)| ((*name).to_owned(), cut(fact))).collect();
        let (time, kind, text) = (Timestamp::now(), name.to_owned(), cut(text));
        let mut ring = self.ring.lock();
        ring.newest += 1;
        let sequence = ring.newest;
        if ring.kept.len() == KEPT {
            ring.kept.pop_front();
        }
        ring.kept.push_back(Event { sequence, time, severity, kind, text, fields });
        drop(ring);
        self.audience.tell(sequence);
    }

    /// The first `limit` kept events with a sequence beyond `since`.
    #[must_use]
    pub fn since(&self, since: u64, limit: usize) -> penstock_api::Events {
        let ring = self.ring.lock();
        let oldest = ring.kept.front().map_or(ring.newest + 1, |event| event.sequence);
        penstock_api::Events {
            started_at: self.started_at,
            events: ring.kept.iter().filter(|event| event.sequence > since).take(limit).cloned().collect(),
            newest: ring.newest,
            lost: oldest.saturating_sub(since.saturating_add(1)),
        }
    }
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

/// The first part of a text that may be long.
pub(crate) fn cut(text: &str) -> String {
    match text.char_indices().take_while(|(at, c)| at + c.len_utf8() <= TEXT_BYTES).last() {
        Some((at, c)) if at + c.len_utf8() < text.len() => format!("{}...", &text[..at + c.len_utf8()]),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_is_bounded_and_counts_what_it_lost() {
        let events = Events::new();
        assert_eq!((events.since(0, 10).newest, events.since(0, 10).lost), (0, 0));
        for n in 0..KEPT + 5 {
            events.record(Kind::AgentReady, &n.to_string(), &[("n", &n.to_string())]);
        }
        let all = events.since(0, usize::MAX);
        assert_eq!((all.events.len(), all.newest, all.lost), (KEPT, KEPT as u64 + 5, 5));
        assert_eq!(all.events[0].sequence, 6);
        let some = events.since(KEPT as u64, 3);
        assert_eq!(some.events.iter().map(|e| e.sequence).collect::<Vec<_>>(), [1, 2, 3].map(|n| KEPT as u64 + n));
        assert_eq!(some.lost, 0);
        assert!(events.since(u64::MAX, 10).events.is_empty());
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let events = Events::new();
        events.record(Kind::StateLeftover, &"\u{e9}".repeat(4096), &[]);
        let text = &events.since(0, 1).events[0].text;
        assert_eq!(text.len(), TEXT_BYTES + 3);
        assert!(text.ends_with("\u{e9}..."));
    }
}
