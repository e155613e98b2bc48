//! Weights that are no numbers do not pass for an answer.

use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{Error, LogitsWanted, Model, Segment};
use fathom_weights::Checkpoint;
use safetensors::SafeTensors;

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    let folder = format!("{}/../../fixtures/tiny", env!("CARGO_MANIFEST_DIR"));
    let config = std::fs::read(format!("{folder}/config.json")).unwrap();
    let mut shard = std::fs::read(format!("{folder}/model-00001.safetensors")).unwrap();
    let norm = SafeTensors::deserialize(&shard).unwrap().tensor("layers.3.attn_norm.weight").unwrap().data().as_ptr();
    let at = norm as usize - shard.as_ptr() as usize;
    shard[at..at + 2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    let checkpoint = Checkpoint::from_memory(&config, vec![("shard".into(), shard.into())]).unwrap();
    let model = Model::load(Cpu::new(CpuOptions::default()).unwrap(), &checkpoint).unwrap();
    let mut state = model.new_state().unwrap();
    let mut read = |tokens: &[u32], logits| model.forward(&mut [Segment { state: &mut state, tokens, logits }]);
    read(&[1, 2, 3], LogitsWanted::None).unwrap();
    assert!(matches!(read(&[4, 5], LogitsWanted::Last), Err(Error::NotFinite { position: 4 })));
    assert!(matches!(read(&[6], LogitsWanted::Last), Err(Error::Broken)));
}
