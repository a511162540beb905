//! Which probe needs which to work: children of a failing parent are told in its mail.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::{Alert, AlertState, Timestamp};
use crate::snapshot::Latest;

/// What is wrong with `depends_on`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DependsError {
    /// A probe needs one that is not defined.
    #[error("probe {probe:?} depends on {}", crate::model::decode::unknown("probe", parent, &known.iter().map(String::as_str).collect::<Vec<_>>()))]
    Unknown {
        /// The probe that needs it.
        probe: String,
        /// The name that is not defined.
        parent: String,
        /// What is defined.
        known: Vec<String>,
    },
    /// Probes need each other in a circle.
    #[error("probes depend on each other in a circle: {}", path.join(" -> "))]
    Cycle {
        /// The way round; the first is the last again.
        path: Vec<String>,
    },
}

impl DependsError {
    /// Returns the probe whose `depends_on` is at fault, and the name in it, to find the place in the file.
    pub fn place(&self) -> (&str, &str) {
        match self {
            Self::Unknown { probe, parent, .. } => (probe, parent),
            Self::Cycle { path } => (path.first().map_or("", String::as_str), path.get(1).map_or("", String::as_str)),
        }
    }
}

/// Which probes a probe needs, by name; without circles.
#[derive(Clone, Debug, Default)]
pub struct Depends(BTreeMap<String, Vec<String>>);

/// What is known of a probe that fails: its newest result failed, or it has a pending or firing alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failing {
    /// Since when.
    pub since: Timestamp,
    /// Whether it has an alert that fires: then that alert tells its children.
    pub firing: bool,
    /// How long an alert of its own may take to fire: its interval, the longest `for` of the rules about it, and theirs.
    pub patience: Duration,
}

/// The probes that fail, by name.
pub type FailingProbes = BTreeMap<String, Failing>;

/// One probe below another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Below<'a> {
    /// The probe.
    pub probe: &'a str,
    /// How many steps below: 1 for those that name the parent themselves.
    pub level: usize,
}

impl Depends {
    /// Builds the graph from every probe with its `depends_on`.
    ///
    /// # Errors
    /// All unknown names and, once each, all circles.
    pub fn new<P: Into<String>>(probes: impl IntoIterator<Item = (P, Vec<String>)>) -> Result<Self, Vec<DependsError>> {
        let parents: BTreeMap<String, Vec<String>> = probes.into_iter().map(|(probe, parents)| (probe.into(), parents)).collect();
        let mut errors = Vec::new();
        for (probe, needs) in &parents {
            for parent in needs.iter().filter(|parent| !parents.contains_key(*parent)) {
                let known = parents.keys().cloned().collect();
                errors.push(DependsError::Unknown { probe: probe.clone(), parent: parent.clone(), known });
            }
        }
        errors.extend(cycles(&parents).into_iter().map(|path| DependsError::Cycle { path }));
        if errors.is_empty() { Ok(Self(parents)) } else { Err(errors) }
    }

    /// Returns the probes that a probe names itself.
    pub fn parents(&self, probe: &str) -> &[String] {
        self.0.get(probe).map_or(&[], Vec::as_slice)
    }

    /// Returns every probe that a probe needs, over all levels: those that need nothing first, each once.
    pub fn ancestors(&self, probe: &str) -> Vec<&str> {
        let mut found = self.reach(probe, |at| self.parents(at).iter().map(String::as_str).collect());
        found.sort_by_key(|(name, level)| (std::cmp::Reverse(*level), *name));
        found.into_iter().map(|(name, _)| name).collect()
    }

    /// Returns the ancestors that fail, root-most first. A parent in between that still looks well does not hide one
    /// above it: its next run will tell.
    pub fn failing_ancestors(&self, probe: &str, failing: &FailingProbes) -> Vec<&str> {
        self.ancestors(probe).into_iter().filter(|name| failing.contains_key(*name)).collect()
    }

