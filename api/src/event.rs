//! What has happened on this node lately.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::Timestamp;

/// Whether an event needs somebody's attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The expected course of things.
    #[default]
    Note,
    /// Something failed or was done without.
    Warning,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Counts up by one from 1 at the agent's start.
    pub sequence: u64,
    /// When it happened.
    pub time: Timestamp,
    /// Whether it needs attention.
    #[serde(default)]
    pub severity: Severity,
    /// What kind of thing it is, from the list in docs/events.md: stable words for programs.
    #[schema(example = "device.attached")]
    pub kind: String,
    /// The same for people, in a sentence.
    pub text: String,
    /// Its facts by name.
    pub fields: BTreeMap<String, String>,
}

/// Events, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Events {
    /// When the agent started. A value that differs from the last answer's says that sequences began anew.
    pub started_at: Timestamp,
    /// The events after the sequence asked for, oldest first; at most 1000.
    pub events: Vec<Event>,
    /// The sequence of the newest event there is; 0 when there is none. Larger than that of the last event listed when the
    /// list was cut.
    pub newest: u64,
    /// How many events after the sequence asked for are no longer kept.
    pub lost: u64,
}

/// Which events are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// Only events with a larger sequence; 0 for all that are kept.
    #[serde(default)]
    #[param(default = 0)]
    pub since: u64,
}
