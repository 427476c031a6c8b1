//! The fetcher against a registry on loopback.

mod auth;
mod faults;
mod joining;
mod push;
mod reading;
mod resolving;
mod support;
mod tls;
