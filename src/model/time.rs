//! Moments, as milliseconds since the Unix epoch.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration::print_measured;

/// A moment in milliseconds since the Unix epoch: the resolution of Prometheus.
///
/// Nothing in `model` reads a clock; `now` comes from [`crate::tasks::now`] once per tick and is handed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Returns the moment `seconds` after the epoch; the last one there is where that is beyond it.
    pub const fn from_secs(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// Returns the seconds since the epoch, with fraction, as metrics want them.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1000.0
    }

    /// Returns how long after `earlier` this is; zero where it is not after.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Says for people how long ago this was, in whole seconds: `just now`, `41s ago`.
    pub fn ago(self, now: Self) -> String {
        let since = Duration::from_secs(now.since(self).as_secs());
        if since.is_zero() { "just now".to_owned() } else { format!("{} ago", print_measured(since)) }
    }

    /// Returns the same moment for formatting with time zones; the epoch where it is out of jiff's range.
    pub fn to_jiff(self) -> jiff::Timestamp {
        jiff::Timestamp::from_millisecond(self.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(rhs.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;
    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(rhs.as_millis()).unwrap_or(i64::MAX)))
    }
}

/// RFC 3339 in UTC with seconds, as logs and JSON show it.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_jiff().strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
    }
}
