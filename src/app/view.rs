//! What the status page shows, and Proctor's own metrics as samples.

mod coming;
mod targets;
mod troubles;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use std::time::Duration;

use super::App;
use crate::changes::Kind;
use crate::model::duration::{print, print_measured};
use crate::model::labels::NAME;
use crate::model::{Alert, Labels, Outcome, Problem, Sight, Timestamp};
use crate::mute::depends::{Depends, FailingProbes, failing};
use crate::mute::{self, Maintenance, StartupView};
use crate::notify::dedup::Notified;
use crate::notify::message::line;
use crate::notify::{self, Channel, Delivery};
use crate::probe::heartbeat::{Check, Ended};
use crate::remediate::Mode;
use crate::rules::load::RuleKind;
use crate::snapshot::Latest;
use crate::snapshot::history::History;
use crate::tasks;
use crate::web::{Button, CheckRow, Event, Notice, Rows, Status, Tone};

/// The most characters of one text on the page.
const MAX_TEXT: usize = 300;
/// The most rows of each list beside the targets.
const MAX_EVENTS: usize = 12;
/// The most checks of the site.
const MAX_CHECKS: usize = 200;
/// How far back changes of the host and attempts are shown.
const RECENT: Duration = Duration::from_secs(24 * 3600);

/// The most mistakes of a refused configuration that are named.
const MAX_PLACES: usize = 3;

/// Why the last reload was refused, and when.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub(super) at: Timestamp,
    pub(super) why: Vec<String>,
}

impl Refused {
    /// Says where the mistakes stand, and not what they are: a page that everybody may read shows no text of the file.
    pub(super) fn of(error: &super::AppError) -> Self {
        let why = match error {
            super::AppError::Config(problems) => {
                let place = |problem: &Problem| format!("{}:{}:{}", problem.file.display(), problem.at.line, problem.at.col);
                let more = problems.len().saturating_sub(MAX_PLACES);
                problems.iter().take(MAX_PLACES).map(place).chain((more > 0).then(|| format!("{more} more"))).collect()
            }
            other => vec![other.to_string()],
        };
        Self { at: tasks::now(), why }
    }
}

/// How an alert was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Only in the digest of what would have been mailed.
    Observed,
    /// A mail is written, and waits to leave.
    Waits,
    /// It was delivered.
    Mailed,
}

/// What is known now, read once for a page.
struct Scene {
    now: Timestamp,
    targets: Vec<(Latest, History)>,
    alerts: Vec<Alert>,
    failing: FailingProbes,
    depends: std::sync::Arc<Depends>,
    /// The `for` of every alerting rule, by its id.
    holds: BTreeMap<String, Duration>,
    /// Whether somebody is told at all.
    tells: bool,
    /// When an alert was last told, by fingerprint, and how.
    told: BTreeMap<String, (Timestamp, Told)>,
    /// Why an alert is not told now, by fingerprint.
    muted: BTreeMap<String, String>,
}

impl App {
    /// Makes the rows of the status page.
    pub(super) fn status(&self) -> Status {
        let scene = self.scene();
        let loaded = self.loaded();
        let maintenance = self.mutes.lock().unwrap_or_else(PoisonError::into_inner).maintenance.state(scene.now);
        let mut notices = self.notices(&scene, &maintenance);
        if let Some(found) = &loaded.found {
            let mut notice = Notice::new(Tone::Unsure, "No configuration: Proctor watches what it found on this host, by looking only.");
            let left_out = found.left_out();
            if !left_out.is_empty() {
                notice.detail = line(&format!("Not watched: {}", left_out.join("; ")), 2 * MAX_TEXT);
            }
            notices.push(notice);
        }
        Status {
            site: loaded.config.site.name.clone(),
            verdict: self.verdict(&scene, &maintenance),
            notices,
            troubles: scene.troubles(),
            coming: self.coming(&scene),
            mails: self.mails(&scene),
            actions: self.repairs(scene.now),
            repair: self.may_repair(),
            changes: self.changes_lately(scene.now),
            checks: self.checks(&scene),
            groups: scene.groups(),
            targets: scene.targets.len(),
        }
    }

