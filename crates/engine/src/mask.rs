//! What the next token of an answer may be.
//!
//! The engine knows nothing of grammars: it asks which tokens may come next and tells which one came.

/// What answers to a request must be like.
pub trait Constraint: Send + Sync {
    /// The state of an answer that has not begun. Each answer has its own.
    fn begin(&self) -> Box<dyn Mask>;
}

/// Which tokens may come next in one answer.
pub trait Mask: Send {
    /// The tokens that may come next: bit `t % 32` of word `t / 32` is token t; what lies beyond the words may not come. A stop
    /// token may where the answer may end.
    ///
    /// # Errors
    /// Why none can be had, for people.
    fn allowed(&mut self) -> Result<&[u32], String>;

    /// Takes the token that came, one of those allowed and no stop token.
    ///
    /// # Errors
    /// Why the answer cannot go on, for people.
    fn accept(&mut self, token: u32) -> Result<(), String>;
}

/// The tokens of a mask below `vocab`, in ascending order.
pub(crate) fn tokens(mask: &[u32], vocab: usize) -> impl Iterator<Item = u32> {
    let words = mask.iter().enumerate();
    let all = words.flat_map(|(at, &word)| {
        let mut left = word;
        std::iter::from_fn(move || {
            let bit = (left != 0).then(|| left.trailing_zeros())?;
            left &= left - 1;
            Some(at as u32 * 32 + bit)
        })
    });
    all.take_while(move |&token| (token as usize) < vocab)
}
