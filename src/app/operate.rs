//! Carries out what comes over the control socket, and from the status page: reload, silences, holds, acknowledgements.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::App;
use crate::client::net::chain;
use crate::client::process::user_name;
use crate::model::decode::unknown;
use crate::model::duration::{print, print_measured};
use crate::model::labels::fnv1a;
use crate::model::{Alert, AlertState, Matcher, Timestamp};
use crate::mute::hold::{Hold, HoldKind, Holds};
use crate::mute::silence::{Draft, Silence, Silences};
use crate::notify::message::{line, rank};
use crate::remediate::Mode;
use crate::store::{Batch, Committed, Record};
use crate::tasks;
use crate::web::control::{Command, Peer, Reply};

/// The most characters of a list that is answered.
const MAX_LIST: usize = 60_000;
/// The most characters of one row.
pub(super) const MAX_ROW: usize = 500;
/// What is answered where no alert is meant.
pub(super) const NONE_LIKE_THAT: &str = "no alert that is pending or firing is like that: `proctor alert list` shows them";
/// The most attempts that are shown, newest first.
const MAX_ATTEMPTS: usize = 20;
/// A hold whose command was not heard of for this long has ended: its `proctor hold run` was killed.
const COMMAND_SILENT: Duration = Duration::from_secs(30);

impl App {
    /// Carries a command out; what is changed is stored before the answer.
    pub(super) async fn carry(&self, command: Command, peer: Peer) -> Result<Reply, String> {
        let now = tasks::now();
        let by = match &peer {
            Peer::Local { uid } => user_name(*uid),
            // No user of this host may be mistaken for one of that file.
            Peer::Remote { user, .. } => format!("{user} over HTTP"),
        };
        match command {
            Command::Health {} => self.alive().map(|()| Reply::text(self.status_line())),
            Command::Reload {} => self.reload().await.map(|()| Reply::text("reloaded")).map_err(|error| chain(&error)),
            Command::SilenceAdd { matchers, for_ms, comment } => {
                let matchers =
                    matchers.iter().map(|text| Matcher::parse(text).map_err(|error| error.to_string())).collect::<Result<_, _>>()?;
                let ends_at = now + Duration::from_millis(for_ms);
                let draft = Draft { id: None, matchers, starts_at: now, ends_at, created_by: by, comment };
                let written = Silences::new(self.store.all()).set(draft, self.fresh_id(now), now).map_err(|error| error.to_string())?;
                let Some(silence) = written.last() else { return Err("nothing was written".to_owned()) };
                let note = self.write(&written).await;
                let length = print(silence.ends_at.since(now));
                Ok(Reply {
                    id: Some(silence.id.clone()),
                    text: format!("silence {} for {length}, until {}{note}", silence.id, silence.ends_at),
                })
            }
            Command::SilenceList {} => {
                let silences = Silences::new(self.store.all());
                let rows = silences.all().filter(|silence| now < silence.ends_at).map(|silence| {
                    let matchers: Vec<String> = silence.matchers.iter().map(ToString::to_string).collect();
                    format!(
                        "{}  {}  until {}  {}  by {}: {}",
                        silence.id,
                        silence.state(now),
                        silence.ends_at,
                        matchers.join(" "),
                        silence.created_by,
                        silence.comment
                    )
                });
                Ok(list(rows, "no silence is pending or active"))
            }
            Command::SilenceExpire { id } => {
                let silence = Silences::new(self.store.all()).expire(&id, now).map_err(|error| error.to_string())?;
                let note = self.write(&[silence]).await;
                Ok(Reply::text(format!("silence {id} is over{note}")))
            }
            Command::Hold { for_ms, reason } => {
                let mut holds = Holds::new(self.store.all());
                let hold = holds
                    .hold_for(self.fresh_id(now), Duration::from_millis(for_ms), &by, &reason, now)
                    .map_err(|error| error.to_string())?;
                self.answer_hold(hold, now).await
            }
            Command::HoldRun { command } => {
                let mut holds = Holds::new(self.store.all());
                let hold = holds.hold_command(self.fresh_id(now), &command, &by, "", now).map_err(|error| error.to_string())?;
                self.heard_of(&hold.id, now);
                self.answer_hold(hold, now).await
            }
            Command::HoldRenew { id } => {
                self.heard_of(&id, now);
                Ok(Reply::text("held"))
            }
            Command::HoldEnd { id: Some(id) } => {
                let mut holds = Holds::new(self.store.all());
                let is_command = holds.active(now).iter().any(|hold| hold.id == id && matches!(hold.kind, HoldKind::Command { .. }));
                let ended = if is_command { holds.command_ended(&id, now) } else { holds.end(&id, now) };
                let hold = ended.map_err(|error| error.to_string())?;
                let rest = hold.until.since(now);
                let note = self.write(&[hold]).await;
                Ok(Reply::text(if rest.is_zero() {
                    format!("the hold is over{note}")
                } else {
                    format!("the hold ends in {}{note}", print(rest))
                }))
            }
            Command::HoldEnd { id: None } => {
                let mut holds = Holds::new(self.store.all());
                let ids: Vec<String> = holds.active(now).iter().map(|hold| hold.id.clone()).collect();
                let ended: Vec<Hold> = ids.iter().filter_map(|id| holds.end(id, now).ok()).collect();
                let note = self.write(&ended).await;
                Ok(Reply::text(match ended.len() {
                    0 => "nothing was held".to_owned(),
                    1 => format!("the hold is over{note}"),
                    count => format!("{count} holds are over{note}"),
                }))
            }
            Command::HoldList {} => {
                let holds = Holds::new(self.store.all());
                let rows = holds.active(now).into_iter().map(|hold| {
                    let what = match &hold.kind {
                        HoldKind::Timed => "for a time".to_owned(),
                        HoldKind::Command { line } if hold.command_ended_at.is_some() => {
                            format!("{line:?} has ended; what it restarted comes up")
                        }
                        HoldKind::Command { line } => format!("while {line:?} runs"),
                    };
                    format!("{}  {what}, {} more at most  by {}: {}", hold.id, print_measured(hold.until.since(now)), hold.by, hold.reason)
                });
                Ok(list(rows.collect::<Vec<_>>().into_iter(), "nothing is held"))
            }
            Command::Heartbeat { name, report } => {
                let known = || {
                    let config = self.loaded().config;
                    let names = config.probes.0.iter().filter(|(_, probe)| probe.heartbeat.is_some()).map(|(name, _)| name.value.clone());
                    names.collect::<Vec<_>>()
                };
                let Some(inbox) = self.inbox(&name) else {
                    let known = known();
                    return Err(unknown("heartbeat", &name, &known.iter().map(String::as_str).collect::<Vec<_>>()));
                };
                inbox.report(report).await;
                Ok(Reply::text("taken"))
            }
            Command::AlertList {} => Ok(list(self.alert_rows(now).into_iter(), "nothing is pending or firing")),
            Command::AlertShow { matchers } => Ok(list(self.show(&matchers)?.into_iter(), NONE_LIKE_THAT)),
            Command::AlertAck { matchers, comment } => self.acknowledge(&matchers, &by, &comment, now).await.map(Reply::text),
            Command::Explain { alert, matchers } => Ok(list(self.explain(&alert, &matchers, now)?.into_iter(), NONE_LIKE_THAT)),
            Command::ActionList {} => Ok(list(self.action_rows(now).into_iter(), "the configuration names no actions")),
            Command::ActionPause {} => {
                let paused = self.runner.pause(&by).await;
                Ok(Reply::text(format!("all actions are paused by {}: `proctor action resume` lets them run again", paused.by)))
            }
            Command::ActionResume {} => Ok(Reply::text(match self.runner.resume().await {
                Some(paused) => format!("actions run again; they were paused by {} since {}", paused.by, paused.since),
                None => "actions were not paused".to_owned(),
            })),
        }
    }

