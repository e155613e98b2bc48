//! Text to tokens and back, against the `tokenizers` crate and DeepSeek's own rendering.

mod output;
mod prompt;
mod sessions;
mod tokenizer;

use std::sync::{Arc, LazyLock};

use super::Tokenizer;

/// The embedded model's tokenizer.
pub const DEMO_JSON: &[u8] = include_bytes!("../../../assets/demo-model/tokenizer.json");

static DEMO: LazyLock<Arc<Tokenizer>> =
    LazyLock::new(|| Arc::new(Tokenizer::from_bytes("demo/tokenizer.json", DEMO_JSON).unwrap()));

/// The same with the token that tool calls are written with in the place of one that holds a place.
static TOOLS: LazyLock<Arc<Tokenizer>> =
    LazyLock::new(|| Arc::new(Tokenizer::from_bytes("tools/tokenizer.json", tools_json().as_bytes()).unwrap()));

fn tools_json() -> String {
    let json = std::str::from_utf8(DEMO_JSON).unwrap();
    let changed = json.replace("<｜place▁holder▁no▁0｜>", "｜DSML｜");
    assert_ne!(json, changed);
    changed
}

fn demo() -> Arc<Tokenizer> {
    Arc::clone(&DEMO)
}

fn tools() -> Arc<Tokenizer> {
    Arc::clone(&TOOLS)
}
