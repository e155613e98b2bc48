//! What each kernel reaches of this machine's peaks, measured beside it: the figures of `fathom plan` and docs/planning.md.
//! `cargo bench -p fathom-kernels --bench efficiency`. Every row is measured just after the peaks, best of some runs.

use std::hint::black_box;
use std::time::Instant;

use bytes::Bytes;
use fathom_kernels::{
    Array, Attention, Compressed, Cpu, CpuOptions, Device, Expert, Format, Hyper, HyperShape, IndexShape, Matrix,
    Pages, Peaks, Routing, RowShape, Selection, Share, Span, index_row_bytes,
};

type Buffer = <Cpu as Device>::Buffer;

/// Runs of each, of which the median counts.
const RUNS: usize = 9;
const D: usize = 4096;
const DEPTH: usize = 131_072;

/// A name, and bytes and operations of a run.
struct Row<'a> {
    name: String,
    bytes: f64,
    flops: f64,
    int8: f64,
    run: Box<dyn FnMut(usize) + Send + 'a>,
}

fn floats(cpu: &Cpu, rows: usize, width: usize) -> Array<Buffer> {
    let value = |i: usize| ((i.wrapping_mul(2_654_435_761) >> 7) % 2001) as f32 / 1000.0 - 1.0;
    let bytes: Vec<u8> = (0..rows * width).flat_map(|i| value(i).to_le_bytes()).collect();
    Array { data: buffer(cpu, &bytes), rows, width }
}

fn buffer(cpu: &Cpu, bytes: &[u8]) -> Buffer {
    let mut buffer = cpu.alloc(Share::State, bytes.len()).expect("memory");
    cpu.write(&mut buffer, 0, bytes).expect("memory");
    buffer
}

/// No NaN in any format, and nothing that compresses to zero. In small pages, as a mapped file that was in the page cache before.
fn matrix(cpu: &Cpu, format: Format, rows: usize, cols: usize) -> Matrix<Buffer> {
    let pattern = |len: usize| (0..len).map(|i| (0x20 + (i * 37 + i / 251) % 0x18) as u8).collect::<Bytes>();
    let scales = format.scale_bytes(rows, cols);
    let scale = (scales > 0).then(|| cpu.upload(Bytes::from(vec![120; scales])).expect("upload"));
    let data = cpu.upload(pattern(rows * format.row_bytes(cols))).expect("upload");
    Matrix { format, rows, cols, data, scale }
}

/// Stored rows: plain bytes of elements, scales of 2⁻⁷, then BF16 of about a half.
fn stored(cpu: &Cpu, entries: usize, plain: usize, scales: usize, bf16: usize) -> Buffer {
    let mut bytes = Vec::new();
    for entry in 0..entries {
        bytes.extend((0..plain).map(|i| ((entry * 31 + i * 37) % 113) as u8));
        bytes.extend(std::iter::repeat_n(120, scales));
        bytes.extend((0..bf16).flat_map(|i| [((entry * 13 + i * 29) % 128) as u8, 0x3f]));
    }
    buffer(cpu, &bytes)
}

fn measure(cpu: &Cpu, peaks: Peaks, mut row: Row<'_>) {
    let mut times: Vec<f64> = cpu.scope(|| {
        (row.run)(0);
        let one = |run| {
            let start = Instant::now();
            (row.run)(run);
            start.elapsed().as_secs_f64()
        };
        (0..RUNS).map(one).collect()
    });
    times.sort_by(f64::total_cmp);
    let seconds = times[RUNS / 2];
    let arithmetic = row.flops / peaks.f32_flops + row.int8 / peaks.int8_ops;
    println!(
        "{:12} {:28} {:9.3} ms {:7.1} GB/s {:8.1} Gop/s   of memory {:5.1} %   of arithmetic {:6.1} %",
        cpu.isa(),
        row.name,
        seconds * 1e3,
        row.bytes / seconds / 1e9,
        (row.flops + row.int8) / seconds / 1e9,
        100.0 * row.bytes / peaks.read_bytes / seconds,
        100.0 * arithmetic / seconds
    );
}

