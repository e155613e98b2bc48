//! `fathom pack`: a copy of a checkpoint in which every expert is one read.

use std::io::Write;
use std::path::PathBuf;

use fathom_kernels::human;
use fathom_weights::{Checkpoint, Packed};

use super::Outcome;
use crate::drive::free_bytes;
use crate::ui::{Progress, out};

/// Flags of `fathom pack`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder with an official checkpoint
    model: PathBuf,
    /// The folder of the copy; an interrupted copy is gone on with
    out: PathBuf,
}

/// Copies a checkpoint, expert after expert.
pub fn pack(args: &Args) -> Outcome {
    const STEP: u64 = 1 << 20;
    let checkpoint = Checkpoint::open(&args.model)?;
    room(&checkpoint, args)?;
    let mut bar: Option<Progress> = None;
    let Packed { bytes, kept } = checkpoint.pack(&args.model, &args.out, &mut |done, total| {
        let bar = bar.get_or_insert_with(|| Progress::of("packing", "MiB", (total / STEP) as usize, false));
        bar.update((done / STEP) as usize, "");
    })?;
    if let Some(mut bar) = bar {
        bar.finish();
    }
    let before = if kept > 0 { format!(", of which {} were there", human(kept)) } else { String::new() };
    writeln!(out(), "{}: {}{before}", args.out.display(), human(bytes))?;
    Ok(())
}

/// Whether the drive has room, told before hours of writing rather than after.
fn room(checkpoint: &Checkpoint, args: &Args) -> Outcome {
    let Ok(free) = free_bytes(&args.out) else { return Ok(()) };
    let wants = checkpoint.pack_needs(&args.out)?;
    if free < wants {
        let out = args.out.display();
        return Err(
            format!("{out}: its drive has {} free, but the copy takes {} more", human(free), human(wants)).into()
        );
    }
    Ok(())
}
