//! What it costs to save a session that has grown: its new full pages, one tail and a manifest.
//!
//! One test, so that nothing else of this process writes: what the system counts is compared too.
#![allow(missing_docs)]
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::path::Path;

use common::*;
use fathom_kernels::Cpu;
use fathom_model::State;
use fathom_weights::synth::{Random, Synth};

/// Bytes that could be rows of a cache: every number is finite.
fn made_up(seed: usize, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed as u64);
    let words = (0..length.div_ceil(8)).map(|_| (random.bits() & 0x3737_3737_3737_3737).to_le_bytes());
    let mut bytes: Vec<u8> = words.flatten().collect();
    bytes.truncate(length);
    bytes
}

/// Bytes that this process has handed to the system.
fn handed_over() -> u64 {
    let io = fs::read_to_string("/proc/self/io").unwrap_or_default();
    io.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse().ok()).unwrap_or(0)
}

/// A session of `n` tokens and the logits after it. A long one is made up, up to a few tokens before.
fn session(loaded: &Loaded, tokens: &[u32]) -> (State<Cpu>, Vec<f32>) {
    let model = &loaded.model;
    let made = if tokens.len() > 10_000 { (tokens.len() - 1) / 128 * 128 } else { 0 };
    let mut state = model.new_state().unwrap();
    if made > 0 {
        let tail = model.state_bytes(0) + page_bytes(loaded) * (made % 1024) as u64 / 1024;
        let page = |i| Ok(made_up(i + 1, page_bytes(loaded) as usize));
        state = model.restore::<fathom_model::Error, _>(made, &made_up(0, tail as usize), page).unwrap();
    }
    let logits = loaded.read(&mut state, &tokens[made..]);
    (state, logits)
}

fn page_bytes(loaded: &Loaded) -> u64 {
    loaded.model.state_bytes(1) - loaded.model.state_bytes(0)
}

/// Saves a session of `n` tokens, and again when it is `m` tokens longer. Checks what the second cost, and returns it.
fn grow(loaded: &Loaded, n: usize, m: usize) -> u64 {
    // Hundreds of megabytes, which a container's /dev/shm may not have.
    let folder = tempfile::tempdir().unwrap();
    let ns = open(folder.path(), options());
    let tokens = loaded.tokens(n as u32, n + m);
    let (mut state, logits) = session(loaded, &tokens[..n]);
    loaded.save(&state, &tokens[..n], &logits, &ns).unwrap();
    let logits = loaded.read(&mut state, &tokens[n..]);
    let (before, on_disk) = (handed_over(), held(folder.path()));
    let saved = loaded.save(&state, &tokens, &logits, &ns).unwrap();
    let (by_the_system, on_disk) = (handed_over() - before, held(folder.path()) - on_disk);

    let new = |span: usize| ((n + m) / span - n / span) as u64;
    assert_eq!(saved.new_pages as u64, new(1024));
    let tail = (loaded.model.tail(&state).unwrap().len() + 4 + 4 * logits.len()) as u64;
    // 72 bytes a page, and tokens, of at most three bytes, since the last of 16,384.
    let manifest = 512 + 72 * ((n + m) / 1024) as u64 + 40 * ((n + m) / 16_384) as u64 + 3 * ((n + m) % 16_384) as u64;
    let blocks = new(16_384) * (3 * 16_384 + 88);
    let limit = (new(1024) * page_bytes(loaded) + tail) * 11 / 10 + manifest + blocks;
    let written = saved.bytes_written;
    println!(
        "{n} tokens and {m} more: {written} bytes, of which the tail has {tail}; {by_the_system} by the system's count"
    );
    assert!(written <= limit, "{n} and {m} more: {written} bytes, {limit} allowed");
    // What is on the disk afterwards, less the day's count, is what was reported.
    assert!(on_disk <= written && written <= on_disk + 200, "{n} and {m} more: {on_disk}, {written} reported");
    // Beside it the count, and what threads say to wake each other.
    assert!(by_the_system <= written + 8192, "{n} and {m} more: {by_the_system} bytes, {written} reported");
    written
}

fn held(folder: &Path) -> u64 {
    files(folder).iter().map(|file| fs::metadata(file).unwrap().len()).sum()
}

#[test]
fn a_longer_session_writes_what_is_new() {
    let tiny = Loaded::tiny();
    for (n, m) in [(1, 1), (500, 100), (1000, 30), (1024, 1), (2047, 1), (3000, 2000)] {
        grow(&tiny, n, m);
    }
    let mut random = Random::new(1);
    for _ in 1..times() {
        grow(&tiny, 1 + random.below(5000), 1 + random.below(3000));
    }
    let flash = Loaded::new(&Synth::flash_state(1).checkpoint().unwrap());
    assert!(grow(&flash, 100_000, 100) <= 20_000_000);
    // Over a page's end, and over a block's of tokens.
    grow(&flash, 16_300, 100);
}
