//! What laying out a layer of very many files costs in memory. In a binary of its own, because it measures its process.

#[cfg(test)]
mod many;
