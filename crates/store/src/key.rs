//! The key of an encrypted store, and what is derived from it.

use std::fmt;
use std::fs;
use std::path::Path;

use crate::Error;
use crate::name::{self, Name};

/// The largest key file that is read, in bytes: 64 hex digits and some white space.
const MAX_FILE: u64 = 256;

/// 32 secret bytes that encrypt a store.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl Key {
    /// A key from its bytes.
    pub fn new(bytes: [u8; 32]) -> Key {
        Key(bytes)
    }

    /// Reads a key file: 32 bytes as they are, or 64 hex digits and white space.
    ///
    /// # Errors
    /// [`Error::Key`] where the file cannot be read or has something else in it.
    pub fn read(path: &Path) -> Result<Key, Error> {
        let wrong = |problem: String| Error::Key { place: path.display().to_string(), problem };
        let length = fs::metadata(path).map_err(|e| wrong(format!("cannot read the key file: {e}")))?.len();
        if length > MAX_FILE {
            return Err(wrong(format!("is no key file: it has {length} bytes")));
        }
        let bytes = fs::read(path).map_err(|e| wrong(format!("cannot read the key file: {e}")))?;
        if let Ok(bytes) = <[u8; 32]>::try_from(bytes.as_slice()) {
            return Ok(Key(bytes));
        }
        let text = std::str::from_utf8(&bytes).ok().map(str::trim);
        text.and_then(name::key_from_hex).map(Key).ok_or_else(|| {
            wrong("is no key file: it needs 32 bytes, or 64 hex digits (`openssl rand -hex 32` makes them)".into())
        })
    }

    /// The key that files are encrypted with.
    pub(crate) fn cipher(&self) -> [u8; 32] {
        blake3::derive_key("fathom store 1: encryption of files", &self.0)
    }

    /// The key of a namespace's names, so that equal bytes show neither in names nor across namespaces.
    fn names(&self, secret: &[u8; 32]) -> [u8; 32] {
        let key = blake3::derive_key("fathom store 1: names of objects", &self.0);
        *blake3::keyed_hash(&key, secret).as_bytes()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(secret)")
    }
}

/// How the files of a namespace get their names: BLAKE3 of the plaintext, keyed where the store is encrypted.
#[derive(Clone)]
pub(crate) struct Namer(Option<[u8; 32]>);

impl Namer {
    pub(crate) fn new(key: Option<&Key>, secret: &[u8; 32]) -> Namer {
        Namer(key.map(|key| key.names(secret)))
    }

    /// The BLAKE3 of the plaintext that a name stands for, if the name tells.
    pub(crate) fn hash(&self, name: &Name) -> Option<[u8; 32]> {
        self.0.is_none().then_some(name.0)
    }

    /// The name of some plaintext, of which `known` is the BLAKE3 if it is known already.
    pub(crate) fn name(&self, plain: &[u8], known: Option<[u8; 32]>) -> Name {
        Name(match (&self.0, known) {
            (Some(key), _) => *blake3::keyed_hash(key, plain).as_bytes(),
            (None, Some(hash)) => hash,
            (None, None) => *blake3::hash(plain).as_bytes(),
        })
    }
}

/// Random bytes of the system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| Error::Access {
        action: "take random bytes from",
        place: "the system".into(),
        cause: Box::new(e),
    })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, [7; 32]).unwrap();
        let raw = Key::read(&path).unwrap();
        fs::write(&path, format!("{}\n", "07".repeat(32))).unwrap();
        assert_eq!(Key::read(&path).unwrap().0, raw.0);
        for wrong in [&b""[..], b"0707", &[7; 33], &[b'0'; 300]] {
            fs::write(&path, wrong).unwrap();
            assert!(Key::read(&path).unwrap_err().to_string().contains("key file"));
        }
        assert!(Key::read(&folder.path().join("none")).unwrap_err().to_string().contains("none"));
        assert_eq!(format!("{raw:?}"), "Key(secret)");
    }
}
