//! Why an attachment could not be made or unmade, and how operators are told.

use penstock_api::DeviceState;
use penstock_device::{DeviceError, DeviceId};
use penstock_fetcher::{PlatformError, ReferenceError, ResolveError};
use penstock_image::{DeviceReadError, OpenError};

use crate::{indexes::Unverified, layers::LayerError, mount::MountError, state::StateError};

/// Why an image was not attached, or not detached. Each text is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    /// The reference is none.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The platform is none.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// The registry has no such image, refuses, or does not answer.
    #[error(transparent)]
    Resolve(Box<ResolveError>),
    /// The image cannot be read lazily.
    #[error("{reference}: {}", whole(error))]
    Open {
        /// The image.
        reference: String,
        /// Why.
        error: OpenError,
    },
    /// An ordinary layer of it cannot be read lazily.
    #[error("{reference}: {}", whole(error.as_ref()))]
    Layer {
        /// The image.
        reference: String,
        /// Why.
        error: Box<LayerError>,
    },
    /// No index verifies it, and one is required.
    #[error(transparent)]
    Unverified(#[from] Unverified),
    /// The device cannot be made or unmade.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The file system cannot be mounted or unmounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// It cannot be recorded.
    #[error(transparent)]
    State(#[from] StateError),
    /// The beginning of the disk cannot be read.
    #[error("cannot read the beginning of the image: {}", whole(.0))]
    Head(DeviceReadError),
    /// The maps of an image that is opened ahead cannot be made.
    #[error("its maps cannot be made: {}", whole(.0))]
    Maps(penstock_blob::ReadError),
    /// A bound of what was asked about failures is not kept.
    #[error("{0}")]
    Policy(String),
    /// Another attachment has the mount point.
    #[error("{dir} is the mount point of device {id}; detach that first, or name another directory")]
    MountTaken {
        /// The directory.
        dir: String,
        /// Whose it is.
        id: DeviceId,
    },
    /// Containers may read the device.
    #[error(
        "device {id} shows a layer to containers (snapshot {dir}); remove the image from containerd (`crictl rmi`, `ctr images rm`), or detach it with --force: then their reads fail"
    )]
    Snapshot {
        /// The device.
        id: DeviceId,
        /// Where its snapshot is.
        dir: String,
    },
    /// There is no such device.
    #[error("there is no device {id:?} on this node; `penstock list` shows those there are")]
    NoDevice {
        /// As asked.
        id: String,
    },
    /// The device is in a state that forbids it.
    #[error("device {id} is {}; try again when it is not", state_name(*state))]
    WrongState {
        /// The device.
        id: DeviceId,
        /// Its state.
        state: DeviceState,
    },
    /// There are as many as there may be.
    #[error("{most} images are attached, and no more are allowed on a node; detach some first")]
    TooMany {
        /// How many.
        most: usize,
    },
    /// The agent takes no more work.
    #[error("the agent is stopping; ask again when it has started anew")]
    Stopping,
    /// A task ended abnormally.
    #[error("the agent failed while {doing}: {reason}; its log says more")]
    Crashed {
        /// What it was doing.
        doing: &'static str,
        /// The panic's message, or what else ended it.
        reason: String,
    },
}

const fn state_name(state: DeviceState) -> &'static str {
    match state {
        DeviceState::Attaching => "being attached",
        DeviceState::Attached => "attached",
        DeviceState::Detaching => "being detached",
        DeviceState::Failed => "failed",
    }
}

impl From<ResolveError> for AttachError {
    fn from(error: ResolveError) -> Self {
        Self::Resolve(Box::new(error))
    }
}

/// An error with its causes, in one line.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text.replace('\n', " ")
}
