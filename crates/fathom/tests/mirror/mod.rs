//! A hub on this machine, with files of any size made up as they are sent, and the faults that networks and mirrors have.

use std::io;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Response, StatusCode, header};
use futures_util::stream;
use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};

pub const REPO: &str = "maker/model";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const CHUNK: u64 = 64 << 10;

/// What is wrong with the server. A number is how many answers it spoils.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Whole files whatever is asked for.
    NoRanges,
    /// One byte in a file of tensors is another.
    WrongBytes,
    /// Another range than was asked for.
    WrongRange,
    /// `Content-Length` says half of it, or twice as much.
    Shorter,
    Longer,
    /// It says more and ends the connection.
    EndsEarly,
    Compressed,
    /// 503, and to try again at once.
    Unavailable,
    /// An answer that never goes on.
    Stall,
    /// To another address for tensors, as the hub does; that address expires after some requests.
    Elsewhere,
    /// Only with the token.
    Private,
    /// In a circle.
    Circle,
    /// To a scheme that is none of ours.
    Scheme,
    /// It tells no sizes and hashes in the listing, but in headers.
    Terse,
    /// Nor there.
    Silent,
    /// HTML whatever is asked for.
    NotAHub,
    /// A listing of files that are no file's names, or too large for any drive.
    Paths,
    Huge,
}

pub struct File {
    pub name: String,
    pub content: Content,
}

pub enum Content {
    Text(Vec<u8>),
    /// So many bytes, by a seed.
    Noise(u64, u64),
}

impl Content {
    pub fn size(&self) -> u64 {
        match self {
            Content::Text(bytes) => bytes.len() as u64,
            Content::Noise(_, size) => *size,
        }
    }

    pub fn bytes(&self, start: u64, end: u64) -> Vec<u8> {
        match self {
            Content::Text(bytes) => bytes[start as usize..end as usize].to_vec(),
            Content::Noise(seed, _) => {
                let words = (start / 8..end.div_ceil(8)).flat_map(|i| mix(seed ^ (i << 8)).to_le_bytes());
                words.skip((start % 8) as usize).take((end - start) as usize).collect()
            }
        }
    }

    pub fn sha256(&self) -> String {
        let mut hasher = Sha256::new();
        let mut at = 0;
        while at < self.size() {
            let end = self.size().min(at + (1 << 20));
            hasher.update(self.bytes(at, end));
            at = end;
        }
        hasher.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }
}

/// What Git calls a content.
fn git(content: &[u8]) -> String {
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", content.len()));
    hasher.update(content);
    hasher.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// SplitMix64's last steps.
fn mix(x: u64) -> u64 {
    let z = x.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

pub struct Mirror {
    pub address: String,
    pub shared: Arc<Shared>,
    _runtime: tokio::runtime::Runtime,
}

pub struct Shared {
    pub files: Vec<File>,
    hashes: Vec<String>,
    port: u16,
    fault: Fault,
    spoils: AtomicU32,
    /// Bytes of files sent so far.
    pub sent: AtomicU64,
    pub requests: AtomicU32,
    /// At so many bytes sent connections break, the last first.
    cuts: Mutex<Vec<u64>>,
    /// Requests that came with a token to an address that is none of the hub's.
    pub leaks: AtomicU32,
    pace: Duration,
}

impl Mirror {
    pub fn start(files: Vec<File>, fault: Fault, spoils: u32) -> Mirror {
        Mirror::with_cuts(files, fault, spoils, Vec::new(), Duration::ZERO)
    }

    /// One that breaks connections when so many bytes were sent in all, and takes its time for every chunk.
    pub fn with_cuts(files: Vec<File>, fault: Fault, spoils: u32, mut cuts: Vec<u64>, pace: Duration) -> Mirror {
        cuts.sort_unstable_by(|a, b| b.cmp(a));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            hashes: files.iter().map(|file| file.content.sha256()).collect(),
            port,
            files,
            fault,
            spoils: spoils.into(),
            sent: 0.into(),
            requests: 0.into(),
            pace,
            cuts: cuts.into(),
            leaks: 0.into(),
        });
        let app = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, app).await.unwrap();
        });
        Mirror { address: format!("http://127.0.0.1:{port}"), shared, _runtime: runtime }
    }

    pub fn total(&self) -> u64 {
        self.shared.files.iter().map(|file| file.content.size()).sum()
    }

    /// Connections that were not broken yet.
    pub fn cuts(&self) -> usize {
        self.shared.cuts.lock().unwrap().len()
    }

    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }
}

fn plain(status: StatusCode, text: impl Into<Body>) -> Response<Body> {
    Response::builder().status(status).body(text.into()).unwrap()
}

