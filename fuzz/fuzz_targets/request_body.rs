//! Bytes from a client to a request: an answer or a refusal, never a panic.
#![no_main]

use fathom::chat::Dialect;
use fathom::server::{Served, parse_chat, parse_messages, parse_responses};
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
    for parse in [parse_chat, parse_messages, parse_responses] {
        if let Err(refusal) = parse(body, &served) {
            assert!(!refusal.message.is_empty());
        }
    }
});
