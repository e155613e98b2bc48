//! One answer under way: the engine's events to the API's chunks.

use std::sync::Arc;

use deepseek_recipe::openai::chat_completion::response::{ChatCompletionChunk, ChatCompletionChunkGenerator};
use deepseek_recipe::stream::{InferenceFinishReason, InferenceTokenLogprob};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedReceiver;

use super::ApiError;
use crate::chat::{Output, Tokenizer, explain};
use fathom_engine::{Event, Finish, Logprob};

/// What OpenAI writes for a log probability of nothing at all; JSON has no infinity.
const LOWEST_LOGPROB: f32 = -9999.0;

/// What one event of the engine's gives.
#[derive(Debug, Default)]
pub(super) struct Step {
    /// Chunks for the client.
    pub chunks: Vec<ChatCompletionChunk>,
    /// How far the engine is, while there is nothing else to say.
    pub progress: Option<String>,
}

/// An answer under way. Dropping it stops the generation.
pub(super) struct Answer {
    events: UnboundedReceiver<Event>,
    output: Output<ChatCompletionChunkGenerator>,
    begun: bool,
    stop_tokens: Vec<u32>,
    explained_with: Option<Arc<Tokenizer>>,
    prefix: Option<Value>,
    /// Its place in the queue, given back in the end.
    _slot: OwnedSemaphorePermit,
}

impl Answer {
    pub(super) fn new(
        events: UnboundedReceiver<Event>,
        output: Output<ChatCompletionChunkGenerator>,
        stop_tokens: Vec<u32>,
        explained_with: Option<Arc<Tokenizer>>,
        slot: OwnedSemaphorePermit,
    ) -> Answer {
        Answer { events, output, begun: false, stop_tokens, explained_with, prefix: None, _slot: slot }
    }

    /// What was reused of the prompt and why not more, once that is known, if it was asked for.
    pub(super) fn prefix(&self) -> Option<&Value> {
        self.prefix.as_ref()
    }

    /// The next step; `None` after the last.
    pub(super) async fn next(&mut self) -> Option<Result<Step, ApiError>> {
        if self.output.ended() {
            return None;
        }
        let Some(event) = self.events.recv().await else {
            return Some(Err(ApiError::internal("The engine stopped before the answer was complete.")));
        };
        Some(self.step(event))
    }

    fn step(&mut self, event: Event) -> Result<Step, ApiError> {
        let mut step = Step::default();
        match event {
            Event::Queued { ahead } => step.progress = Some(format!("queued, {ahead} ahead")),
            Event::Prefill { done, total, reused } => {
                self.begin(total, reused, &mut step)?;
                step.progress = Some(format!("prefill {done}/{total}"));
            }
            // Only those get it who ask how likely their prompt is.
            Event::Read { .. } => {}
            Event::Token { id, .. } if self.stop_tokens.contains(&id) => {}
            Event::Token { id, logprob, top } => {
                self.begin(0, 0, &mut step)?;
                let logprob = logprob.map(|logprob| token_logprob(logprob, &top));
                step.chunks.extend(self.output.push(id, logprob).map_err(failed)?);
            }
            Event::Done { reason, usage } => {
                self.begin(usage.prompt_tokens, usage.reused_tokens, &mut step)?;
                self.prefix = self.explained_with.as_ref().map(|tokenizer| {
                    let missed = usage.missed.as_ref();
                    json!({
                        "reused_tokens": usage.reused_tokens,
                        "reason": missed.map(|missed| missed.why.word()),
                        "message": missed.map(|missed| explain(missed, tokenizer)),
                    })
                });
                let reason = match reason {
                    Finish::Stop => InferenceFinishReason::Stop,
                    Finish::Length | Finish::ContextFull | Finish::Cancelled => InferenceFinishReason::Length,
                };
                step.chunks.extend(self.output.end(reason).map_err(failed)?);
            }
            Event::Failed(error) => return Err(ApiError::from_engine(&error)),
        }
        Ok(step)
    }

    /// Gives the first chunk, which has the role, as soon as it is known how much of the prompt was there already.
    fn begin(&mut self, tokens: usize, reused: usize, step: &mut Step) -> Result<(), ApiError> {
        if !self.begun {
            self.begun = true;
            step.chunks.extend(self.output.begin(tokens, reused).map_err(failed)?);
        }
        Ok(())
    }
}

fn failed(error: crate::Error) -> ApiError {
    ApiError::internal(error.to_string())
}

fn token_logprob(logprob: f32, top: &[Logprob]) -> InferenceTokenLogprob {
    InferenceTokenLogprob {
        logprob: logprob.max(LOWEST_LOGPROB),
        top_logprobs: top.iter().map(|other| (other.token, other.logprob.max(LOWEST_LOGPROB))).collect(),
    }
}
