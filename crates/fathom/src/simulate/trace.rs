//! What a run demands: recorded, or drawn at random.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use fathom_weights::Config;
use serde::Deserialize;

/// What a replay must know of the model.
#[derive(Debug, Clone, Deserialize)]
pub struct About {
    /// `num_hidden_layers`.
    pub layers: usize,
    /// `n_routed_experts`.
    pub experts: usize,
    /// `num_experts_per_tok`.
    pub slots: usize,
    /// `num_hash_layers`.
    pub hash_layers: usize,
    /// Bytes of one expert.
    pub expert_bytes: u64,
    /// Experts that the recorded run had room for.
    #[serde(default)]
    pub room: usize,
    /// Its half-life: see [`fathom_weights::experts::Policy`].
    #[serde(default = "half_life")]
    pub half_life: f64,
    /// The counts that it began with.
    #[serde(default)]
    pub counts: Vec<f32>,
}

fn half_life() -> f64 {
    1024.0
}

/// A layer of a pass.
#[derive(Debug, Clone, Deserialize)]
pub struct Demand {
    /// Which pass.
    pub pass: u64,
    /// Which layer.
    pub layer: usize,
    /// Tokens in the pass.
    pub rows: usize,
    /// The experts that are needed.
    pub experts: Vec<u32>,
    /// How many tokens go to each.
    pub tokens: Vec<usize>,
    /// Those that were asked for before, as a guess.
    pub guessed: Vec<u32>,
}

/// What a run demanded, in order.
#[derive(Debug, Clone)]
pub struct Trace {
    /// Of which model.
    pub about: About,
    /// Layer after layer, pass after pass.
    pub demands: Vec<Demand>,
}

/// The most lines of a trace: a million tokens of V4-Pro.
const MOST: usize = 61 << 20;
/// The longest line, in bytes; the first has a count for each expert.
const LONGEST: u64 = 64 << 20;
/// The most experts of a model, in all layers together, as in its configuration.
const MAX_EXPERTS: usize = 1 << 20;
/// The most tokens of a pass, and the most bytes of an expert: some hundred times what there is.
const MAX_ROWS: usize = 1 << 20;
const MAX_BYTES: u64 = 1 << 32;

impl About {
    /// Of a model by its configuration; nothing is in memory.
    pub fn of(config: &Config, expert_bytes: u64, half_life: f64) -> About {
        About {
            layers: config.num_hidden_layers,
            experts: config.n_routed_experts,
            slots: config.num_experts_per_tok,
            hash_layers: config.num_hash_layers,
            expert_bytes,
            room: 0,
            half_life,
            counts: Vec::new(),
        }
    }

    /// What no model has.
    fn problem(&self) -> Option<String> {
        let About { layers, experts, slots, .. } = *self;
        if layers == 0 || experts == 0 || layers.saturating_mul(experts) > MAX_EXPERTS {
            return Some(format!("has {layers} layers of {experts} experts; it must be 1 to {MAX_EXPERTS} in all"));
        }
        if slots == 0 || slots > experts {
            return Some(format!("has {slots} slots for {experts} experts; it must be 1 to {experts}"));
        }
        if self.expert_bytes == 0 || self.expert_bytes > MAX_BYTES {
            return Some(format!("has {} bytes for an expert; it must be 1 to {MAX_BYTES}", self.expert_bytes));
        }
        if !(self.half_life > 0.0 && self.half_life.is_finite()) {
            return Some(format!("has a half-life of {}; it must be more than 0", self.half_life));
        }
        let wrong = self.counts.iter().find(|count| !(**count >= 0.0 && count.is_finite()));
        wrong.map(|count| format!("has a count of {count}; none may be less than 0"))
    }

    /// What this model does not demand.
    fn problem_of(&self, demand: &Demand) -> Option<String> {
        let known = |all: &[u32]| all.iter().all(|&expert| (expert as usize) < self.experts);
        if demand.layer >= self.layers || !known(&demand.experts) || !known(&demand.guessed) {
            return Some("a layer or an expert that the model does not have".into());
        }
        if demand.tokens.len() != demand.experts.len() {
            return Some("experts and tokens differ in length".into());
        }
        if demand.rows == 0 || demand.rows > MAX_ROWS || demand.tokens.iter().any(|&tokens| tokens > demand.rows) {
            return Some(format!("has {} rows; it must be 1 to {MAX_ROWS}, and no expert gets more", demand.rows));
        }
        None
    }
}

