//! What containerd expects of a snapshotter, asked through a real client on a real socket, with real mounts: each behaviour that its own suite checks
//! and those it relies on, on every shape of mount.

#![expect(clippy::panic, reason = "tests say what is wrong")]

mod api;
mod content;
mod crash;
mod layers;
mod lazy;
mod mounting;
mod names;
mod node;
mod scale;