fn to(place: &str) -> Response<Body> {
    Response::builder().status(StatusCode::FOUND).header(header::LOCATION, place).body(Body::empty()).unwrap()
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    shared.requests.fetch_add(1, Ordering::SeqCst);
    let path = request.uri().path().to_owned();
    let (headers, fault) = (request.headers(), shared.fault);
    let token = headers.get(header::AUTHORIZATION).is_some();
    let elsewhere = path.starts_with("/elsewhere/");
    if elsewhere && token {
        shared.leaks.fetch_add(1, Ordering::SeqCst);
    }
    match fault {
        Fault::NotAHub => return plain(StatusCode::OK, "<html>Welcome to the hotel</html>"),
        Fault::Private if !token => return plain(StatusCode::UNAUTHORIZED, "who are you?"),
        _ => {}
    }
    if path == format!("/api/models/{REPO}/revision/main") {
        return plain(StatusCode::OK, listing(&shared));
    }
    let home = format!("/{REPO}/resolve/{COMMIT}/");
    let Some(name) = path.strip_prefix(&home).or_else(|| path.strip_prefix("/elsewhere/")) else {
        return plain(StatusCode::NOT_FOUND, "no such page");
    };
    let Some(at) = shared.files.iter().position(|file| file.name == name) else {
        return plain(StatusCode::NOT_FOUND, "no such file");
    };
    let tensors = name.ends_with(".safetensors");
    let spoilt = |wanted: Fault| fault == wanted && tensors && shared.spoil();
    if fault == Fault::Elsewhere && tensors {
        if !elsewhere {
            return to(&format!("http://localhost:{}/elsewhere/{name}?signature=secret", shared.port));
        }
        if shared.requests.load(Ordering::SeqCst).is_multiple_of(5) {
            return plain(StatusCode::FORBIDDEN, "expired");
        }
    }
    if spoilt(Fault::Circle) {
        return to(&path);
    }
    if spoilt(Fault::Scheme) {
        return to("gopher://127.0.0.1/");
    }
    if spoilt(Fault::Unavailable) {
        let busy = Response::builder().status(StatusCode::SERVICE_UNAVAILABLE).header(header::RETRY_AFTER, "0");
        return busy.body(Body::empty()).unwrap();
    }
    file(shared, at, headers, request.method() == axum::http::Method::HEAD)
}

impl Shared {
    fn spoil(&self) -> bool {
        self.spoils.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
    }
}

fn listing(shared: &Shared) -> String {
    let files = shared.files.iter().zip(&shared.hashes).map(|(file, sha256)| {
        let size = file.content.size();
        match (shared.fault, &file.content) {
            (Fault::Terse | Fault::Silent, _) => json!({"rfilename": file.name}),
            (Fault::Huge, Content::Noise(..)) => {
                json!({"rfilename": file.name, "size": 1u64 << 60, "lfs": {"sha256": sha256, "size": 1u64 << 60}})
            }
            (_, Content::Noise(..)) => {
                json!({"rfilename": file.name, "size": size, "lfs": {"sha256": sha256, "size": size}})
            }
            // Of one file it tells no hash.
            (_, Content::Text(_)) if file.name == "config.json" => json!({"rfilename": file.name, "size": size}),
            (_, Content::Text(bytes)) => json!({"rfilename": file.name, "size": size, "blobId": git(bytes)}),
        }
    });
    let mut files: Vec<_> = files.collect();
    if shared.fault == Fault::Paths {
        files.push(json!({"rfilename": "../escaped.json", "size": 1}));
        files.push(json!({"rfilename": "/tmp/escaped.json", "size": 1}));
    }
    json!({"id": REPO, "sha": COMMIT, "siblings": files}).to_string()
}

fn file(shared: Arc<Shared>, at: usize, headers: &HeaderMap, head: bool) -> Response<Body> {
    let (size, fault) = (shared.files[at].content.size(), shared.fault);
    let tensors = shared.files[at].name.ends_with(".safetensors");
    if head && fault == Fault::Silent {
        // Of no known length.
        return plain(StatusCode::OK, Body::from_stream(stream::empty::<io::Result<Bytes>>()));
    }
    if head {
        let answer = Response::builder().header("x-linked-size", size);
        return answer.header("x-linked-etag", format!("\"{}\"", shared.hashes[at])).body(Body::empty()).unwrap();
    }
    let asked = headers.get(header::RANGE).and_then(|range| {
        let (start, end) = range.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
        Some((start.parse::<u64>().ok()?, end.parse::<u64>().ok()? + 1))
    });
    let ranged = asked.filter(|_| !(fault == Fault::NoRanges && tensors));
    let (start, end) = ranged.unwrap_or((0, size));
    let mut answer = Response::builder();
    if ranged.is_some() {
        let lie = u64::from(fault == Fault::WrongRange && tensors && shared.spoil());
        answer = answer.status(StatusCode::PARTIAL_CONTENT);
        answer = answer.header(header::CONTENT_RANGE, format!("bytes {}-{}/{size}", start + lie, end - 1));
    }
    if fault == Fault::Compressed && tensors {
        answer = answer.header(header::CONTENT_ENCODING, "gzip");
    }
    let (mut length, mut stop, mut stall) = (end - start, end, false);
    if tensors && matches!(fault, Fault::Shorter | Fault::Longer | Fault::EndsEarly | Fault::Stall) && shared.spoil() {
        match fault {
            Fault::Shorter => (length, stop) = (length / 2, start + length / 2),
            Fault::Longer => length *= 2,
            Fault::EndsEarly => stop -= (end - start) / 2,
            _ => (stop, stall) = (start + (end - start) / 2, true),
        }
    }
    answer = answer.header(header::CONTENT_LENGTH, length);
    let wrong = fault == Fault::WrongBytes && tensors && shared.spoil();
    let body = stream::unfold((start, wrong), move |(from, wrong)| {
        let shared = Arc::clone(&shared);
        async move {
            if !shared.pace.is_zero() {
                tokio::time::sleep(shared.pace).await;
            }
            if from >= stop {
                if stall {
                    std::future::pending::<()>().await;
                }
                return None;
            }
            let to = stop.min(from + CHUNK);
            let sent = shared.sent.load(Ordering::SeqCst);
            if shared.cuts.lock().unwrap().pop_if(|cut| *cut <= sent).is_some() {
                return Some((Err(io::Error::other("cut")), (stop, false)));
            }
            let mut bytes = shared.files[at].content.bytes(from, to);
            if wrong {
                bytes[0] ^= 1;
            }
            shared.sent.fetch_add(bytes.len() as u64, Ordering::SeqCst);
            Some((Ok::<_, io::Error>(Bytes::from(bytes)), (to, false)))
        }
    });
    answer.body(Body::from_stream(body)).unwrap()
}
