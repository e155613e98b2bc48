//! What requests take before the engine has them, held to limits: bodies that arrive, JSON that is read, prompts that wait.
//!
//! A body of a few megabytes can be a million objects, which take a hundred times as much once they are read. So they are counted
//! before, and bodies are read side by side only as far as that fits a budget, which the plan knows.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ApiError;

/// A body that has not come after this long is given up.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of a body in a budget's unit.
const UNIT: usize = 1024;
/// Bytes that a token of a prompt takes while its request waits or runs, in its copies.
const TOKEN: usize = 12;
/// Bytes that a tokenizer takes for one of a long word.
const WORD: usize = 96;
/// Tokens in a unit.
const TOKENS: usize = 64;
/// Bodies that are read at once at most: each is by a thread of its own, in which a tokenizer of V4's vocabulary keeps 15 MB.
const READERS: usize = 4;
const READER: usize = 15 << 20;

/// How much bodies may be, from the most tokens of a request.
#[derive(Debug, Clone, Copy)]
pub struct BodyLimits {
    /// Bytes of one.
    pub bytes: usize,
    /// Values in one: of lists and objects, and these themselves.
    pub values: usize,
    /// Objects in one.
    pub objects: usize,
    /// Tokens of all prompts that wait or run.
    pub prompts: usize,
}

impl BodyLimits {
    /// Room for what a context of so many tokens may take to write down: a character of JSON may be six bytes.
    pub fn of_context(context: usize) -> BodyLimits {
        let context = context.min(1 << 24);
        BodyLimits {
            bytes: (1 << 20) + 16 * context,
            values: 50_000 + 3 * context / 2,
            objects: 10_000 + context / 16,
            prompts: (8 * context).max(1 << 20),
        }
    }

    /// Bytes that all of it takes at most: two bodies that arrive, the largest that is read, what readers keep, and prompts.
    pub fn memory(&self) -> u64 {
        let reading = self.reading(self.bytes, self.values, self.objects) + READERS * READER;
        (2 * self.bytes + reading + TOKEN * self.prompts) as u64
    }

    /// Bytes that reading a body takes: its text in several forms, and what its values are held in.
    fn reading(&self, bytes: usize, values: usize, objects: usize) -> usize {
        6 * bytes + 72 * values + 1536 * objects
    }
}

/// The budgets.
#[derive(Debug)]
pub(super) struct Desk {
    limits: BodyLimits,
    /// Units of `reading`.
    most: usize,
    arriving: Arc<Semaphore>,
    reading: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    prompts: Arc<Semaphore>,
}

/// A body, and its place in the budgets until it is dropped.
#[derive(Debug)]
pub(super) struct Received {
    pub bytes: Vec<u8>,
    _arrived: Option<OwnedSemaphorePermit>,
    _read: OwnedSemaphorePermit,
    _reader: OwnedSemaphorePermit,
}

impl Desk {
    pub(super) fn new(limits: BodyLimits) -> Desk {
        let units = |bytes: usize| Arc::new(Semaphore::new(bytes.div_ceil(UNIT).min(Semaphore::MAX_PERMITS)));
        let most = limits.reading(limits.bytes, limits.values, limits.objects).div_ceil(UNIT) + 1;
        let prompts = Arc::new(Semaphore::new(limits.prompts.div_ceil(TOKENS).min(Semaphore::MAX_PERMITS)));
        let (arriving, reading) = (units(2 * limits.bytes), units(most * UNIT));
        Desk { limits, most, arriving, reading, readers: Arc::new(Semaphore::new(READERS)), prompts }
    }

