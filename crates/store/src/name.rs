//! Names: of objects, of snapshots, of chain keys, all written in hex.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// The name of an object: the hash of its plaintext.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Name(pub(crate) [u8; 32]);

/// The identity of a snapshot: the first half of the hash of its manifest, in hex 32 characters long.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub(crate) [u8; 16]);

/// A keyed hash of a subject and tokens. Without the namespace's secret it says nothing about them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Chain(pub(crate) [u8; 32]);

fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

fn read_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? * 16 + digit(pair[1])?;
    }
    Some(bytes)
}

impl Name {
    pub(crate) fn from_hex(text: &str) -> Option<Name> {
        read_hex(text).map(Name)
    }
}

impl Id {
    pub(crate) fn from_hex(text: &str) -> Option<Id> {
        read_hex(text).map(Id)
    }
}

/// The 64 hex digits of a key file, in either case.
pub(crate) fn key_from_hex(text: &str) -> Option<[u8; 32]> {
    read_hex(&text.to_ascii_lowercase())
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0[..4], f)
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0[..4], f)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl FromStr for Id {
    type Err = Error;

    fn from_str(text: &str) -> Result<Id, Error> {
        let problem = || format!("{text:?} is no identity of a snapshot: those have 32 digits of 0-9 and a-f");
        Id::from_hex(text).ok_or_else(|| Error::Request { problem: problem() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_there_and_back() {
        let id = Id(std::array::from_fn(|i| (i * 17) as u8));
        assert_eq!(id.to_string(), "00112233445566778899aabbccddeeff");
        assert_eq!(id.to_string().parse::<Id>().unwrap(), id);
        for wrong in ["", "0011", "00112233445566778899aabbccddeefg", "00112233445566778899AABBCCDDEEFF"] {
            assert!(wrong.parse::<Id>().unwrap_err().to_string().contains("32 digits"), "{wrong}");
        }
    }
}
