//! The newest result of every target, with its age, already rendered.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::model::{ProbeResult, Target, Timestamp};

/// What is known of one target.
#[derive(Clone, Debug)]
pub struct Latest {
    /// Who is asked.
    pub target: Arc<Target>,
    /// The newest result, without its samples; nothing before the first run.
    pub result: Option<Arc<ProbeResult>>,
    /// How many runs have ended since the start.
    pub runs: u64,
    /// Since when the outcome is what it is now: well, or failing.
    pub since: Option<Timestamp>,
}

impl Latest {
    /// Says whether the newest result failed. No result yet is neither well nor failing.
    pub fn is_failing(&self) -> bool {
        self.result.as_ref().is_some_and(|result| !result.is_success())
    }
}

/// The newest result of every target. Clones share the same table.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    targets: Arc<RwLock<BTreeMap<String, Latest>>>,
}

impl Snapshot {
    /// Announces the targets of a configuration: new ones without a result, those that are gone removed.
    pub fn announce(&self, targets: &[Arc<Target>]) {
        let mut table = self.targets.write().unwrap_or_else(PoisonError::into_inner);
        let mut old = std::mem::take(&mut *table);
        for target in targets {
            let latest = old.remove(&target.to_string()).map_or_else(
                || Latest { target: target.clone(), result: None, runs: 0, since: None },
                |latest| Latest { target: target.clone(), ..latest },
            );
            table.insert(target.to_string(), latest);
        }
    }

    /// Takes a result in place of the target's last one.
    pub fn accept(&self, result: &ProbeResult) {
        let mut table = self.targets.write().unwrap_or_else(PoisonError::into_inner);
        let Some(latest) = table.get_mut(&result.target.to_string()) else { return };
        let was = latest.result.as_ref().map(|old| old.is_success());
        if was != Some(result.is_success()) {
            latest.since = Some(result.at);
        }
        latest.runs += 1;
        latest.result = Some(Arc::new(ProbeResult { samples: Vec::new(), ..result.clone() }));
    }

    /// Returns what is known of every target, sorted by name.
    pub fn all(&self) -> Vec<Latest> {
        self.targets.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
