//! The one place that cuts prompts into chunks.

use std::ops::ControlFlow;

use fathom_kernels::Device;
use fathom_model::{Error, LogitsWanted, Model, Segment, State};

/// Appends `tokens` to a session in chunks and returns the logits after the last; none if `progress`, called after each
/// chunk with the tokens done, broke off.
///
/// # Errors
/// What the model says.
pub fn prefill<D: Device>(
    model: &Model<D>,
    state: &mut State<D>,
    tokens: &[u32],
    chunk: usize,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<Vec<f32>>, Error> {
    let mut pass = |tokens: &[u32], logits| model.forward(&mut [Segment { state: &mut *state, tokens, logits }]);
    in_chunks(tokens, chunk, &mut pass, progress)
}

/// A pass over the model.
type Pass<'a, E> = dyn FnMut(&[u32], LogitsWanted) -> Result<Vec<Vec<f32>>, E> + 'a;

/// The same with a `pass` over the model that is the caller's.
pub(crate) fn in_chunks<E>(
    tokens: &[u32],
    chunk: usize,
    pass: &mut Pass<'_, E>,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<Vec<f32>>, E> {
    let (mut done, mut last) = (0, None);
    for part in tokens.chunks(chunk.max(1)) {
        done += part.len();
        let mut out = pass(part, if done == tokens.len() { LogitsWanted::Last } else { LogitsWanted::None })?;
        if progress(done).is_break() {
            return Ok(None);
        }
        last = out.pop();
    }
    Ok(last)
}
