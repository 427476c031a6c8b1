//! Writes `api/openapi.json` anew: `cargo run -p penstock-api --example openapi`.

use std::{fs, io};

fn main() -> io::Result<()> {
    let json = penstock_api::openapi().to_pretty_json().map_err(io::Error::other)?;
    fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json"), json + "\n")
}
