//! Whatever tokens a model makes are read: nothing is lost, and a call is one that was declared and can be read.
#![no_main]

use std::sync::{Arc, LazyLock};

use deepseek_recipe::stream::{InferenceFinishReason, ParsingOptions, ThinkingInitialStage};
use fathom::chat::{Output, Piece, Pieces, Tokenizer};
use libfuzzer_sys::fuzz_target;

static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let json = include_str!("../../crates/fathom/assets/demo-model/tokenizer.json");
    Arc::new(Tokenizer::from_bytes("tokenizer.json", json.as_bytes()).expect("a tokenizer"))
});

/// What bytes stand for: parts of calls, so that some come about, and tokens.
fn tokens(data: &[u8]) -> Vec<u32> {
    let parts = [
        "\n\n<", "</", "｜DSML｜", "tool_calls>", "\n", "invoke name=\"", "weather", "\">", "invoke>", "parameter name=\"", "city",
        "\" string=\"true\">", "\" string=\"false\">", "parameter>", "[1, {\"a\": null}]", "\"", "</think>", "né",
    ];
    let mut ids = Vec::new();
    for pair in data.chunks(2) {
        match parts.get(usize::from(pair[0])) {
            Some(&part) => match TOKENIZER.special(part) {
                Some(id) => ids.push(id),
                None => ids.extend(TOKENIZER.encode(part).expect("text")),
            },
            None => ids.push(u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))),
        }
    }
    ids
}

fuzz_target!(|data: &[u8]| {
    let Some((&flags, data)) = data.split_first() else { return };
    let parsing = ParsingOptions {
        thinking_initial_stage: (flags & 1 != 0).then_some(ThinkingInitialStage::ReasoningStart),
        starts_in_tool_calls: flags & 2 != 0,
        parse_json_output: flags & 4 != 0,
        stop_sequences: if flags & 8 != 0 { vec!["né\n".to_owned()] } else { Vec::new() },
        ..ParsingOptions::default()
    };
    let mut output = Output::checked(Arc::clone(&TOKENIZER), parsing, Pieces, vec!["weather".to_owned()]);
    let mut pieces = Vec::new();
    for id in tokens(data) {
        pieces.extend(output.push(id, None).expect("any tokens are read"));
        if output.ended() {
            break;
        }
    }
    pieces.extend(output.end(InferenceFinishReason::Stop).expect("any tokens are read"));
    assert!(output.ended());
    let mut calls: Vec<String> = Vec::new();
    for piece in pieces {
        match piece {
            Piece::ToolCall { name } => {
                assert_eq!(name, "weather");
                calls.push(String::new());
            }
            Piece::Arguments(more) => calls.last_mut().expect("a name comes first").push_str(&more),
            _ => {}
        }
    }
    assert!(calls.is_empty() || output.called());
    for arguments in calls {
        let value: serde_json::Value = serde_json::from_str(&arguments).expect("arguments are JSON");
        assert!(value.is_object());
    }
});
