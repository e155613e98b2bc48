//! One snapshot in one file, to keep or to carry to another store.

use std::io::{self, Read, Write};

use bytes::Bytes;

use crate::chain::Subject;
use crate::cursor::{Cursor, put_text};
use crate::manifest::MAX_NAME;
use crate::namespace::Namespace;
use crate::save::{NewSnapshot, Source};
use crate::{Error, Id, Saved, tokens};

const MAGIC: &[u8; 8] = b"fathomex";
const VERSION: u16 = 1;
/// The most bytes of the head beside the tokens.
const HEAD: u64 = 64 << 10;

/// What an exported file may hold: sizes are checked before there is memory for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportLimits {
    /// Tokens.
    pub tokens: usize,
    /// Bytes of the tail.
    pub tail: u64,
    /// Bytes of a page.
    pub page: u64,
}

impl Default for ImportLimits {
    /// What no model exceeds.
    fn default() -> ImportLimits {
        ImportLimits { tokens: 64 << 20, tail: 16 << 30, page: 16 << 30 }
    }
}

/// What an exported file says that it holds.
#[derive(Debug, Clone, Copy)]
pub struct Imported<'a> {
    /// What the state belongs to.
    pub subject: &'a Subject,
    /// The session's name when it was exported.
    pub name: Option<&'a str>,
    /// What the state has seen.
    pub tokens: &'a [u32],
}

impl Namespace {
    /// Writes a snapshot as one file with everything in it, checksummed. It is neither compressed nor encrypted, even
    /// if the store is.
    ///
    /// # Errors
    /// As [`Namespace::load`], and [`Error::Stream`].
    pub fn export(&self, id: &Id, to: &mut impl Write) -> Result<Id, Error> {
        let loaded = self.load(id)?;
        let mut head = Vec::new();
        loaded.snapshot.subject.encode(&mut head);
        head.push(loaded.snapshot.name.is_some().into());
        put_text(&mut head, loaded.snapshot.name.as_deref().unwrap_or(""));
        head.extend((loaded.tokens.len() as u64).to_le_bytes());
        head.extend(tokens::encode(&loaded.tokens));
        let mut out = Hashing { stream: to, hasher: blake3::Hasher::new() };
        out.put(MAGIC)?;
        out.put(&VERSION.to_le_bytes())?;
        out.put(&[0; 6])?;
        out.put_part(&head)?;
        out.put_part(&loaded.tail)?;
        for page in loaded.pages {
            out.put_part(&page?)?;
        }
        let hash = *out.hasher.finalize().as_bytes();
        out.put(&hash)?;
        out.stream.flush().map_err(|cause| Error::Stream { action: "write", cause })?;
        Ok(*id)
    }

    /// Reads what [`Namespace::export`] wrote and saves it, under its old name and a new identity. Nothing is listed
    /// before the whole file is verified.
    ///
    /// # Errors
    /// [`Error::Import`] for a file that is not whole, [`Error::Newer`], [`Error::Stream`], and as
    /// [`Namespace::save`].
    pub fn import(&self, from: &mut impl Read) -> Result<Saved, Error> {
        self.import_as(from, ImportLimits::default(), |own| Ok(own.name.map(str::to_owned)))
    }

