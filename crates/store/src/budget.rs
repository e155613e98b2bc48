//! How much is written: a day's bytes, counted by every process in a file of its own, and the quota.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::files::Mode;
use crate::sealed::{Kind, max_file};
use crate::store::{Shared, Store, lock};
use crate::{Error, backend, key};

const DAY: u64 = 24 * 3600;

/// What was written since midnight UTC.
pub(crate) struct Written {
    /// Names this writer's files.
    writer: u64,
    /// Days since 1970.
    day: u64,
    mine: u64,
    /// What `mine` was when it was last written down.
    noted: u64,
    others: u64,
}

pub(crate) fn today() -> u64 {
    backend::now() / DAY
}

/// The day and the writer of a count, if that is what a file's name says.
fn parse_name(name: &str) -> Option<(u64, u64)> {
    let (day, writer) = name.split_once('-')?;
    Some((day.parse().ok()?, u64::from_str_radix(writer, 16).ok()?))
}

impl Written {
    pub(crate) fn new() -> Result<Written, Error> {
        let writer = u64::from_le_bytes(key::random()?);
        Ok(Written { writer, day: today(), mine: 0, noted: 0, others: 0 })
    }

    fn roll(&mut self) {
        if self.day != today() {
            *self = Written { writer: self.writer, day: today(), mine: 0, noted: 0, others: 0 };
        }
    }
}

impl Shared {
    /// Notes that so many bytes were freed.
    pub(crate) fn freed(&self, bytes: u64) {
        let less = |held: u64| (held != u64::MAX).then(|| held.saturating_sub(bytes));
        let _ = self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Bytes written today by other processes.
    fn others(&self, day: u64, writer: u64) -> Result<u64, Error> {
        let mut sum = 0u64;
        for file in self.backend.list("written".into())? {
            if parse_name(&file.name).is_none_or(|(d, w)| d != day || w == writer) {
                continue;
            }
            let Some(bytes) = self.backend.get(file.path, max_file(8))? else { continue };
            // A count that is damaged is not worth failing for.
            let Ok(opened) = self.sealer.open(Kind::Count, &bytes, 8) else { continue };
            let count = opened.plain.as_ref().try_into().map_or(0, u64::from_le_bytes);
            sum = sum.saturating_add(count);
        }
        Ok(sum)
    }
}

impl Store {
    /// Bytes written today by all processes.
    pub(crate) fn written_today(&self) -> Result<u64, Error> {
        let (day, writer) = {
            let mut written = lock(&self.shared().written);
            written.roll();
            (written.day, written.writer)
        };
        let others = self.shared().others(day, writer)?;
        let mut written = lock(&self.shared().written);
        written.others = others;
        Ok(written.mine.saturating_add(others))
    }

    /// Asks what others wrote, if there is a budget.
    pub(crate) fn look_at_budget(&self) -> Result<(), Error> {
        match self.shared().options.write_budget {
            Some(_) => self.written_today().map(drop),
            None => Ok(()),
        }
    }

    /// Takes bytes from the budget and the quota before they are written, making room if there is none.
    pub(crate) fn admit(&self, needed: u64) -> Result<(), Error> {
        let shared = self.shared();
        {
            let mut written = lock(&shared.written);
            written.roll();
            let so_far = written.mine.saturating_add(written.others);
            if let Some(budget) = shared.options.write_budget
                && so_far.saturating_add(needed) > budget
            {
                return Err(Error::Budget { written: so_far, budget, needed });
            }
            written.mine += needed;
        }
        let admitted = self.make_room(needed);
        if admitted.is_err() {
            let mut written = lock(&shared.written);
            written.mine = written.mine.saturating_sub(needed);
        }
        admitted
    }

    /// Gives back what was admitted and then not written.
    pub(crate) fn not_written(&self, bytes: u64) {
        let mut written = lock(&self.shared().written);
        written.mine = written.mine.saturating_sub(bytes);
        drop(written);
        self.shared().freed(bytes);
    }

    /// Writes down what this process wrote today.
    pub(crate) fn count_written(&self) -> Result<(), Error> {
        let shared = self.shared();
        let (path, count) = {
            let mut written = lock(&shared.written);
            if written.mine == written.noted {
                return Ok(());
            }
            written.noted = written.mine;
            (format!("written/{}-{:016x}", written.day, written.writer), written.mine)
        };
        let parts = shared.sealer.seal(Kind::Count, Bytes::copy_from_slice(&count.to_le_bytes()))?;
        shared.backend.put(path, parts, Mode::Quick).map(drop)
    }

    /// Deletes the counts of days that are over.
    pub(crate) fn forget_counts(&self) -> Result<(), Error> {
        let backend = &self.shared().backend;
        for file in backend.list("written".into())? {
            if parse_name(&file.name).is_none_or(|(day, _)| day + 1 < today()) {
                backend.delete(file.path)?;
            }
        }
        Ok(())
    }
}
