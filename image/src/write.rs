//! The canonical writer.
