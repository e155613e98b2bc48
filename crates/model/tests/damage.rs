//! Weights that are no numbers do not pass for an answer.

use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{Error, LogitsWanted, Model, Segment};
use fathom_weights::Checkpoint;
use safetensors::SafeTensors;

/// The fixture with some bytes of a tensor replaced.
fn damaged(tensor: &str, at: usize, bytes: &[u8]) -> Result<Model<Cpu>, Error> {
    let folder = format!("{}/../../fixtures/tiny", env!("CARGO_MANIFEST_DIR"));
    let config = std::fs::read(format!("{folder}/config.json")).unwrap();
    let mut shard = std::fs::read(format!("{folder}/model-00001.safetensors")).unwrap();
    let start = SafeTensors::deserialize(&shard).unwrap().tensor(tensor).unwrap().data().as_ptr();
    let at = at + start as usize - shard.as_ptr() as usize;
    shard[at..at + bytes.len()].copy_from_slice(bytes);
    let checkpoint = Checkpoint::from_memory(&config, vec![("shard".into(), shard.into())]).unwrap();
    Model::load(Cpu::new(CpuOptions::default()).unwrap(), &checkpoint)
}

const NAN: [u8; 2] = 0x7fc0u16.to_le_bytes();

#[test]
fn small_tensors_are_looked_at_when_they_are_loaded() {
    for (tensor, bytes) in [
        ("layers.3.attn_norm.weight", &NAN[..]),
        ("layers.3.ffn.gate.bias", &f32::NAN.to_le_bytes()),
        ("layers.2.attn.wq_a.scale", &[255]),
    ] {
        let message = damaged(tensor, 0, bytes).unwrap_err().to_string();
        assert!(message.starts_with(&format!("shard: tensor {tensor} has ")), "{message}");
    }
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    // The embedding of token 4.
    let model = damaged("embed.weight", 4 * 128 * 2, &NAN).unwrap();
    let mut state = model.new_state().unwrap();
    let mut read = |tokens: &[u32], logits| model.forward(&mut [Segment { state: &mut state, tokens, logits }]);
    read(&[1, 2, 3], LogitsWanted::Last).unwrap();
    assert!(matches!(read(&[5, 4], LogitsWanted::Last), Err(Error::NotFinite { position: 4 })));
    assert!(matches!(read(&[6], LogitsWanted::Last), Err(Error::Broken)));
}
