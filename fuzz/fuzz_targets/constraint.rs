//! A client's schema, expression or grammar to a constraint: that or a refusal, and a mask or a reason.
#![no_main]

use std::sync::{Arc, LazyLock};

use fathom::chat::constraint::{Form, Format, Grammars, Said};
use fathom::chat::Tokenizer;
use libfuzzer_sys::fuzz_target;

static GRAMMARS: LazyLock<Grammars> = LazyLock::new(|| {
    let json = include_bytes!("../../crates/fathom/assets/demo-model/tokenizer.json");
    Grammars::new(Arc::new(Tokenizer::from_bytes("tokenizer.json", json).expect("a tokenizer")))
});

fuzz_target!(|data: &[u8]| {
    let Some((&kind, data)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(data) else { return };
    let format = match kind % 3 {
        0 => match serde_json::from_str(text) {
            Ok(schema) => Format::Schema(schema),
            Err(_) => return,
        },
        1 => Format::Regex(text.to_owned()),
        _ => Format::Grammar(text.to_owned()),
    };
    let form = Form { thinks: false, answer: Said::Like("at".to_owned(), format), calls: None, written: String::new() };
    match GRAMMARS.compile(&form) {
        Ok(constraint) => {
            let mut mask = constraint.expect("a format asks for something").begin();
            for _ in 0..8 {
                let Ok(words) = mask.allowed() else { return };
                let first = words.iter().position(|&word| word != 0);
                let token = first.map(|at| at as u32 * 32 + words[at].trailing_zeros()).expect("something may come");
                if token == 1 || mask.accept(token).is_err() {
                    return;
                }
            }
        }
        Err(refused) => assert!(!refused.problem.is_empty()),
    }
});
