//! Mapping a device's bytes to bytes of blobs.
