//! Whole-system, fault, crash and VM tests.
