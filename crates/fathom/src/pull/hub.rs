//! The hub over HTTP: what is in a repository, and a file or a part of it.

use std::ops::Range;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, LOCATION, RANGE, RETRY_AFTER};
use reqwest::{Client, Method, Response, StatusCode, Url, redirect};
use serde::Deserialize;

use super::patience::{Patience, Trouble};
use super::{Error, Hash};

/// The longest answer about a repository that is read, in bytes.
const LARGEST_LISTING: usize = 64 << 20;
const MOST_FILES: usize = 100_000;
const MOST_REDIRECTS: usize = 10;
const CONNECT: Duration = Duration::from_secs(20);

/// A hub or a mirror.
pub struct Hub {
    client: Client,
    endpoint: Url,
    token: Option<String>,
    patience: Duration,
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Its path in the repository.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// What its content comes to; some mirrors do not say.
    pub hash: Option<Hash>,
}

/// What is in a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The commit that the revision stood for.
    pub commit: String,
    /// Its files.
    pub files: Vec<Remote>,
}

impl Hub {
    /// A hub at `endpoint`. A connection that brings nothing for `idle` is given up, and all is given up when nothing has come
    /// for `patience`.
    ///
    /// # Errors
    /// The endpoint is no address, or the system's certificates cannot be read.
    pub fn new(endpoint: &str, token: Option<String>, idle: Duration, patience: Duration) -> Result<Hub, Error> {
        let request = |problem: &dyn std::fmt::Display| Error::Request(format!("{endpoint:?}: {problem}"));
        let endpoint_url = Url::parse(endpoint).map_err(|e| request(&e))?;
        if !matches!(endpoint_url.scheme(), "http" | "https") || endpoint_url.host().is_none() {
            return Err(request(&"is no http or https address of a hub"));
        }
        // Another part of the program may have installed one already, which will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            // A connection for each range: several ranges over one would share its window.
            .http1_only()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT.min(idle))
            .read_timeout(idle)
            .user_agent(concat!("fathom/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| Error::Hub { place: endpoint.to_owned(), problem: chain(&e) })?;
        Ok(Hub { client, endpoint: endpoint_url, token, patience })
    }

    /// How long to go on when nothing comes.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// An address below the endpoint.
    fn address(&self, parts: &[&str]) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        url
    }

    /// Where a file of a repository at a commit is.
    pub(super) fn file(&self, repo: &str, commit: &str, name: &str) -> Url {
        let parts: Vec<&str> = repo.split('/').chain(["resolve", commit, name]).collect();
        self.address(&parts)
    }

    /// What is in a repository at a branch, tag or commit.
    ///
    /// # Errors
    /// There is no such repository, it must not be read, or the hub does not answer as a hub.
    pub async fn list(&self, repo: &str, revision: &str) -> Result<Listing, Error> {
        let parts: Vec<&str> =
            ["api", "models"].into_iter().chain(repo.split('/')).chain(["revision", revision]).collect();
        let mut url = self.address(&parts);
        url.set_query(Some("blobs=true"));
        let fail = |problem| Error::Hub { place: format!("{} ({repo}, {revision})", self.endpoint), problem };
        let mut patience = Patience::new(self.patience);
        let body = loop {
            match self.body(&url).await {
                Ok(body) => break body,
                Err(trouble) => patience.after(trouble).await.map_err(fail)?,
            }
        };
        let mut listing = parse(&body).map_err(fail)?;
        for file in &mut listing.files {
            if file.size == UNKNOWN && super::wanted::is_wanted_name(&file.name) {
                self.ask(repo, &listing.commit, file).await.map_err(fail)?;
            }
        }
        Ok(listing)
    }

