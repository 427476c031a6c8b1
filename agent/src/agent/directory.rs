//! The state directory at the start: taken, cleared of what nobody can go on with, and read.

use std::{sync::Arc, time::Duration};

use penstock_blob::Digest;

use super::StartError;
use crate::{
    config::Config,
    events::{Events, Kind},
    keeper::Keeper,
    remains::Remaining,
    state::{StateDir, StateError, record::Record},
};

/// How often the state directory is asked for before whoever has it is taken for another agent, and how long apart: half a second in all.
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Takes the state directory. A program that an agent started keeps its locks until it runs, also when that agent has ended meanwhile, and
/// nothing tells when: so this asks again a few times.
async fn lock_state(config: &Config) -> Result<StateDir, StartError> {
    let mut pauses = tokio::time::interval(LOCK_PAUSE);
    let mut tries = 1..=LOCK_TRIES;
    loop {
        pauses.tick().await;
        let root = config.state_dir.clone();
        let opened = tokio::task::spawn_blocking(move || StateDir::open(&root)).await;
        match opened.map_err(|error| StartError::Crashed(error.to_string()))? {
            Err(StateError::InUse { .. }) if tries.next().is_some() => {}
            outcome => return Ok(outcome?),
        }
    }
}

/// Takes the state directory, looks for what an earlier agent left in the kernel, and clears what nobody can go on with.
pub(super) async fn open(
    config: &Config,
    keeper: &Arc<Keeper>,
    events: &Events,
) -> Result<(Arc<StateDir>, Remaining), StartError> {
    let state = lock_state(config).await?;
    let keeper = Arc::clone(keeper);
    let looked = tokio::task::spawn_blocking(move || {
        let (remaining, done) = Remaining::find(&state, owner(&state), keeper);
        (state, remaining, done)
    });
    let (state, remaining, done) = looked.await.map_err(|error| StartError::Crashed(error.to_string()))?;
    for text in done {
        events.record(Kind::StateLeftover, &text, &[]);
    }
    Ok((Arc::new(state), remaining))
}

/// What is recorded; files that are no records are named and left alone.
pub(super) fn records(state: &StateDir, events: &Events) -> Result<Vec<Record>, StateError> {
    let (records, unreadable) = state.records()?;
    for file in unreadable {
        let (path, error) = (file.path.display(), file.error);
        let text = format!("{path} {error}; it is left where it is, and its image is not attached");
        events.record(Kind::StateUnreadableRecord, &text, &[]);
    }
    Ok(records)
}

/// A number for this state directory, by which the kernel's ublk devices are told from those of agents beside us.
pub(super) fn owner(state: &StateDir) -> u32 {
    let digest = Digest::of(state.root().as_os_str().as_encoded_bytes());
    let [a, b, c, d, ..] = *digest.as_bytes();
    u32::from_le_bytes([a, b, c, d])
}
