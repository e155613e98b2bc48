//! A store in a bucket, behind a proxy that spoils what it is told to.
//!
//! `moto_server -p 5000` (PyPI `moto[server]`), then
//! `FATHOM_TEST_S3=127.0.0.1:5000 cargo test -p fathom-store --features s3 --test s3`. Without that variable the test
//! says that it was skipped.
#![cfg(feature = "s3")]
#![allow(missing_docs)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::*;
use fathom_store::{Error, NewSnapshot, Options, Store};

/// What the proxy does.
const HONEST: usize = 0;
const SPOIL: usize = 1;
const REFUSE: usize = 2;
const SOMETIMES: usize = 3;

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
fn serve(mut client: TcpStream, server: &str, mode: &AtomicUsize, count: usize) -> Option<()> {
    let (head, body) = message(&mut client, true)?;
    let mode = mode.load(Ordering::Relaxed);
    if mode == REFUSE || (mode == SOMETIMES && count.is_multiple_of(3)) {
        let status = if count.is_multiple_of(2) { "500 Internal Server Error" } else { "503 Slow Down" };
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return client.write_all(answer.as_bytes()).ok();
    }
    let mut upstream = TcpStream::connect(server).ok()?;
    upstream.write_all(head.replacen("\r\n", "\r\nConnection: close\r\n", 1).as_bytes()).ok()?;
    upstream.write_all(&body).ok()?;
    let (mut answer, mut bytes) = message(&mut upstream, !head.starts_with("HEAD"))?;
    if mode == SPOIL && head.starts_with("GET") && head.contains("/objects/") && !bytes.is_empty() {
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

/// The child half of the test below, with the variables set; alone it does nothing.
#[test]
fn child() {
    let (Ok(server), Ok(port)) = (std::env::var("FATHOM_TEST_S3"), std::env::var("FATHOM_TEST_PROXY")) else { return };
    let mode = Arc::new(AtomicUsize::new(HONEST));
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).unwrap();
    let at = server.clone();
    let spoiler = Arc::clone(&mode);
    std::thread::spawn(move || {
        for (count, client) in listener.incoming().enumerate() {
            let (at, mode) = (at.clone(), Arc::clone(&spoiler));
            std::thread::spawn(move || serve(client.unwrap(), &at, &mode, count));
        }
    });
    let mut bucket = TcpStream::connect(&server).unwrap();
    let made =
        write!(bucket, "PUT /fathom HTTP/1.1\r\nHost: {server}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    made.unwrap();
    assert!(message(&mut bucket, true).unwrap().0.contains("200 OK"));

    for (i, options) in variants().into_iter().enumerate() {
        let open = |options| Store::open(&format!("s3://fathom/some/prefix-{i}"), options).unwrap();
        let store = open(Options { grace: std::time::Duration::ZERO, ..options.clone() });
        let ns = store.namespace("a").unwrap();
        let all = tokens(1, 3 * PAGE + 2);
        let (one, two) = (save(&ns, &all[..6]), save(&ns, &all));
        assert_eq!((one.new_pages, two.new_pages), (1, 2));
        ns.pin(&one.id, true).unwrap();
        let other = open(options.clone());
        let theirs = other.namespace("a").unwrap();
        assert_eq!(check(&theirs, &two.id).unwrap(), all);
        assert!(theirs.show(&one.id).unwrap().pinned);
        assert_eq!(other.usage().unwrap().objects, 5);
        // Two writers of one secret, and of one object.
        assert_eq!(save(&theirs, &all).bytes_written, 0);
        let mut file = Vec::new();
        ns.export(&two.id, &mut file).unwrap();
        assert_eq!(theirs.import(&mut &file[..]).unwrap().new_pages, 0);

        mode.store(SOMETIMES, Ordering::Relaxed);
        assert_eq!(check(&theirs, &two.id).unwrap(), all);
        let three = save(&theirs, &tokens(2, 6)).id;
        mode.store(HONEST, Ordering::Relaxed);
        assert_eq!(check(&ns, &three).unwrap(), tokens(2, 6));
        ns.remove(&three).unwrap();

        mode.store(SPOIL, Ordering::Relaxed);
        let error = check(&theirs, &two.id).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        mode.store(HONEST, Ordering::Relaxed);
        // What was taken for damaged is made again.
        let new = NewSnapshot { tokens: &all, name: Some("again"), ..NewSnapshot::default() };
        for _ in 0..8 {
            let (again, _) = save_as(&theirs, &subject(), &new).unwrap();
            if check(&theirs, &again.id).is_ok() {
                break;
            }
        }
        assert_eq!(check(&open(options.clone()).namespace("a").unwrap(), &two.id).unwrap(), all);

        for snapshot in ns.list().unwrap() {
            ns.remove(&snapshot.id).unwrap();
        }
        store.collect().unwrap();
        let usage = store.usage().unwrap();
        assert_eq!((usage.objects, usage.snapshots), (0, 0), "{usage:?}");
    }
    let ns = Store::open("s3://fathom/down", options()).unwrap().namespace("a").unwrap();
    mode.store(REFUSE, Ordering::Relaxed);
    let error = ns.find(&subject(), &tokens(1, 9)).unwrap_err();
    assert!(matches!(error, Error::Access { .. }), "{error}");
}

#[test]
fn buckets() {
    let Ok(server) = std::env::var("FATHOM_TEST_S3") else {
        return println!("skipped: FATHOM_TEST_S3 names no server");
    };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env("FATHOM_TEST_S3", server)
        .env("FATHOM_TEST_PROXY", port.to_string())
        .env("AWS_ENDPOINT", format!("http://127.0.0.1:{port}"))
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
