//! A server that speaks OpenAI's API: where it is, what it serves, what it is.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url, redirect};
use serde_json::{Value, json};

use super::ports::listener;
use super::stream::{complaint, short};
use crate::pull::chain;

const CONNECT: Duration = Duration::from_secs(10);
/// The longest answer that is no stream, in bytes.
const LONGEST: usize = 4 << 20;
/// The longest name of a model, in bytes.
const LONGEST_NAME: usize = 1024;
/// Where servers say what they are, and how they call it: vLLM, llama.cpp, Ollama, TGI, SGLang.
const ABOUT: [(&str, &str); 5] = [
    ("version", "/version"),
    ("props", "/build_info"),
    ("api/version", "/version"),
    ("info", "/version"),
    ("get_server_info", "/version"),
];

/// Which of OpenAI's interfaces is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Api {
    /// Chat completions.
    Chat,
    /// Completions: the conversation goes as plain text, where a server has no chat.
    Completions,
}

/// A server, connected to.
#[derive(Debug, Clone)]
pub struct Target {
    /// How the report calls it.
    pub name: String,
    /// Its address, ending in `/v1`.
    pub url: Url,
    /// The model that is asked for.
    pub model: String,
    /// What tells the model's weights and arithmetic from others of its name, where that is known.
    pub weights: Option<String>,
    /// The interface that it has.
    pub api: Api,
    /// What it says it is.
    pub software: Option<String>,
    /// The most tokens of prompt and answer, where it says.
    pub context: Option<u64>,
    /// The process, if it is one of this machine.
    pub pid: Option<u32>,
    pub(super) client: Client,
    key: Option<String>,
    /// The most that an answer may take that is no stream.
    timeout: Duration,
}

/// `NAME=URL` or `URL`, as a name and an address that ends in `/v1`.
///
/// # Errors
/// It is no such address.
pub fn parse(text: &str) -> Result<(String, Url), String> {
    let (name, address) = match text.split_once('=') {
        Some((name, address)) if !name.contains([':', '/']) => (Some(name), address),
        _ => (None, text),
    };
    let wrong = || format!("{address:?} is no http or https address of a server, such as http://127.0.0.1:8080/v1");
    let mut url = Url::parse(address).map_err(|_| wrong())?;
    // It stands in the report.
    if !url.username().is_empty() || url.password().is_some() {
        return Err("an address must not have a user's name or password in it; --key FILE has a server's key".into());
    }
    let host = url.host_str().filter(|_| matches!(url.scheme(), "http" | "https")).ok_or_else(wrong)?;
    let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
    let name = name.map_or_else(|| format!("{host}{port}"), str::to_owned);
    if name.is_empty() || name.len() > 60 || name.chars().any(char::is_control) {
        return Err(format!("{text:?}: a name has from 1 to 60 characters"));
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&if path.ends_with("/v1") { path } else { format!("{path}/v1") });
    url.set_query(None);
    Ok((name, url))
}

