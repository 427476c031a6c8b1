//! The fetcher against a registry on loopback.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene has failed")]

mod auth;
mod beyond;
mod credentials;
mod faults;
mod joining;
mod mirrors;
mod push;
mod reading;
mod referrers;
mod resolving;
mod support;
mod tls;
