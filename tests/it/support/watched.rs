//! Probes of a whole configuration, so that one can ask over the connections of another.

use std::path::Path;
use std::time::Duration;

use proctor::app;
use proctor::changes::Changes;
use proctor::config::Config;
use proctor::metrics::Metrics;
use proctor::model::{Failure, ProbeResult, Problems, Reason, Sight};
use proctor::probe::scheduler::{Scheduled, run};
use proctor::tasks::Tasks;
use tokio::time::Instant;

/// The probes of a configuration; they keep their connections from run to run.
pub(crate) struct Watched {
    /// Every target.
    pub(crate) all: Vec<Scheduled>,
    /// What they saw to have changed on the host.
    pub(crate) changes: Changes,
    metrics: Metrics,
    tasks: Tasks,
}

impl Watched {
    /// Plans what stands below `probes`.
    #[track_caller]
    pub(crate) fn new(probes: &str) -> Self {
        Self::whole(&format!("probes:\n{probes}\n"))
    }

    /// Plans the probes of a whole configuration.
    #[track_caller]
    pub(crate) fn whole(text: &str) -> Self {
        let config = Config::from_text(Path::new("proctor.yml"), text).unwrap_or_else(|problems| panic!("{text}{problems:?}"));
        let (changes, mut problems) = (Changes::default(), Problems::new("proctor.yml"));
        let tasks = Tasks::new();
        let all = app::plan(&config, &tasks, &changes, &mut problems);
        assert!(problems.is_empty(), "{text}{:?}", problems.into_sorted());
        Self { all, changes, metrics: Metrics::new(), tasks }
    }

    /// Ends what goes on between two runs.
    pub(crate) async fn stop(self) {
        drop(self.all);
        assert_eq!(self.tasks.stop(Duration::from_secs(20)).await, Vec::<String>::new(), "nothing is stuck");
    }

    /// Returns a target by the name of its probe, or as it is printed where the probe has several.
    pub(crate) fn target(&self, probe: &str) -> &Scheduled {
        self.all
            .iter()
            .find(|scheduled| &*scheduled.target.probe == probe || scheduled.target.to_string() == probe)
            .unwrap_or_else(|| panic!("there is no probe {probe}"))
    }

    /// Waits until the service of a probe has said that something changed.
    pub(crate) async fn told(&self, probe: &str, what: &str) {
        let told = tokio::time::timeout(Duration::from_secs(30), self.target(probe).probe.changed()).await;
        assert!(told.is_ok(), "{probe} is told: {what}");
    }

    /// Runs one probe.
    pub(crate) async fn run(&self, probe: &str) -> ProbeResult {
        self.run_scheduled(self.target(probe)).await
    }

    /// Runs the target of this name.
    pub(crate) async fn run_target(&self, name: &str) -> ProbeResult {
        let names: Vec<_> = self.all.iter().map(|scheduled| scheduled.target.target.as_deref()).collect();
        let scheduled = self.all.iter().find(|scheduled| scheduled.target.target.as_deref() == Some(name));
        self.run_scheduled(scheduled.unwrap_or_else(|| panic!("{name} among {names:?}"))).await
    }

    async fn run_scheduled(&self, scheduled: &Scheduled) -> ProbeResult {
        let begin = Instant::now();
        let result = run(scheduled, &self.metrics).await.expect("this host is awake");
        let timeout = scheduled.target.timeout;
        assert!(begin.elapsed() < timeout + Duration::from_secs(1), "the limit of {timeout:?} holds: {:?}", begin.elapsed());
        result
    }

    /// Runs one probe until it ends like this.
    pub(crate) async fn until(&self, probe: &str, what: &str, within: u64, like: impl Fn(&ProbeResult) -> bool) -> ProbeResult {
        let begin = Instant::now();
        loop {
            let result = self.run(probe).await;
            if like(&result) {
                return result;
            }
            let ProbeResult { outcome, sight, samples, .. } = &result;
            assert!(begin.elapsed().as_secs() < within, "not within {within}s: {what}: {outcome:?} {sight:?} {samples:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Runs one probe until it fails for this reason and says these words, and returns that result.
    pub(crate) async fn until_failed(&self, probe: &str, what: &str, within: u64, reason: Reason, words: &str) -> ProbeResult {
        self.until(probe, &format!("{what} ({reason}: {words})"), within, |result| fails(result, reason, words)).await
    }
}

/// Returns the one sample of this name, with a label of this value unless that is empty.
#[track_caller]
pub(crate) fn value(result: &ProbeResult, name: &str, label: &str) -> Option<f64> {
    let fits = |sample: &&proctor::model::Sample| {
        sample.family.name == name && (label.is_empty() || sample.labels.iter().any(|(_, value)| &**value == label))
    };
    let found: Vec<f64> = result.samples.iter().filter(fits).map(|sample| sample.value).collect();
    assert!(found.len() < 2, "{name} {label} is there once: {found:?}");
    found.first().copied()
}

/// Whether the run failed for this reason, and says these words.
pub(crate) fn fails(result: &ProbeResult, reason: Reason, words: &str) -> bool {
    result.outcome.as_ref().is_err_and(|failure| failure.reason == reason && failure.detail.contains(words))
}

/// The run failed for this reason, and says these words.
#[track_caller]
pub(crate) fn failed(result: &ProbeResult, reason: Reason, words: &str) {
    let Err(Failure { reason: found, detail }) = &result.outcome else { panic!("expected {reason}, found success") };
    assert_eq!(*found, reason, "{detail}");
    assert!(detail.contains(words), "{words:?} in {detail:?}");
}

/// The run succeeded and saw all, or not all.
#[track_caller]
pub(crate) fn well(result: &ProbeResult, full: bool) {
    assert!(result.is_success(), "{:?}", result.outcome);
    assert_eq!(result.sight == Sight::Full, full, "{:?}", result.sight);
}
