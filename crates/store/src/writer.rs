//! Writing a snapshot: objects first, the manifest last, and in between a look whether all objects are there.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use crate::backend::{self, Pending};
use crate::chain::Subject;
use crate::files::Mode;
use crate::manifest::{Manifest, Object, Page};
use crate::name::{Chain, Id, Name};
use crate::namespace::Namespace;
use crate::save::{NewSnapshot, Source};
use crate::sealed::Kind;
use crate::store::lock;
use crate::{Error, key, tokens};

/// Pages that are being written while the next is made.
const AHEAD: usize = 4;
/// How often objects that a collector took away are put back before the writer gives up.
const ROUNDS: usize = 8;

/// An object that is being written.
struct Writing {
    name: Name,
    bytes: u64,
    /// Whether it was written.
    task: Pending<Result<bool, Error>>,
}

/// Writes one snapshot.
pub(crate) struct Writer<'a> {
    namespace: &'a Namespace,
    waiting: VecDeque<Writing>,
    /// Objects that this snapshot has written or found.
    put: HashSet<Name>,
    /// Bytes of all files so far.
    pub(crate) written: u64,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(namespace: &'a Namespace) -> Writer<'a> {
        Writer { namespace, waiting: VecDeque::new(), put: HashSet::new(), written: 0 }
    }

    /// The snapshot, and how many pages were new.
    pub(crate) fn save(
        &mut self,
        subject: &Subject,
        new: &NewSnapshot<'_>,
        source: &mut dyn Source,
        tail: Bytes,
    ) -> Result<(Id, usize), Error> {
        let namespace = self.namespace;
        let space = &namespace.space;
        let (page, all) = (subject.page, new.tokens);
        let chain = space.secret.chain(subject, all);
        let full = chain[chain.len() - 1];
        let key = space.secret.tail(&full, &all[(chain.len() - 1) * page..]);
        let last = Object { name: space.namer.name(&tail, None), length: tail.len() as u64 };
        if let Some(id) = namespace.same(key, &full, &last, new)? {
            source.finish()?;
            return Ok((id, 0));
        }

        let block = tokens::block_len(page);
        let blocks = all.len() / block;
        let (have_pages, have_blocks): (Vec<_>, Vec<_>) = {
            let index = lock(&space.index);
            let pages = (0..chain.len() - 1).map(|i| index.page(&chain[i + 1], i)).collect();
            let ends = (1..=blocks).map(|j| j * block / page);
            (pages, ends.enumerate().map(|(j, end)| index.block(&chain[end], end - 1, j)).collect())
        };
        let mut new_pages = 0;
        let mut pages = Vec::with_capacity(have_pages.len());
        for (i, have) in have_pages.into_iter().enumerate() {
            let object = match have {
                Some(object) => object,
                None => {
                    new_pages += 1;
                    self.object(source.page(i)?.into())?
                }
            };
            pages.push(Page { chain: chain[i + 1], object });
        }
        let block_bytes = |j: usize| Bytes::from(tokens::encode(&all[j * block..(j + 1) * block]));
        let blocks = have_blocks.into_iter().enumerate();
        let blocks = blocks.map(|(j, have)| have.map_or_else(|| self.object(block_bytes(j)), Ok));
        let blocks = blocks.collect::<Result<Vec<_>, Error>>()?;
        let tail_object = self.object(tail.clone())?;
        source.finish()?;

        let mut manifest = Manifest {
            subject: subject.clone(),
            position: all.len(),
            created: backend::now(),
            expires: new.expires,
            pinned: new.pinned,
            name: new.name.map(str::to_owned),
            parent: new.parent,
            salt: key::random()?,
            key,
            open: tokens::encode(&all[blocks.len() * block..]),
            pages,
            blocks,
            tail: tail_object,
        };
        for _ in 0..ROUNDS {
            self.drain()?;
            let id = self.announce(&manifest)?;
            match self.complete(&mut manifest, source, &block_bytes, &tail) {
                Ok(true) => return self.publish(id, manifest, chain[0]).map(|id| (id, new_pages)),
                Ok(false) => self.withdraw(id)?,
                Err(error) => {
                    let _ = self.withdraw(id);
                    return Err(error);
                }
            }
        }
        Err(Error::Access {
            action: "keep all objects of a snapshot in",
            place: space.place(&space.path("objects")),
            cause: "somebody keeps deleting them".into(),
        })
    }

    /// Writes an object, unless it is there. Does not wait for it.
    fn object(&mut self, plain: Bytes) -> Result<Object, Error> {
        let space = &self.namespace.space;
        let name = space.namer.name(&plain, None);
        let object = Object { name, length: plain.len() as u64 };
        if !self.put.insert(name) {
            return Ok(object);
        }
        let parts = space.shared.sealer.seal_hashed(Kind::Object, plain, space.namer.hash(&name))?;
        while self.waiting.len() >= AHEAD {
            self.finish_one()?;
        }
        let bytes = (parts[0].len() + parts[1].len()) as u64;
        self.namespace.store.admit(bytes)?;
        let task = space.shared.backend.start(Arc::clone(space).write(object, parts));
        self.waiting.push_back(Writing { name, bytes, task });
        Ok(object)
    }

    fn finish_one(&mut self) -> Result<(), Error> {
        let Some(Writing { name, bytes, task }) = self.waiting.pop_front() else { return Ok(()) };
        let outcome = task.wait();
        match outcome {
            Ok(true) => self.written += bytes,
            _ => self.namespace.store.not_written(bytes),
        }
        outcome?;
        lock(&self.namespace.space.index).broken.remove(&name);
        Ok(())
    }

    /// Waits for what was started.
    pub(crate) fn drain(&mut self) -> Result<(), Error> {
        let mut outcome = Ok(());
        while !self.waiting.is_empty() {
            outcome = outcome.and(self.finish_one());
        }
        outcome
    }

    fn pending_path(&self, id: Id) -> String {
        self.namespace.space.path(format_args!("pending/{id}"))
    }

    /// Writes the manifest where collectors see it and nobody lists it.
    fn announce(&mut self, manifest: &Manifest) -> Result<Id, Error> {
        let space = &self.namespace.space;
        let plain = Bytes::from(manifest.encode());
        let id = space.id(&plain, None);
        let parts = space.shared.sealer.seal(Kind::Manifest, plain)?;
        let bytes = (parts[0].len() + parts[1].len()) as u64;
        self.namespace.store.admit(bytes)?;
        match space.shared.backend.put(self.pending_path(id), parts, Mode::Replace) {
            Ok(_) => self.written += bytes,
            Err(error) => {
                self.namespace.store.not_written(bytes);
                return Err(error);
            }
        }
        Ok(id)
    }

    /// Whether all objects are there. If not, they are put back. One that is taken away after this look is given
    /// back by whoever took it, because the announced manifest names it.
    fn complete(
        &mut self,
        manifest: &mut Manifest,
        source: &mut dyn Source,
        block: &dyn Fn(usize) -> Bytes,
        tail: &Bytes,
    ) -> Result<bool, Error> {
        let space = &self.namespace.space;
        let paths = manifest.objects().map(|object| space.object_path(&object.name)).collect();
        let absent = space.shared.backend.absent(paths)?;
        let whole = absent.is_empty();
        let (pages, blocks) = (manifest.pages.len(), manifest.blocks.len());
        let mut absent = absent;
        absent.sort_unstable();
        for i in absent {
            if i < pages {
                self.put.remove(&manifest.pages[i].object.name);
                manifest.pages[i].object = self.object(source.page(i)?.into())?;
            } else if i < pages + blocks {
                self.put.remove(&manifest.blocks[i - pages].name);
                manifest.blocks[i - pages] = self.object(block(i - pages))?;
            } else {
                self.put.remove(&manifest.tail.name);
                manifest.tail = self.object(tail.clone())?;
            }
        }
        Ok(whole)
    }

    fn withdraw(&self, id: Id) -> Result<(), Error> {
        self.namespace.space.shared.backend.delete(self.pending_path(id)).map(drop)
    }

    fn publish(&self, id: Id, manifest: Manifest, root: Chain) -> Result<Id, Error> {
        let space = &self.namespace.space;
        let path = space.manifest_path(id);
        if !space.shared.backend.publish(self.pending_path(id), path.clone())? {
            return Err(Error::Access {
                action: "finish",
                place: space.place(&path),
                cause: "writing took so long that another process gave it up".into(),
            });
        }
        lock(&space.index).insert(id, Arc::new(manifest), root, backend::now_nanos());
        Ok(id)
    }
}
