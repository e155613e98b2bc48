//! Three people who talk to the model day after day: each history comes back after those of the others have been there.

use super::{Item, Message, Size, Writer, item, message};

/// Days by itself, and requests of each.
pub(super) const DAYS: usize = 4;
pub(super) const A_DAY: usize = PEOPLE * TURNS_A_DAY;
const PEOPLE: usize = 3;
const TURNS_A_DAY: usize = 2;
/// Tokens of a day at least.
const SHORTEST: usize = 120;

pub(super) fn items(writer: &mut Writer, size: Size) -> Vec<Item> {
    let days = size.count(DAYS).min(size.context / SHORTEST).max(1);
    let turn = size.context / (days * TURNS_A_DAY);
    let mut histories: Vec<Vec<Message>> = vec![Vec::new(); PEOPLE];
    let mut items = Vec::new();
    for day in 1..=days {
        for history in &mut histories {
            for _ in 0..TURNS_A_DAY {
                let told = writer.text((turn * 2 / 3).saturating_sub(19));
                history.push(message("user", format!("Day {day}. {told} {}", writer.question())));
                items.push(item(0, history.clone(), 48));
                history.push(message("assistant", writer.text(turn / 3)));
            }
        }
    }
    items
}
