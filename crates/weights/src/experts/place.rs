//! Where every expert's tensors lie, and where they go in a frame.

use std::ops::Range;

use fathom_kernels::{ExpertShape, FRAME_ALIGN, Format};

use crate::shard::Entry;
use crate::{Checkpoint, Error};

/// Bytes between two tensors of an expert that are read along rather than skipped: a read more costs more.
const GAP: u64 = 64 << 10;

/// A stretch of a shard that is read at once, and where in a frame it goes. All but `need` are multiples of
/// [`FRAME_ALIGN`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    pub shard: u32,
    /// First byte in the file.
    pub from: u64,
    /// Bytes to read; the last may be past the end of the file.
    pub len: usize,
    /// Bytes of those that must be there.
    pub need: usize,
    /// First byte in the frame.
    pub at: usize,
}

/// A matrix in a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InFrame {
    pub format: Format,
    pub rows: usize,
    pub cols: usize,
    pub data: Range<usize>,
    pub scale: Option<Range<usize>>,
}

/// One expert's reads and what is then where.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub runs: Box<[Run]>,
    /// w1, w2, w3.
    pub matrices: [InFrame; 3],
}

/// Where every expert of every layer lies.
#[derive(Debug)]
pub struct Places {
    layers: usize,
    experts: usize,
    all: Vec<Place>,
    frame: usize,
    bytes: u64,
    /// Of each layer: a file may keep the experts of one layer in more bits than those of another.
    shapes: Vec<ExpertShape>,
}

impl Places {
    /// Of a checkpoint's layers.
    ///
    /// # Errors
    /// A tensor is not there, which opening has checked.
    pub fn new(checkpoint: &Checkpoint) -> Result<Places, Error> {
        let c = checkpoint.config();
        let (layers, experts) = (c.num_hidden_layers, c.n_routed_experts);
        let mut all = Vec::with_capacity(layers * experts);
        let (mut frame, mut bytes) = (0, 0);
        for layer in 0..layers {
            for expert in 0..experts {
                let (place, size) = place(checkpoint, layer, expert)?;
                frame = frame.max(place.runs.iter().map(|run| run.at + run.len).max().unwrap_or(0));
                bytes += size;
                all.push(place);
            }
        }
        // Opening has checked that a layer's experts are all of one format.
        let shape = |place: &Place| ExpertShape { format: place.matrices[0].format, inter: c.moe_intermediate_size };
        let shapes = all.iter().step_by(experts.max(1)).map(shape).collect();
        Ok(Places { layers, experts, all, frame, bytes, shapes })
    }

    /// Layers, and experts of each.
    pub fn counts(&self) -> (usize, usize) {
        (self.layers, self.experts)
    }

    /// Bytes of memory that an expert takes at most.
    pub fn frame_bytes(&self) -> usize {
        self.frame
    }

    /// Bytes of memory that all experts take.
    pub fn memory(&self) -> u64 {
        (self.all.len() * self.frame) as u64
    }

    /// Bytes of all experts' tensors.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What a layer's experts are to the arithmetic.
    pub fn shape(&self, layer: usize) -> ExpertShape {
        self.shapes[layer]
    }

    /// Reads that all experts take: as many as there are experts, where each lies in one stretch.
    pub fn reads(&self) -> usize {
        self.all.iter().map(|place| place.runs.len()).sum()
    }

    /// The place of expert `index % experts` of layer `index / experts`.
    pub(crate) fn get(&self, index: usize) -> &Place {
        &self.all[index]
    }
}

/// The tensors of an expert: w1, w2, w3, each with its scales where it has some.
fn tensors(checkpoint: &Checkpoint, layer: usize, expert: usize) -> Result<Vec<(Entry, Option<Entry>)>, Error> {
    let name = |w: &str, part: &str| format!("layers.{layer}.ffn.experts.{expert}.{w}.{part}");
    ["w1", "w2", "w3"]
        .map(|w| {
            let weight = checkpoint.entry(&name(w, "weight"))?.clone();
            Ok((weight, checkpoint.entry(&name(w, "scale")).ok().cloned()))
        })
        .into_iter()
        .collect()
}

/// An expert's place and the bytes of its tensors.
fn place(checkpoint: &Checkpoint, layer: usize, expert: usize) -> Result<(Place, u64), Error> {
    let tensors = tensors(checkpoint, layer, expert)?;
    let parts = || tensors.iter().flat_map(|(weight, scale)| std::iter::once(weight).chain(scale));
    let mut stretches: Vec<(u32, Range<u64>)> =
        parts().map(|e| (e.shard, e.range.0 as u64..e.range.1 as u64)).collect();
    let bytes = stretches.iter().map(|(_, range)| range.end - range.start).sum();
    stretches.sort_by_key(|(shard, range)| (*shard, range.start));
    stretches.dedup_by(|next, before| {
        let joined = next.0 == before.0 && next.1.start <= before.1.end + GAP;
        if joined {
            before.1.end = before.1.end.max(next.1.end);
        }
        joined
    });
    let align = FRAME_ALIGN as u64;
    let mut at = 0;
    let runs: Vec<Run> = stretches
        .into_iter()
        .map(|(shard, range)| {
            let from = range.start / align * align;
            let len = (range.end - from).next_multiple_of(align) as usize;
            at += len;
            Run { shard, from, len, need: (range.end - from) as usize, at: at - len }
        })
        .collect();
    let within = |e: &Entry| {
        let run = runs.iter().find(|run| {
            let from = e.range.0 as u64;
            run.shard == e.shard && run.from <= from && from <= run.from + run.need as u64
        });
        let run = run.expect("every tensor is in a run");
        let start = run.at + (e.range.0 as u64 - run.from) as usize;
        start..start + (e.range.1 - e.range.0)
    };
    let matrices: Vec<InFrame> = tensors
        .iter()
        .map(|(weight, scale)| {
            let (format, rows, cols) = crate::checkpoint::stored_as(weight);
            InFrame { format, rows, cols, data: within(weight), scale: scale.as_ref().map(within) }
        })
        .collect();
    let matrices = matrices.try_into().expect("three matrices");
    Ok((Place { runs: runs.into(), matrices }, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::Synth;

    /// What a place says is where is what the checkpoint says it is.
    #[test]
    fn frames_hold_the_tensors() {
        for seed in 0..20 {
            let checkpoint = Synth::random(seed).checkpoint().unwrap();
            let places = Places::new(&checkpoint).unwrap();
            let (layers, experts) = places.counts();
            let shard = &checkpoint.shards[0].bytes;
            for index in 0..layers * experts {
                let (place, id) = (places.get(index), (index / experts, index % experts));
                let mut frame = vec![0; places.frame_bytes()];
                for run in &place.runs {
                    assert!(run.from.is_multiple_of(4096) && run.at.is_multiple_of(4096) && run.len >= run.need);
                    let from = run.from as usize;
                    frame[run.at..run.at + run.need].copy_from_slice(&shard[from..from + run.need]);
                }
                for (w, matrix) in ["w1", "w2", "w3"].iter().zip(&place.matrices) {
                    let want = checkpoint.matrix(&format!("layers.{}.ffn.experts.{}.{w}", id.0, id.1)).unwrap();
                    assert_eq!((want.format, want.rows, want.cols), (matrix.format, matrix.rows, matrix.cols));
                    assert_eq!(want.data, frame[matrix.data.clone()]);
                    assert_eq!(want.scale.as_deref(), matrix.scale.clone().map(|range| &frame[range]));
                }
            }
        }
    }
}
