//! An OCI registry on loopback, in process, with set latency, bandwidth and faults.
