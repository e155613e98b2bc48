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

fn demo() -> Arc<Tokenizer> {
    Arc::clone(&DEMO)
}
