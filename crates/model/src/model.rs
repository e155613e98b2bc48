//! The transformer.

use fathom_kernels::Device;
use fathom_weights::{Checkpoint, Config};

use crate::{Error, State};

/// Which logits a segment wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitsWanted {
    /// None: more of the prompt follows.
    None,
    /// Those after its last token.
    Last,
    /// Those after each of its tokens.
    All,
}

/// Tokens to append to one session.
#[derive(Debug)]
pub struct Segment<'a, D: Device> {
    /// The session; `tokens` follow what it has seen.
    pub state: &'a mut State<D>,
    /// At least one.
    pub tokens: &'a [u32],
    /// What comes back.
    pub logits: LogitsWanted,
}

/// A loaded model.
#[derive(Debug)]
pub struct Model<D: Device> {
    device: D,
    config: Config,
}

impl<D: Device> Model<D> {
    /// Takes the weights from a checkpoint.
    pub fn load(device: D, checkpoint: &Checkpoint) -> Result<Self, Error> {
        let _ = (device, checkpoint);
        unimplemented!()
    }
    /// The device it runs on.
    pub fn device(&self) -> &D {
        &self.device
    }
    /// The checkpoint's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }
    /// A session that has seen nothing.
    pub fn new_state(&self) -> Result<State<D>, Error> {
        unimplemented!()
    }
    /// Bytes of state that a session of `positions` tokens takes.
    pub fn state_bytes(&self, positions: usize) -> u64 {
        let _ = positions;
        unimplemented!()
    }
    /// Bytes of scratch that a pass over `rows` tokens takes at most, in sessions of up to `positions` tokens.
    pub fn scratch_bytes(&self, rows: usize, positions: usize) -> u64 {
        let _ = (rows, positions);
        unimplemented!()
    }
    /// One pass over the layers for any number of segments. Returns, for each segment, the logits it wanted,
    /// `[0 | 1 | tokens.len(), vocab]`. After an error the states of the segments are unusable and must be dropped;
    /// errors of the arguments (token, context) are found before anything is touched.
    pub fn forward(&self, segments: &mut [Segment<'_, D>]) -> Result<Vec<Vec<f32>>, Error> {
        let _ = segments;
        unimplemented!()
    }
}
