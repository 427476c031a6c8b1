//! Whole-system, fault, crash and VM tests, and the nouns they are written in.
//!
//! A test here drives what a user would: the `penstock` binary as a process, a real `docker-registry` or our own registry that fails
//! on demand, real mounts, a real kernel in a VM. What it compares with comes from elsewhere than the code under test: digests written
//! down when the fixtures were made, the registry's own log, `mkfs`'s input.
//!
//! What cannot run on a machine is skipped in words ([`skip!`]); `make test` counts it.

pub mod agent;
pub mod axe;
pub mod browser;
pub mod chart;
pub mod collector;
pub mod containerd;
pub mod cri;
pub mod debian;
pub mod disk;
pub mod docker_registry;
pub mod everything;
pub mod fixture;
pub mod formats;
pub mod http;
pub mod layer_device;
pub mod layer_stack;
pub mod listening;
pub mod loopback;
pub mod matrix;
pub mod nginx;
pub mod node;
pub mod pod;
pub mod power;
pub mod process;
pub mod prometheus;
pub mod push;
pub mod readers;
pub mod runnable;
pub mod skip;
pub mod snapshots;
pub mod soak;
pub mod supervisor;
pub mod systemd;
pub mod tls;
pub mod token_server;
pub mod tree;
pub mod workdir;
pub mod workspace;
