//! What has changed about a snapshot since it was made: small files beside its manifest, one for each thing, so that
//! two processes that change different things do not undo each other. The last writer of one thing wins.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::cursor::{Cursor, put_text};
use crate::files::Mode;
use crate::manifest::MAX_NAME;
use crate::name::Id;
use crate::sealed::{Kind, max_file};
use crate::space::Space;
use crate::store::lock;
use crate::{Error, backend};

/// The most plaintext of a mark, in bytes.
const MAX: u64 = 32 + MAX_NAME as u64;
/// How often the use of a snapshot is written down. Its order among the least recently used needs no more.
const TOUCH: Duration = Duration::from_secs(60);

/// The marks of a snapshot. Nothing where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    pub(crate) name: Option<Option<String>>,
    pub(crate) pinned: Option<bool>,
    pub(crate) expires: Option<Option<u64>>,
    /// In nanoseconds since 1970: when the file that says so was last written.
    pub(crate) used: u64,
}

/// One mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mark {
    Name(Option<String>),
    Pinned(bool),
    Expires(Option<u64>),
}

/// The ending of the file whose time is that of the last use.
pub(crate) const USED: &str = "used";
/// The endings of a snapshot's marks.
pub(crate) const ENDINGS: [&str; 4] = ["name", "pinned", "expires", USED];

impl Mark {
    fn ending(&self) -> &'static str {
        match self {
            Mark::Name(_) => "name",
            Mark::Pinned(_) => "pinned",
            Mark::Expires(_) => "expires",
        }
    }

    /// Says whose and which it is, so that a file under another's name is seen.
    fn encode(&self, id: Id) -> Vec<u8> {
        let mut out = id.0.to_vec();
        out.push(self.ending().as_bytes()[0]);
        match self {
            Mark::Name(name) => {
                out.push(name.is_some().into());
                put_text(&mut out, name.as_deref().unwrap_or(""));
            }
            Mark::Pinned(pinned) => out.push((*pinned).into()),
            Mark::Expires(at) => out.extend(at.unwrap_or(0).to_le_bytes()),
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8], id: Id, ending: &str) -> Result<Mark, String> {
        let mut cursor = Cursor(bytes);
        if cursor.array("the snapshot")? != id.0 || Some(&cursor.u8("the kind")?) != ending.as_bytes().first() {
            return Err("it is the mark of another snapshot or another thing".into());
        }
        let mark = match ending {
            "name" => {
                let named = cursor.flag("named")?;
                Mark::Name(Some(cursor.text("the name")?).filter(|_| named))
            }
            "pinned" => Mark::Pinned(cursor.flag("pinned")?),
            "expires" => Mark::Expires(Some(cursor.u64("the time limit")?).filter(|&at| at > 0)),
            _ => return Err("it is no mark".into()),
        };
        cursor.end()?;
        Ok(mark)
    }
}

impl Marks {
    pub(crate) fn set(&mut self, mark: Mark) {
        match mark {
            Mark::Name(name) => self.name = Some(name),
            Mark::Pinned(pinned) => self.pinned = Some(pinned),
            Mark::Expires(at) => self.expires = Some(at),
        }
    }
}

/// A snapshot and an ending, if that is what a file's name says.
pub(crate) fn parse_name(name: &str) -> Option<(Id, &str)> {
    let (id, ending) = name.split_once('.')?;
    Some((Id::from_hex(id)?, ending))
}

impl Space {
    pub(crate) fn mark_path(&self, id: Id, ending: &str) -> String {
        self.path(format_args!("marks/{id}.{ending}"))
    }

    /// Sets a mark, in the file first.
    pub(crate) fn set_mark(&self, id: Id, mark: Mark) -> Result<(), Error> {
        if !lock(&self.index).entries.contains_key(&id) {
            return Err(self.no_snapshot(id));
        }
        let parts = self.shared.sealer.seal(Kind::Mark, mark.encode(id).into())?;
        self.shared.backend.put(self.mark_path(id, mark.ending()), parts, Mode::Replace)?;
        let mut index = lock(&self.index);
        let entry = index.entries.get_mut(&id).ok_or_else(|| self.no_snapshot(id))?;
        entry.marks.set(mark);
        Ok(())
    }

    /// What a mark's file says now.
    pub(crate) fn read_mark(&self, id: Id, ending: &str) -> Result<Option<Mark>, Error> {
        let path = self.mark_path(id, ending);
        let place = self.place(&path);
        let Some(file) = self.shared.backend.get(path, max_file(MAX))? else { return Ok(None) };
        let opened = self.shared.sealer.open(Kind::Mark, &file, MAX).map_err(|problem| problem.at(&place))?;
        Mark::decode(&opened.plain, id, ending).map(Some).map_err(|problem| Error::Damaged { place, problem })
    }

    /// Notes that a snapshot was used. That it cannot be written down is no reason to fail.
    pub(crate) fn touch(self: &Arc<Self>, id: Id) {
        let mut index = lock(&self.index);
        let Some(entry) = index.entries.get_mut(&id) else { return };
        entry.used = backend::now_nanos();
        if entry.touched.is_some_and(|at| at.elapsed() < TOUCH) {
            return;
        }
        entry.touched = Some(Instant::now());
        drop(index);
        let (files, path) = (self.shared.backend.files().clone(), self.mark_path(id, USED));
        self.shared
            .backend
            .start_aside(async move { files.put(&path, [Bytes::new(), Bytes::new()], Mode::Quick).await });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn there_and_back() {
        let id = Id([1; 16]);
        for mark in [
            Mark::Name(None),
            Mark::Name(Some("a".into())),
            Mark::Pinned(true),
            Mark::Pinned(false),
            Mark::Expires(None),
            Mark::Expires(Some(7)),
        ] {
            let bytes = mark.encode(id);
            assert_eq!(Mark::decode(&bytes, id, mark.ending()).unwrap(), mark);
            assert!(Mark::decode(&bytes, Id([2; 16]), mark.ending()).is_err());
            for ending in ENDINGS.iter().filter(|e| **e != mark.ending()) {
                assert!(Mark::decode(&bytes, id, ending).is_err());
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..60), which in 0usize..4) {
            let mut bytes = bytes;
            if bytes.len() > 17 {
                bytes[..16].copy_from_slice(&[1; 16]);
                bytes[16] = ENDINGS[which].as_bytes()[0];
            }
            let _ = Mark::decode(&bytes, Id([1; 16]), ENDINGS[which]);
        }
    }
}
