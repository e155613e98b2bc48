//! Any bytes as a file of a store (a page, a manifest, a mark), and as one whose checksums a forger has put right: opened or
//! refused. Seeds: the files below `crates/store/tests/fixtures`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fathom_store::fuzzing::sealed(bytes));
