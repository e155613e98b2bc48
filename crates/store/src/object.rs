//! Objects: reading one, and what is done about one that is not what its name says.

use std::sync::Arc;

use bytes::Bytes;

use crate::Error;
use crate::files::Mode;
use crate::manifest::Object;
use crate::sealed::{Kind, Problem, max_file};
use crate::space::Space;
use crate::store::lock;

impl Space {
    /// An object's bytes, verified. One that is damaged is moved out of the way, so that it can be made again.
    pub(crate) async fn fetch(self: Arc<Self>, object: Object) -> Result<Bytes, Error> {
        let mut outcome = self.clone().try_fetch(object).await;
        if matches!(outcome, Err(Error::Damaged { .. } | Error::Missing { .. })) {
            // What a cable or a server spoilt once it may get right the next time.
            outcome = self.clone().try_fetch(object).await;
        }
        if matches!(outcome, Err(Error::Damaged { .. } | Error::Missing { .. })) {
            lock(&self.index).broken.insert(object.name);
            if matches!(outcome, Err(Error::Damaged { .. })) {
                let to = self.path(format_args!("damaged/{}", object.name));
                // A store that cannot be written keeps it; it is not used all the same.
                let _ = self.shared.backend.files().set_aside(&self.object_path(&object.name), &to).await;
            }
        }
        outcome
    }

    /// Reads an object and verifies it, no more.
    pub(crate) async fn try_fetch(self: Arc<Self>, object: Object) -> Result<Bytes, Error> {
        let path = self.object_path(&object.name);
        let files = self.shared.backend.files();
        let (place, max) = (self.place(&path), max_file(object.length));
        let file = match files.get(&path, max).await? {
            Some(file) => file,
            None => match self.condemned_path(object).await? {
                Some(path) => files.get(&path, max).await?,
                None => None,
            }
            .ok_or_else(|| Error::Missing { place: place.clone() })?,
        };
        let space = self.clone();
        let check = move || space.verify_object(object, &file, &place);
        match tokio::task::spawn_blocking(check).await {
            Ok(outcome) => outcome,
            Err(cause) => Err(Error::Access { action: "verify", place: self.place(&path), cause: Box::new(cause) }),
        }
    }

    /// Writes an object, and says whether it did: one that is there and whole stays. It may be there and damaged, if no
    /// manifest that this process knows names it.
    pub(crate) async fn write(self: Arc<Self>, object: Object, parts: [Bytes; 2]) -> Result<bool, Error> {
        let (path, files) = (self.object_path(&object.name), self.shared.backend.files());
        if files.put(&path, parts.clone(), Mode::Create).await? {
            return Ok(true);
        }
        match self.clone().try_fetch(object).await {
            Ok(_) => Ok(false),
            Err(error) if error.is_lost() => files.put(&path, parts, Mode::Replace).await,
            Err(error) => Err(error),
        }
    }

    /// Where a collector that was killed left an object that it wanted to put back.
    async fn condemned_path(&self, object: Object) -> Result<Option<String>, Error> {
        let name = object.name.to_string();
        let condemned = self.shared.backend.files().list(&self.path("condemned")).await?;
        Ok(condemned.into_iter().find(|file| file.name == name).map(|file| file.path))
    }

    fn verify_object(&self, object: Object, file: &Bytes, place: &str) -> Result<Bytes, Error> {
        let opened = self.shared.sealer.open(Kind::Object, file, object.length).map_err(|problem| match problem {
            // The namespace's secret has shown that the key is right.
            Problem::Key(problem) => Problem::Damaged(problem.into()).at(place),
            other => other.at(place),
        })?;
        let damaged = |problem: &str| Error::Damaged { place: place.to_owned(), problem: problem.into() };
        if opened.plain.len() as u64 != object.length {
            return Err(damaged("it has another length than its snapshot says"));
        }
        if self.namer.name(&opened.plain, opened.hash) != object.name {
            return Err(damaged("its bytes are not those that its name stands for"));
        }
        Ok(opened.plain)
    }
}
