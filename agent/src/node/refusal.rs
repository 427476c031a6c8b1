//! Which of the API's errors an attachment's is. The text is the attachment's own: it already says what to do.

use std::io;

use penstock_api::NodeError;
use penstock_blob::ReadError;
use penstock_device::DeviceError;
use penstock_fetcher::ResolveError;
use penstock_image::{DeviceReadError, LayerError, OpenError, TableError};
use penstock_snapshotter::content::StoreError;

use crate::{attachments::AttachError, layers, mount::MountError, state::StateError};

impl From<AttachError> for NodeError {
    fn from(error: AttachError) -> Self {
        let text = error.to_string();
        let kind = match &error {
            AttachError::Reference(_) | AttachError::Platform(_) | AttachError::Policy(_) => Self::Invalid,
            AttachError::Resolve(error) => resolve(error),
            AttachError::Open { error, .. } => open(error),
            AttachError::Layer { error, .. } => layer(error),
            AttachError::Unverified(_) => Self::Unsupported,
            AttachError::Device(error) => device(error),
            AttachError::Mount(error) => mount(error),
            AttachError::State(StateError::NoRoom { .. }) | AttachError::TooMany { .. } => Self::NoRoom,
            AttachError::Head(DeviceReadError::Fetch(error)) | AttachError::Maps(error) => read(error),
            AttachError::Head(_) => Self::WrongBytes,
            AttachError::MountTaken { .. } | AttachError::Snapshot { .. } | AttachError::WrongState { .. } => {
                Self::Conflict
            }
            AttachError::NoDevice { .. } => Self::NotFound,
            AttachError::Stopping => Self::Stopping,
            AttachError::State(_) | AttachError::Crashed { .. } => Self::Internal,
        };
        kind(text)
    }
}

/// Of an image that was not resolved.
pub(crate) fn unresolved(error: &ResolveError) -> NodeError {
    resolve(error)(error.to_string())
}

/// Of an image that is not in containerd's content store.
pub(crate) fn not_stored(error: &StoreError) -> NodeError {
    let kind = match error {
        StoreError::Away { .. } => NodeError::Conflict,
        StoreError::Namespace { .. } => NodeError::Invalid,
        StoreError::Busy { .. } => NodeError::Busy,
        StoreError::WrongBytes { .. } => NodeError::WrongBytes,
        StoreError::Read(error) => read(error),
        StoreError::Refused { .. } => NodeError::Internal,
    };
    kind(error.to_string())
}

type Kind = fn(String) -> NodeError;

const fn resolve(error: &ResolveError) -> Kind {
    match error {
        ResolveError::NotFound { .. } | ResolveError::Platform { .. } => NodeError::ImageNotFound,
        ResolveError::Denied { .. } => NodeError::Denied,
        ResolveError::Deadline { .. } => NodeError::Deadline,
        ResolveError::Digest { .. } => NodeError::WrongBytes,
        ResolveError::Manifest { .. } | ResolveError::Depth { .. } => NodeError::Unsupported,
        _ => NodeError::Unavailable,
    }
}

fn open(error: &OpenError) -> Kind {
    match error {
        OpenError::Maps(error) => maps(error),
        OpenError::Layer { error, .. } => match error.as_ref() {
            LayerError::Fetch(error) => read(error),
            LayerError::Table(error) => maps(error),
            _ => NodeError::Unsupported,
        },
        _ => NodeError::Unsupported,
    }
}

fn layer(error: &layers::LayerError) -> Kind {
    match error {
        layers::LayerError::Read(error) => read(error),
        layers::LayerError::Resolve(error) => resolve(error),
        layers::LayerError::Open(error) => open(error),
        layers::LayerError::Store(_) | layers::LayerError::Crashed(_) => NodeError::Internal,
        _ => NodeError::Unsupported,
    }
}

const fn read(error: &ReadError) -> Kind {
    match error {
        ReadError::NotFound { .. } => NodeError::ImageNotFound,
        ReadError::Denied { .. } => NodeError::Denied,
        ReadError::WrongBytes { .. } => NodeError::WrongBytes,
        ReadError::Deadline { .. } => NodeError::Deadline,
        ReadError::Stopping => NodeError::Stopping,
        ReadError::Storage { .. } | ReadError::OutOfBounds { .. } => NodeError::Internal,
        _ => NodeError::Unavailable,
    }
}

fn maps(error: &TableError) -> Kind {
    match error {
        TableError::Io { error, .. } if is_full(error) => NodeError::NoRoom,
        _ => NodeError::Internal,
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

const fn device(error: &DeviceError) -> Kind {
    match error {
        DeviceError::Busy { .. } => NodeError::Conflict,
        DeviceError::NoTransport { .. } | DeviceError::Driver { .. } | DeviceError::Mount { .. } => {
            NodeError::Incapable
        }
        DeviceError::Empty => NodeError::Unsupported,
        _ => NodeError::Internal,
    }
}

const fn mount(error: &MountError) -> Kind {
    match error {
        MountError::Place { .. } => NodeError::Invalid,
        MountError::Taken { .. } | MountError::Busy { .. } | MountError::Covered { .. } => NodeError::Conflict,
        MountError::NoFileSystem(_) => NodeError::Unsupported,
        MountError::NoDriver { .. } | MountError::Denied { .. } | MountError::Loop { .. } => NodeError::Incapable,
        MountError::Refused { .. } | MountError::Stuck { .. } => NodeError::Internal,
    }
}
