//! What is said but once, and is about no group: the first look, new rules, a forgotten maintenance, the state, the day's
//! digest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Dispatcher, Plan, RECHECK, Scene};
use crate::model::{Alert, AlertState, Fingerprint, Timestamp};
use crate::mute::{Maintenance, Muted, Quiet, Startup};
use crate::notify::bulletin::{self, DIGEST_EVERY, Digest};
use crate::notify::dedup::{Notified, Standing, Thread};
use crate::notify::message::{self, Letter};
use crate::notify::{Mode, Weight, route};
use crate::snapshot::Latest;
use crate::store::{Record, Table};

/// The most notices that the next mail repeats.
const MAX_UNTOLD: usize = 3;

/// That something of which there is only one was said.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Said {
    overdue_since: Option<Timestamp>,
}

impl Record for Said {
    const TABLE: Table = Table::Meta;
    const PREFIX: &'static str = "notify-said";
    fn key(&self) -> String {
        Self::PREFIX.to_owned()
    }
}

impl Dispatcher {
    /// Tells something that is about no group; returns its Message-ID.
    fn bulletin(&mut self, about: &str, mut letter: Letter, plan: &mut Plan, scene: &Scene<'_>) -> String {
        if let Some(why) = &scene.degraded {
            letter.sections.insert(0, message::degraded(why));
        }
        let id = self.voice.message_id(&format!("{about}-{}", scene.now.0), 0, scene.now);
        let message = bulletin::message(&self.voice, about, &id, letter.clone());
        let to = self.routes.last().map(|route| route.receivers.clone()).unwrap_or_default();
        self.queue(&to, &message, Weight::Firing, &letter.headline, plan, scene.now);
        id
    }

    /// What the state lost or set aside is mailed once.
    pub(super) fn notices(&mut self, plan: &mut Plan, scene: &Scene<'_>) {
        let fresh: Vec<String> = self.wiring.store.notices().into_iter().filter(|notice| self.noticed.insert(notice.clone())).collect();
        if !fresh.is_empty() {
            self.untold.extend(fresh.iter().take(MAX_UNTOLD).cloned());
            self.bulletin("state", bulletin::notices(&fresh), plan, scene);
        }
    }

    /// A forgotten maintenance is mailed once.
    pub(super) fn overdue(&mut self, maintenance: &Maintenance, plan: &mut Plan, scene: &Scene<'_>) {
        match maintenance {
            Maintenance::Overdue { since, file } if self.said.overdue_since != Some(*since) => {
                self.said.overdue_since = Some(*since);
                let letter = bulletin::overdue(&self.voice, *since, file, scene.now);
                self.bulletin("maintenance", letter, plan, scene);
                plan.batch.put(&self.said);
            }
            Maintenance::Settling { until, .. } => plan.at(*until),
            Maintenance::On { .. } => plan.at(scene.now + RECHECK.0),
            Maintenance::Off | Maintenance::Overdue { .. } => {}
        }
    }

    /// Writes down when the first look began, so that a restart does not begin it anew.
    pub(super) fn keep_first_look(&mut self, startup: &Startup, plan: &mut Plan) {
        if !std::mem::replace(&mut self.first_look_kept, true) {
            plan.batch.put(startup.record());
            plan.batch.put(startup.upgrade.record());
        }
    }

    /// The one mail of what rules find that an upgrade brought: it counts as told, and is mailed again only when it changes.
    pub(super) fn new_rules(
        &mut self,
        startup: &mut Startup,
        alerts: &[Alert],
        muted: &BTreeMap<Fingerprint, Muted>,
        plan: &mut Plan,
        scene: &Scene<'_>,
    ) {
        let fresh = |alert: &&Alert| matches!(muted.get(&alert.fingerprint()), Some(Muted::Startup(Quiet::NewRule { .. })));
        let untold = alerts.iter().filter(|alert| alert.is_firing() && !startup.upgrade.told(alert)).filter(fresh);
        let mut untold: Vec<&Alert> = untold.collect();
        let Some(due) = startup.upgrade.due(untold.iter().copied()) else { return };
        if due > scene.now {
            plan.at(due);
            return;
        }
        untold.sort_by_key(|alert| (message::rank(alert), alert.active_at, alert.fingerprint()));
        let until = startup.upgrade.until(untold[0], scene.now).unwrap_or(scene.now);
        let id = self.bulletin("new-rules", bulletin::new_rules(&self.voice, &untold, until), plan, scene);
        // Groups of their own: others of the same probe may have been told already.
        self.told_quietly(&format!("new-rules-{}/", scene.now.0), &untold, &id, plan, scene);
        plan.batch.put(&startup.upgrade.tell(untold));
    }

