//! Ordinary OCI layers: which paths they hold, and which of their bytes are a file's.
//!
//! A layer in a registry is a tar archive, nearly always compressed. Everything here speaks of the *uncompressed* archive as
//! of a blob of its own, a virtual one: its digest is the layer's diff ID, its size that of the archive.
//!
//! # Contract
//!
//! 1. An [`Entry`] is checked when it is made: its path stays below the root of the layer, its content lies within its size,
//!    its numbers fit a Linux inode. Who takes entries need not ask again.
//! 2. Readers are total: any bytes give entries or a typed error, never a panic, and memory stays within the bounds that each
//!    module states, whatever the numbers inside say.
//! 3. What a [`Builder`] made is of the layer and the archive that it was told, by sha256 of both.
//! 4. Whiteouts are understood here: an entry says that a path is hidden, not that a file is called `.wh.something`.
//!
//! # Layout
//!
//! | module | does |
//! |---|---|
//! | [`entry`] | one path of a layer, and the checked types it is made of |
//! | `whiteout` | what the names in a layer say |
//! | [`tar`] | the entries of a tar archive that is fed in pieces |
//! | `frame` | pieces of a layer that decode alone: [`Frame`], how one is decoded and verified |
//! | `gzip`, `zstandard`, `plain` | where frames may begin in each [`Coding`]; gzip's checkpoints, Zstandard's blocks and pieces |
//! | `unpacked` | [`Unpacked`]: the source that answers reads of archives, and passes over those that decode only from their beginning |
//! | [`foreign`] | layers in formats of others: their tables of contents as layer indexes |
//! | `index` | the layer index: [`Builder`] makes one while a layer goes by, [`Index`] reads one |
//!
//! # Concurrency
//!
//! Readers are values that are fed by their owner. [`Unpacked`] owns a task for each pass, which ends when nobody waits for it.

pub mod entry;
pub mod foreign;
mod frame;
mod gzip;
mod index;
mod plain;
pub mod tar;
#[cfg(test)]
mod testing;
mod unpacked;
mod whiteout;
mod zstandard;

pub use entry::{Content, DeviceNumber, Entry, EntryError, EntryPath, Kind, LinkTarget, Piece, Time, Xattrs};
pub use frame::{Coding, Frame, FrameError, Proof, Start};
pub use index::{
    build::{BuildError, Builder, Built},
    entries::EntriesError,
    format::{FormatError, Layer},
    read::{Entries, Index, IndexError},
};
pub use tar::{TarError, TarReader};
pub use unpacked::{Config, Event, Registered, Unpacked};
