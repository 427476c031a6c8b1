//! Devices of an earlier run of this agent.

use std::fs;

use libublk::{ctrl::UblkCtrl, sys};

use crate::DeviceError;

/// What an earlier run left in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leftovers {
    /// Numbers N of devices that had stopped already; they were removed.
    pub removed: Vec<u32>,
    /// Numbers N of devices whose readers wait for a successor (their agent was killed). They were left as they are.
    pub waiting: Vec<u32>,
}

/// What to do with a device found at start.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    NotOurs,
    Remove,
    Waiting,
}

/// Decides by the tag that the kernel kept and the device's state.
fn judge(tag: u64, state: u16, owner: u32) -> Verdict {
    if tag != super::tag(owner) {
        return Verdict::NotOurs;
    }
    match u32::from(state) {
        sys::UBLK_S_DEV_DEAD => Verdict::Remove,
        _ => Verdict::Waiting,
    }
}

/// Removes the dead devices of the agent `owner` and finds those that can be recovered. Call it before the first device is
/// started and on a thread that may wait; no other agent with this `owner` may run.
///
/// # Errors
/// [`DeviceError`] when the thread for it cannot be had. A machine without ublk has no leftovers.
pub fn remove_leftovers(owner: u32) -> Result<Leftovers, DeviceError> {
    let Ok(entries) = fs::read_dir("/sys/class/ublk-char") else { return Ok(Leftovers::default()) };
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix("ublkc")?.parse().ok();
    let numbers: Vec<u32> = entries.flatten().filter_map(number).collect();
    if numbers.is_empty() {
        return Ok(Leftovers::default());
    }
    // libublk keeps a control ring per thread: a thread that ends takes it along.
    let thread = std::thread::Builder::new()
        .name("ublk-leftovers".into())
        .spawn(move || sort(&numbers, owner))
        .map_err(DeviceError::io("starting a thread"))?;
    thread.join().map_err(|_| DeviceError::ControlGone)
}

fn sort(numbers: &[u32], owner: u32) -> Leftovers {
    let mut found = Leftovers::default();
    for &number in numbers {
        let Some(ctrl) = i32::try_from(number).ok().and_then(|id| UblkCtrl::new_simple(id).ok()) else { continue };
        let device = ctrl.dev_info();
        match judge(device.ublksrv_flags, device.state, owner) {
            Verdict::NotOurs => {}
            Verdict::Remove => match ctrl.del_dev_async().or_else(|_| ctrl.del_dev()) {
                Ok(_) => found.removed.push(number),
                Err(error) => tracing::warn!(number, %error, "a dead device of ours could not be removed"),
            },
            Verdict::Waiting => found.waiting.push(number),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dead_devices_of_this_agent_are_removed() {
        let (ours, live, quiesced) = (super::super::tag(7), 1, 2);
        assert_eq!(judge(ours, 0, 7), Verdict::Remove);
        assert_eq!(judge(ours, quiesced, 7), Verdict::Waiting);
        assert_eq!(judge(ours, live, 7), Verdict::Waiting);
        assert_eq!(judge(ours, 0, 8), Verdict::NotOurs);
        assert_eq!(judge(0, 0, 7), Verdict::NotOurs);
    }
}
