//! The penstock node agent and command line.
