//! What each kernel reaches of a machine's peaks: measured by `cargo bench -p fathom-kernels --bench efficiency` on one machine,
//! and taken to hold on others of the same instruction set. docs/planning.md has the measurement.

use fathom_kernels::Format;
use fathom_model::Kernel;

/// Instruction sets whose kernels differ in what they reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// AVX-512 with instructions for bfloat16, at twice the speed of f32.
    Bf16,
    /// AVX-512 without, with VNNI.
    Avx512,
    /// AVX2, and for want of a measurement any other.
    Avx2,
}

impl Class {
    /// Of an instruction set by its name.
    pub fn of(isa: &str) -> Class {
        match isa {
            "avx512-bf16" => Class::Bf16,
            "avx512" => Class::Avx512,
            _ => Class::Avx2,
        }
    }
}

/// What a kernel reaches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Efficiency {
    /// Of what memory gives.
    pub memory: f64,
    /// Of the arithmetic's peak, where as many inputs or heads as one likes share what is decoded.
    pub most: f64,
    /// So many sharing reach half of that: decoding takes as long as they do.
    pub half: f64,
    /// The same where one token is alone.
    pub half_alone: f64,
    /// Sums so long take as long to be folded and handed on as to be made.
    pub fold: f64,
}

impl Efficiency {
    /// Of the arithmetic's peak, with so many sharing and sums so long.
    pub fn arithmetic(&self, sharing: f64, width: f64, alone: bool) -> f64 {
        let half = if alone { self.half_alone } else { self.half };
        self.most * sharing / (sharing + half) * width / (width + self.fold)
    }
}

/// Seconds that it takes for threads to begin together and to wait for one another.
pub const CALL: f64 = 1.0e-6;

/// Of the drives' speed that reading experts gets.
pub const DRIVE: f64 = 0.8;

/// Of the drive's speed in reading that restoring a snapshot gets, and of that in writing that saving one does.
pub const RESTORE: f64 = 0.8;
/// See [`RESTORE`].
pub const SAVE: f64 = 0.5;

/// What a kernel reaches on an instruction set.
pub fn efficiency(kernel: Kernel, class: Class) -> Efficiency {
    let table = |memory, fold, [bf16, avx512, avx2]: [[f64; 3]; 3]| {
        let [most, half, half_alone] = match class {
            Class::Bf16 => bf16,
            Class::Avx512 => avx512,
            Class::Avx2 => avx2,
        };
        Efficiency { memory, most, half, half_alone, fold }
    };
    match kernel {
        Kernel::Matrix(Format::Fp8) | Kernel::Experts(Format::Fp8) => {
            table(0.9, 90.0, [[1.57, 14.0, 6.1], [0.8, 9.5, 2.9], [0.74, 10.0, 2.1]])
        }
        Kernel::Matrix(_) | Kernel::Experts(Format::Bf16 | Format::F32) => {
            table(0.9, 20.0, [[0.8, 11.5, 4.2], [0.8, 11.5, 4.2], [0.72, 11.0, 5.0]])
        }
        Kernel::Experts(Format::Fp4) => table(0.9, 550.0, [[0.72, 9.5, 4.2], [0.7, 9.5, 3.9], [0.79, 4.0, 1.7]]),
        Kernel::AttendAll => table(0.9, 0.0, [[1.3, 1.5, 17.0], [0.81, 1.0, 5.0], [0.455, 0.5, 3.0]]),
        Kernel::AttendChosen => table(0.9, 0.0, [[1.3, 7.5, 19.0], [0.81, 2.7, 6.0], [0.455, 2.0, 5.0]]),
        Kernel::Index => table(0.9, 0.0, [[0.7, 3.7, 14.0], [0.7, 3.7, 10.0], [0.9, 2.3, 9.0]]),
        // Of what memory gives, for values that come and go between the products; one token's are in caches.
        Kernel::Between => table(0.4, 0.0, [[1.0, 0.0, 0.0]; 3]),
    }
}
