//! Keeping chunks of blobs on this node.
