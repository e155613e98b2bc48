//! Same tokens, same bits: random geometries, lengths and cuts, alone and in batches, on every instruction set this CPU has
//! and with any number of threads.

use fathom_kernels::{Cpu, CpuOptions, Device, Profile, Share};
use fathom_model::{LogitsWanted, Model, Segment, State};
use fathom_weights::Checkpoint;
use fathom_weights::synth::{Random, Synth};
use proptest::prelude::*;

fn model(checkpoint: &Checkpoint, isa: &str, threads: usize, profile: Profile) -> Model<Cpu> {
    let options = CpuOptions { isa: Some(isa.to_owned()), threads: Some(threads), profile };
    Model::load(Cpu::new(options).unwrap(), checkpoint).unwrap()
}

fn tokens(random: &mut Random, vocab: usize, n: usize) -> Vec<u32> {
    (0..n).map(|_| random.below(vocab) as u32).collect()
}

/// The logits after every token, read in the given cuts.
fn all_logits(model: &Model<Cpu>, tokens: &[u32], mut cut: impl FnMut(usize) -> usize) -> Vec<u32> {
    let mut state = model.new_state().unwrap();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        let n = cut(tokens.len() - at).clamp(1, tokens.len() - at);
        let part = &tokens[at..at + n];
        let rows =
            model.forward(&mut [Segment { state: &mut state, tokens: part, logits: LogitsWanted::All }]).unwrap();
        out.extend(rows[0].iter().map(|v| v.to_bits()));
        at += n;
    }
    assert_eq!(state.position(), tokens.len());
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn cuts_threads_and_instruction_sets(seed: u64, n in 1usize..330, threads in 1usize..5, exact: bool) {
        let synth = Synth::random(seed);
        let checkpoint = synth.checkpoint().unwrap();
        let mut random = Random::new(seed);
        let profile = if exact { Profile::Exact } else { Profile::Native };
        let tokens = tokens(&mut random, checkpoint.config().vocab_size, n);
        let best = Cpu::isas()[0];
        let whole = all_logits(&model(&checkpoint, best, 2, profile), &tokens, |left| left);
        prop_assert!(whole.iter().all(|v| f32::from_bits(*v).is_finite()));
        for isa in Cpu::isas() {
            // Plain code takes its time: a shorter text.
            let short = if isa == "plain" { n.min(70) } else { n };
            let model = model(&checkpoint, isa, threads, profile);
            let got = all_logits(&model, &tokens[..short], |left| 1 + random.below(left.min(150)));
            let vocab = checkpoint.config().vocab_size;
            prop_assert!(got == whole[..short * vocab], "{isa}, {threads} threads, {:?}", synth.config);
        }
    }

    #[test]
    fn batches(seed: u64, lengths in prop::collection::vec(1usize..150, 2..4)) {
        let checkpoint = Synth::random(seed).checkpoint().unwrap();
        let mut random = Random::new(seed);
        let model = model(&checkpoint, Cpu::isas()[0], 2, Profile::Native);
        let texts: Vec<Vec<u32>> =
            lengths.iter().map(|&n| tokens(&mut random, checkpoint.config().vocab_size, n)).collect();
        let alone: Vec<Vec<u32>> = texts.iter().map(|t| all_logits(&model, t, |left| left)).collect();
        let mut states: Vec<_> = texts.iter().map(|_| model.new_state().unwrap()).collect();
        let mut together = vec![Vec::new(); texts.len()];
        // Some of the sessions at a time, some tokens of each.
        while states.iter().zip(&texts).any(|(s, t)| s.position() < t.len()) {
            let mut who = Vec::new();
            let mut segments = Vec::new();
            for (i, (state, text)) in states.iter_mut().zip(&texts).enumerate() {
                let left = text.len() - state.position();
                if left > 0 && random.below(3) > 0 {
                    let n = 1 + random.below(left.min(140));
                    let at = state.position();
                    segments.push(Segment { state, tokens: &text[at..at + n], logits: LogitsWanted::All });
                    who.push(i);
                }
            }
            if !segments.is_empty() {
                for (i, rows) in who.into_iter().zip(model.forward(&mut segments).unwrap()) {
                    together[i].extend(rows.iter().map(|v| v.to_bits()));
                }
            }
        }
        prop_assert!(together == alone);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    /// A session that was saved and restored goes on with the bits of one that was not, wherever it was cut and in whatever
    /// chunks it was read; and what is saved does not depend on those.
    #[test]
    fn snapshots(seed: u64, n in prop_oneof![1usize..300, 1000usize..1060, 2040usize..2060], more in 1usize..40) {
        let checkpoint = Synth::random(seed).checkpoint().unwrap();
        let mut random = Random::new(seed);
        let model = model(&checkpoint, Cpu::isas()[0], 2, Profile::Native);
        let text = tokens(&mut random, checkpoint.config().vocab_size, n + more);
        let read = |random: &mut Random, text: &[u32], most: usize| {
            let (mut state, mut at) = (model.new_state().unwrap(), 0);
            while at < text.len() {
                let part = &text[at..(at + 1 + random.below(most)).min(text.len())];
                model.forward(&mut [Segment { state: &mut state, tokens: part, logits: LogitsWanted::None }]).unwrap();
                at += part.len();
            }
            state
        };
        let save = |state: &State<Cpu>| {
            let pages: Vec<Vec<u8>> = (0..n / Model::<Cpu>::PAGE).map(|i| model.page(state, i).unwrap()).collect();
            (pages, model.tail(state).unwrap())
        };
        let mut straight = read(&mut random, &text[..n], 500);
        let (pages, tail) = save(&straight);
        let again = read(&mut random, &text[..n], 90);
        prop_assert!(save(&again) == (pages.clone(), tail.clone()), "the same bytes");
        let restore = |n, pages: &[Vec<u8>], tail: &[u8]| {
            model.restore(n, tail, |i| pages.get(i).ok_or(fathom_model::Error::Snapshot { position: n }))
        };
        let mut restored = restore(n, &pages, &tail).unwrap();
        for token in n..text.len() {
            let step = |state: &mut State<Cpu>| {
                let tokens = &text[token..=token];
                model.forward(&mut [Segment { state, tokens, logits: LogitsWanted::Last }]).unwrap().remove(0)
            };
            let bits = |logits: Vec<f32>| logits.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            prop_assert_eq!(bits(step(&mut straight)), bits(step(&mut restored)));
        }
        // Other sizes are another model's.
        prop_assert!(restore(n, &pages, &tail[1..]).is_err());
        prop_assert!(restore(n + Model::<Cpu>::PAGE, &pages, &tail).is_err());
        // A model of windows alone keeps nothing in its pages.
        if let Some(at) = pages.iter().position(|page| !page.is_empty()) {
            let mut short = pages.clone();
            short[at].pop();
            prop_assert!(restore(n, &short, &tail).is_err());
        }
    }

    /// A fork and its origin go their own ways, each as if it had been alone; full pages are held once.
    #[test]
    fn forks(seed: u64, n in 1usize..1300, more in 1usize..40) {
        let checkpoint = Synth::random(seed).checkpoint().unwrap();
        let model = model(&checkpoint, Cpu::isas()[0], 2, Profile::Native);
        let mut random = Random::new(seed);
        let mut read = |n| tokens(&mut random, checkpoint.config().vocab_size, n);
        let (start, ways) = (read(n), [read(more), read(more)]);
        let step = |state: &mut _, tokens: &[u32]| {
            model.forward(&mut [Segment { state, tokens, logits: LogitsWanted::Last }]).unwrap().remove(0)
        };
        let alone = ways.each_ref().map(|way| {
            let mut state = model.new_state().unwrap();
            step(&mut state, &start);
            step(&mut state, way)
        });
        let mut origin = model.new_state().unwrap();
        step(&mut origin, &start);
        let held = || model.device().ledger().holding(Share::State).held;
        let before = held();
        let mut fork = model.fork(&origin).unwrap();
        prop_assert_eq!(held(), before);
        for token in 0..more {
            if token == 1 {
                // A page may have been full, and a new one begun by both.
                prop_assert!(held() - before <= model.state_bytes(n % 1024) + 2 * (model.state_bytes(1) - model.state_bytes(0)));
            }
            let (a, b) = (step(&mut origin, &ways[0][token..=token]), step(&mut fork, &ways[1][token..=token]));
            if token + 1 == more {
                prop_assert!(a == alone[0] && b == alone[1]);
            }
        }
    }
}

