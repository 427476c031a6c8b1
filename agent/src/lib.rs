//! The penstock node agent and its command line.
//!
//! # Contract
//!
//! Parts start in one order and stop in the reverse (see [`Agent`]); this crate is the only reader of files, environment and signals.
//! What the agent answered for survives it: an attachment is on disk before its attach is answered, and is made again at the next
//! start, without the registry when what is read is cached.
//!
//! # Layout
//!
//! - [`config`]: defaults, file, environment, flags. [`log`]: where lines go. [`traces`]: where spans go.
//! - [`state`]: the state directory, its lock and its records.
//! - [`mount`]: finding and mounting the file system of an image, and clearing what a killed agent left.
//! - `attachments`: the table of attachments, and what makes, restores and unmakes them.
//! - `indexes`: what attached images are verified by. [`index`]: making that.
//! - [`convert`]: images written in another form.
//! - `layers`: ordinary layers that are read piece by piece. `lent`: blobs that the fetcher knows where to find for a while.
//! - `recordings`: what images read while starting, and how they are read because of it.
//! - [`events`]: what happened lately. `node`: the admin API's calls. `serve`, [`socket`]: where it answers.
//! - `turns`: one at a time for each of many. `shelf`: manifests of images that containerd was told are there.
//! - `images`: the image service between the kubelet and containerd, and the credentials that it hears.
//! - `pull`: images put whole into containerd's content store.
//! - [`Agent`]: all of these together. [`run`]: as a process.
//! - [`containerd`]: telling containerd about our snapshotter. [`doctor`]: what of a node is as it should be.
//! - [`demo`]: the agent shown on one machine. [`cli`], [`client`], [`output`]: the commands.
//!
//! # Concurrency
//!
//! A multi-threaded tokio runtime. Whatever waits for the kernel or the disk runs on the blocking pool; whatever changes something runs
//! in a task owned by the attachments' table. Locks are held for moments, never across an await or a system call.

mod agent;
mod attachments;
mod beside;
pub mod cli;
pub mod client;
pub mod config;
pub mod containerd;
pub mod convert;
pub mod demo;
pub mod doctor;
pub mod events;
mod explain;
mod images;
pub mod index;
mod indexes;
pub mod keep;
mod keeper;
mod layers;
mod lent;
pub mod log;
mod memory;
mod metrics;
pub mod mount;
mod mounter;
mod node;
pub mod output;
mod pull;
mod recordings;
mod remains;
pub mod run;
mod serve;
mod shelf;
mod snapshots;
pub mod socket;
pub mod state;
pub mod supervise;
pub mod traces;
mod turns;

pub use agent::{Agent, DrainError, StartError};
pub use config::Config;
pub use images::ImagesError;
pub use keeper::Keeper;
pub use recordings::Accept;
pub use serve::{FileError, Unsafe};
pub use snapshots::SnapshotsError;
