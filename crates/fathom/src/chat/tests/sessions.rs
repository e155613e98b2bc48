//! What is said, back from tokens; the same text in other tokens.

use fathom_engine::{Missed, Seam, Why};
use proptest::prelude::*;

use super::demo;
use crate::chat::{Dialect, Effort, Message, Prompter, Role, TextSeam, explain};

fn message(role: Role, text: &str) -> Message {
    Message { role, text: text.to_owned() }
}

#[test]
fn a_conversation_is_its_tokens() {
    for (dialect, effort, system) in [
        (Dialect::Preview, Effort::None, None),
        (Dialect::Preview, Effort::Max, Some("Be brief.")),
        (Dialect::Current, Effort::High, None),
        (Dialect::Current, Effort::Max, Some("Be brief.")),
    ] {
        let prompter = Prompter::new(demo(), dialect);
        let mut messages: Vec<Message> = system.iter().map(|text| message(Role::System, text)).collect();
        messages.push(message(Role::User, "one <think> two"));
        let (mut tokens, _) = prompter.chat(&messages, effort).unwrap();
        assert_eq!(prompter.branch(&tokens), (effort != Effort::None).then(|| tokens.len() - 1));
        let end = demo().special("</think>").unwrap();
        if effort != Effort::None {
            tokens.extend([demo().encode("well…").unwrap(), vec![end]].concat());
        }
        tokens.extend(demo().encode(" three\n").unwrap());
        messages.push(message(Role::Assistant, " three\n"));
        assert_eq!(prompter.messages(&tokens).unwrap(), messages);
        let turns = prompter.turns(&tokens).unwrap();
        assert_eq!(turns.last().unwrap().thinking, if effort == Effort::None { "" } else { "well…" });
        let (prompt, _) = prompter.chat(&messages[..messages.len() - 1], effort).unwrap();
        assert_eq!(turns.last().unwrap().start, prompt.len());
        let question = if system.is_some() { prompter.question(&tokens, 0) } else { 0 };
        assert_eq!(turns[turns.len() - 2].start, question);
        assert!(turns.windows(2).all(|pair| pair[0].end == pair[1].start) && turns.last().unwrap().end == tokens.len());
        // And so it is when it was written as a whole.
        messages.push(message(Role::User, "four"));
        let (tokens, _) = prompter.chat(&messages, effort).unwrap();
        messages.push(message(Role::Assistant, ""));
        assert_eq!(prompter.messages(&tokens).unwrap(), messages);
        let turns = prompter.turns(&tokens).unwrap();
        assert!(turns.windows(2).all(|pair| pair[0].end == pair[1].start), "{turns:?}");
        // A turn says where to go back to, so that it can be said once more.
        let question = &turns[turns.len() - 2];
        let again = prompter.turn(&tokens[..question.start], &[message(Role::User, "four")], effort).unwrap();
        assert_eq!([&tokens[..question.start], &again].concat(), tokens);
    }
    let prompter = Prompter::new(demo(), Dialect::Preview);
    assert_eq!(prompter.messages(&[]).unwrap(), []);
    // Back to nothing but the first token of all.
    let hi = [message(Role::User, "hi")];
    let (tokens, _) = prompter.chat(&hi, Effort::None).unwrap();
    assert_eq!(prompter.turn(&tokens[..1], &hi, Effort::None).unwrap(), tokens[1..]);
}

