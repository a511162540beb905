//! The schedule: a slot per target, one limit for a run, missed slots skipped and counted.
//!
//! What is the same for every probe is done here, once: the deadline, a panic, `probe_success` and its siblings. A
//! probe that hangs or panics costs one result, never the scheduler and never another probe's slot (invariant 4).

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::heartbeat::Inbox;
use super::{Probe, ProbeNow, Recorder};
use crate::client::reach;
use crate::metrics::{ByProbe, Metrics};
use crate::model::duration::{print, print_measured};
use crate::model::labels::fnv1a;
use crate::model::{Failure, Family, ProbeResult, Reason, Sample, Sight, Target, Timestamp};
use crate::tasks::{self, Pulse, Tasks};

/// Whether the last run found that the service works; every fresh result carries it.
pub static SUCCESS: Family = Family::gauge("probe_success", "Whether the last run of the probe found that the service works");
static DURATION: Family = Family::gauge("probe_duration_seconds", "How long the last run of the probe took");
static LAST_RUN: Family =
    Family::gauge("probe_last_run_timestamp_seconds", "When the last run of the probe began, in seconds since the epoch");
/// Why the last run failed, as its label `reason`.
pub static FAILURE: Family =
    Family::gauge("probe_failure_info", "Why the last run of the probe failed, from a closed set of reasons; absent while it works");
static SIGHT: Family = Family::gauge("probe_sight_info", "That the probe is not allowed to see everything it asks for; absent while it is");

/// All targets are first asked within this time of the start, spread by their hashes.
const FIRST_RUN_WITHIN: Duration = Duration::from_secs(1);

/// How much later than its limit a run may end before the fault is ours: a starved host must not look like a dead site.
const OWN_DELAY: Duration = Duration::from_secs(2);

/// A service that says all the time that it changed is asked no more often.
const CHANGED_AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// A target and how it is asked.
pub struct Scheduled {
    /// Who is asked, how often, and with what limit.
    pub target: Arc<Target>,
    /// How.
    pub probe: Box<dyn Probe>,
}

/// Why a run was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// Its slot, or somebody asked for it.
    InTurn,
    /// The service said that something changed ([`Probe::changed`]): what came of it is news.
    Changed,
}

/// Takes every result, in the order in which the runs ended; it must not block.
pub type Sink = Arc<dyn Fn(ProbeResult, Occasion) + Send + Sync>;

struct Slot {
    scheduled: Scheduled,
    /// Held during a run: no two runs of one target at once.
    running: Mutex<()>,
}

/// Asks every target in its slot. Clones share the same targets.
#[derive(Clone)]
pub struct Scheduler {
    slots: Arc<[Slot]>,
    sink: Sink,
    metrics: Arc<Metrics>,
}

impl Scheduler {
    /// Takes the targets; nothing is asked yet.
    pub fn new(scheduled: Vec<Scheduled>, sink: Sink, metrics: Arc<Metrics>) -> Self {
        let slots = scheduled.into_iter().map(|scheduled| Slot { scheduled, running: Mutex::new(()) }).collect();
        Self { slots, sink, metrics }
    }

    /// Returns who is asked.
    pub fn targets(&self) -> Vec<Arc<Target>> {
        self.slots.iter().map(|slot| slot.scheduled.target.clone()).collect()
    }

    /// Starts a task per target; returns what shows whether each still comes round.
    pub fn start(&self, tasks: &Tasks) -> Vec<Pulse> {
        let start = |(index, slot): (usize, &Slot)| {
            let (scheduler, target) = (self.clone(), &slot.scheduled.target);
            // Twice the limit: somebody else's run of the same target may have to end first.
            let pulse = Pulse::new(format!("probe {target}"), target.interval + target.timeout * 2);
            let beating = pulse.clone();
            tasks.spawn_until_stopped(format!("probe {target}"), async move { scheduler.keep_asking(index, &beating).await });
            pulse
        };
        self.slots.iter().enumerate().map(start).collect()
    }

