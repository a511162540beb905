//! From groups that are due to deliveries in the outbox.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Dispatcher, Due, Plan, Scene};
use crate::model::duration::print;
use crate::model::labels::fnv1a;
use crate::model::{Alert, Labels, ProbeResult, Timestamp};
use crate::notify::bulletin::{self, Digest};
use crate::notify::dedup::{Notified, Reason, Thread, damping};
use crate::notify::message::{self, Head, Story};
use crate::notify::{Channel, Delivery, Message, Mode, Weight};
use crate::snapshot::Latest;

/// More groups than this at one moment are told in one mail.
pub const BURST: usize = 10;
/// The most mails about single groups in an hour; what is more is told in summaries.
pub const MAX_MAILS: usize = 48;
/// How often a summary goes out at most: with [`MAX_MAILS`], a receiver gets at most 60 mails in an hour.
pub const SUMMARY_EVERY: Duration = Duration::from_secs(300);

/// The most targets of the alerts' probes, and of those below them, whose result a mail tells.
const MAX_FOUND: usize = 10;
/// The most refused addresses that a mail names.
const MAX_REFUSED: usize = 5;

impl Dispatcher {
    /// Writes the mails of all groups that are due: each its own, or, when there are too many, one for all.
    pub(super) fn tell(&mut self, mut due: Vec<Due<'_>>, plan: &mut Plan, scene: &Scene<'_>) -> Vec<Notified> {
        let now = scene.now;
        // Beginnings first, the worst of them first.
        due.sort_by_key(|due| {
            let worst = due.standing.fresh.iter().chain(&due.standing.active).map(|alert| message::rank(alert)).min();
            (due.reason == Reason::Reminder, worst.is_none(), worst)
        });
        while self.sent.front().is_some_and(|at| now.since(*at) >= Duration::from_secs(3600)) {
            self.sent.pop_front();
        }
        let room = if due.len() > BURST { 0 } else { MAX_MAILS.saturating_sub(self.sent.len()) };
        let many = due.split_off(room.min(due.len()));
        let mut told = Vec::new();
        for due in &due {
            told.push(self.tell_one(due, plan, scene));
            self.sent.push_back(now);
        }
        if many.is_empty() {
            return told;
        }
        match self.summary_at.map(|at| at + SUMMARY_EVERY).filter(|next| *next > now) {
            // Nothing is lost: what is due then is decided anew.
            Some(next) => plan.at(next),
            None => {
                self.summary_at = Some(now);
                told.extend(self.tell_many(&many, plan, scene));
            }
        }
        told
    }

    fn tell_one(&mut self, due: &Due<'_>, plan: &mut Plan, scene: &Scene<'_>) -> Notified {
        let mut story = self.story(due, scene);
        if !story.firing.is_empty() {
            story.notes.append(&mut self.untold);
        }
        let letter = story.letter(&self.voice);
        let mut entry = self.entry(due, &story, scene.now);
        let thread = std::mem::take(&mut entry.thread);
        let worst = story.firing.iter().chain(&story.ended).next();
        let episode = worst.map(|alert| alert.episode()).unwrap_or_default();
        let id = self.voice.message_id(&episode, thread.sequence, scene.now);
        let head = Head {
            message_id: id.clone(),
            thread: &thread,
            subject: thread.subject.clone(),
            name: worst.map_or("", |alert| alert.name()),
            severity: worst.and_then(|alert| alert.labels.get("severity")).unwrap_or(""),
            group: due.key,
            episode: &episode,
            reason: due.reason.as_str(),
            payload: story.payload(&self.voice),
        };
        let weight = match due.reason {
            Reason::Reminder => Weight::Reminder,
            _ if story.firing.is_empty() => Weight::Resolved,
            _ => Weight::Firing,
        };
        let headline = letter.headline.clone();
        let message = letter.message(&self.voice, head);
        self.queue(&due.group.route.receivers, &message, weight, &headline, plan, scene.now);
        entry.thread = Thread {
            root: if thread.root.is_empty() { id.clone() } else { thread.root },
            last: id,
            sequence: thread.sequence + 1,
            ..thread
        };
        entry
    }

