//! Where the endpoint, the token and the cache are: in the variables and folders of `huggingface_hub`.
//!
//! The crate `hf-hub` knows them too, but reads neither `HF_TOKEN` nor `HF_HUB_CACHE`, panics where there is no home folder,
//! and brings a second HTTP client to do so.

use std::env;
use std::path::PathBuf;

const HUB: &str = "https://huggingface.co";

/// The hub's address: `HF_ENDPOINT`, or Hugging Face's own.
pub fn endpoint() -> String {
    text("HF_ENDPOINT").unwrap_or_else(|| HUB.to_owned())
}

/// The token to show the hub: `HF_TOKEN`, or what `hf auth login` has left in a file.
///
/// # Errors
/// It has what no token has, such as a line's end in the middle.
pub fn token() -> Result<Option<String>, &'static str> {
    let file = || {
        let path = folder("HF_TOKEN_PATH").or_else(|| Some(home()?.join("token")))?;
        std::fs::read_to_string(path).ok()
    };
    let found = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")).or_else(file).unwrap_or_default();
    let found = found.trim();
    match found.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok((!found.is_empty()).then(|| found.to_owned())),
        false => Err(
            "the token in HF_TOKEN, or where `hf auth login` left it, has spaces or other characters that no token has",
        ),
    }
}

/// Where other programs keep the contents of a repository's files, each by its hash.
pub fn cached_blobs(repo: &str) -> Option<PathBuf> {
    let cache = folder("HF_HUB_CACHE").or_else(|| Some(home()?.join("hub")))?;
    Some(cache.join(format!("models--{}", repo.replace('/', "--"))).join("blobs"))
}

fn home() -> Option<PathBuf> {
    let cache = || folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
    folder("HF_HOME").or_else(|| Some(cache()?.join("huggingface")))
}

fn text(name: &str) -> Option<String> {
    env::var(name).ok().filter(|text| !text.trim().is_empty())
}

fn folder(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|text| !text.is_empty()).map(PathBuf::from)
}
