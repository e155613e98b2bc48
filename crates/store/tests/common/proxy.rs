//! A proxy before a bucket's server, which spoils what it is told to.
#![allow(dead_code, missing_docs)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the proxy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Passes everything on.
    Honest,
    /// Changes a bit of every object.
    Spoil,
    /// Answers 500 or 503.
    Refuse,
    /// Answers so to every third request.
    Sometimes,
    /// Takes its time.
    Slow,
}

pub struct Proxy {
    server: String,
    mode: Arc<Mutex<Mode>>,
}

/// What a program needs to use the proxy.
pub fn environment(port: &str) -> Vec<(&'static str, String)> {
    vec![
        ("AWS_ENDPOINT", format!("http://127.0.0.1:{port}")),
        ("AWS_ALLOW_HTTP", "true".into()),
        ("AWS_REGION", "us-east-1".into()),
        ("AWS_ACCESS_KEY_ID", "test".into()),
        ("AWS_SECRET_ACCESS_KEY", "test".into()),
    ]
}

impl Proxy {
    pub fn start(server: &str, port: &str) -> Proxy {
        let mode = Arc::new(Mutex::new(Mode::Honest));
        let listener = TcpListener::bind(format!("127.0.0.1:{port}")).unwrap();
        let proxy = Proxy { server: server.to_owned(), mode: Arc::clone(&mode) };
        let at = server.to_owned();
        std::thread::spawn(move || {
            let count = Arc::new(AtomicUsize::new(0));
            for client in listener.incoming() {
                let (at, mode, count) = (at.clone(), Arc::clone(&mode), count.fetch_add(1, Ordering::Relaxed));
                std::thread::spawn(move || serve(client.unwrap(), &at, *mode.lock().unwrap(), count));
            }
        });
        proxy
    }

    pub fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    /// The bucket `fathom`, past the proxy.
    pub fn make_bucket(&self) {
        let mut bucket = TcpStream::connect(&self.server).unwrap();
        let head = format!("PUT /fathom HTTP/1.1\r\nHost: {}\r\n", self.server);
        write!(bucket, "{head}Content-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
        let answer = message(&mut bucket, true).unwrap().0;
        assert!(answer.contains("200 OK") || answer.contains("409"), "{answer}");
    }
}

fn length(head: &str) -> usize {
    let line =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:").map(str::to_owned));
    line.map_or(0, |n| n.trim().parse().unwrap())
}

/// A head, and a body of the length that it gives.
fn message(stream: &mut TcpStream, body: bool) -> Option<(String, Vec<u8>)> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let mut bytes = vec![0; if body { length(&head) } else { 0 }];
    stream.read_exact(&mut bytes).ok()?;
    Some((head, bytes))
}

/// Answers one request, asking the server.
fn serve(mut client: TcpStream, server: &str, mode: Mode, count: usize) -> Option<()> {
    let (head, body) = message(&mut client, true)?;
    if mode == Mode::Slow {
        std::thread::sleep(Duration::from_millis(300));
    }
    if mode == Mode::Refuse || (mode == Mode::Sometimes && count.is_multiple_of(3)) {
        let status = if count.is_multiple_of(2) { "500 Internal Server Error" } else { "503 Slow Down" };
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return client.write_all(answer.as_bytes()).ok();
    }
    let mut upstream = TcpStream::connect(server).ok()?;
    upstream.write_all(head.replacen("\r\n", "\r\nConnection: close\r\n", 1).as_bytes()).ok()?;
    upstream.write_all(&body).ok()?;
    let (mut answer, mut bytes) = message(&mut upstream, !head.starts_with("HEAD"))?;
    if mode == Mode::Spoil && head.starts_with("GET") && head.contains("/objects/") && !bytes.is_empty() {
        let at = count % bytes.len();
        bytes[at] ^= 1;
    }
    answer = answer.replace("Connection: keep-alive\r\n", "");
    if !answer.contains("Connection: close") {
        answer = answer.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    }
    client.write_all(answer.as_bytes()).ok()?;
    client.write_all(&bytes).ok()
}
