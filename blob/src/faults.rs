//! Sources for tests: blobs in memory, and wrappers that fail on purpose.
