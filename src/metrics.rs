//! Every `proctor_*` metric: name, help, labels. The only place that registers one.
//!
//! Bounded label values are pre-initialised, so that `rate()` sees 0 before the first failure. Counters are registered
//! without `_total` and help texts without a period: the library adds both.

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::model::Outcome;

/// A gauge of fractions or seconds.
pub type FloatGauge = Gauge<f64, AtomicU64>;
/// A gauge of whole numbers.
pub type IntGauge = Gauge<i64, AtomicI64>;

/// The label of what is counted per probe.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByProbe {
    /// The probe's name in the configuration.
    pub probe: String,
}

/// The label of what is counted per outcome.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByOutcome {
    /// How it ended, of a closed set.
    pub outcome: &'static str,
}

/// The labels of deliveries.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByDelivery {
    /// `email`, `webhook`, `alertmanager`.
    pub integration: &'static str,
    /// `sent`, `retried`, `rejected`, `expired`.
    pub outcome: &'static str,
}

/// The label of what is counted per kind of change.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByKind {
    /// What was done: `restarted`, `upgraded`, … of a closed set.
    pub kind: &'static str,
}

/// The label of alerts by state.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByState {
    /// `pending`, `firing`.
    pub state: &'static str,
}

/// The label of the build.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Build {
    /// The version of Cargo.toml.
    pub version: &'static str,
}

/// Whole numbers of deliveries by integration and outcome.
pub const DELIVERY_OUTCOMES: [&str; 4] = ["sent", "retried", "rejected", "expired"];

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $field:ident : $type:ty = $name:literal),+ $(,)?) => {
        /// The handles of all metrics about Proctor itself.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            $($(#[doc = $help])+ pub $field: $type),+
        }

        impl Metrics {
            fn register() -> Self {
                let mut registry = Registry::default();
                $(
                    let $field = <$type>::default();
                    registry.register(concat!("proctor_", $name), concat!($($help),+).trim(), $field.clone());
                )+
                Self { registry, $($field),+ }
            }

            /// The names as they are registered, for the tests.
            pub const NAMES: &'static [&'static str] = &[$(concat!("proctor_", $name)),+];
        }
    };
}

