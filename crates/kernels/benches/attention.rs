//! The indexer and attention at a depth of 262,144 positions, in V4-Flash's shapes and the embedded model's:
//! `cargo bench -p fathom-kernels --bench attention`. Throughput is in multiply-adds.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fathom_kernels::{
    Array, Attention, Compressed, Cpu, CpuOptions, Device, IndexShape, Pages, RowShape, Selection, Share, Span,
    index_row_bytes,
};

type Buffer = <Cpu as Device>::Buffer;

const DEPTH: usize = 262_144;
/// Rows of a strip, and one row of decode.
const ROWS: [usize; 2] = [1, 256];

/// Values that look random, from −1 to 1.
fn array(cpu: &Cpu, rows: usize, width: usize) -> Array<Buffer> {
    let value = |i: usize| ((i.wrapping_mul(2_654_435_761) >> 7) % 2001) as f32 / 1000.0 - 1.0;
    let bytes: Vec<u8> = (0..rows * width).flat_map(|i| value(i).to_le_bytes()).collect();
    Array { data: buffer(cpu, &bytes), rows, width }
}

fn buffer(cpu: &Cpu, bytes: &[u8]) -> Buffer {
    let mut buffer = cpu.alloc(Share::State, bytes.len()).expect("memory");
    cpu.write(&mut buffer, 0, bytes).expect("memory");
    buffer
}

/// `entries` stored rows of `plain` bytes of elements, then scales of 2⁻⁷, then BF16 of about a half.
fn rows(cpu: &Cpu, entries: usize, plain: usize, scales: usize, bf16: usize) -> Buffer {
    let mut bytes = Vec::new();
    for entry in 0..entries {
        bytes.extend((0..plain).map(|i| ((entry * 31 + i * 37) % 113) as u8));
        bytes.extend(std::iter::repeat_n(120, scales));
        bytes.extend((0..bf16).flat_map(|i| [((entry * 13 + i * 29) % 128) as u8, 0x3f]));
    }
    buffer(cpu, &bytes)
}

fn cpus() -> Vec<Cpu> {
    let isas = Cpu::isas().into_iter().filter(|&isa| isa != "plain");
    isas.map(|isa| Cpu::new(CpuOptions { isa: Some(isa.into()), ..CpuOptions::default() }).expect("a CPU")).collect()
}

fn index(c: &mut Criterion) {
    for cpu in cpus() {
        for (heads, keep) in [(64, 512), (2, 32)] {
            let shape = IndexShape { heads, width: 128, keep };
            let (entries, row) = (DEPTH / 4, index_row_bytes(128));
            let page = rows(&cpu, entries, 64, row - 64, 0);
            for n in ROWS {
                let (q, weights) = (array(&cpu, n, heads * 128), array(&cpu, n, heads));
                let positions: Vec<u32> = (DEPTH - n..DEPTH).map(|p| p as u32).collect();
                let angles = cpu.angles(&positions, &[0.1; 32]).expect("memory");
                let span = Span { rows: 0..n, start: DEPTH - n };
                let pages = Pages { pages: &[&page], offset: 0, per_page: entries };
                let mut group = c.benchmark_group(format!("index/{}", cpu.isa()));
                group.sample_size(10);
                group.throughput(Throughput::Elements((n * entries * heads * 128) as u64));
                group.bench_function(BenchmarkId::new(format!("{heads}_heads"), n), |b| {
                    let select = || cpu.index_select(shape, &q, &weights, &angles, &span, &pages).expect("memory");
                    b.iter(|| cpu.scope(|| black_box(select())));
                });
            }
        }
    }
}

fn attend(c: &mut Criterion) {
    for cpu in cpus() {
        for (heads, width, rope, window, keep) in [(64, 512, 64, 128, 512), (4, 128, 64, 32, 32)] {
            let row = RowShape { width, rope };
            let attention = Attention { heads, row, window, sink: array(&cpu, 1, heads).data };
            let stored = |entries| rows(&cpu, entries, width - rope, (width - rope) / 64, rope);
            let (page, ring) = (stored(DEPTH / 4), stored(window));
            for n in ROWS {
                let q = array(&cpu, n, heads * width);
                let new = stored(n);
                let positions: Vec<u32> = (DEPTH - n..DEPTH).map(|p| p as u32).collect();
                let angles = cpu.angles(&positions, &vec![0.1; rope / 2]).expect("memory");
                let span = Span { rows: 0..n, start: DEPTH - n };
                let all = [&page];
                let pages = || Pages { pages: &all, offset: 0, per_page: DEPTH / 4 };
                let chosen: Vec<u8> =
                    (0..n * keep).flat_map(|i| ((i % keep * 127 + i / keep) as u32).to_le_bytes()).collect();
                let counts: Vec<u8> = (0..n).flat_map(|_| (keep as u32).to_le_bytes()).collect();
                let selection = Selection { entries: buffer(&cpu, &chosen), counts: buffer(&cpu, &counts), keep };
                for (name, keys, compressed) in [
                    ("hca", window + DEPTH / 128, Compressed::All { pages: pages(), ratio: 128 }),
                    ("csa", window + keep, Compressed::Selected { pages: pages(), selection: &selection }),
                ] {
                    let mut out = array(&cpu, n, heads * width);
                    let mut group = c.benchmark_group(format!("attend/{}", cpu.isa()));
                    group.sample_size(10);
                    group.throughput(Throughput::Elements((2 * n * keys * heads * width) as u64));
                    group.bench_function(BenchmarkId::new(format!("{name}_{heads}x{width}"), n), |b| {
                        b.iter(|| {
                            cpu.scope(|| {
                                cpu.attend(&attention, &q, &angles, &span, &new, &ring, &compressed, &mut out)
                                    .expect("memory");
                            });
                        });
                    });
                }
            }
        }
    }
}

criterion_group!(benches, index, attend);
criterion_main!(benches);
