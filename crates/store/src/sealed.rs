//! The envelope of every file of a store: what it is, how it is packed, and checksums of all of it.
//!
//! See `docs/snapshot-format.md` for the bytes.

use std::io::Read;

use bytes::Bytes;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};

use crate::Error;
use crate::cursor::Cursor;
use crate::key::{self, Key};

/// The format of all files.
pub(crate) const VERSION: u16 = 1;
/// Bytes before the body.
pub(crate) const HEADER: usize = 88;
const MAGIC: &[u8; 8] = b"fathomst";
const ZSTD: u8 = 1;
const ENCRYPTED: u8 = 2;
/// Bytes that encryption adds to a body.
const TAG: usize = 16;
/// The largest window that a zstd body may ask for, as a power of two: 128 MiB.
const WINDOW: u32 = 27;

/// What a file is. One kind is never taken for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Object = 1,
    Manifest = 2,
    Mark = 3,
    Secret = 4,
    Count = 5,
}

/// Why a file cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Problem {
    /// Its bytes are not those that were written.
    Damaged(String),
    /// A version that this program does not know.
    Newer(u16),
    /// It is encrypted and we have no key, or another one, or it is not and we have one.
    Key(&'static str),
}

impl Problem {
    pub(crate) fn at(self, place: &str) -> Error {
        let place = place.to_owned();
        match self {
            Problem::Damaged(problem) => Error::Damaged { place, problem },
            Problem::Newer(version) => Error::Newer { place, version, known: VERSION },
            Problem::Key(problem) => Error::Key { place, problem: problem.into() },
        }
    }
}

/// A file's plaintext.
pub(crate) struct Opened {
    pub(crate) plain: Bytes,
    /// Its BLAKE3, where the checksum was just that.
    pub(crate) hash: Option<[u8; 32]>,
}

/// Packs and unpacks files.
pub(crate) struct Sealer {
    level: Option<i32>,
    cipher: Option<XChaCha20Poly1305>,
}

impl Sealer {
    pub(crate) fn new(level: Option<i32>, key: Option<&Key>) -> Sealer {
        Sealer { level, cipher: key.map(|key| XChaCha20Poly1305::new(&key.cipher().into())) }
    }

    /// Header and body.
    pub(crate) fn seal(&self, kind: Kind, plain: Bytes) -> Result<[Bytes; 2], Error> {
        self.seal_hashed(kind, plain, None)
    }

    /// Header and body of some plaintext, of which `hash` is the BLAKE3 if it is known already.
    pub(crate) fn seal_hashed(
        &self,
        kind: Kind,
        plain: Bytes,
        mut hash: Option<[u8; 32]>,
    ) -> Result<[Bytes; 2], Error> {
        let length = plain.len() as u64;
        let mut flags = 0;
        let mut body = plain;
        if let Some(level) = self.level {
            let packed = zstd::bulk::compress(&body, level).map_err(|cause| Error::Access {
                action: "compress",
                place: "a page".into(),
                cause: Box::new(cause),
            })?;
            if packed.len() < body.len() {
                flags |= ZSTD;
                body = packed.into();
                hash = None;
            }
        }
        let mut nonce = [0; 24];
        if self.cipher.is_some() {
            flags |= ENCRYPTED;
            nonce = key::random()?;
        }
        let mut header = Vec::with_capacity(HEADER);
        header.extend(MAGIC);
        header.extend(VERSION.to_le_bytes());
        header.extend([kind as u8, flags, 0, 0, 0, 0]);
        header.extend(length.to_le_bytes());
        header.extend(nonce);
        if let Some(cipher) = &self.cipher {
            let payload = Payload { msg: &body, aad: &header };
            let secret = cipher.encrypt(&XNonce::from(nonce), payload).map_err(|_| Error::Request {
                problem: format!("{} bytes are too many to encrypt as one page", body.len()),
            })?;
            body = secret.into();
            hash = None;
        }
        header.extend(hash.unwrap_or_else(|| *blake3::hash(&body).as_bytes()));
        let check = blake3::hash(&header);
        header.extend(&check.as_bytes()[..8]);
        Ok([header.into(), body])
    }

