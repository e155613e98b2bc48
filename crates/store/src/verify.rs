//! Reading everything, to see whether it is what was written.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::Error;
use crate::manifest::{self, Object};
use crate::marks::{self, USED};
use crate::name::{Id, Name};
use crate::sealed::{Problem, max_file};
use crate::space::Space;
use crate::store::{Store, lock};

/// Something in a store that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// The namespace.
    pub namespace: String,
    /// The snapshots that cannot be loaded because of it.
    pub snapshots: Vec<Id>,
    /// What is wrong, with the file's name.
    pub problem: String,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} snapshots)", self.problem, self.snapshots.len())
    }
}

impl Store {
    /// Reads every file that a snapshot consists of. Objects that are damaged are moved away, so that they can be made
    /// again.
    ///
    /// # Errors
    /// [`Error::Access`], and [`Error::Key`] if a namespace has another key. Damage is no error but a result.
    pub fn verify(&self) -> Result<Vec<Flaw>, Error> {
        let mut flaws = Vec::new();
        for space in self.spaces()? {
            space.verify(&mut flaws)?;
        }
        Ok(flaws)
    }
}

impl Space {
    fn verify(self: &Arc<Self>, flaws: &mut Vec<Flaw>) -> Result<(), Error> {
        self.refresh()?;
        let mut flaw = |snapshots, problem| flaws.push(Flaw { namespace: self.name.clone(), snapshots, problem });
        for file in self.shared.backend.list(self.path("manifests"))? {
            match Id::from_hex(&file.name) {
                Some(id) => {
                    if let Some(problem) = self.verify_manifest(id)? {
                        flaw(vec![id], problem.to_string());
                    }
                }
                None => flaw(Vec::new(), format!("{} is no manifest's name", self.place(&file.path))),
            }
        }
        for file in self.shared.backend.list(self.path("marks"))? {
            let Some((id, ending)) = marks::parse_name(&file.name).filter(|(_, ending)| *ending != USED) else {
                continue;
            };
            match self.read_mark(id, ending) {
                Ok(_) => {}
                Err(error @ Error::Access { .. }) => return Err(error),
                Err(error) => flaw(Vec::new(), error.to_string()),
            }
        }
        let mut objects: HashMap<Name, (Object, Vec<Id>)> = HashMap::new();
        for (id, entry) in &lock(&self.index).entries {
            for object in entry.manifest.objects() {
                let ids = &mut objects.entry(object.name).or_insert((*object, Vec::new())).1;
                if ids.last() != Some(id) {
                    ids.push(*id);
                }
            }
        }
        for (object, ids) in objects.into_values() {
            match self.shared.backend.start(Arc::clone(self).fetch(object)).wait() {
                Ok(_) => {
                    lock(&self.index).broken.remove(&object.name);
                }
                Err(error) if error.is_lost() => flaw(ids, error.to_string()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What is wrong with a manifest's file, if anything is and it is still there.
    pub(crate) fn verify_manifest(&self, id: Id) -> Result<Option<Error>, Error> {
        let path = self.manifest_path(id);
        let place = self.place(&path);
        match self.shared.backend.get(path, max_file(manifest::MAX)) {
            Ok(None) => Ok(None),
            Ok(Some(file)) => Ok(self.open_manifest(id, &file).err().map(|problem: Problem| problem.at(&place))),
            Err(error @ Error::Damaged { .. }) => Ok(Some(error)),
            Err(error) => Err(error),
        }
    }
}
