//! Any bytes as a shard: the header is understood or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = fathom_weights::check_header(bytes);
});
