//! The admin HTTP API: routes over a trait.
