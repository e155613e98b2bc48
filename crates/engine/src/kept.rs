//! States that requests go on from: those of sessions when they ended, and at places where others may branch off.

use std::collections::VecDeque;
use std::sync::Arc;

use fathom_kernels::Device;
use fathom_model::State;

use crate::Owner;
use crate::engine::Past;
use crate::keeper::Fate;

/// The most states that are kept, whatever memory there is: all are compared with each prompt.
const MOST: usize = 256;
/// Sessions whose states went, that are remembered to say so, and the most tokens of them together.
const GONE: (usize, usize) = (32, 4 << 20);

/// A state and the tokens it has seen.
pub(crate) struct Kept<D: Device> {
    pub owner: Owner,
    /// The session's name, if it has one.
    pub session: Option<Arc<str>>,
    /// Tokens of the session, of which the state has seen the first.
    pub timeline: Arc<Vec<u32>>,
    pub state: State<D>,
    /// What follows the last token seen, if that is known.
    pub logits: Vec<f32>,
    /// Whether it is what a request came to, and not a place on the way.
    pub end: bool,
    /// Whether a request went on from it, two have it in common, or it is read again after it had to go. Of places on the way the
    /// others go first: nobody may ever ask for them.
    pub used: bool,
    /// Whether it is where its session is now: a name that is stored with another would bring the past back.
    pub head: bool,
    /// What became of it in the store.
    pub fate: Arc<Fate>,
}

impl<D: Device> Kept<D> {
    /// What the state has seen.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.timeline[..self.state.position()]
    }

    /// Whether it is to be stored before it goes, if it is not.
    pub(crate) fn is_owed(&self) -> bool {
        self.fate.is_new() && if self.session.is_some() { self.head } else { self.end }
    }

    /// Whether a prompt can go on from here. One that has no more tokens must have the logits.
    fn serves(&self, owner: &Owner, prompt: &[u32]) -> bool {
        self.owner == *owner
            && prompt.starts_with(self.tokens())
            && (self.state.position() < prompt.len() || !self.logits.is_empty())
    }
}

/// All of them, the last used last.
pub(crate) struct Cache<D: Device> {
    all: Vec<Kept<D>>,
    gone: VecDeque<(Owner, Arc<Vec<u32>>, usize)>,
}

impl<D: Device> Cache<D> {
    pub(crate) fn new() -> Self {
        Cache { all: Vec::new(), gone: VecDeque::new() }
    }

    /// Keeps a state. One of the same tokens makes way for it.
    pub(crate) fn put(&mut self, mut kept: Kept<D>) {
        for other in self.all.iter_mut().filter(|other| other.owner == kept.owner) {
            // A request has many states, of one timeline.
            if !Arc::ptr_eq(&other.timeline, &kept.timeline) && kept.timeline.starts_with(other.tokens()) {
                other.timeline = Arc::clone(&kept.timeline);
            }
            other.head &= !kept.head || other.session != kept.session;
            kept.used |= other.used && other.tokens() == kept.tokens();
        }
        self.all.retain(|other| other.owner != kept.owner || other.tokens() != kept.tokens());
        self.all.push(kept);
        while self.all.len() > MOST {
            self.evict();
        }
    }

    /// The longest state that a prompt goes on from. It is the last to go.
    pub(crate) fn longest(&mut self, owner: &Owner, prompt: &[u32]) -> Option<&mut Kept<D>> {
        let serving = self.all.iter().enumerate().filter(|(_, kept)| kept.serves(owner, prompt));
        let (at, _) = serving.max_by_key(|(_, kept)| kept.state.position())?;
        let kept = self.all.remove(at);
        self.all.push(kept);
        self.all.last_mut()
    }

    /// States that go their own way somewhere in the prompt, or beyond it: how many tokens they share with it, at least
    /// `least`, those that share most first.
    pub(crate) fn near(&self, owner: &Owner, prompt: &[u32], least: usize) -> Vec<(usize, &Kept<D>)> {
        let theirs = self.all.iter().filter(|kept| kept.owner == *owner);
        let mut near: Vec<_> = theirs
            .map(|kept| (shared(kept.tokens(), prompt), kept))
            .filter(|&(shared, kept)| shared >= least && shared < kept.state.position())
            .collect();
        near.sort_by_key(|&(shared, kept)| (std::cmp::Reverse(shared), std::cmp::Reverse(kept.state.position())));
        near
    }

    /// How long a state was that a prompt could have gone on from, had there been memory for it.
    pub(crate) fn gone(&self, owner: &Owner, prompt: &[u32]) -> usize {
        let fits = |(of, timeline, position): &&(Owner, Arc<Vec<u32>>, usize)| {
            of == owner && prompt.starts_with(&timeline[..*position])
        };
        self.gone.iter().filter(fits).map(|&(_, _, position)| position).max().unwrap_or(0)
    }

    /// Takes the one that is missed least: a place that nobody wants, or what was used longest ago.
    pub(crate) fn evict(&mut self) -> Option<Kept<D>> {
        let at = self.all.iter().position(|kept| !kept.end && !kept.used).unwrap_or(0);
        let kept = (!self.all.is_empty()).then(|| self.all.remove(at))?;
        self.gone.push_back((kept.owner.clone(), Arc::clone(&kept.timeline), kept.state.position()));
        while self.gone.len() > GONE.0
            || self.gone.iter().map(|(_, timeline, _)| timeline.len()).sum::<usize>() > GONE.1
        {
            self.gone.pop_front();
        }
        Some(kept)
    }

    /// Drops what only a session's past had: not what others begin with.
    pub(crate) fn forget(&mut self, past: &Past) {
        let stays = |tokens: &[u32]| past.others.iter().any(|other| other.starts_with(tokens));
        self.all.retain(|kept| {
            let its = kept.session.as_deref() == Some(&past.session) || past.before.starts_with(kept.tokens());
            kept.owner != past.owner || !its || stays(kept.tokens())
        });
        self.gone.retain(|(owner, theirs, position)| {
            let tokens = &theirs[..*position];
            *owner != past.owner || !past.before.starts_with(tokens) || stays(tokens)
        });
    }

    /// How many there are, and how many tokens they have seen.
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.all.len(), self.all.iter().map(|kept| kept.state.position()).sum())
    }

    /// All of them, the last used last.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Kept<D>> {
        self.all.drain(..)
    }
}

/// How many tokens two texts begin with alike.
pub(crate) fn shared(a: &[u32], b: &[u32]) -> usize {
    const STEP: usize = 1024;
    let steps = a.chunks_exact(STEP).zip(b.chunks_exact(STEP)).take_while(|(a, b)| a == b).count();
    let from = steps * STEP;
    from + a[from..].iter().zip(&b[from..]).take_while(|(a, b)| a == b).count()
}
