//! Token ids to the parts of an answer: thinking, answer, tool calls, and why it ended.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use deepseek_recipe::stream::{
    ChunkGenerator, FinishReason, InferenceChunk, InferenceFinishReason, InferenceTokenLogprob, OutputChunk,
    ParsingOptions, PromptUsage, StreamError, StreamProcessor,
};
use deepseek_recipe_core::special_tokens::SpecialToken;
use futures_util::Stream;
use futures_util::stream::poll_fn;

use super::Tokenizer;
use super::calls::{Gate, Passed};
use super::tokenizer::{AS_TEXT, NO_TOKEN};
use crate::Error;

/// A part of an answer, as it comes.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// More of what the model thinks before it answers.
    Thinking(String),
    /// More of the answer.
    Answer(String),
    /// The model calls a tool; its arguments follow.
    ToolCall {
        /// The tool's name.
        name: String,
    },
    /// More of the JSON arguments of the tool called last.
    Arguments(String),
    /// The answer is complete; always the last piece.
    End(Spoken),
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Spoken {
    /// Why it ended.
    pub reason: FinishReason,
    /// The stop string that ended it, which is not part of the answer.
    pub stop: Option<String>,
    /// Tokens the model made, markup included.
    pub tokens: usize,
    /// How many of them were thinking; `None` where it was not asked to think.
    pub thinking_tokens: Option<usize>,
}

/// Makes [`Piece`]s of what the parser finds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pieces;

impl ChunkGenerator for Pieces {
    type Chunk = Piece;

    async fn generate(&mut self, chunk: OutputChunk) -> Vec<Piece> {
        match chunk {
            OutputChunk::Start { .. } | OutputChunk::ToolCallBegin => Vec::new(),
            OutputChunk::Content { content, .. } => vec![Piece::Answer(content)],
            OutputChunk::Reasoning { content, .. } => vec![Piece::Thinking(content)],
            OutputChunk::ToolCallNamed { tool_name } => vec![Piece::ToolCall { name: tool_name }],
            OutputChunk::ToolCallArgumentsDelta { arguments } => vec![Piece::Arguments(arguments)],
            OutputChunk::Finish { finish_reason, stop_sequence, completion_usage } => vec![Piece::End(Spoken {
                reason: finish_reason,
                stop: stop_sequence,
                tokens: completion_usage.completion_tokens,
                thinking_tokens: completion_usage.reasoning_tokens,
            })],
        }
    }
}

type Queue = Arc<Mutex<VecDeque<InferenceChunk>>>;
type Parsed<C> = Pin<Box<dyn Stream<Item = Result<C, StreamError>> + Send>>;

/// Reads one answer, token by token. `G` says what the parts are made into: [`Pieces`], or a protocol's chunks.
///
/// DeepSeek's parser is a stream over a stream; here it is fed by hand, so that it can be used with or without an async
/// runtime.
pub struct Output<G: ChunkGenerator = Pieces> {
    queue: Queue,
    parsed: Parsed<G::Chunk>,
    ended: bool,
    gate: Option<Gate>,
    /// Calls are complete, and nothing may follow.
    called: bool,
    malformed: bool,
    /// Log probabilities of tokens that wait.
    logprobs: VecDeque<Option<InferenceTokenLogprob>>,
}

impl<G: ChunkGenerator> fmt::Debug for Output<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl Output<Pieces> {
    /// A reader of pieces.
    pub fn new(tokenizer: Arc<Tokenizer>, parsing: ParsingOptions) -> Output<Pieces> {
        Output::with_generator(tokenizer, parsing, Pieces)
    }
}