impl Trace {
    /// Reads a recorded trace. A last line that is not whole, as a killed run leaves it, is left out.
    ///
    /// # Errors
    /// What is wrong with the file, by line.
    pub fn read(path: &Path) -> Result<Trace, String> {
        let name = path.display();
        let file = std::fs::File::open(path).map_err(|e| format!("cannot read {name}: {e}"))?;
        let mut file = BufReader::new(file);
        let at = |n: usize, e: &dyn std::fmt::Display| format!("{name}, line {}: {e}", n + 1);
        let mut line = Vec::new();
        let mut next = |n: usize, line: &mut Vec<u8>| {
            line.clear();
            let length = file.by_ref().take(LONGEST).read_until(b'\n', line).map_err(|e| at(n, &e))?;
            if length as u64 == LONGEST { Err(at(n, &"is too long for a trace")) } else { Ok(length) }
        };
        if next(0, &mut line)? == 0 {
            return Err(format!("{name}: is empty; record it with --trace"));
        }
        let about: About = serde_json::from_slice(&line).map_err(|e| at(0, &e))?;
        if let Some(problem) = about.problem() {
            return Err(at(0, &problem));
        }
        let mut demands = Vec::new();
        for n in 1..MOST {
            if next(n, &mut line)? == 0 {
                break;
            }
            let demand: Demand = match serde_json::from_slice(&line) {
                Ok(demand) => demand,
                Err(_) if !line.ends_with(b"\n") => break,
                Err(e) => return Err(at(n, &e)),
            };
            if let Some(problem) = about.problem_of(&demand) {
                return Err(at(n, &problem));
            }
            demands.push(demand);
        }
        Ok(Trace { about, demands })
    }

    /// How many passes there are.
    pub fn passes(&self) -> u64 {
        self.demands.chunk_by(|a, b| a.pass == b.pass).count() as u64
    }
}

/// What to draw.
#[derive(Debug, Clone, Copy)]
pub struct Synthetic {
    /// Tokens that are decoded.
    pub tokens: usize,
    /// s of the experts' popularity in a layer, 1 ÷ rankˢ; 0 is uniform. Hash layers are uniform always.
    pub skew: f64,
    /// The chance that a slot goes where one of the token before went.
    pub locality: f64,
    /// The chance that a guess is right.
    pub guess: f64,
    /// Which random numbers.
    pub seed: u64,
}

/// A small deterministic generator (SplitMix64).
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, n: usize) -> usize {
        ((self.unit() * n as f64) as usize).min(n - 1)
    }
}

impl Synthetic {
    /// A trace of one token a pass.
    pub fn trace(&self, about: About) -> Trace {
        let mut random = Random(self.seed);
        let sums = |skew: f64| -> Vec<f64> {
            let mut sum = 0.0;
            (1..=about.experts)
                .map(|rank| {
                    sum += (rank as f64).powf(-skew);
                    sum
                })
                .collect()
        };
        let (skewed, uniform) = (sums(self.skew), sums(0.0));
        let orders: Vec<Vec<u32>> = (0..about.layers).map(|_| shuffled(&mut random, about.experts)).collect();
        let mut before: Vec<Vec<u32>> = vec![Vec::new(); about.layers];
        let mut demands = Vec::with_capacity(self.tokens * about.layers);
        for pass in 0..self.tokens as u64 {
            for layer in 0..about.layers {
                let hash = layer < about.hash_layers;
                let sums = if hash { &uniform } else { &skewed };
                let mut experts: Vec<u32> = Vec::with_capacity(about.slots);
                while experts.len() < about.slots.min(about.experts) {
                    let again = !hash && !before[layer].is_empty() && random.unit() < self.locality;
                    let one = if again {
                        before[layer][random.below(before[layer].len())]
                    } else {
                        let at = random.unit() * sums[about.experts - 1];
                        orders[layer][sums.partition_point(|&sum| sum <= at).min(about.experts - 1)]
                    };
                    // One that is there already: another, so that it ends.
                    if experts.contains(&one) {
                        let other = orders[layer][random.below(about.experts)];
                        if !experts.contains(&other) && random.unit() < 0.5 {
                            experts.push(other);
                        }
                        continue;
                    }
                    experts.push(one);
                }
                let guessed = match hash {
                    true => Vec::new(),
                    false => experts
                        .iter()
                        .map(|&e| if random.unit() < self.guess { e } else { random.below(about.experts) as u32 })
                        .collect(),
                };
                before[layer].clone_from(&experts);
                let tokens = vec![1; experts.len()];
                demands.push(Demand { pass, layer, rows: 1, experts, tokens, guessed });
            }
        }
        Trace { about, demands }
    }
}

