//! Sessions by name: timelines of tokens that grow, fork, go back and outlive the program.
//!
//! A session is its tokens. The state after them is a function of them, which the engine finds again in memory, in the store,
//! or by reading them, so that a fork is a copy of a list, and going back is a shorter one.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::Read;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fathom_store::{Id, Namespace, Saved, Snapshot, Store, Subject};

use crate::engine::Past;
use crate::keeper::is_gone;
use crate::{Engine, Error, Event, Finish, Owner, Request, names};

mod turn;

/// Tokens of sessions that are held in memory at most, all together: those that are stored make way for others.
const HELD: usize = if cfg!(test) { 10_000 } else { 16 << 20 };
/// What a session counts for beside its tokens.
const SESSION: usize = 64;
/// How long a snapshot that is to go is waited for while somebody reads it.
const PATIENCE: Duration = Duration::from_secs(2);

use turn::Turn;

/// What is known of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its name, one of its owner's.
    pub name: String,
    /// How many tokens it has.
    pub position: usize,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// When it was last used.
    pub used: u64,
    /// The session that it was forked from, and the position where.
    pub parent: Option<(String, usize)>,
    /// Whether a request is at work on it.
    pub busy: bool,
    /// Positions of its snapshots, ascending.
    pub snapshots: Vec<usize>,
    /// Whether one of them is pinned.
    pub pinned: bool,
}

/// A session in memory.
#[derive(Clone)]
struct Entry {
    tokens: Arc<Vec<u32>>,
    created: u64,
    used: u64,
    parent: Option<(String, usize)>,
    busy: bool,
}

type Key = (Owner, String);

struct Inner {
    engine: Engine,
    keep: Option<(Store, Subject)>,
    table: Mutex<HashMap<Key, Entry>>,
}

/// The sessions of an engine. Cheap to clone; all clones are the same. Calls may read the store, and block.
#[derive(Clone)]
pub struct Sessions(Arc<Inner>);

impl Sessions {
    /// Those of an engine, which keeps them in a store under a subject, or only while it runs.
    pub fn new(engine: Engine, keep: Option<(Store, Subject)>) -> Sessions {
        Sessions(Arc::new(Inner { engine, keep, table: Mutex::default() }))
    }

    /// Whether they are kept in a store, and outlive the program.
    pub fn are_stored(&self) -> bool {
        self.0.keep.is_some()
    }

    /// Bytes of their store, once they have been counted, and its quota; of all owners. None where there is no store.
    pub fn stored_bytes(&self) -> Option<(Option<u64>, u64)> {
        self.0.keep.as_ref().map(|(store, _)| store.bytes())
    }

    /// A new session without tokens.
    ///
    /// # Errors
    /// [`Error::SessionName`], [`Error::SessionExists`], [`Error::TooManySessions`].
    pub fn create(&self, owner: &Owner, name: Option<&str>) -> Result<Session, Error> {
        self.insert(owner, name, Arc::default(), None)
    }

