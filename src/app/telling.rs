//! Wires what tells people: what mutes, the dispatcher, the outbox.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::Notify;

use super::{App, Loaded, Patience};
use crate::client::smtp::Limits;
use crate::config::Config;
use crate::mute::ack::Acks;
use crate::mute::hold::Holds;
use crate::mute::maintenance::{MaintenanceMark, MaintenanceWatch};
use crate::mute::sight::SightWatch;
use crate::mute::silence::Silences;
use crate::mute::startup::{FirstLook, Startup};
use crate::mute::upgrade::{KnownRules, Upgrade};
use crate::notify::NotifyConfig;
use crate::notify::dispatch::{Dispatcher, Mutes, Wiring};
use crate::notify::email::{Address, Author};
use crate::notify::message::Voice;
use crate::notify::outbox::{Pace, Ways};
use crate::notify::route::Route;
use crate::probe::scheduler::{SUCCESS, Scheduled, Scheduler};
use crate::rules::load::RuleKind;
use crate::store::{Batch, Store};
use crate::tasks::{self, Tasks};

/// How often it is looked for a file that means maintenance.
const MAINTENANCE_EVERY: Duration = Duration::from_secs(1);

/// Takes what mutes back from the store.
pub(super) fn mutes(loaded: &Loaded, store: &Store) -> Mutes {
    let (config, now) = (&loaded.config, tasks::now());
    let names = loaded.rules.iter().flat_map(|group| group.alert_names()).map(str::to_owned).collect();
    let kept = store.get::<KnownRules>(KnownRules::KEY);
    let upgrade = Upgrade::new(config.startup.new_rules, env!("CARGO_PKG_VERSION"), names, kept, now);
    let kept = store.get::<FirstLook>(FirstLook::KEY);
    Mutes {
        startup: Startup::new(&config.startup, now, super::booting::boot_time(), kept).with(upgrade),
        maintenance: MaintenanceWatch::new(&config.maintenance, store.get::<MaintenanceMark>(MaintenanceMark::KEY)),
        holds: Holds::new(store.all()),
        sight: SightWatch::default(),
        silences: Silences::new(store.all()),
        acks: Acks::new(store.all()),
    }
}

/// Returns the ways out of a configuration; without one there is no relay, and what waits goes on waiting.
pub fn ways(config: &Config) -> Ways {
    let notify = config.notify.as_ref().map(|notify| &notify.value);
    let from = notify.and_then(|notify| Address::parse(&notify.from.to_string()));
    let nobody = || Address { name: String::new(), address: "root@localhost".to_owned() };
    Ways {
        author: Author { from: from.unwrap_or_else(nobody), site: config.site.name.clone() },
        smtp: notify.and_then(|notify| notify.smtp.clone()),
        webhooks: notify
            .into_iter()
            .flat_map(|notify| &notify.webhooks.0)
            .map(|(name, webhook)| (name.value.clone(), webhook.clone()))
            .collect(),
        limits: Limits::default(),
        pace: Pace::default(),
    }
}

