//! Finding the longest snapshot that some tokens begin with, and saying why it is not longer.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use crate::chain::{Match, Subject};
use crate::load::read_block;
use crate::manifest::Manifest;
use crate::name::{Chain, Id};
use crate::namespace::Namespace;
use crate::store::lock;
use crate::{Error, backend, tokens};

/// How many branches are looked at to say where tokens differ.
const BRANCHES: usize = 64;

/// What was found for some tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The longest snapshot whose tokens are the first of those asked for.
    pub best: Option<Match>,
    /// Why it is not longer; nothing if it has all tokens.
    pub miss: Option<Miss>,
}

/// Why no longer snapshot was found. Positions are in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Miss {
    /// Nothing that begins like this was ever stored, as far as is known.
    Nothing,
    /// What was found is all that is stored of these tokens.
    End,
    /// A snapshot has the same tokens up to a position, and another one there.
    Differs {
        /// The snapshot that agrees longest.
        snapshot: Id,
        /// The first position where it does not.
        position: usize,
    },
    /// A snapshot has all these tokens and more, but its state was kept only at its end.
    NoTail {
        /// The snapshot.
        snapshot: Id,
        /// How many tokens it shares.
        position: usize,
    },
    /// The state was stored for another model.
    OtherModel {
        /// How many tokens of state there are for it.
        position: usize,
    },
    /// The state was stored for another profile or page length of this model.
    OtherProfile {
        /// How many tokens of state there are for it.
        position: usize,
        /// That profile.
        profile: String,
    },
    /// An object of a longer snapshot is damaged or missing.
    Damaged {
        /// The snapshot.
        snapshot: Id,
        /// Its position.
        position: usize,
        /// The object.
        object: String,
    },
    /// A longer snapshot was evicted, removed or has expired.
    Evicted {
        /// Its position.
        position: usize,
    },
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Miss::Nothing => f.write_str("nothing stored begins like this"),
            Miss::End => f.write_str("nothing longer is stored"),
            Miss::Differs { snapshot, position } => write!(f, "snapshot {snapshot} differs at token {position}"),
            Miss::NoTail { snapshot, position } => {
                write!(f, "snapshot {snapshot} shares all {position} tokens and more, but has no tail there")
            }
            Miss::OtherModel { position } => write!(f, "{position} tokens are stored for another model"),
            Miss::OtherProfile { position, profile } => {
                write!(f, "{position} tokens are stored for another profile or page length ({profile})")
            }
            Miss::Damaged { snapshot, position, object } => {
                write!(f, "snapshot {snapshot} at token {position} is damaged (object {object})")
            }
            Miss::Evicted { position } => write!(f, "the snapshot at token {position} was evicted or has expired"),
        }
    }
}

/// What the keys alone tell.
#[derive(Default)]
struct Keys {
    best: Option<Match>,
    damaged: Option<(Match, String)>,
    evicted: Option<usize>,
}

impl Namespace {
    /// The longest snapshot of this subject whose tokens are a prefix of `tokens`, and why not a longer one.
    ///
    /// # Errors
    /// [`Error::Access`], and [`Error::Request`] for a subject that makes no sense. Damage is no error here: it is a
    /// reason, and what is damaged is not found.
    pub fn find(&self, subject: &Subject, tokens: &[u32]) -> Result<Found, Error> {
        subject.check()?;
        self.space.refresh_if_stale()?;
        let chain = self.space.secret.chain(subject, tokens);
        let keys = self.by_keys(&chain, subject.page, tokens);
        let miss = self.why(subject, tokens, &chain, &keys)?;
        if let Some(best) = keys.best {
            self.space.touch(best.id);
        }
        Ok(Found { best: keys.best, miss })
    }

    fn by_keys(&self, chain: &[Chain], page: usize, tokens: &[u32]) -> Keys {
        let now = backend::now();
        let index = lock(&self.space.index);
        let mut keys = Keys::default();
        for (i, full) in chain.iter().enumerate().rev() {
            let same = |position: usize, key: &Chain| {
                let rest = tokens.get(i * page..position);
                rest.is_some_and(|rest| rest.len() < page && self.space.secret.tail(full, rest) == *key)
            };
            for &(position, key) in index.gone(full) {
                if keys.evicted.is_none_or(|longest| position > longest) && same(position, &key) {
                    keys.evicted = Some(position);
                }
            }
            for &id in index.at_full(full) {
                let Some(entry) = index.entries.get(&id) else { continue };
                let position = entry.manifest.position;
                let longer = |than: &Match| position > than.position;
                if keys.best.as_ref().is_some_and(|best| !longer(best)) || !same(position, &entry.manifest.key) {
                    continue;
                }
                let this = Match { id, position };
                if entry.expired(now) {
                    keys.evicted = keys.evicted.max(Some(position));
                } else if let Some(object) = index.flaw(&entry.manifest) {
                    if keys.damaged.as_ref().is_none_or(|(other, _)| longer(other)) {
                        keys.damaged = Some((this, object.to_string()));
                    }
                } else {
                    keys.best = Some(this);
                }
            }
            if keys.best.is_some() {
                break;
            }
        }
        keys
    }

