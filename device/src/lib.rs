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
//! transports; `desks` lends what reads are put together with; `ublk` and `fuse` take requests from the kernel and carry answers back; `loops` makes loop devices over FUSE
//! files; `stats`, `latency` and `waits` count; `sys` holds the unsafe code.
//!
//! # Concurrency
//!
//! A queue belongs to one thread and shares nothing but its inbox, its counters and the desks. That thread waits only on its ring (or in
//! `poll`): planning never waits, and the bytes of a hit are in local files. One fetch that takes long delays its own readers
//! alone: each miss is a task. Bounds: `Config::misses` misses per queue, parked requests beyond (then the kernel is asked for
//! no more). A queue keeps no buffer: it has one of `Config::desks` while it looks at a request, and waits its turn when all are lent.

mod choose;
mod config;
mod counted;
mod desks;
mod device;
mod error;
mod fuse;
mod id;
mod inbox;
mod latency;
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
mod waits;

pub use choose::{Choice, Transport, TransportError, Wanted, choose};
pub use config::{Config, ConfigError};
pub use desks::{DESKS_BYTES, Desks};
pub use device::{Content, Device, Remains, Stopped};
pub use error::DeviceError;
pub use id::{DeviceId, DeviceIdError, MAX_ID_BYTES};
pub use latency::{Latencies, Latency, Tier};
pub use loops::Loop;
pub use patience::{Notice, Patience, Then};
pub use stats::{Metrics, Stats};
pub use sys::{inherited, share_heaps, trim_heaps};
pub use ublk::{Leftovers, remove_leftovers, retire};
pub use users::{MAX_USERS, User};
pub use waits::{Burst, MAX_RANGES, QUIET, RangeWait, Waits};
