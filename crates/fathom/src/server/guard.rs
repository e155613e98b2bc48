//! Pages of other origins, which browsers let send requests to any address: none may, unless it was named.
//!
//! Nobody reads an answer across origins without the server's leave, but requests are sent without asking, and a name can be made
//! to lead to this machine (DNS rebinding), which makes a foreign page one of ours. So requests that say they come from another
//! origin are refused, and where no keys are asked for also those to a name that is not this machine's.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, Request as HttpRequest, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::{ApiError, Generate, Service};

/// How long a browser may remember the answer to a preflight, in seconds.
const REMEMBERED: &str = "600";

/// The origins whose pages may use the API.
#[derive(Debug, Clone, Default)]
pub struct Origins(Vec<String>);

impl Origins {
    /// Takes origins as browsers write them, `https://chat.example.org`, or `*` for all.
    ///
    /// # Errors
    /// Something is no origin.
    pub fn new(origins: &[String]) -> Result<Origins, String> {
        let all = origins.iter().map(|origin| origin.trim_end_matches('/').to_ascii_lowercase());
        let all: Vec<String> = all.collect();
        let is_origin = |origin: &String| {
            origin == "*"
                || HeaderValue::from_str(origin).is_ok()
                    && origin.split_once("://").is_some_and(|(scheme, host)| {
                        !scheme.is_empty() && !host.is_empty() && !host.contains(['/', '?', '#', '@', ' '])
                    })
        };
        match all.iter().find(|origin| !is_origin(origin)) {
            Some(wrong) => Err(format!("--cors takes origins such as https://chat.example.org, or *, not {wrong:?}")),
            None => Ok(Origins(all)),
        }
    }

    fn has(&self, origin: &str) -> bool {
        self.0.iter().any(|one| one == "*" || *one == origin.to_ascii_lowercase())
    }

    /// Whether one of them is at this host.
    fn are_at(&self, host: &str) -> bool {
        self.0.iter().any(|one| one == "*" || one.split_once("://").is_some_and(|(_, at)| without_port(at) == host))
    }
}

/// Refuses what comes from foreign pages, and tells browsers which may read.
pub(super) async fn guard<G: Generate>(
    State(service): State<Arc<Service<G>>>,
    request: HttpRequest<Body>,
    next: Next,
) -> Response {
    let headers = request.headers();
    if let Err(refused) = is_ours(&service, headers) {
        return refused.into_response();
    }
    let Some(origin) = headers.get(header::ORIGIN).cloned() else { return next.run(request).await };
    let is_preflight =
        request.method() == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if is_preflight { preflight(headers) } else { next.run(request).await };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("x-request-id, retry-after"));
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    response
}

fn is_ours<G>(service: &Service<G>, headers: &HeaderMap) -> Result<(), ApiError> {
    let refuse = |code, message: String| Err(ApiError::other(StatusCode::FORBIDDEN, code, message));
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or("?"));
    let host = text(header::HOST).unwrap_or_default().to_ascii_lowercase();
    let name = without_port(&host);
    if !service.keys.are_asked_for() && !is_this_machine(name) && !service.origins.are_at(name) {
        let message = format!(
            "This server asks for no keys, so that it only takes requests to this machine's own names, not to '{name}'. \
             Start it with --keys FILE, or name the pages that may ask with --cors ORIGIN."
        );
        return refuse("host_not_allowed", message);
    }
    match text(header::ORIGIN) {
        Some(origin) if !is_at(origin, &host) && !service.origins.has(origin) => {
            let message = format!("Pages of '{origin}' may not use this server; --cors ORIGIN names those that may.");
            refuse("origin_not_allowed", message)
        }
        _ => Ok(()),
    }
}

/// Whether a page of this origin was served by this host.
fn is_at(origin: &str, host: &str) -> bool {
    origin.split_once("://").is_some_and(|(_, at)| at.eq_ignore_ascii_case(host))
}

/// Whether a name can only mean the machine that was asked: an address, nothing at all, or what stands for loopback.
fn is_this_machine(name: &str) -> bool {
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.is_empty() || name == "localhost" || name.ends_with(".localhost") || address.parse::<IpAddr>().is_ok()
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}

/// The answer to a browser that asks whether a page may send a request.
fn preflight(asked: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, DELETE"));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(REMEMBERED));
    // Clients of the dialects have many headers of their own.
    if let Some(wanted) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_read() {
        let read = |text: &str| Origins::new(&[text.to_owned()]);
        assert!(read("https://a.example").unwrap().has("https://A.example"));
        assert!(!read("https://a.example").unwrap().has("https://a.example.evil"));
        assert!(!read("https://a.example").unwrap().has("http://a.example"));
        assert!(read("*").unwrap().has("null"));
        for wrong in ["a.example", "https://", "https://a/b", "://a", "https://a\n"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_of_this_machine() {
        for host in
            ["localhost", "localhost:8080", "127.0.0.1:80", "[::1]:80", "[::1]", "a.localhost:1", "10.0.0.7", ""]
        {
            assert!(is_this_machine(without_port(host)), "{host}");
        }
        for host in ["evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "x", "?"] {
            assert!(!is_this_machine(without_port(host)), "{host}");
        }
        assert!(is_at("http://localhost:8080", "localhost:8080") && !is_at("http://localhost:81", "localhost:80"));
    }
}