    fn why(&self, subject: &Subject, all: &[u32], chain: &[Chain], keys: &Keys) -> Result<Option<Miss>, Error> {
        let best = keys.best.map_or(0, |best| best.position);
        if best == all.len() {
            return Ok(None);
        }
        if let Some((Match { id, position }, object)) = &keys.damaged
            && *position > best
        {
            let (snapshot, position, object) = (*id, *position, object.clone());
            return Ok(Some(Miss::Damaged { snapshot, position, object }));
        }
        if let Some(position) = keys.evicted.filter(|&position| position > best) {
            return Ok(Some(Miss::Evicted { position }));
        }
        if let Some(other) = self.other_subject(subject, all, best) {
            return Ok(Some(other));
        }
        let closest = self.closest(subject.page, all, chain)?;
        Ok(Some(match closest {
            Some((snapshot, position)) if position > best && position == all.len() => {
                Miss::NoTail { snapshot, position }
            }
            Some((snapshot, position)) if position > best => Miss::Differs { snapshot, position },
            _ if keys.best.is_some() => Miss::End,
            _ => Miss::Nothing,
        }))
    }

    /// A longer match for another model or profile.
    fn other_subject(&self, subject: &Subject, all: &[u32], best: usize) -> Option<Miss> {
        let others: HashSet<Subject> = {
            let index = lock(&self.space.index);
            index.entries.values().map(|entry| &entry.manifest.subject).filter(|s| *s != subject).cloned().collect()
        };
        let matches = others.into_iter().filter_map(|other| {
            let chain = self.space.secret.chain(&other, all);
            Some((self.by_keys(&chain, other.page, all).best?.position, other))
        });
        let longest = matches.filter(|(position, _)| *position > best);
        // The same model before another one, where both are as long.
        let (position, other) = longest.max_by(|(a, s), (b, t)| {
            (a, s.model == subject.model, &s.profile).cmp(&(b, t.model == subject.model, &t.profile))
        })?;
        Some(match other.model == subject.model {
            true => Miss::OtherProfile { position, profile: other.profile },
            false => Miss::OtherModel { position },
        })
    }

    /// The snapshot that shares most tokens, and how many.
    fn closest(&self, page: usize, all: &[u32], chain: &[Chain]) -> Result<Option<(Id, usize)>, Error> {
        let (shared, branches) = {
            let index = lock(&self.space.index);
            let Some(shared) = (0..chain.len()).rev().find(|&i| !index.through(&chain[i]).is_empty()) else {
                return Ok(None);
            };
            let mut ids: Vec<_> =
                index.through(&chain[shared]).iter().filter_map(|id| Some((*id, index.entries.get(id)?))).collect();
            ids.sort_by_key(|(id, entry)| (std::cmp::Reverse(entry.last_use()), *id));
            // Those that go on with the same page differ from us at the same place: one of them will do.
            let mut seen = HashSet::new();
            ids.retain(|(_, entry)| entry.manifest.pages.get(shared).is_none_or(|page| seen.insert(page.chain)));
            let branches = ids.into_iter().take(BRANCHES).map(|(id, entry)| (id, Arc::clone(&entry.manifest)));
            (shared, branches.collect::<Vec<_>>())
        };
        let start = shared * page;
        let mut closest: Option<(Id, usize)> = None;
        for (id, manifest) in branches {
            let theirs = match self.page_tokens(&manifest, shared) {
                Ok(theirs) => theirs,
                // It shares the pages before all the same.
                Err(error) if error.is_lost() => Vec::new(),
                Err(error) => return Err(error),
            };
            let same = theirs.iter().zip(&all[start..]).take_while(|(a, b)| a == b).count();
            if closest.is_none_or(|(_, most)| start + same > most) {
                closest = Some((id, start + same));
            }
        }
        Ok(closest)
    }

    /// The tokens of a page of a snapshot, or those after its last.
    fn page_tokens(&self, manifest: &Manifest, page: usize) -> Result<Vec<u32>, Error> {
        let length = manifest.subject.page;
        let (start, block) = (page * length, page * length / tokens::block_len(length));
        let (first, theirs) = if block < manifest.blocks.len() {
            (block * tokens::block_len(length), read_block(&self.space, manifest, block)?)
        } else {
            manifest.open_tokens().unwrap_or_default()
        };
        let start = start.saturating_sub(first).min(theirs.len());
        Ok(theirs[start..theirs.len().min(start + length)].to_vec())
    }
}
