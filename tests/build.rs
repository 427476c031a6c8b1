//! Generates the CRI client of the tests from our own description of it, without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = protox::compile(["proto/cri.proto"], ["proto"])?;
    tonic_prost_build::configure().btree_map(".").build_server(false).compile_fds(files)?;
    println!("cargo::rerun-if-changed=proto");
    Ok(())
}
