//! What is asked, by whom and when: made-up work in the shapes that servers see, the same for the same seed.
//!
//! Texts are plain sentences of [`Words`]; lengths are in tokens as [`estimate`] guesses them, and what a server counts is in its
//! usage. Answers that stand in a history are written beforehand, so that every server reads the same.

mod agent;
mod chat;
mod days;
mod document;
mod mixed;
mod repository;
mod trace;

use std::sync::Arc;
use std::time::Duration;

use crate::demo::{Random, Words, estimate};

use crate::ui::commas;

pub use trace::{MOST_OUTPUT, Trace, export};

/// The most tokens of a round's prompts together: some 350 MB of text.
const MOST_TOKENS: usize = 1 << 26;

/// A turn of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: Arc<str>,
}

/// A request.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Requests of a lane wait for those before them; lanes do not wait for each other.
    pub lane: usize,
    /// When it is asked at the earliest, after the beginning.
    pub at: Duration,
    /// The conversation.
    pub messages: Vec<Message>,
    /// The most tokens of the answer.
    pub max_tokens: usize,
}

impl Item {
    /// About how many tokens its prompt has.
    pub fn tokens(&self) -> usize {
        self.messages.iter().map(|message| estimate(&message.content) + 4).sum()
    }
}

/// A shape of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// Short conversations, one request after another
    Chat,
    /// A history that grows by tool results and is sent again with every step
    Agent,
    /// One long text and many questions about it
    Document,
    /// Many files, questions, and an edit before each of them
    Repository,
    /// Conversations of three people that go on day after day
    Days,
    /// Requests of all lengths that come at random times and in bursts
    Mixed,
}

/// How much of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size {
    /// About how many tokens the longest prompt has.
    pub context: usize,
    /// How many requests: 1 is as many as the shape has by itself.
    pub scale: f64,
    /// Requests a second, where they come at random times.
    pub rate: f64,
}

impl Size {
    /// `standard` requests, scaled; one at least.
    fn count(&self, standard: usize) -> usize {
        ((standard as f64 * self.scale).round() as usize).max(1)
    }
}

impl Workload {
    /// What it is, in a sentence.
    pub fn about(self) -> &'static str {
        match self {
            Workload::Chat => "short conversations of three turns, one request after another",
            Workload::Agent => "an agent whose history grows by tool results and is sent again with every step",
            Workload::Document => "one long text, and many questions about it, each in a conversation of its own",
            Workload::Repository => "the files of a repository and a question; one file is edited before each question",
            Workload::Days => "three people whose conversations go on day after day, in turn",
            Workload::Mixed => {
                "requests of all lengths that come at random times (Poisson), every sixth time three at once"
            }
        }
    }

    /// How many requests there are at most, and about how many tokens each has at most.
    fn most(self, size: Size) -> (usize, usize) {
        let requests = match self {
            Workload::Chat => size.count(chat::REQUESTS),
            Workload::Agent => size.count(agent::STEPS),
            Workload::Document => size.count(document::QUESTIONS),
            Workload::Repository => size.count(repository::QUESTIONS),
            Workload::Days => size.count(days::DAYS) * days::A_DAY,
            Workload::Mixed => size.count(mixed::REQUESTS),
        };
        (requests, if self == Workload::Chat { size.context.min(chat::LONGEST) } else { size.context })
    }

    /// Whether a round is not too much to be made and written down.
    ///
    /// # Errors
    /// In one line: how much it would be.
    pub fn check(self, size: Size) -> Result<(), String> {
        let (requests, each) = self.most(size);
        if requests <= trace::MOST && requests.saturating_mul(each) <= MOST_TOKENS {
            return Ok(());
        }
        Err(format!(
            "a round would be up to {} requests of up to {} tokens, but {} requests and {} tokens together are the most; \
             take a smaller --scale or --context",
            commas(requests),
            commas(each),
            commas(trace::MOST),
            commas(MOST_TOKENS)
        ))
    }

    /// The requests of a seed, in the order in which they are first due.
    pub fn items(self, seed: u64, size: Size) -> Vec<Item> {
        let mut writer = Writer { words: Words::embedded(), random: Random::new(seed) };
        match self {
            Workload::Chat => chat::items(&mut writer, size),
            Workload::Agent => agent::items(&mut writer, size),
            Workload::Document => document::items(&mut writer, size),
            Workload::Repository => repository::items(&mut writer, size),
            Workload::Days => days::items(&mut writer, size),
            Workload::Mixed => mixed::items(&mut writer, size),
        }
    }
}

