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
use futures_util::Stream;
use futures_util::stream::poll_fn;

use super::Tokenizer;
use super::tokenizer::NO_TOKEN;
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
        let queue = Queue::default();
        let source = Arc::clone(&queue);
        let source = poll_fn(move |_| match lock(&source).pop_front() {
            Some(chunk) => Poll::Ready(Some(chunk)),
            None => Poll::Pending,
        });
        let processor = StreamProcessor::new(generator, parsing).with_tokenizer(tokenizer);
        let parsed = Box::pin(processor.into_protocol_stream(source));
        Output { queue, parsed, ended: false }
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
        self.feed(InferenceChunk::Tokens { token_ids: vec![id], logprobs: logprob.map(|logprob| vec![logprob]) })
    }

    /// Takes the end of the model's tokens and gives the rest.
    ///
    /// # Errors
    /// As [`Output::push`].
    pub fn end(&mut self, reason: InferenceFinishReason) -> Result<Vec<G::Chunk>, Error> {
        // The parser holds back text that ends in U+FFFD, perhaps an incomplete character, and in the end would drop it.
        let mut chunks = self.feed(InferenceChunk::Tokens { token_ids: vec![NO_TOKEN], logprobs: None })?;
        chunks.extend(self.feed(InferenceChunk::Finish { finish_reason: reason })?);
        Ok(chunks)
    }

    /// Whether the answer is complete: the model stopped, or a stop string was found and generation must stop.
    pub fn ended(&self) -> bool {
        self.ended
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
