//! Mapping a device's bytes to bytes of blobs.
//!
//! An [`Image`] is opened from the layers that a manifest lists: a stack of OverlayBD layers (LSMT files, in ZFiles, in
//! tar archives), one raw disk, or a qcow2 disk and its backing files; or from what was made of one ordinary layer's entries. It answers one question,
//! [`Image::plan`]: which bytes of which blobs are these bytes of the device? It stores nothing but maps, and fetches
//! nothing but what opening needs, through a [`BlobSource`].
//!
//! # Contract
//!
//! 1. Every byte of a request lies in exactly one step of its plan, in order.
//! 2. Planning never waits: it reads map pages, and asks `locate`. What it lacks it names as `Missing`.
//! 3. A frame that carries a check is checked each time that it is decoded.
//! 4. Parsers are total: any bytes give a typed error or an image, never a panic, and memory stays bounded however large
//!    the counts inside are. A count is compared with the size of the blob before anything is sized by it.
//! 5. Memory does not grow with the image: the merged map and the frame tables are files of checked pages in the maps
//!    directory, read one page at a time. An open image holds a page, and a file handle per layer, which images share.
//! 6. Opening reads a constant amount of each layer in two rounds. The rest of its tables is made in the background; what can be planned meanwhile is
//!    right, what cannot is named as missing ([`Image::over`]).
//!
//! # Layout
//!
//! | module | does |
//! |---|---|
//! | `recognise` | what a blob is, from annotations and first bytes |
//! | [`tar`], [`zfile`], [`lsmt`] | the three formats, as pure functions over bytes |
//! | [`pages`], `frames`, `map` | table files: pages, the frames of a ZFile, the extents of a stack |
//! | `merge`, `index` | merging the layers' indexes: the pure sweep, and feeding it |
//! | `sums`, `filling` | adding up a jump table from both ends: the pure part, and feeding it |
//! | `draft`, `making`, `growing` | tables in the making: as files, as who waits sees them, and the map |
//! | `window`, `layer`, `body` | what opening holds of a blob; opening a layer; reading and planning its bytes |
//! | `stack`, `maps`, `over` | the layers of an image; what images share; the source that answers for tables |
//! | `image` | opening an image, planning |
//! | `turbo` | stacks in which there are TurboOCI layers |
//! | `oci` | the EROFS of one ordinary layer |
//! | `qcow2` | qcow2 disks, whose tables are read like data |
//! | `plan`, `scratch`, `read` | plans, executing them, and the loop around both |
//! | [`recording`], [`trace`] | what an image reads while starting: Penstock's format, and OverlayBD's |
//! | [`write`](mod@write) | the canonical writer |
//!
//! # Concurrency
//!
//! An image is read-only and shared. Table files are immutable: built under a temporary name, synced, renamed; two
//! processes building the same table write the same bytes. File work while making them runs on the blocking pool; page
//! reads while planning run on the caller's thread. Each table in the making has one task, which ends with the last image that has it.
//!
//! Formats: docs/formats/erofs-layer.md, docs/formats/overlaybd.md, docs/formats/map.md, docs/formats/qcow2.md,
//! docs/formats/recording.md, docs/formats/turbooci.md.
//!
//! [`BlobSource`]: penstock_blob::BlobSource

mod body;
mod crc;
mod draft;
mod filling;
mod frames;
mod growing;
mod image;
mod index;
mod layer;
pub mod lsmt;
mod making;
mod map;
mod maps;
mod merge;
mod oci;
mod over;
pub mod pages;
pub mod paths;
mod plan;
mod qcow2;
mod read;
mod recognise;
pub mod recording;
mod resident;
mod scratch;
mod stack;
mod sums;
pub mod tar;
pub mod trace;
mod turbo;
mod units;
mod window;
pub mod write;
pub mod zfile;

pub use image::{Image, Kind, Layer, MAX_LAYERS, OpenError, tables};
pub use layer::LayerError;
pub use maps::Maps;
pub use oci::{
    BuildError, Built, GROWING_CONTENT, LayerBuilder, MAX_ENTRIES, Merged, MergedBuilder, OciLayer, layer_table,
};
pub use pages::{TableError, collect, sweep};
pub use plan::{PlacedStep, Plan, PlanError, Step};
pub use qcow2::{Compression, HeaderError as Qcow2Error, MAX_CHAIN, PackedCluster};
pub use read::{DeviceReadError, Held, read};
pub use recognise::{
    Annotated, BLOB_DIGEST, BLOB_SIZE, Content, FS_TYPE, FileSystem, VERSION, What, annotated, content, turbo_target,
};
pub use scratch::{FrameRun, Scratch, StepError};
pub use turbo::{Member, stack_tables};