#[test]
fn text_is_known_in_other_tokens() {
    let (tokenizer, seam) = (demo(), TextSeam(demo()));
    let encode = |text: &str| tokenizer.encode(text).unwrap();
    let end = tokenizer.special("<｜end▁of▁sentence｜>").unwrap();
    // As a model may say it: byte by byte.
    let bytes: Vec<u32> = "the code".chars().flat_map(|c| encode(&c.to_string())).collect();
    let usual = encode("the code");
    assert_ne!(bytes, usual);
    let known = [encode("What? "), bytes].concat();
    let from = encode("What? ").len();
    let sent = [encode("What? "), usual.clone(), vec![end], encode("Next")].concat();
    let joined = seam.join(&sent, &known, from).unwrap();
    assert_eq!(joined, [&known[..], &[end], &encode("Next")].concat());
    // Cut off inside of a token, and gone on from there.
    let known = &known[..known.len() - 1];
    let joined = seam.join(&sent, known, from).unwrap();
    assert_eq!(joined, [known, &encode("e"), &[end], &encode("Next")].concat());
    // Other text; a special token that is only spelled; nothing more.
    assert_eq!(
        seam.join(
            &[encode("What? the cod"), vec![end]].concat(),
            &[encode("What? the code"), vec![end]].concat(),
            from
        ),
        None
    );
    assert_eq!(seam.join(&encode("What? <｜end▁of▁sentence｜>"), &[encode("What? "), vec![end]].concat(), from), None);
    assert_eq!(
        seam.join(&encode("What? the code"), &[encode("What? "), encode("the"), encode(" code")].concat(), from),
        None
    );
}

proptest! {
    /// Whatever the tokens, their turns come one after another, from the first token to the last.
    #[test]
    fn turns_are_one_after_another(which in prop::collection::vec(0usize..8, 0..24)) {
        let prompter = Prompter::new(demo(), Dialect::Preview);
        let special = |spelling: &str| demo().special(spelling).unwrap();
        let word = demo().encode("word").unwrap()[0];
        let specials = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"];
        let tokens: Vec<u32> = which.iter().map(|&i| specials.get(i).map_or(word, |&one| special(one))).collect();
        let turns = prompter.turns(&tokens).unwrap();
        if let (Some(first), Some(last)) = (turns.first(), turns.last()) {
            prop_assert_eq!((first.start, last.end), (0, tokens.len()));
        }
        prop_assert!(turns.iter().all(|turn| turn.start <= turn.end));
        prop_assert!(turns.windows(2).all(|pair| pair[0].end == pair[1].start));
    }

    /// Joined or not, the text is that of the prompt.
    #[test]
    fn joining_keeps_the_text(text in "[ab é\n]{0,12}", known in "[ab é\n]{0,12}", cut in 0usize..12) {
        let (tokenizer, seam) = (demo(), TextSeam(demo()));
        let known: Vec<u32> = known.chars().chain(text.chars().take(cut)).flat_map(|c| tokenizer.encode(&c.to_string()).unwrap()).collect();
        let prompt = tokenizer.encode(&text).unwrap();
        let from = known.iter().zip(&prompt).take_while(|(a, b)| a == b).count();
        if let Some(joined) = seam.join(&prompt, &known, from) {
            prop_assert_eq!(tokenizer.decode(&joined), text);
            prop_assert!(joined.starts_with(&known));
        } else if text.starts_with(&tokenizer.decode(&known)) {
            prop_assert_eq!(tokenizer.decode(&known), text);
        }
    }
}

#[test]
fn why_in_words() {
    let tokenizer = demo();
    let mut missed = Missed {
        why: Why::Differs,
        matched: 48_211,
        of: Some(51_002),
        session: Some("a41f".into()),
        theirs: tokenizer.encode("2026-11-23").unwrap(),
        ours: tokenizer.encode("2026-11-24").unwrap(),
        cost: std::time::Duration::from_secs(38),
    };
    assert_eq!(
        explain(&missed, &tokenizer),
        "matched 48,211 of 51,002 tokens of session a41f; first difference at token 48,211: `…2026-11-23…` against \
         `…2026-11-24…`; would have saved 38.0 s"
    );
    (missed.why, missed.session) = (Why::Evicted, None);
    assert_eq!(
        explain(&missed, &tokenizer),
        "the state after 48,211 tokens had to make room for others; would have saved 38.0 s"
    );
}
