//! Replies other than the one that was wanted.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema};

/// A refusal or a failure.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct ErrorBody {
    error: Problem,
}

#[derive(Debug, Serialize, ToSchema)]
struct Problem {
    /// What happened, and what to do about it.
    message: String,
    r#type: String,
    /// The parameter at fault.
    param: Option<String>,
    /// A word for programs.
    code: String,
}

/// The same in Anthropic's form.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct MessagesError {
    /// Always `error`.
    r#type: String,
    error: MessagesProblem,
}

#[derive(Debug, Serialize, ToSchema)]
struct MessagesProblem {
    r#type: String,
    message: String,
}

const BAD: (u16, &str) = (400, "The request cannot be met as it stands.");
const KEY: (u16, &str) = (401, "There is no API key, or an unknown one.");
const FOREIGN: (u16, &str) = (403, "A page of another origin, or a host that is not this one's, may not ask.");
const NAME: (u16, &str) = (404, "There is nothing of this name.");
const SLOW: (u16, &str) = (408, "The body took too long to arrive.");
const CONFLICT: (u16, &str) = (409, "Not in the state that things are in, or it was stopped.");
const LARGE: (u16, &str) = (413, "The body is too large.");
const TYPE: (u16, &str) = (422, "It is JSON, but of the wrong types.");
const BUSY: (u16, &str) = (429, "Too many requests; `Retry-After` says when to try again.");
const FAILED: (u16, &str) = (500, "A failure of the server's.");
const NONE: (u16, &str) = (501, "This server has no sessions.");
const ENDS: (u16, &str) = (503, "The server is about to stop.");
const STORE: (u16, &str) = (507, "The store could not do this, or there are too many sessions.");

fn replies(all: &[(u16, &str)], schema: &str) -> BTreeMap<String, RefOr<Response>> {
    let content = || ContentBuilder::new().schema(Some(Ref::from_schema_name(schema))).build();
    let reply = |about: &str| ResponseBuilder::new().description(about).content("application/json", content()).build();
    all.iter().map(|&(status, about)| (status.to_string(), reply(about).into())).collect()
}

/// A set of replies.
macro_rules! set {
    ($($(#[$about:meta])* $name:ident = $schema:literal [$($reply:ident),*];)*) => {$(
        $(#[$about])*
        pub(in crate::server) struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                replies(&[$($reply),*], $schema)
            }
        }
    )*};
}

set! {
    /// What any address may say.
    Refused = "ErrorBody" [BAD, KEY, FOREIGN, FAILED];
    /// What those with a body may say too.
    WithBody = "ErrorBody" [SLOW, LARGE, TYPE, BUSY];
    /// What those may say too that ask the engine, for a model by its name.
    Asked = "ErrorBody" [NAME, CONFLICT, ENDS];
    /// What those may say too that take a name.
    Named404 = "ErrorBody" [NAME];
    /// What those may say too that are about sessions.
    OfSessions = "ErrorBody" [NAME, CONFLICT, BUSY, NONE, ENDS, STORE];
    /// All of it in Anthropic's form.
    MessagesRefused = "MessagesError" [BAD, KEY, NAME, SLOW, CONFLICT, LARGE, BUSY, FAILED, ENDS];
    /// What the server says before it looks at the address.
    Foreign = "ErrorBody" [FOREIGN];
}
