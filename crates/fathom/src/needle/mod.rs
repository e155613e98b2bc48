//! Questions about what a long text hides: how well a model reads, by length and depth.

mod kept;
mod score;

pub use kept::Kept;
pub use score::found;

use crate::demo::{Random, Words, code, estimate};

/// What is hidden, and asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// One code
    Single,
    /// Four codes, all of them asked for
    Multi,
    /// The code of one who has that of another
    Chain,
    /// The sum of four numbers
    Aggregate,
}

/// Needles of the kinds that have several.
const SEVERAL: usize = 4;

impl Kind {
    /// A word for files.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Single => "single",
            Kind::Multi => "multi",
            Kind::Chain => "chain",
            Kind::Aggregate => "aggregate",
        }
    }
}

/// A text, a question behind it, and the numbers that an answer must have.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The text and, after one space, the question.
    pub prompt: String,
    /// All of these numbers, and in whatever words.
    pub expected: Vec<String>,
}

/// A text of about `tokens` tokens, as [`estimate`] guesses them. The first needle stands at `depth`, a share of the text; others
/// at equal distances behind it, from the beginning again after the end.
pub fn question(kind: Kind, tokens: usize, depth: f64, seed: u64) -> Question {
    let words = Words::embedded();
    let mut random = Random::new(seed);
    let (needles, question, expected) = hide(kind, &words, &mut random);
    let used: usize = needles.iter().chain([&question]).map(|text| estimate(text)).sum();
    let mut sentences = words.sentences(&mut random, tokens.saturating_sub(used), estimate);
    let count = needles.len() as f64;
    let mut places: Vec<(usize, String)> = Vec::new();
    for (i, needle) in needles.into_iter().enumerate() {
        let mut at = depth + i as f64 / count;
        // The end is a place of its own for the first.
        if i > 0 {
            at %= 1.0;
        }
        places.push(((at * sentences.len() as f64).round() as usize, needle));
    }
    // From behind, so that those before stay where they are.
    places.sort_by_key(|&(at, _)| std::cmp::Reverse(at));
    for (at, needle) in places {
        sentences.insert(at.min(sentences.len()), needle);
    }
    sentences.push(question);
    Question { prompt: sentences.join(" "), expected }
}

/// Needles, the question about them, and the numbers of the answer.
fn hide(kind: Kind, words: &Words, random: &mut Random) -> (Vec<String>, String, Vec<String>) {
    let names = distinct(words.names(), SEVERAL, random);
    let codes: Vec<String> = (0..SEVERAL).map(|_| code(random)).collect();
    let needle =
        |i: usize, random: &mut Random| random.pick(&words.needle).replace('@', &names[i]).replace('%', &codes[i]);
    match kind {
        Kind::Single => {
            let hidden = needle(0, random);
            (vec![hidden], words.question.replace('@', &names[0]), vec![codes[0].clone()])
        }
        Kind::Multi => {
            let hidden = (0..SEVERAL).map(|i| needle(i, random)).collect();
            let all = format!("{} and {}", names[..SEVERAL - 1].join(", "), names[SEVERAL - 1]);
            (hidden, words.kinds.multi_question.replace('@', &all), codes)
        }
        Kind::Chain => {
            let link = words.kinds.chain_link.replace('@', &names[0]).replace('&', &names[1]);
            let hidden = vec![link, needle(1, random)];
            (hidden, words.question.replace('@', &names[0]), vec![codes[1].clone()])
        }
        Kind::Aggregate => {
            let thing = random.pick(words.things()).to_owned();
            let numbers: Vec<usize> = (0..SEVERAL).map(|_| 2 + random.below(98)).collect();
            let one = |(name, number): (&String, &usize)| {
                let text = words.kinds.aggregate_needle.replace('@', name);
                text.replace('%', &number.to_string()).replace('&', &thing)
            };
            let hidden = names.iter().zip(&numbers).map(one).collect();
            let sum: usize = numbers.iter().sum();
            (hidden, words.kinds.aggregate_question.replace('&', &thing), vec![sum.to_string()])
        }
    }
}

/// `n` different ones.
fn distinct(from: &[String], n: usize, random: &mut Random) -> Vec<String> {
    let mut left: Vec<&String> = from.iter().collect();
    (0..n).map(|_| left.swap_remove(random.below(left.len())).clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Kind; 4] = [Kind::Single, Kind::Multi, Kind::Chain, Kind::Aggregate];

    #[test]
    fn a_seed_is_a_question() {
        for kind in KINDS {
            assert_eq!(question(kind, 500, 0.5, 3), question(kind, 500, 0.5, 3));
            assert_ne!(question(kind, 500, 0.5, 3), question(kind, 500, 0.5, 4));
            let q = question(kind, 500, 0.5, 3);
            assert!(!q.prompt.contains(['@', '%', '&', '#']), "{}", q.prompt);
            assert!((400..=500).contains(&estimate(&q.prompt)), "{}", estimate(&q.prompt));
        }
    }

    /// Where a text has the first needle, in percent.
    fn place(prompt: &str, needle: &str) -> usize {
        100 * prompt.find(needle).unwrap() / prompt.len()
    }

    #[test]
    fn needles_stand_where_they_should() {
        for (depth, expected) in [(0.0, 0..=2), (0.5, 45..=55), (1.0, 93..=100)] {
            let q = question(Kind::Single, 2000, depth, 1);
            assert_eq!(q.prompt.matches(&q.expected[0]).count(), 1);
            assert!(expected.contains(&place(&q.prompt, &q.expected[0])), "{depth}");
        }
        let q = question(Kind::Multi, 2000, 0.5, 1);
        let mut places: Vec<usize> = q.expected.iter().map(|code| place(&q.prompt, code)).collect();
        assert!((45..=55).contains(&places[0]), "{places:?}");
        places.sort_unstable();
        assert!(places.windows(2).all(|w| w[1] - w[0] > 15), "{places:?}");
    }

    #[test]
    fn chains_and_sums_need_what_is_hidden() {
        let q = question(Kind::Chain, 600, 0.2, 2);
        let asked = q.prompt.rsplit(' ').next().unwrap().trim_end_matches('?');
        let link = q.prompt.split(&format!("The code of {asked} is the same as the code of ")).nth(1).unwrap();
        let other = link.split('.').next().unwrap();
        assert!(q.prompt.contains(&format!("code of {other} is {}", q.expected[0])), "{}", q.prompt);
        let q = question(Kind::Aggregate, 600, 0.2, 2);
        let numbers: Vec<usize> = q
            .prompt
            .split("stands with ")
            .skip(1)
            .map(|rest| rest.split(' ').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!((numbers.len(), numbers.iter().sum::<usize>().to_string()), (SEVERAL, q.expected[0].clone()));
    }
}