/// Says how long after a child's an alert that a probe fails may take to fire: until it is asked, its own interval; then
/// the longest `for` of the rules that read its success, plus one interval of theirs. Other rules about it may take an
/// hour, and its children do not wait for those.
pub(super) fn patience(loaded: &Loaded, scheduled: &[Scheduled]) -> Patience {
    let mut ups: BTreeMap<String, (BTreeSet<&'static str>, Duration)> = BTreeMap::new();
    for one in scheduled {
        let (names, interval) = ups.entry(one.target.probe.to_string()).or_default();
        names.extend(one.probe.up().map(|family| family.name));
        *interval = one.target.interval.max(*interval);
    }
    let rules = loaded.rules.iter().flat_map(|group| group.rules.iter().map(move |rule| (group.interval, rule)));
    let alerting = rules.filter_map(|(interval, rule)| match &rule.kind {
        RuleKind::Alerting(alert) => Some((rule.expr.metric_names(), alert.hold + interval)),
        RuleKind::Recording { .. } => None,
    });
    let alerting: Vec<(BTreeSet<String>, Duration)> = alerting.collect();
    let about = |ups: &BTreeSet<&str>| {
        let reads = |names: &BTreeSet<String>| names.iter().any(|name| name == SUCCESS.name || ups.contains(name.as_str()));
        alerting.iter().filter(|(names, _)| reads(names)).map(|(_, takes)| *takes).max()
    };
    let least = loaded.config.rules.interval;
    let takes = |(ups, interval): &(BTreeSet<&str>, Duration)| about(ups).unwrap_or(least) + *interval;
    let each: BTreeMap<String, Duration> = ups.iter().map(|(probe, of)| (probe.clone(), takes(of))).collect();
    Arc::new(move |probe| each.get(probe).copied().unwrap_or(least))
}

impl App {
    /// Starts the dispatcher and the look-out for maintenance, if anybody is to be told.
    pub(super) fn start_telling(&self, loaded: &Loaded, scheduler: &Scheduler, tasks: &Tasks) {
        {
            let mut now = self.mutes.lock().unwrap_or_else(PoisonError::into_inner);
            // What Proctor sees is no matter of the configuration.
            *now = Mutes { sight: std::mem::take(&mut now.sight), ..mutes(loaded, &self.store) };
        }
        self.outbox.reconfigure(ways(&loaded.config));
        let (files, mutes, store, wake) =
            (loaded.config.maintenance.files.clone(), self.mutes.clone(), self.store.clone(), self.wake.clone());
        tasks.spawn_until_stopped("maintenance", async move { look_for_maintenance(&files, &mutes, &store, &wake).await });
        let notify = loaded.config.notify.as_ref().map_or_else(NotifyConfig::nobody, |notify| notify.value.clone());
        if loaded.config.notify.is_none() {
            // All is decided as if, so that the first look is over and the log is true when somebody is named.
            tracing::info!("nobody is mailed: the configuration has no notify section");
        }
        let (depends, patience) = {
            let scoped = self.scoped.lock().unwrap_or_else(PoisonError::into_inner);
            (scoped.depends.clone(), scoped.patience.clone())
        };
        let (queued, outbox, ask) = (Arc::new(Notify::new()), self.outbox.clone(), scheduler.probe_now());
        let (woken, runner, announcing, refusing) = (queued.clone(), self.runner.clone(), self.runner.clone(), self.outbox.clone());
        tasks.spawn_until_stopped("outbox wake", async move {
            loop {
                woken.notified().await;
                outbox.wake();
            }
        });
        let wiring = Wiring {
            alerts: self.alerts.clone(),
            snapshot: self.snapshot.clone(),
            store: self.store.clone(),
            metrics: self.metrics.clone(),
            mutes: self.mutes.clone(),
            depends,
            actions: Arc::new(move || runner.current()),
            announce: Arc::new(move |alert, hour| announcing.announce(alert, hour)),
            patience,
            systemd_starting: self.starting.clone(),
            changes: self.changes.clone(),
            before: loaded.config.changes.before,
            refused: Arc::new(move || refusing.refused()),
            refresh: Arc::new(move |names| ask(names).map(drop).boxed()),
            outbox: queued,
            wake: self.wake.clone(),
        };
        let voice = Voice::new(&notify, &loaded.config.site.name, loaded.config.site.external_url.clone());
        let routes = vec![Route::of(&notify, notify.webhooks.0.iter().map(|(name, _)| name.value.clone()))];
        let dispatcher = Dispatcher::new(wiring, voice, notify.mode, routes);
        *self.board.lock().unwrap_or_else(PoisonError::into_inner) = dispatcher.board();
        tasks.spawn("dispatcher", dispatcher.run(tasks.token()));
    }

    /// Takes silences, acknowledgements and holds anew from the store and wakes the dispatcher.
    pub(super) fn mutes_changed(&self) {
        {
            let mut mutes = self.mutes.lock().unwrap_or_else(PoisonError::into_inner);
            mutes.holds = Holds::new(self.store.all());
            mutes.silences = Silences::new(self.store.all());
            mutes.acks = Acks::new(self.store.all());
        }
        self.wake.notify_one();
    }
}

async fn look_for_maintenance(files: &[std::path::PathBuf], mutes: &Mutex<Mutes>, store: &Store, wake: &Notify) {
    let mut tick = tokio::time::interval(MAINTENANCE_EVERY);
    loop {
        tick.tick().await;
        let existing: Vec<_> = files.iter().filter(|file| file.exists()).collect();
        let mut batch = Batch::new();
        {
            let mut mutes = mutes.lock().unwrap_or_else(PoisonError::into_inner);
            if !mutes.maintenance.look(&existing, tasks::now()) {
                continue;
            }
            match mutes.maintenance.mark() {
                Some(mark) => batch.put(mark),
                None => batch.remove::<MaintenanceMark>(MaintenanceMark::KEY),
            }
        }
        store.commit(batch).await;
        wake.notify_one();
    }
}
