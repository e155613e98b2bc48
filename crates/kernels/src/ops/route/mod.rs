//! The router: which experts a row goes to, and with what weight (V4.md, *MoE*).

use crate::math::softplus;
use crate::pool::{Output, Pool};

#[cfg(test)]
mod tests;

/// How the experts of a row are chosen.
pub(crate) enum Choice<'a> {
    /// The largest scores + bias, ties to the lower expert.
    Scored(&'a [f32]),
    /// `tid2eid`: little-endian I64 `[vocab, slots]`, at no particular alignment.
    Hash(&'a [u8]),
}

/// logits `[n, E]` → experts and weights `[n, slots]`.
#[allow(clippy::too_many_arguments)]
pub(crate) fn route(
    pool: &Pool,
    logits: &[f32],
    choice: &Choice<'_>,
    tokens: &[u32],
    slots: usize,
    scale: f32,
    experts: &mut [u32],
    weights: &mut [f32],
) {
    let count = logits.len() / tokens.len();
    let (experts, weights) = (Output::new(experts), Output::new(weights));
    pool.ranges(tokens.len(), 4, 2, |rows| {
        let mut scores = vec![0.0; count];
        let mut order: Vec<u32> = Vec::with_capacity(count);
        for row in rows {
            for (score, &logit) in scores.iter_mut().zip(&logits[row * count..(row + 1) * count]) {
                *score = softplus(f64::from(logit)).sqrt();
            }
            // SAFETY: rows are disjoint.
            let (experts, weights) = unsafe {
                let span = row * slots..(row + 1) * slots;
                (experts.slice(span.clone()), weights.slice(span))
            };
            match choice {
                Choice::Scored(bias) => {
                    order.clear();
                    order.extend(0..count as u32);
                    let key = |e: u32| scores[e as usize] + f64::from(bias[e as usize]);
                    order.sort_unstable_by(|&a, &b| key(b).total_cmp(&key(a)).then(a.cmp(&b)));
                    experts.copy_from_slice(&order[..slots]);
                }
                Choice::Hash(table) => {
                    let at = tokens[row] as usize * slots * 8;
                    for (expert, raw) in experts.iter_mut().zip(table[at..at + slots * 8].chunks_exact(8)) {
                        let raw: [u8; 8] = raw.try_into().expect("chunks of eight");
                        // The loader has checked that the table stays inside the layer's experts.
                        *expert = i64::from_le_bytes(raw) as u32;
                    }
                }
            }
            let sum = experts.iter().fold(0.0, |sum, &e| sum + scores[e as usize]);
            for (weight, &e) in weights.iter_mut().zip(experts.iter()) {
                *weight = (scores[e as usize] * (f64::from(scale) / sum)) as f32;
            }
        }
    });
}