/// Makes texts up.
struct Writer {
    words: Words,
    random: Random,
}

impl Writer {
    /// A text of about so many tokens, one sentence at least.
    fn text(&mut self, tokens: usize) -> String {
        let sentences = self.words.sentences(&mut self.random, tokens, estimate);
        if sentences.is_empty() { self.words.sentence(&mut self.random) } else { sentences.join(" ") }
    }

    fn noun(&mut self) -> String {
        self.random.pick(self.words.nouns()).to_owned()
    }

    fn question(&mut self) -> String {
        let (a, b) = (self.noun(), self.noun());
        match self.random.below(4) {
            0 => format!("What happened to the {a} and the {b}?"),
            1 => format!("Who saw the {a} near the {b}? Say why you think so."),
            2 => format!("Write a few sentences about the {a} behind the {b}."),
            _ => format!("How is the {a} like the {b}?"),
        }
    }
}

fn message(role: &str, content: impl Into<Arc<str>>) -> Message {
    Message { role: role.to_owned(), content: content.into() }
}

fn item(lane: usize, messages: Vec<Message>, max_tokens: usize) -> Item {
    Item { lane, at: Duration::ZERO, messages, max_tokens }
}

/// A prompt of about so many tokens.
fn filler(writer: &mut Writer, tokens: usize) -> Vec<Message> {
    vec![message("user", writer.text(tokens.saturating_sub(4)))]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Workload; 6] =
        [Workload::Chat, Workload::Agent, Workload::Document, Workload::Repository, Workload::Days, Workload::Mixed];
    const SIZE: Size = Size { context: 2000, scale: 1.0, rate: 1.0 };

    #[test]
    fn a_seed_is_a_workload() {
        for workload in ALL {
            assert_eq!(workload.items(3, SIZE), workload.items(3, SIZE));
            assert_ne!(workload.items(3, SIZE), workload.items(4, SIZE));
        }
    }

    #[test]
    fn sizes_are_kept() {
        for workload in ALL {
            for context in [300, 2000, 20_000] {
                let items = workload.items(1, Size { context, ..SIZE });
                let longest = items.iter().map(Item::tokens).max().unwrap();
                assert!(longest <= context + 60, "{workload:?} {context}: {longest}");
                assert!(workload == Workload::Chat || longest * 4 > context * 3, "{workload:?} {context}: {longest}");
            }
            let [one, many] = [0.01, 2.0].map(|scale| workload.items(1, Size { scale, ..SIZE }).len());
            assert!(one >= 1 && many > one, "{workload:?}: {one}, {many}");
        }
    }

    #[test]
    fn how_much_it_is_is_known_before_and_bounded() {
        for workload in ALL {
            for (context, scale) in [(256, 0.01), (300, 3.0), (2000, 1.0), (20_000, 0.5)] {
                let size = Size { context, scale, ..SIZE };
                let (requests, each) = workload.most(size);
                let items = workload.items(1, size);
                let longest = items.iter().map(Item::tokens).max().unwrap();
                assert!(items.len() <= requests && longest <= each + 60, "{workload:?} {context}: {longest}");
                workload.check(size).unwrap();
            }
            workload.check(Size { context: 1 << 20, ..SIZE }).unwrap();
            // Too many tokens for all, too many requests for most, too many tokens for all but short conversations.
            for (context, scale, fine) in [
                (4096, 1e4, &[][..]),
                (256, 1e4, &[Workload::Document, Workload::Repository]),
                (1 << 24, 1.0, &[Workload::Chat]),
            ] {
                let checked = workload.check(Size { context, scale, ..SIZE });
                assert_eq!(checked.is_ok(), fine.contains(&workload), "{workload:?} {context} {scale}: {checked:?}");
            }
        }
    }

    #[test]
    fn histories_begin_with_what_was_before() {
        for workload in [Workload::Agent, Workload::Document] {
            let items = workload.items(1, SIZE);
            for (a, b) in items.iter().zip(&items[1..]) {
                let same = a.messages.iter().zip(&b.messages).take_while(|(a, b)| a == b).count();
                let expected = if workload == Workload::Agent { a.messages.len() } else { 1 };
                assert_eq!(same, expected, "{workload:?}");
            }
        }
    }

    #[test]
    fn arrivals_are_in_order_and_some_come_together() {
        let items = Workload::Mixed.items(1, SIZE);
        assert!(items.is_sorted_by_key(|item| item.at));
        assert!(items.windows(3).any(|w| w[0].at == w[2].at) && items.windows(2).any(|w| w[0].at < w[1].at));
    }
}
