//! Bytes from a client to a request: an answer or a refusal, never a panic.
#![no_main]

use fathom::chat::Dialect;
use fathom::server::{Served, parse_chat};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let served = Served {
        model: "demo".to_owned(),
        aliases: Vec::new(),
        dialect: Dialect::Current,
        vocab_size: 129_280,
        context: 1 << 20,
        thinking: true,
        tools: true,
    };
    if let Err(refusal) = parse_chat(body, &served) {
        assert!(!refusal.message.is_empty());
    }
});