    /// The plaintext of a file that has `kind` and at most `max` bytes of it.
    pub(crate) fn open(&self, kind: Kind, file: &Bytes, max: u64) -> Result<Opened, Problem> {
        let header = Header::read(file)?;
        if header.kind != kind as u8 {
            return Err(Problem::Damaged(format!("it is of kind {}, not {}", header.kind, kind as u8)));
        }
        if header.length > max {
            return Err(Problem::Damaged(format!("it claims {} bytes, at most {max} are possible", header.length)));
        }
        let body = file.slice(HEADER..);
        let hash = *blake3::hash(&body).as_bytes();
        if hash != header.hash {
            return Err(Problem::Damaged("the checksum of its body is wrong".into()));
        }
        let (mut plain, mut packed) = (body, false);
        match (&self.cipher, header.flags & ENCRYPTED != 0) {
            (None, false) => {}
            (Some(cipher), true) => {
                let payload = Payload { msg: &plain, aad: &file[..48] };
                let open = cipher.decrypt(&XNonce::from(header.nonce), payload);
                plain = open
                    .map_err(|_| Problem::Key("it was written with another key; give the key file of then"))?
                    .into();
                packed = true;
            }
            (None, true) => return Err(Problem::Key("it is encrypted; give the key file that it was written with")),
            (Some(_), false) => return Err(Problem::Key("it is not encrypted; open the store without a key")),
        }
        if header.flags & ZSTD != 0 {
            plain = unpack(&plain, header.length)?;
            packed = true;
        }
        if plain.len() as u64 != header.length {
            return Err(Problem::Damaged(format!("it has {} bytes, not {}", plain.len(), header.length)));
        }
        Ok(Opened { plain, hash: (!packed).then_some(hash) })
    }
}

/// The most bytes that a file with so much plaintext can have.
pub(crate) fn max_file(plain: u64) -> u64 {
    plain.saturating_add((HEADER + TAG) as u64)
}

struct Header {
    kind: u8,
    flags: u8,
    length: u64,
    nonce: [u8; 24],
    hash: [u8; 32],
}

impl Header {
    fn read(file: &[u8]) -> Result<Header, Problem> {
        let damaged = |problem: &str| Problem::Damaged(problem.into());
        let header = file.get(..HEADER).ok_or_else(|| damaged("it is shorter than a header"))?;
        if &header[..8] != MAGIC {
            return Err(damaged("it does not start as a file of a store does"));
        }
        if blake3::hash(&header[..HEADER - 8]).as_bytes()[..8] != header[HEADER - 8..] {
            return Err(damaged("the checksum of its header is wrong"));
        }
        let fields = |cursor: &mut Cursor<'_>| -> Result<(u16, Header), String> {
            let version = cursor.u16("the version")?;
            let (kind, flags) = (cursor.u8("the kind")?, cursor.u8("the flags")?);
            let _reserved = cursor.u32("zeros")?;
            let (length, nonce) = (cursor.u64("the length")?, cursor.array("the nonce")?);
            Ok((version, Header { kind, flags, length, nonce, hash: cursor.array("the checksum")? }))
        };
        let (version, header) = fields(&mut Cursor(&header[8..])).map_err(Problem::Damaged)?;
        if version != VERSION {
            return Err(Problem::Newer(version));
        }
        if header.flags & !(ZSTD | ENCRYPTED) != 0 {
            return Err(damaged("it has unknown flags"));
        }
        Ok(header)
    }
}