metrics! {
    /// Always 1; the label says which version runs
    build_info: Family<Build, IntGauge> = "build_info",
    /// When Proctor started, in seconds since the epoch
    start_time: FloatGauge = "start_time_seconds",
    /// The wall clock minus the clock by which Proctor measures: not 0 after the wall clock was set
    clock_offset: FloatGauge = "clock_offset_seconds",
    /// 1 while the state cannot be written: Proctor goes on from memory and runs no action
    state_degraded: IntGauge = "state_degraded",
    /// Records of the state that were damaged and left out since the start
    state_records_dropped: Counter = "state_records_dropped",
    /// Slots of a probe that passed because its last run was not over
    slots_missed: Family<ByProbe, Counter> = "probe_slots_missed",
    /// Runs of a probe that panicked: each is a defect of Proctor
    probe_panics: Family<ByProbe, Counter> = "probe_panics",
    /// Samples left out because a target or all of them had too many series
    series_dropped: Family<ByProbe, Counter> = "series_dropped",
    /// Series in the window that rules look at
    window_series: IntGauge = "window_series",
    /// Samples that the window left out because it holds too many series
    window_samples_dropped: Counter = "window_samples_dropped",
    /// Rules evaluated
    rule_evaluations: Counter = "rule_evaluations",
    /// Rules that could not be evaluated
    rule_evaluation_failures: Counter = "rule_evaluation_failures",
    /// Turns of a rule group that passed because the last turn was not over
    rule_group_missed: Counter = "rule_group_iterations_missed",
    /// When a rule group last ended its turn, in seconds since the epoch
    rule_last_evaluation: FloatGauge = "rule_group_last_evaluation_timestamp_seconds",
    /// Alerts by state
    alerts: Family<ByState, IntGauge> = "alerts",
    /// Mails and webhooks that wait to be delivered
    outbox_depth: IntGauge = "outbox_depth",
    /// Age of the oldest that waits, 0 where none waits
    outbox_oldest_age: FloatGauge = "outbox_oldest_age_seconds",
    /// Attempts at a delivery by integration and outcome
    deliveries: Family<ByDelivery, Counter> = "deliveries",
    /// Deliveries whose reply was lost after the last byte: they are repeated with the same Message-ID
    possible_duplicates: Counter = "possible_duplicates",
    /// Deliveries dropped because the outbox was full
    outbox_dropped: Counter = "outbox_dropped",
    /// Attempts at a repair by outcome
    actions: Family<ByOutcome, Counter> = "actions",
    /// 1 while actions are paused
    actions_paused: IntGauge = "actions_paused",
    /// Changes that were seen on this host, by kind
    changes: Family<ByKind, Counter> = "changes",
    /// Silences that mute now
    silences_active: IntGauge = "silences_active",
    /// 1 while a hold is in force
    hold_active: IntGauge = "hold_active",
    /// 1 while the site is down on purpose
    maintenance_active: IntGauge = "maintenance_active",
    /// 1 while Proctor cannot see: names do not resolve, the gateway is silent, or most hosts beyond this one are missed
    cannot_see: IntGauge = "cannot_see",
    /// 1 if the last reload of the configuration was taken, 0 if it was refused
    config_reload_ok: IntGauge = "config_last_reload_successful",
    /// When the configuration was last taken, in seconds since the epoch
    config_reload_time: FloatGauge = "config_last_reload_success_timestamp_seconds",
    /// HTTP connections open now
    http_connections: IntGauge = "http_connections",
    /// HTTP connections refused because too many were open
    http_connections_refused: Counter = "http_connections_refused",
    /// Tasks that panicked: each is a defect of Proctor
    task_panics: Counter = "task_panics",
    /// Pings to the outside that says when this host dies, by outcome
    heartbeats_out: Family<ByOutcome, Counter> = "heartbeats_out",
    /// When the outside last took such a ping, in seconds since the epoch; 0 before the first
    heartbeat_out_last_success: FloatGauge = "heartbeat_out_last_success_timestamp_seconds",
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers everything and puts every bounded label value at 0.
    pub fn new() -> Self {
        let metrics = Self::register();
        metrics.build_info.get_or_create(&Build { version: env!("CARGO_PKG_VERSION") }).set(1);
        metrics.config_reload_ok.set(1);
        for outcome in Outcome::ALL {
            drop(metrics.actions.get_or_create(&ByOutcome { outcome: outcome.as_str() }));
        }
        for outcome in ["sent", "failed", "withheld"] {
            drop(metrics.heartbeats_out.get_or_create(&ByOutcome { outcome }));
        }
        for state in ["pending", "firing"] {
            drop(metrics.alerts.get_or_create(&ByState { state }));
        }
        for integration in ["email", "webhook", "alertmanager"] {
            for outcome in DELIVERY_OUTCOMES {
                drop(metrics.deliveries.get_or_create(&ByDelivery { integration, outcome }));
            }
        }
        metrics
    }

    /// Renders all of them as OpenMetrics text, which ends in `# EOF`.
    pub fn encode(&self) -> String {
        let mut text = String::with_capacity(8192);
        // Writing to a String cannot fail; if it did, fewer metrics are better than none.
        if prometheus_client::encoding::text::encode(&mut text, &self.registry).is_err() {
            tracing::error!("the metrics about Proctor itself cannot be encoded");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_since_the_library_accepts_two_families_of_one_name() {
        let unique: std::collections::BTreeSet<_> = Metrics::NAMES.iter().collect();
        assert_eq!(unique.len(), Metrics::NAMES.len());
        assert!(Metrics::NAMES.iter().all(|name| !name.ends_with("_total")), "the library adds _total");
    }

    #[test]
    fn a_failure_that_never_was_is_there_as_zero() {
        let text = Metrics::new().encode();
        for line in
            ["proctor_actions_total{outcome=\"failed\"} 0", "proctor_deliveries_total{integration=\"email\",outcome=\"rejected\"} 0"]
        {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
