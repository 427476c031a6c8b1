//! `docs/failure-matrix.md` is what is tested, and FUSE keeps it. (`ublk` does so in the VM: `tests/vm.rs`.)

use std::fs;

use penstock_tests::{
    agent, matrix, require,
    skip::{fuse, root},
    workspace,
};

#[test]
fn a_reader_through_fuse_sees_what_the_matrix_says() {
    require!(root().or_else(fuse));
    let mut stand = matrix::Stand::new(agent::binary(), "fuse", "2s");
    for row in matrix::rows() {
        row.run(&mut stand);
    }
}

#[test]
fn the_document_is_the_matrix() {
    let path = workspace::root().join("docs/failure-matrix.md");
    let text = fs::read_to_string(path).expect("the document");
    let table = matrix::table();
    assert!(text.contains(&table), "docs/failure-matrix.md must contain this:\n\n{table}");
}