    /// The body's bytes, if they come in time and are no more than may be, once there is room to read them.
    pub(super) async fn receive(&self, body: Body) -> Result<Received, ApiError> {
        let late = |_| ApiError::other(StatusCode::REQUEST_TIMEOUT, "timeout", "The body took too long to arrive.");
        let (bytes, arrived) = tokio::time::timeout(PATIENCE, self.arrive(body)).await.map_err(late)??;
        let Weight { values, objects, long } = Weight::of(&bytes);
        let too_many = |what, n, most| {
            let message = format!("The body has {n} {what}; it may have {most} at most.");
            Err(ApiError::other(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message))
        };
        if values > self.limits.values {
            return too_many("values", values, self.limits.values);
        }
        if objects > self.limits.objects {
            return too_many("objects", objects, self.limits.objects);
        }
        let units = (self.limits.reading(bytes.len(), values, objects) + WORD * long).div_ceil(UNIT);
        if units > self.most {
            return too_many(
                "bytes of words that are longer than any",
                long,
                (self.most * UNIT - 6 * bytes.len()) / WORD,
            );
        }
        let closed = |_| ApiError::internal("Nothing is read any more.");
        let read = Arc::clone(&self.reading).acquire_many_owned(units as u32).await.map_err(closed)?;
        let reader = Arc::clone(&self.readers).acquire_owned().await.map_err(closed)?;
        Ok(Received { bytes, _arrived: arrived, _read: read, _reader: reader })
    }

    async fn arrive(&self, body: Body) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), ApiError> {
        let limit = self.limits.bytes;
        let take = |units: usize| Arc::clone(&self.arriving).try_acquire_many_owned(units as u32);
        let (mut bytes, mut total, mut arrived) = (Vec::new(), 0usize, None::<OwnedSemaphorePermit>);
        let mut refused = None;
        let mut stream = body.into_data_stream();
        while let Some(part) = stream.next().await {
            let part: Bytes = part.map_err(|error| ApiError::bad(None, format!("The body ended early: {error}.")))?;
            total += part.len();
            if total > limit {
                let message = format!("The body is larger than {limit} bytes.");
                refused = Some(ApiError::other(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message));
            }
            if refused.is_none() {
                let more = total.div_ceil(UNIT) - arrived.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
                match (take(more), &mut arrived) {
                    (Ok(more), Some(arrived)) => arrived.merge(more),
                    (Ok(more), none) => *none = Some(more),
                    (Err(_), _) => {
                        let message = "Too many large requests are arriving at once.";
                        refused = Some(ApiError::slow_down("too_many_bodies", message, 5));
                    }
                }
            }
            match refused {
                None => bytes.extend_from_slice(&part),
                // A client that is still sending does not read the answer yet, so hear it out, within reason.
                Some(_) => {
                    (bytes, arrived) = (Vec::new(), None);
                    if total > limit.saturating_mul(16) {
                        break;
                    }
                }
            }
        }
        match refused {
            Some(refused) => Err(refused),
            None => Ok((bytes, arrived)),
        }
    }

    /// Room for so many tokens of prompts, until it is dropped.
    ///
    /// # Errors
    /// 400 if there will never be so much, 429 if there is not now.
    pub(super) fn prompts(&self, tokens: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        if tokens > self.limits.prompts {
            let most = self.limits.prompts;
            let message = format!("The prompts of this request have {tokens} tokens together; {most} are the most.");
            return Err(ApiError::bad(Some("n"), message));
        }
        let units = tokens.div_ceil(TOKENS) as u32;
        Arc::clone(&self.prompts).try_acquire_many_owned(units).map_err(|_| {
            let message = "The prompts that wait have as many tokens as there is room for. Try again later.";
            ApiError::slow_down("queue_full", message, 5)
        })
    }
}

/// What of a body takes more memory than its bytes, once it is read: all of it at least.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Weight {
    values: usize,
    objects: usize,
    /// Bytes of words longer than [`LONG`].
    long: usize,
}

/// A tokenizer holds many bytes for each character of a word while it reads that: of those that are longer than this it matters.
const LONG: usize = 4096;

/// The kind of a byte in a text: a word is of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Letter,
    Digit,
    Space,
    Other,
}

impl Kind {
    fn of(byte: u8) -> Kind {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | 0x80.. => Kind::Letter,
            b'0'..=b'9' => Kind::Digit,
            b' ' | b'\n' | b'\r' | b'\t' => Kind::Space,
            _ => Kind::Other,
        }
    }
}

