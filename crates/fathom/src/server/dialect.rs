//! What differs between the dialects in which conversations are continued.

use axum::response::sse::Event as Sent;
use axum::response::{IntoResponse, Response};
use deepseek_recipe::request::{ConversationRequest, ProtocolRequest};
use deepseek_recipe::response::ProtocolResponse;
use deepseek_recipe::stream::ChunkGenerator;
use serde_json::Value;

use super::ApiError;
use super::request::{ChatRequest, Served};

/// A dialect, as one reply is written in it.
pub(super) trait Dialect: Sized + Send + 'static {
    /// DeepSeek's conversion of its requests.
    type Request: ProtocolRequest;
    /// What the ids of replies begin with.
    const ID: &'static str;

    /// Reads a request.
    ///
    /// # Errors
    /// What is wrong with it.
    fn understand(body: Value, served: &Served) -> Result<ChatRequest, ApiError>;

    /// For a reply of several choices.
    fn new(request: &ConversationRequest, choices: usize) -> Self;

    /// A chunk of one of the choices, as the client gets it.
    fn shape(&mut self, choice: usize, chunk: Chunk<Self>) -> Vec<Chunk<Self>>;

    /// Marks what ends choices, or a whole reply, in which something looked like calls and is none.
    fn mark(reply: &mut Value, choices: &[usize]);

    /// A refusal.
    fn refusal(error: ApiError) -> Response {
        error.into_response()
    }

    /// A failure after the status is out.
    fn failure(error: &ApiError) -> Sent;
}

/// A whole reply.
pub(super) type Reply<D> = <<D as Dialect>::Request as ProtocolRequest>::Response;
/// What makes a reply's chunks.
pub(super) type Generator<D> = <Reply<D> as ProtocolResponse>::ChunkGenerator;
/// A part of a reply.
pub(super) type Chunk<D> = <Generator<D> as ChunkGenerator>::Chunk;

/// The field of replies that says so.
pub(super) const MALFORMED: &str = "malformed_tool_calls";

/// A field that a dialect has and that is not supported: where it is, which values change nothing, and what to do instead.
pub(super) struct Unsupported(pub &'static str, pub fn(&Value) -> bool, pub &'static str);

/// Refuses what would change the answer, were it known.
pub(super) fn refuse(body: &Value, fields: &[Unsupported]) -> Result<(), ApiError> {
    for Unsupported(path, harmless, instead) in fields {
        match body.pointer(&format!("/{}", path.replace('.', "/"))) {
            None | Some(Value::Null) => {}
            Some(value) if harmless(value) => {}
            Some(_) => return Err(ApiError::bad(Some(path), format!("'{path}' is not supported here: {instead}."))),
        }
    }
    Ok(())
}

/// No value is harmless.
pub(super) fn never(_: &Value) -> bool {
    false
}

/// An empty list is harmless.
pub(super) fn empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}

/// Refuses images and the like, which the conversion would leave out with a word to the model and none to the client.
pub(super) fn only_text(at: &str, value: &Value) -> Result<(), ApiError> {
    const OTHERS: [&str; 8] =
        ["image_url", "image", "input_image", "file", "input_file", "document", "input_audio", "video_url"];
    for (i, item) in value.as_array().into_iter().flatten().enumerate() {
        let at = format!("{at}[{i}]");
        if let Some(kind) = item["type"].as_str().filter(|kind| OTHERS.contains(kind)) {
            let param = format!("{at}.type");
            let message = format!("'{param}' is '{kind}'; this model reads text only.");
            return Err(ApiError::bad(Some(&param), message));
        }
        // Messages, and results of tools, have content; so have outputs.
        for inside in ["content", "output"] {
            only_text(&format!("{at}.{inside}"), &item[inside])?;
        }
    }
    Ok(())
}
