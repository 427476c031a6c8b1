//! Events as they happen: server-sent events (WHATWG HTML, section 9.2) over one stream of the node.
//!
//! What happened comes as unnamed messages, each an [`Event`](crate::Event) in JSON. Three named ones tell what a list of events cannot:
//! `restarted` (the agent that the last ID was of is gone; all that is kept follows), `lost` (how many are no longer kept) and `end`
//! (the agent stops). IDs name the agent's life too, so that a client that comes back after a restart misses nothing unnoticed.

use std::{convert::Infallible, time::Duration};

use axum::{
    http::{HeaderMap, header},
    response::sse::{Event as Message, KeepAlive, Sse},
};
use futures_util::{Stream, StreamExt as _, stream};
use serde::{Deserialize, Serialize};

use crate::{EventStream, Events, Problem, ProblemKind, Timestamp};

/// What a browser sends when it comes back: the last ID that it saw.
const LAST_EVENT_ID: &str = "last-event-id";

/// Something is sent at least this often, so that both sides notice when the other is gone.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How long a client waits before it comes back.
const RETRY: Duration = Duration::from_secs(3);

/// The name of the message that says how many events are no longer kept.
pub const LOST: &str = "lost";
/// The name of the message that says that IDs began anew.
pub const RESTARTED: &str = "restarted";
/// The name of the last message.
pub const END: &str = "end";

/// The data of a [`LOST`] message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// How many events were dropped before they could be sent.
    pub lost: u64,
}

/// Where in an agent's events a client is: the ID of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// When the agent started, in milliseconds since 1970: tells one life of the agent from the next.
    life: i64,
    sequence: u64,
}

impl Place {
    fn new(started_at: Timestamp, sequence: u64) -> Self {
        Self { life: started_at.as_millisecond(), sequence }
    }

    fn parse(text: &str) -> Option<Self> {
        let (life, sequence) = text.split_once('-')?;
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(life) || !digits(sequence) {
            return None;
        }
        Some(Self { life: life.parse().ok()?, sequence: sequence.parse().ok()? })
    }

    fn id(self) -> String {
        format!("{}-{}", self.life, self.sequence)
    }
}

/// Whether a stream is wanted and not a list.
pub(crate) fn is_wanted(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut types = accepted.flat_map(|value| value.split(',')).filter_map(|range| range.split(';').next());
    types.any(|name| name.trim().eq_ignore_ascii_case("text/event-stream"))
}

/// Where the client is that sends `headers`, when it has been here before.
pub(crate) fn place(headers: &HeaderMap) -> Result<Option<Place>, Problem> {
    let Some(value) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
    let place = value.to_str().ok().and_then(Place::parse);
    place.map(Some).ok_or_else(|| {
        Problem::new(ProblemKind::Invalid, "Last-Event-ID is not an ID of this stream; leave it out to begin anew")
    })
}

/// The sequence after which to go on: `since` unless the client was here before. `true` when it was with an agent that is gone.
pub(crate) fn resume(place: Option<Place>, since: u64, started_at: Timestamp) -> (u64, bool) {
    match place {
        None => (since, false),
        Some(place) if place.life == started_at.as_millisecond() => (place.sequence, false),
        Some(_) => (0, true),
    }
}

/// The answer: `events` until they end, and something at least every [`KEEP_ALIVE`].
pub(crate) fn answer(
    events: EventStream,
    is_restarted: bool,
) -> Sse<impl Stream<Item = Result<Message, Infallible>> + Send + 'static> {
    let mut first = vec![Message::default().comment("penstock events").retry(RETRY)];
    if is_restarted {
        first.push(Message::default().event(RESTARTED).data("{}"));
    }
    let all = stream::iter(first)
        .chain(events.flat_map(|batch| stream::iter(messages(&batch))))
        .chain(stream::iter([last()]));
    Sse::new(all.map(Ok)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("still here"))
}

/// The message after which nothing comes.
pub(crate) fn last() -> Message {
    Message::default().event(END).data("{}")
}

/// A batch of events as messages.
pub(crate) fn messages(batch: &Events) -> Vec<Message> {
    let lost = (batch.lost > 0).then(|| {
        let data = serde_json::to_string(&Lost { lost: batch.lost }).unwrap_or_default();
        Message::default().event(LOST).data(data)
    });
    let events = batch.events.iter().map(|event| {
        // JSON on one line: what a registry or an image wrote cannot end the message.
        let data = serde_json::to_string(event).unwrap_or_default();
        Message::default().id(Place::new(batch.started_at, event.sequence).id()).data(data)
    });
    lost.into_iter().chain(events).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_back_and_nothing_else_is_one() {
        let place = Place { life: 1_795_404_000_123, sequence: 17 };
        assert_eq!(Place::parse(&place.id()), Some(place));
        for bad in ["", "17", "-17", "1-", "1-x", "1--2", "+1-2", "1-2-3", "1-99999999999999999999", " 1-2", "1\0-2"] {
            assert_eq!(Place::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn who_was_with_an_agent_that_is_gone_begins_anew() {
        let now = Timestamp::from_millisecond(5_000).unwrap();
        assert_eq!(resume(None, 7, now), (7, false));
        assert_eq!(resume(Some(Place::new(now, 9)), 7, now), (9, false));
        let before = Timestamp::from_millisecond(4_000).unwrap();
        assert_eq!(resume(Some(Place::new(before, 9)), 7, now), (0, true));
    }
}
