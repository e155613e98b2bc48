//! Who may ask, and whose sessions are whose.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use axum::http::{HeaderMap, StatusCode, header};
use fathom_engine::Owner;

use super::ApiError;
use crate::Error;

/// API keys and the namespaces that they open; without any, everybody is the same.
#[derive(Default)]
pub struct Keys {
    /// By the BLAKE3 of the key.
    owners: RwLock<Vec<(blake3::Hash, Owner)>>,
    /// Where they are from.
    path: Option<PathBuf>,
}

impl Keys {
    /// Reads a file of lines `NAMESPACE KEY`. A key may be given by its hash, as `blake3:` and 64 hex digits. Empty lines and
    /// those that begin with `#` are passed over.
    ///
    /// # Errors
    /// [`Error::Keys`], with the line.
    pub fn read(path: &Path) -> Result<Keys, Error> {
        Ok(Keys { owners: RwLock::new(owners(path)?), path: Some(path.to_owned()) })
    }

    /// Reads the file again, if there is one, and says how many keys it has. Requests that run go on.
    ///
    /// # Errors
    /// As [`Keys::read`]; the keys stay as they were.
    pub fn reload(&self) -> Result<usize, Error> {
        let Some(path) = &self.path else { return Ok(0) };
        let read = owners(path)?;
        let n = read.len();
        *self.owners.write().unwrap_or_else(PoisonError::into_inner) = read;
        Ok(n)
    }

    fn all(&self) -> RwLockReadGuard<'_, Vec<(blake3::Hash, Owner)>> {
        self.owners.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there are any.
    pub fn are_asked_for(&self) -> bool {
        self.path.is_some()
    }

    /// Who asks, by `Authorization: Bearer` or `x-api-key`.
    ///
    /// # Errors
    /// 401 without a key, or with one that is not in the file.
    pub(super) fn owner(&self, headers: &HeaderMap) -> Result<Owner, ApiError> {
        if !self.are_asked_for() {
            return Ok(Owner::default());
        }
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let bearer = bearer.and_then(|value| value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("bearer ")));
        let key = bearer.or_else(|| headers.get("x-api-key")?.to_str().ok()).map(str::trim);
        // All are compared, each in a time that does not depend on where they differ.
        let hash = blake3::hash(key.unwrap_or_default().as_bytes());
        let known =
            |found, (one, owner): &(blake3::Hash, Owner)| if *one == hash { Some(owner.clone()) } else { found };
        let found = self.all().iter().fold(None, known);
        found.filter(|_| key.is_some()).ok_or_else(|| {
            let message = "This server asks for an API key: Authorization: Bearer KEY.";
            ApiError::other(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
        })
    }
}

fn owners(path: &Path) -> Result<Vec<(blake3::Hash, Owner)>, Error> {
    let wrong = |problem: String| Error::Keys { path: path.to_owned(), problem };
    let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    let mut owners = HashMap::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |problem: &str| wrong(format!("line {}: {problem}", i + 1));
        let mut words = line.split_whitespace();
        let (Some(namespace), Some(key), None) = (words.next(), words.next(), words.next()) else {
            return Err(wrong("a line is NAMESPACE KEY"));
        };
        if !is_namespace(namespace) {
            return Err(wrong("a namespace is 1 to 64 of a-z, 0-9, _ and -"));
        }
        let hash = match key.strip_prefix("blake3:") {
            Some(hex) => blake3::Hash::from_hex(hex).map_err(|_| wrong("after blake3: come 64 hex digits"))?,
            None => blake3::hash(key.as_bytes()),
        };
        if owners.insert(hash, Owner(namespace.into())).is_some_and(|other| *other.0 != *namespace) {
            return Err(wrong("another namespace has the same key"));
        }
    }
    match owners.is_empty() {
        true => Err(wrong("there is no key in it".into())),
        false => Ok(owners.into_iter().collect()),
    }
}

fn is_namespace(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-');
    (1..=64).contains(&name.len()) && name.chars().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Keys, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Keys::read(file.path()).map_err(|e| e.to_string())
    }

    #[test]
    fn keys_open_namespaces() {
        let hash = blake3::hash(b"other key").to_hex();
        let keys = read(&format!("# who\n\na  secret\nb blake3:{hash}\n")).unwrap();
        let owner = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            keys.owner(&headers).map(|owner| owner.0.to_string()).map_err(|e| e.status)
        };
        assert_eq!(owner("authorization", "Bearer secret"), Ok("a".into()));
        assert_eq!(owner("x-api-key", "secret"), Ok("a".into()));
        assert_eq!(owner("authorization", "Basic secret"), Err(StatusCode::UNAUTHORIZED));
        assert_eq!(owner("authorization", "Bearer secre"), Err(StatusCode::UNAUTHORIZED));
        assert_eq!(owner("authorization", &format!("Bearer blake3:{hash}")), Err(StatusCode::UNAUTHORIZED));
        assert!(keys.owner(&HeaderMap::new()).is_err());
        assert_eq!(Keys::default().owner(&HeaderMap::new()).unwrap(), Owner::default());
    }

    #[test]
    fn wrong_lines_are_named() {
        for (text, word) in [
            ("", "no key"),
            ("a", "line 1"),
            ("\na b c", "line 2"),
            ("A key", "namespace"),
            ("a blake3:12", "hex"),
            ("a key\nb key", "another namespace"),
        ] {
            let message = read(text).err().unwrap();
            assert!(message.contains(word), "{message}");
        }
    }
}
