//! Any bytes as a `config.json`: understood or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = fathom_weights::Config::parse(bytes);
});
