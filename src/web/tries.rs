//! Wrong passwords and tokens, counted by the address that sent them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The most wrong ones of one address within [`TRIES_WITHIN`]; then nothing of it is looked at until that has passed.
pub(super) const MAX_TRIES: u32 = 10;
pub(super) const TRIES_WITHIN: Duration = Duration::from_secs(60);
/// The most addresses that are counted.
const MAX_ADDRESSES: usize = 1024;

/// What was wrong lately, by address.
#[derive(Default)]
pub(super) struct Tries(Mutex<HashMap<IpAddr, (Instant, u32)>>);

impl Tries {
    pub(super) fn are_spent(&self, from: IpAddr, now: Instant) -> bool {
        let tries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tries.get(&from).is_some_and(|(begin, count)| now.duration_since(*begin) < TRIES_WITHIN && *count >= MAX_TRIES)
    }

    pub(super) fn count(&self, from: IpAddr, now: Instant) {
        let mut tries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tries.len() >= MAX_ADDRESSES {
            tries.retain(|_, (begin, _)| now.duration_since(*begin) < TRIES_WITHIN);
        }
        if tries.len() >= MAX_ADDRESSES && !tries.contains_key(&from) {
            return;
        }
        let entry = tries.entry(from).or_insert((now, 0));
        if now.duration_since(entry.0) >= TRIES_WITHIN {
            *entry = (now, 0);
        }
        entry.1 += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_address_sends_does_not_lock_out_another_and_what_is_counted_is_bounded() {
        let (tries, now) = (Tries::default(), Instant::now());
        let address = |n: u32| IpAddr::from(n.to_be_bytes());
        (0..MAX_TRIES).for_each(|_| tries.count(address(1), now));
        assert!(tries.are_spent(address(1), now) && !tries.are_spent(address(2), now));
        assert!(!tries.are_spent(address(1), now + TRIES_WITHIN));
        (0..5000).for_each(|n| tries.count(address(n), now));
        assert_eq!(tries.0.lock().expect("no panic in here").len(), MAX_ADDRESSES);
    }
}
