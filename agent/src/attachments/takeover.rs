//! Devices that outlive their agent: taken over from the one before, left for the one after.

use std::os::fd::AsFd as _;

use penstock_device::{DeviceId, Remains};

use super::{
    AttachError, Attachments, Parts, blocking,
    live::{Live, Plan},
};
use crate::{events::Kind, indexes::Ask, keeper::KeepError, state::record::Record};

/// Who is to come after an agent that ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// A successor: devices that outlive the agent are left for it.
    HandOver,
    /// Nobody: all devices are taken away.
    ForGood,
}

impl Attachments {
    /// Serves a recorded attachment: goes on with what is left of it, or begins anew.
    pub(super) async fn revive(&self, record: &Record, ask: Ask) -> Result<Live, AttachError> {
        let plan = &Plan::new(record, ask);
        let Some(remains) = self.parts.remaining.take(record) else {
            return Live::make(&self.parts, plan, None).await;
        };
        let number = match &remains {
            Remains::Ublk { number } => Some(*number),
            Remains::Fuse { .. } => None,
        };
        match Live::make(&self.parts, plan, Some(remains)).await {
            Ok(live) => {
                let text = format!("{} is taken over from an earlier agent as {}", record.reference, plan.id);
                self.event(Kind::DeviceResumed, &plan.id, &text);
                Ok(live)
            }
            // Whoever starts next takes it over.
            Err(AttachError::Stopping) => Err(AttachError::Stopping),
            Err(error) => {
                self.lose(&plan.id, number, &error).await;
                match error {
                    // What was left could not be used; the image itself can be served.
                    AttachError::Device(_) => Live::make(&self.parts, plan, None).await,
                    error => Err(error),
                }
            }
        }
    }

    /// Sees to it that nobody waits for a device that was not taken over.
    async fn lose(&self, id: &DeviceId, number: Option<u32>, error: &AttachError) {
        let text = format!("{id} of an earlier agent could not be taken over: {error}; who uses it gets I/O errors");
        self.event(Kind::DeviceLost, id, &text);
        match number {
            Some(number) => self.retire(number).await,
            None => {
                let (remaining, id) = (self.parts.remaining.clone(), id.clone());
                self.note_leftovers(blocking("taking a mount away", move || remaining.give_up(&id)).await);
            }
        }
    }

    /// Takes away what an earlier agent left and no record claims, once all records were restored.
    pub(super) async fn clear_unclaimed(&self) {
        for number in self.parts.remaining.unclaimed() {
            self.retire(number).await;
        }
        let remaining = self.parts.remaining.clone();
        self.note_leftovers(blocking("taking mounts away", move || remaining.clear_unclaimed()).await);
    }

    /// Has a block device answer I/O errors until its last user is gone.
    async fn retire(&self, number: u32) {
        let retired = penstock_device::retire(number, &self.parts.device, &self.parts.device_metrics).await;
        let text = match retired {
            Ok(stopped) => format!("/dev/ublkb{number} of an earlier agent is served no more ({stopped:?})"),
            Err(error) => {
                format!("/dev/ublkb{number} of an earlier agent is still there, and its readers wait: {error}")
            }
        };
        self.note_leftovers(Ok(vec![text]));
    }

    fn note_leftovers(&self, done: Result<Vec<String>, AttachError>) {
        for text in done.unwrap_or_else(|error| vec![error.to_string()]) {
            self.parts.events.record(Kind::StateLeftover, &text, &[]);
        }
    }

    /// Leaves a device for the next agent; whether that could be done.
    pub(super) async fn leave(&self, id: &DeviceId, live: &Live) -> bool {
        if !live.outlives_agent(&self.parts) {
            return false;
        }
        let text = match live.device.leave().await {
            Ok(()) => format!("{id} is left for the next agent"),
            Err(error) => format!("{id} is left for the next agent, but not in order: {error}"),
        };
        self.event(Kind::DeviceLeft, id, &text);
        true
    }
}

impl Live {
    /// Whether the device is still there for a successor when this process ends.
    pub(super) fn outlives_agent(&self, parts: &Parts) -> bool {
        self.device.number().is_some() || parts.keeper.has(self.device.id())
    }

    /// Gives the device's connection, if it has one, to whoever keeps it. A device without a keeper is served all the same.
    pub(super) async fn give_away(&self, parts: &Parts) {
        let Some(connection) = self.device.connection() else { return };
        let id = self.device.id().clone();
        if parts.keeper.has(&id) {
            return;
        }
        let keeper = parts.keeper.clone();
        let kept = blocking("giving a connection away", move || keeper.keep(&id, connection.as_fd())).await;
        let reason = match kept {
            // Nothing was promised.
            Ok(Ok(()) | Err(KeepError::Nobody)) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        let id = self.device.id();
        let text = format!("{id} ends with this agent: {reason}");
        parts.events.record(Kind::DeviceUnkept, &text, &[("device", id.as_str())]);
    }

    /// Has the keeper close its copy of the connection, so that nobody waits for a device that is gone.
    pub(super) async fn take_back(&self, parts: &Parts) {
        let (keeper, id) = (parts.keeper.clone(), self.device.id().clone());
        if let Err(error) = blocking("taking a connection back", move || keeper.let_go(&id)).await {
            tracing::warn!(%error, "the keeper may still have a connection");
        }
    }
}
