//! An agent: instructions, a task, and steps that each add a call and its result to a history that is sent whole.
//!
//! Results come as user's messages: every server has a template for those, and not every one for tools.

use super::{Item, Size, Writer, item, message};

/// Steps by itself, each a request.
pub(super) const STEPS: usize = 12;
/// Tokens of a step at least, and those beside the text that was found.
const SHORTEST: usize = 60;
const AROUND: usize = 32;

pub(super) fn items(writer: &mut Writer, size: Size) -> Vec<Item> {
    let (begin, rest) = (size.context / 4, size.context * 3 / 4);
    let steps = size.count(STEPS).min(rest / SHORTEST).max(1);
    let step = rest / (steps - 1).max(1);
    let rules = writer.text(begin.saturating_sub(40));
    let mut messages = vec![
        message("system", format!("You are an agent that works in steps. {rules}")),
        message("user", format!("Find out what happened to the {}, step by step.", writer.noun())),
    ];
    let mut items = Vec::new();
    for i in 0..steps {
        if i > 0 {
            let looked = writer.noun();
            messages.push(message("assistant", format!("I look for the {looked}.\n$ grep -rn {looked} notes/")));
            let found = writer.text(step.saturating_sub(AROUND));
            messages.push(message("user", format!("Result of step {i}:\nnotes/{looked}.txt:{i}: {found}")));
        }
        items.push(item(0, messages.clone(), 48));
    }
    items
}
