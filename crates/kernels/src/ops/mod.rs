//! One folder for each operation: `reference.rs` says it plainly, `mod.rs` says it fast, `tests.rs` compares.

pub(crate) mod experts;
pub(crate) mod linear;