/// What is planned is what is held: state to the byte, scratch at most, by one session and by two that share a pass.
#[test]
fn memory_is_as_planned() {
    for seed in 0..12 {
        // Every third has so many words that their logits are more than all else.
        let synth = Synth::random(seed);
        let synth = if seed % 3 == 0 { synth.set("vocab_size", 20_000) } else { synth };
        let checkpoint = synth.checkpoint().unwrap();
        // The last is more than a strip of attention.
        for chunk in [1, 40, 200, 600] {
            let model = model(&checkpoint, Cpu::isas()[0], 3, Profile::Native);
            let tokens = tokens(&mut Random::new(seed), checkpoint.config().vocab_size, 1100);
            let mut state = model.new_state().unwrap();
            model.device().ledger().limit(Share::State, model.state_bytes(1100));
            model.device().ledger().limit(Share::Scratch, model.scratch_bytes(chunk, 1));
            for part in tokens.chunks(chunk) {
                let logits = LogitsWanted::Last;
                model.forward(&mut [Segment { state: &mut state, tokens: part, logits }]).unwrap();
            }
            assert_eq!(model.device().ledger().holding(Share::State).held, model.state_bytes(1100));
            let scratch = model.device().ledger().holding(Share::Scratch);
            assert!(scratch.held == 0);
            // Of so small a model passes with few rows may take more than twice what long chunks do, and are planned for.
            let planned = model.scratch_bytes(chunk, 1);
            assert!(chunk < 200 || scratch.peak * 3 > planned, "{} of {planned}", scratch.peak);
            // Logits of every row.
            let wanted = chunk.min(40);
            model.device().ledger().limit(Share::Scratch, model.scratch_bytes(wanted, wanted));
            model.device().ledger().limit(Share::State, 2 * model.state_bytes(1100));
            let (mut other, logits) = (model.new_state().unwrap(), LogitsWanted::All);
            model.forward(&mut [Segment { state: &mut other, tokens: &tokens[..wanted], logits }]).unwrap();
            drop(other);
            model.device().ledger().limit(Share::Scratch, model.scratch_bytes(chunk, 1));
            // The same rows of two sessions, shared out in ways that the device may take more for.
            model.device().ledger().limit(Share::State, 3 * model.state_bytes(1100));
            for part in [1, chunk / 3, chunk / 2].into_iter().filter(|part| (1..chunk).contains(part)) {
                let mut others = [model.new_state().unwrap(), model.new_state().unwrap()];
                let [one, two] = &mut others;
                let logits = LogitsWanted::None;
                let (first, second) = tokens[..chunk].split_at(part);
                model
                    .forward(&mut [
                        Segment { state: one, tokens: first, logits },
                        Segment { state: two, tokens: second, logits },
                    ])
                    .unwrap();
            }
        }
    }
}