    async fn keep_asking(&self, index: usize, pulse: &Pulse) {
        let slot = &self.slots[index];
        let target = &slot.scheduled.target;
        let hash = fnv1a([target.to_string()]);
        let missed = self.metrics.slots_missed.get_or_create_owned(&ByProbe { probe: target.probe.to_string() });
        tokio::time::sleep(Duration::from_nanos(hash % duration_nanos(FIRST_RUN_WITHIN.min(target.interval)))).await;
        let mut due = Instant::now();
        let mut not_before = due;
        let mut occasion = Occasion::InTurn;
        loop {
            self.ask(slot, occasion).await;
            pulse.beat();
            let now = tasks::now();
            let wait = next_slot(hash, target.interval, now);
            let ended = Instant::now();
            // The slots that passed while the run was under way, besides its own.
            missed.inc_by(((ended - due).as_nanos() / u128::from(duration_nanos(target.interval))) as u64);
            due = ended + wait;
            let changed = async {
                tokio::time::sleep_until(not_before).await;
                slot.scheduled.probe.changed().await;
            };
            occasion = Occasion::InTurn;
            if tokio::time::timeout_at(due, changed).await.is_ok() {
                occasion = Occasion::Changed;
                due = Instant::now();
                not_before = due + CHANGED_AT_MOST_EVERY;
            }
        }
    }

    /// Asks once, unless a run is under way: then waits for its end and asks again.
    async fn ask(&self, slot: &Slot, occasion: Occasion) -> Option<ProbeResult> {
        let _running = slot.running.lock().await;
        let result = run(&slot.scheduled, &self.metrics).await?;
        (self.sink)(result.clone(), occasion);
        Some(result)
    }

    /// Asks the named probes at once, all their targets in parallel; names that are not known are left out.
    pub async fn ask_now(&self, probes: &[String]) -> Vec<ProbeResult> {
        let named = self.slots.iter().filter(|slot| probes.iter().any(|name| **name == *slot.scheduled.target.probe));
        join_all(named.map(|slot| self.ask(slot, Occasion::InTurn))).await.into_iter().flatten().collect()
    }

    /// Returns where the reports of the heartbeat of this name come in.
    pub fn inbox(&self, probe: &str) -> Option<Inbox> {
        self.slots.iter().filter(|slot| *slot.scheduled.target.probe == *probe).find_map(|slot| slot.scheduled.probe.inbox()).cloned()
    }

    /// Returns [`Scheduler::ask_now`] as a function, for rooms that must not know the scheduler.
    pub fn probe_now(&self) -> ProbeNow {
        let scheduler = self.clone();
        Arc::new(move |names| {
            let scheduler = scheduler.clone();
            async move { scheduler.ask_now(&names).await }.boxed()
        })
    }
}

fn duration_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).max(1)
}

/// Returns how long to wait until a target's next slot.
///
/// A target runs at a fixed offset within its interval, taken from a hash of its name. Probes are thus spread evenly,
/// and a restart keeps the rhythm: `rate()` and `for` see samples at the spacing they had before. Not a random jitter:
/// with one, each restart would shift every series.
fn next_slot(hash: u64, interval: Duration, now: Timestamp) -> Duration {
    let interval = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).max(1);
    let phase = u64::try_from(now.0).unwrap_or(0) % interval;
    let offset = hash % interval;
    let wait = (offset + interval - phase) % interval;
    Duration::from_millis(if wait == 0 { interval } else { wait })
}