    fn scene(&self) -> Scene {
        let now = tasks::now();
        let (depends, patience) = {
            let scoped = self.scoped.lock().unwrap_or_else(PoisonError::into_inner);
            (scoped.depends.clone(), scoped.patience.clone())
        };
        let (targets, alerts) = (self.snapshot.histories(), self.alerts.all());
        let failing = failing(targets.iter().map(|(latest, _)| latest), &alerts, |probe| patience(probe));
        let mut told = BTreeMap::new();
        let waiting: Vec<Delivery> = self.store.all();
        let groups: BTreeSet<&str> = waiting
            .iter()
            .flat_map(|delivery| &delivery.message.headers)
            .filter_map(|(name, value)| (name == "X-Alert-Group").then_some(value.as_str()))
            .collect();
        for entry in self.store.all::<Notified>() {
            let how = match (entry.observed, groups.contains(entry.group.as_str())) {
                (true, _) => Told::Observed,
                (false, true) => Told::Waits,
                (false, false) => Told::Mailed,
            };
            told.extend(entry.firing.into_keys().map(|fingerprint| (fingerprint, (entry.at, how))));
        }
        let mutes = self.mutes.lock().unwrap_or_else(PoisonError::into_inner);
        let view = StartupView::of(targets.iter().map(|(latest, _)| latest), (self.starting)());
        let (maintenance, actions) = (mutes.maintenance.state(now), self.runner.current());
        let facts = mutes.facts(view, &maintenance, &actions, &depends, &failing);
        let muted = alerts
            .iter()
            .filter(|alert| alert.is_firing())
            .filter_map(|alert| Some((alert.fingerprint().to_string(), mute::why(alert, &facts, now)?.to_string())))
            .collect();
        drop(mutes);
        let loaded = self.loaded();
        let holds = loaded.rules.iter().flat_map(|group| {
            group.rules.iter().enumerate().filter_map(|(index, of)| match &of.kind {
                RuleKind::Alerting(rule) => Some((group.rule_id(index), rule.hold)),
                RuleKind::Recording { .. } => None,
            })
        });
        let tells = loaded.config.notify.is_some();
        Scene { now, targets, alerts, failing, depends, holds: holds.collect(), tells, told, muted }
    }

    /// Says whether it is fine, and says so where that cannot be known.
    fn verdict(&self, scene: &Scene, maintenance: &Maintenance) -> Notice {
        let count = |is: &dyn Fn(&Latest) -> bool| scene.targets.iter().filter(|(latest, _)| is(latest)).count();
        let all = scene.targets.len();
        let (waiting, old, failing) =
            (count(&|latest| latest.result.is_none()), count(&|latest| latest.is_old(scene.now)), count(&Latest::is_failing));
        let blind = count(&|latest| {
            latest.result.as_ref().is_some_and(|result| result.is_success() && matches!(result.sight, Sight::Blind { .. }))
        });
        let firing: Vec<&str> = scene.alerts.iter().filter(|alert| alert.is_firing()).map(Alert::name).collect();
        let of = |count: usize, one: &str, many: &str| if count == 1 { format!("1 {one}") } else { format!("{count} {many}") };
        let lost = self.mutes.lock().unwrap_or_else(PoisonError::into_inner).sight.lost().cloned();
        let (tone, text, detail) = if all == 0 {
            (Tone::Unsure, "Nothing is watched".to_owned(), "The configuration names no probe.".to_owned())
        } else if waiting == all {
            (
                Tone::Unsure,
                "Not known yet".to_owned(),
                format!("Proctor has just started: none of {} has answered.", of(all, "target", "targets")),
            )
        } else if let Some((since, why)) = lost {
            (
                Tone::Unsure,
                "Proctor cannot see beyond this host".to_owned(),
                format!("Since {} ago: {why}. What fails below may be well.", print_measured(scene.now.since(since))),
            )
        } else if failing > 0 && maintenance.mutes() {
            (Tone::Unsure, "Down on purpose".to_owned(), format!("{failing} of {all} targets fail meanwhile."))
        } else if failing > 0 {
            let roots = scene.root_names();
            let named = roots.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
            let more = if roots.len() > 3 { format!(" and {} more", roots.len() - 3) } else { String::new() };
            let fires = if firing.is_empty() { "No alert fires yet.".to_owned() } else { of(firing.len(), "alert fires.", "alerts fire.") };
            let verb = if failing == 1 { "fails" } else { "fail" };
            (Tone::Bad, format!("{failing} of {all} targets {verb}: {named}{more}"), fires)
        } else if !firing.is_empty() {
            let text = if firing.len() == 1 { format!("{} fires", firing[0]) } else { format!("{} alerts fire", firing.len()) };
            (Tone::Bad, text, format!("All that was asked answers: {}.", of(all, "target", "targets")))
        } else if old > 0 {
            let text = format!("The answers of {} are old", of(old, "target", "targets"));
            (Tone::Unsure, text, "Nothing is known to fail, but Proctor is late: look at the load of this host.".to_owned())
        } else if waiting > 0 {
            (Tone::Unsure, "Fine so far".to_owned(), format!("{} of {all} targets have not answered yet.", waiting))
        } else if blind == all {
            (
                Tone::Unsure,
                "Nothing can be seen".to_owned(),
                "Proctor may look at none of its targets: they say below what is missing.".to_owned(),
            )
        } else if blind > 0 {
            let detail = format!("{} of {all} targets are well; {} cannot be seen and may be or not.", all - blind, blind);
            (Tone::Good, "All that can be seen is well".to_owned(), detail)
        } else {
            (Tone::Good, "All is well".to_owned(), format!("{}, and no alert fires.", of(all, "target answers", "targets answer")))
        };
        Notice { detail: line(&detail, MAX_TEXT), ..Notice::new(tone, line(&text, MAX_TEXT)) }
    }

