//! The oracle's numbers: `fixtures/golden` was made by a plain NumPy reference and by DeepSeek's own code.

use std::path::{Path, PathBuf};

use fathom_kernels::{Cpu, CpuOptions, Profile};
use fathom_model::{LogitsWanted, Model, Segment};
use fathom_weights::Checkpoint;
use safetensors::SafeTensors;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

struct Golden {
    tokens: Vec<u32>,
    prompt: usize,
    exact: Vec<Vec<f64>>,
    official_kl: f64,
    before_selection: usize,
}

impl Golden {
    fn read(name: &str) -> Golden {
        let bytes = std::fs::read(fixtures().join("golden").join(name)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = metadata.metadata().clone().unwrap();
        let words = |name: &str| -> Vec<[u8; 4]> {
            file.tensor(name).unwrap().data().chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect()
        };
        let ids = |name: &str| words(name).into_iter().map(u32::from_le_bytes).collect::<Vec<_>>();
        let (prompt, tokens) = (ids("prompt"), ids("tokens"));
        let exact: Vec<f64> = words("exact_logits").into_iter().map(|b| f64::from(f32::from_le_bytes(b))).collect();
        Golden {
            prompt: prompt.len(),
            tokens: [prompt, tokens].concat(),
            exact: exact.chunks(512).map(<[f64]>::to_vec).collect(),
            official_kl: metadata["official_vs_exact_mean_kl"].parse().unwrap(),
            before_selection: metadata["rows_before_selection"].parse().unwrap(),
        }
    }

    fn logits(&self, profile: Profile) -> Vec<Vec<f64>> {
        let checkpoint = Checkpoint::open(&fixtures().join("tiny")).unwrap();
        let cpu = Cpu::new(CpuOptions { profile, ..CpuOptions::default() }).unwrap();
        let model = Model::load(cpu, &checkpoint).unwrap();
        let mut state = model.new_state().unwrap();
        let mut rows = Vec::new();
        let (prompt, rest) = self.tokens.split_at(self.prompt);
        for tokens in std::iter::once(prompt).chain(rest.chunks(1)) {
            let logits = LogitsWanted::Last;
            let out = model.forward(&mut [Segment { state: &mut state, tokens, logits }]).unwrap();
            rows.push(out[0].iter().map(|&v| f64::from(v)).collect());
        }
        rows
    }
}

fn log_softmax(z: &[f64]) -> Vec<f64> {
    let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = z.iter().map(|v| (v - top).exp()).sum();
    z.iter().map(|v| v - top - sum.ln()).collect()
}

fn mean_kl(want: &[Vec<f64>], got: &[Vec<f64>]) -> f64 {
    let kl = |w: &[f64], g: &[f64]| {
        let (w, g) = (log_softmax(w), log_softmax(g));
        w.iter().zip(&g).map(|(w, g)| w.exp() * (w - g)).sum::<f64>()
    };
    want.iter().zip(got).map(|(w, g)| kl(w, g)).sum::<f64>() / want.len() as f64
}

fn best(z: &[f64]) -> usize {
    (0..z.len()).max_by(|&a, &b| z[a].total_cmp(&z[b])).unwrap()
}

#[test]
fn exact_is_the_reference() {
    for name in ["tiny-20.safetensors", "tiny-700.safetensors"] {
        let golden = Golden::read(name);
        let got = golden.logits(Profile::Exact);
        assert_eq!(got.len(), golden.exact.len());
        for (want, got) in golden.exact.iter().zip(&got).take(golden.before_selection) {
            let delta = want.iter().zip(got).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(delta < 1e-3, "{name}: {delta}");
        }
        let kl = mean_kl(&golden.exact, &got);
        let agree = golden.exact.iter().zip(&got).filter(|(a, b)| best(a) == best(b)).count();
        println!("{name}: mean KL {kl:.2e}, argmax {agree} of {}", got.len());
        assert!(kl <= 1e-3 && agree * 100 >= got.len() * 98, "{name}: {kl} {agree}");
    }
}

#[test]
fn native_is_no_worse_than_the_official_kernels() {
    for name in ["tiny-20.safetensors", "tiny-700.safetensors"] {
        let golden = Golden::read(name);
        let kl = mean_kl(&golden.exact, &golden.logits(Profile::Native));
        println!("{name}: mean KL {kl:.2e}, the official kernels' {:.2e}", golden.official_kl);
        assert!(kl <= golden.official_kl, "{name}: {kl}");
    }
}
