//! Why something was or was not mailed, and was or was not repaired: step by step, from the tables and the stored log.

use super::App;
use super::operate::{MAX_ROW, NONE_LIKE_THAT, place};
use crate::model::decode::unknown;
use crate::model::duration::print;
use crate::model::{Alert, AlertState, Matcher, Timestamp};
use crate::mute::ack::{Ack, Acks};
use crate::notify::dedup::Notified;
use crate::notify::message::{is_only_worth_knowing, line};
use crate::notify::{Channel, Delivery, NotifyConfig, route::Route};
use crate::rules::load::{AlertRule, RuleGroup, RuleKind};
use crate::store::Batch;

/// The most alerts that one question is answered for.
const MAX_ALERTS: usize = 5;
/// The most deliveries that wait which are named.
const MAX_WAITING: usize = 5;

/// An alerting rule and its group.
struct Named<'a> {
    group: &'a RuleGroup,
    id: String,
    rule: &'a AlertRule,
    expr: &'a str,
}

impl App {
    /// Returns the alerts that matchers select, firing first; at least one.
    fn select(&self, matchers: &[String]) -> Result<Vec<Alert>, String> {
        let matchers: Vec<Matcher> =
            matchers.iter().map(|text| Matcher::parse(text).map_err(|error| error.to_string())).collect::<Result<_, _>>()?;
        let mut alerts = self.alerts.all();
        alerts.retain(|alert| alert.state != AlertState::Inactive && matchers.iter().all(|matcher| matcher.matches(&alert.labels)));
        alerts.sort_by_key(|alert| (!alert.is_firing(), alert.active_at, alert.fingerprint()));
        Ok(alerts)
    }

    /// Shows all that is known of some alerts.
    pub(super) fn show(&self, matchers: &[String]) -> Result<Vec<String>, String> {
        let alerts = self.select(matchers)?;
        let mut rows = Vec::new();
        for alert in &alerts {
            rows.push(format!("{} {}", alert.name(), place(alert)));
            let state = match alert.fired_at {
                Some(at) if alert.is_firing() => format!("firing since {at}, true since {}", alert.active_at),
                _ => format!("pending, true since {}", alert.active_at),
            };
            rows.push(format!("  {state}, value {}", alert.value));
            rows.push(format!("  labels: {}", alert.labels));
            rows.extend(alert.annotations.iter().map(|(name, value)| format!("  {name}: {value}")));
            rows.extend(alert.evidence.iter().map(|text| format!("  evidence: {text}")));
            rows.extend(alert.attempts.iter().map(attempt));
        }
        Ok(rows.iter().map(|row| row_of(row)).collect())
    }

    /// Acknowledges what fires and is selected; forgets what was acknowledged and is over.
    pub(super) async fn acknowledge(&self, matchers: &[String], by: &str, comment: &str, now: Timestamp) -> Result<String, String> {
        if matchers.is_empty() {
            return Err("name an alert, or matchers such as alertname=\"DiskFull\"".to_owned());
        }
        let selected = self.select(matchers)?;
        let (acks, mut batch, mut named) = (Acks::new(self.store.all()), Batch::new(), Vec::new());
        if selected.is_empty() {
            return Err(NONE_LIKE_THAT.to_owned());
        }
        for alert in &selected {
            match acks.acknowledge(alert, by, comment, now) {
                Ok(ack) => {
                    batch.put(&ack);
                    named.push(line(&format!("{} {}", alert.name(), place(alert)), 200));
                }
                Err(error) if selected.len() == 1 => return Err(format!("{}: {error}", alert.name())),
                Err(_) => {}
            }
        }
        if named.is_empty() {
            return Err("none of these fires yet: only what fires can be acknowledged".to_owned());
        }
        acks.over(&self.alerts.all()).for_each(|ack| batch.remove::<Ack>(format!("ack/{}", ack.episode)));
        let note = self.commit(batch).await;
        Ok(format!(
            "acknowledged: {}{note}; no reminder is mailed and nothing is repaired while it lasts, its end is mailed",
            named.join(", ")
        ))
    }

