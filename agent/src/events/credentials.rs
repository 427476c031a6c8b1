//! Which providers of credentials cannot be used, as events of the agent. What becomes of credentials is in `fetcher`.

use penstock_fetcher::Fetcher;

use super::{Events, Kind};

/// Says which providers of credentials cannot be used as the agent starts. They are looked at again whenever they are needed.
pub(crate) async fn check(fetcher: &Fetcher, to: &Events) {
    for state in fetcher.credentials().await.providers {
        if let Some(problem) = state.problem {
            to.record(Kind::CredentialsUnusable, &problem, &[("provider", state.provider.name())]);
        }
    }
}
