//! The files of the snapshotter that read what others choose the words of, compiled for the fuzzer as they are.

#![expect(dead_code, reason = "the rest of the crate uses what the target does not")]

pub mod images;
pub mod words;

#[path = "../../src/error.rs"]
mod error;
#[path = "../../src/filter.rs"]
mod filter;
#[path = "../../src/labels.rs"]
mod labels;
#[path = "../../src/mounter.rs"]
mod mounter;
#[path = "../../src/record.rs"]
mod record;
