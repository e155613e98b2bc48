//! One file being fetched: a segment by a request for its range, or the whole by one request where the server knows no ranges.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use reqwest::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE};
use reqwest::{Method, Response, StatusCode, Url};

use super::hub::chain;
use super::partial::{Partial, SEGMENT};
use super::patience::{Patience, Trouble};
use super::{Error, Hub, Remote};

/// A file and where it is fetched from and to.
pub(super) struct Download {
    pub remote: Remote,
    pub partial: Partial,
    /// Its address at the hub.
    home: Url,
    /// Where the hub sent us for it: asked first, until it no longer answers.
    sent_to: Mutex<Option<Url>>,
}

/// Bytes, as they come.
#[derive(Default)]
pub(super) struct Counters {
    /// Of those that are to come, the ones that are there.
    pub done: AtomicU64,
    /// What came over the network.
    pub fetched: AtomicU64,
}

/// How a request for a segment ended.
pub(super) enum Fetched {
    /// It is there.
    Whole,
    /// The server sends whole files only.
    NoRanges,
}

impl Download {
    pub fn new(remote: Remote, partial: Partial, home: Url) -> Download {
        Download { remote, partial, home, sent_to: Mutex::new(None) }
    }

    fn sent_to(&self) -> MutexGuard<'_, Option<Url>> {
        self.sent_to.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, problem: String) -> Error {
        Error::Hub { place: self.remote.name.clone(), problem }
    }

    /// Fetches what a segment lacks.
    pub async fn segment(&self, hub: &Hub, segment: usize, counters: &Counters) -> Result<Fetched, Error> {
        let mut patience = Patience::new(hub.patience());
        loop {
            let before = self.partial.done(segment);
            if before == self.partial.length(segment) {
                return Ok(Fetched::Whole);
            }
            let start = segment as u64 * SEGMENT;
            let range = start + before..start + self.partial.length(segment);
            let trouble = match self.range(hub, range, counters).await {
                Ok(()) => continue,
                Err(Trouble::NoRanges) => return Ok(Fetched::NoRanges),
                Err(trouble) => trouble,
            };
            if self.partial.done(segment) > before {
                patience.progress();
            }
            patience.after(trouble).await.map_err(|problem| self.failed(problem))?;
        }
    }

    /// Fetches all of it from the start.
    pub async fn whole(&self, hub: &Hub, counters: &Counters) -> Result<(), Error> {
        let mut patience = Patience::new(hub.patience());
        loop {
            let before = self.partial.total();
            let result = async {
                let response = self.ask(hub, None).await?;
                self.check_length(&response, self.remote.size)?;
                self.take(response, 0..self.remote.size, counters).await
            };
            let Err(trouble) = result.await else { return Ok(()) };
            if self.partial.total() > before {
                patience.progress();
            }
            patience.after(trouble).await.map_err(|problem| self.failed(problem))?;
        }
    }

    async fn range(&self, hub: &Hub, range: std::ops::Range<u64>, counters: &Counters) -> Result<(), Trouble> {
        let response = self.ask(hub, Some(range.clone())).await?;
        let size = self.remote.size;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let text = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or_default();
                let given = content_range(text);
                let fits = |&(start, end, of): &(u64, u64, Option<u64>)| {
                    start == range.start && (start..range.end).contains(&end) && of.is_none_or(|of| of == size)
                };
                let Some((start, end, _)) = given.filter(fits) else {
                    let asked = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                    return Err(Trouble::Wrong(format!("asked for {asked}, the server sends {text:?}")));
                };
                self.check_length(&response, end + 1 - start)?;
                self.take(response, start..end + 1, counters).await
            }
            StatusCode::OK => {
                self.check_length(&response, size)?;
                if range.start > 0 || range.end < size {
                    return Err(Trouble::NoRanges);
                }
                self.take(response, range, counters).await
            }
            other => Err(Trouble::Wrong(format!("the server answers {other} to a request for a range"))),
        }
    }

    /// Asks where we were sent last time, or the hub.
    async fn ask(&self, hub: &Hub, range: Option<std::ops::Range<u64>>) -> Result<Response, Trouble> {
        let known = self.sent_to().clone();
        if let Some(url) = known {
            match hub.send(Method::GET, &url, range.clone()).await {
                Ok((response, _)) => return Ok(response),
                // Such addresses are good for an hour or so: then the hub has another.
                Err(Trouble::Final(_)) => *self.sent_to() = None,
                Err(other) => return Err(other),
            }
        }
        let (response, url) = hub.send(Method::GET, &self.home, range).await?;
        if url != self.home {
            *self.sent_to() = Some(url);
        }
        Ok(response)
    }

    fn check_length(&self, response: &Response, expected: u64) -> Result<(), Trouble> {
        let header = |name| response.headers().get(name).and_then(|v| v.to_str().ok());
        if let Some(encoding) = header(CONTENT_ENCODING).filter(|e| *e != "identity") {
            return Err(Trouble::Wrong(format!("the server sends it as {encoding}, which was not asked for")));
        }
        match header(CONTENT_LENGTH).and_then(|n| n.parse::<u64>().ok()) {
            Some(length) if length != expected => {
                Err(Trouble::Wrong(format!("the server sends {length} bytes where {expected} were expected")))
            }
            _ => Ok(()),
        }
    }

    /// Writes a body down as the bytes of a range.
    async fn take(
        &self,
        mut response: Response,
        range: std::ops::Range<u64>,
        counters: &Counters,
    ) -> Result<(), Trouble> {
        let mut at = range.start;
        while at < range.end {
            match response.chunk().await {
                Ok(Some(bytes)) => {
                    counters.fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    // More than was to come is not ours.
                    let ours = (range.end - at).min(bytes.len() as u64) as usize;
                    let put = self.partial.put(at, &bytes[..ours]);
                    let path = &self.partial.path;
                    let new = put.map_err(|e| Trouble::Final(format!("cannot write {}: {e}", path.display())))?;
                    counters.done.fetch_add(new, Ordering::Relaxed);
                    at += ours as u64;
                }
                Ok(None) => {
                    let left = range.end - at;
                    return Err(Trouble::Passing(format!("the server ended {left} bytes early"), None));
                }
                Err(e) => return Err(Trouble::Passing(chain(&e), None)),
            }
        }
        // Only when its end was seen does the connection serve the next request.
        if let Ok(Some(more)) = response.chunk().await {
            counters.fetched.fetch_add(more.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// First and last byte and the whole's length, of `bytes 0-9/100`.
fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, of) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let of = if of == "*" { None } else { Some(of.parse().ok()?) };
    Some((start.parse().ok()?, end.parse().ok()?, of))
}

#[cfg(test)]
mod tests {
    use super::content_range;

    #[test]
    fn content_ranges() {
        assert_eq!(content_range("bytes 0-9/100"), Some((0, 9, Some(100))));
        assert_eq!(content_range("bytes 5-6/*"), Some((5, 6, None)));
        for wrong in ["", "bytes */100", "bytes 1-2", "bytes a-2/3", "bytes 1-99999999999999999999/3", "items 1-2/3"] {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
    }
}
