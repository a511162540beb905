//! Whether the host is still starting: systemd is asked in the background, so that whoever wants to know never waits.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::client::net::chain;
use crate::client::systemd::Systemd;
use crate::model::Timestamp;
use crate::model::duration::print;
use crate::mute::startup::{PATIENCE, StartupConfig};
use crate::tasks::{self, Tasks};

/// How often systemd is asked while the host starts: that old an answer may be.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// The limit of one question.
const ASK_WITHIN: Duration = Duration::from_secs(5);

/// Says whether systemd is still `starting`; nothing where there is no systemd to ask.
pub(super) type Starting = Arc<dyn Fn() -> Option<bool> + Send + Sync>;

/// Returns when this host started, where the kernel says so.
pub(super) fn boot_time() -> Option<Timestamp> {
    procfs::boot_time_secs().ok().and_then(|seconds| i64::try_from(seconds).ok()).map(Timestamp::from_secs)
}

/// Asks until the host is up, or has been starting for so long that nobody waits for it any more
/// ([`crate::mute::startup::Startup::quiet`]). Until the first answer the host counts as starting.
pub(super) fn watch(config: &StartupConfig, tasks: &Tasks) -> Starting {
    let after_boot = config.after_boot;
    let Some(until) = boot_time().map(|boot| boot + after_boot * PATIENCE).filter(|until| tasks::now() < *until) else {
        return Arc::new(|| None);
    };
    let answer = Arc::new(Mutex::new(Some(true)));
    let asked = answer.clone();
    tasks.spawn_until_stopped("systemd state", async move {
        let systemd = Systemd::of_this_host();
        let mut said = false;
        while tasks::now() < until {
            let state = match tokio::time::timeout(ASK_WITHIN, systemd.system_state()).await {
                Ok(Ok(state)) => Ok(state),
                Ok(Err(error)) => Err(chain(&error)),
                Err(_) => Err(format!("no answer within {}", print(ASK_WITHIN))),
            };
            // While D-Bus itself is not up yet the next question may be answered.
            let starting = state.as_ref().ok().map(|state| matches!(state.as_str(), "initializing" | "starting"));
            *asked.lock().unwrap_or_else(PoisonError::into_inner) = starting;
            match state {
                Ok(_) if starting == Some(true) && !said => {
                    tracing::info!("this host is starting: nothing is mailed or done until it is up")
                }
                Err(why) if !said => tracing::info!(
                    "systemd cannot be asked whether this host is still starting ({why}): after a boot it is quiet for {} and no longer",
                    print(after_boot)
                ),
                _ => {}
            }
            said = true;
            if starting == Some(false) {
                return;
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    });
    Arc::new(move || *answer.lock().unwrap_or_else(PoisonError::into_inner))
}
