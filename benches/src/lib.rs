//! Measuring Penstock: two sides in one run, over the same link, on the same image.
//!
//! # Contract
//!
//! 1. Every number is measured in the run that prints it; none is compared with a stored one.
//! 2. Every number has a unit, the number of samples, and the machine it was measured on.
//! 3. What was read is compared with the original bytes outside the timed part; a difference ends the run with an error.
//! 4. What cannot be measured here is named with its reason.
//!
//! # Layout
//!
//! [`tree`] takes files of this machine, [`pack`] makes the images of them: one OverlayBD layer, and the same files as ordinary
//! tar.gz layers. [`path`] times reads through image, cache and fetcher. [`start`] times getting at files: a full pull ([`pull`])
//! against an agent. [`cold`] compares starts of a program with their floor, [`warm_start`] with mounts of the same files on this machine, [`formats`] with starts from other formats. [`crowd`] times many starts at once. [`containerd`] times containers: pull and run to the first output, on a real containerd. [`attach`] opens images of very different sizes, [`many`] a thousand of them. [`warm`] reads what is cached through mounts, in parts on one processor (`one_cpu`); [`vm`] has that and [`many`] run through ublk in a VM. [`evict`] runs eviction policies over made-up traces. [`protocol`] compares HTTP/1.1 with HTTP/2. [`synthetic`] makes what the criterion benches in `benches/` look at. [`sample`], [`usage`] and [`machine`] count;
//! [`report`] keeps and prints. [`all`] runs everything that is promised, and [`summary`] sets beside each other what was measured and what it should be; [`compare`] does so with two builds. `docs/performance.md` describes the method and states results.
//!
//! # Concurrency
//!
//! One multi-threaded tokio runtime holds both the registry and what is measured, so that CPU time and memory of a run include the
//! registry's; rows that never ask the registry are free of it.

pub mod all;
pub mod attach;
pub mod cold;
pub mod compare;
pub mod containerd;
pub mod crowd;
pub mod evict;
pub mod formats;
pub mod layer;
pub mod machine;
pub mod many;
mod one_cpu;
pub mod pack;
pub mod path;
pub mod protocol;
pub mod pull;
pub mod report;
pub mod sample;
pub mod start;
pub mod summary;
pub mod synthetic;
pub mod tree;
pub mod usage;
pub mod vm;
pub mod warm;
pub mod warm_start;