fn linear(cpu: &Cpu, format: Format, rows: usize, cols: usize, n: usize, name: &str) {
    // For few inputs as many matrices as no cache holds, in turn.
    let count = if n < 512 { (256 << 20) / (rows * format.row_bytes(cols)) } else { 1 };
    let all: Vec<Matrix<Buffer>> = (0..count.max(1)).map(|_| matrix(cpu, format, rows, cols)).collect();
    let x = floats(cpu, n, cols);
    let run = |i: usize| drop(black_box(cpu.linear(&x, &all[i % all.len()]).expect("memory")));
    let flops = 2.0 * (n * rows * cols) as f64;
    let peaks = cpu.peaks().expect("memory");
    let name = format!("{name} of {cols} × {n}");
    measure(cpu, peaks, Row { name, bytes: all[0].bytes() as f64, flops, int8: 0.0, run: Box::new(run) });
}

fn experts(cpu: &Cpu, each: usize, d: usize, inter: usize) {
    const COUNT: usize = 24;
    let one = || Expert {
        w1: matrix(cpu, Format::Fp4, inter, d),
        w2: matrix(cpu, Format::Fp4, d, inter),
        w3: matrix(cpu, Format::Fp4, inter, d),
    };
    let all: Vec<Expert<Buffer>> = (0..COUNT).map(|_| one()).collect();
    // Six slots; a row alone takes other six each time.
    let (slots, rows) = if each == 1 { (6, 1) } else { (6, each * COUNT / 6) };
    let routing = |run: usize| Routing {
        experts: (0..rows * slots).map(|pair| ((pair + run * slots) % COUNT) as u32).collect(),
        weights: vec![0.1; rows * slots],
        slots,
    };
    let x = floats(cpu, rows, d);
    let mut y = floats(cpu, rows, d);
    let pairs = (rows * slots) as f64;
    let bytes = (all[0].w1.bytes() + all[0].w2.bytes() + all[0].w3.bytes()) as f64 * pairs.min(COUNT as f64);
    let int8 = 6.0 * pairs * (inter * d) as f64;
    let run = |i: usize| cpu.experts(&x, &routing(i), &all, 10.0, &mut y).expect("memory");
    let peaks = cpu.peaks().expect("memory");
    measure(
        cpu,
        peaks,
        Row { name: format!("FP4 experts {d}, {inter} × {each}"), bytes, flops: 0.0, int8, run: Box::new(run) },
    );
}

fn index(cpu: &Cpu, heads: usize, n: usize) {
    let (entries, row) = (DEPTH / 4, index_row_bytes(128));
    let page = stored(cpu, entries, 64, row - 64, 0);
    let (q, weights) = (floats(cpu, n, heads * 128), floats(cpu, n, heads));
    let positions: Vec<u32> = (DEPTH - n..DEPTH).map(|p| p as u32).collect();
    let angles = cpu.angles(&positions, &[0.1; 32]).expect("memory");
    let span = Span { rows: 0..n, start: DEPTH - n };
    let shape = IndexShape { heads, width: 128, keep: 512 };
    let run = |_| {
        let pages = Pages { pages: &[&page], offset: 0, per_page: entries };
        drop(black_box(cpu.index_select(shape, &q, &weights, &angles, &span, &pages).expect("memory")));
    };
    let int8 = 2.0 * (n * entries * heads * 128) as f64;
    let peaks = cpu.peaks().expect("memory");
    let name = format!("indexer, {heads} heads × {n}");
    measure(cpu, peaks, Row { name, bytes: (entries * row) as f64, flops: 0.0, int8, run: Box::new(run) });
}

fn attend(cpu: &Cpu, heads: usize, width: usize, n: usize, all: bool) {
    let (rope, window, keep) = (64, 128, 512);
    let row = RowShape { width, rope };
    let attention = Attention { heads, row, window, sink: floats(cpu, 1, heads).data };
    let rows = |entries| stored(cpu, entries, width - rope, (width - rope) / 64, rope);
    let (page, ring, new) = (rows(DEPTH / 4), rows(window), rows(n));
    let q = floats(cpu, n, heads * width);
    let positions: Vec<u32> = (DEPTH - n..DEPTH).map(|p| p as u32).collect();
    let angles = cpu.angles(&positions, &[0.1; 32]).expect("memory");
    let span = Span { rows: 0..n, start: DEPTH - n };
    let pages = [&page];
    let pages = || Pages { pages: &pages, offset: 0, per_page: DEPTH / 4 };
    let chosen: Vec<u8> = (0..n * keep).flat_map(|i| ((i % keep * 61 + i / keep) as u32).to_le_bytes()).collect();
    let counts: Vec<u8> = (0..n).flat_map(|_| (keep as u32).to_le_bytes()).collect();
    let selection = Selection { entries: buffer(cpu, &chosen), counts: buffer(cpu, &counts), keep };
    let keys = window + if all { DEPTH / 128 } else { keep };
    let mut out = floats(cpu, n, heads * width);
    let run = |_| {
        let compressed = match all {
            true => Compressed::All { pages: pages(), ratio: 128 },
            false => Compressed::Selected { pages: pages(), selection: &selection },
        };
        cpu.attend(&attention, &q, &angles, &span, &new, &ring, &compressed, &mut out).expect("memory");
    };
    let flops = 4.0 * (n * keys * heads * width) as f64;
    let peaks = cpu.peaks().expect("memory");
    let name = format!("{}, {heads} heads of {width} × {n}", if all { "HCA" } else { "CSA" });
    measure(cpu, peaks, Row { name, bytes: (keys * row.bytes()) as f64, flops, int8: 0.0, run: Box::new(run) });
}

