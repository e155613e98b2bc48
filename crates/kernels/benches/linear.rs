//! Matrix products at V4-Flash's sizes: `cargo bench -p fathom-kernels`. One input is decode, 512 a chunk of a prompt.
//! Throughput is in bytes of weights for one input and in multiply-adds for more.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fathom_kernels::{Array, Cpu, CpuOptions, Device, Format, Matrix, Share};

/// Bytes of some pattern: no NaN in any format, and nothing that compresses to zero.
fn pattern(len: usize) -> Bytes {
    (0..len).map(|i| (0x20 + (i * 37 + i / 251) % 0x38) as u8).collect()
}

fn linear(c: &mut Criterion) {
    // As many matrices as a cache does not hold, taken in turn.
    let shapes = [
        (Format::Bf16, 16_384, 4096, "head"),
        (Format::Fp8, 32_768, 1024, "wq_b"),
        (Format::Fp8, 8192, 4096, "wo_b"),
        (Format::Fp4, 16_384, 4096, "expert"),
    ];
    for isa in Cpu::isas().into_iter().filter(|&isa| isa != "plain") {
        let cpu = Cpu::new(CpuOptions { isa: Some(isa.into()), ..CpuOptions::default() }).expect("a CPU");
        for (format, rows, cols, name) in shapes {
            let w = Matrix {
                format,
                rows,
                cols,
                data: cpu.upload(pattern(rows * format.row_bytes(cols))).expect("upload"),
                scale: (format.scale_bytes(1, cols) > 0)
                    .then(|| cpu.upload(Bytes::from(vec![120; format.scale_bytes(rows, cols)])).expect("upload")),
            };
            for n in [1, 512] {
                let data = cpu.alloc(Share::Scratch, n * cols * 4).expect("memory");
                let mut x = Array { data, rows: n, width: cols };
                let values: Vec<u8> = (0..n * cols).flat_map(|i| ((i % 17) as f32 - 8.0).to_le_bytes()).collect();
                cpu.write(&mut x.data, 0, &values).expect("memory");
                let mut group = c.benchmark_group(format!("linear/{isa}"));
                group.sample_size(10);
                group.throughput(if n == 1 {
                    Throughput::Bytes(w.bytes() as u64)
                } else {
                    Throughput::Elements((n * rows * cols) as u64)
                });
                group.bench_function(BenchmarkId::new(name, n), |b| {
                    b.iter(|| cpu.scope(|| black_box(cpu.linear(&x, &w).expect("memory"))));
                });
            }
        }
    }
}

criterion_group!(benches, linear);
criterion_main!(benches);
