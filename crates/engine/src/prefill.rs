//! Prefill of one session, with nobody beside it.

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
    let (mut done, mut last) = (0, None);
    for part in tokens.chunks(chunk.max(1)) {
        done += part.len();
        let mut out = {
            let logits = if done == tokens.len() { LogitsWanted::Last } else { LogitsWanted::None };
            model.forward(&mut [Segment { state: &mut *state, tokens: part, logits }])?
        };
        if progress(done).is_break() {
            return Ok(None);
        }
        last = out.pop();
    }
    Ok(last)
}
