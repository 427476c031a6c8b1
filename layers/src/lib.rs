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
//! 3. Whiteouts are understood here: an entry says that a path is hidden, not that a file is called `.wh.something`.
//!
//! # Layout
//!
//! | module | does |
//! |---|---|
//! | [`entry`] | one path of a layer, and the checked types it is made of |
//! | [`tar`] | the entries of a tar archive that is fed in pieces |
//!
//! # Concurrency
//!
//! None here: readers are values that are fed by their owner.

pub mod entry;
pub mod tar;

pub use entry::{Content, DeviceNumber, Entry, EntryError, EntryPath, Kind, LinkTarget, Piece, Time, Xattrs};
pub use tar::{TarError, TarReader};
