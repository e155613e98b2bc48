use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::http::StatusCode;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::{Parrot, ask, post, read_events, small};
use crate::server::serve::serve_until;

/// Waits for something to become true, two minutes at most: the machine may be busy.
pub async fn until(mut done: impl AsyncFnMut() -> bool) {
    let happens = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), happens).await.expect("it did not happen");
}

fn slow(words: usize) -> Parrot {
    let mut parrot = Parrot::new(&"word ".repeat(words));
    parrot.pause = Duration::from_millis(5);
    parrot
}

pub async fn connect(address: std::net::SocketAddr, body: &str) -> TcpStream {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.write_all(body.as_bytes()).await.unwrap();
    connection
}

#[tokio::test]
async fn a_client_that_leaves_stops_its_generation() {
    for stream in [true, false] {
        let parrot = slow(2000);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve_until(listener, parrot.small_service(), std::future::pending()));
        let connection = connect(address, &ask(json!({"stream": stream})).to_string()).await;
        until(async || parrot.seen.tokens.load(Ordering::SeqCst) > 3).await;
        drop(connection);
        until(async || parrot.seen.cancelled.load(Ordering::SeqCst)).await;
        assert!(parrot.seen.tokens.load(Ordering::SeqCst) < 1000);
        server.abort();
    }
}

#[tokio::test]
async fn stopping_finishes_what_runs_and_takes_no_more() {
    let parrot = slow(60);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve_until(listener, parrot.small_service(), async {
        stopped.await.unwrap();
    }));
    let mut connection = connect(address, &ask(json!({"stream": true})).to_string()).await;
    until(async || parrot.seen.tokens.load(Ordering::SeqCst) > 3).await;
    stop.send(()).unwrap();
    until(async || std::net::TcpStream::connect(address).is_err()).await;
    let mut text = String::new();
    connection.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("data: [DONE]"), "{text}");
    server.await.unwrap();
    assert!(!parrot.seen.cancelled.load(Ordering::SeqCst));
}

#[tokio::test]
async fn half_a_request_does_not_keep_the_server() {
    let parrot = slow(100);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve_until(listener, parrot.small_service(), async {
        stopped.await.unwrap();
    }));
    let mut half = TcpStream::connect(address).await.unwrap();
    half.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost").await.unwrap();
    let mut whole = connect(address, &ask(json!({})).to_string()).await;
    until(async || parrot.seen.tokens.load(Ordering::SeqCst) > 3).await;
    stop.send(()).unwrap();
    let mut text = String::new();
    whole.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("word word"), "{text}");
    tokio::time::timeout(Duration::from_secs(20), server).await.unwrap().unwrap();
    assert!(!parrot.seen.cancelled.load(Ordering::SeqCst));
    drop(half);
}

#[tokio::test]
async fn a_full_queue_says_come_back() {
    let parrot = slow(2000);
    let service = parrot.service(small(1));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(serve_until(listener, service, std::future::pending()));
    let body = ask(json!({"stream": true})).to_string();
    let first = connect(address, &body).await;
    until(async || parrot.seen.tokens.load(Ordering::SeqCst) > 0).await;
    let mut text = String::new();
    connect(address, &body).await.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 429"), "{text}");
    assert!(text.contains("retry-after") && text.contains("queue_full"), "{text}");
    // The place is free again once the first has left.
    drop(first);
    until(async || parrot.seen.cancelled.load(Ordering::SeqCst)).await;
    let mut tries = 0;
    loop {
        let mut second = connect(address, &body).await;
        let mut start = [0; 12];
        second.read_exact(&mut start).await.unwrap();
        if &start == b"HTTP/1.1 200" {
            break;
        }
        tries += 1;
        assert!(tries < 100);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.abort();
}

#[tokio::test]
async fn events_are_never_cut_inside_a_character() {
    let parrot = Parrot::new("🤭 é 漢字 🤭🤭");
    let (status, reply) = post(&parrot, ask(json!({}))).await;
    assert_eq!((status, &reply["choices"][0]["message"]["content"]), (StatusCode::OK, &json!(parrot.reply)));
    let (_, text) =
        super::send(parrot.router(), "POST", "/v1/chat/completions", ask(json!({"stream": true})).to_string()).await;
    let (data, _) = read_events(&text);
    assert!(!text.contains('\u{FFFD}'));
    let all: String = data.iter().filter_map(|c| c.get("choices")?[0]["delta"]["content"].as_str()).collect();
    assert_eq!(all, parrot.reply);
}
