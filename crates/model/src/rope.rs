//! Rotation frequencies (V4.md, *Queries and window keys*).

use fathom_kernels::math::{exp, ln};
use fathom_weights::{Config, Yarn};

/// The frequencies of sliding-window layers, or of those with compressed entries (YaRN), `[r/2]`.
pub(crate) fn frequencies(config: &Config, compressed: bool) -> Vec<f32> {
    let r = config.qk_rope_head_dim;
    let base = if compressed { config.compress_rope_theta } else { config.rope_theta };
    let plain = (0..r / 2).map(|i| exp(-(2.0 * i as f64 / r as f64) * ln(base)));
    if !compressed {
        return plain.map(|f| f as f32).collect();
    }
    let Yarn { factor, beta_fast, beta_slow, original_max_position_embeddings } = config.rope_scaling;
    let length = original_max_position_embeddings as f64;
    let dim = |beta: f64| r as f64 * ln(length / (beta * 2.0 * std::f64::consts::PI)) / (2.0 * ln(base));
    let low = dim(beta_fast).floor().max(0.0);
    let high = dim(beta_slow).ceil().min((r - 1) as f64);
    // As the official code: a ramp of no length is a step.
    let high = if high == low { low + 1e-3 } else { high };
    plain
        .enumerate()
        .map(|(i, f)| {
            let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            (f * (1.0 - ramp) + f / factor * ramp) as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_values() {
        let config = Config::parse(&std::fs::read("../../fixtures/tiny/config.json").unwrap()).unwrap();
        let plain = frequencies(&config, false);
        assert_eq!(plain.len(), 32);
        assert_eq!(plain[0], 1.0);
        for (i, &f) in plain.iter().enumerate() {
            assert_eq!(f, 10_000f64.powf(-2.0 * i as f64 / 64.0) as f32);
        }
        let yarn = frequencies(&config, true);
        assert_eq!(yarn[0], 1.0, "the fastest turn as they are");
        let slowest = 160_000f64.powf(-62.0 / 64.0) / 16.0;
        assert_eq!(yarn[31], slowest as f32, "the slowest sixteen times slower");
    }

    #[test]
    fn a_ramp_of_no_length_is_a_step() {
        let mut config = Config::parse(&std::fs::read("../../fixtures/tiny/config.json").unwrap()).unwrap();
        // Few enough positions that both ends are the first frequency.
        config.rope_scaling.original_max_position_embeddings = 6;
        let steps = frequencies(&config, true);
        assert_eq!((steps[0], steps[31]), (1.0, (160_000f64.powf(-62.0 / 64.0) / 16.0) as f32));
    }
}