    /// Returns what people should know first.
    fn notices(&self, scene: &Scene, maintenance: &Maintenance) -> Vec<Notice> {
        let now = scene.now;
        let mut all = Vec::new();
        let mut add = |tone, text: String| all.push(Notice::new(tone, line(&text, 2 * MAX_TEXT)));
        if let Some(Refused { at, why }) = self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            let ago = print_measured(Duration::from_secs(now.since(at).as_secs()));
            let places = why.join(", ");
            add(
                Tone::Bad,
                format!(
                    "The new configuration was refused {ago} ago, the old one is in force: {places}. `proctor config check` says what is wrong."
                ),
            );
        }
        if let Some(stale) = self.access.stale() {
            add(Tone::Bad, format!("The file of web.config_file was changed and is refused ({stale}), the one of before is in force."));
        }
        if let Some(why) = self.store.degraded() {
            add(Tone::Bad, format!("The state cannot be written ({why}): Proctor goes on from memory and repairs nothing."));
        }
        self.store.notices().into_iter().for_each(|text| add(Tone::Unsure, text));
        self.outbox.problems().into_iter().for_each(|text| add(Tone::Bad, text));
        let config = self.loaded().config;
        match &config.notify {
            None => add(Tone::Plain, "Nobody is mailed: the configuration has no notify section.".to_owned()),
            Some(notify) if notify.mode == notify::Mode::Observe => {
                add(Tone::Plain, "Nobody is mailed at once: notify.mode is observe.".to_owned());
            }
            Some(_) => {}
        }
        let view = StartupView::of(scene.targets.iter().map(|(latest, _)| latest), (self.starting)());
        let mutes = self.mutes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(quiet) = mutes.startup.quiet(view, now) {
            add(Tone::Plain, format!("Nothing is mailed or repaired yet: {quiet}."));
        }
        match maintenance {
            Maintenance::On { since, file } => {
                add(Tone::Unsure, format!("The site is down on purpose: {} exists since {since}.", file.display()));
            }
            Maintenance::Overdue { .. } => {
                add(Tone::Bad, "The site is down on purpose, and has been for too long: was the file forgotten?".to_owned())
            }
            Maintenance::Settling { file, .. } => {
                add(Tone::Plain, format!("The site comes back: {} has just been removed.", file.display()))
            }
            Maintenance::Off => {}
        }
        for hold in mutes.holds.active(now).into_iter().take(MAX_EVENTS) {
            let rest = print_measured(hold.until.since(now));
            let why = if hold.reason.is_empty() { String::new() } else { format!(": {}", hold.reason) };
            let text = format!("Held by {} for {rest} more at most{why}. Nothing is mailed, nothing is repaired.", hold.by);
            let button = Button { what: "end", id: hold.id.clone(), label: "End the hold" };
            all.push(Notice { button: Some(button), ..Notice::new(Tone::Unsure, line(&text, 2 * MAX_TEXT)) });
        }
        for silence in mutes.silences.active(now).take(MAX_EVENTS) {
            let matchers: Vec<String> = silence.matchers.iter().map(ToString::to_string).collect();
            let rest = print_measured(silence.ends_at.since(now));
            let (by, comment) = (&silence.created_by, &silence.comment);
            let text = format!("Silenced by {by} for {rest} more: {} ({comment})", matchers.join(" "));
            let button = Button { what: "expire", id: silence.id.clone(), label: "End the silence" };
            all.push(Notice { button: Some(button), ..Notice::new(Tone::Plain, line(&text, 2 * MAX_TEXT)) });
        }
        all
    }

    /// Returns what is held back, and what waits to leave.
    fn mails(&self, scene: &Scene) -> Rows<Event> {
        let mut all: Vec<Event> = Vec::new();
        for alert in scene.alerts.iter().filter(|alert| alert.is_firing() && scene.tells) {
            let fingerprint = alert.fingerprint().to_string();
            if let (Some(why), false) = (scene.muted.get(&fingerprint), scene.told.contains_key(&fingerprint)) {
                let what = line(&format!("{} {} is held back", alert.name(), super::operate::place(alert)), MAX_TEXT);
                all.push(Event { at: alert.active_at, tone: Tone::Plain, what, detail: line(why, MAX_TEXT) });
            }
        }
        all.sort_by(|a, b| a.what.cmp(&b.what));
        let mut waiting: Vec<Delivery> = self.store.all();
        waiting.sort_by_key(|delivery| delivery.queued_at);
        all.extend(waiting.into_iter().map(|delivery| {
            let to = match &delivery.channel {
                Channel::Email { to } => to.clone(),
                Channel::Webhook { name } => format!("webhook {name}"),
            };
            let why = delivery.last_error.as_deref().unwrap_or("on its way");
            let detail = match delivery.attempts {
                0 => format!("to {to}, {why}"),
                tries => format!("to {to}, tried {tries} times: {why}"),
            };
            let tone = if delivery.attempts > 0 { Tone::Unsure } else { Tone::Plain };
            Event { at: delivery.queued_at, tone, what: line(&delivery.message.subject, MAX_TEXT), detail: line(&detail, MAX_TEXT) }
        }));
        Rows::of(all, MAX_EVENTS)
    }

    /// Returns what the actions did lately, the newest first.
    fn repairs(&self, now: Timestamp) -> Rows<Event> {
        let recent = self.runner.attempts().into_iter().rev().filter(|attempt| now.since(attempt.started_at) < RECENT);
        let events = recent.map(|attempt| Event {
            at: attempt.started_at,
            tone: match attempt.outcome {
                Outcome::Repaired => Tone::Good,
                Outcome::Failed | Outcome::Refused => Tone::Bad,
                Outcome::Running | Outcome::InDoubt => Tone::Unsure,
                Outcome::Observed => Tone::Plain,
            },
            what: line(&format!("{}: {}", attempt.action, attempt.outcome), MAX_TEXT),
            detail: line(&attempt.detail, MAX_TEXT),
        });
        Rows::of(events.collect(), MAX_EVENTS)
    }

    /// Says what the actions may do now.
    fn may_repair(&self) -> Notice {
        let config = self.loaded().config;
        let all = config.actions.0.len();
        let acting = config.actions.0.iter().filter(|(_, action)| action.mode == Mode::Act).count();
        if let Some(paused) = self.runner.paused().filter(|_| all > 0) {
            let text = line(&format!("All actions are paused by {} since {}.", paused.by, paused.since), MAX_TEXT);
            let button = Button { what: "resume", id: String::new(), label: "Let them run again" };
            return Notice { button: Some(button), ..Notice::new(Tone::Plain, text) };
        }
        let text = match (all, acting) {
            (0, _) => return Notice::default(),
            (1, 0) => "The one action only says what it would do.".to_owned(),
            (1, _) => "One action may act.".to_owned(),
            (all, 0) => format!("{all} actions only say what they would do."),
            (all, acting) if all == acting => format!("{all} actions may act."),
            (all, acting) => format!("{acting} of {all} actions may act, the others only say what they would do."),
        };
        let button = Button { what: "pause", id: String::new(), label: "Pause all actions" };
        Notice { button: Some(button), ..Notice::new(Tone::Plain, text) }
    }

    fn changes_lately(&self, now: Timestamp) -> Rows<Event> {
        let mut events: Vec<Event> = Vec::new();
        let mut packages = 0;
        for change in self.changes.between(now - RECENT, now + Duration::from_secs(60)).into_iter().rev() {
            packages = if change.kind == Kind::Upgraded { packages + 1 } else { 0 };
            // An upgrade of the host is one event, whatever it brings.
            if let Some(last) = events.last_mut().filter(|_| packages > 1) {
                last.what = format!("{packages} packages upgraded");
                last.detail = line(&format!("{}, {}", last.detail, change.subject.trim_start_matches("package ")), MAX_TEXT);
                continue;
            }
            let package = change.kind == Kind::Upgraded;
            let detail =
                if package { format!("{} {}", change.subject.trim_start_matches("package "), change.detail) } else { change.detail };
            events.push(Event {
                at: change.at,
                tone: if change.kind == Kind::Died { Tone::Unsure } else { Tone::Plain },
                what: line(&format!("{} {}", if package { "1 package" } else { &change.subject }, change.kind.as_str()), MAX_TEXT),
                detail: line(&detail, MAX_TEXT),
            });
        }
        Rows::of(events, MAX_EVENTS)
    }

    /// Returns what the site says of itself: the checks that its jobs report, and its programs.
    fn checks(&self, scene: &Scene) -> Rows<CheckRow> {
        let mut rows = Vec::new();
        let mut add = |name: &str, probe: &str, ok: bool, text: &str, at: Timestamp| {
            let tone = if ok { Tone::Good } else { Tone::Bad };
            rows.push(CheckRow { name: line(name, MAX_TEXT), probe: probe.to_owned(), tone, text: line(text, MAX_TEXT), at });
        };
        for (latest, _) in &scene.targets {
            let (probe, Some(result)) = (&latest.target.probe, latest.result.as_ref()) else { continue };
            if latest.target.kind == "command" {
                let text = result.outcome.as_ref().err().map_or("", |failure| failure.detail.as_str());
                add(probe, "command", result.is_success(), text, result.at);
            }
            if latest.target.kind == "heartbeat"
                && let Some((at, Ended { checks, .. })) = self.inbox(probe).and_then(|inbox| inbox.last())
            {
                checks.iter().for_each(|Check { name, ok, text }| add(name, probe, *ok, text, at));
            }
        }
        rows.sort_by(|a, b| (a.tone, &a.probe, &a.name).cmp(&(b.tone, &b.probe, &b.name)));
        Rows::of(rows, MAX_CHECKS)
    }
}

