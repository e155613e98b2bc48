//! From a checkpoint to a model: every tensor by its official name.

use bytes::Bytes;
use fathom_kernels::{
    Attention, Compressor, Device, EntryKind, Expert, Gate, Hyper, IndexShape, Matrix, RowShape, Share,
};
use fathom_weights::experts::{ExpertCache, StreamOptions};
use fathom_weights::{Checkpoint, Config};

use crate::attention::{Indexer, Kind, LayerCompressor, SelfAttention};
use crate::block::Block;
use crate::mhc::Connection;
use crate::model::hyper_shape;
use crate::moe::{Experts, Moe};
use crate::rope::frequencies;
use crate::state::Layout;
use crate::{Error, Model};

/// Reads tensors onto a device.
struct Loader<'a, D: Device> {
    device: &'a D,
    checkpoint: &'a Checkpoint,
    config: &'a Config,
    /// Weights are copied into memory of the device's, and experts stay in their files.
    stream: bool,
}

impl<D: Device> Model<D> {
    /// Takes the weights from a checkpoint, which has checked names, types and shapes when it was opened. Matrices
    /// stay where they are; small vectors are read.
    ///
    /// # Errors
    /// What the checkpoint and the device say, and [`Error::HashTable`].
    pub fn load(device: D, checkpoint: &Checkpoint) -> Result<Self, Error> {
        Self::with(device, checkpoint, None)
    }

    /// Takes the weights from a checkpoint that does not fit into memory: all but the routed experts are copied, and experts
    /// are read as they are needed, with the same results.
    ///
    /// # Errors
    /// As [`Model::load`], and a shard cannot be opened for reading experts.
    pub fn stream(device: D, checkpoint: &Checkpoint, options: StreamOptions) -> Result<Self, Error> {
        // Headers were read through mappings; what comes now is not.
        checkpoint.forget_mapped();
        let cache = ExpertCache::new(&device, checkpoint, options)?;
        Self::with(device, checkpoint, Some(cache))
    }

    fn with(device: D, checkpoint: &Checkpoint, cache: Option<ExpertCache<D>>) -> Result<Self, Error> {
        let config = checkpoint.config().clone();
        let load = Loader { device: &device, checkpoint, config: &config, stream: cache.is_some() };
        let layers = (0..config.num_hidden_layers).map(|i| load.block(i)).collect::<Result<_, _>>()?;
        let (embed, head) = (load.matrix("embed")?, load.matrix("head")?);
        let (head_mix, norm) = (load.hyper("hc_head")?, load.vector("norm.weight")?);
        Ok(Model { layout: Layout::new(&config), embed, layers, head_mix, norm, head, config, cache, device })
    }
}

