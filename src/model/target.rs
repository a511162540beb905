//! One thing that is asked: a probe of the configuration, or one of several that a probe has.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// One scheduled target. Two targets are the same if probe and target are.
#[derive(Clone, Debug)]
pub struct Target {
    /// The probe's name in the configuration.
    pub probe: Arc<str>,
    /// Which one, where the probe has several.
    pub target: Option<Arc<str>>,
    /// The kind of the probe, such as `http`.
    pub kind: &'static str,
    /// Time between two slots.
    pub interval: Duration,
    /// The one limit of a run.
    pub timeout: Duration,
    /// The probes this one needs to work, by name.
    pub depends_on: Arc<[Arc<str>]>,
}

impl Target {
    /// Returns how long a result stays valid: `max(3 × interval, 1m)`.
    pub fn valid_for(&self) -> Duration {
        (self.interval * 3).max(Duration::from_secs(60))
    }
}

/// `probe`, or `probe/target`.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Some(target) => write!(f, "{}/{target}", self.probe),
            None => f.write_str(&self.probe),
        }
    }
}
