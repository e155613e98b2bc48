use std::sync::Arc;

use deepseek_recipe::stream::{FinishReason, InferenceFinishReason, ParsingOptions, ThinkingInitialStage};
use deepseek_recipe_encoding::TokenizerEncoder;

use super::demo;
use crate::chat::{Output, Piece, Spoken, Tokenizer};

/// The token ids of `text`, with every special token that is spelled in it.
fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let mut ranges = Vec::new();
    for spelling in ["<think>", "</think>", "｜DSML｜"] {
        ranges.extend(text.match_indices(spelling).map(|(at, _)| at..at + spelling.len()));
    }
    ranges.sort_by_key(|range| range.start);
    tokenizer.encode_ids(text, &ranges).unwrap()
}

fn parse(tokenizer: Arc<Tokenizer>, options: ParsingOptions, ids: &[u32]) -> (String, String, String, Spoken) {
    let mut output = Output::new(tokenizer, options);
    let mut pieces = Vec::new();
    for &id in ids {
        pieces.extend(output.push(id, None).unwrap());
        if output.ended() {
            break;
        }
    }
    pieces.extend(output.end(InferenceFinishReason::Stop).unwrap());
    assert!(output.ended());
    let (mut thinking, mut answer, mut calls, mut end) = (String::new(), String::new(), String::new(), None);
    for piece in pieces {
        match piece {
            Piece::Thinking(text) => thinking.push_str(&text),
            Piece::Answer(text) => answer.push_str(&text),
            Piece::ToolCall { name } => calls.push_str(&format!("{name}:")),
            Piece::Arguments(text) => calls.push_str(&text),
            Piece::End(spoken) => assert!(end.replace(spoken).is_none()),
        }
    }
    (thinking, answer, calls, end.unwrap())
}

fn thinking() -> ParsingOptions {
    ParsingOptions { thinking_initial_stage: Some(ThinkingInitialStage::ReasoningStart), ..ParsingOptions::default() }
}

#[test]
fn thinking_and_answer_part_at_the_token() {
    let ids = ids(&demo(), "so 🤭 then</think>The code is 12345.");
    let (thinking, answer, _, end) = parse(demo(), thinking(), &ids);
    assert_eq!((thinking.as_str(), answer.as_str()), ("so 🤭 then", "The code is 12345."));
    assert_eq!(end.reason, FinishReason::Stop);
    assert_eq!(end.tokens, ids.len());
    assert!(end.thinking_tokens.unwrap() > 2);
}

#[test]
fn a_spelled_marker_is_not_a_marker() {
    let ids = demo().encode("a</think>b").unwrap();
    let (thinking, answer, _, _) = parse(demo(), thinking(), &ids);
    assert_eq!((thinking.as_str(), answer.as_str()), ("a</think>b", ""));
}

#[test]
fn tool_calls_come_as_names_and_arguments() {
    let text = "Let me look.\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"weather\">\n<｜DSML｜parameter name=\"city\" \
                string=\"true\">Zürich \"\n</｜DSML｜parameter>\n<｜DSML｜parameter name=\"days\" string=\"false\">3\
                </｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>";
    let ids = ids(&demo(), text);
    let (_, answer, calls, end) = parse(demo(), ParsingOptions::default(), &ids);
    assert_eq!(answer, "Let me look.");
    assert_eq!(calls, r#"weather:{"city": "Zürich \"\n", "days": 3}"#);
    assert_eq!(end.reason, FinishReason::ToolCalls);
}

#[test]
fn a_stop_string_across_tokens_ends_the_answer_and_is_not_shown() {
    let ids = ids(&demo(), "one two STOP HERE three");
    let options = || ParsingOptions { stop_sequences: vec!["TOP HER".to_owned()], ..ParsingOptions::default() };
    let (_, answer, _, end) = parse(demo(), options(), &ids);
    assert_eq!(answer, "one two S");
    assert_eq!(end.reason, FinishReason::StopSequence);
    assert_eq!(end.stop.as_deref(), Some("TOP HER"));
    assert!(end.tokens < ids.len());

    // What only begins like it is shown in the end.
    let ids = self::ids(&demo(), "one TOP HE");
    let (_, answer, _, end) = parse(demo(), options(), &ids);
    assert_eq!((answer.as_str(), end.reason), ("one TOP HE", FinishReason::Stop));
}

#[test]
fn an_unfinished_character_is_shown_as_such() {
    let emoji = demo().encode("🤭").unwrap();
    let mut ids = demo().encode("ok ").unwrap();
    ids.extend(&emoji[..emoji.len() - 1]);
    let (_, answer, _, end) = parse(demo(), ParsingOptions::default(), &ids);
    assert_eq!(answer, "ok \u{FFFD}");
    assert_eq!(end.tokens, ids.len());
}

#[test]
fn a_replacement_character_of_the_models_own_is_kept() {
    let ids = demo().encode("odd \u{FFFD}").unwrap();
    assert_eq!(parse(demo(), ParsingOptions::default(), &ids).1, "odd \u{FFFD}");
}