impl Target {
    /// Connects: finds the model (the first that is listed, unless one is named), and asks it for one token, to see which
    /// interface there is.
    ///
    /// # Errors
    /// Why it is none that can be measured, in one sentence with its address.
    pub async fn connect(
        name: String,
        url: Url,
        model: Option<String>,
        key: Option<String>,
        timeout: Duration,
    ) -> Result<Target, String> {
        // Another part of the program may have installed one already, which will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT.min(timeout))
            .read_timeout(timeout)
            .user_agent(concat!("fathom/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| chain(&e))?;
        let port = url.port_or_known_default();
        let is_here = matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
        let pid = port.filter(|_| is_here).and_then(listener);
        let mut target = Target {
            name,
            url,
            model: String::new(),
            weights: None,
            api: Api::Chat,
            software: None,
            context: None,
            pid,
            client,
            key,
            timeout,
        };
        target.find(model).await.map_err(|problem| format!("{}: {problem}", target.url))?;
        target.probe().await.map_err(|problem| format!("{}: {problem}", target.url))?;
        target.software = target.about().await;
        Ok(target)
    }

    /// Somewhere below its address.
    pub(super) fn at(&self, path: &str) -> String {
        format!("{}/{path}", self.url.as_str().trim_end_matches('/'))
    }

    /// A request with the key, if there is one.
    pub(super) fn with_key(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.key {
            Some(key) => request.header(AUTHORIZATION, format!("Bearer {key}")),
            None => request,
        }
    }

    /// A request for an answer.
    pub(super) fn post(&self, body: &Value) -> RequestBuilder {
        let path = match self.api {
            Api::Chat => "chat/completions",
            Api::Completions => "completions",
        };
        let request = self.client.post(self.at(path)).header(CONTENT_TYPE, "application/json").body(body.to_string());
        self.with_key(request)
    }

    async fn find(&mut self, model: Option<String>) -> Result<(), String> {
        let request = self.with_key(self.client.get(self.at("models"))).timeout(self.timeout);
        let response = request.send().await.map_err(|e| said(&e))?;
        let status = response.status();
        let body = read(response).await?;
        if let (false, Some(model)) = (status.is_success(), &model) {
            self.model = model.clone();
            return Ok(());
        }
        let json: Value = serde_json::from_str(&body).unwrap_or_default();
        if !status.is_success() {
            return Err(refused(status, &body));
        }
        let no_server = || format!("is no OpenAI-compatible server: it answers {} for its models", short(&body));
        let listed = json.get("data").and_then(Value::as_array).ok_or_else(no_server)?;
        let id = |card: &Value| card.get("id").and_then(Value::as_str).map(str::to_owned);
        let card = match &model {
            Some(model) => listed.iter().find(|card| id(card).as_ref() == Some(model)),
            None => listed.first(),
        };
        let found = card.and_then(id).or(model);
        self.model = found.ok_or("serves no model; name one with --model-name")?;
        if self.model.len() > LONGEST_NAME || self.model.chars().any(char::is_control) {
            return Err(format!("serves a model whose name is none: {}", short(&self.model)));
        }
        let limit =
            |card: &Value| card.get("max_model_len").or_else(|| card.pointer("/meta/n_ctx")).and_then(Value::as_u64);
        self.context = card.and_then(limit);
        Ok(())
    }

    /// Asks for one token.
    async fn probe(&mut self) -> Result<(), String> {
        for api in [Api::Chat, Api::Completions] {
            self.api = api;
            let mut body = json!({"model": self.model, "max_tokens": 1, "temperature": 0});
            match api {
                Api::Chat => body["messages"] = json!([{"role": "user", "content": "Hello."}]),
                Api::Completions => body["prompt"] = "Hello.".into(),
            }
            let response = self.post(&body).timeout(self.timeout).send().await.map_err(|e| said(&e))?;
            let status = response.status();
            let text = read(response).await?;
            if status.is_success() {
                let json: Value = serde_json::from_str(&text).unwrap_or_default();
                return match json.get("choices").and_then(Value::as_array) {
                    Some(choices) if !choices.is_empty() => Ok(()),
                    _ => Err(format!("is no OpenAI-compatible server: it answers {} to a question", short(&text))),
                };
            }
            let lacks = matches!(status.as_u16(), 404 | 405 | 501);
            if !(api == Api::Chat && lacks) {
                return Err(refused(status, &text));
            }
        }
        Ok(())
    }

    /// What the server says it is.
    async fn about(&self) -> Option<String> {
        for (path, field) in ABOUT {
            let mut url = self.url.clone();
            url.set_path(self.url.path().trim_end_matches("/v1"));
            let url = format!("{}/{path}", url.as_str().trim_end_matches('/'));
            let request = self.with_key(self.client.get(url)).timeout(CONNECT.min(self.timeout));
            let response = request.send().await.ok()?;
            if response.status().is_success() {
                let json: Value = serde_json::from_str(&read(response).await.ok()?).unwrap_or_default();
                if let Some(version) = json.pointer(field).and_then(Value::as_str) {
                    return Some(version.chars().filter(|c| !c.is_control()).take(60).collect());
                }
            }
        }
        None
    }
}

/// The whole of an answer.
async fn read(mut response: Response) -> Result<String, String> {
    let mut body = Vec::new();
    while let Some(bytes) = response.chunk().await.map_err(|e| said(&e))? {
        if body.len() + bytes.len() > LONGEST {
            return Err(format!("answers with more than {LONGEST} bytes where a few would do"));
        }
        body.extend_from_slice(&bytes);
    }
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// What a client says, where silence has a word of its own.
pub fn said(e: &reqwest::Error) -> String {
    if e.is_timeout() { "says nothing for as long as --timeout allows".to_owned() } else { chain(e) }
}

/// What an answer that is none says.
pub fn refused(status: StatusCode, body: &str) -> String {
    let json: Value = serde_json::from_str(body).unwrap_or_default();
    let why = complaint(&json).unwrap_or_else(|| short(body));
    let way = match status.as_u16() {
        401 | 403 => "; --key FILE has the key it wants",
        404 => "; is it an OpenAI-compatible server?",
        _ => "",
    };
    format!("answers {status}, {why}{way}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let of = |text: &str| parse(text).map(|(name, url)| (name, url.to_string()));
        for (text, name, url) in [
            ("http://127.0.0.1:8080", "127.0.0.1:8080", "http://127.0.0.1:8080/v1"),
            ("http://h/v1/", "h", "http://h/v1"),
            ("llama.cpp=https://h:1/x?k=v", "llama.cpp", "https://h:1/x/v1"),
            ("http://h/a=b", "h", "http://h/a=b/v1"),
        ] {
            assert_eq!(of(text), Ok((name.to_owned(), url.to_owned())));
        }
        for text in ["", "h:8080", "ftp://h", "x=", "=http://h", "http://u@h", "http://u:p@h", "file:///etc/passwd"] {
            assert!(of(text).is_err(), "{text}");
        }
    }
}
