//! How much one key may ask for, so that nobody takes all places.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fathom_engine::Owner;
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::ApiError;

/// The limits of each key; none where not said.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeyLimits {
    /// Requests in a minute.
    pub rate: Option<NonZeroU32>,
    /// Requests that run or wait at once.
    pub at_once: Option<usize>,
}

/// What each key has asked for.
pub(super) struct Rates {
    limits: KeyLimits,
    rates: Option<DefaultKeyedRateLimiter<Owner>>,
    at_once: Arc<AtOnce>,
}

/// What runs or waits of each key.
type AtOnce = Mutex<HashMap<Owner, Now>>;

/// What runs or waits of one key.
#[derive(Debug, Default)]
struct Now {
    /// Requests whose clients are there.
    awaited: usize,
    /// Those whose clients have left, the first of them first, and whether they are to end.
    left: VecDeque<Arc<AtomicBool>>,
}

/// One of a key's requests at once, until it is dropped or its client leaves.
#[derive(Debug)]
pub(super) struct Turn {
    at_once: Arc<AtOnce>,
    most: Option<usize>,
    owner: Owner,
    over: Arc<AtomicBool>,
    has_left: AtomicBool,
}

impl Rates {
    pub(super) fn new(limits: KeyLimits) -> Rates {
        let rates = limits.rate.map(|rate| RateLimiter::keyed(Quota::per_minute(rate)));
        Rates { limits, rates, at_once: Arc::default() }
    }

    /// Counts a request.
    ///
    /// # Errors
    /// 429, with the time after which to try again.
    pub(super) fn take(&self, owner: &Owner) -> Result<Turn, ApiError> {
        let mut all = lock(&self.at_once);
        let now = all.entry(owner.clone()).or_default();
        if let Some(most) = self.limits.at_once.filter(|most| now.awaited >= *most) {
            let message = format!("{most} requests of this key run or wait already; wait for one of them to end.");
            return Err(ApiError::slow_down("too_many_requests", message, 5));
        }
        if let Some(rates) = &self.rates
            && let Err(until) = rates.check_key(owner)
        {
            let seconds = until.wait_time_from(DefaultClock::default().now()).as_secs_f64().ceil().max(1.0) as u64;
            let message = format!("This key has asked too often; try again in {seconds} s.");
            return Err(ApiError::slow_down("rate_limited", message, seconds));
        }
        now.awaited += 1;
        Ok(Turn {
            at_once: Arc::clone(&self.at_once),
            most: self.limits.at_once,
            owner: owner.clone(),
            over: Arc::default(),
            has_left: AtomicBool::new(false),
        })
    }
}

fn lock(all: &AtOnce) -> MutexGuard<'_, HashMap<Owner, Now>> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Turn {
    /// Notes that its client has left: it counts no more. A key may have as many of these as of the others; beyond that the one
    /// that was left first is over.
    pub(super) fn leave(&self) {
        let mut all = lock(&self.at_once);
        let Some(now) = all.get_mut(&self.owner).filter(|_| !self.has_left.swap(true, Ordering::Relaxed)) else {
            return;
        };
        now.awaited -= 1;
        now.left.push_back(Arc::clone(&self.over));
        if self.most.is_some_and(|most| now.left.len() > most)
            && let Some(first) = now.left.pop_front()
        {
            first.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it is to end because others have been left since.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut all = lock(&self.at_once);
        let Some(now) = all.get_mut(&self.owner) else { return };
        match *self.has_left.get_mut() {
            true => now.left.retain(|over| !Arc::ptr_eq(over, &self.over)),
            false => now.awaited -= 1,
        }
        if now.awaited == 0 && now.left.is_empty() {
            all.remove(&self.owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_its_own() {
        let (a, b) = (Owner("a".into()), Owner("b".into()));
        let rates = Rates::new(KeyLimits { rate: None, at_once: Some(2) });
        let turns = (rates.take(&a).unwrap(), rates.take(&a).unwrap());
        assert_eq!(rates.take(&a).unwrap_err().code, "too_many_requests");
        let other = rates.take(&b).unwrap();
        drop(turns);
        rates.take(&a).unwrap();
        drop(other);
        assert!(lock(&rates.at_once).is_empty());

        let rates = Rates::new(KeyLimits { rate: NonZeroU32::new(3), at_once: None });
        for _ in 0..3 {
            rates.take(&a).unwrap();
        }
        let refused = rates.take(&a).unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.code), (429, "rate_limited"));
        assert!((1..=20).contains(&refused.retry_after.unwrap()));
        rates.take(&b).unwrap();
    }

    #[test]
    fn those_who_left_do_not_count() {
        let key = Owner("a".into());
        let rates = Rates::new(KeyLimits { rate: None, at_once: Some(1) });
        let first = rates.take(&key).unwrap();
        first.leave();
        first.leave();
        let second = rates.take(&key).unwrap();
        assert_eq!(rates.take(&key).unwrap_err().code, "too_many_requests");
        assert!(!first.is_over());
        // One may be left; the first of two ends.
        second.leave();
        assert!(first.is_over() && !second.is_over());
        drop(first);
        let third = rates.take(&key).unwrap();
        drop((second, third));
        assert!(lock(&rates.at_once).is_empty());
        // Without a limit as many as there are places.
        let rates = Rates::new(KeyLimits::default());
        let all: Vec<Turn> = (0..3).map(|_| rates.take(&key).unwrap()).collect();
        all.iter().for_each(Turn::leave);
        assert!(!all.iter().any(Turn::is_over));
    }
}