    /// The one mail of the first look: what is wrong then counts as told, and is mailed again only when it changes. What a
    /// failing parent breaks is left to the parent.
    pub(super) fn first_look(&mut self, startup: &mut Startup, alerts: &[Alert], targets: &[Latest], plan: &mut Plan, scene: &Scene<'_>) {
        let depends = self.wiring.depends.clone();
        let behind = |alert: &Alert| alert.probe().is_some_and(|probe| !depends.failing_ancestors(probe, scene.failing).is_empty());
        let told: Vec<&Alert> = alerts.iter().filter(|alert| alert.state != AlertState::Inactive && !behind(alert)).collect();
        let needs = |probe: &str| depends.failing_ancestors(probe, scene.failing).into_iter().map(str::to_owned).collect();
        let id = self.bulletin("first-look", bulletin::first_look(&self.voice, targets, needs), plan, scene);
        self.told_quietly("", &told, &id, plan, scene);
        plan.batch.put(&startup.finish_first_look(told.iter().copied().filter(|alert| alert.is_firing()), scene.now));
    }

    /// Writes down that the mail `id` told these, so that their ends follow it, and no reminders.
    fn told_quietly(&mut self, prefix: &str, told: &[&Alert], id: &str, plan: &mut Plan, scene: &Scene<'_>) {
        let (routes, observed) = (self.routes.clone(), !self.telling());
        for (key, group) in route::group(&routes, told.iter().copied()) {
            let key = format!("{prefix}{key}");
            let standing = Standing { active: group.alerts.clone(), ..Standing::default() };
            let mut worst = group.alerts.clone();
            worst.sort_by_key(|alert| (message::rank(alert), alert.active_at));
            let subject = message::subject(&self.voice, &worst);
            let entry = Notified {
                group: key.clone(),
                receiver: group.route.name.clone(),
                labels: group.labels,
                thread: Thread { root: id.to_owned(), last: id.to_owned(), sequence: 1, subject },
                observed,
                ..Notified::default()
            };
            let entry = Notified { quiet: true, ..entry.told(&standing, scene.now) };
            plan.batch.put(&entry);
            self.log.insert(key, entry);
        }
    }

    /// The daily mail: what is only worth knowing, and, while `notify.mode` is `observe`, what would have been mailed and
    /// done. `firing` are the alerts of severity info that are not muted.
    pub(super) fn day(&mut self, alerts: &[Alert], firing: &[&Alert], plan: &mut Plan, now: Timestamp) {
        let observes = self.mode == Mode::Observe;
        let kept = self.digest.take();
        let fresh = kept.is_none();
        let mut digest = kept.unwrap_or_else(|| Digest::new(now));
        if !observes && digest.known.is_empty() {
            // The day begins with the first thing to tell; what was observed before is not told any more.
            digest = digest.next(now);
        }
        let mut changed = digest.know(&self.voice, firing, now) || fresh;
        changed |= observes && digest.acts(&self.voice, alerts);
        if now.since(digest.since) >= DIGEST_EVERY {
            let letter = if observes { digest.letter(firing, now) } else { digest.day(firing) };
            let id = self.voice.message_id(&format!("digest-{}", now.0), 0, now);
            let message = bulletin::message(&self.voice, "digest", &id, letter);
            let to = self.routes.last().map(|route| route.receivers.clone()).unwrap_or_default();
            self.deliver(&to, &message, Weight::Reminder, plan, now);
            (digest, changed) = (digest.next(now), true);
        }
        if !observes && digest.is_empty() {
            if !fresh {
                plan.batch.remove::<Digest>(Digest::PREFIX);
            }
            return;
        }
        plan.at(digest.since + DIGEST_EVERY);
        if changed {
            plan.batch.put(&digest);
        }
        self.digest = Some(digest);
    }
}