impl Weight {
    fn of(body: &[u8]) -> Weight {
        let mut weight = Weight { values: 1, ..Weight::default() };
        let (mut inside, mut kind, mut run) = (false, Kind::Other, 0usize);
        let mut bytes = body.iter().copied();
        while let Some(byte) = bytes.next() {
            if !inside {
                match byte {
                    b'"' => inside = true,
                    b'{' => (weight.values, weight.objects) = (weight.values + 1, weight.objects + 1),
                    b',' | b'[' => weight.values += 1,
                    _ => {}
                }
                continue;
            }
            let next = match byte {
                b'"' => {
                    inside = false;
                    weight.add(std::mem::take(&mut run));
                    continue;
                }
                b'\\' => match bytes.next() {
                    Some(b'n' | b'r' | b't') => Kind::Space,
                    // Whatever it is, it may be of the word's kind.
                    Some(b'u') => {
                        run += 3;
                        bytes.by_ref().take(4).for_each(drop);
                        continue;
                    }
                    _ => Kind::Other,
                },
                byte => Kind::of(byte),
            };
            // Numbers are read by a few digits.
            if next != kind || next == Kind::Digit {
                weight.add(std::mem::take(&mut run));
                kind = next;
            }
            run += 1;
        }
        weight.add(run);
        weight
    }

    /// A word has ended.
    fn add(&mut self, run: usize) {
        self.long += if run > LONG { run } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desk(bytes: usize) -> Desk {
        Desk::new(BodyLimits { bytes, values: 10, objects: 3, prompts: 1000 })
    }

    #[test]
    fn values_are_counted_outside_of_strings() {
        let count = |body: &[u8]| (Weight::of(body).values, Weight::of(body).objects);
        assert_eq!(count(br#"{"a": [1, 2, "[{,\"[{"], "b": {}}"#), (7, 2));
        assert_eq!(count(b""), (1, 0));
        assert_eq!(count(br#""never ends [[["#), (1, 0));
        // As many at least as there are.
        let body = r#"[{"a":1,"b":[[],{}]},null,"x"]"#;
        assert!(count(body.as_bytes()).0 >= 8);
    }

    #[test]
    fn long_words_are_found() {
        let long = |text: &str| Weight::of(format!("{{\"a\": \"{text}\"}}").as_bytes()).long;
        assert_eq!(long(&"ab ".repeat(5000)), 0);
        assert_eq!(long(&"1".repeat(9000)), 0);
        assert_eq!(long(&"x".repeat(5000)), 5000);
        assert_eq!(long(&format!("{} {}", "é".repeat(4000), "!".repeat(5000))), 13_000);
        assert_eq!(long(&"\\n\\t".repeat(3000)), 6000);
        assert!(long(&"\\u0041".repeat(5000)) >= 5000);
        assert_eq!(long(&"x".repeat(4096)), 0);
    }

    #[tokio::test]
    async fn what_is_too_much_is_refused() {
        let desk = desk(100);
        assert_eq!(desk.receive(Body::from("[1,2]")).await.unwrap().bytes, b"[1,2]");
        for (body, word) in
            [("x".repeat(101), "100 bytes"), ("[1,1,1,1,1,1,1,1,1,1]".into(), "values"), ("{}{}{}{}".into(), "objects")]
        {
            let refused = desk.receive(Body::from(body)).await.unwrap_err();
            assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
            assert!(refused.message.contains(word), "{}", refused.message);
        }
        assert_eq!(desk.prompts(1001).unwrap_err().status, StatusCode::BAD_REQUEST);
        let held = desk.prompts(600).unwrap();
        assert_eq!(desk.prompts(600).unwrap_err().status, StatusCode::TOO_MANY_REQUESTS);
        drop(held);
        assert!(desk.prompts(600).is_ok());
    }

    #[tokio::test]
    async fn bodies_wait_for_room() {
        let desk = desk(4096);
        let one = desk.receive(Body::from("x".repeat(4000))).await.unwrap();
        // As much as may arrive, but not be read at once.
        let two = desk.receive(Body::from("x".repeat(4000)));
        assert!(tokio::time::timeout(Duration::from_millis(20), two).await.is_err());
        // A third does not even arrive while the second waits.
        let (second, third) = (desk.receive(Body::from("x".repeat(4000))), desk.receive(Body::from("x".repeat(4000))));
        let both = async { tokio::join!(second, third) };
        let refuse = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(one);
        };
        let ((second, third), ()) = tokio::join!(both, refuse);
        assert!(second.is_ok());
        assert_eq!(third.unwrap_err().status, StatusCode::TOO_MANY_REQUESTS);
    }
}
