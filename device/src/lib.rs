//! Serving an image to the kernel: ublk, and a FUSE file where ublk is missing.
