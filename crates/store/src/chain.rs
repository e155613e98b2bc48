//! Chain keys: keyed hashes of a subject and all tokens up to a position.

use crate::cursor::{Cursor, put_text};
use crate::name::Chain;
use crate::{Error, Id};

/// The most positions that a page may have.
const MAX_PAGE: usize = 1 << 24;
/// The longest profile name, in bytes.
const MAX_PROFILE: usize = 1024;

/// What state belongs to: state of one subject is never found for another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject {
    /// The model's fingerprint.
    pub model: [u8; 32],
    /// The numeric profile.
    pub profile: String,
    /// Positions in a page.
    pub page: usize,
}

impl Subject {
    /// The model's fingerprint, 64 hex digits.
    pub fn fingerprint(&self) -> String {
        blake3::Hash::from_bytes(self.model).to_string()
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let problem = if self.page == 0 || self.page > MAX_PAGE {
            format!("a page of {} positions: there are at least 1 and at most {MAX_PAGE}", self.page)
        } else if self.profile.len() > MAX_PROFILE {
            format!("the profile's name has {} bytes, at most {MAX_PROFILE} are allowed", self.profile.len())
        } else {
            return Ok(());
        };
        Err(Error::Request { problem })
    }

    /// Bytes of files that a snapshot of so many tokens takes, neither compressed nor encrypted, nor named: those that it shares
    /// with all that begin with the same tokens, and its own. Tokens are below `vocab`.
    pub fn file_bytes(&self, tokens: usize, page_bytes: u64, tail: u64, vocab: usize) -> (u64, u64) {
        let header = crate::sealed::HEADER as u64;
        // As it is encoded, the last token is the longest.
        let token = crate::tokens::encode(&[vocab.saturating_sub(1) as u32]).len() as u64;
        let block = crate::tokens::block_len(self.page);
        let (pages, blocks) = ((tokens / self.page) as u64, (tokens / block) as u64);
        let shared = pages * (header + page_bytes) + blocks * (header + block as u64 * token);
        let open = (tokens % block) as u64 * token;
        let fixed = 38 + self.profile.len() as u64 + crate::manifest::FIXED;
        let manifest = header + fixed + 72 * pages + 40 * (blocks + 1) + open;
        (shared, header + tail + manifest)
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.model);
        out.extend((self.page as u32).to_le_bytes());
        put_text(out, &self.profile);
    }

    pub(crate) fn decode(cursor: &mut Cursor<'_>) -> Result<Subject, String> {
        let model = cursor.array("the model's fingerprint")?;
        let page = cursor.u32("the page's length")? as usize;
        let subject = Subject { model, page, profile: cursor.text("the profile")? };
        subject.check().map_err(|e| e.to_string())?;
        Ok(subject)
    }
}

/// The secret of a namespace, which keys its chains.
#[derive(Clone)]
pub(crate) struct Secret(pub(crate) [u8; 32]);

impl Secret {
    fn hash(&self, what: u8, chain: &[u8], tokens: &[u32]) -> Chain {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&[what]);
        hasher.update(chain);
        let mut bytes = [0; 1024];
        for some in tokens.chunks(bytes.len() / 4) {
            for (place, token) in bytes.chunks_exact_mut(4).zip(some) {
                place.copy_from_slice(&token.to_le_bytes());
            }
            hasher.update(&bytes[..4 * some.len()]);
        }
        Chain(*hasher.finalize().as_bytes())
    }

    /// The key before the first page.
    pub(crate) fn root(&self, subject: &Subject) -> Chain {
        let mut bytes = Vec::new();
        subject.encode(&mut bytes);
        self.hash(b's', &bytes, &[])
    }

    /// The keys at all page borders of these tokens: before the first page, after the first, and so on.
    pub(crate) fn chain(&self, subject: &Subject, tokens: &[u32]) -> Vec<Chain> {
        let mut keys = vec![self.root(subject)];
        for page in tokens.chunks_exact(subject.page) {
            keys.push(self.hash(b'p', &keys[keys.len() - 1].0, page));
        }
        keys
    }

    /// The key of a snapshot: of the last page border, and the tokens after it.
    pub(crate) fn tail(&self, full: &Chain, rest: &[u32]) -> Chain {
        self.hash(b't', &full.0, rest)
    }
}

/// A snapshot among those that share tokens with what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match {
    /// The snapshot.
    pub id: Id,
    /// Its position, in tokens: all of them are the first of those asked for.
    pub position: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_depend_on_everything_before() {
        let secret = Secret([1; 32]);
        let subject = Subject { model: [2; 32], profile: "native-2".into(), page: 3 };
        let tokens: Vec<u32> = (0..7).collect();
        let keys = secret.chain(&subject, &tokens);
        assert_eq!(keys.len(), 3);
        assert_eq!(keys, secret.chain(&subject, &tokens[..6]));
        assert_eq!(keys[..2], secret.chain(&subject, &[0, 1, 2])[..]);
        let mut other = tokens.clone();
        other[2] = 9;
        let differ = |a: &[Chain], b: &[Chain]| a.iter().zip(b).map(|(a, b)| a != b).collect::<Vec<_>>();
        assert_eq!(differ(&keys, &secret.chain(&subject, &other)), [false, true, true]);
        assert_eq!(differ(&keys, &Secret([3; 32]).chain(&subject, &tokens)), [true; 3]);
        for subject in [
            Subject { model: [3; 32], ..subject.clone() },
            Subject { profile: "exact-2".into(), ..subject.clone() },
            Subject { page: 4, ..subject.clone() },
        ] {
            assert_ne!(keys[0], secret.root(&subject));
        }
        assert_ne!(secret.tail(&keys[2], &[6]), secret.tail(&keys[2], &[7]));
        assert_ne!(secret.tail(&keys[1], &tokens[3..6]), keys[2]);
    }
}
