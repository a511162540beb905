//! Wires what tells people: what mutes, the dispatcher, the outbox.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::Notify;

use super::{App, Loaded};
use crate::client::smtp::Limits;
use crate::config::Config;
use crate::mute::depends::Depends;
use crate::mute::hold::Holds;
use crate::mute::maintenance::{MaintenanceMark, MaintenanceWatch};
use crate::mute::silence::Silences;
use crate::mute::startup::{FirstLook, Startup};
use crate::notify::dispatch::{Dispatcher, Mutes, Wiring};
use crate::notify::email::{Address, Author};
use crate::notify::message::Voice;
use crate::notify::outbox::{Pace, Ways};
use crate::notify::route::Route;
use crate::probe::scheduler::Scheduler;
use crate::rules::load::{RuleGroup, RuleKind};
use crate::store::{Batch, Store};
use crate::tasks::{self, Tasks};

/// How often it is looked for a file that means maintenance.
const MAINTENANCE_EVERY: Duration = Duration::from_secs(1);

/// Takes what mutes back from the store.
pub(super) fn mutes(config: &Config, store: &Store) -> Mutes {
    let boot = procfs::boot_time_secs().ok().and_then(|seconds| i64::try_from(seconds).ok()).map(crate::model::Timestamp::from_secs);
    Mutes {
        startup: Startup::new(&config.startup, tasks::now(), boot, store.get::<FirstLook>(FirstLook::KEY)),
        maintenance: MaintenanceWatch::new(&config.maintenance, store.get::<MaintenanceMark>(MaintenanceMark::KEY)),
        holds: Holds::new(store.all()),
        silences: Silences::new(store.all()),
    }
}

/// Returns the ways out of a configuration; without one there is no relay, and what waits goes on waiting.
pub(super) fn ways(config: &Config) -> Ways {
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

/// Returns how long an alert may take to fire: the longest `for` of any rule plus one interval.
fn patience(rules: &[RuleGroup]) -> Duration {
    let holds = rules.iter().flat_map(|group| group.rules.iter().map(move |rule| (group.interval, rule)));
    let each = holds.map(|(interval, rule)| match &rule.kind {
        RuleKind::Alerting(alert) => alert.hold + interval,
        RuleKind::Recording { .. } => interval,
    });
    each.max().unwrap_or_default()
}

impl App {
    /// Starts the dispatcher and the look-out for maintenance, if anybody is to be told.
    pub(super) fn start_telling(&self, loaded: &Loaded, scheduler: &Scheduler, tasks: &Tasks) {
        *self.mutes.lock().unwrap_or_else(PoisonError::into_inner) = mutes(&loaded.config, &self.store);
        self.outbox.reconfigure(ways(&loaded.config));
        let (files, mutes, store, wake) =
            (loaded.config.maintenance.files.clone(), self.mutes.clone(), self.store.clone(), self.wake.clone());
        tasks.spawn_until_stopped("maintenance", async move { look_for_maintenance(&files, &mutes, &store, &wake).await });
        let Some(notify) = loaded.config.notify.as_ref().map(|notify| &notify.value) else {
            tracing::info!("nobody is mailed: the configuration has no notify section");
            return;
        };
        let edges = loaded.config.probes.0.iter().map(|(name, probe)| (name.value.clone(), probe.needs().map(str::to_owned).collect()));
        // The configuration was checked for circles and unknown names.
        let depends = Depends::new(edges).unwrap_or_default();
        let patience = patience(&loaded.rules);
        let (queued, outbox, ask) = (Arc::new(Notify::new()), self.outbox.clone(), scheduler.probe_now());
        let woken = queued.clone();
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
            depends: Arc::new(depends),
            actions: Arc::new(Vec::new),
            patience: Arc::new(move |_| patience),
            systemd_starting: Arc::new(|| None),
            changes: Arc::new(|_, _| Vec::new()),
            refresh: Arc::new(move |names| ask(names).map(drop).boxed()),
            outbox: queued,
            wake: self.wake.clone(),
        };
        let voice = Voice::new(notify, &loaded.config.site.name, loaded.config.site.external_url.clone());
        let routes = vec![Route::of(notify, notify.webhooks.0.iter().map(|(name, _)| name.value.clone()))];
        let dispatcher = Dispatcher::new(wiring, voice, notify.mode, routes);
        tasks.spawn("dispatcher", dispatcher.run(tasks.token()));
    }

    /// Takes silences and holds anew from the store and wakes the dispatcher.
    pub(super) fn mutes_changed(&self) {
        {
            let mut mutes = self.mutes.lock().unwrap_or_else(PoisonError::into_inner);
            mutes.holds = Holds::new(self.store.all());
            mutes.silences = Silences::new(self.store.all());
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
