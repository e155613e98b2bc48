//! Any bytes as a manifest: understood or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fathom_store::fuzzing::manifest(bytes));
