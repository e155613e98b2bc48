//! From logits to a token.
//!
//! The order: logit_bias and penalties, the mask, temperature, top_k, min_p, top_p, then one draw. Exponentials are our own and the
//! generator is a counter, so a seed gives the same text on every machine.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use fathom_kernels::math::{ln, weigh};

use crate::mask::tokens;
use crate::{Error, Logprob};
use weights::{draw, keep_largest, keep_likeliest, largest, sum};

#[cfg(test)]
mod tests;
mod weights;

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
    values: Vec<f32>,
    weights: Vec<f32>,
    blocks: Vec<f64>,
}

impl Sampler {
    /// A sampler that has chosen nothing yet.
    pub fn new(sampling: Sampling) -> Self {
        let seed = sampling.seed.unwrap_or_else(|| RandomState::new().hash_one(std::time::SystemTime::now()));
        let (counts, values, weights, blocks) = Default::default();
        Sampler { sampling, seed, drawn: 0, counts, values, weights, blocks }
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
        self.value(logits, mask);
        let best = largest(&self.values);
        if best == f32::NEG_INFINITY {
            return mask.map_or(Some(0), |mask| tokens(mask, logits.len()).next());
        }
        let (s, values) = (&self.sampling, &mut self.values);
        // Also where it is infinite, and nothing else counts beside it.
        if s.temperature == 0.0 || best == f32::INFINITY {
            return values.iter().position(|&v| v == best).map(|id| id as u32);
        }
        if s.top_k > 0 {
            keep_largest(values, s.top_k);
        }
        let weights = &mut self.weights;
        weights.resize(values.len(), 0.0);
        weigh(values, best, s.temperature, weights);
        if s.min_p > 0.0 {
            weights.iter_mut().filter(|w| **w < s.min_p).for_each(|w| *w = 0.0);
        }
        if s.top_p < 1.0 {
            keep_likeliest(weights, f64::from(s.top_p));
        }
        let total = sum(weights, &mut self.blocks);
        let at = self.uniform() * total;
        draw(&self.weights, &self.blocks, at).map(|id| id as u32)
    }

    /// The logits of what may come, with bias and penalties, and −∞ for all else.
    fn value(&mut self, logits: &[f32], mask: Option<&[u32]>) {
        let (s, values) = (&self.sampling, &mut self.values);
        let number = |v: f32| if v.is_nan() { f32::NEG_INFINITY } else { v };
        values.clear();
        match mask {
            None => values.extend(logits.iter().map(|&v| number(v))),
            Some(mask) => {
                values.resize(logits.len(), f32::NEG_INFINITY);
                // A word of the mask at a time, which the compiler makes vectors of.
                for ((word, values), logits) in mask.iter().zip(values.chunks_mut(32)).zip(logits.chunks(32)) {
                    for (bit, (value, &logit)) in values.iter_mut().zip(logits).enumerate() {
                        *value = if word & 1 << bit != 0 { number(logit) } else { f32::NEG_INFINITY };
                    }
                }
            }
        }
        for &(token, bias) in &s.logit_bias {
            if let Some(v) = values.get_mut(token as usize) {
                *v += bias;
            }
        }
        if s.presence_penalty != 0.0 || s.frequency_penalty != 0.0 {
            for (&token, &count) in &self.counts {
                values[token as usize] -= s.presence_penalty + s.frequency_penalty * count as f32;
            }
        }
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

/// Better first: the larger logit, then the lower id; NaN last.
fn better(a: &(u32, f32), b: &(u32, f32)) -> std::cmp::Ordering {
    let key = |v: f32| if v.is_nan() { f32::NEG_INFINITY } else { v + 0.0 };
    key(b.1).total_cmp(&key(a.1)).then(a.0.cmp(&b.0))
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
    let best = largest(logits);
    let mut weights = vec![0.0; logits.len()];
    weigh(logits, best, 1.0, &mut weights);
    f64::from(best) + ln(sum(&weights, &mut Vec::new()))
}
