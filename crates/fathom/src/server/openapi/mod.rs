//! The OpenAPI document: what bodies and replies have in it, and how it is put together. What each address does is said where it
//! is done.

mod bodies;
mod refusals;
mod replies;

use fathom_engine::Engine;
use serde_json::Value;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, OpenApiBuilder, RefOr};
use utoipa::{PartialSchema, ToSchema};

pub(super) use bodies::*;
pub(super) use refusals::*;
pub(super) use replies::*;

use super::completions::CompletionsBody;
use super::routes::routes;
use super::sessions::{self, keep, speech};
use super::tokens;

/// What the schema of the model's names is called.
const MODEL: &str = "Model";

/// A model's name, for the schemas of bodies.
pub(super) fn model() -> RefOr<Schema> {
    RefOr::Ref(utoipa::openapi::Ref::from_schema_name(MODEL))
}

/// The document of a server that serves the model under these names.
pub fn document(names: &[String]) -> Value {
    let key = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("x-api-key")));
    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    let model = ObjectBuilder::new().schema_type(Type::String).description(Some("A name of the model."));
    let components = ComponentsBuilder::new()
        .schemas_from_iter(schemas())
        .schema(MODEL, model.enum_values(Some(names.iter().map(String::as_str))))
        .security_scheme("bearer", bearer)
        .security_scheme("key", key);
    let info = InfoBuilder::new().title("fathom").version(env!("CARGO_PKG_VERSION")).description(Some(
        "DeepSeek V4 in the dialects of OpenAI and Anthropic, and sessions. Where keys are asked for, \
                           either header has one. Errors come in the form of the client that asks.",
    ));
    let each = |name: &str| SecurityRequirement::new(name, [] as [&str; 0]);
    let document = OpenApiBuilder::new()
        .info(info.build())
        .paths(routes::<Engine>().paths)
        .components(Some(components.build()))
        .security(Some([each("bearer"), each("key"), SecurityRequirement::default()]))
        .build();
    serde_json::to_value(&document).unwrap_or_default()
}

/// All that bodies and replies are made of, by name.
fn schemas() -> Vec<(String, RefOr<Schema>)> {
    let mut all = Vec::new();
    macro_rules! take {
        ($($body:ty),* $(,)?) => {$(
            all.push((<$body>::name().into_owned(), <$body>::schema()));
            <$body>::schemas(&mut all);
        )*};
    }
    macro_rules! lists {
        ($($of:ty),* $(,)?) => {$(
            take!($of);
            // So it is called where it is used.
            all.push((format!("List_{}", <$of>::name()), List::<$of>::schema()));
        )*};
    }
    lists!(Card, PrefillReply, SessionReply, SnapshotReply);
    take!(
        ErrorBody,
        MessagesError,
        ServerEvent,
        Health,
        ChatReply,
        ResponsesReply,
        MessagesReply,
        CountReply,
        CompletionsReply,
        TokensReply,
        TextReply,
        Gone,
        StatusReply,
        SpeechReply,
        RewindReply,
        SavedReply,
        ChatBody,
        ResponsesBody,
        MessagesBody,
        CountBody,
        CompletionsBody,
        tokens::Text,
        tokens::Tokens,
        sessions::New,
        sessions::Fork,
        sessions::Position,
        keep::Save,
        keep::Pin,
        speech::More,
    );
    all
}
