//! One long text and many questions, each in a conversation of its own that begins with the text.

use super::{Item, Size, Writer, item, message};

/// Questions by itself, each a request.
pub(super) const QUESTIONS: usize = 8;

pub(super) fn items(writer: &mut Writer, size: Size) -> Vec<Item> {
    let text = message("system", format!("Answer from this text.\n\n{}", writer.text(size.context.saturating_sub(40))));
    let questions = size.count(QUESTIONS);
    (0..questions).map(|_| item(0, vec![text.clone(), message("user", writer.question())], 48)).collect()
}
