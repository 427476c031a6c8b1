//! Turning wanted byte ranges into few HTTP requests to registries.
