//! Whole images: real ones, random ones, broken ones.

#[cfg(test)]
mod common;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod model;
#[cfg(test)]
mod oci;
#[cfg(test)]
mod opening;
#[cfg(test)]
mod paging;
#[cfg(test)]
mod qcow2;
#[cfg(test)]
mod real;
#[cfg(test)]
mod turbo;
