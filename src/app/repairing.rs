//! Wires what repairs: the actions of the configuration, what speaks against acting, how is verified.

use std::sync::{Arc, Mutex, PoisonError};

use super::Scoped;
use super::booting::Starting;
use crate::alerts::AlertTable;
use crate::config::Config;
use crate::model::Problems;
use crate::mute::depends::failing;
use crate::mute::{self, Muted, Quiet, StartupView};
use crate::notify;
use crate::notify::dispatch::Mutes;
use crate::probe::ProbeNow;
use crate::remediate::runner::Withheld;
use crate::remediate::{Planned, Tools};
use crate::snapshot::Snapshot;

/// Plans every action of a configuration; connects to nothing. One that cannot be built is left out and noted.
pub(super) fn plan_actions(config: &Config, tools: &Tools, problems: &mut Problems) -> Vec<Planned> {
    let observing = config.notify.as_ref().is_some_and(|notify| notify.mode == notify::Mode::Observe);
    let mut all = Vec::new();
    for (name, action) in &config.actions.0 {
        match action.plan(name, tools) {
            Ok(mut planned) => {
                // Who only wants to hear what would be mailed wants nothing done either.
                planned.terms.acts &= !observing;
                all.push(planned);
            }
            Err(why) => problems.push(name.at, format!("action {:?}: {why}", name.value)),
        }
    }
    all
}

/// Asks the probes of the configuration in force.
pub(super) fn probe_now(scoped: &Arc<Mutex<Scoped>>) -> ProbeNow {
    let scoped = scoped.clone();
    Arc::new(move |names| {
        let scheduler = scoped.lock().unwrap_or_else(PoisonError::into_inner).scheduler.clone();
        (scheduler.probe_now())(names)
    })
}

/// Says why nothing is done about an alert now: what mutes it, except that its mail was sent already, and a probe that
/// it needs and that fails, however long its own alert takes.
pub(super) fn withheld(
    scoped: &Arc<Mutex<Scoped>>,
    mutes: &Arc<Mutex<Mutes>>,
    snapshot: &Snapshot,
    alerts: &AlertTable,
    starting: &Starting,
) -> Withheld {
    let (scoped, mutes, snapshot, alerts, starting) = (scoped.clone(), mutes.clone(), snapshot.clone(), alerts.clone(), starting.clone());
    Arc::new(move |alert, now| {
        if !alerts.is_judged(&alert.rule) {
            return Some("its rule was not yet evaluated on what the probes found since the start".to_owned());
        }
        let (depends, patience) = {
            let scoped = scoped.lock().unwrap_or_else(PoisonError::into_inner);
            (scoped.depends.clone(), scoped.patience.clone())
        };
        let targets = snapshot.all();
        let failing = failing(&targets, &alerts.all(), |probe| patience(probe));
        let broken = alert.probe().and_then(|probe| depends.failing_ancestors(probe, &failing).first().copied());
        if let Some(parent) = broken {
            return Some(format!("{parent}, which it needs, fails: that comes first"));
        }
        let mutes = mutes.lock().unwrap_or_else(PoisonError::into_inner);
        let maintenance = mutes.maintenance.state(now);
        if maintenance.forbids_actions() && !maintenance.mutes() {
            return Some("the site is down on purpose, although for too long".to_owned());
        }
        let facts = mutes.facts(StartupView::of(&targets, starting()), &maintenance, &[], &depends, &failing);
        mute::why(alert, &facts, now).filter(|muted| *muted != Muted::Startup(Quiet::Told)).map(|muted| muted.to_string())
    })
}