    /// Explains one alert by its name.
    pub(super) fn explain(&self, name: &str, matchers: &[String], now: Timestamp) -> Result<Vec<String>, String> {
        let loaded = self.loaded();
        let rules: Vec<Named<'_>> = loaded.rules.iter().flat_map(named).collect();
        let Some(first) = rules.iter().find(|of| of.rule.name == name) else {
            let names: Vec<&str> = rules.iter().map(|of| of.rule.name.as_str()).collect();
            return Err(unknown("alert", name, &names));
        };
        let mut all = matchers.to_vec();
        all.push(format!("alertname={}", serde_json::Value::from(name)));
        let alerts = self.select(&all)?;
        let mut rows = Vec::new();
        for alert in alerts.iter().take(MAX_ALERTS) {
            let rule = rules.iter().find(|of| of.id == alert.rule).unwrap_or(first);
            self.explain_one(alert, rule, now, &mut rows);
        }
        if alerts.len() > MAX_ALERTS {
            rows.push(format!("… and {} more of that name: add a matcher such as probe=NAME", alerts.len() - MAX_ALERTS));
        }
        if alerts.is_empty() {
            rows.push(format!("{name} neither fires nor is pending now."));
            rows.push(about_rule(first));
            rows.push("Its expression gives nothing on what the probes found last: `proctor check` shows what that is.".to_owned());
            self.explain_past(name, now, &mut rows);
        }
        Ok(rows.iter().map(|row| row_of(row)).collect())
    }

    fn explain_one(&self, alert: &Alert, rule: &Named<'_>, now: Timestamp, rows: &mut Vec<String>) {
        let ago = |at: Timestamp| at.ago(now);
        rows.push(format!("{} {}", alert.name(), place(alert)));
        if let Some(probe) = alert.probe() {
            let failing = self.snapshot.all().into_iter().filter(|latest| &*latest.target.probe == probe).filter_map(|latest| {
                let result = latest.result?;
                let failure = result.outcome.as_ref().err()?.clone();
                Some(format!("  1. The probe {}: {}: {} (asked {})", result.target, failure.reason, failure.detail, ago(result.at)))
            });
            let before = rows.len();
            rows.extend(failing.take(3));
            if rows.len() == before {
                rows.push(format!("  1. The probe {probe} itself is well: the rule reads something else that it measured."));
            }
        } else {
            rows.push("  1. It is about no probe.".to_owned());
        }
        rows.push(format!("  2. {}", about_rule(rule)));
        rows.push(match alert.fired_at.filter(|_| alert.is_firing()) {
            Some(fired) => {
                format!("     It has held since {} and fires since {fired} ({}), value {}.", alert.active_at, ago(fired), alert.value)
            }
            None => format!(
                "     It has held since {} ({}) and fires from {}, if it still holds then: nothing is mailed before.",
                alert.active_at,
                ago(alert.active_at),
                alert.active_at + rule.rule.hold
            ),
        });
        let group = self.group_of(alert);
        match &group {
            Some((_, receivers)) if is_only_worth_knowing(alert) => {
                rows.push(format!("  3. It is only worth knowing (severity info): told once, in the mail of the day, to {receivers}."));
            }
            Some((key, receivers)) => {
                rows.push(format!("  3. Its mails are those of the group {key}, to {receivers}."));
                let board = self.board().status();
                let of = board.iter().find(|of| of.group == *key);
                match of.and_then(|of| of.muted.iter().find(|(name, _)| name == alert.name())) {
                    Some((_, why)) => rows.push(format!("  4. Not mailed now: {why}.")),
                    None if alert.is_firing() => rows.push("  4. Nothing speaks against mailing it.".to_owned()),
                    None => rows.push("  4. It does not fire yet, so nothing is mailed.".to_owned()),
                }
                self.explain_mails(key, of.and_then(|of| of.next_at), now, rows);
            }
            None => rows.push("  3. Nobody is mailed: the configuration has no notify section.".to_owned()),
        }
        self.explain_repair(alert, now, rows);
    }

    /// Returns the key of the group an alert belongs to, and who its mails go to.
    fn group_of(&self, alert: &Alert) -> Option<(String, String)> {
        let loaded = self.loaded();
        let notify: &NotifyConfig = &loaded.config.notify.as_ref()?.value;
        let route = Route::of(notify, notify.webhooks.0.iter().map(|(name, _)| name.value.clone()));
        let receivers = route.receivers.iter().map(channel).collect::<Vec<_>>().join(", ");
        // What was told stays with the group it was told in.
        let told = |entry: &Notified| entry.firing.contains_key(&alert.fingerprint().to_string());
        let key = self.store.all::<Notified>().into_iter().find(told).map(|entry| entry.group);
        Some((key.unwrap_or_else(|| route.key(&route.group_labels(alert))), receivers))
    }

