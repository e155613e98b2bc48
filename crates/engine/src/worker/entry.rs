//! How a request comes to run: it waits in the queue until there is a place and memory for it, is looked up in memory and, on a
//! thread of its own, in the store, and starts from what was found, or waits for another that reads the same.

use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::time::Instant;

use fathom_kernels::{Device, human};

use super::{SEAMS, WORTH, Worker, make_room, with_room};
use crate::engine::Asked;
use crate::keeper::Fate;
use crate::kept::shared;
use crate::lookup::Found;
use crate::room::{Hold, fit};
use crate::running::{Phase, Running};
use crate::snapshot::Resumed;
use crate::{Error, Finish, Missed, Request, Usage, Why};

impl<D: Device> Worker<D> {
    /// Lets requests in, in their order, as long as there are places and memory.
    pub(super) fn admit(&mut self) {
        while self.running.len() + self.looking.len() < self.shared.options.parallel && !self.tight {
            let limit = self.limit();
            let mut holds = self.holds();
            let fits = |request: &Request| {
                holds.push(self.hold(request));
                // One that never fits is told so now.
                self.fits_alone(request).is_err() || fit(limit, &holds)
            };
            let Some(asked) = self.shared.take(fits) else { return };
            match self.fits_alone(&asked.request) {
                Ok(()) => self.look(asked, false),
                Err(e) => self.fail(asked, e),
            }
        }
    }

    fn hold(&self, request: &Request) -> Hold {
        Hold { now: self.model.state_bytes(request.prompt.len()), most: self.model.state_bytes(self.longest(request)) }
    }

    /// The most tokens that a request may come to.
    fn longest(&self, request: &Request) -> usize {
        let context = self.shared.options.context;
        request.max_tokens.map_or(context, |most| context.min(request.prompt.len().saturating_add(most)))
    }

    /// Refuses what would not fit with nobody else there.
    fn fits_alone(&self, request: &Request) -> Result<(), Error> {
        let (needed, limit) = (self.hold(request).most, self.limit());
        match needed <= limit {
            true => Ok(()),
            false => Err(Error::Memory { tokens: self.longest(request), needed: human(needed), limit: human(limit) }),
        }
    }

    /// Looks for a request's prompt, in memory and in the store.
    fn look(&mut self, asked: Asked, joined: bool) {
        let request = &asked.request;
        let have = self.cache.longest(&request.owner, &request.prompt).map_or(0, |kept| kept.state.position());
        match &self.keeper {
            Some(keeper) if have + WORTH <= request.prompt.len() && request.prompt_logprobs.is_none() => {
                let hold = self.hold(request);
                self.looking.push(keeper.lookup().start(asked, joined, have, hold, Arc::clone(&self.shared)));
            }
            _ => self.found(Found::nothing(asked, joined)),
        }
    }

    /// Goes on with those that have been looked up.
    pub(super) fn take_found(&mut self) {
        for looking in std::mem::take(&mut self.looking) {
            match looking.found.try_recv() {
                Ok(found) => self.found(found),
                Err(TryRecvError::Empty) => self.looking.push(looking),
                Err(TryRecvError::Disconnected) => self.shared.ended(),
            }
        }
    }

    /// Starts from the longest state that the prompt goes on from, kept or stored, or a new one. The prompt's text may be known in
    /// other tokens: then it takes those.
    fn found(&mut self, found: Found<D>) {
        let Found { mut asked, joined, resumed, missed, seam, full } = found;
        if full && make_room(&mut self.cache, &self.keeper) {
            return self.look(asked, joined);
        }
        let request = &mut asked.request;
        if request.prompt_logprobs.is_some() {
            // What follows each token is not kept anywhere.
            let start = with_room(&mut self.cache, &self.keeper, || self.model.new_state());
            return self.start(asked, start.map(|state| Resumed { state, logits: Vec::new() }), Arc::default(), None);
        }
        let have = self.cache.longest(&request.owner, &request.prompt).map_or(0, |kept| kept.state.position());
        let serves = |resumed: &Resumed<D>| {
            let position = resumed.state.position();
            position > have && (position < request.prompt.len() || !resumed.logits.is_empty())
        };
        if let Some(resumed) = resumed.filter(serves) {
            let missed = self.missed(request, resumed.state.position(), missed);
            return self.start(asked, Ok(resumed), Fate::saved(), missed);
        }
        let context = self.shared.options.context;
        let seam = (!joined).then(|| self.join(request, have).or(seam)).flatten();
        if let Some(prompt) = seam.filter(|prompt| prompt.len() < context) {
            let shorter = request.prompt.len() - request.branch.unwrap_or(request.prompt.len());
            request.branch = request.branch.map(|_| prompt.len().saturating_sub(shorter));
            request.prompt = prompt;
            return self.look(asked, true);
        }
        let missed = self.missed(request, have, missed);
        let (start, fate) = self.nearest(request);
        self.start(asked, start, fate, missed);
    }

