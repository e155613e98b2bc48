//! From logits to a token.
//!
//! The order: logit_bias and penalties, the mask, temperature, top_k, min_p, top_p, then one draw. Exponentials are our own and the
//! generator is a counter, so a seed gives the same text on every machine.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use fathom_kernels::math::exp;

use crate::mask::tokens;
use crate::{Error, Logprob};

#[cfg(test)]
mod tests;

/// How tokens are chosen. The default is the model's own: temperature 1, top_p 1, nothing else.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token always.
    pub temperature: f32,
    /// Keep the likeliest tokens that together have this probability.
    pub top_p: f32,
    /// Keep this many; 0 keeps all.
    pub top_k: usize,
    /// Drop tokens less likely than this share of the likeliest.
    pub min_p: f32,
    /// The draw's seed; a random one where not said.
    pub seed: Option<u64>,
    /// Taken off the logit of a token that was generated before.
    pub presence_penalty: f32,
    /// Taken off the logit of a token for each time it was generated.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// How many alternatives to report beside each token; none where not said.
    pub logprobs: Option<usize>,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            logprobs: None,
        }
    }
}

impl Sampling {
    /// The likeliest token always.
    pub fn greedy() -> Self {
        Sampling { temperature: 0.0, ..Sampling::default() }
    }

    /// Checks every parameter.
    ///
    /// # Errors
    /// [`Error::Sampling`], naming the parameter, its value and its range.
    pub fn check(&self, vocab: usize) -> Result<(), Error> {
        let within = |parameter, value: f32, least: f32, most: f32| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            let range = format!("a number from {least} to {most}");
            Err(Error::Sampling { parameter, value: value.to_string(), range })
        };
        within("temperature", self.temperature, 0.0, 2.0)?;
        within("top_p", self.top_p, 0.0, 1.0)?;
        if self.top_p == 0.0 {
            let range = "a number above 0 and at most 1".to_owned();
            return Err(Error::Sampling { parameter: "top_p", value: "0".into(), range });
        }
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        for &(token, bias) in &self.logit_bias {
            within("logit_bias", bias, -100.0, 100.0)?;
            if token as usize >= vocab {
                let range = format!("for token ids below {vocab}");
                return Err(Error::Sampling { parameter: "logit_bias", value: format!("for token {token}"), range });
            }
        }
        match self.logprobs {
            Some(n) if n > vocab.min(128) => Err(Error::Sampling {
                parameter: "top_logprobs",
                value: n.to_string(),
                range: format!("a whole number from 0 to {}", vocab.min(128)),
            }),
            _ => Ok(()),
        }
    }
}

/// A token, and its alternatives where asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The token.
    pub id: u32,
    /// ln p of it.
    pub logprob: Option<f32>,
    /// The likeliest tokens in its place, best first.
    pub top: Vec<Logprob>,
}

/// Chooses the tokens of one answer.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    seed: u64,
    drawn: u64,
    counts: HashMap<u32, u32>,
    /// Room for the vocabulary, twice: new pages for each token would cost as much as the choice.
    all: Vec<(u32, f32)>,
    weighted: Vec<(u32, f64)>,
}

/// Better first: the larger logit, then the lower id; NaN last.
fn better(a: &(u32, f32), b: &(u32, f32)) -> std::cmp::Ordering {
    let key = |v: f32| if v.is_nan() { f32::NEG_INFINITY } else { v + 0.0 };
    key(b.1).total_cmp(&key(a.1)).then(a.0.cmp(&b.0))
}

impl Sampler {
    /// A sampler that has chosen nothing yet.
    pub fn new(sampling: Sampling) -> Self {
        let seed = sampling.seed.unwrap_or_else(|| RandomState::new().hash_one(std::time::SystemTime::now()));
        Sampler { sampling, seed, drawn: 0, counts: HashMap::new(), all: Vec::new(), weighted: Vec::new() }
    }

    /// The next token after these logits: one of a mask, where there is one ([`Mask::allowed`](crate::Mask::allowed)). Its
    /// probability is the model's own. None where the mask has no token.
    pub fn choose(&mut self, logits: &[f32], mask: Option<&[u32]>) -> Option<Choice> {
        let id = self.pick(logits, mask)?;
        *self.counts.entry(id).or_default() += 1;
        Some(match self.sampling.logprobs {
            Some(n) => report(logits, id, n),
            None => Choice { id, logprob: None, top: Vec::new() },
        })
    }

