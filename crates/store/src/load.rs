//! Loading: the tokens and the tail at once, the pages as they are asked for, a few ahead.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use crate::backend::Pending;
use crate::manifest::{Manifest, Object};
use crate::namespace::Namespace;
use crate::space::{Hold, Space};
use crate::store::lock;
use crate::{Error, Id, Snapshot, tokens};

/// Pages that are being read while one is used.
const AHEAD: usize = 8;

/// A snapshot that is being read.
#[derive(Debug)]
pub struct Loaded {
    /// What it is.
    pub snapshot: Snapshot,
    /// The tokens that its state follows.
    pub tokens: Vec<u32>,
    /// Its tail.
    pub tail: Bytes,
    /// Its full pages, in order.
    pub pages: Pages,
    /// Keeps it from being evicted by this process.
    pub hold: Hold,
}

/// Pages, verified one by one. After an error there are no more.
pub struct Pages {
    space: Arc<Space>,
    manifest: Arc<Manifest>,
    next: usize,
    reading: VecDeque<Pending<Result<Bytes, Error>>>,
}

impl Namespace {
    /// Reads a snapshot. Every byte is verified against the name that the manifest gives it. An object that is damaged
    /// is moved away; the snapshot is not found any more, and saving the same state makes the object again.
    ///
    /// # Errors
    /// [`Error::NoSnapshot`], [`Error::Damaged`] and [`Error::Missing`] by name, and [`Error::Access`]; the pages too
    /// give these.
    pub fn load(&self, id: &Id) -> Result<Loaded, Error> {
        self.known(id)?;
        let space = &self.space;
        let hold = space.hold(*id)?;
        let manifest = lock(&space.index).entries.get(id).map(|entry| Arc::clone(&entry.manifest));
        let manifest = manifest.ok_or_else(|| space.no_snapshot(*id))?;
        space.touch(*id);
        let tail = start(space, manifest.tail);
        let tokens = read_tokens(space, &manifest)?;
        let tail = tail.wait()?;
        let snapshot = space.snapshot(*id)?;
        let mut pages = Pages { space: Arc::clone(space), manifest, next: 0, reading: VecDeque::new() };
        pages.read_ahead();
        Ok(Loaded { snapshot, tokens, tail, pages, hold })
    }
}

impl Namespace {
    /// The tail of a snapshot alone, and what keeps it from being evicted by this process.
    ///
    /// # Errors
    /// As [`Namespace::load`].
    pub fn tail(&self, id: &Id) -> Result<(Bytes, Hold), Error> {
        let hold = self.hold(id)?;
        let manifest = lock(&self.space.index).entries.get(id).map(|entry| Arc::clone(&entry.manifest));
        let manifest = manifest.ok_or_else(|| self.space.no_snapshot(*id))?;
        Ok((start(&self.space, manifest.tail).wait()?, hold))
    }
}

fn start(space: &Arc<Space>, object: Object) -> Pending<Result<Bytes, Error>> {
    space.shared.backend.start(Arc::clone(space).fetch(object))
}

/// All tokens of a snapshot.
pub(crate) fn read_tokens(space: &Arc<Space>, manifest: &Manifest) -> Result<Vec<u32>, Error> {
    let mut all = Vec::new();
    for block in 0..manifest.blocks.len() {
        all.extend(read_block(space, manifest, block)?);
    }
    all.extend(manifest.open_tokens().map_err(|problem| forged(space, problem))?.1);
    Ok(all)
}

/// The tokens of one block.
pub(crate) fn read_block(space: &Arc<Space>, manifest: &Manifest, block: usize) -> Result<Vec<u32>, Error> {
    let bytes = start(space, manifest.blocks[block]).wait()?;
    tokens::decode(&bytes, tokens::block_len(manifest.subject.page)).map_err(|problem| forged(space, problem))
}

/// Bytes that are what their name says and yet make no sense.
fn forged(space: &Space, problem: String) -> Error {
    Error::Damaged { place: space.place(&space.path("objects")), problem: format!("tokens: {problem}") }
}

impl Pages {
    fn read_ahead(&mut self) {
        while self.reading.len() < AHEAD && self.next < self.manifest.pages.len() {
            self.reading.push_back(start(&self.space, self.manifest.pages[self.next].object));
            self.next += 1;
        }
    }
}

impl Iterator for Pages {
    type Item = Result<Bytes, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let page = self.reading.pop_front()?.wait();
        if page.is_err() {
            self.next = self.manifest.pages.len();
            self.reading.clear();
        }
        self.read_ahead();
        Some(page)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.reading.len() + self.manifest.pages.len() - self.next;
        (usize::from(left > 0), Some(left))
    }
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (read, all) = (self.next - self.reading.len(), self.manifest.pages.len());
        write!(f, "Pages({read} of {all} read)")
    }
}