    /// Ends the holds whose command was not heard of: its `proctor hold run` was killed.
    pub(super) async fn end_silent_holds(&self) {
        let now = tasks::now();
        let mut holds = Holds::new(self.store.all());
        let running: Vec<String> = holds
            .active(now)
            .into_iter()
            .filter(|hold| matches!(hold.kind, HoldKind::Command { .. }) && hold.command_ended_at.is_none())
            .map(|hold| hold.id.clone())
            .collect();
        let mut ended = Vec::new();
        {
            let mut heard = self.heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            heard.retain(|id, _| running.contains(id));
            for id in running {
                // A hold from before our own restart has its time from now on.
                let last = *heard.entry(id.clone()).or_insert(now);
                if now.since(last) > COMMAND_SILENT {
                    ended.extend(holds.command_ended(&id, now).ok());
                }
            }
        }
        if !ended.is_empty() {
            tracing::warn!("a hold ends: its command was not heard of for {}", print(COMMAND_SILENT));
            self.write(&ended).await;
        }
    }

    /// Says what is pending and firing, the worst first; then where its mails stand.
    fn alert_rows(&self, now: Timestamp) -> Vec<String> {
        let mut alerts: Vec<_> = self.alerts.all().into_iter().filter(|alert| alert.state != AlertState::Inactive).collect();
        alerts.sort_by_key(|alert| (!alert.is_firing(), rank(alert), alert.active_at));
        let mut rows = Vec::new();
        for alert in alerts {
            let state = if alert.is_firing() { "firing " } else { "pending" };
            let severity = alert.labels.get("severity").unwrap_or("");
            let lasts = print_measured(now.since(alert.active_at));
            rows.push(line(&format!("{state}  {severity:8}  {} {}  for {lasts}", alert.name(), place(&alert)), MAX_ROW));
            rows.extend(alert.annotations.get("summary").map(|summary| format!("    {}", line(summary, MAX_ROW))));
            let attempts = alert.attempts.iter().map(|attempt| {
                line(&format!("{} {} {}: {}", attempt.started_at, attempt.action, attempt.outcome, attempt.detail), MAX_ROW)
            });
            rows.extend(attempts.map(|attempt| format!("    {attempt}")));
        }
        for group in self.board().status() {
            let mailed = group.mailed_at.map(|at| format!(", last mailed {at}")).unwrap_or_default();
            let next = group.next_at.map(|at| format!(", looked at again {at}")).unwrap_or_default();
            rows.push(line(&format!("mails of {}: {}{mailed}{next}", group.group, group.state), MAX_ROW));
            rows.extend(group.muted.iter().map(|(name, why)| format!("    {name} is not mailed now: {}", line(why, MAX_ROW))));
        }
        rows
    }