    async fn body(&self, url: &Url) -> Result<Vec<u8>, Trouble> {
        let (mut response, _) = self.send(Method::GET, url, None).await?;
        let mut body = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(bytes)) if body.len() + bytes.len() > LARGEST_LISTING => {
                    return Err(Trouble::Final(format!("answers with more than {LARGEST_LISTING} bytes")));
                }
                Ok(Some(bytes)) => body.extend_from_slice(&bytes),
                Ok(None) => return Ok(body),
                Err(e) => return Err(Trouble::Passing(chain(&e), None)),
            }
        }
    }

    /// Asks for one file's size and hash, where the listing has none.
    async fn ask(&self, repo: &str, commit: &str, file: &mut Remote) -> Result<(), String> {
        let url = self.file(repo, commit, &file.name);
        let mut patience = Patience::new(self.patience);
        let headers = loop {
            match self.first(Method::HEAD, &url, None).await {
                Ok(response) => break response.headers().clone(),
                Err(trouble) => patience.after(trouble).await?,
            }
        };
        let text = |name: &str| headers.get(name)?.to_str().ok();
        let length = if headers.contains_key(LOCATION) { None } else { text(CONTENT_LENGTH.as_str()) };
        let size = text("x-linked-size").or(length).and_then(|n| n.parse().ok());
        file.size = size.ok_or_else(|| format!("does not say how long {} is; try another mirror", file.name))?;
        let etag = text("x-linked-etag").or_else(|| text("etag")).unwrap_or_default();
        file.hash = Hash::parse(etag.trim_start_matches("W/").trim_matches('"'));
        Ok(())
    }

    /// A good answer, and the address that gave it in the end.
    pub(super) async fn send(
        &self,
        method: Method,
        url: &Url,
        range: Option<Range<u64>>,
    ) -> Result<(Response, Url), Trouble> {
        let mut url = url.clone();
        for hop in 0..=MOST_REDIRECTS {
            let response = self.first(method.clone(), &url, range.clone()).await.map_err(|trouble| match trouble {
                // The hub may send us to a better place next time.
                Trouble::Final(problem) if hop > 0 => Trouble::Wrong(problem),
                other => other,
            })?;
            if !response.status().is_redirection() {
                return Ok((response, url));
            }
            let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
            let to = to.and_then(|to| url.join(to).ok());
            let to = to.ok_or_else(|| Trouble::Wrong("sends us elsewhere, but not where".to_owned()))?;
            if !matches!(to.scheme(), "http" | "https") || url.scheme() == "https" && to.scheme() == "http" {
                return Err(Trouble::Final(format!("sends us to {}, which is not secure", shown(&to))));
            }
            url = to;
        }
        Err(Trouble::Wrong(format!("sends us on more than {MOST_REDIRECTS} times")))
    }

    /// One request. A redirection is an answer.
    async fn first(&self, method: Method, url: &Url, range: Option<Range<u64>>) -> Result<Response, Trouble> {
        let mut request = self.client.request(method, url.clone());
        // The token is the hub's business alone.
        if let Some(token) = self.token.as_ref().filter(|_| url.origin() == self.endpoint.origin()) {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(range) = range {
            request = request.header(RANGE, format!("bytes={}-{}", range.start, range.end - 1));
        }
        let response = request.send().await.map_err(|e| {
            if distrusted(&e) {
                let way =
                    "install the system's certificates (Debian: ca-certificates), or name a file with SSL_CERT_FILE";
                Trouble::Final(format!("{}; {way}", chain(&e)))
            } else if e.is_builder() {
                Trouble::Final(chain(&e))
            } else {
                Trouble::Passing(chain(&e), None)
            }
        })?;
        let status = response.status();
        if status.is_success() || status.is_redirection() {
            return Ok(response);
        }
        Err(self.refused(status, response.headers(), url))
    }

    fn refused(&self, status: StatusCode, headers: &HeaderMap, url: &Url) -> Trouble {
        let place = shown(url);
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let way = if url.origin() != self.endpoint.origin() {
                    "the hub sent us there"
                } else if self.token.is_some() {
                    "the token has no right to it: accept the repository's terms on its page, or take another token"
                } else {
                    "it needs a token (or there is no such repository): set HF_TOKEN"
                };
                Trouble::Final(format!("{place} answers {status}; {way}"))
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                Trouble::Final(format!("{place} answers {status}; check the repository's name and the revision"))
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                Trouble::Wrong(format!("{place} answers {status}: the file is shorter than the hub says"))
            }
            _ if status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429) => {
                let seconds = headers.get(RETRY_AFTER).and_then(|s| s.to_str().ok()?.parse().ok());
                Trouble::Passing(format!("{place} answers {status}"), seconds.map(Duration::from_secs))
            }
            _ => Trouble::Final(format!("{place} answers {status}; is it a hub?")),
        }
    }
}

