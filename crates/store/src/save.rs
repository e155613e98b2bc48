//! Saving a snapshot: what to save, and whether it is there already.

use std::sync::Arc;

use bytes::Bytes;

use crate::chain::Subject;
use crate::manifest::{MAX_NAME, Object};
use crate::marks::Mark;
use crate::name::{Chain, Id, Name};
use crate::namespace::Namespace;
use crate::store::lock;
use crate::writer::Writer;
use crate::{Error, backend};

/// What to save.
#[derive(Debug, Clone, Copy, Default)]
pub struct NewSnapshot<'a> {
    /// All tokens that the state follows, at least one.
    pub tokens: &'a [u32],
    /// The session's name.
    pub name: Option<&'a str>,
    /// Whether to keep it whatever the quota and its time limit.
    pub pinned: bool,
    /// When it may go, in seconds since 1970.
    pub expires: Option<u64>,
    /// The snapshot that the session went on from.
    pub parent: Option<Id>,
}

/// What was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saved {
    /// The snapshot.
    pub id: Id,
    /// How many tokens its state follows.
    pub position: usize,
    /// How many pages the store did not have.
    pub new_pages: usize,
    /// Bytes written, of all files.
    pub bytes_written: u64,
}

/// Makes the bytes of a page, counted from 0.
pub type PageSource<'a> = dyn FnMut(usize) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> + 'a;

/// Where the pages come from, and a last word before the snapshot is listed.
pub(crate) trait Source {
    fn page(&mut self, page: usize) -> Result<Vec<u8>, Error>;
    fn finish(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

struct Caller<'a, 'b>(&'a mut PageSource<'b>);

impl Source for Caller<'_, '_> {
    fn page(&mut self, page: usize) -> Result<Vec<u8>, Error> {
        (self.0)(page).map_err(|cause| Error::Page { page, cause })
    }
}

pub(crate) fn check_name(name: Option<&str>) -> Result<(), Error> {
    match name {
        Some(name) if name.len() > MAX_NAME => {
            let problem = format!("the session's name has {} bytes, at most {MAX_NAME} are allowed", name.len());
            Err(Error::Request { problem })
        }
        _ => Ok(()),
    }
}

impl Namespace {
    /// Saves the state after some tokens. `page` is asked for the bytes of those pages that the store does not have
    /// under the tokens they follow, in ascending order, and again for one that another process is just collecting. A
    /// state that is there already, under the same name or none given, is not saved twice.
    ///
    /// # Errors
    /// [`Error::Quota`], [`Error::Budget`], [`Error::Page`] if the caller fails, [`Error::Request`] for arguments that
    /// make no sense, [`Error::Access`]. After an error no snapshot is listed.
    pub fn save(
        &self,
        subject: &Subject,
        new: &NewSnapshot<'_>,
        page: &mut PageSource<'_>,
        tail: &[u8],
    ) -> Result<Saved, Error> {
        self.save_from(subject, new, &mut Caller(page), Bytes::copy_from_slice(tail))
    }

    pub(crate) fn save_from(
        &self,
        subject: &Subject,
        new: &NewSnapshot<'_>,
        source: &mut dyn Source,
        tail: Bytes,
    ) -> Result<Saved, Error> {
        subject.check()?;
        check_name(new.name)?;
        if new.tokens.is_empty() {
            return Err(Error::Request { problem: "a session without tokens has nothing to save".into() });
        }
        self.space.refresh_if_stale()?;
        self.store.look_at_budget()?;
        let mut writer = Writer::new(self);
        let outcome = writer.save(subject, new, source, tail);
        // What was started is waited for, so that it is counted, and over when the caller hears.
        let rest = writer.drain();
        let saved = outcome.and_then(|(id, new_pages)| rest.map(|()| (id, new_pages)));
        let counted = self.store.count_written();
        let (id, new_pages) = saved?;
        counted?;
        Ok(Saved { id, position: new.tokens.len(), new_pages, bytes_written: writer.written })
    }

    /// A snapshot of this very state, if it can stand for the new one.
    pub(crate) fn same(
        &self,
        key: Chain,
        full: &Chain,
        tail: &Object,
        new: &NewSnapshot<'_>,
    ) -> Result<Option<Id>, Error> {
        let space = &self.space;
        let now = backend::now();
        let found = {
            let index = lock(&space.index);
            let fits = |id: &&Id| {
                index.entries.get(*id).is_some_and(|entry| {
                    entry.manifest.key == key
                        && entry.manifest.tail == *tail
                        && (new.name.is_none() || entry.name() == new.name)
                        && !entry.expired(now)
                        && index.flaw(&entry.manifest).is_none()
                })
            };
            let entry = index.at_full(full).iter().find(fits).map(|id| (*id, &index.entries[id]));
            entry.map(|(id, entry)| (id, Arc::clone(&entry.manifest), entry.pinned(), entry.expires()))
        };
        let Some((id, manifest, pinned, expires)) = found else { return Ok(None) };
        let names: Vec<Name> = manifest.objects().map(|object| object.name).collect();
        let absent = space.shared.backend.absent(names.iter().map(|name| space.object_path(name)).collect())?;
        if !absent.is_empty() {
            lock(&space.index).broken.extend(absent.into_iter().map(|i| names[i]));
            return Ok(None);
        }
        if new.pinned && !pinned {
            space.set_mark(id, Mark::Pinned(true))?;
        }
        // The later of two time limits, where none is the latest.
        let later = expires.zip(new.expires).map(|(a, b)| a.max(b));
        if later != expires {
            space.set_mark(id, Mark::Expires(later))?;
        }
        space.touch(id);
        Ok(Some(id))
    }
}
