//! The demo's text: filler from templates, one needle at a random depth, and the question for it.

mod words;

pub use words::{Kinds, Random, Words, estimate};

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

/// A code of five digits.
pub fn code(random: &mut Random) -> String {
    (0..5).map(|_| char::from(b'0' + random.below(10) as u8)).collect()
}

/// Writes a text of at most `budget` tokens, as `count` counts them, for a seed. Without a needle the code is nowhere in
/// it: a control that must not be answered.
pub fn document(seed: u64, budget: usize, needle: bool, mut count: impl FnMut(&str) -> usize) -> Document {
    let words = Words::embedded();
    let mut random = Random::new(seed);
    let name = random.pick(words.names()).to_owned();
    let code = code(&mut random);
    let fill = |template: &str| template.replace('@', &name).replace('%', &code);
    let hidden = fill(random.pick(&words.needle));
    let question = fill(&words.question);

    let used = count(&format!(" {question}")) + if needle { count(&format!(" {hidden}")) } else { 0 };
    let mut sentences = words.sentences(&mut random, budget.saturating_sub(used), count);
    let at = random.below(sentences.len() + 1);
    let depth = at as f64 / sentences.len().max(1) as f64;
    if needle {
        sentences.insert(at, hidden);
    }
    sentences.push(question);
    Document { prompt: sentences.join(" "), expected: fill(&words.answer), code, depth }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

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

    /// Texts of a seed are the same in every version: measured times and goldens are of them.
    #[test]
    fn texts_stay_what_they_were() {
        let hash = |seed, budget, needle| {
            let d = document(seed, budget, needle, words);
            let hash = Sha256::digest(format!("{}|{}", d.prompt, d.expected));
            hash[..8].iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        assert_eq!(hash(7, 300, true), "bded67a809ab335e");
        assert_eq!(hash(5, 2000, true), "b2fad57ecf1b4470");
        assert_eq!(hash(5, 1000, false), "f79e1d67198b63d5");
        assert_eq!(hash(u64::MAX, 10, true), "8f4cd6523ae904a5");
    }
}