/// Runs a probe once under its limit. Returns nothing where the run says nothing about the service: the limit was
/// noticed so late that this host must have been starved or asleep.
pub async fn run(scheduled: &Scheduled, metrics: &Metrics) -> Option<ProbeResult> {
    let Scheduled { target, probe } = scheduled;
    let (at, begin) = (tasks::now(), Instant::now());
    let mut rec = Recorder::until(begin + target.timeout);
    let asking = reach::on_behalf_of(target.to_string().into(), tokio::time::timeout(target.timeout, probe.run(&mut rec)));
    let asked = AssertUnwindSafe(asking).catch_unwind().await;
    let duration = begin.elapsed();
    let by_probe = ByProbe { probe: target.probe.to_string() };
    let outcome = match asked {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) if duration > target.timeout + OWN_DELAY => {
            tracing::warn!(%target, took = print_measured(duration), "this host was too slow or asleep to judge this run; it is left out");
            metrics.slots_missed.get_or_create_owned(&by_probe).inc();
            return None;
        }
        Ok(Err(_)) => {
            let (reason, waiting) = rec.waiting.clone();
            Err(Failure::new(reason, format!("no answer within {}: {waiting}", print(target.timeout))))
        }
        Err(panic) => {
            let why = tasks::panic_text(&*panic);
            tracing::error!(%target, why, "a probe panicked: this is a defect of Proctor");
            metrics.probe_panics.get_or_create_owned(&by_probe).inc();
            Err(Failure::new(Reason::Internal, format!("this probe has a defect: {why}")))
        }
    };
    let mut recorded = rec.finish();
    if recorded.dropped > 0 {
        metrics.series_dropped.get_or_create_owned(&by_probe).inc_by(recorded.dropped);
    }
    // A run that knows better than its outcome says so itself: the service is up, and something in it is wrong. One that
    // could see nothing does not know.
    let blind = matches!(recorded.sight, Sight::Blind { .. });
    let up = probe.up().filter(|up| !blind && !recorded.samples.iter().any(|sample| sample.family.name == up.name));
    let mut sample = |family, labels: Vec<(&'static str, Box<str>)>, value| recorded.samples.push(Sample { family, labels, value });
    let well = f64::from(u8::from(outcome.is_ok()));
    sample(&SUCCESS, vec![], well);
    sample(&DURATION, vec![], duration.as_secs_f64());
    sample(&LAST_RUN, vec![], at.as_secs_f64());
    if let Err(failure) = &outcome {
        sample(&FAILURE, vec![("reason", failure.reason.as_str().into())], 1.0);
    }
    if let Some(up) = up {
        sample(up, vec![], well);
    }
    match &recorded.sight {
        Sight::Full => {}
        Sight::Partial { .. } => sample(&SIGHT, vec![("sight", "partial".into())], 1.0),
        Sight::Blind { .. } => sample(&SIGHT, vec![("sight", "blind".into())], 1.0),
    }
    Some(ProbeResult {
        target: target.clone(),
        at,
        duration,
        outcome,
        samples: recorded.samples,
        sight: recorded.sight,
        evidence: recorded.evidence,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex as StdMutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::BoxFuture;

    use super::*;

    /// A probe that hangs, panics or works, and counts how many of its runs overlap.
    #[derive(Clone, Copy)]
    enum Manner {
        Works,
        Hangs,
        Panics,
    }

    struct Fake(Manner, Arc<AtomicUsize>);

    static MEASURED: Family = Family::gauge("measured", "m");

    impl Probe for Fake {
        fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
            async move {
                rec.set(&MEASURED, 1.0);
                rec.waiting(Reason::RemoteSilent, "waiting for the first bytes");
                self.1.fetch_add(1, Ordering::SeqCst);
                match self.0 {
                    Manner::Works => Ok(()),
                    Manner::Hangs => std::future::pending().await,
                    Manner::Panics => panic!("on purpose"),
                }
            }
            .boxed()
        }
    }

    fn scheduled(name: &str, manner: Manner, runs: &Arc<AtomicUsize>) -> Scheduled {
        let target = Target {
            probe: name.into(),
            target: None,
            kind: "fake",
            interval: Duration::from_secs(3),
            timeout: Duration::from_secs(1),
            depends_on: Arc::new([]),
        };
        Scheduled { target: Arc::new(target), probe: Box::new(Fake(manner, runs.clone())) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hung_and_a_panicking_probe_cost_one_result_each_and_keep_what_they_measured() {
        let runs = Arc::new(AtomicUsize::new(0));
        let results: Arc<StdMutex<Vec<ProbeResult>>> = Arc::default();
        let sink: Sink = {
            let results = results.clone();
            Arc::new(move |result, _| results.lock().expect("no panic in here").push(result))
        };
        let all = [("well", Manner::Works), ("hung", Manner::Hangs), ("mad", Manner::Panics)];
        let metrics = Arc::new(Metrics::new());
        let scheduler = Scheduler::new(all.iter().map(|(name, manner)| scheduled(name, *manner, &runs)).collect(), sink, metrics.clone());
        let tasks = Tasks::new();
        scheduler.start(&tasks);
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert!(tasks.stop(Duration::from_secs(1)).await.is_empty());
        let results = results.lock().expect("no panic in here");
        let of = |name: &str| results.iter().filter(|result| &*result.target.probe == name).cloned().collect::<Vec<_>>();
        for (name, reason) in [("well", None), ("hung", Some(Reason::RemoteSilent)), ("mad", Some(Reason::Internal))] {
            let results = of(name);
            assert!((3..=4).contains(&results.len()), "{name} ran {} times", results.len());
            for result in results {
                assert_eq!(result.outcome.as_ref().err().map(|failure| failure.reason), reason);
                assert!(result.samples.iter().any(|sample| sample.family.name == "measured"), "{name} keeps what it measured");
            }
        }
        assert_eq!(of("hung")[0].outcome.as_ref().expect_err("hung").detail, "no answer within 1s: waiting for the first bytes");
    }

    /// A probe that is told of a change every 100 ms.
    struct Restless(Arc<AtomicUsize>);

    impl Probe for Restless {
        fn run<'a>(&'a self, _: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            async { Ok(()) }.boxed()
        }
        fn changed(&self) -> BoxFuture<'_, ()> {
            tokio::time::sleep(Duration::from_millis(100)).boxed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_followed_by_a_run_at_once_but_not_more_than_once_a_second() {
        let (runs, tasks) = (Arc::new(AtomicUsize::new(0)), Tasks::new());
        let mut scheduled = scheduled("restless", Manner::Works, &runs);
        let target = Target { interval: Duration::from_secs(3600), ..(*scheduled.target).clone() };
        (scheduled.target, scheduled.probe) = (Arc::new(target), Box::new(Restless(runs.clone())));
        Scheduler::new(vec![scheduled], Arc::new(|_, _| ()), Arc::new(Metrics::new())).start(&tasks);
        let begin = Instant::now();
        while runs.load(Ordering::SeqCst) < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(begin.elapsed() < FIRST_RUN_WITHIN + Duration::from_millis(200), "at once: {:?}", begin.elapsed());
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!((9..=12).contains(&runs.load(Ordering::SeqCst)), "{runs:?}");
        assert!(tasks.stop(Duration::from_secs(1)).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn no_two_runs_of_one_target_overlap_even_when_asked_at_once() {
        let runs = Arc::new(AtomicUsize::new(0));
        let scheduler = Scheduler::new(vec![scheduled("hung", Manner::Hangs, &runs)], Arc::new(|_, _| ()), Arc::new(Metrics::new()));
        let (a, b) = (scheduler.clone(), scheduler.clone());
        let begin = Instant::now();
        let names = ["hung".to_owned()];
        let (a, b) = tokio::join!(a.ask_now(&names), b.ask_now(&names));
        assert_eq!((a.len(), b.len()), (1, 1));
        assert!(begin.elapsed() >= Duration::from_secs(2), "one after the other");
    }

    #[test]
    fn a_slot_is_the_same_after_a_restart_and_never_now() {
        let interval = Duration::from_secs(15);
        for now in [0, 1, 14_999, 15_000, 1_700_000_000_123] {
            let wait = next_slot(7_777, interval, Timestamp(now));
            assert!(wait > Duration::ZERO && wait <= interval);
            assert_eq!((Timestamp(now) + wait).0 % 15_000, 7_777);
        }
    }
}
