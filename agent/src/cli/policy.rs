//! `--on-failure` and `--deadline`, as they are typed.

use penstock_api::{OnFailure, PolicyChange};

use super::args::Policy;
use crate::config::value;

/// `eio`, `wait` or `wait=10m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnFailureArg {
    on_failure: OnFailure,
    wait_limit_ms: Option<u64>,
}

/// Reads `--on-failure`. Bounds are the agent's to check.
pub(super) fn on_failure(text: &str) -> Result<OnFailureArg, String> {
    let of = |on_failure, wait_limit_ms| Ok(OnFailureArg { on_failure, wait_limit_ms });
    match (text, text.strip_prefix("wait=")) {
        ("eio", _) => of(OnFailure::Eio, None),
        ("wait", _) => of(OnFailure::Wait, None),
        (_, Some(limit)) => of(OnFailure::Wait, Some(deadline(limit)?)),
        _ => Err("write eio, wait or wait=TIME, such as wait=10m".to_owned()),
    }
}

/// Reads a duration, in milliseconds.
pub(super) fn deadline(text: &str) -> Result<u64, String> {
    u64::try_from(value::duration(text)?.as_millis()).map_err(|error| error.to_string())
}

impl From<&Policy> for PolicyChange {
    fn from(policy: &Policy) -> Self {
        Self {
            deadline_ms: policy.deadline,
            on_failure: policy.on_failure.map(|arg| arg.on_failure),
            wait_limit_ms: policy.on_failure.and_then(|arg| arg.wait_limit_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_read_as_it_is_typed() {
        let read = |text| on_failure(text).map(|arg| (arg.on_failure, arg.wait_limit_ms));
        assert_eq!(read("eio"), Ok((OnFailure::Eio, None)));
        assert_eq!(read("wait"), Ok((OnFailure::Wait, None)));
        assert_eq!(read("wait=10m"), Ok((OnFailure::Wait, Some(600_000))));
        for bad in ["", "WAIT", "wait=", "wait=10", "eio=1s"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
        assert_eq!(deadline("250ms"), Ok(250));
    }
}