    /// The same within limits and under another name, or none: `name` is told what the file holds before its state is read, and
    /// may refuse it, saying why.
    ///
    /// # Errors
    /// As [`Namespace::import`].
    pub fn import_as(
        &self,
        from: &mut impl Read,
        limits: ImportLimits,
        name: impl FnOnce(Imported<'_>) -> Result<Option<String>, String>,
    ) -> Result<Saved, Error> {
        let mut stream = Hashing { stream: from, hasher: blake3::Hasher::new() };
        let start: [u8; 16] = stream.array()?;
        if &start[..8] != MAGIC {
            return Err(wrong("it does not start as one does"));
        }
        let version = u16::from_le_bytes([start[8], start[9]]);
        if version != VERSION {
            return Err(Error::Newer { place: "the exported file".into(), version, known: VERSION });
        }
        let import = |problem| Error::Import { problem };
        let head = stream.part(HEAD + 4 * limits.tokens as u64)?;
        let (subject, name_there, all) = read_head(&head).map_err(import)?;
        let name = name(Imported { subject: &subject, name: name_there.as_deref(), tokens: &all }).map_err(import)?;
        let tail = stream.part(limits.tail)?;
        let mut source = Parts { stream, next: 0, pages: all.len() / subject.page, most: limits.page };
        let new = NewSnapshot { tokens: &all, name: name.as_deref(), ..NewSnapshot::default() };
        self.save_from(&subject, &new, &mut source, Bytes::from(tail))
    }
}

fn wrong(problem: &str) -> Error {
    Error::Import { problem: problem.into() }
}

fn read_head(bytes: &[u8]) -> Result<(Subject, Option<String>, Vec<u32>), String> {
    let mut cursor = Cursor(bytes);
    let subject = Subject::decode(&mut cursor)?;
    let named = cursor.flag("named")?;
    let name = Some(cursor.text("the name")?).filter(|_| named);
    if name.as_ref().is_some_and(|name| name.len() > MAX_NAME) {
        return Err("the name is too long".into());
    }
    let count = cursor.u64("the number of tokens")?;
    let count = usize::try_from(count).ok().filter(|&count| count > 0).ok_or("it has no tokens")?;
    Ok((subject, name, tokens::decode(cursor.0, count)?))
}

/// A stream of which everything is hashed.
struct Hashing<S> {
    stream: S,
    hasher: blake3::Hasher,
}

impl<W: Write> Hashing<&mut W> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.hasher.update(bytes);
        self.stream.write_all(bytes).map_err(|cause| Error::Stream { action: "write", cause })
    }

    fn put_part(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.put(&(bytes.len() as u64).to_le_bytes())?;
        self.put(bytes)
    }
}

impl<R: Read> Hashing<&mut R> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).map_err(|cause| match cause.kind() {
            io::ErrorKind::UnexpectedEof => wrong("it ends too early"),
            _ => Error::Stream { action: "read", cause },
        })?;
        self.hasher.update(&bytes);
        Ok(bytes)
    }

    /// Memory grows with what is there, not with what is claimed.
    fn part(&mut self, max: u64) -> Result<Vec<u8>, Error> {
        let length = u64::from_le_bytes(self.array()?);
        if length > max {
            return Err(Error::Import { problem: format!("it claims a part of {length} bytes") });
        }
        let mut bytes = Vec::new();
        let read = (&mut self.stream).take(length).read_to_end(&mut bytes);
        read.map_err(|cause| Error::Stream { action: "read", cause })?;
        if bytes.len() as u64 != length {
            return Err(wrong("it ends too early"));
        }
        self.hasher.update(&bytes);
        Ok(bytes)
    }
}

/// The pages of an exported file, in order.
struct Parts<'a, R> {
    stream: Hashing<&'a mut R>,
    next: usize,
    pages: usize,
    /// Bytes of one.
    most: u64,
}

impl<R: Read> Source for Parts<'_, R> {
    fn page(&mut self, page: usize) -> Result<Vec<u8>, Error> {
        if page < self.next {
            return Err(wrong("another process deleted a page meanwhile"));
        }
        while self.next < page {
            self.stream.part(self.most)?;
            self.next += 1;
        }
        self.next += 1;
        self.stream.part(self.most)
    }

    fn finish(&mut self) -> Result<(), Error> {
        while self.next < self.pages {
            self.stream.part(self.most)?;
            self.next += 1;
        }
        let hash = *self.stream.hasher.finalize().as_bytes();
        if self.stream.array()? != hash {
            return Err(wrong("its checksum is wrong"));
        }
        let mut more = [0];
        match self.stream.stream.read(&mut more) {
            Ok(0) => Ok(()),
            Ok(_) => Err(wrong("it goes on after its end")),
            Err(cause) => Err(Error::Stream { action: "read", cause }),
        }
    }
}