impl<G> Output<G>
where
    G: ChunkGenerator,
    G::Chunk: Send + 'static,
{
    /// A reader that makes what `generator` makes.
    pub fn with_generator(tokenizer: Arc<Tokenizer>, parsing: ParsingOptions, generator: G) -> Output<G> {
        Output::through(tokenizer, parsing, generator, None)
    }

    /// The same for an answer that may call tools of these names and that nothing holds to their form: what only looks like calls
    /// is text, and a block of calls comes when it is complete. See [`Output::malformed`].
    pub fn checked(
        tokenizer: Arc<Tokenizer>,
        mut parsing: ParsingOptions,
        generator: G,
        names: Vec<String>,
    ) -> Output<G> {
        let opened = std::mem::take(&mut parsing.starts_in_tool_calls);
        let gate = if parsing.parse_tool_calls { Gate::new(&tokenizer, names, opened) } else { None };
        Output::through(tokenizer, parsing, generator, gate)
    }

    fn through(tokenizer: Arc<Tokenizer>, parsing: ParsingOptions, generator: G, gate: Option<Gate>) -> Output<G> {
        let queue = Queue::default();
        let source = Arc::clone(&queue);
        let source = poll_fn(move |_| match lock(&source).pop_front() {
            Some(chunk) => Poll::Ready(Some(chunk)),
            None => Poll::Pending,
        });
        let processor = StreamProcessor::new(generator, parsing).with_tokenizer(tokenizer);
        let parsed = Box::pin(processor.into_protocol_stream(source));
        let logprobs = VecDeque::new();
        Output { queue, parsed, ended: false, gate, called: false, malformed: false, logprobs }
    }

    /// Says what the prompt took: `tokens` in all, `reused` of them from the cache. To be called once, first, or not
    /// at all.
    ///
    /// # Errors
    /// As [`Output::push`].
    pub fn begin(&mut self, tokens: usize, reused: usize) -> Result<Vec<G::Chunk>, Error> {
        let prompt_usage = PromptUsage { prompt_tokens: tokens, prompt_cache_hit_tokens: reused };
        self.feed(InferenceChunk::Ready { system_fingerprint: None, prompt_usage })
    }

    /// Takes the model's next token and gives what it completes; may be nothing. The token that ends the answer is not
    /// to be passed: call [`Output::end`]. After the end, tokens are ignored.
    ///
    /// # Errors
    /// [`Error::Decode`].
    pub fn push(&mut self, id: u32, logprob: Option<InferenceTokenLogprob>) -> Result<Vec<G::Chunk>, Error> {
        let Some(gate) = self.gate.as_mut().filter(|_| !self.called) else {
            return if self.called { Ok(Vec::new()) } else { self.feed_token(id, logprob) };
        };
        self.logprobs.push_back(logprob);
        match gate.push(id) {
            Passed::Held => Ok(Vec::new()),
            Passed::Text(ids) => self.feed_as_text(&ids),
            Passed::Through => self.feed_held(&[id]),
            Passed::Calls(ids) => {
                self.called = true;
                let mut chunks = Vec::new();
                if gate.opened() {
                    let content = format!("<{}tool_calls>\n", SpecialToken::Dsml.default_str());
                    chunks = self.feed(InferenceChunk::Text { content, token_count: 0 })?;
                }
                chunks.extend(self.feed_held(&ids)?);
                Ok(chunks)
            }
        }
    }

    fn feed_token(&mut self, id: u32, logprob: Option<InferenceTokenLogprob>) -> Result<Vec<G::Chunk>, Error> {
        self.feed(InferenceChunk::Tokens { token_ids: vec![id], logprobs: logprob.map(|logprob| vec![logprob]) })
    }

    /// Tokens that have waited.
    fn feed_held(&mut self, ids: &[u32]) -> Result<Vec<G::Chunk>, Error> {
        let mut chunks = Vec::new();
        for &id in ids {
            let logprob = self.logprobs.pop_front().flatten();
            chunks.extend(self.feed_token(id, logprob)?);
        }
        Ok(chunks)
    }

    /// The same, as the text that they are.
    fn feed_as_text(&mut self, ids: &[u32]) -> Result<Vec<G::Chunk>, Error> {
        self.malformed = true;
        self.feed_held(&ids.iter().map(|id| id | AS_TEXT).collect::<Vec<u32>>())
    }

    /// Takes the end of the model's tokens and gives the rest.
    ///
    /// # Errors
    /// As [`Output::push`].
    pub fn end(&mut self, reason: InferenceFinishReason) -> Result<Vec<G::Chunk>, Error> {
        let held = self.gate.as_mut().map(Gate::finish).unwrap_or_default();
        let mut chunks = if held.is_empty() { Vec::new() } else { self.feed_as_text(&held)? };
        // The parser holds back text that ends in U+FFFD, perhaps an incomplete character, and in the end would drop it.
        chunks.extend(self.feed(InferenceChunk::Tokens { token_ids: vec![NO_TOKEN], logprobs: None })?);
        // Who stopped after the last call, or was stopped there, has ended.
        let reason = if self.called { InferenceFinishReason::Stop } else { reason };
        chunks.extend(self.feed(InferenceChunk::Finish { finish_reason: reason })?);
        Ok(chunks)
    }

    /// Whether the answer is complete: the model stopped, or a stop string was found and generation must stop.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Whether nothing more can be said, though the end was not told yet: calls end an answer.
    pub fn called(&self) -> bool {
        self.called
    }

    /// Whether there was something that looked like calls of tools and is none; it is part of the text.
    pub fn malformed(&self) -> bool {
        self.malformed
    }

    fn feed(&mut self, chunk: InferenceChunk) -> Result<Vec<G::Chunk>, Error> {
        let mut chunks = Vec::new();
        if self.ended {
            return Ok(chunks);
        }
        lock(&self.queue).push_back(chunk);
        // Nothing in the parser waits for anything but the queue, so nobody needs to be woken.
        let mut context = Context::from_waker(Waker::noop());
        loop {
            match self.parsed.as_mut().poll_next(&mut context) {
                Poll::Ready(Some(Ok(chunk))) => chunks.push(chunk),
                Poll::Ready(Some(Err(error))) => {
                    self.ended = true;
                    return Err(Error::Decode(error.to_string()));
                }
                Poll::Ready(None) => {
                    self.ended = true;
                    return Ok(chunks);
                }
                Poll::Pending => return Ok(chunks),
            }
        }
    }
}

fn lock(queue: &Queue) -> std::sync::MutexGuard<'_, VecDeque<InferenceChunk>> {
    // A queue is whole between any two of its operations, whoever panicked.
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}
