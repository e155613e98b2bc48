//! Who said what in a conversation, back from its tokens.

use deepseek_recipe_core::special_tokens::SpecialToken;

use super::{Effort, Message, Prompter, Role};
use crate::Error;

/// One turn of a conversation, and where it is in its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Who says what.
    pub message: Message,
    /// What was thought before it was said.
    pub thinking: String,
    /// Where it begins, counted from 0: a question where the answer before it ended, an answer where its prompt ends.
    pub start: usize,
    /// Where it ends, and the next one begins.
    pub end: usize,
}

impl Prompter {
    /// The turns that [`Prompter::chat`] wrote, and the answers to them. What is not written like that comes back as a system's.
    ///
    /// # Errors
    /// [`Error::Encode`].
    pub fn turns(&self, tokens: &[u32]) -> Result<Vec<Turn>, Error> {
        let special = |token: SpecialToken| self.tokenizer.special(token.default_str());
        let (user, assistant) = (special(SpecialToken::User), special(SpecialToken::Assistant));
        let (bos, eos) = (special(SpecialToken::Bos), special(SpecialToken::Eos));
        let (think, thought) = (special(SpecialToken::ThinkingStart), special(SpecialToken::ThinkingEnd));
        let begin = |role, start| {
            let message = Message { role, text: String::new() };
            Turn { message, thinking: String::new(), start, end: start }
        };
        let (mut turns, mut turn) = (Vec::new(), begin(Role::System, 0));
        // Where what is said or thought begins, and which of the two it is.
        let (mut from, mut thinks) = (0, false);
        for at in 0..=tokens.len() {
            let token = tokens.get(at).copied();
            let ends = token == eos;
            if token.is_none() || ends || token == user || token == assistant {
                let text = self.tokenizer.decode(&tokens[from..at]);
                if thinks {
                    turn.thinking += &text;
                } else {
                    turn.message.text = text;
                }
                // Between the end of an answer and the next question there is nothing.
                let is_nothing = turn.message.role == Role::System && turn.message.text.is_empty();
                let (role, start) = match token {
                    _ if ends => (Role::System, at),
                    token if token == user => (Role::User, if is_nothing { turn.start } else { at }),
                    _ => (Role::Assistant, at + 1),
                };
                let before = std::mem::replace(&mut turn, begin(role, start));
                turns.extend((!is_nothing).then_some(before));
                (from, thinks) = (at + 1, false);
            } else if token == bos && at == 0 {
                from = at + 1;
            } else if token == think || token == thought {
                if at == turn.start && !thinks {
                    // The prompt says whether there is to be thinking.
                    turn.start = at + 1;
                }
                if thinks {
                    turn.thinking += &self.tokenizer.decode(&tokens[from..at]);
                }
                (from, thinks) = (at + 1, token == think);
            }
        }
        let mut turns = self.without_effort(turns)?;
        let mut next = tokens.len();
        for turn in turns.iter_mut().rev() {
            (turn.end, next) = (next, turn.start);
        }
        if let Some(first) = turns.first_mut() {
            first.start = 0;
        }
        Ok(turns)
    }

    /// The same as messages, without thinking.
    ///
    /// # Errors
    /// [`Error::Encode`].
    pub fn messages(&self, tokens: &[u32]) -> Result<Vec<Message>, Error> {
        Ok(self.turns(tokens)?.into_iter().map(|turn| turn.message).collect())
    }

    /// Where a conversation's question begins, counted from 0, in its tokens; their end if there are fewer.
    pub fn question(&self, tokens: &[u32], n: usize) -> usize {
        let user = self.tokenizer.special(SpecialToken::User.default_str());
        let mut questions = (0..tokens.len()).filter(|&at| Some(tokens[at]) == user);
        questions.nth(n).unwrap_or(tokens.len())
    }

    /// What asks for effort is not part of the conversation.
    fn without_effort(&self, mut turns: Vec<Turn>) -> Result<Vec<Turn>, Error> {
        let asked = |effort| -> Result<String, Error> {
            let (tokens, _) = self.chat(&[Message { role: Role::User, text: String::new() }], effort)?;
            let user = self.tokenizer.special(SpecialToken::User.default_str());
            let end = tokens.iter().position(|&token| Some(token) == user).unwrap_or(tokens.len());
            Ok(self.tokenizer.decode(&tokens[1.min(end)..end]))
        };
        if let Some(first) = turns.first_mut().filter(|first| first.message.role == Role::System) {
            for text in [asked(Effort::Max)?, asked(Effort::High)?] {
                if !text.is_empty()
                    && let Some(rest) = first.message.text.strip_prefix(&text)
                {
                    first.message.text = rest.to_owned();
                    break;
                }
            }
            if first.message.text.is_empty() {
                turns.remove(0);
            }
        }
        Ok(turns)
    }
}