fn shuffled(random: &mut Random, n: usize) -> Vec<u32> {
    let mut all: Vec<u32> = (0..n as u32).collect();
    for i in (1..n).rev() {
        all.swap(i, random.below(i + 1));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn about() -> About {
        About {
            layers: 4,
            experts: 32,
            slots: 3,
            hash_layers: 1,
            expert_bytes: 1 << 20,
            room: 0,
            half_life: 256.0,
            counts: Vec::new(),
        }
    }

    #[test]
    fn traces_are_read_or_refused_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        let first = r#"{"layers":2,"experts":4,"slots":1,"hash_layers":0,"expert_bytes":5}"#;
        let line = |layer: usize, expert: usize| {
            format!(r#"{{"pass":1,"layer":{layer},"rows":1,"experts":[{expert}],"tokens":[1],"guessed":[]}}"#)
        };
        std::fs::write(&path, format!("{first}\n{}\n", line(1, 3))).unwrap();
        let trace = Trace::read(&path).unwrap();
        assert_eq!((trace.demands.len(), trace.demands[0].experts[0]), (1, 3));
        for bad in [line(2, 0), line(0, 4), "{}".into(), "x".into()] {
            std::fs::write(&path, format!("{first}\n{bad}\n")).unwrap();
            assert!(Trace::read(&path).unwrap_err().contains("line 2"));
        }
        std::fs::write(&path, "").unwrap();
        assert!(Trace::read(&path).unwrap_err().contains("is empty"));
    }

    #[test]
    fn models_that_cannot_be_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        let fine = [("layers", "2"), ("experts", "4"), ("slots", "1"), ("hash_layers", "0"), ("expert_bytes", "5")];
        let read = |field: &str, value: &str| {
            let mut about: std::collections::BTreeMap<&str, &str> = fine.into_iter().collect();
            about.insert(field, value);
            let fields: Vec<String> = about.iter().map(|(field, value)| format!("\"{field}\":{value}")).collect();
            std::fs::write(&path, format!("{{{}}}\n", fields.join(","))).unwrap();
            Trace::read(&path)
        };
        for (field, value) in fine {
            assert!(read(field, value).is_ok());
        }
        assert!(read("layers", "262144").is_ok() && read("slots", "4").is_ok());
        for (field, value) in [
            ("layers", "0"),
            ("layers", "262145"),
            ("experts", "0"),
            ("experts", "18446744073709551615"),
            ("slots", "0"),
            ("slots", "5"),
            ("expert_bytes", "0"),
            ("expert_bytes", "18446744073709551615"),
            ("half_life", "0"),
            ("half_life", "-1"),
            ("counts", "[-1]"),
        ] {
            let message = read(field, value).unwrap_err();
            assert!(message.contains("line 1: has"), "{field} {value}: {message}");
        }
    }

    #[test]
    fn a_last_line_that_was_cut_short_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        let about = r#"{"layers":2,"experts":4,"slots":1,"hash_layers":0,"expert_bytes":5}"#;
        let line = r#"{"pass":7,"layer":0,"rows":2,"experts":[1],"tokens":[2],"guessed":[]}"#;
        let read = |text: String| {
            std::fs::write(&path, text).unwrap();
            Trace::read(&path)
        };
        for end in 0..line.len() {
            let trace = read(format!("{about}\n{line}\n{}", &line[..end])).unwrap();
            assert_eq!((trace.demands.len(), trace.passes()), (1, 1), "{end}");
        }
        // All but the line's end: nothing of it is missing.
        assert_eq!(read(format!("{about}\n{line}\n{line}")).unwrap().demands.len(), 2);
        // In the middle it is no accident.
        let message = read(format!("{about}\n{}\n{line}\n", &line[..20])).unwrap_err();
        assert!(message.contains("line 2"), "{message}");
        for (wrong, right) in [("[2]", "[3]"), ("\"rows\":2", "\"rows\":0"), ("\"rows\":2", "\"rows\":99999999")] {
            let message = read(format!("{about}\n{}\n", line.replace(wrong, right))).unwrap_err();
            assert!(message.contains("line 2: has") && message.contains("rows"), "{message}");
        }
        assert!(read(about[..30].into()).unwrap_err().contains("line 1"));
        assert_eq!(read(format!("{about}\n")).unwrap().passes(), 0);
    }

    #[test]
    fn skew_and_locality_are_what_was_asked_for() {
        let draw = |skew, locality| Synthetic { tokens: 4000, skew, locality, guess: 1.0, seed: 1 }.trace(about());
        let top = |trace: &Trace| {
            let mut counts = [0; 32];
            trace
                .demands
                .iter()
                .filter(|d| d.layer == 2)
                .for_each(|d| d.experts.iter().for_each(|&e| counts[e as usize] += 1));
            counts.sort_unstable();
            f64::from(counts[31]) / f64::from(counts.iter().sum::<i32>())
        };
        assert!(top(&draw(0.0, 0.0)) < 0.05 && top(&draw(1.5, 0.0)) > 0.2);
        let again = |trace: &Trace| {
            let layer: Vec<&Demand> = trace.demands.iter().filter(|d| d.layer == 2).collect();
            layer
                .windows(2)
                .map(|two| two[1].experts.iter().filter(|e| two[0].experts.contains(e)).count())
                .sum::<usize>()
        };
        assert!(again(&draw(0.0, 0.6)) > 3 * again(&draw(0.0, 0.0)));
    }
}