/// Decompresses, and stops past `length`. Memory grows with what comes out, not with what was claimed.
fn unpack(body: &[u8], length: u64) -> Result<Bytes, Problem> {
    let wrong = |e: std::io::Error| Problem::Damaged(format!("it cannot be decompressed: {e}"));
    let mut decoder = zstd::stream::read::Decoder::with_buffer(body).map_err(wrong)?;
    decoder.window_log_max(WINDOW).map_err(wrong)?;
    let mut plain = Vec::new();
    decoder.take(length.saturating_add(1)).read_to_end(&mut plain).map_err(wrong)?;
    Ok(plain.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sealers() -> Vec<Sealer> {
        let key = Key::new([5; 32]);
        vec![
            Sealer::new(None, None),
            Sealer::new(Some(1), None),
            Sealer::new(None, Some(&key)),
            Sealer::new(Some(1), Some(&key)),
        ]
    }

    fn file(sealer: &Sealer, plain: &[u8]) -> Bytes {
        sealer.seal(Kind::Object, Bytes::copy_from_slice(plain)).unwrap().concat().into()
    }

    #[test]
    fn there_and_back() {
        let noise: Vec<u8> = (0..1000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for sealer in sealers() {
            for plain in [&b""[..], b"a", &[0; 1000], &noise] {
                let file = file(&sealer, plain);
                assert!(file.len() as u64 <= max_file(plain.len() as u64));
                let opened = sealer.open(Kind::Object, &file, plain.len() as u64).unwrap();
                assert_eq!(opened.plain, plain);
                assert!(opened.hash.is_none_or(|hash| hash == *blake3::hash(plain).as_bytes()));
                assert!(sealer.open(Kind::Manifest, &file, 1000).is_err());
                if !plain.is_empty() {
                    assert!(sealer.open(Kind::Object, &file, plain.len() as u64 - 1).is_err());
                }
            }
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        for sealer in sealers() {
            let file = file(&sealer, &[3; 40]);
            for bit in 0..file.len() * 8 {
                let mut wrong = file.to_vec();
                wrong[bit / 8] ^= 1 << (bit % 8);
                assert!(matches!(sealer.open(Kind::Object, &wrong.into(), 40), Err(Problem::Damaged(_))), "bit {bit}");
            }
            for length in 0..file.len() {
                assert!(sealer.open(Kind::Object, &file.slice(..length), 40).is_err(), "{length}");
            }
        }
    }

    /// A header as a writer of bad intent would make it: with the checksums right.
    fn forge(mut file: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Bytes {
        change(&mut file);
        let hash = blake3::hash(&file[HEADER..]);
        file[48..80].copy_from_slice(hash.as_bytes());
        let check = blake3::hash(&file[..80]);
        file[80..88].copy_from_slice(&check.as_bytes()[..8]);
        file.into()
    }

    #[test]
    fn what_the_checksums_cannot_see() {
        let plain = Sealer::new(None, None);
        let newer = forge(file(&plain, b"abc").to_vec(), |f| f[8] = 9);
        assert_eq!(plain.open(Kind::Object, &newer, 3).err(), Some(Problem::Newer(9)));
        assert!(plain.open(Kind::Object, &forge(file(&plain, b"abc").to_vec(), |f| f[11] = 4), 3).is_err());
        assert!(plain.open(Kind::Object, &forge(file(&plain, b"abc").to_vec(), |f| f[16] = 4), 4).is_err());
        // A kilobyte that decompresses to a gigabyte is stopped past the length it claims.
        let bomb = zstd::bulk::compress(&vec![0; 1 << 24], 1).unwrap();
        assert!(bomb.len() < 4096);
        let bomb = forge([&file(&plain, b"")[..], &bomb].concat(), |f| {
            f[11] = ZSTD;
            f[16] = 100;
        });
        assert!(matches!(plain.open(Kind::Object, &bomb, 100), Err(Problem::Damaged(p)) if p.contains("101 bytes")));
    }

    #[test]
    fn keys() {
        let all = sealers();
        let other = Sealer::new(None, Some(&Key::new([6; 32])));
        let key = |sealer: &Sealer, file: &Bytes| matches!(sealer.open(Kind::Object, file, 3), Err(Problem::Key(_)));
        let (plain, secret) = (file(&all[0], b"abc"), file(&all[2], b"abc"));
        assert!(key(&all[2], &plain) && key(&all[0], &secret) && key(&other, &secret));
        assert_ne!(secret, file(&all[2], b"abc"), "nonces are random");
        assert!(!secret.windows(3).any(|some| some == b"abc"));
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300), forged: bool) {
            let mut bytes = [&file(&Sealer::new(None, None), b"")[..], &bytes].concat();
            if !forged {
                bytes.drain(..HEADER);
            }
            let flags = bytes.last().copied().unwrap_or(0) & 3;
            let file = if bytes.len() >= HEADER { forge(bytes, |f| f[11] = flags) } else { bytes.into() };
            for sealer in sealers() {
                let _ = sealer.open(Kind::Object, &file, 1 << 30);
            }
        }
    }
}
