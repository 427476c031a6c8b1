//! Benchmarks: micro, path, start.
