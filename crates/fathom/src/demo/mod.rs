//! The demo's text: filler from templates, one needle at a random depth, and the question for it.
//!
//! Words and templates are in `assets/demo-text.json`: those that the embedded model was trained on.

use std::collections::HashMap;

use serde::Deserialize;

const TEXT: &str = include_str!("../../assets/demo-text.json");

/// Words and templates.
#[derive(Debug, Deserialize)]
struct Templates {
    slots: HashMap<char, String>,
    filler: Vec<String>,
    needle: Vec<String>,
    question: String,
    answer: String,
}

/// A long text with a question.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The text and, after one space, the question.
    pub prompt: String,
    /// What the model should say.
    pub expected: String,
    /// The code that was hidden, five digits.
    pub code: String,
    /// Where the needle stands, as a share of the text's sentences.
    pub depth: f64,
}

/// A small deterministic generator (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

/// Writes a text of at most `budget` tokens, as `count` counts them, for a seed. Without a needle the code is nowhere in
/// it: a control that must not be answered.
pub fn document(seed: u64, budget: usize, needle: bool, mut count: impl FnMut(&str) -> usize) -> Document {
    let templates: Templates = serde_json::from_str(TEXT).expect("assets/demo-text.json is part of the program");
    let slots: HashMap<char, Vec<&str>> =
        templates.slots.iter().map(|(&slot, words)| (slot, words.split(' ').collect())).collect();
    let mut random = Random(seed.wrapping_mul(0xA076_1D64_78BD_642F).wrapping_add(1));
    let name = random.pick(&slots[&'X']).to_owned();
    let code: String = (0..5).map(|_| char::from(b'0' + random.below(10) as u8)).collect();
    let fill = |template: &str| template.replace('@', &name).replace('%', &code);
    let hidden = fill(&templates.needle[random.below(templates.needle.len())]);
    let question = fill(&templates.question);

    let mut used = count(&format!(" {question}")) + if needle { count(&format!(" {hidden}")) } else { 0 };
    let mut sentences = Vec::new();
    loop {
        let template = &templates.filler[random.below(templates.filler.len())];
        let sentence = filler(template, &slots, &mut random);
        used += count(&format!(" {sentence}"));
        if used > budget {
            break;
        }
        sentences.push(sentence);
    }
    let at = random.below(sentences.len() + 1);
    let depth = at as f64 / sentences.len().max(1) as f64;
    if needle {
        sentences.insert(at, hidden);
    }
    sentences.push(question);
    Document { prompt: sentences.join(" "), expected: fill(&templates.answer), code, depth }
}

/// A template with its slots filled: capital letters that stand alone, and `#`.
fn filler(template: &str, slots: &HashMap<char, Vec<&str>>, random: &mut Random) -> String {
    let words = template.split(' ').map(|word| {
        let (body, mark) = match word.strip_suffix(['.', ',']) {
            Some(body) => (body, &word[body.len()..]),
            None => (word, ""),
        };
        let mut letters = body.chars();
        let filled = match (letters.next(), letters.next()) {
            (Some('#'), None) => (2 + random.below(98)).to_string(),
            (Some(slot), None) if slots.contains_key(&slot) => random.pick(&slots[&slot]).to_owned(),
            _ => body.to_owned(),
        };
        filled + mark
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> usize {
        text.split(' ').count()
    }

    #[test]
    fn the_needle_is_in_the_text_once() {
        for seed in 0..50 {
            let d = document(seed, 500, true, words);
            assert_eq!(d.prompt.matches(&format!("is {}.", d.code)).count(), 1, "{}", d.prompt);
            assert!(d.prompt.ends_with('?') && d.expected.contains(&d.code) && (0.0..=1.0).contains(&d.depth));
            assert!(words(&d.prompt) <= 500 && words(&d.prompt) > 400);
            let control = document(seed, 500, false, words);
            assert!(!control.prompt.contains(&control.code));
            assert!(!d.prompt.contains(['@', '%', '#']), "{}", d.prompt);
        }
    }

    #[test]
    fn a_seed_is_a_text() {
        assert_eq!(document(7, 300, true, words), document(7, 300, true, words));
        assert_ne!(document(7, 300, true, words), document(8, 300, true, words));
    }
}
