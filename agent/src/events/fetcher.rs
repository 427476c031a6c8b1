//! What the fetcher has to say, as events of the agent.

use penstock_fetcher::Event;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::{Events, Kind};

/// Passes on until the fetcher is gone.
pub(crate) async fn pass_on(mut from: Receiver<Event>, to: Events) {
    loop {
        match from.recv().await {
            Ok(event) => record(&event, &to),
            Err(RecvError::Lagged(lost)) => {
                let text = format!("{lost} events of the fetcher came too fast to be kept");
                to.record(Kind::FetchEventsLost, &text, &[]);
            }
            Err(RecvError::Closed) => return,
        }
    }
}

fn record(event: &Event, to: &Events) {
    let text = event.to_string();
    match event {
        Event::FetchFailed { registry, blob, .. } => {
            to.record(Kind::FetchFailed, &text, &[("registry", registry), ("blob", &blob.to_string())]);
        }
        Event::EndpointBroken { endpoint, .. } => to.record(Kind::EndpointBroken, &text, &[("endpoint", endpoint)]),
        Event::EndpointHealed { endpoint } => to.record(Kind::EndpointHealed, &text, &[("endpoint", endpoint)]),
        Event::WrongBytes { endpoint, blob, .. } => {
            to.record(Kind::EndpointWrongBytes, &text, &[("endpoint", endpoint), ("blob", &blob.to_string())]);
        }
        Event::CredentialsRefused { host, provider, .. } => {
            to.record(Kind::CredentialsRefused, &text, &[("endpoint", host), ("provider", provider.name())]);
        }
        Event::CredentialsRefreshed { host, provider } => {
            to.record(Kind::CredentialsRefreshed, &text, &[("endpoint", host), ("provider", provider.name())]);
        }
        Event::HostsRefused { registry, .. } => to.record(Kind::HostsRefused, &text, &[("registry", registry)]),
        Event::HostsTaken { registry, .. } => to.record(Kind::HostsTaken, &text, &[("registry", registry)]),
    }
}
