//! What a client sees of the registry, asked over real sockets.

#[cfg(test)]
mod auth;
#[cfg(test)]
mod client;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod link;
#[cfg(test)]
mod pull;
#[cfg(test)]
mod push;