/// An address without its query, which may hold signatures.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.to_string()
}

/// Whether the server's certificate is none that this system trusts, which trying again does not change.
fn distrusted(e: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(rustls::Error::InvalidCertificate(_)) = e.downcast_ref() {
        return true;
    }
    // An error inside of one of the system's is not its source.
    let inside = e.downcast_ref::<std::io::Error>().and_then(|e| e.get_ref());
    inside.is_some_and(|inside| distrusted(inside)) || e.source().is_some_and(distrusted)
}

/// An error and what is behind it.
pub(crate) fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(e) = next {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = e.source();
    }
    text
}

/// Stands for a size until it is asked for.
const UNKNOWN: u64 = u64::MAX;

fn parse(body: &[u8]) -> Result<Listing, String> {
    #[derive(Deserialize)]
    struct Raw {
        sha: String,
        siblings: Vec<File>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct File {
        rfilename: String,
        size: Option<u64>,
        blob_id: Option<String>,
        lfs: Option<Lfs>,
    }
    #[derive(Deserialize)]
    struct Lfs {
        #[serde(alias = "oid")]
        sha256: Option<String>,
        size: Option<u64>,
    }
    let raw: Raw =
        serde_json::from_slice(body).map_err(|e| format!("does not answer as a hub: {e}; is the endpoint right?"))?;
    if raw.siblings.len() > MOST_FILES {
        return Err(format!("has {} files, too many for a checkpoint", raw.siblings.len()));
    }
    if raw.sha.is_empty() || !raw.sha.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(format!("names the commit {:?}, which is none", raw.sha));
    }
    let file = |file: File| {
        let hash = match &file.lfs {
            Some(lfs) => lfs.sha256.as_deref().and_then(Hash::parse),
            None => file.blob_id.as_deref().and_then(Hash::parse),
        };
        let size = file.lfs.and_then(|lfs| lfs.size).or(file.size).unwrap_or(UNKNOWN);
        Remote { name: file.rfilename, size, hash }
    };
    Ok(Listing { commit: raw.sha, files: raw.siblings.into_iter().map(file).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn listings() {
        let (sha, git) = ("ab".repeat(32), "cd".repeat(20));
        let body = format!(
            r#"{{"sha":"f00","extra":1,"siblings":[
                {{"rfilename":"a","size":5,"blobId":"{git}"}},
                {{"rfilename":"b","size":9,"blobId":"{git}","lfs":{{"sha256":"{sha}","size":9,"pointerSize":100}}}},
                {{"rfilename":"c"}}]}}"#
        );
        let file =
            |name: &str, size, hash: Option<&str>| Remote { name: name.into(), size, hash: hash.and_then(Hash::parse) };
        let files = vec![file("a", 5, Some(&git)), file("b", 9, Some(&sha)), file("c", UNKNOWN, None)];
        assert_eq!(parse(body.as_bytes()), Ok(Listing { commit: "f00".into(), files }));
        for (wrong, expected) in [
            ("<html>", "is the endpoint right?"),
            (r#"{"sha":"../x","siblings":[]}"#, "which is none"),
            (r#"{"siblings":[]}"#, "sha"),
        ] {
            let message = parse(wrong.as_bytes()).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn endpoints() {
        let hub = |endpoint: &str| Hub::new(endpoint, None, CONNECT, CONNECT);
        let at = |endpoint: &str| hub(endpoint).unwrap().file("o/n", "abc", "x y.json").to_string();
        assert_eq!(at("http://h:1"), "http://h:1/o/n/resolve/abc/x%20y.json");
        assert_eq!(at("http://h/hf/"), "http://h/hf/o/n/resolve/abc/x%20y.json");
        for wrong in ["", "huggingface.co", "ftp://h", "http://"] {
            assert!(hub(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&body);
        }
    }
}