/// Says when an alert was told, or why not; and who takes care of it.
fn told(scene: &Scene, alert: &Alert) -> String {
    if !alert.is_firing() {
        return scene.fires_in(alert);
    }
    let fingerprint = alert.fingerprint().to_string();
    if !scene.tells {
        // What keeps mails back keeps actions back too.
        let why = scene.muted.get(&fingerprint).map(|why| format!("; {why}"));
        return format!("nobody is mailed{}", why.unwrap_or_default());
    }
    let mailed = scene.told.get(&fingerprint).map(|(at, how)| {
        let ago = print(Duration::from_secs(scene.now.since(*at).as_secs()));
        match how {
            Told::Observed => format!("only observed, {ago} ago"),
            Told::Waits => format!("its mail waits, written {ago} ago"),
            Told::Mailed => format!("mailed {ago} ago"),
        }
    });
    match (mailed, scene.muted.get(&fingerprint)) {
        (Some(mailed), Some(why)) => format!("{mailed}; {why}"),
        (Some(mailed), None) => mailed,
        (None, Some(why)) => format!("not mailed: {why}"),
        (None, None) => "its mail follows".to_owned(),
    }
}

/// Reads Proctor's own metrics back from their OpenMetrics text, since the library shows them in no other way.
pub(super) fn own_samples(text: &str, site: &Labels) -> Vec<(Labels, f64)> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            // Values of our own labels hold no quotes and no commas: names of probes and closed sets.
            let pairs = labels.trim_end_matches('}').split(',').filter_map(|pair| pair.split_once('='));
            let pairs = pairs.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()));
            Some((site.with(pairs.chain([(NAME.to_owned(), name.to_owned())])), value.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn our_own_metrics_are_samples_like_any_other() {
        let samples = own_samples(&Metrics::new().encode(), &Labels::new([("instance", "a")]));
        let wanted = r#"proctor_actions_total{instance="a", outcome="failed"}"#;
        assert!(samples.iter().any(|(labels, value)| labels.to_string() == wanted && *value == 0.0), "{samples:?}");
    }
}