impl<D: Device> Loader<'_, D> {
    fn matrix(&self, name: &str) -> Result<Matrix<D::Buffer>, Error> {
        if self.stream {
            return self.checkpoint.matrix_with(name, |tensor| self.copy(tensor));
        }
        Ok(self.checkpoint.matrix(name)?.try_map(|bytes: Bytes| self.device.upload(bytes))?)
    }

    /// A tensor's bytes in memory of the device's.
    fn copy(&self, name: &str) -> Result<D::Buffer, Error> {
        let mut buffer = self.device.alloc(Share::Weights, self.checkpoint.len(name)?)?;
        self.checkpoint.read_parts(name, |at, bytes| Ok::<_, Error>(self.device.write(&mut buffer, at, bytes)?))?;
        Ok(buffer)
    }

    /// A small tensor as f32.
    fn vector(&self, name: &str) -> Result<D::Buffer, Error> {
        let bytes: Vec<u8> = self.checkpoint.vector(name)?.into_iter().flat_map(f32::to_le_bytes).collect();
        let mut buffer = self.device.alloc(Share::Weights, bytes.len())?;
        self.device.write(&mut buffer, 0, &bytes)?;
        Ok(buffer)
    }

    fn hyper(&self, name: &str) -> Result<Hyper<D::Buffer>, Error> {
        Ok(Hyper {
            mix: self.matrix(&format!("{name}_fn"))?,
            base: self.checkpoint.vector(&format!("{name}_base"))?,
            scale: self.checkpoint.vector(&format!("{name}_scale"))?,
        })
    }

    fn connection(&self, layer: &str, sublayer: &str) -> Result<Connection<D>, Error> {
        Ok(Connection {
            hyper: self.hyper(&format!("{layer}.hc_{sublayer}"))?,
            shape: hyper_shape(self.config),
            norm: self.vector(&format!("{layer}.{sublayer}_norm.weight"))?,
        })
    }

    fn block(&self, i: usize) -> Result<Block<D>, Error> {
        let p = format!("layers.{i}");
        Ok(Block {
            attention_connection: self.connection(&p, "attn")?,
            attention: self.attention(&format!("{p}.attn"), self.config.compress_ratios[i])?,
            experts_connection: self.connection(&p, "ffn")?,
            experts: self.moe(&format!("{p}.ffn"), i < self.config.num_hash_layers)?,
        })
    }

    fn attention(&self, p: &str, ratio: usize) -> Result<SelfAttention<D>, Error> {
        let c = self.config;
        let kind = match ratio {
            0 => Kind::Window,
            4 => Kind::Csa {
                compressor: self.compressor(&format!("{p}.compressor"), 4, EntryKind::Attention)?,
                indexer: Box::new(self.indexer(&format!("{p}.indexer"))?),
            },
            _ => Kind::Hca { compressor: self.compressor(&format!("{p}.compressor"), ratio, EntryKind::Attention)? },
        };
        Ok(SelfAttention {
            wq_a: self.matrix(&format!("{p}.wq_a"))?,
            q_norm: self.vector(&format!("{p}.q_norm.weight"))?,
            wq_b: self.matrix(&format!("{p}.wq_b"))?,
            wkv: self.matrix(&format!("{p}.wkv"))?,
            kv_norm: self.vector(&format!("{p}.kv_norm.weight"))?,
            wo_a: self.matrix(&format!("{p}.wo_a"))?,
            wo_b: self.matrix(&format!("{p}.wo_b"))?,
            groups: c.o_groups,
            shape: Attention {
                heads: c.num_attention_heads,
                row: RowShape { width: c.head_dim, rope: c.qk_rope_head_dim },
                window: c.sliding_window,
                sink: self.vector(&format!("{p}.attn_sink"))?,
            },
            eps: c.rms_norm_eps,
            kind,
        })
    }

    fn compressor(&self, p: &str, ratio: usize, kind: EntryKind) -> Result<LayerCompressor<D>, Error> {
        let c = self.config;
        Ok(LayerCompressor {
            wkv: self.matrix(&format!("{p}.wkv"))?,
            wgate: self.matrix(&format!("{p}.wgate"))?,
            shape: Compressor {
                ratio,
                width: match kind {
                    EntryKind::Attention => c.head_dim,
                    EntryKind::Index => c.index_head_dim,
                },
                rope: c.qk_rope_head_dim,
                kind,
                ape: self.vector(&format!("{p}.ape"))?,
                norm: self.vector(&format!("{p}.norm.weight"))?,
                eps: c.rms_norm_eps,
                frequencies: frequencies(c, true),
            },
        })
    }

    fn indexer(&self, p: &str) -> Result<Indexer<D>, Error> {
        let c = self.config;
        Ok(Indexer {
            wq_b: self.matrix(&format!("{p}.wq_b"))?,
            weights_proj: self.matrix(&format!("{p}.weights_proj"))?,
            compressor: self.compressor(&format!("{p}.compressor"), 4, EntryKind::Index)?,
            shape: IndexShape { heads: c.index_n_heads, width: c.index_head_dim, keep: c.index_topk },
        })
    }

    fn moe(&self, p: &str, hash: bool) -> Result<Moe<D>, Error> {
        let c = self.config;
        let gate = if hash {
            let name = format!("{p}.gate.tid2eid");
            self.check_table(&name, &self.checkpoint.read(&name)?)?;
            let table =
                if self.stream { self.copy(&name)? } else { self.device.upload(self.checkpoint.bytes(&name)?)? };
            Gate::Hash { table }
        } else {
            Gate::Scored { bias: self.vector(&format!("{p}.gate.bias"))? }
        };
        Ok(Moe {
            router: self.matrix(&format!("{p}.gate"))?,
            gate,
            experts: match self.stream {
                true => Experts::Streamed,
                false => Experts::Here(
                    (0..c.n_routed_experts)
                        .map(|e| self.expert(&format!("{p}.experts.{e}")))
                        .collect::<Result<_, _>>()?,
                ),
            },
            count: c.n_routed_experts,
            shared: self.expert(&format!("{p}.shared_experts"))?,
            slots: c.num_experts_per_tok,
            scale: c.routed_scaling_factor,
            limit: c.swiglu_limit,
        })
    }

    fn check_table(&self, name: &str, table: &[u8]) -> Result<(), Error> {
        let experts = self.config.n_routed_experts;
        let bad = table
            .chunks_exact(8)
            .map(|raw| i64::from_le_bytes(std::array::from_fn(|i| raw[i])))
            .enumerate()
            .find(|&(_, expert)| expert < 0 || expert >= experts as i64);
        match bad {
            None => Ok(()),
            Some((at, expert)) => Err(Error::HashTable {
                tensor: name.to_owned(),
                file: self.checkpoint.file(name),
                token: at / self.config.num_experts_per_tok,
                expert,
                experts,
            }),
        }
    }

    fn expert(&self, p: &str) -> Result<Expert<D::Buffer>, Error> {
        Ok(Expert {
            w1: self.matrix(&format!("{p}.w1"))?,
            w2: self.matrix(&format!("{p}.w2"))?,
            w3: self.matrix(&format!("{p}.w3"))?,
        })
    }
}
