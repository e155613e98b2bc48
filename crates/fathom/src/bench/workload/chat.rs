//! Short conversations: three turns each, of a few dozen tokens.

use super::{Item, Size, Writer, item, message};

/// Requests by itself, and tokens of a prompt at most.
pub(super) const REQUESTS: usize = 12;
pub(super) const LONGEST: usize = 512;
const TURNS: usize = 3;

pub(super) fn items(writer: &mut Writer, size: Size) -> Vec<Item> {
    let (count, mut items, mut messages) = (size.count(REQUESTS), Vec::new(), Vec::new());
    let turn = (size.context / (3 * TURNS)).clamp(8, 40);
    for i in 0..count {
        if i % TURNS == 0 {
            messages = vec![message("system", "You are a storyteller. Answer in a few sentences.")];
        }
        let told = writer.text(turn);
        messages.push(message("user", format!("{told} {}", writer.question())));
        items.push(item(0, messages.clone(), 64));
        messages.push(message("assistant", writer.text(turn)));
    }
    items
}
