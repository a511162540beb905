//! Named supervised tasks, the clock, and the staged stop.
//!
//! Every task of the program is spawned here, so that each has a name, a panic of one is counted and reported and does
//! not end another, and a stop can say which task is stuck.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::model::Timestamp;
use crate::model::duration::print_measured;

/// Returns the present moment on a clock that never jumps.
///
/// It starts at the wall clock's time when the process first asked and then follows the monotonic clock, so a wall
/// clock that is set while Proctor runs neither fires an alert early nor extends a silence. The wall clock itself is
/// [`wall_now`]; the difference is the metric `proctor_clock_offset_seconds`.
#[expect(
    clippy::disallowed_methods,
    reason = "tests share the start: one whose clock is paused and ahead must not stop that of the others"
)]
pub fn now() -> Timestamp {
    static START: OnceLock<(Timestamp, std::time::Instant)> = OnceLock::new();
    let (wall, steady) = *START.get_or_init(|| (wall_now(), std::time::Instant::now()));
    let now = tokio::time::Instant::now().into_std();
    match now.checked_duration_since(steady) {
        Some(after) => wall + after,
        None => wall - steady.duration_since(now),
    }
}

/// Returns what the wall clock says: for the `Date` of a mail and to notice that the clock was set.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
pub fn wall_now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// The tasks of one stage. Clones share the same stage.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    cancel: CancellationToken,
    running: Arc<Mutex<BTreeMap<u64, String>>>,
    panics: Arc<Mutex<Vec<String>>>,
}

impl Tasks {
    /// Begins a stage without tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the token that is cancelled when this stage is told to stop.
    pub fn token(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// Begins a stage that is stopped with this one, and can be stopped before it (a reload swaps such a stage).
    pub fn child(&self) -> Self {
        Self { cancel: self.cancel.child_token(), ..Self::default() }
    }

    /// Spawns a task under a name. A panic ends this task alone; it is logged and kept for [`Tasks::panics`].
    #[expect(clippy::disallowed_methods, reason = "this is the one place that spawns")]
    pub fn spawn(&self, name: impl Into<String>, task: impl Future<Output = ()> + Send + 'static) {
        let name = name.into();
        let (running, panics) = (self.running.clone(), self.panics.clone());
        let key = {
            let mut running = running.lock().unwrap_or_else(PoisonError::into_inner);
            let key = running.last_key_value().map_or(0, |(key, _)| key + 1);
            running.insert(key, name.clone());
            key
        };
        // In a box: each wrapper around a future would hold room for it once more, and there is a task per target.
        let task = AssertUnwindSafe(Box::pin(task)).catch_unwind();
        tokio::spawn(self.tracker.track_future(async move {
            if let Err(panic) = task.await {
                let why = panic_text(&*panic);
                tracing::error!(task = name, why, "a task panicked: this is a defect of Proctor");
                panics.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{name}: {why}"));
            }
            running.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        }));
    }

    /// Spawns a loop under a name, to be ended by the stop: the future is dropped at its next await.
    pub fn spawn_until_stopped(&self, name: impl Into<String>, task: impl Future<Output = ()> + Send + 'static) {
        let (token, task) = (self.token(), Box::pin(task));
        self.spawn(name, async move {
            token.run_until_cancelled(task).await;
        });
    }

    /// Tells all tasks to stop and waits for them; returns the names of those that are stuck at the deadline.
    pub async fn stop(&self, within: Duration) -> Vec<String> {
        self.cancel.cancel();
        self.tracker.close();
        if tokio::time::timeout(within, self.tracker.wait()).await.is_ok() {
            return Vec::new();
        }
        self.running.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Returns what panicked since the start.
    pub fn panics(&self) -> Vec<String> {
        self.panics.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A loop that comes round later than its own bound by this much does not come round any more. Longer than a reload may
/// take, and than what a host under load costs.
pub const LATE: Duration = Duration::from_secs(15);

/// When a loop last came round: the loop beats, and whoever watches it asks whether it is late. Clones share it.
#[derive(Clone, Debug)]
pub struct Pulse {
    name: Arc<str>,
    within: Duration,
    beaten: Arc<AtomicBool>,
    /// Milliseconds, as [`Timestamp`].
    at: Arc<AtomicI64>,
}

impl Pulse {
    /// Begins now; the loop is late where it has not beaten for `within` and [`LATE`].
    pub fn new(name: impl Into<Arc<str>>, within: Duration) -> Self {
        Self { name: name.into(), within: within + LATE, beaten: Arc::default(), at: Arc::new(AtomicI64::new(now().0)) }
    }

    /// Says that the loop came round.
    pub fn beat(&self) {
        self.at.store(now().0, Ordering::Relaxed);
        self.beaten.store(true, Ordering::Relaxed);
    }

    /// Says whether the loop has come round at all.
    pub fn has_beaten(&self) -> bool {
        self.beaten.load(Ordering::Relaxed)
    }

    /// Says which loop is late and since when, if it is.
    pub fn late(&self, now: Timestamp) -> Option<String> {
        let since = now.since(Timestamp(self.at.load(Ordering::Relaxed)));
        (since > self.within).then(|| format!("{} has not come round for {}", self.name, print_measured(since)))
    }
}

/// Returns the text of a caught panic.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stop_names_the_task_that_is_stuck_and_a_panic_ends_only_its_own_task() {
        let tasks = Tasks::new();
        tasks.spawn("panics", async { panic!("on purpose") });
        tasks.spawn("stuck", std::future::pending());
        let token = tasks.token();
        tasks.spawn("polite", async move { token.cancelled().await });
        assert_eq!(tasks.stop(Duration::from_millis(200)).await, ["stuck"]);
        assert_eq!(tasks.panics(), ["panics: on purpose"]);
    }
}