    /// The longest state in memory that a prompt goes on from, or a new one.
    fn nearest(&mut self, request: &Request) -> (Result<Resumed<D>, fathom_model::Error>, Arc<Fate>) {
        match self.cache.longest(&request.owner, &request.prompt) {
            Some(kept) => {
                kept.used = true;
                let logits = kept.logits.clone();
                (self.model.fork(&kept.state).map(|state| Resumed { state, logits }), Arc::clone(&kept.fate))
            }
            None => {
                let state = with_room(&mut self.cache, &self.keeper, || self.model.new_state());
                (state.map(|state| Resumed { state, logits: Vec::new() }), Arc::default())
            }
        }
    }

    /// The prompt in the tokens of a session in memory that has the same text and more of it than `have` tokens.
    fn join(&self, request: &Request, have: usize) -> Option<Vec<u32>> {
        let seam = request.seam.as_ref()?;
        let near = self.cache.near(&request.owner, &request.prompt, have);
        near.into_iter().take(SEAMS).find_map(|(shared, kept)| seam.join(&request.prompt, kept.tokens(), shared))
    }

    fn start(
        &mut self,
        asked: Asked,
        from: Result<Resumed<D>, fathom_model::Error>,
        fate: Arc<Fate>,
        missed: Option<Missed>,
    ) {
        let Resumed { state, logits } = match from {
            Ok(from) => from,
            Err(e) => return self.fail(asked, e.into()),
        };
        self.started += 1;
        let reused = state.position();
        // Where it parts from what is known, others will too, and where one went on that has gone since: a state is kept there.
        let parts = missed.as_ref().filter(|missed| matches!(missed.why, Why::Differs | Why::Evicted));
        let parts = parts.map(|missed| missed.matched);
        let marks = parts.into_iter().filter(|&at| at >= reused + WORTH && at < asked.request.prompt.len()).collect();
        let usage =
            Usage { prompt_tokens: asked.request.prompt.len(), reused_tokens: reused, missed, ..Usage::default() };
        let running = Running {
            id: self.started,
            tokens: asked.request.prompt[..reused].to_vec(),
            most: self.hold(&asked.request).most,
            asked,
            state,
            logits,
            kept: reused,
            fate,
            marks,
            usage,
            since: Instant::now(),
            phase: Phase::Reading,
        };
        self.begin(running);
    }

    /// Begins to read, or waits for another that reads the same.
    fn begin(&mut self, mut running: Running<D>) {
        if let Some((leader, mark, done)) = self.leader(&running) {
            running.phase = Phase::Following { leader, mark, told: usize::MAX };
            return match running.tell_following(done) {
                true => self.running.push(running),
                false => self.end(running, Ok(Finish::Cancelled)),
            };
        }
        running.phase = Phase::Reading;
        let ended = match running.tell_progress() {
            true if running.left() == 0 => self.begin_speaking(&mut running),
            true => None,
            false => Some(Ok(Finish::Cancelled)),
        };
        match ended {
            Some(ended) => self.end(running, ended),
            None => self.running.push(running),
        }
    }

    /// One that reads on through the same text, how far, and where it is now; it will keep its state there.
    fn leader(&mut self, running: &Running<D>) -> Option<(u64, usize, usize)> {
        let request = &running.asked.request;
        let have = running.tokens.len();
        if request.prompt_logprobs.is_some() {
            return None;
        }
        let others =
            self.running.iter_mut().filter(|other| other.is_reading() && other.asked.request.owner == request.owner);
        let (mark, leader) = others
            .map(|other| (shared(&other.asked.request.prompt, &request.prompt), other))
            .filter(|(shared, other)| *shared >= have + WORTH && *shared > other.tokens.len())
            .max_by_key(|(shared, other)| (*shared, other.tokens.len()))?;
        leader.marks.insert(mark);
        Some((leader.id, mark, leader.tokens.len()))
    }

    /// Tells those who follow how far their leaders are, and lets those go who had enough.
    pub(super) fn tell_followers(&mut self) {
        for at in (0..self.running.len()).rev() {
            let Phase::Following { leader, mark, .. } = self.running[at].phase else { continue };
            let leader = self.running.iter().find(|other| other.id == leader);
            let Some(done) = leader.map(|leader| leader.tokens.len().min(mark)) else { continue };
            if !self.running[at].tell_following(done) {
                let gone = self.running.remove(at);
                self.end(gone, Ok(Finish::Cancelled));
            }
        }
    }

    /// Lets those go on whose leaders have come to where they part, or have ended.
    pub(super) fn catch_up(&mut self) {
        let leads = |id: u64, mark: usize, all: &[Running<D>]| {
            all.iter().any(|other| other.id == id && other.is_reading() && other.tokens.len() < mark)
        };
        while let Some(at) = self.running.iter().position(
            |running| matches!(running.phase, Phase::Following { leader, mark, .. } if !leads(leader, mark, &self.running)),
        ) {
            let mut running = self.running.remove(at);
            let have = running.tokens.len();
            let request = &running.asked.request;
            let longest = self.cache.longest(&request.owner, &request.prompt).map_or(0, |kept| kept.state.position());
            if longest > have
                && let (Ok(from), fate) = self.nearest(request)
            {
                (running.state, running.logits, running.fate) = (from.state, from.logits, fate);
                running.tokens.extend_from_slice(&request.prompt[have..longest]);
                (running.kept, running.usage.reused_tokens) = (longest, longest);
                running.usage.missed = running.usage.missed.filter(|missed| missed.matched > longest);
            }
            self.begin(running);
        }
    }
}
