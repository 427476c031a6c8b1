//! Where an attachment is in its life, and which changes are legal.

use std::sync::Arc;

use penstock_api::DeviceState;

use super::live::Live;

/// Where an attachment is.
#[derive(Debug)]
pub(super) enum State {
    /// Being resolved, opened, started or mounted.
    Attaching,
    /// Serving reads.
    Attached(Arc<Live>),
    /// Being unmounted and stopped; without a device when it had failed.
    Detaching(Option<Arc<Live>>),
    /// Recorded, not serving, for this reason.
    Failed(String),
}

/// What happens to an attachment.
#[derive(Debug)]
pub(super) enum Change {
    /// It serves reads.
    Built(Arc<Live>),
    /// It does not and will not until asked again.
    Broke(String),
    /// It is asked for again.
    Retried,
    /// It is to go.
    DetachBegun,
    /// It cannot go: somebody uses it.
    DetachRefused,
}

/// A change that the present state does not allow: the name of that state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Illegal(pub(super) DeviceState);

impl State {
    /// The state after `change`, or which state forbids it (and then nothing changed).
    ///
    /// | from | change | to | why |
    /// |---|---|---|---|
    /// | attaching | built | attached | every step succeeded |
    /// | attaching | broke | failed | a restore did not succeed; its record stays |
    /// | attached | detach begun | detaching | asked by the operator |
    /// | failed | detach begun | detaching | only the record is left to remove |
    /// | failed | retried | attaching | asked by the operator |
    /// | detaching | detach refused | attached | it is in use, and nothing was taken away |
    /// | detaching | broke | failed | the device is gone, its record is not |
    pub(super) fn apply(&mut self, change: Change) -> Result<(), Illegal> {
        let (next, legal) = match (std::mem::replace(self, Self::Attaching), change) {
            (Self::Attaching, Change::Built(live)) => (Self::Attached(live), true),
            (Self::Attaching | Self::Detaching(_), Change::Broke(reason)) => (Self::Failed(reason), true),
            (Self::Attached(live), Change::DetachBegun) => (Self::Detaching(Some(live)), true),
            (Self::Failed(_), Change::DetachBegun) => (Self::Detaching(None), true),
            (Self::Failed(_), Change::Retried) => (Self::Attaching, true),
            (Self::Detaching(Some(live)), Change::DetachRefused) => (Self::Attached(live), true),
            (unchanged, _) => (unchanged, false),
        };
        *self = next;
        if legal { Ok(()) } else { Err(Illegal(self.name())) }
    }

    /// The state's name for operators.
    pub(super) const fn name(&self) -> DeviceState {
        match self {
            Self::Attaching => DeviceState::Attaching,
            Self::Attached(_) => DeviceState::Attached,
            Self::Detaching(_) => DeviceState::Detaching,
            Self::Failed(_) => DeviceState::Failed,
        }
    }

    /// The device, while there is one.
    pub(super) const fn live(&self) -> Option<&Arc<Live>> {
        match self {
            Self::Attached(live) | Self::Detaching(Some(live)) => Some(live),
            Self::Attaching | Self::Detaching(None) | Self::Failed(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_attachment_can_be_retried_or_detached_and_nothing_else() {
        let mut state = State::Attaching;
        state.apply(Change::Broke("no disk".into())).unwrap();
        assert_eq!(state.apply(Change::DetachRefused), Err(Illegal(DeviceState::Failed)));
        assert_eq!(state.apply(Change::Broke("again".into())), Err(Illegal(DeviceState::Failed)));
        assert!(matches!(&state, State::Failed(reason) if reason == "no disk"), "an illegal change changes nothing");
        state.apply(Change::Retried).unwrap();
        assert_eq!(state.apply(Change::Retried), Err(Illegal(DeviceState::Attaching)));
        assert_eq!(state.apply(Change::DetachBegun), Err(Illegal(DeviceState::Attaching)));
        state.apply(Change::Broke("no disk".into())).unwrap();
        state.apply(Change::DetachBegun).unwrap();
        assert_eq!(state.apply(Change::DetachRefused), Err(Illegal(DeviceState::Detaching)));
        state.apply(Change::Broke("read-only".into())).unwrap();
        assert_eq!(state.name(), DeviceState::Failed);
        assert!(state.live().is_none());
    }
}
