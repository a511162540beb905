//! Who outside is told that all is well here.

use std::path::PathBuf;
use std::time::Duration;

use crate::model::duration::print;

crate::config_struct! {
    /// A URL that expects a call now and then, and raises the alarm when none comes: healthchecks.io, Uptime Kuma, an
    /// Alertmanager's dead man's switch. It is called while all is well with Proctor itself, whatever the site does.
    pub struct HeartbeatOutConfig {
        /// File with the URL, which is a secret, read at every call.
        url_file: PathBuf,
        /// Time between two calls. The other side should wait for at least three of them.
        every: Duration = "1m",
    }
}

/// The shortest time between two calls: the other side is somebody else's.
const SHORTEST: Duration = Duration::from_secs(1);
/// The longest: beyond that it tells nobody in time.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

impl HeartbeatOutConfig {
    /// Checks the values; reads and connects to nothing.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self) -> Result<(), String> {
        if (SHORTEST..=LONGEST).contains(&self.every) {
            return Ok(());
        }
        Err(format!("heartbeat_out.every: expected {} to {}, found {}", print(SHORTEST), print(LONGEST), print(self.every)))
    }
}
