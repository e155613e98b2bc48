//! The page at `/`: files in the program, open to everybody. What they show they ask the API for, with a key where one is needed.

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::ApiError;

/// A file of the page.
struct File {
    name: &'static str,
    kind: &'static str,
    content: &'static str,
}

macro_rules! files {
    ($($name:literal: $kind:literal,)*) => {
        [$(File { name: $name, kind: $kind, content: include_str!(concat!("page/", $name)) },)*]
    };
}

const INDEX: File =
    File { name: "", kind: "text/html; charset=utf-8", content: include_str!("page/index.html") };
const FILES: [File; 14] = files! {
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "api.js": "text/javascript; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "answer.js": "text/javascript; charset=utf-8",
    "chat.js": "text/javascript; charset=utf-8",
    "composer.js": "text/javascript; charset=utf-8",
    "dialog.js": "text/javascript; charset=utf-8",
    "dom.js": "text/javascript; charset=utf-8",
    "now.js": "text/javascript; charset=utf-8",
    "prose.js": "text/javascript; charset=utf-8",
    "sessions.js": "text/javascript; charset=utf-8",
    "speech.js": "text/javascript; charset=utf-8",
    "words.js": "text/javascript; charset=utf-8",
};

/// What a browser may do with them: run and load what comes from here, talk to here, and nothing else. What a model says can be
/// shown as text only.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    // Asked for again each time, and not sent again while it is the same.
    (header::CACHE_CONTROL, "no-cache"),
];

/// `/`, and what it is made of under `/page`.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/", get(|headers: HeaderMap| async move { send(Some(&INDEX), &headers) }))
        .route("/page/{file}", get(part))
}

async fn part(Path(name): Path<String>, headers: HeaderMap) -> Response {
    send(FILES.iter().find(|file| file.name == name), &headers)
}

fn send(file: Option<&File>, headers: &HeaderMap) -> Response {
    let Some(file) = file else {
        let message = "There is nothing at this address.";
        return ApiError::other(StatusCode::NOT_FOUND, "not_found", message).into_response();
    };
    let tag = format!("\"{}\"", &blake3::hash(file.content.as_bytes()).to_hex()[..16]);
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|known| known == tag.as_str());
    let mut response = match known {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => ([(header::CONTENT_TYPE, file.kind)], file.content).into_response(),
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response.headers_mut().extend(HeaderValue::from_str(&tag).ok().map(|tag| (header::ETAG, tag)));
    response
}
