//! How many documents there were, hour by hour, so that a loss is seen against a day ago.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::Timestamp;
use crate::store::{Record, Store, Table};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// What is older is not compared with: Proctor was down, and who knows what was done meanwhile.
const OLDEST: Duration = Duration::from_secs(36 * 3600);

/// The counts of one index; at most one per hour, for 36 hours.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Counts {
    target: String,
    index: String,
    /// Oldest first.
    hourly: VecDeque<(Timestamp, f64)>,
}

impl Record for Counts {
    const TABLE: Table = Table::Meta;
    const PREFIX: &'static str = "elasticsearch/";
    fn key(&self) -> String {
        format!("{}{}", Self::PREFIX, self.target)
    }
}

impl Counts {
    /// Returns those of an index that were kept; none where the target had another index then.
    pub(super) fn of(store: &Store, target: &str, index: &str) -> Self {
        let new = Self { target: target.to_owned(), index: index.to_owned(), hourly: VecDeque::new() };
        store.get::<Self>(&new.key()).filter(|kept| kept.index == index).unwrap_or(new)
    }

    /// Returns the newest count that is at least a day old, and at most 36 hours.
    pub(super) fn day_ago(&self, now: Timestamp) -> Option<f64> {
        self.hourly.iter().rev().find(|(at, _)| *at <= now - DAY && *at >= now - OLDEST).map(|(_, documents)| *documents)
    }

    /// Takes a count where the last one is an hour old; says whether it did.
    pub(super) fn note(&mut self, now: Timestamp, documents: f64) -> bool {
        // Later than now: the clock was set back while Proctor was down.
        self.hourly.retain(|(at, _)| *at <= now && *at >= now - OLDEST);
        if self.hourly.back().is_some_and(|(at, _)| *at > now - HOUR) {
            return false;
        }
        self.hourly.push_back((now, documents));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::store::Batch;
    use std::sync::Arc;

    #[tokio::test]
    async fn a_count_is_compared_with_that_of_a_day_ago_over_a_restart_too() {
        let store = Store::open(None, Arc::new(Metrics::new())).expect("lives in memory");
        let begin = Timestamp::from_secs(1_700_000_000);
        let after = |hours: u64| begin + HOUR * u32::try_from(hours).expect("is small");
        let mut counts = Counts::of(&store, "search", "haystack");
        for hour in 0..60 {
            assert!(counts.note(after(hour), hour as f64));
            assert!(!counts.note(after(hour) + Duration::from_secs(1800), 7e9), "one per hour is enough");
        }
        assert!(counts.hourly.len() <= 37, "{}", counts.hourly.len());
        assert_eq!(counts.day_ago(after(59)), Some(35.0));
        let mut batch = Batch::new();
        batch.put(&counts);
        store.commit(batch).await;
        let again = Counts::of(&store, "search", "haystack");
        assert_eq!(again, counts);
        assert_eq!(again.day_ago(after(94)), Some(59.0), "Proctor was down for a while");
        assert_eq!(again.day_ago(after(96)), None, "and for too long");
        assert_eq!(Counts::of(&store, "search", "other").day_ago(after(59)), None);
        let mut set_back = again;
        assert!(set_back.note(begin, 1.0) && set_back.hourly.len() == 1);
        assert_eq!(Counts::default().day_ago(begin), None);
    }
}