    fn pick(&mut self, logits: &[f32], mask: Option<&[u32]>) -> Option<u32> {
        let (mut all, mut weighted) = (std::mem::take(&mut self.all), std::mem::take(&mut self.weighted));
        all.clear();
        weighted.clear();
        let id = self.pick_in(logits, mask, &mut all, &mut weighted);
        (self.all, self.weighted) = (all, weighted);
        id
    }

    fn pick_in(
        &mut self,
        logits: &[f32],
        mask: Option<&[u32]>,
        all: &mut Vec<(u32, f32)>,
        weighted: &mut Vec<(u32, f64)>,
    ) -> Option<u32> {
        let s = &self.sampling;
        match mask {
            None => all.extend(logits.iter().enumerate().map(|(i, &v)| (i as u32, v))),
            Some(mask) => all.extend(tokens(mask, logits.len()).map(|token| (token, logits[token as usize]))),
        }
        // They are in the order of their ids.
        let mut add = |token: u32, bias: f32| {
            if let Ok(at) = all.binary_search_by_key(&token, |entry| entry.0) {
                all[at].1 += bias;
            }
        };
        s.logit_bias.iter().for_each(|&(token, bias)| add(token, bias));
        if s.presence_penalty != 0.0 || s.frequency_penalty != 0.0 {
            let penalty = |count: u32| s.presence_penalty + s.frequency_penalty * count as f32;
            self.counts.iter().for_each(|(&token, &count)| add(token, -penalty(count)));
        }
        let &(likeliest, best) = all.iter().min_by(|a, b| better(a, b))?;
        if s.temperature == 0.0 {
            return Some(likeliest);
        }
        let weight = |v: f32| {
            let x = (f64::from(v) - f64::from(best)) / f64::from(s.temperature);
            if x.is_nan() { f64::from(u8::from(v == best)) } else { exp(x) }
        };
        if s.top_k > 0 {
            keep_best(all, s.top_k);
        }
        let likely = all.iter().map(|&(id, v)| (id, weight(v))).filter(|&(_, w)| w > 0.0 && w >= f64::from(s.min_p));
        weighted.extend(likely);
        if s.top_p < 1.0 {
            weighted.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let target = weighted.iter().map(|(_, w)| w).sum::<f64>() * f64::from(s.top_p);
            let mut sum = 0.0;
            let enough = weighted.iter().position(|(_, w)| {
                sum += w;
                sum >= target
            });
            weighted.truncate(enough.map_or(weighted.len(), |i| i + 1));
        } else if s.top_k > 0 {
            weighted.sort_unstable_by_key(|&(id, _)| id);
        }
        let total: f64 = weighted.iter().map(|(_, w)| w).sum();
        let mut left = self.uniform() * total;
        for &(id, w) in weighted.iter() {
            left -= w;
            if left < 0.0 {
                return Some(id);
            }
        }
        Some(weighted.last().map_or(likeliest, |last| last.0))
    }

    /// The next number in [0, 1): SplitMix64 of seed and counter.
    fn uniform(&mut self) -> f64 {
        self.drawn += 1;
        let mut z = self.seed.wrapping_add(self.drawn.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The `n` best, best first.
fn keep_best(all: &mut Vec<(u32, f32)>, n: usize) {
    if n == 0 {
        return all.clear();
    }
    if n < all.len() {
        all.select_nth_unstable_by(n - 1, better);
        all.truncate(n);
    }
    all.sort_unstable_by(better);
}

/// A token, how likely it was after these logits, and the `n` likeliest.
pub(crate) fn report(logits: &[f32], id: u32, n: usize) -> Choice {
    let total = log_sum(logits);
    let logprob = |id: u32| (f64::from(logits[id as usize]) - total) as f32;
    let mut order: Vec<(u32, f32)> = logits.iter().enumerate().map(|(i, &v)| (i as u32, v)).collect();
    keep_best(&mut order, n);
    let top = order.into_iter().map(|(token, _)| Logprob { token, logprob: logprob(token) }).collect();
    Choice { id, logprob: Some(logprob(id)), top }
}

/// ln Σ eᵛ.
fn log_sum(logits: &[f32]) -> f64 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&v| exp(f64::from(v) - f64::from(top))).sum();
    f64::from(top) + fathom_kernels::math::ln(sum)
}