/// A session's size is V4.md's table: per position (583 + 68)/4 in CSA layers and 583/128 in HCA layers.
#[test]
fn state_is_what_the_paper_says() {
    let layers = 43;
    let ratios: Vec<usize> = (0..layers)
        .map(|i| {
            if i < 2 {
                0
            } else if i % 2 == 0 {
                4
            } else {
                128
            }
        })
        .collect();
    let flash = Synth::tiny(1)
        .set("num_hidden_layers", layers)
        .set("compress_ratios", ratios)
        .set("head_dim", 512)
        .set("sliding_window", 128)
        .set("n_routed_experts", 4)
        .set("num_hash_layers", 0)
        .checkpoint()
        .unwrap();
    let model = model(&flash, Cpu::isas()[0], 1, Profile::Native);
    let positions = 1 << 20;
    let table = 21.0 * (583.0 + 68.0) / 4.0 + 20.0 * 583.0 / 128.0;
    let growing = table * f64::from(positions);
    let fixed = model.state_bytes(0) as f64;
    assert!((model.state_bytes(positions as usize) as f64 - growing - fixed).abs() < 1.0);
    assert!(fixed < 15e6, "{fixed}");
    assert!((growing / f64::from(1 << 30) - 3.43).abs() < 0.01, "3.08 + 0.35 GiB");
}

#[test]
fn bad_arguments_touch_nothing() {
    let checkpoint = Synth::tiny(1).set("max_position_embeddings", 50).checkpoint().unwrap();
    let model = model(&checkpoint, Cpu::isas()[0], 1, Profile::Native);
    let mut state = model.new_state().unwrap();
    let mut push = |tokens: &[u32]| {
        model
            .forward(&mut [Segment { state: &mut state, tokens, logits: LogitsWanted::Last }])
            .map_err(|e| e.to_string())
    };
    push(&[1; 40]).unwrap();
    assert!(push(&[1, 512]).unwrap_err().contains("token id 512 at position 41"));
    assert!(push(&[1; 11]).unwrap_err().contains("51 tokens do not fit"));
    push(&[1; 10]).unwrap();
    assert_eq!(state.position(), 50);
}

/// A pass that found no memory leaves the session as it was, for itself and for its forks.
#[test]
fn no_memory_is_no_harm() {
    let checkpoint = Synth::tiny(1).checkpoint().unwrap();
    let model = model(&checkpoint, Cpu::isas()[0], 1, Profile::Native);
    let ledger = model.device().ledger();
    let mut state = model.new_state().unwrap();
    let read = |state: &mut State<Cpu>, n: usize| {
        let tokens = vec![1; n];
        model.forward(&mut [Segment { state, tokens: &tokens, logits: LogitsWanted::None }]).map(drop)
    };
    read(&mut state, 500).unwrap();
    ledger.limit(Share::State, model.state_bytes(2000));
    read(&mut state, 3000).unwrap_err();
    assert_eq!(ledger.holding(Share::State).held, model.state_bytes(500), "given back");
    ledger.limit(Share::State, u64::MAX);
    read(&mut state, 1).unwrap();
    let mut fork = model.fork(&state).unwrap();
    read(&mut fork, 600).unwrap();
    read(&mut state, 600).unwrap();
    assert_eq!(model.tail(&state).unwrap(), model.tail(&fork).unwrap());

    // One that failed on the way is broken, and says so.
    ledger.limit(Share::Scratch, 1);
    read(&mut state, 1).unwrap_err();
    assert!(matches!(model.page(&state, 0), Err(fathom_model::Error::Broken)));
    assert!(matches!(model.tail(&state), Err(fathom_model::Error::Broken)));
}
