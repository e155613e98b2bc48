//! The memory ledger: who may hold how much, who holds how much, and who held the most.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Error;

/// What memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Share {
    /// Dense weights held in memory of our own. Mapped files are not counted: the system may drop them.
    Weights,
    /// Experts held in memory of our own.
    Experts,
    /// Session state: pages, windows, frontiers.
    State,
    /// What one pass over the layers needs and gives back.
    Scratch,
}

impl Share {
    /// Every share, in the order they are shown.
    pub const ALL: [Share; 4] = [Share::Weights, Share::Experts, Share::State, Share::Scratch];
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Share::Weights => "weights",
            Share::Experts => "experts",
            Share::State => "state",
            Share::Scratch => "scratch",
        })
    }
}

/// One share's numbers, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    /// What it is for.
    pub share: Share,
    /// The most it may hold.
    pub limit: u64,
    /// What it holds now.
    pub held: u64,
    /// The most it held at once.
    pub peak: u64,
}

#[derive(Debug)]
struct Account {
    limit: AtomicU64,
    held: AtomicU64,
    peak: AtomicU64,
}

/// Counts every large allocation against a limit decided before the first token. Clones share the counts.
#[derive(Debug, Clone)]
pub struct Ledger(Arc<[Account; 4]>);

impl Default for Ledger {
    fn default() -> Self {
        Ledger(Arc::new(std::array::from_fn(|_| Account {
            limit: AtomicU64::new(u64::MAX),
            held: AtomicU64::new(0),
            peak: AtomicU64::new(0),
        })))
    }
}

impl Ledger {
    /// Sets the most a share may hold from now on. What is already held stays.
    pub fn limit(&self, share: Share, bytes: u64) {
        self.0[share as usize].limit.store(bytes, Ordering::Relaxed);
    }

    /// Takes `bytes` out of a share; they come back when the reservation is dropped.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], naming the share and its numbers.
    pub fn reserve(&self, share: Share, bytes: usize) -> Result<Reservation, Error> {
        let account = &self.0[share as usize];
        let limit = account.limit.load(Ordering::Relaxed);
        let taken = account.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            held.checked_add(bytes as u64).filter(|&sum| sum <= limit)
        });
        match taken {
            Ok(before) => {
                account.peak.fetch_max(before + bytes as u64, Ordering::Relaxed);
                Ok(Reservation { ledger: self.clone(), share, bytes: bytes as u64 })
            }
            Err(held) => Err(Error::OutOfMemory { share, wanted: bytes as u64, held, limit }),
        }
    }

    /// One share's numbers.
    pub fn holding(&self, share: Share) -> Holding {
        let a = &self.0[share as usize];
        Holding {
            share,
            limit: a.limit.load(Ordering::Relaxed),
            held: a.held.load(Ordering::Relaxed),
            peak: a.peak.load(Ordering::Relaxed),
        }
    }
}

/// Bytes taken out of a share; dropping it gives them back.
#[derive(Debug)]
pub struct Reservation {
    ledger: Ledger,
    share: Share,
    bytes: u64,
}

impl Reservation {
    /// What the bytes are for.
    pub fn share(&self) -> Share {
        self.share
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.ledger.0[self.share as usize].held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_refuses_and_gives_back() {
        let ledger = Ledger::default();
        ledger.limit(Share::State, 100);
        let a = ledger.reserve(Share::State, 60).unwrap();
        assert!(matches!(
            ledger.reserve(Share::State, 41),
            Err(Error::OutOfMemory { share: Share::State, wanted: 41, held: 60, limit: 100 })
        ));
        drop(a);
        let _b = ledger.reserve(Share::State, 100).unwrap();
        assert_eq!(ledger.holding(Share::State), Holding { share: Share::State, limit: 100, held: 100, peak: 100 });
        assert_eq!(ledger.holding(Share::Scratch).held, 0);
    }
}