    /// Returns every probe that needs this one, over all levels, nearest first, each once at its deepest level.
    pub fn below(&self, probe: &str) -> Vec<Below<'_>> {
        let children = |at: &str| {
            let needs = |needs: &Vec<String>| needs.iter().any(|need| need == at);
            self.0.iter().filter(|(_, parents)| needs(parents)).map(|(child, _)| child.as_str()).collect()
        };
        let mut found = self.reach(probe, children);
        found.sort_by_key(|(name, level)| (*level, *name));
        found.into_iter().map(|(probe, level)| Below { probe, level }).collect()
    }

    /// Returns the failing probes below this one: the children that its mail lists.
    pub fn failing_below(&self, probe: &str, failing: &FailingProbes) -> Vec<Below<'_>> {
        self.below(probe).into_iter().filter(|below| failing.contains_key(below.probe)).collect()
    }

    /// Says which failing ancestor tells of this probe's alert in its own mail; of several the root-most.
    ///
    /// An ancestor tells while it has a firing alert, and while it may still get one: as long as its `patience` since
    /// it began to fail, or since this alert began if that was earlier (one that flaps begins anew again and again).
    /// After that the alert is mailed on its own, and names [`Depends::failing_ancestors`].
    pub fn told_by(&self, probe: &str, began_at: Timestamp, failing: &FailingProbes, now: Timestamp) -> Option<&str> {
        self.failing_ancestors(probe, failing)
            .into_iter()
            .find(|name| failing.get(*name).is_some_and(|parent| parent.firing || now < parent.since.min(began_at) + parent.patience))
    }

    /// Walks from a probe and returns what it reaches with the longest way to it.
    fn reach<'a>(&'a self, probe: &str, next: impl Fn(&str) -> Vec<&'a str>) -> Vec<(&'a str, usize)> {
        let mut levels: BTreeMap<&str, usize> = BTreeMap::new();
        let mut front: BTreeSet<&str> = next(probe).into_iter().collect();
        // Without circles no way is longer than there are probes.
        for level in 1..=self.0.len() {
            if front.is_empty() {
                break;
            }
            let mut further = BTreeSet::new();
            for name in front {
                levels.insert(name, level);
                further.extend(next(name));
            }
            front = further;
        }
        levels.into_iter().collect()
    }
}

/// Finds the circles, each once, beginning with its first name.
fn cycles(parents: &BTreeMap<String, Vec<String>>) -> Vec<Vec<String>> {
    let mut done: BTreeSet<&str> = BTreeSet::new();
    let mut found = Vec::new();
    for start in parents.keys() {
        // The way from `start` to here, and which parent of each comes next: a stack of our own, since a configuration
        // may chain thousands.
        let mut way: Vec<(&str, usize)> = vec![(start, 0)];
        while let Some((at, next)) = way.last_mut() {
            let at: &str = at;
            let parent = if done.contains(at) { None } else { parents.get(at).and_then(|needs| needs.get(*next)) };
            *next += 1;
            match parent {
                None => {
                    done.insert(at);
                    way.pop();
                }
                Some(parent) => match way.iter().position(|(name, _)| name == parent) {
                    Some(begin) => {
                        found.push(way[begin..].iter().map(|(name, _)| (*name).to_owned()).chain([parent.clone()]).collect());
                    }
                    None => way.push((parent, 0)),
                },
            }
        }
    }
    found
}

/// Finds the probes that fail: the newest result of a target failed, or an alert is pending or firing.
///
/// `patience` says how long an alert about a probe may take to fire: its interval, the longest `for` of the rules about
/// it, and their interval.
pub fn failing<'a>(
    targets: impl IntoIterator<Item = &'a Latest>,
    alerts: impl IntoIterator<Item = &'a Alert>,
    patience: impl Fn(&str) -> Duration,
) -> FailingProbes {
    let mut found = FailingProbes::new();
    let mut note = |probe: &str, since: Timestamp, firing: bool| {
        let entry = found.entry(probe.to_owned()).or_insert_with(|| Failing { since, firing, patience: patience(probe) });
        entry.since = entry.since.min(since);
        entry.firing |= firing;
    };
    for latest in targets {
        if let (true, Some(since)) = (latest.is_failing(), latest.since) {
            note(&latest.target.probe, since, false);
        }
    }
    for alert in alerts {
        if let (AlertState::Pending | AlertState::Firing, Some(probe)) = (alert.state, alert.probe()) {
            note(probe, alert.active_at, alert.is_firing());
        }
    }
    found
}
