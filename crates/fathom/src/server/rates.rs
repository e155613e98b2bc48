//! How much one key may ask for, so that nobody takes all places.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

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
    at_once: Arc<Mutex<HashMap<Owner, usize>>>,
}

/// One of a key's requests at once, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    at_once: Arc<Mutex<HashMap<Owner, usize>>>,
    owner: Owner,
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
        let mut all = self.at_once.lock().unwrap_or_else(PoisonError::into_inner);
        let now = all.entry(owner.clone()).or_default();
        if let Some(most) = self.limits.at_once.filter(|most| *now >= *most) {
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
        *now += 1;
        Ok(Turn { at_once: Arc::clone(&self.at_once), owner: owner.clone() })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut all = self.at_once.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(now) = all.get_mut(&self.owner) {
            *now -= 1;
            if *now == 0 {
                all.remove(&self.owner);
            }
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
        assert!(rates.at_once.lock().unwrap().is_empty());

        let rates = Rates::new(KeyLimits { rate: NonZeroU32::new(3), at_once: None });
        for _ in 0..3 {
            rates.take(&a).unwrap();
        }
        let refused = rates.take(&a).unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.code), (429, "rate_limited"));
        assert!((1..=20).contains(&refused.retry_after.unwrap()));
        rates.take(&b).unwrap();
    }
}
