//! What every source must hold.
