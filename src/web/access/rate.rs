//! How many requests are answered: exporter-toolkit's bucket, one for all who ask.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The longest time between two requests, and the most at once.
const MAX_INTERVAL: Duration = Duration::from_secs(3600);
const MAX_BURST: u32 = 1_000_000;

crate::config_struct! {
    /// How many requests are answered, whoever asks; the next one gets 429.
    pub struct RateLimit {
        /// The time between two requests in the long run; 0 sets no limit.
        interval: Duration = "0",
        /// How many may come at once.
        burst: u32 = "0",
    }
}

impl RateLimit {
    /// Makes the bucket, full; none where there is no limit.
    pub(super) fn bucket(&self) -> Result<Option<Bucket>, String> {
        match (self.interval, self.burst) {
            (Duration::ZERO, _) => Ok(None),
            (interval, _) if interval > MAX_INTERVAL => Err("interval: expected at most 1h".to_owned()),
            (_, burst) if !(1..=MAX_BURST).contains(&burst) => {
                Err(format!("burst: expected a number from 1 to {MAX_BURST}: with none, nothing would be answered"))
            }
            (interval, burst) => Ok(Some(Bucket { interval, spare: interval * (burst - 1), full_at: Mutex::new(None) })),
        }
    }
}

/// A bucket that gains a token with every interval, and loses one with every request.
#[derive(Debug)]
pub(in crate::web) struct Bucket {
    /// The time in which a token comes.
    pub(in crate::web) interval: Duration,
    /// How much of being full it may lack when it still gives one.
    spare: Duration,
    /// When it will be full again.
    full_at: Mutex<Option<Instant>>,
}

impl Bucket {
    /// Takes a token, if there is one.
    pub(in crate::web) fn takes(&self, now: Instant) -> bool {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let lacks = full_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        let has = lacks <= self.spare;
        if has {
            *full_at = Some(now + lacks + self.interval);
        }
        has
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_answered_at_once_and_then_one_with_every_interval() {
        let limit = |interval, burst| RateLimit { interval: Duration::from_secs(interval), burst }.bucket();
        let bucket = limit(10, 3).expect("is right").expect("is a limit");
        let begin = Instant::now();
        let takes = |seconds| bucket.takes(begin + Duration::from_secs(seconds));
        assert_eq!([0, 0, 0, 0, 9].map(takes), [true, true, true, false, false]);
        assert_eq!([10, 10, 25, 30, 30].map(takes), [true, false, true, true, false], "a token each 10 s");
        assert_eq!([1000, 1000, 1000, 1000].map(takes), [true, true, true, false], "never more than the burst");
        assert!(limit(0, 0).expect("is right").is_none());
        assert!(limit(1, 0).is_err() && limit(1, MAX_BURST + 1).is_err() && limit(3601, 1).is_err());
        assert!(limit(3600, MAX_BURST).is_ok_and(|bucket| bucket.is_some_and(|bucket| bucket.takes(begin) && bucket.takes(begin))));
    }
}
