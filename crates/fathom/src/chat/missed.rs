//! Why a prompt had to be read again, in words for its owner.

use std::time::Duration;

use fathom_engine::{Missed, Why};

use super::Tokenizer;
use crate::ui::{commas, duration};

/// Less than this is not worth a word.
const LITTLE: Duration = Duration::from_millis(10);

/// One sentence. What it quotes is the owner's own text: it is for the reply, not for a log.
pub fn explain(missed: &Missed, tokenizer: &Tokenizer) -> String {
    let Missed { why, matched, of, session, theirs, ours, cost } = missed;
    let at = commas(*matched);
    let whose =
        session.as_ref().map_or_else(|| "of an earlier request".to_owned(), |name| format!("of session {name}"));
    let mut text = match why {
        Why::Nothing => "nothing that is kept begins like this".to_owned(),
        Why::Differs => {
            let of = of.map_or_else(String::new, |of| format!(" of {}", commas(of)));
            format!("matched {at}{of} tokens {whose}; first difference at token {at}")
        }
        Why::NotKept => format!("all {at} tokens are the beginning {whose}, but its state was not kept there"),
        Why::Evicted => format!("the state after {at} tokens had to make room for others"),
        Why::OtherModel => format!("the state after {at} tokens is of another model"),
        Why::OtherProfile(profile) => format!("the state after {at} tokens is of another profile ({profile})"),
        Why::Damaged(object) => format!("the stored state after {at} tokens is damaged (object {object})"),
        // The problem names files, which are the operator's.
        Why::Store(_) => "the store could not be asked".to_owned(),
    };
    if *why == Why::Differs && !(theirs.is_empty() && ours.is_empty()) {
        let quote = |tokens: &[u32]| format!("`…{}…`", tokenizer.decode(tokens).escape_debug());
        text += &format!(": {} against {}", quote(theirs), quote(ours));
    }
    if *cost >= LITTLE {
        text += &format!("; would have saved {}", duration(cost.as_secs_f64()));
    }
    text
}
