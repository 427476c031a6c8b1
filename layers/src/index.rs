//! The layer index: what a layer holds, and how to decode any piece of it alone. The format is docs/formats/layer-index.md.
//!
//! [`build`] makes one while the layer goes by, [`read`] opens it as a local file. An index is believed: its digests prove the
//! layer's bytes against it, not it against the layer. Who uses one that he did not build must know who did.

pub(crate) mod build;
pub(crate) mod entries;
pub(crate) mod format;
pub(crate) mod read;
pub(crate) mod write;

#[cfg(test)]
mod tests;