    fn explain_mails(&self, key: &str, next: Option<Timestamp>, now: Timestamp, rows: &mut Vec<String>) {
        match self.store.get::<Notified>(key) {
            Some(entry) if entry.observed => rows.push(format!("  5. Only observed, last {}: notify.mode is observe.", entry.at.ago(now))),
            Some(entry) if entry.quiet => rows.push(format!("  5. It was told in the mail of the first look, {}.", entry.at.ago(now))),
            Some(entry) => {
                rows.push(format!("  5. Last mailed {} ({}), mail {} of its thread.", entry.at, entry.at.ago(now), entry.thread.sequence))
            }
            None => rows.push("  5. Nothing was mailed of it yet.".to_owned()),
        }
        if let Some(next) = next {
            rows.push(format!("     Its group is looked at again {next}."));
        }
        let waiting: Vec<Delivery> = self.store.all();
        let own =
            waiting.iter().filter(|delivery| delivery.message.headers.iter().any(|(name, value)| name == "X-Alert-Group" && value == key));
        for delivery in own.take(MAX_WAITING) {
            let why = delivery.last_error.as_deref().unwrap_or("it is on its way");
            let next = delivery.next_at;
            rows.push(format!(
                "     A mail to {} waits, tried {} times, next {next}: {why}",
                channel(&delivery.channel),
                delivery.attempts
            ));
        }
        for (address, why) in self.outbox.refused() {
            rows.push(format!("     {address} is refused by the relay: {why}"));
        }
    }

    fn explain_repair(&self, alert: &Alert, now: Timestamp, rows: &mut Vec<String>) {
        let announced = self.runner.announce(alert, &|at| at.to_string());
        if announced.is_empty() && alert.attempts.is_empty() {
            rows.push("  6. No action is for it.".to_owned());
            return;
        }
        rows.extend(announced.into_iter().map(|text| format!("  6. Repair: {text}.")));
        rows.extend(alert.attempts.iter().map(|of| format!("   {}", attempt(of))));
        if let Some(paused) = self.runner.paused() {
            rows.push(format!("     All actions are paused by {} since {}.", paused.by, paused.since));
        }
        if let Some(why) = super::repairing::withheld(&self.scoped, &self.mutes, &self.snapshot, &self.alerts, &self.starting)(alert, now) {
            rows.push(format!("     Nothing is done now: {why}."));
        }
        if let Some(why) = self.store.degraded() {
            rows.push(format!("     Nothing is done while the state cannot be written: {why}."));
        }
        for (target, (until, why)) in self.runner.waits().iter().filter(|(_, (until, _))| *until > now) {
            rows.push(format!("     {target} waits until {until} at least: {why}."));
        }
    }

    fn explain_past(&self, name: &str, now: Timestamp, rows: &mut Vec<String>) {
        let mut past: Vec<Alert> = self.alerts.all().into_iter().filter(|alert| alert.name() == name).collect();
        past.sort_by_key(|alert| alert.resolved_at);
        for alert in past.iter().rev().take(MAX_ALERTS) {
            let end = alert.resolved_at.map(|at| format!("{at} ({})", at.ago(now))).unwrap_or_default();
            rows.push(format!("It was true from {} to {end}: {}", alert.active_at, place(alert)));
            rows.push(match alert.fired_at {
                Some(at) => format!("  It fired from {at}."),
                None => "  That was shorter than the rule's `for`, so it never fired and nothing was mailed.".to_owned(),
            });
            if let Some((key, _)) = self.group_of(alert).filter(|_| alert.fired_at.is_some()) {
                self.explain_mails(&key, None, now, rows);
            }
            rows.extend(alert.attempts.iter().map(attempt));
        }
    }
}

fn named(group: &RuleGroup) -> Vec<Named<'_>> {
    let alerting = group.rules.iter().enumerate().filter_map(|(index, of)| match &of.kind {
        RuleKind::Alerting(rule) => Some(Named { group, id: group.rule_id(index), rule, expr: of.expr.text() }),
        RuleKind::Recording { .. } => None,
    });
    alerting.collect()
}

fn about_rule(of: &Named<'_>) -> String {
    let hold = if of.rule.hold.is_zero() { "at once".to_owned() } else { format!("once it held for {}", print(of.rule.hold)) };
    format!("Its rule ({}, looked at every {}) fires {hold}: {}", of.group.file.display(), print(of.group.interval), of.expr)
}

fn attempt(of: &crate::model::Attempt) -> String {
    format!("  {} {} ({}) {}: {}", of.started_at, of.action, of.target, of.outcome, of.detail)
}

fn channel(of: &Channel) -> String {
    match of {
        Channel::Email { to } => to.clone(),
        Channel::Webhook { name } => format!("the webhook {name}"),
    }
}

/// Keeps the indent, and makes one clean line of the rest.
fn row_of(row: &str) -> String {
    let indent = row.len() - row.trim_start_matches(' ').len();
    format!("{}{}", &row[..indent], line(row, 4 * MAX_ROW))
}
