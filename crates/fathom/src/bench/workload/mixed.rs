//! Requests of all lengths, each of somebody else: gaps are exponential, every sixth arrival is of three at once, lengths are as
//! often from 100 to 200 tokens as from 1,000 to 2,000.

use std::time::Duration;

use super::{Item, Size, Writer, filler, item};

/// Requests by itself.
pub(super) const REQUESTS: usize = 24;
const SHORTEST: f64 = 32.0;

pub(super) fn items(writer: &mut Writer, size: Size) -> Vec<Item> {
    let (count, mut items, mut at, mut arrival) = (size.count(REQUESTS), Vec::new(), 0.0, 0);
    let spread = (size.context as f64 / SHORTEST).max(1.0).ln();
    while items.len() < count {
        arrival += 1;
        at += -(1.0 - writer.random.fraction()).ln() / size.rate;
        for _ in 0..if arrival % 6 == 0 { 3 } else { 1 } {
            // One of them is as long as can be, whatever the draw.
            let share = if items.len() == count / 2 { 1.0 } else { writer.random.fraction() };
            let tokens = (SHORTEST * (spread * share).exp()) as usize;
            let messages = filler(writer, tokens);
            let next = item(items.len(), messages, 16 + writer.random.below(49));
            items.push(Item { at: Duration::from_secs_f64(at), ..next });
        }
    }
    items.truncate(count);
    items
}
