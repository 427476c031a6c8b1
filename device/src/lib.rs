//! Serving an image to the kernel: ublk, and a FUSE file where ublk is missing.
//!
//! # Contract
//!
//! Each request taken from the kernel is answered exactly once. A request is a value whose drop answers EIO; it never leaves
//! its queue's thread; a miss that is lost anywhere on its way comes back as an error. A stop always finishes.
//!
//! # Layout
//!
//! ```text
//!  kernel   ublk ring / fuse session     queue                        offload (tokio)
//!  ------>  take: Request          ----> read: plan, read_into,
//!  <------  fill, commit           <---- answer            (hit)
//!                                        else Miss    --------------> fetch: source.read
//!           eventfd on the ring    <--------------------------------- inbox.post
//!                                        collect: plan again, bytes in hand, answer
//! ```
//!
//! `device` (start, stop), `choose` (which transport), `request`, `queue`, `inbox`, `offload` are common to both
//! transports; `ublk` and `fuse` take requests from the kernel and carry answers back; `loops` makes loop devices over FUSE
//! files; `stats` counts; `sys` holds the unsafe code.
//!
//! # Concurrency
//!
//! A queue belongs to one thread and shares nothing but its inbox and counters. That thread waits only on its ring (or in
//! `poll`): planning never waits, and the bytes of a hit are in local files. One fetch that takes long delays its own readers
//! alone: each miss is a task. Bounds: `Config::misses` misses per queue, parked requests beyond (then the kernel is asked for
//! no more), one buffer of `Config::max_io_bytes` per queue.

mod choose;
mod config;
mod counted;
mod device;
mod error;
mod fuse;
mod id;
mod inbox;
mod loops;
mod offload;
mod patience;
mod queue;
mod request;
mod room;
mod stats;
mod sys;
mod ublk;
mod users;

pub use choose::{Choice, Transport, TransportError, Wanted, choose};
pub use config::{Config, ConfigError};
pub use device::{Content, Device, Remains, Stopped};
pub use error::DeviceError;
pub use id::{DeviceId, DeviceIdError, MAX_ID_BYTES};
pub use loops::Loop;
pub use patience::{Notice, Patience, Then};
pub use stats::{Metrics, Stats};
pub use sys::inherited;
pub use ublk::{Leftovers, remove_leftovers, retire};
pub use users::{MAX_USERS, User};