/// A connection around nothing, as `pieces` counts its bytes: its matrix is counted beside it.
fn between(cpu: &Cpu, n: usize) {
    let (hc, mixes) = (4, 24);
    let hyper = Hyper { mix: matrix(cpu, Format::F32, mixes, hc * D), base: vec![0.1; mixes], scale: vec![0.5; 3] };
    let shape = HyperShape { copies: hc, iterations: 20, eps: 1e-6, norm_eps: 1e-6 };
    let mut h = floats(cpu, n, hc * D);
    let norm = floats(cpu, 1, D).data;
    let values = n * (4 * hc * D + 4 * D);
    let run = |_| {
        let mixed = cpu.mhc_mix(&h, &hyper, shape).expect("memory");
        let x = cpu.rms_norm(&mixed.input, &norm, 1e-6).expect("memory");
        cpu.mhc_merge(&mut h, &x, &mixed).expect("memory");
    };
    let flops = 2.0 * (n * mixes * hc * D) as f64;
    let peaks = cpu.peaks().expect("memory");
    let name = format!("a connection × {n}");
    measure(cpu, peaks, Row { name, bytes: 4.0 * values as f64, flops, int8: 0.0, run: Box::new(run) });
}

/// An operation on next to nothing: what it costs to have threads begin together.
fn call(cpu: &Cpu) {
    let (x, norm) = (floats(cpu, 64, 64), floats(cpu, 1, 64).data);
    let run = |_| (0..1000).for_each(|_| drop(black_box(cpu.rms_norm(&x, &norm, 1e-6).expect("memory"))));
    let peaks = cpu.peaks().expect("memory");
    measure(cpu, peaks, Row { name: "1000 small calls".into(), bytes: 0.0, flops: 0.0, int8: 0.0, run: Box::new(run) });
}

fn main() {
    // Instruction sets by name, and `narrow` for nothing but narrow matrices.
    let words: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let (narrow, only): (Vec<String>, Vec<String>) = words.into_iter().partition(|word| word == "narrow");
    let wanted = |isa: &&str| *isa != "plain" && (only.is_empty() || only.iter().any(|o| o == isa));
    for isa in Cpu::isas().into_iter().filter(wanted) {
        let cpu = Cpu::new(CpuOptions { isa: Some(isa.into()), ..CpuOptions::default() }).expect("a CPU");
        for cols in [128, 256, 512, 1024, 4096] {
            linear(&cpu, Format::Fp8, 4096, cols, 512, "FP8");
        }
        for cols in [128, 512, 4096] {
            linear(&cpu, Format::Bf16, 2048, cols, 512, "BF16");
        }
        for (d, inter) in [(128, 128), (1024, 512), (4096, 2048)] {
            experts(&cpu, 64, d, inter);
        }
        if !narrow.is_empty() {
            continue;
        }
        for n in [1, 4, 16, 64] {
            linear(&cpu, Format::Fp8, 8192, D, n, "FP8");
            linear(&cpu, Format::Bf16, 4096, D, n, "BF16");
        }
        for each in [1, 4, 16, 256] {
            experts(&cpu, each, D, 2048);
        }
        for (heads, n) in [(64, 256), (64, 1), (16, 256), (16, 1), (2, 256), (2, 1)] {
            index(&cpu, heads, n);
        }
        for (heads, width) in [(64, 512), (16, 512), (4, 128)] {
            for n in [256, 1] {
                attend(&cpu, heads, width, n, true);
                attend(&cpu, heads, width, n, false);
            }
        }
        for n in [1, 512] {
            between(&cpu, n);
        }
        call(&cpu);
    }
}
