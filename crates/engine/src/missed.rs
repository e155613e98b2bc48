//! Why no more of a prompt was there.

use std::time::Duration;

use fathom_kernels::Device;
use fathom_store::{Miss, Namespace};

use crate::worker::{WORTH, Worker};
use crate::{Missed, Request, Session, Usage, Why};

/// Tokens that are shown of a difference: before it and from it on.
const AROUND: (usize, usize) = (4, 8);

impl<D: Device> Worker<D> {
    /// Why no more than `reused` tokens of the prompt were there, with what the store says.
    pub(crate) fn missed(&self, request: &Request, reused: usize, stored: Option<Missed>) -> Option<Missed> {
        let prompt = &request.prompt;
        if reused + WORTH > prompt.len() {
            return None;
        }
        let near = self.cache.near(&request.owner, prompt, reused).into_iter().next();
        let live = near.map(|(shared, kept)| {
            let name = kept.session.as_deref().map(str::to_owned);
            let why = if shared == prompt.len() { Why::NotKept } else { Why::Differs };
            let mut missed = Missed { session: name, ..nothing(why, shared) };
            missed.of = Some(kept.state.position());
            missed.show(request, kept.tokens());
            missed
        });
        let gone = self.cache.gone(&request.owner, prompt);
        // A live session may have gone on from there meanwhile.
        let stored = stored.filter(|missed| missed.matched > reused || matches!(missed.why, Why::Store(_)));
        let evicted = (gone > reused).then(|| nothing(Why::Evicted, gone));
        // What shares most; a reason other than a difference before that.
        let worst = |missed: &Missed| (missed.matched, !matches!(missed.why, Why::Differs | Why::Nothing));
        let longest = [stored, live, evicted].into_iter().flatten().max_by_key(worst);
        longest.or_else(|| (reused == 0).then(|| nothing(Why::Nothing, 0)))
    }
}

/// What a store says of a prompt.
pub(crate) fn in_words(namespace: &Namespace, request: &Request, miss: Miss) -> Option<Missed> {
    let (why, matched, snapshot) = match miss {
        Miss::Nothing | Miss::End => return None,
        Miss::Differs { snapshot, position } => (Why::Differs, position, Some(snapshot)),
        Miss::NoTail { snapshot, position } => (Why::NotKept, position, Some(snapshot)),
        Miss::OtherModel { position } => (Why::OtherModel, position, None),
        Miss::OtherProfile { position, profile } => (Why::OtherProfile(profile), position, None),
        Miss::Damaged { snapshot, position, object } => (Why::Damaged(object), position, Some(snapshot)),
        Miss::Evicted { position } => (Why::Evicted, position, None),
    };
    let mut missed = nothing(why, matched);
    if let Some(id) = snapshot
        && let Ok(shown) = namespace.show(&id)
    {
        let name = shown.name.map(|name| Session::of_stored(&name).0.to_owned());
        missed.session = Some(name.unwrap_or_else(|| id.to_string()));
        missed.of = Some(shown.position);
        if request.explain && missed.why == Why::Differs {
            missed.show(request, &namespace.tokens(&id).unwrap_or_default());
        }
    }
    Some(missed)
}

impl Missed {
    /// Shows where the prompt and other tokens differ, if that was asked for.
    fn show(&mut self, request: &Request, theirs: &[u32]) {
        if request.explain {
            let around = |tokens: &[u32]| {
                let (before, after) = AROUND;
                let from = self.matched.saturating_sub(before);
                tokens[from.min(tokens.len())..tokens.len().min(self.matched + after)].to_vec()
            };
            (self.theirs, self.ours) = (around(theirs), around(&request.prompt));
        }
    }

    /// The time that the state would have spared, had it fitted: of its tokens, those that were read.
    pub(crate) fn spared(&self, usage: &Usage) -> Duration {
        let read = usage.prompt_tokens - usage.reused_tokens;
        let those = self.of.unwrap_or(self.matched).min(usage.prompt_tokens).saturating_sub(usage.reused_tokens);
        usage.prefill.mul_f64(those.min(read) as f64 / read.max(1) as f64)
    }
}

pub(crate) fn nothing(why: Why, matched: usize) -> Missed {
    Missed { why, matched, of: None, session: None, theirs: Vec::new(), ours: Vec::new(), cost: Duration::ZERO }
}
