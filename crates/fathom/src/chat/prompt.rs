//! Conversations to token ids, in the form the model was trained on.

use std::sync::Arc;

use deepseek_recipe::request::ModelVersion;
use deepseek_recipe::stream::{ParsingOptions, ThinkingInitialStage};
use deepseek_recipe_core::conversation::{Conversation, ReasoningEffort};
use deepseek_recipe_core::messages::InputMessage;
use deepseek_recipe_core::prompt::Prompt;
use deepseek_recipe_core::special_tokens::SpecialToken;
use deepseek_recipe_encoding::PromptEncoding;
use deepseek_recipe_encoding::dsv4::DeepseekV4Encoding;
use fathom_weights::Release;

use super::Tokenizer;
use crate::Error;

/// Which texts ask for effort, by the model's release. All else about V4's prompts is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dialect {
    /// V4-Flash and V4-Pro of April 2026: a text for the greatest effort only.
    #[default]
    Preview,
    /// Flash-0731, Pro-0813 and later: that text asks for high effort, and a stronger one for the greatest.
    Current,
}

impl From<Release> for Dialect {
    fn from(release: Release) -> Dialect {
        match release {
            // The Base models came with the preview and were never taught efforts.
            Release::Preview | Release::Base => Dialect::Preview,
            Release::Dspark => Dialect::Current,
        }
    }
}

impl Dialect {
    /// What DeepSeek's request conversion calls the model.
    pub fn model_version(self) -> ModelVersion {
        ModelVersion::DeepseekV4Pro
    }

    /// The efforts that make a difference to it.
    pub fn efforts(self) -> &'static [&'static str] {
        match self {
            Dialect::Preview => &["high", "max"],
            Dialect::Current => &["low", "high", "max"],
        }
    }

    /// The effort whose text in DeepSeek's current encoding is this dialect's text for `effort`.
    fn effort(self, effort: ReasoningEffort) -> ReasoningEffort {
        match (self, effort) {
            (Dialect::Current, effort) => effort,
            (Dialect::Preview, ReasoningEffort::Max) => ReasoningEffort::High,
            (Dialect::Preview, _) => ReasoningEffort::Low,
        }
    }
}

/// How hard the model is to think before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Effort {
    /// Not at all: it answers at once.
    #[default]
    None,
    /// A little.
    Low,
    /// As it was trained to by default.
    High,
    /// As long as it takes.
    Max,
}

/// Who says a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions that stand above the conversation.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said, without the thinking that led to it.
    pub text: String,
}

/// Writes prompts for one model.
#[derive(Clone)]
pub struct Prompter {
    pub(super) tokenizer: Arc<Tokenizer>,
    encoding: DeepseekV4Encoding,
    dialect: Dialect,
}

impl Prompter {
    /// A writer of `dialect` with a tokenizer that [`Tokenizer::check`] found to be the model's.
    pub fn new(tokenizer: Arc<Tokenizer>, dialect: Dialect) -> Prompter {
        let encoding = DeepseekV4Encoding::new().with_tokenizer(Arc::clone(&tokenizer));
        Prompter { tokenizer, encoding, dialect }
    }

    /// The tokenizer it writes with.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The dialect it writes.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The prompt of a conversation, up to where the model's answer starts.
    ///
    /// # Errors
    /// [`Error::Encode`].
    pub fn conversation(&self, conversation: &Conversation) -> Result<Vec<u32>, Error> {
        let mut rendered;
        let mut conversation = conversation;
        if conversation.thinking_mode {
            rendered = conversation.clone();
            let effort = conversation.reasoning_effort.unwrap_or(ReasoningEffort::High);
            rendered.reasoning_effort = Some(self.dialect.effort(effort));
            conversation = &rendered;
        }
        self.encoding.encode(conversation).map_err(|error| Error::Encode(error.to_string()))
    }

    /// The prompt of a plain conversation, and how to read the answer to it.
    ///
    /// # Errors
    /// [`Error::Encode`].
    pub fn chat(&self, messages: &[Message], effort: Effort) -> Result<(Vec<u32>, ParsingOptions), Error> {
        let thinking_mode = effort != Effort::None;
        let reasoning_effort = match effort {
            Effort::None => None,
            Effort::Low => Some(ReasoningEffort::Low),
            Effort::High => Some(ReasoningEffort::High),
            Effort::Max => Some(ReasoningEffort::Max),
        };
        let messages = messages.iter().map(input_message).collect();
        let conversation = Conversation { messages, thinking_mode, reasoning_effort, ..Conversation::default() };
        let parsing = ParsingOptions {
            parse_tool_calls: false,
            thinking_initial_stage: thinking_mode.then_some(ThinkingInitialStage::ReasoningStart),
            ..ParsingOptions::default()
        };
        Ok((self.conversation(&conversation)?, parsing))
    }

    /// How many tokens of a prompt the conversation's next one is sure to begin with: the thinking that it may end in the
    /// beginning of is left out of that.
    pub fn branch(&self, prompt: &[u32]) -> Option<usize> {
        let &last = prompt.last()?;
        (self.begins_thinking(last) && prompt.len() > 1).then(|| prompt.len() - 1)
    }

    /// Whether an answer after this token begins with thinking.
    pub fn begins_thinking(&self, last: u32) -> bool {
        self.tokenizer.special(SpecialToken::ThinkingStart.default_str()) == Some(last)
    }

    /// The tokens of further turns after a conversation's, of which these are the tokens so far; of all turns if there are none.
    ///
    /// # Errors
    /// [`Error::Encode`]; for a system's message that is not at the beginning.
    pub fn turn(&self, before: &[u32], messages: &[Message], effort: Effort) -> Result<Vec<u32>, Error> {
        let mut tokens = self.chat(messages, effort)?.0;
        let Some(&last) = before.last() else { return Ok(tokens) };
        if messages.iter().any(|message| message.role == Role::System) {
            return Err(Error::Encode("a system's message stands at the beginning of a conversation only".into()));
        }
        let special = |token: SpecialToken| self.tokenizer.special(token.default_str());
        let (user, assistant) = (special(SpecialToken::User), special(SpecialToken::Assistant));
        // What begins a conversation is not said again, and an answer is ended before the next turn.
        let first = tokens.iter().position(|&token| Some(token) == user || Some(token) == assistant).unwrap_or(0);
        tokens.drain(..first);
        let bos = special(SpecialToken::Bos);
        if let Some(eos) = special(SpecialToken::Eos).filter(|&eos| eos != last && bos != Some(last)) {
            tokens.insert(0, eos);
        }
        Ok(tokens)
    }

    /// The tokens of a text to be continued as it stands, after the token that begins every sequence. No template is
    /// put around it, and special tokens spelled in it are text. Read the answer with [`super::Decoder`].
    ///
    /// # Errors
    /// [`Error::Encode`].
    pub fn raw(&self, text: &str) -> Result<Vec<u32>, Error> {
        let mut ids: Vec<u32> = self.tokenizer.special(SpecialToken::Bos.default_str()).into_iter().collect();
        ids.extend(self.tokenizer.encode(text)?);
        Ok(ids)
    }
}

fn input_message(message: &Message) -> InputMessage {
    match message.role {
        Role::System => {
            InputMessage::System { content: Prompt::plain(&message.text), image_sources: Vec::new(), tools: None }
        }
        Role::User => InputMessage::User { content: Prompt::plain(&message.text), image_sources: Vec::new() },
        Role::Assistant => InputMessage::Assistant {
            content: message.text.clone(),
            reasoning_content: None,
            tool_calls: None,
            prefix: false,
        },
    }
}