    /// Says what each action waits for, and what was done lately.
    fn action_rows(&self, now: Timestamp) -> Vec<String> {
        let config = self.loaded().config;
        let mut rows: Vec<String> =
            self.runner.paused().map(|paused| format!("PAUSED by {} since {}", paused.by, paused.since)).into_iter().collect();
        for (name, action) in &config.actions.0 {
            let mode = if action.mode == Mode::Act { "acts" } else { "only says what it would do" };
            let matchers: Vec<String> = action.matchers.iter().map(ToString::to_string).collect();
            rows.push(line(&format!("{}  {}  {mode}  for {}", name.value, action.kinds().join(" "), matchers.join(" ")), MAX_ROW));
        }
        let waits = self.runner.waits();
        rows.extend(
            waits
                .iter()
                .filter(|(_, (until, _))| *until > now)
                .map(|(target, (until, why))| line(&format!("{target} waits until {until} at least: {why}"), MAX_ROW)),
        );
        let attempts = self.runner.attempts();
        rows.extend(attempts.iter().rev().take(MAX_ATTEMPTS).map(|attempt| {
            line(
                &format!("{} {} ({}) {}: {}", attempt.started_at, attempt.action, attempt.target, attempt.outcome, attempt.detail),
                MAX_ROW,
            )
        }));
        rows
    }

    fn heard_of(&self, hold: &str, now: Timestamp) {
        let mut heard: std::sync::MutexGuard<'_, BTreeMap<String, Timestamp>> =
            self.heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        heard.insert(hold.to_owned(), now);
    }

    async fn answer_hold(&self, hold: Hold, now: Timestamp) -> Result<Reply, String> {
        let (id, length) = (hold.id.clone(), print(hold.until.since(now)));
        let note = self.write(&[hold]).await;
        Ok(Reply {
            text: format!("held for {length} at most: nothing is mailed, nothing is done{note}; `proctor hold end {id}` ends it"),
            id: Some(id),
        })
    }

    /// Writes records; returns what to add to the answer where the disk did not take them.
    async fn write<R: Record>(&self, records: &[R]) -> &'static str {
        let mut batch = Batch::new();
        records.iter().for_each(|record| batch.put(record));
        self.commit(batch).await
    }

    /// Writes what mutes; returns what to add to the answer where the disk did not take it.
    pub(super) async fn commit(&self, batch: Batch) -> &'static str {
        let committed = self.store.commit(batch).await;
        self.mutes_changed();
        match committed {
            Committed::Durable => "",
            Committed::InMemory => " (in memory only: the state cannot be written now)",
        }
    }

    /// Makes an id of eight digits that no silence and no hold has.
    fn fresh_id(&self, now: Timestamp) -> String {
        let taken: Vec<String> = self
            .store
            .all::<Silence>()
            .into_iter()
            .map(|silence| silence.id)
            .chain(self.store.all::<Hold>().into_iter().map(|hold| hold.id))
            .collect();
        let id = |n: u32| format!("{:08x}", fnv1a([now.0.to_le_bytes().as_slice(), &n.to_le_bytes()]) >> 32);
        (0..).map(id).find(|id| !taken.contains(id)).unwrap_or_default()
    }
}

/// Names the probe and the target that an alert is about.
pub(super) fn place(alert: &Alert) -> String {
    [alert.probe(), alert.labels.get("target")].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// Puts rows under one another, as many as fit.
fn list(rows: impl Iterator<Item = String>, none: &str) -> Reply {
    let mut text = String::new();
    for row in rows {
        if text.len() + row.len() > MAX_LIST {
            text.push_str("… and more\n");
            break;
        }
        // Writing to a String cannot fail.
        let written = writeln!(text, "{row}");
        debug_assert!(written.is_ok());
    }
    Reply::text(if text.is_empty() { none.to_owned() } else { text.trim_end().to_owned() })
}
