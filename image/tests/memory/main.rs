//! Memory does not grow with the image. In a binary of its own, because it measures its process.

#[cfg(test)]
mod million;
