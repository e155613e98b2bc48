//! Words and templates of made-up texts, and the generator that picks them.
//!
//! All of them are in `assets/demo-text.json`: what the embedded model was trained on, and the questions of `fathom needle`.

use std::collections::HashMap;

use serde::Deserialize;

const TEXT: &str = include_str!("../../assets/demo-text.json");

/// Words and templates, as they are in the file.
#[derive(Debug, Deserialize)]
struct Templates {
    slots: HashMap<char, String>,
    filler: Vec<String>,
    needle: Vec<String>,
    question: String,
    answer: String,
    kinds: Kinds,
}

/// What `fathom needle` hides and asks, beside the demo's one code. `@` is a name, `%` a number, `&` another name or a thing.
#[derive(Debug, Clone, Deserialize)]
pub struct Kinds {
    /// After `@`, a list of names: all their codes.
    pub multi_question: String,
    /// Whose code is that of somebody else.
    pub chain_link: String,
    /// A number of things that somebody brought.
    pub aggregate_needle: String,
    /// How many there were in all.
    pub aggregate_question: String,
}

/// Words and templates.
#[derive(Debug)]
pub struct Words {
    slots: HashMap<char, Vec<String>>,
    filler: Vec<String>,
    /// Sentences that hide a code: `@` is the name, `%` the code.
    pub needle: Vec<String>,
    /// Asks for it.
    pub question: String,
    /// Says it.
    pub answer: String,
    /// Other things to hide and to ask.
    pub kinds: Kinds,
}

/// A small deterministic generator (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// One that a seed starts.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0xA076_1D64_78BD_642F).wrapping_add(1))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number from 0 to `n` − 1.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// A number of [0, 1).
    pub fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// One of these.
    pub fn pick<'a>(&mut self, from: &'a [String]) -> &'a str {
        &from[self.below(from.len())]
    }
}

impl Words {
    /// Those that are part of the program.
    pub fn embedded() -> Words {
        let t: Templates = serde_json::from_str(TEXT).expect("assets/demo-text.json is part of the program");
        let split = |words: &str| words.split(' ').map(str::to_owned).collect();
        let slots = t.slots.iter().map(|(&slot, words)| (slot, split(words))).collect();
        let Templates { filler, needle, question, answer, kinds, .. } = t;
        Words { slots, filler, needle, question, answer, kinds }
    }

    /// Names of people.
    pub fn names(&self) -> &[String] {
        &self.slots[&'X']
    }

    /// Things that can be counted.
    pub fn things(&self) -> &[String] {
        &self.slots[&'L']
    }

    /// Nouns.
    pub fn nouns(&self) -> &[String] {
        &self.slots[&'N']
    }

    /// A sentence about nothing: a template with its slots filled, capital letters that stand alone, and `#`.
    pub fn sentence(&self, random: &mut Random) -> String {
        let template = random.pick(&self.filler);
        let words = template.split(' ').map(|word| {
            let (body, mark) = match word.strip_suffix(['.', ',']) {
                Some(body) => (body, &word[body.len()..]),
                None => (word, ""),
            };
            let mut letters = body.chars();
            let filled = match (letters.next(), letters.next()) {
                (Some('#'), None) => (2 + random.below(98)).to_string(),
                (Some(slot), None) if self.slots.contains_key(&slot) => random.pick(&self.slots[&slot]).to_owned(),
                _ => body.to_owned(),
            };
            filled + mark
        });
        words.collect::<Vec<_>>().join(" ")
    }

    /// Sentences until `tokens` are used up, as `count` counts each with the space before it.
    pub fn sentences(&self, random: &mut Random, tokens: usize, mut count: impl FnMut(&str) -> usize) -> Vec<String> {
        let (mut used, mut sentences) = (0, Vec::new());
        loop {
            let sentence = self.sentence(random);
            used += count(&format!(" {sentence}")).max(1);
            if used > tokens {
                return sentences;
            }
            sentences.push(sentence);
        }
    }
}

/// About how many tokens a text of [`Words`] has, for a model nobody knows: words and marks. V4's tokenizer and the embedded
/// model's make 0.95 to 1.1 times as many of plain sentences.
pub fn estimate(text: &str) -> usize {
    text.split_whitespace().count() + text.bytes().filter(|b| b.is_ascii_punctuation()).count()
}
