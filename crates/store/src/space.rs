//! The inside of a namespace: its secret, its paths, its index.

use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::chain::Secret;
use crate::files::Mode;
use crate::index::Index;
use crate::key::{self, Namer};
use crate::name::{Id, Name};
use crate::sealed::{Kind, Problem, max_file};
use crate::store::{Shared, lock};
use crate::{Error, Snapshot};

pub(crate) struct Space {
    pub(crate) shared: Arc<Shared>,
    pub(crate) name: String,
    pub(crate) secret: Secret,
    pub(crate) namer: Namer,
    pub(crate) index: Mutex<Index>,
    /// Held by whoever brings the index and the files together.
    pub(crate) refreshing: Mutex<()>,
}

impl Space {
    pub(crate) fn open(shared: &Arc<Shared>, name: &str, create: bool) -> Result<Space, Error> {
        let fits = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_' || c == b'-';
        if name.is_empty() || name.len() > 64 || !name.bytes().all(fits) {
            let problem = format!("{name:?} is no name for a namespace: 1 to 64 of a-z, 0-9, _ and - are");
            return Err(Error::Request { problem });
        }
        let path = format!("namespaces/{name}/secret");
        let place = shared.backend.files().place(&path);
        // Without it nothing is found by its tokens, so nothing must be saved under another.
        let lost = |error| match error {
            Error::Damaged { problem, .. } => Error::Location {
                place: place.clone(),
                problem: format!("is damaged ({problem}); restore it, or delete the namespace's folder"),
            },
            other => other,
        };
        let read = || shared.backend.get(path.clone(), max_file(32)).map_err(lost);
        let mut found = read()?;
        if found.is_none() && create {
            let secret: [u8; 32] = key::random()?;
            let parts = shared.sealer.seal(Kind::Secret, Bytes::copy_from_slice(&secret))?;
            // Of several processes that make it, one wins and all read its.
            shared.backend.put(path.clone(), parts, Mode::Create)?;
            found = read()?;
        }
        let found = found.ok_or_else(|| Error::Missing { place: place.clone() })?;
        let opened = shared.sealer.open(Kind::Secret, &found, 32).map_err(|problem| lost(problem.at(&place)))?;
        let secret = opened.plain.as_ref().try_into();
        let secret = secret.map_err(|_| Problem::Damaged("it has not 32 bytes".into()).at(&place)).map_err(lost)?;
        Ok(Space {
            shared: Arc::clone(shared),
            name: name.to_owned(),
            namer: Namer::new(shared.options.key.as_ref(), &secret),
            secret: Secret(secret),
            index: Mutex::default(),
            refreshing: Mutex::new(()),
        })
    }

    /// A path below the store's root.
    pub(crate) fn path(&self, rest: impl std::fmt::Display) -> String {
        format!("namespaces/{}/{rest}", self.name)
    }

    pub(crate) fn object_path(&self, name: &Name) -> String {
        let hex = name.to_string();
        self.path(format_args!("objects/{}/{hex}", &hex[..2]))
    }

    pub(crate) fn manifest_path(&self, id: Id) -> String {
        self.path(format_args!("manifests/{id}"))
    }

    /// A path as messages show it.
    pub(crate) fn place(&self, path: &str) -> String {
        self.shared.backend.files().place(path)
    }

    pub(crate) fn no_snapshot(&self, id: Id) -> Error {
        Error::NoSnapshot { namespace: self.name.clone(), id }
    }

    /// Marks a snapshot as in use until the result is dropped.
    pub(crate) fn hold(self: &Arc<Self>, id: Id) -> Result<Hold, Error> {
        let mut index = lock(&self.index);
        if !index.entries.contains_key(&id) {
            return Err(self.no_snapshot(id));
        }
        *index.in_use.entry(id).or_default() += 1;
        drop(index);
        Ok(Hold { space: Arc::clone(self), id })
    }

    pub(crate) fn snapshot(&self, id: Id) -> Result<Snapshot, Error> {
        lock(&self.index).entries.get(&id).map(|entry| entry.snapshot(id)).ok_or_else(|| self.no_snapshot(id))
    }
}

/// While it lives, this process neither evicts nor removes the snapshot.
pub struct Hold {
    space: Arc<Space>,
    id: Id,
}

impl Hold {
    /// The snapshot.
    pub fn id(&self) -> Id {
        self.id
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut index = lock(&self.space.index);
        if let Some(count) = index.in_use.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                index.in_use.remove(&self.id);
            }
        }
    }
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hold({})", self.id)
    }
}
