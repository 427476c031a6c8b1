//! Keeping chunks of blobs on this node.
//!
//! A [`Cache`] is a [`penstock_blob::BlobSource`] in front of another: what was read once is kept on local disk, within a
//! cap, and found again after a restart.
//!
//! # Contract
//!
//! 1. A located chunk is whole, checked, and stays as it is while its `Located` lives.
//! 2. An absent chunk is fetched once, however many wait for it. A fill outlives its first caller; a failed one wakes
//!    everybody with the error, and the next caller tries again.
//! 3. A crash or a power cut may lose the last group of chunks (32 MiB or 100 ms), never make one wrong. What
//!    [`Usage::durable_chunks`] counts is not lost.
//! 4. The cap is never exceeded. When there is no room, or the disk is full, slow or broken, bytes are served and not kept.
//! 5. The index may be lost, damaged, slow or stuck: cached bytes are served all the same, and nobody who reads waits for it.
//! 6. One process per directory.
//!
//! # Layout
//!
//! | module | holds |
//! |---|---|
//! | `cache` | [`Cache`]: the public face, and its life |
//! | `read`, `fill` | the miss path: plan, single flight, fetch, check, store |
//! | `ahead`, `speculate` | what is fetched before anybody asks: the decision, and its bounds |
//! | `store`, `entry`, `slots`, `bits` | what is present: table, blob, files and pins, bitmaps |
//! | `room`, `evict`, [`policy`] | the cap, and who has to go |
//! | `health`, `scrub` | the look around every few seconds; reading again what is on disk |
//! | `commit`, `queue` | the committer thread and what it is told |
//! | `index`, `keeper` | sled (in this one file), and the guard around it |
//! | `open`, `recover`, `layout`, `format` | from a directory to presence; bytes on disk |
//! | `verify` | the digest of blobs that are whole |
//! | `pages` | not keeping in the page cache what readers keep there too |
//! | `config`, `error`, `usage`, `metrics`, `disk` | what its names say |
//!
//! # Invariants
//!
//! * `checked` and `durable` lie within `present`; a chunk is never `present` and `leaving` (see `entry` for the states).
//! * A bit is set after its bytes are written, cleared before they go; bytes go when nobody pins them and the index has forgotten them.
//! * Every byte on disk was taken from the room first.
//! * Blob numbers are not reused while an index knows them.
//!
//! # Concurrency
//!
//! A hit takes no lock and makes no system call: an atomic load of the table, one counter and one bit test per extent. Everything
//! else about a blob changes under its entry's lock, held for bit operations only. Fills are tasks of the cache, file work
//! runs on tokio's blocking pool, one thread commits, one more owns the index. Order of locks: entry, then table, room or queue.
//!
//! # Memory
//!
//! About 1.8 KiB for each 32 MiB segment (at 128 KiB chunks) that ever held a chunk, so 58 MiB per TiB cached; 4 bytes of ghosts for each MiB
//! of the cap, at most 16 MiB; sled's own cache of 16 MiB; at most [`Config::pending_bytes`] waiting for the disk.

mod ahead;
mod bits;
mod cache;
mod commit;
mod config;
mod disk;
mod entry;
mod error;
mod evict;
mod fill;
mod follow;
mod format;
mod health;
mod index;
mod keeper;
mod layout;
mod metrics;
mod open;
mod outline;
mod pages;
pub mod policy;
mod queue;
mod read;
mod recover;
mod room;
mod scrub;
mod slots;
mod speculate;
mod store;
#[cfg(test)]
mod testing;
mod usage;
mod verify;

pub use cache::Cache;
pub use config::{Config, Watermarks};
pub use error::{OpenError, RemoveError};
pub use follow::Followed;
pub use outline::{Outline, Part};
pub use usage::{BlobUsage, Cleared, Event, IndexState, Memory, Scrubbed, Usage, Whole};
