//! Clients that mean harm, in small; `tests/clients/attacks.py` has the larger ones.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{HeaderMap, Request as HttpRequest, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;

use super::{Parrot, ask, send, small};
use crate::server::serve::serve_until;
use crate::server::{BodyLimits, ConnectionLimits, Keys, Limits, Origins, router};

/// A server with short limits on connections.
async fn listening(parrot: &Parrot, at_once: usize) -> SocketAddr {
    let (head, stalled) = (Duration::from_millis(300), Duration::from_millis(500));
    let limits = Limits { connections: ConnectionLimits { at_once, head, stalled }, ..small(2) };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve_until(listener, parrot.service(limits), std::future::pending()));
    address
}

/// All that comes until the connection's end, ten seconds at most.
async fn rest(connection: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = connection.read_to_end(&mut bytes);
    // A reset is an end too.
    let _ = tokio::time::timeout(Duration::from_secs(10), read).await.expect("it was never closed");
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn health(address: SocketAddr) -> String {
    let mut connection = TcpStream::connect(address).await.unwrap();
    connection.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    rest(&mut connection).await
}

#[tokio::test]
async fn slow_heads_are_cut_off_and_do_not_keep_others_out() {
    let address = listening(&Parrot::new(""), 4).await;
    let mut slow = Vec::new();
    for _ in 0..4 {
        let mut connection = TcpStream::connect(address).await.unwrap();
        connection.write_all(b"GET /health HTTP/1.1\r\nx").await.unwrap();
        slow.push(connection);
    }
    // All places are taken, until their time is over.
    assert!(health(address).await.starts_with("HTTP/1.1 200"));
    for connection in &mut slow {
        assert!(!rest(connection).await.contains("200 OK"));
    }
    // One that was served and says no more.
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let start = Instant::now();
    assert!(rest(&mut idle).await.starts_with("HTTP/1.1 200"));
    assert!(start.elapsed() >= Duration::from_millis(250));
}

#[tokio::test]
async fn floods_of_headers_are_refused() {
    let address = listening(&Parrot::new(""), 8).await;
    let many: String = (0..200).map(|i| format!("x-{i}: 1\r\n")).collect();
    let large = format!("x: {}\r\n", "y".repeat(400_000));
    for headers in [many, large] {
        let mut connection = TcpStream::connect(address).await.unwrap();
        // It may be refused before all of it was sent.
        let _ =
            connection.write_all(format!("GET /health HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n").as_bytes()).await;
        let answer = rest(&mut connection).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    for wrong in ["\0\x01\x02\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET /health HTTP/1.1\r\ncontent-length: -1\r\n\r\n"]
    {
        let mut connection = TcpStream::connect(address).await.unwrap();
        connection.write_all(wrong.as_bytes()).await.unwrap();
        assert!(!rest(&mut connection).await.contains("200 OK"));
    }
    assert!(health(address).await.starts_with("HTTP/1.1 200"));
}

/// Who does not read what is sent loses the connection, and the generation ends.
#[tokio::test]
async fn who_does_not_read_is_let_go() {
    let mut parrot = Parrot::new(&"word ".repeat(500_000));
    (parrot.context, parrot.pause) = (1 << 24, Duration::from_micros(10));
    let address = listening(&parrot, 8).await;
    let mut connection = TcpStream::connect(address).await.unwrap();
    let body = ask(json!({"stream": true, "max_tokens": 400_000})).to_string();
    let head =
        format!("POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
    connection.write_all((head + &body).as_bytes()).await.unwrap();
    super::lifetime::until(async || parrot.seen.cancelled.load(Ordering::SeqCst)).await;
    super::lifetime::until(async || health(address).await.contains("\"active\":0")).await;
}

#[tokio::test]
async fn large_bodies_are_counted_before_they_are_read() {
    let parrot = Parrot::new("x");
    let bodies = BodyLimits { bytes: 1 << 20, values: 5000, objects: 1000, prompts: 1 << 20 };
    let router = router(parrot.service(Limits { bodies, ..Limits::default() }));
    let many = |n| json!({"model": "parrot", "messages": vec![json!({"role": "user", "content": "x"}); n]}).to_string();
    for (body, status) in [
        (many(300), StatusCode::OK),
        (many(1001), StatusCode::PAYLOAD_TOO_LARGE),
        (format!("[{}]", "1,".repeat(6000)), StatusCode::PAYLOAD_TOO_LARGE),
        ("x".repeat((1 << 20) + 1), StatusCode::PAYLOAD_TOO_LARGE),
        ("[".repeat(4000), StatusCode::BAD_REQUEST),
        (format!("{}1{}", "{\"a\":".repeat(900), "}".repeat(900)), StatusCode::BAD_REQUEST),
    ] {
        for path in ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/tokenize", "/v1/sessions"] {
            let (got, text) = send(router.clone(), "POST", path, body.clone()).await;
            match status {
                StatusCode::OK => assert!(got != StatusCode::PAYLOAD_TOO_LARGE, "{path}: {text}"),
                _ => assert_eq!(got, status, "{path}: {text}"),
            }
        }
    }
    // Many copies of a long prompt are one request's, and too much for one.
    let body = json!({"model": "parrot", "prompt": vec![5; 4000], "n": 128}).to_string();
    let bodies = BodyLimits { prompts: 128 * 4000 - 1, ..bodies };
    let router = self::router(parrot.service(Limits { bodies, ..Limits::default() }));
    assert_eq!(send(router, "POST", "/v1/completions", body).await.0, StatusCode::BAD_REQUEST);
}

/// Pages of elsewhere, and names that were made to lead here.
#[tokio::test]
async fn foreign_pages_are_refused() {
    let open = Parrot::new("").router();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "a key-a\n").unwrap();
    let service = |origins: &[&str], keys: bool| {
        let origins: Vec<String> = origins.iter().map(|&origin| origin.to_owned()).collect();
        let service = std::sync::Arc::into_inner(Parrot::new("").small_service()).unwrap();
        let service = service.with_origins(Origins::new(&origins).unwrap());
        let keys = if keys { Keys::read(file.path()).unwrap() } else { Keys::default() };
        router(std::sync::Arc::new(service.with_keys(keys)))
    };
    let (named, keyed) = (service(&["https://chat.example"], false), service(&[], true));
    for (router, method, host, origin, status) in [
        (&open, "GET", "localhost:8080", "", 200),
        (&open, "GET", "localhost:8080", "http://localhost:8080", 200),
        (&open, "GET", "localhost:8080", "http://evil.example", 403),
        (&open, "GET", "localhost:8080", "null", 403),
        (&open, "POST", "127.0.0.1", "http://localhost:3000", 403),
        (&open, "OPTIONS", "127.0.0.1", "http://localhost:3000", 403),
        (&open, "GET", "evil.example:8080", "http://evil.example:8080", 403),
        (&open, "GET", "evil.example:8080", "", 403),
        (&keyed, "GET", "fathom.example", "", 200),
        (&keyed, "GET", "fathom.example", "http://evil.example", 403),
        (&named, "GET", "localhost", "https://chat.example", 200),
        (&named, "OPTIONS", "localhost", "https://chat.example", 204),
        (&named, "GET", "chat.example", "", 200),
        (&named, "GET", "localhost", "https://chat.example.evil", 403),
    ] {
        let mut request = HttpRequest::builder().method(method).uri("/health").header("host", host);
        if !origin.is_empty() {
            request = request.header("origin", origin);
        }
        if method == "OPTIONS" {
            request = request.header("access-control-request-method", "POST");
            request = request.header("access-control-request-headers", "authorization, content-type");
        }
        let response = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{method} {host} {origin}");
        let header =
            |headers: &HeaderMap, name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        let allowed = header(response.headers(), "access-control-allow-origin");
        assert_eq!(allowed.is_some(), (200..300).contains(&status) && !origin.is_empty());
        if status == 204 {
            let headers = header(response.headers(), "access-control-allow-headers");
            assert_eq!(headers.as_deref(), Some("authorization, content-type"));
        }
    }
}

/// A file of keys is read again, and one that is broken changes nothing.
#[tokio::test]
async fn keys_are_read_again() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "a key-a\n").unwrap();
    let keys = Keys::read(file.path()).unwrap();
    let owner = |key: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("x-api-key", key.parse().unwrap());
        keys.owner(&headers).map(|owner| owner.0.to_string()).ok()
    };
    assert_eq!((owner("key-a"), owner("key-b")), (Some("a".into()), None));
    std::fs::write(file.path(), "b key-b\nc key-c\n").unwrap();
    assert_eq!((keys.reload().unwrap(), owner("key-a"), owner("key-b")), (2, None, Some("b".into())));
    for broken in ["", "b\n", "UPPER key\n"] {
        std::fs::write(file.path(), broken).unwrap();
        assert!(keys.reload().is_err());
        assert_eq!((owner("key-b"), owner("key-c")), (Some("b".into()), Some("c".into())));
    }
    file.close().unwrap();
    assert!(keys.reload().is_err() && owner("key-b").is_some());
    assert!(Keys::default().reload().is_ok());
}

/// A server that is told to stop ends what still runs when its time is over, and says so to those who wait.
#[tokio::test(flavor = "multi_thread")]
async fn stopping_has_an_end() {
    let limits = Limits { drain: Duration::from_millis(300), ..Limits::default() };
    let (service, engine) = super::sessions::service(None, Keys::default(), limits);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(serve_until(listener, service, async { stopped.await.unwrap() }));
    let body = json!({"model": "demo", "messages": [{"role": "user", "content": "hi"}], "stream": true, "max_tokens": 5000,
        "logit_bias": {"1": -100}});
    let mut connection = super::lifetime::connect(address, &body.to_string()).await;
    let mut first = [0; 15];
    connection.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK");
    let start = Instant::now();
    stop.send(()).unwrap();
    let text = rest(&mut connection).await;
    let last = text.lines().rfind(|line| line.starts_with("data: ")).unwrap();
    let error: Value = serde_json::from_str(&last[6..]).unwrap();
    assert_eq!(error["error"]["code"], "shutting_down", "{last}");
    tokio::time::timeout(Duration::from_secs(8), server).await.unwrap().unwrap();
    assert!(start.elapsed() >= Duration::from_millis(250));
    engine.drain();
}