    fn tell_many(&mut self, many: &[Due<'_>], plan: &mut Plan, scene: &Scene<'_>) -> Vec<Notified> {
        let stories: Vec<Story<'_>> = many.iter().map(|due| self.story(due, scene)).collect();
        let letter = bulletin::summary(&self.voice, &stories);
        let firing = stories.iter().any(|story| !story.firing.is_empty());
        let critical = stories.iter().flat_map(|story| &story.firing).any(|alert| message::rank(alert) == 0);
        let alerts: usize = stories.iter().map(|story| story.firing.len() + story.ended.len()).sum();
        let severity = if critical { "critical" } else { "" };
        let id = self.voice.message_id(&format!("summary-{}", scene.now.0), 0, scene.now);
        // The payload is one of a webhook's groups; here are many, so that it carries all their alerts under no label.
        let all = Story {
            firing: stories.iter().flat_map(|story| story.firing.clone()).collect(),
            ended: stories.iter().flat_map(|story| story.ended.clone()).collect(),
            group: "summary",
            labels: &Labels::default(),
            ..stories[0].clone()
        };
        let bracket = if critical { "[critical] " } else { "" };
        let head = Head {
            message_id: id.clone(),
            thread: &Thread::default(),
            subject: format!("{}{bracket}{alerts} alerts at once ({})", self.voice.prefix, self.voice.site),
            name: "",
            severity,
            group: "summary",
            episode: "",
            reason: "summary",
            payload: all.payload(&self.voice),
        };
        let headline = letter.headline.clone();
        let message = letter.message(&self.voice, head);
        let receivers: Vec<Channel> = many.iter().flat_map(|due| due.group.route.receivers.clone()).fold(Vec::new(), |mut all, channel| {
            if !all.contains(&channel) {
                all.push(channel);
            }
            all
        });
        self.queue(&receivers, &message, if firing { Weight::Firing } else { Weight::Resolved }, &headline, plan, scene.now);
        let entries = many.iter().zip(&stories).map(|(due, story)| {
            let mut entry = self.entry(due, story, scene.now);
            let root = std::mem::take(&mut entry.thread.root);
            entry.thread.root = if root.is_empty() { id.clone() } else { root };
            entry.thread.last.clone_from(&id);
            entry.thread.sequence += 1;
            entry
        });
        entries.collect()
    }

    /// Returns what the log says of a group once it is told; in its thread the mail itself is still missing.
    fn entry(&self, due: &Due<'_>, story: &Story<'_>, now: Timestamp) -> Notified {
        let open = due.entry.filter(|entry| entry.is_open());
        let mut entry = due.entry.cloned().unwrap_or_default().told(&due.standing, now);
        entry.group = due.key.to_owned();
        entry.receiver.clone_from(&due.group.route.name);
        entry.labels = due.group.labels.clone();
        entry.observed = !self.telling();
        if open.is_none() {
            let alerts: Vec<&Alert> = story.firing.iter().chain(&story.ended).copied().collect();
            entry.thread = Thread { subject: message::subject(&self.voice, &alerts), ..Thread::default() };
            entry.affected.clear();
        }
        for probe in &story.affected {
            if !entry.affected.contains(probe) {
                entry.affected.push(probe.clone());
            }
        }
        entry
    }

    fn story<'a>(&self, due: &'a Due<'a>, scene: &Scene<'a>) -> Story<'a> {
        let (standing, depends, route) = (&due.standing, &self.wiring.depends, due.group.route);
        let mut firing: Vec<&Alert> = standing.active.iter().chain(&standing.fresh).copied().collect();
        if matches!(due.reason, Reason::Resolved | Reason::RepairedAtOnce) {
            firing.clear();
        }
        firing.sort_by_key(|alert| (message::rank(alert), alert.active_at, alert.fingerprint()));
        let mut ended = standing.ended.clone();
        ended.sort_by_key(|alert| (message::rank(alert), alert.active_at, alert.fingerprint()));
        let mut probes: Vec<&str> = firing.iter().chain(&ended).filter_map(|alert| alert.probe()).collect();
        probes.sort_unstable();
        probes.dedup();
        let below =
            |probe: &&str| depends.failing_below(probe, scene.failing).into_iter().map(|below| below.probe.to_owned()).collect::<Vec<_>>();
        let mut affected: Vec<String> = match firing.is_empty() {
            false => probes.iter().flat_map(below).collect(),
            true => due.entry.map(|entry| entry.affected.clone()).unwrap_or_default(),
        };
        let mut known = BTreeSet::new();
        affected.retain(|probe| known.insert(probe.clone()) && !probes.contains(&probe.as_str()));
        let mut because: Vec<String> =
            probes.iter().flat_map(|probe| depends.failing_ancestors(probe, scene.failing)).map(str::to_owned).collect();
        because.dedup();
        let began = firing.iter().chain(&ended).map(|alert| alert.active_at).min().unwrap_or(scene.now);
        let fresh = standing.fresh.iter().map(|alert| (alert.fingerprint(), *alert));
        let mut notes = self.other_reasons(&probes, scene.now);
        for (fingerprint, alert) in fresh.take(self.voice.limit) {
            let changes = self.changed(fingerprint);
            let damped = damping(changes, route.group_interval);
            if !damped.is_zero() {
                let pause = print(damped);
                notes.push(format!(
                    "{} is flapping: it changed {changes} times within the last hour. While it does, it is mailed at most once in {pause}.",
                    alert.name()
                ));
            }
            if let Some(why) = self.held.get(&fingerprint) {
                notes.push(format!("{} was held back until now: {why}.", alert.name()));
            }
        }
        for (address, why) in (self.wiring.refused)().into_iter().take(MAX_REFUSED) {
            notes.push(format!("{address} gets no mail from here: {why}"));
        }
        // What was begun or observed is told by its attempt.
        let hour = |at: Timestamp| self.voice.hour(at, scene.now);
        let undone = standing.fresh.iter().filter(|alert| alert.attempts.is_empty()).take(self.voice.limit);
        let mut planned: Vec<String> = undone.flat_map(|alert| (self.wiring.announce)(alert, &hour)).collect();
        planned.dedup();
        let found = if firing.is_empty() { Vec::new() } else { found(scene.targets, &firing, &probes, &affected) };
        Story {
            reason: due.reason,
            group: due.key,
            labels: &due.group.labels,
            receiver: &route.name,
            affected,
            because,
            found,
            planned,
            changes: self.changed_since(began, &firing, scene.now),
            notes,
            next: Some(scene.now + route.repeat_interval),
            degraded: scene.degraded.clone(),
            now: scene.now,
            fresh: standing.fresh.iter().map(|alert| alert.fingerprint()).collect(),
            firing,
            ended,
        }
    }

    /// Puts one message into the outbox once per recipient; into the digest where nothing is sent.
    pub(super) fn queue(&mut self, to: &[Channel], message: &Message, weight: Weight, headline: &str, plan: &mut Plan, now: Timestamp) {
        if self.mode == Mode::Observe {
            self.digest.get_or_insert_with(|| Digest::new(now)).mail(&self.voice, headline, now);
            self.digest.iter().for_each(|digest| plan.batch.put(digest));
            return;
        }
        self.deliver(to, message, weight, plan, now);
    }

    pub(super) fn deliver(&self, to: &[Channel], message: &Message, weight: Weight, plan: &mut Plan, now: Timestamp) {
        for channel in to {
            let address = match channel {
                Channel::Email { to } => format!("email {to}"),
                Channel::Webhook { name } => format!("webhook {name}"),
            };
            plan.batch.put(&Delivery {
                id: format!("{}#{:016x}", message.message_id, fnv1a([address])),
                channel: channel.clone(),
                message: message.clone(),
                weight,
                queued_at: now,
                attempts: 0,
                next_at: now,
                last_error: None,
            });
            plan.queued = true;
        }
    }
}

/// Returns what the probes in question found last: those that the alerts are about, then those that need them; and of targets
/// that are well those that an alert is about, for their evidence.
fn found<'a>(targets: &'a [Latest], firing: &[&Alert], probes: &[&str], affected: &[String]) -> Vec<&'a ProbeResult> {
    let that = |wanted: &dyn Fn(&ProbeResult) -> bool| {
        let results = targets.iter().filter_map(|latest| latest.result.as_deref());
        results.filter(|result| wanted(result)).take(MAX_FOUND).collect::<Vec<_>>()
    };
    let own = that(&|result| !result.is_success() && probes.contains(&&*result.target.probe));
    let below = that(&|result| !result.is_success() && affected.iter().any(|name| **name == *result.target.probe));
    let well = that(&|result| result.is_success() && firing.iter().any(|alert| message::is_about(alert, result)));
    own.into_iter().chain(below).chain(well).collect()
}
