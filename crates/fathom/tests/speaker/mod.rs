//! A small server that speaks OpenAI's API, or does not: it hangs, streams garbage, refuses, breaks off.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// How it answers. Questions that ask for no stream are answered well, but by those that are no servers at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As it should.
    Good,
    /// As it should, a token every 50 ms.
    Slow,
    /// It has completions, but no chat.
    NoChat,
    /// Pages for people.
    Html,
    /// It takes connections and says nothing.
    Mute,
    /// It falls silent after the first token.
    Hangs,
    /// Bytes that are no events.
    Garbage,
    /// It ends after the first token.
    BreaksOff,
    /// It is done before it says anything.
    Empty,
    /// A byte now and then, and never a line.
    Dribbles,
    /// Tokens without end.
    Endless,
    /// 500.
    Fails,
    /// It wants a key.
    Locked,
}

/// It, and what it was sent.
pub struct Speaker {
    pub address: String,
    pub bodies: Arc<Mutex<Vec<Value>>>,
}

impl Speaker {
    pub fn start(manner: Manner) -> Speaker {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&bodies);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = Arc::clone(&seen);
                std::thread::spawn(move || {
                    // The client may leave at any time.
                    let _ = answer(stream, manner, &seen);
                });
            }
        });
        Speaker { address, bodies }
    }

    /// Questions that asked for a stream.
    pub fn streamed(&self) -> Vec<Value> {
        self.bodies.lock().unwrap().iter().filter(|body| body["stream"] == true).cloned().collect()
    }
}

fn answer(mut stream: TcpStream, manner: Manner, seen: &Mutex<Vec<Value>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut first, mut length, mut key) = (String::new(), 0, false);
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(n) = line.strip_prefix("content-length:") {
            length = n.trim().parse().unwrap();
        }
        key |= line == "authorization: bearer secret";
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or("").to_owned();
    let refuse = |stream: &mut TcpStream, status: &str| {
        let text = json!({"error": {"message": "no such luck"}}).to_string();
        whole(stream, status, "application/json", &text)
    };
    match manner {
        Manner::Mute => {
            std::thread::sleep(Duration::from_secs(60));
            return Ok(());
        }
        Manner::Html => return whole(&mut stream, "200 OK", "text/html", "<html>hello</html>"),
        Manner::Locked if !key => return refuse(&mut stream, "401 Unauthorized"),
        _ => {}
    }
    match path.as_str() {
        "/v1/models" => {
            let card = json!({"id": "speaker", "object": "model", "max_model_len": 4000});
            return whole(&mut stream, "200 OK", "application/json", &json!({"data": [card]}).to_string());
        }
        "/version" => return whole(&mut stream, "200 OK", "application/json", "{\"version\": \"speaker 7\"}"),
        "/v1/chat/completions" if manner != Manner::NoChat => {}
        "/v1/completions" => {}
        _ => return refuse(&mut stream, "404 Not Found"),
    }
    let chat = path.ends_with("chat/completions");
    seen.lock().unwrap().push(body.clone());
    let choice = |text: &str, finish: Option<&str>| match chat {
        true => json!({"index": 0, "delta": {"content": text}, "message": {"content": text}, "finish_reason": finish}),
        false => json!({"index": 0, "text": text, "finish_reason": finish}),
    };
    if body["stream"] != true {
        let reply = json!({"choices": [choice("x", Some("stop"))]});
        return whole(&mut stream, "200 OK", "application/json", &reply.to_string());
    }
    if manner == Manner::Empty {
        return whole(&mut stream, "200 OK", "text/event-stream", "data: [DONE]\n\n");
    }
    if manner == Manner::Fails {
        return refuse(&mut stream, "500 Internal Server Error");
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")?;
    let mut send = |event: &Value| stream.write_all(format!("data: {event}\n\n").as_bytes());
    send(&json!({"object": "chat.completion.chunk", "choices": [choice("", None)]}))?;
    let most = if manner == Manner::Endless { u64::MAX } else { body["max_tokens"].as_u64().unwrap() };
    for i in 0..most {
        send(&json!({"object": "chat.completion.chunk", "choices": [choice("word ", None)]}))?;
        match manner {
            Manner::Slow => std::thread::sleep(Duration::from_millis(50)),
            Manner::Hangs if i == 0 => std::thread::sleep(Duration::from_secs(60)),
            Manner::Dribbles if i == 0 => loop {
                stream.write_all(b"x")?;
                std::thread::sleep(Duration::from_millis(100));
            },
            Manner::BreaksOff if i == 0 => return Ok(()),
            Manner::Garbage if i == 0 => return stream.write_all(b"what is this?\n\n"),
            _ => {}
        }
    }
    let details = json!({"cached_tokens": 60});
    let usage = json!({"prompt_tokens": 100, "completion_tokens": most, "prompt_tokens_details": details});
    send(&json!({"object": "chat.completion.chunk", "choices": [choice("", Some("length"))]}))?;
    send(&json!({"object": "chat.completion.chunk", "choices": [], "usage": usage}))?;
    stream.write_all(b"data: [DONE]\n\n")
}

fn whole(stream: &mut TcpStream, status: &str, kind: &str, text: &str) -> std::io::Result<()> {
    let length = text.len();
    let head =
        format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    stream.write_all((head + text).as_bytes())
}
