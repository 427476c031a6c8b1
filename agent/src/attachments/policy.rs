//! What readers of a device get while bytes cannot be fetched: what the config says, and what was asked for the device instead.

use std::{sync::Arc, time::Duration};

use penstock_api::{self as api, OnFailure, Policy, PolicyChange};
use penstock_device::{Notice, Patience, Then};
use tokio::sync::broadcast::error::RecvError;

use super::{AttachError, Attachments, Parts, live::Live};
use crate::events::{Events, Kind};

/// The policy of devices of which nothing was asked, by what the config says. Of one that is streamed readers wait: its bytes come in their order, and
/// late ones are no failure.
pub(super) const fn defaults(config: Policy, is_streamed: bool) -> Policy {
    Policy { on_failure: if is_streamed { OnFailure::Wait } else { config.on_failure }, ..config }
}

/// The policy of a device: `defaults`, with what was `asked` in its place. A wait is never shorter than the deadline before it.
pub(super) fn effective(defaults: Policy, asked: PolicyChange) -> Policy {
    let deadline_ms = asked.deadline_ms.unwrap_or(defaults.deadline_ms);
    Policy {
        deadline_ms,
        on_failure: asked.on_failure.unwrap_or(defaults.on_failure),
        wait_limit_ms: asked.wait_limit_ms.unwrap_or(defaults.wait_limit_ms).max(deadline_ms),
    }
}

/// The same as devices understand it.
pub(super) const fn patience(policy: Policy) -> Patience {
    let then = match policy.on_failure {
        OnFailure::Eio => Then::Eio,
        OnFailure::Wait => Then::Wait { at_most: Duration::from_millis(policy.wait_limit_ms) },
    };
    Patience { deadline: Duration::from_millis(policy.deadline_ms), then }
}

impl Attachments {
    /// Changes what is set of a device; answers once that holds and is recorded.
    pub(crate) async fn change_policy(
        self: &Arc<Self>,
        id: &str,
        change: api::Change,
    ) -> Result<api::Device, AttachError> {
        change.policy.check().map_err(AttachError::Policy)?;
        let (this, id) = (Arc::clone(self), id.to_owned());
        self.run("changing a policy", async move {
            // Neither another change nor a detach comes between looking at the record and writing it.
            let _alone = this.recording.lock().await;
            let (live, mut record) = this.table.lock().attached(&id)?;
            record.policy = record.policy.with(change.policy);
            this.save(record.clone()).await?;
            live.obey(&this.parts, record.policy);
            Ok(this.update(record))
        })
        .await
    }
}

impl Live {
    /// Has the device's readers wait as it was asked, from now on.
    pub(super) fn obey(&self, parts: &Parts, asked: PolicyChange) {
        let patience = patience(effective(defaults(parts.policy, self.is_streamed), asked));
        if let Err(error) = self.device.set_patience(patience) {
            // Checked bounds are the device's own.
            tracing::error!(device = %self.device.id(), %error, "a policy was not taken");
        }
    }
}

/// What a device has to say about its reads, as events, until the device is gone.
pub(super) async fn tell(device: String, mut notices: tokio::sync::broadcast::Receiver<Notice>, events: Events) {
    loop {
        let (kind, text) = match notices.recv().await {
            Ok(notice) => said(&device, &notice),
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return,
        };
        events.record(kind, &text, &[("device", &device)]);
    }
}

fn said(device: &str, notice: &Notice) -> (Kind, String) {
    let because = |last: &Option<String>| last.as_ref().map_or_else(String::new, |last| format!(": {last}"));
    match notice {
        Notice::Waiting { at_most, last, .. } => {
            let because = because(last);
            (Kind::DeviceWaiting, format!("readers of {device} wait, at most {at_most:?} in all{because}"))
        }
        Notice::PolicyEio { waited, last, .. } => {
            let because = because(last);
            (Kind::DevicePolicyEio, format!("readers of {device} get I/O errors, the first after {waited:?}{because}"))
        }
        Notice::Healed { .. } => (Kind::DeviceHealed, format!("readers of {device} get their bytes again")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: Policy = Policy { deadline_ms: 30_000, on_failure: OnFailure::Eio, wait_limit_ms: 600_000 };

    #[test]
    fn what_was_asked_goes_before_the_config_and_a_wait_is_never_shorter_than_its_deadline() {
        assert_eq!(effective(DEFAULTS, PolicyChange::default()), DEFAULTS);
        let asked =
            PolicyChange { on_failure: Some(OnFailure::Wait), wait_limit_ms: Some(5_000), ..PolicyChange::default() };
        let policy = effective(DEFAULTS, asked);
        assert_eq!(policy, Policy { deadline_ms: 30_000, on_failure: OnFailure::Wait, wait_limit_ms: 30_000 });
        assert_eq!(patience(policy).check(), Ok(()));
        assert_eq!(patience(DEFAULTS).then, Then::Eio);
    }

    #[test]
    fn readers_of_a_streamed_device_wait_unless_it_was_asked_otherwise() {
        let streamed = defaults(DEFAULTS, true);
        assert_eq!(effective(streamed, PolicyChange::default()).on_failure, OnFailure::Wait);
        let asked = PolicyChange { on_failure: Some(OnFailure::Eio), ..PolicyChange::default() };
        assert_eq!(effective(streamed, asked), DEFAULTS);
        assert_eq!(defaults(DEFAULTS, false), DEFAULTS);
    }

    #[test]
    fn every_policy_within_the_bounds_of_the_api_is_within_those_of_devices() {
        for deadline_ms in [*api::DEADLINE_MS.start(), *api::DEADLINE_MS.end()] {
            for wait_limit_ms in [*api::WAIT_LIMIT_MS.start(), *api::WAIT_LIMIT_MS.end()] {
                let asked = PolicyChange {
                    deadline_ms: Some(deadline_ms),
                    on_failure: Some(OnFailure::Wait),
                    wait_limit_ms: Some(wait_limit_ms),
                };
                assert_eq!(patience(effective(DEFAULTS, asked)).check(), Ok(()));
            }
        }
    }
}
