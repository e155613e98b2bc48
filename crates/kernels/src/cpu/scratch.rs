//! Scratch that comes back: a pass over the layers asks for the same sizes again and again, and memory fresh from the
//! system costs a fault for every page.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::block::Block;
use crate::{Error, Ledger, Share};

/// What is smaller is left to the allocator.
const SMALLEST: usize = 16 << 10;

/// Memory that is nobody's at the moment, by size. With what is held it never exceeds what was held at once before.
#[derive(Debug)]
pub(super) struct Scratch {
    ledger: Ledger,
    idle: Mutex<Idle>,
}

#[derive(Debug, Default)]
struct Idle {
    by_size: HashMap<usize, Vec<Block>>,
    bytes: usize,
}

impl Scratch {
    pub(super) fn new(ledger: Ledger) -> Self {
        Scratch { ledger, idle: Mutex::default() }
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory of `len` bytes that holds anything. The ledger counts it already.
    pub(super) fn take(&self, len: usize) -> Result<Block, Error> {
        let mut idle = self.idle();
        if let Some(block) = idle.by_size.get_mut(&len).and_then(Vec::pop) {
            idle.bytes -= len;
            return Ok(block);
        }
        if self.over(&idle) {
            *idle = Idle::default();
        }
        drop(idle);
        Block::zeroed(Share::Scratch, len)
    }

    /// Takes memory back. The ledger does not count it any more.
    pub(super) fn give(&self, block: Block) {
        let len = block.bytes().len();
        if len < SMALLEST {
            return;
        }
        let mut idle = self.idle();
        idle.bytes += len;
        if self.over(&idle) {
            idle.bytes -= len;
            return;
        }
        idle.by_size.entry(len).or_default().push(block);
    }

    fn over(&self, idle: &Idle) -> bool {
        let held = self.ledger.holding(Share::Scratch);
        held.held + idle.bytes as u64 > held.peak
    }
}
