//! What a model's weights come to, of a checkpoint or of a configuration alone.

use fathom_kernels::{FRAME_ALIGN, Format};

use crate::experts::Places;
use crate::synth::Synth;
use crate::{Checkpoint, Error};

/// Bytes and formats of a model's weights: all that a plan must know beside the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of all tensors.
    pub weights: u64,
    /// Of those, the ones that a run holds whatever tokens come: without routed experts and drafts, vectors counted as f32.
    pub dense: u64,
    /// Bytes of the drafts' tensors, which no run touches.
    pub drafts: u64,
    /// How many tensors there are.
    pub tensors: usize,
    /// Whether the weights are in files, out of which experts can be read as they are needed.
    pub in_files: bool,
    /// The format of attention's matrices.
    pub matrices: Format,
    /// The format of the shared experts.
    pub shared: Format,
    /// The format of each layer's routed experts.
    pub experts: Vec<Format>,
    /// Routed experts, in all layers together.
    pub count: usize,
    /// Bytes of all their tensors.
    pub expert_bytes: u64,
    /// Bytes of memory that one takes where it is read from a file.
    pub frame: usize,
}

/// The most bytes of weights, an exbibyte: a configuration that asks for more is none.
const MOST: u64 = 1 << 60;

/// What of a tensor's bytes a run holds whatever tokens come.
pub(crate) fn dense(name: &str, bytes: u64, bf16_vector: bool) -> u64 {
    let dense = !name.starts_with("mtp.") && !name.contains(".ffn.experts.");
    if !dense { 0 } else { bytes.saturating_mul(if bf16_vector { 2 } else { 1 }) }
}

impl Sizes {
    /// Of a checkpoint.
    ///
    /// # Errors
    /// A tensor is not there, which opening has checked.
    pub fn of(checkpoint: &Checkpoint) -> Result<Sizes, Error> {
        let places = Places::new(checkpoint)?;
        let (layers, experts) = places.counts();
        Ok(Sizes {
            weights: checkpoint.weight_bytes(),
            dense: checkpoint.dense_bytes(),
            drafts: checkpoint.draft_bytes(),
            tensors: checkpoint.counts().1,
            in_files: checkpoint.is_in_files(),
            matrices: checkpoint.matrix("layers.0.attn.wq_a")?.format,
            shared: checkpoint.matrix("layers.0.ffn.shared_experts.w1")?.format,
            experts: (0..layers).map(|layer| places.shape(layer).format).collect(),
            count: layers * experts,
            expert_bytes: places.bytes(),
            frame: places.frame_bytes(),
        })
    }

    /// Bytes of memory that all experts take.
    pub fn frames(&self) -> u64 {
        (self.count * self.frame) as u64
    }
}

impl Synth {
    /// Of the official layout: matrices in FP8, experts as `expert_dtype` says, each in one stretch of a file.
    ///
    /// # Errors
    /// The configuration is none that the model can run.
    pub fn sizes(&self) -> Result<Sizes, Error> {
        let (config, format) = self.parsed()?;
        let mut sizes = Sizes {
            weights: 0,
            dense: 0,
            drafts: 0,
            tensors: 0,
            in_files: true,
            matrices: Format::Fp8,
            shared: Format::Fp8,
            experts: vec![format; config.num_hidden_layers],
            count: config.num_hidden_layers * config.n_routed_experts,
            expert_bytes: 0,
            frame: 0,
        };
        self.parts(|part| {
            let draft = part.name.starts_with("mtp.");
            let held = dense(&part.name, part.bytes, part.dtype == "BF16" && part.shape.len() == 1);
            sizes.weights = sizes.weights.saturating_add(part.bytes);
            sizes.dense = sizes.dense.saturating_add(held);
            sizes.tensors += 1;
            if draft {
                sizes.drafts = sizes.drafts.saturating_add(part.bytes);
            } else if part.name.contains(".ffn.experts.") {
                sizes.expert_bytes = sizes.expert_bytes.saturating_add(part.bytes);
            }
        })?;
        if sizes.weights > MOST || sizes.dense > MOST {
            let problem = "makes more than an exbibyte of weights".to_owned();
            return Err(Error::Config { field: "(whole file)".into(), problem });
        }
        // A stretch begins anywhere in the first block that is read of it.
        let one = sizes.expert_bytes / sizes.count.max(1) as u64;
        sizes.frame = (one as usize + FRAME_ALIGN - 1).next_multiple_of(FRAME_ALIGN);
        Ok(sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_comes_to_what_its_checkpoint_does() {
        for seed in 0..20 {
            let synth = Synth::random(seed);
            let (planned, found) = (synth.sizes().unwrap(), Sizes::of(&synth.checkpoint().unwrap()).unwrap());
            // A stretch may begin and end well.
            assert!(planned.frame.abs_diff(found.frame) <= FRAME_ALIGN, "{seed}: {planned:?} {found:?}");
            assert_eq!(planned, Sizes { in_files: true, frame: planned.frame, ..found }, "{seed}");
        }
    }

    #[test]
    fn drafts_are_counted_apart() {
        let sizes = Synth::named("tiny", 1).unwrap().sizes().unwrap();
        assert!(sizes.drafts > 0 && sizes.dense + sizes.expert_bytes + sizes.drafts <= sizes.weights * 11 / 10);
        assert_eq!(Synth::tiny(1).sizes().unwrap().drafts, 0);
    }
}
