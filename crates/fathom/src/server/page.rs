//! The page at `/`: files in the program, open to everybody. What they show they ask the API for, with a key where one is needed.

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::ApiError;

macro_rules! files {
    ($($name:literal),*) => {
        [$(($name, include_str!(concat!("page/", $name)))),*]
    };
}

const INDEX: &str = include_str!("page/index.html");
/// What it is made of, by name.
const FILES: [(&str, &str); 16] = files![
    "answer.js",
    "api.js",
    "app.js",
    "branch.js",
    "chat.js",
    "composer.js",
    "dialog.js",
    "dom.js",
    "icon.svg",
    "now.js",
    "page.css",
    "prose.js",
    "sessions.js",
    "speech.js",
    "talk.js",
    "words.js"
];

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
    Router::new().route("/", get(index)).route("/page/{name}", get(part))
}

async fn index(headers: HeaderMap) -> Response {
    send("text/html; charset=utf-8", INDEX, &headers)
}

async fn part(Path(name): Path<String>, headers: HeaderMap) -> Response {
    let Some((_, content)) = FILES.iter().find(|(known, _)| *known == name) else {
        let message = "There is nothing at this address.";
        return ApiError::other(StatusCode::NOT_FOUND, "not_found", message).into_response();
    };
    let kind = match name.rsplit('.').next() {
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "text/javascript; charset=utf-8",
    };
    send(kind, content, &headers)
}

fn send(kind: &'static str, content: &'static str, headers: &HeaderMap) -> Response {
    let tag = format!("\"{}\"", &blake3::hash(content.as_bytes()).to_hex()[..16]);
    let mut response = match headers.get(header::IF_NONE_MATCH).is_some_and(|known| known == tag.as_str()) {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => ([(header::CONTENT_TYPE, kind)], content).into_response(),
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response.headers_mut().extend(HeaderValue::from_str(&tag).ok().map(|tag| (header::ETAG, tag)));
    response
}
