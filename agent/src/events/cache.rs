//! What the cache has to say, as events of the agent.

use penstock_cache::Event;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::{Events, Kind};

/// Passes on until the cache is gone.
pub(crate) async fn pass_on(mut from: Receiver<Event>, to: Events) {
    loop {
        match from.recv().await {
            Ok(event) => to.record(kind(&event), &event.to_string(), &[]),
            Err(RecvError::Lagged(lost)) => {
                let text = format!("{lost} events of the cache came too fast to be kept");
                to.record(Kind::CacheEventsLost, &text, &[]);
            }
            Err(RecvError::Closed) => return,
        }
    }
}

const fn kind(event: &Event) -> Kind {
    match event {
        Event::IndexRebuilt { .. } => Kind::CacheIndexRebuilt,
        Event::IndexAbandoned { .. } => Kind::CacheIndexAbandoned,
        Event::BlobDropped { .. } | Event::BlobMismatch { .. } | Event::Corrupt { .. } => Kind::CacheCorrupt,
        Event::BlobVerified { .. } => Kind::CacheBlobVerified,
        Event::Bypass { .. } => Kind::CacheBypass,
        Event::Pressure { .. } => Kind::CachePressure,
        Event::Healed { .. } => Kind::CacheHealed,
        Event::Scrubbed(_) => Kind::CacheScrubbed,
    }
}