    /// All of an owner's, those last used first.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn list(&self, owner: &Owner) -> Result<Vec<Session>, Error> {
        let mut stored = self.stored(owner)?;
        let live: Vec<(Key, Entry)> = self
            .table()
            .iter()
            .filter(|(key, _)| key.0 == *owner)
            .map(|(key, entry)| (key.clone(), entry.clone()))
            .collect();
        let mut all: Vec<Session> = live
            .into_iter()
            .map(|((_, name), entry)| {
                let snapshots = stored.remove(&name).unwrap_or_default();
                describe(name, &entry, &snapshots)
            })
            .collect();
        all.extend(stored.into_iter().map(|(name, snapshots)| {
            let position = ends(&snapshots).first().map_or(0, |end| end.position);
            let created = snapshots.iter().map(|snapshot| snapshot.created).min().unwrap_or_default();
            let used = snapshots.iter().map(|snapshot| snapshot.used).max().unwrap_or_default();
            let entry = Entry { created, used, ..Entry::new(Arc::default(), None) };
            Session { position, ..describe(name, &entry, &snapshots) }
        }));
        all.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.name.cmp(&b.name)));
        Ok(all)
    }

    /// One of them. Where the store fails it is shown without snapshots, if it is in memory.
    ///
    /// # Errors
    /// [`Error::NoSession`], [`Error::Store`].
    pub fn get(&self, owner: &Owner, name: &str) -> Result<Session, Error> {
        let entry = self.entry(owner, name)?;
        Ok(describe(name.to_owned(), &entry, &self.stored_of(owner, name).unwrap_or_default()))
    }

    /// Its tokens.
    ///
    /// # Errors
    /// [`Error::NoSession`], [`Error::Store`].
    pub fn tokens(&self, owner: &Owner, name: &str) -> Result<Arc<Vec<u32>>, Error> {
        Ok(self.entry(owner, name)?.tokens)
    }

    /// Reads tokens at the session's end and generates: `more` is told the tokens so far, while nobody else works on them, and
    /// says what is to be read and how to go on; the request's prompt, owner and session are not looked at. What was generated
    /// belongs to the session, however the request ends; what was to be read does not if it was not read to its end. `sink` is as for [`Engine::submit`].
    ///
    /// # Errors
    /// [`Error::NoSession`], [`Error::SessionBusy`], and what [`Engine::submit`] says.
    pub fn go_on<E: From<Error>>(
        &self,
        owner: &Owner,
        name: &str,
        more: impl FnOnce(&[u32]) -> Result<(Vec<u32>, Request), E>,
        sink: impl FnMut(Event) -> ControlFlow<()> + Send + 'static,
    ) -> Result<(), E> {
        let turn = self.turn(owner, name)?;
        let (more, request) = more(&turn.before)?;
        let prompt = [&turn.before[..], &more].concat();
        let request = Request { prompt: prompt.clone(), owner: owner.clone(), session: Some(name.into()), ..request };
        Ok(self.0.engine.submit(request, turn.follow(prompt, sink))?)
    }

    /// Another session with the first `position` tokens of this one, or all, under a name of its own.
    ///
    /// # Errors
    /// [`Error::NoSession`], [`Error::Position`], [`Error::SessionExists`], [`Error::SessionName`],
    /// [`Error::TooManySessions`].
    pub fn fork(&self, owner: &Owner, name: &str, position: Option<usize>, to: Option<&str>) -> Result<Session, Error> {
        let tokens = self.entry(owner, name)?.tokens;
        let position = position.unwrap_or(tokens.len());
        let tokens = match position {
            p if p == tokens.len() => tokens,
            p => Arc::new(tokens.get(..p).ok_or(Error::Position { position, tokens: tokens.len() })?.to_vec()),
        };
        self.branch(owner, to, tokens, Some((name.to_owned(), position)))
    }

    /// A session that has tokens. If its state is stored it soon is so under the new name too, and outlives the program.
    fn branch(
        &self,
        owner: &Owner,
        name: Option<&str>,
        tokens: Arc<Vec<u32>>,
        parent: Option<(String, usize)>,
    ) -> Result<Session, Error> {
        let session = self.insert(owner, name, Arc::clone(&tokens), parent)?;
        if !tokens.is_empty() {
            self.0.engine.copy(owner, &session.name, tokens);
        }
        Ok(session)
    }

    /// Goes back to a position: the tokens after it and snapshots of them are gone. The state there is found or made by reading
    /// on from the nearest before it; `sink` is as for [`Engine::submit`], and the usage at the end says how far that was. `told`
    /// hears whether it is so in the store too, on a thread of the engine's, or is dropped if it did not come to that.
    ///
    /// # Errors
    /// [`Error::NoSession`], [`Error::SessionBusy`], [`Error::Position`], and what [`Engine::submit`] says.
    pub fn rewind(
        &self,
        owner: &Owner,
        name: &str,
        position: usize,
        mut sink: impl FnMut(Event) -> ControlFlow<()> + Send + 'static,
        told: impl FnOnce(Result<(), Error>) + Send + 'static,
    ) -> Result<(), Error> {
        let turn = self.turn(owner, name)?;
        let before = Arc::clone(&turn.before);
        let tokens = turn.before.len();
        let prompt = turn.before.get(..position).ok_or(Error::Position { position, tokens })?.to_vec();
        if position == 0 {
            self.0.engine.settle(owner, name, 0);
            self.remove_beyond(owner, name, 0)?;
            turn.commit(Vec::new());
            self.forget_past(owner, name, before);
            told(Ok(()));
            let (reason, usage) = (Finish::Length, crate::Usage::default());
            let _ = sink(Event::Done { reason, usage });
            return Ok(());
        }
        let (owner, session) = (owner.clone(), Some(Arc::from(name)));
        let request = Request {
            prompt: prompt.clone(),
            max_tokens: Some(0),
            owner: owner.clone(),
            session,
            ..Request::default()
        };
        let (sessions, of, named) = (self.clone(), owner.clone(), name.to_owned());
        let sink = turn.follow(prompt, move |event| {
            if matches!(event, Event::Done { .. }) {
                sessions.forget_past(&of, &named, Arc::clone(&before));
            }
            sink(event)
        });
        let (sessions, name) = (self.clone(), name.to_owned());
        match self.0.keep {
            None => {
                self.0.engine.submit(request, sink)?;
                told(Ok(()));
                Ok(())
            }
            // Not before the new end is stored: whatever happens, one of the two is found.
            Some(_) => self.0.engine.submit_and_save(request, sink, false, move |saved| {
                let removed = saved.map_err(Error::from).and_then(|_| sessions.remove_beyond(&owner, &name, position));
                told(removed);
            }),
        }
    }

    /// Waits until all of a session is written that is to be.
    pub fn settle(&self, owner: &Owner, name: &str) {
        self.0.engine.settle(owner, name, usize::MAX);
    }

    /// Saves a session as it is now. `told` hears what came of it, on a thread of the engine's.
    ///
    /// # Errors
    /// [`Error::NoStore`], [`Error::NoSession`], [`Error::SessionBusy`], [`Error::EmptySession`], and what [`Engine::submit`]
    /// says.
    pub fn snapshot(
        &self,
        owner: &Owner,
        name: &str,
        pinned: bool,
        told: impl FnOnce(Result<Saved, Error>) + Send + 'static,
    ) -> Result<(), Error> {
        self.0.keep.as_ref().ok_or(Error::NoStore)?;
        let turn = self.turn(owner, name)?;
        let prompt = turn.before.to_vec();
        if prompt.is_empty() {
            return Err(Error::EmptySession { name: name.to_owned() });
        }
        let (owner, session) = (owner.clone(), Some(Arc::from(name)));
        let request = Request { prompt: prompt.clone(), max_tokens: Some(0), owner, session, ..Request::default() };
        let sink = turn.follow(prompt, |_| ControlFlow::Continue(()));
        self.0.engine.submit_and_save(request, sink, pinned, move |saved| told(saved.map_err(Error::from)))
    }

    /// A session that goes on from a snapshot: under the snapshot's name, if it has one and that is free, or another.
    ///
    /// # Errors
    /// [`Error::NoStore`], [`Error::Store`], [`Error::SessionName`], [`Error::SessionExists`].
    pub fn restore(&self, owner: &Owner, id: &Id, name: Option<&str>) -> Result<Session, Error> {
        let (_, subject) = self.0.keep.as_ref().ok_or(Error::NoStore)?;
        let namespace = self.namespace(owner)?;
        let snapshot = namespace.show(id)?;
        if snapshot.subject != *subject {
            return Err(Error::Store(format!(
                "snapshot {id} is of another model or profile ({})",
                snapshot.subject.profile
            )));
        }
        let tokens = Arc::new(namespace.tokens(id)?);
        let own = snapshot.name.as_deref().filter(|own| Session::check_name(own).is_ok());
        let free = own.filter(|own| !self.table().contains_key(&(owner.clone(), (*own).to_owned())));
        let newest = |own: &&str| {
            self.stored_of(owner, own).is_ok_and(|all| ends(&all).first().is_some_and(|end| end.id == *id))
        };
        if let (None, Some(own)) = (name, free.filter(newest)) {
            // It is that session, which nobody had in memory.
            self.entry(owner, own)?;
            return self.get(owner, own);
        }
        let parent = own.map(|own| (own.to_owned(), tokens.len()));
        self.branch(owner, name, tokens, parent)
    }

    /// A session out of a file that [`Namespace::export`] wrote, under a name of its own.
    ///
    /// # Errors
    /// [`Error::NoStore`], [`Error::SessionName`], [`Error::SessionExists`], [`Error::Import`] for a file that is not whole or not
    /// of this model, [`Error::Store`].
    pub fn import(&self, owner: &Owner, name: Option<&str>, from: &mut impl Read) -> Result<Session, Error> {
        let (_, subject) = self.0.keep.as_ref().ok_or(Error::NoStore)?;
        let namespace = self.namespace(owner)?;
        let engine = &self.0.engine;
        let name = self.insert(owner, name, Arc::default(), None)?.name;
        let turn = self.turn(owner, &name)?;
        let saved = namespace.import_as(from, engine.import_limits(), |file| {
            if *file.subject != *subject {
                return Err(format!("it is of another model or profile ({})", file.subject.profile));
            }
            match file.tokens.iter().find(|&&token| token as usize >= engine.vocab_size()) {
                Some(token) => Err(format!("its token {token} is outside the vocabulary of {}", engine.vocab_size())),
                None => Ok(Some(name.clone())),
            }
        });
        let tokens = saved.and_then(|saved| namespace.tokens(&saved.id));
        match tokens {
            Ok(tokens) => turn.commit(tokens),
            Err(e) => {
                self.table().remove(&(owner.clone(), name));
                return Err(e.into());
            }
        }
        self.get(owner, &name)
    }

    /// Pins or frees all snapshots of a session.
    ///
    /// # Errors
    /// [`Error::NoStore`], [`Error::NoSession`], [`Error::NotStored`] if there is nothing to pin, [`Error::Store`].
    pub fn pin(&self, owner: &Owner, name: &str, pinned: bool) -> Result<(), Error> {
        let namespace = self.namespace(owner)?;
        self.entry(owner, name)?;
        let snapshots = self.stored_of(owner, name)?;
        if pinned && snapshots.is_empty() {
            return Err(Error::NotStored { name: name.to_owned() });
        }
        snapshots.iter().try_for_each(|snapshot| namespace.pin(&snapshot.id, pinned).or_else(is_gone))?;
        Ok(())
    }

    /// The store's part for an owner, to export from and import to.
    ///
    /// # Errors
    /// [`Error::NoStore`], [`Error::Store`].
    pub fn namespace(&self, owner: &Owner) -> Result<Namespace, Error> {
        let (store, _) = self.0.keep.as_ref().ok_or(Error::NoStore)?;
        Ok(store.namespace(&owner.0)?)
    }

    /// Deletes a session, its snapshots, and what nothing else uses of its state.
    ///
    /// # Errors
    /// [`Error::NoSession`], [`Error::SessionBusy`], [`Error::SnapshotInUse`], [`Error::Store`].
    pub fn delete(&self, owner: &Owner, name: &str) -> Result<(), Error> {
        let turn = match self.turn(owner, name) {
            // What it was cannot be read any more; it goes all the same.
            Err(Error::Store(_)) => return self.remove_beyond(owner, name, 0),
            turn => turn?,
        };
        let timeline = Arc::clone(&turn.before);
        self.0.engine.settle(owner, name, 0);
        self.remove_beyond(owner, name, 0)?;
        // While nobody else can work on it.
        self.table().remove(&(owner.clone(), name.to_owned()));
        drop(turn);
        self.forget_past(owner, name, timeline);
        Ok(())
    }

    /// Drops from memory what a session was and is not any more.
    fn forget_past(&self, owner: &Owner, name: &str, before: Arc<Vec<u32>>) {
        let table = self.table();
        let others =
            table.iter().filter(|(key, _)| key.0 == *owner).map(|(_, entry)| Arc::clone(&entry.tokens)).collect();
        drop(table);
        self.0.engine.forget(Past { owner: owner.clone(), session: name.to_owned(), before, others });
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All snapshots that have names, by them.
    fn stored(&self, owner: &Owner) -> Result<HashMap<String, Vec<Snapshot>>, Error> {
        let mut all: HashMap<String, Vec<Snapshot>> = HashMap::new();
        for snapshot in self.stored_where(owner, |_| true)? {
            let name = snapshot.name.as_deref().map_or("", |name| Session::of_stored(name).0);
            all.entry(name.to_owned()).or_default().push(snapshot);
        }
        Ok(all)
    }

    /// The snapshots of one session.
    fn stored_of(&self, owner: &Owner, name: &str) -> Result<Vec<Snapshot>, Error> {
        self.stored_where(owner, |session| session == name)
    }

    /// Whether there are any, without another look at what other processes did.
    fn is_stored(&self, owner: &Owner, name: &str) -> Result<bool, Error> {
        if self.0.keep.is_none() {
            return Ok(false);
        }
        Ok(self.namespace(owner)?.has_named(|stored| Session::of_stored(stored).0 == name)?)
    }

    fn stored_where(&self, owner: &Owner, wanted: impl Fn(&str) -> bool) -> Result<Vec<Snapshot>, Error> {
        let Some((_, subject)) = &self.0.keep else { return Ok(Vec::new()) };
        let of = |name: Option<&str>| name.is_some_and(|name| wanted(Session::of_stored(name).0));
        let mut all = self.namespace(owner)?.list_named(of)?;
        all.retain(|snapshot| snapshot.subject == *subject);
        Ok(all)
    }

    /// A session in memory, brought there from the store if need be.
    fn entry(&self, owner: &Owner, name: &str) -> Result<Entry, Error> {
        let key = (owner.clone(), name.to_owned());
        if let Some(entry) = self.table().get(&key) {
            return Ok(entry.clone());
        }
        let snapshots = self.stored_of(owner, name)?;
        if snapshots.is_empty() {
            return Err(Error::NoSession { name: name.to_owned() });
        }
        let namespace = self.namespace(owner)?;
        // Its first request did not come to its end, if it has none.
        let mut entry = Ok(Entry::new(Arc::default(), None));
        for end in ends(&snapshots) {
            let tokens = namespace.tokens(&end.id);
            entry = tokens.map(|tokens| Entry { created: end.created, ..Entry::new(Arc::new(tokens), None) });
            // One that is damaged gives way to the one before it.
            if !entry.as_ref().is_err_and(fathom_store::Error::is_lost) {
                break;
            }
        }
        let entry = self.table().entry(key).or_insert(entry?).clone();
        // This one was asked for: whether others can go does not matter to it.
        let _ = self.make_room();
        Ok(entry)
    }

    /// Lets sessions that are stored go from memory, those first that were not used for longest, while too many tokens are held.
    fn make_room(&self) -> Result<(), Error> {
        let weight = |entry: &Entry| entry.tokens.len() + SESSION;
        let (mut held, mut idle) = {
            let table = self.table();
            let held: usize = table.values().map(weight).sum();
            if held <= HELD {
                return Ok(());
            }
            let idle = table.iter().filter(|(_, entry)| !entry.busy).map(|(key, entry)| (key.clone(), entry.clone()));
            (held, idle.collect::<Vec<_>>())
        };
        idle.sort_by_key(|(_, entry)| entry.used);
        for (key, entry) in idle {
            let stored = self.stored_of(&key.0, &key.1)?;
            let Some(end) = ends(&stored).first().copied().filter(|end| end.position == entry.tokens.len()) else {
                continue;
            };
            if self.namespace(&key.0)?.tokens(&end.id).ok().as_ref() != Some(&*entry.tokens) {
                continue;
            }
            let mut table = self.table();
            if table.get(&key).is_some_and(|now| !now.busy && Arc::ptr_eq(&now.tokens, &entry.tokens)) {
                table.remove(&key);
                held -= weight(&entry);
            }
            drop(table);
            if held <= HELD {
                return Ok(());
            }
        }
        Err(Error::TooManySessions)
    }

    fn insert(
        &self,
        owner: &Owner,
        name: Option<&str>,
        tokens: Arc<Vec<u32>>,
        parent: Option<(String, usize)>,
    ) -> Result<Session, Error> {
        self.make_room()?;
        // One that is made up is nobody's.
        let taken = match name {
            Some(name) => Session::check_name(name).and_then(|()| self.is_stored(owner, name))?,
            None => false,
        };
        let name = name.map_or_else(names::random, str::to_owned);
        let mut table = self.table();
        let key = (owner.clone(), name.clone());
        if taken || table.contains_key(&key) {
            return Err(Error::SessionExists { name });
        }
        let entry = Entry::new(tokens, parent);
        table.insert(key, entry.clone());
        Ok(describe(name, &entry, &[]))
    }

    /// Takes a session for one request.
    fn turn(&self, owner: &Owner, name: &str) -> Result<Turn, Error> {
        self.entry(owner, name)?;
        let key = (owner.clone(), name.to_owned());
        let mut table = self.table();
        let entry = table.get_mut(&key).ok_or_else(|| Error::NoSession { name: name.to_owned() })?;
        if std::mem::replace(&mut entry.busy, true) {
            return Err(Error::SessionBusy { name: name.to_owned() });
        }
        entry.used = now();
        Ok(Turn { sessions: self.clone(), key, before: Arc::clone(&entry.tokens), over: false })
    }

    /// Removes a session's snapshots beyond a position. One that is just being read is waited for a while.
    fn remove_beyond(&self, owner: &Owner, name: &str, position: usize) -> Result<(), Error> {
        if self.0.keep.is_none() {
            return Ok(());
        }
        let namespace = self.namespace(owner)?;
        for snapshot in self.stored_of(owner, name)?.iter().filter(|snapshot| snapshot.position > position) {
            let start = Instant::now();
            loop {
                match namespace.remove(&snapshot.id).or_else(is_gone) {
                    Err(fathom_store::Error::InUse { .. }) if start.elapsed() < PATIENCE => sleep(PATIENCE / 50),
                    removed => break removed?,
                }
            }
        }
        Ok(())
    }
}

impl Entry {
    fn new(tokens: Arc<Vec<u32>>, parent: Option<(String, usize)>) -> Entry {
        Entry { tokens, created: now(), used: now(), parent, busy: false }
    }
}

/// A session's ends, the newest first: where it is, and where it was. One of the same second that goes further is newer.
fn ends(snapshots: &[Snapshot]) -> Vec<&Snapshot> {
    let is_end = |snapshot: &&Snapshot| snapshot.name.as_ref().is_some_and(|name| Session::of_stored(name).1);
    let mut ends: Vec<_> = snapshots.iter().filter(is_end).collect();
    ends.sort_by_key(|end| Reverse((end.created, end.position)));
    ends
}

fn describe(name: String, entry: &Entry, stored: &[Snapshot]) -> Session {
    let mut snapshots: Vec<usize> = stored.iter().map(|snapshot| snapshot.position).collect();
    snapshots.sort_unstable();
    Session {
        name,
        position: entry.tokens.len(),
        created: entry.created,
        used: entry.used,
        parent: entry.parent.clone(),
        busy: entry.busy,
        snapshots,
        pinned: stored.iter().any(|snapshot| snapshot.pinned),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
