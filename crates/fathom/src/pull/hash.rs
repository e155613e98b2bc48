//! The hashes by which the hub knows a file's content.

use std::fmt;
use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Bytes read at once.
const STEP: usize = 1 << 20;

/// What a file's content should come to, as `sha256:…` or `git:…` in text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Hash {
    /// SHA-256, which the hub keeps for large files.
    Sha256(String),
    /// What Git calls the content: SHA-1 with a prefix. The hub has nothing else for small files.
    Git(String),
}

impl Hash {
    /// A hash by its hexadecimal digits: 64 for SHA-256, 40 for Git's.
    pub fn parse(hex: &str) -> Option<Hash> {
        let hex = hex.strip_prefix("sha256:").unwrap_or(hex).to_ascii_lowercase();
        match (hex.len(), hex.bytes().all(|b| b.is_ascii_hexdigit())) {
            (64, true) => Some(Hash::Sha256(hex)),
            (40, true) => Some(Hash::Git(hex)),
            _ => None,
        }
    }

    /// The digits.
    pub fn hex(&self) -> &str {
        let (Hash::Sha256(hex) | Hash::Git(hex)) = self;
        hex
    }

    /// The same kind of hash of `size` bytes from `from`; `progress` is told bytes as they are read.
    ///
    /// # Errors
    /// What the system says.
    pub fn of(&self, mut from: impl Read, size: u64, mut progress: impl FnMut(u64)) -> io::Result<Hash> {
        let mut buffer = vec![0; STEP];
        let mut each = |take: &mut dyn FnMut(&[u8])| loop {
            match from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    take(&buffer[..n]);
                    progress(n as u64);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        };
        Ok(match self {
            Hash::Sha256(_) => {
                let mut hasher = Sha256::new();
                each(&mut |bytes| hasher.update(bytes))?;
                Hash::Sha256(digits(&hasher.finalize()))
            }
            Hash::Git(_) => {
                let mut hasher = Sha1::new();
                hasher.update(format!("blob {size}\0"));
                each(&mut |bytes| hasher.update(bytes))?;
                Hash::Git(digits(&hasher.finalize()))
            }
        })
    }
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if let Hash::Sha256(_) = self { "sha256" } else { "git" };
        write!(f, "{kind}:{}", self.hex())
    }
}

impl From<Hash> for String {
    fn from(hash: Hash) -> String {
        hash.to_string()
    }
}

impl TryFrom<String> for Hash {
    type Error = String;

    fn try_from(text: String) -> Result<Hash, String> {
        let hex = text.split_once(':').map_or(text.as_str(), |(_, hex)| hex);
        Hash::parse(hex).ok_or_else(|| format!("{text:?} is no hash"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_hub() {
        let empty = Hash::parse(&"0".repeat(64)).unwrap().of(&b""[..], 0, |_| {}).unwrap();
        assert_eq!(empty.hex(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        // `printf 'hello\n' | git hash-object --stdin`
        let git = Hash::parse(&"0".repeat(40)).unwrap().of(&b"hello\n"[..], 6, |_| {}).unwrap();
        assert_eq!(git.to_string(), "git:ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(Hash::try_from(git.to_string()), Ok(git));
        for wrong in ["", "abc", &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(Hash::parse(wrong), None, "{wrong}");
        }
    }
}
