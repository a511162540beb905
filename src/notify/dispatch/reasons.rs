//! Whether a probe that people were told of fails for another reason by now. That makes no mail of its own: the next one of its
//! thread says it, so that its end does not leave people with the first reason.

use std::collections::{BTreeMap, BTreeSet};

use super::Dispatcher;
use crate::model::{Alert, Reason, Timestamp};
use crate::notify::dedup::Notified;
use crate::notify::message::line;
use crate::snapshot::Latest;

/// The most targets that are followed, and the most reasons of each; the first is the one that was told.
const MAX: (usize, usize) = (200, 6);

/// The reasons of each target in their order, with the moment and the text.
pub(super) type Reasons = BTreeMap<(String, String), Vec<(Timestamp, Reason, String)>>;

impl Dispatcher {
    /// Takes down what the probes of open groups fail for. In memory only: a restart begins anew.
    pub(super) fn follow_reasons(&mut self, targets: &[Latest]) {
        let open = self.log.values().filter(|entry| entry.is_open());
        let told: BTreeSet<&str> = open.flat_map(|entry: &Notified| entry.firing.values()).filter_map(Alert::probe).collect();
        self.reasons.retain(|(probe, _), _| told.contains(probe.as_str()));
        for latest in targets.iter().filter(|latest| told.contains(&*latest.target.probe)) {
            let Some(result) = &latest.result else { continue };
            let Err(failure) = &result.outcome else { continue };
            let key = (latest.target.probe.to_string(), latest.target.to_string());
            if self.reasons.len() >= MAX.0 && !self.reasons.contains_key(&key) {
                continue;
            }
            let seen = self.reasons.entry(key).or_default();
            if seen.len() < MAX.1 && seen.last().is_none_or(|(_, reason, _)| *reason != failure.reason) {
                seen.push((result.at, failure.reason, failure.detail.clone()));
            }
        }
    }

    /// Says how the reasons of these probes have changed since they were told.
    pub(super) fn other_reasons(&self, probes: &[&str], now: Timestamp) -> Vec<String> {
        let of = self.reasons.iter().filter(|((probe, _), _)| probes.contains(&probe.as_str()));
        let changes = of.flat_map(|((_, target), seen)| seen.iter().skip(1).map(move |change| (target, change)));
        changes
            .take(self.voice.limit)
            .map(|(target, (at, reason, detail))| {
                format!(
                    "From {} on {target} failed for another reason than before ({reason}): {}",
                    self.voice.hour(*at, now),
                    line(detail, 300)
                )
            })
            .collect()
    }
}
