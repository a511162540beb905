//! Asks systemd whether the units that should be up are, and what it sees of their processes and timers.
//!
//! One `GetAll` per expected unit and run; between two runs systemd's signals say at once that something changed
//! (`watch`), and tell an end that somebody had ordered from one that nobody had: a job for the unit was there, or was
//! not. Names are those of systemd_exporter; a unit that is not loaded does not vanish but fails as `missing`.

mod judge;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use regex::Regex;
use tokio::sync::Notify;

use self::watch::{RESTARTS, Watch};
use super::{Planned, Probe, Recorder, Shared};
use crate::client::net::chain;
use crate::client::systemd::{Systemd, SystemdError, Timer, UnitName, UnitState};
use crate::model::decode::Named;
use crate::model::duration::print;
use crate::model::{Failure, Family, Reason, Sight};
use crate::tasks;

static UP: Family = Family::gauge("systemd_unit_up", "Whether a unit that should be up, or a timer and what it starts, is as it should be");
static STATE: Family = Family::gauge("systemd_unit_state", "Whether a unit is in this state; that of one that is not loaded is inactive");
static INFO: Family = Family::gauge("systemd_unit_info", "Always 1; the labels say what kind of unit and service it is");
static START: Family = Family::gauge("systemd_unit_start_time_seconds", "When the unit last became active, in seconds since the epoch; 0 while it is not");
static TASKS: Family = Family::gauge("systemd_unit_tasks_current", "Processes and threads of the unit");
static TASKS_MAX: Family = Family::gauge("systemd_unit_tasks_max", "The most processes and threads that the unit may have");
static RESTARTED: Family =
    Family::counter("systemd_service_restart_total", "How often systemd has restarted a service by itself since somebody last started it");
static REQUESTED: Family = Family::gauge(
    "systemd_unit_stop_requested",
    "Of a unit that is down: whether somebody had ordered it to stop or restart; absent where Proctor did not see its end",
);
static LIMIT: Family = Family::gauge("systemd_unit_start_limit_hit", "Whether systemd has given up starting the service again");
static EXIT: Family = Family::gauge("systemd_service_exit_status", "Exit status, or signal, of the last end of the service's main process");
static RESULT: Family = Family::gauge("systemd_service_result_info", "How the service last ended, where that was not well, as its label result");
static STALE: Family =
    Family::gauge("systemd_unit_need_daemon_reload", "Whether the unit's file has changed since systemd read it (systemctl daemon-reload)");
static PROCESS: Family =
    Family::gauge("systemd_unit_process_missing", "Whether the unit has no process whose command line matches an expected one");
static ACCEPTED: Family = Family::counter("systemd_socket_accepted_connections_total", "Connections that the socket has accepted");
static REFUSED: Family = Family::counter("systemd_socket_refused_connections_total", "Connections that the socket has refused");
static CONNECTED: Family = Family::gauge("systemd_socket_current_connections", "Connections of the socket that are open");
static LAST: Family = Family::gauge("systemd_timer_last_trigger_seconds", "When the timer last fired, in seconds since the epoch");
static NEXT: Family = Family::gauge("systemd_timer_next_trigger_seconds", "When the timer will fire, in seconds since the epoch");
static TIMER_FAILED: Family = Family::gauge("systemd_timer_service_failed", "Whether what the timer starts has failed");
static TIMER_OVERDUE: Family =
    Family::gauge("systemd_timer_overdue", "Whether the timer should have fired and has not, will not again, or what it started does not end");
static FAILED: Family = Family::gauge("systemd_units_failed", "How many units of the host have failed, expected or not");

/// The most units, timers, and expected processes of one unit.
const MAX_UNITS: usize = 100;
/// The most units that are named beside the expected ones.
const MAX_NAMED: usize = 50;
/// The target that stands for all units.
const HOST: &str = "host";

crate::config_struct! {
    /// Asks systemd whether the units that should be up are, by one target each, and what failed besides. Needs no rights;
    /// in a container the socket of the host's bus.
    pub struct SystemdConfig {
        /// Units that should be up, by their whole names. One of `Type=oneshot` may also have ended well.
        units: Vec<UnitName> = "[]",
        /// Timers that should be up, fire in time, and whose services should end well.
        timers: Vec<UnitName> = "[]",
        /// For a unit of `units`: regular expressions, each of which the command line of one of its processes must match.
        processes: Named<Vec<Regex>> = "{}",
        /// Whether one more target names the failed units and the restart loops of the whole host, expected or not.
        failed: bool = "true",
        /// The address of the bus, such as `unix:path=/host/dbus/system_bus_socket`; the default is the host's own.
        bus: Option<String>,
    }
}

/// Builds a target per unit and timer, and one for the host.
///
/// # Errors
/// A name twice or of the wrong kind, processes of a unit that is not expected, more than 100 of a kind, nothing to ask.
pub fn plan(config: &SystemdConfig, _: &str, shared: &Shared) -> Result<Vec<Planned>, String> {
    let SystemdConfig { units, timers, processes, failed, bus } = config;
    if units.is_empty() && timers.is_empty() && !failed {
        return Err("expected units, timers, or failed: true; found none".to_owned());
    }
    if units.len() > MAX_UNITS || timers.len() > MAX_UNITS {
        return Err(format!("expected at most {MAX_UNITS} units and as many timers, found {} and {}", units.len(), timers.len()));
    }
    if let Some(UnitName(name)) = timers.iter().find(|name| !name.0.ends_with(".timer")) {
        return Err(format!("timers: expected names that end in .timer, found {name:?}"));
    }
    if let Some(UnitName(name)) = units.iter().find(|name| name.0.ends_with(".timer")) {
        return Err(format!("units: {name} belongs below timers"));
    }
    for (name, patterns) in &processes.0 {
        if !units.iter().any(|unit| unit.0 == name.value) {
            return Err(format!("processes: {} is not among units", name.value));
        }
        if patterns.is_empty() || patterns.len() > MAX_UNITS {
            return Err(format!("processes: {}: expected 1 to {MAX_UNITS} regular expressions, found {}", name.value, patterns.len()));
        }
    }
    let names: Vec<&String> = units.iter().chain(timers).map(|unit| &unit.0).collect();
    if let Some(twice) = names.iter().enumerate().find_map(|(at, name)| names[..at].contains(name).then_some(name)) {
        return Err(format!("{twice} stands there twice"));
    }
    let told: BTreeMap<String, Vec<Arc<Notify>>> = names.iter().map(|name| ((*name).clone(), vec![Arc::default()])).collect();
    let host: Arc<Notify> = Arc::default();
    let changed = |name: &String| told.get(name).and_then(|all| all.first()).cloned().unwrap_or_default();
    let notified: Vec<Arc<Notify>> = names.iter().map(|name| changed(name)).collect();
    let systemd = bus.as_ref().map_or_else(Systemd::of_this_host, Systemd::at);
    let watch = Arc::new(Watch::new(systemd, shared.tasks().clone(), shared.changes().clone(), told, host.clone()));
    let planned = names.iter().zip(notified).map(|(name, changed)| {
        let expected = processes.0.iter().find(|(unit, _)| unit.value == **name).map(|(_, patterns)| patterns.clone());
        let unit = Unit { name: (*name).clone(), processes: expected.unwrap_or_default(), watch: watch.clone(), changed };
        Planned::one((*name).clone(), unit)
    });
    let all = failed.then(|| Planned::one(HOST, Host { watch: watch.clone(), changed: host }));
    Ok(planned.chain(all).collect())
}

/// Turns an error of the bus into a failure, or into being blind where it does not let Proctor in.
fn failure(rec: &mut Recorder, error: &SystemdError) -> Result<(), Failure> {
    let reason = error.reason();
    if reason == Reason::Forbidden {
        let remedy = "let Proctor's user open the bus and call systemd: the socket's rights, /etc/dbus-1/system.d".to_owned();
        rec.sight(Sight::Blind { missing: format!("anything of systemd: {}", chain(error)), remedy });
        return Ok(());
    }
    Err(Failure::new(reason, chain(error)))
}

/// Records what all units have.
fn record(rec: &mut Recorder, name: &str, state: &UnitState) {
    let kind = name.rsplit_once('.').map_or("", |(_, kind)| kind);
    let active = if matches!(state.active.as_str(), "reloading" | "refreshing") { "active" } else { &state.active };
    for one in ["active", "activating", "deactivating", "failed", "inactive"] {
        rec.set_with(&STATE, &[("name", name), ("type", kind), ("state", one)], f64::from(u8::from(one == active)));
    }
    rec.set_with(&INFO, &[("name", name), ("type", kind), ("service_type", &state.kind)], 1.0);
    let since = state.active_since.filter(|_| active == "active").map_or(0.0, |at| at.as_secs_f64());
    rec.set_with(&START, &[("name", name), ("type", kind)], since);
    rec.set_with(&STALE, &[("name", name)], f64::from(u8::from(state.needs_reload)));
    for (family, count) in [(&TASKS, state.tasks.0), (&TASKS_MAX, state.tasks.1)] {
        if let Some(count) = count {
            rec.set_with(family, &[("name", name)], count as f64);
        }
    }
    if let Some([accepted, refused, open]) = state.socket {
        for (family, count) in [(&ACCEPTED, accepted), (&REFUSED, refused), (&CONNECTED, open)] {
            rec.set_with(family, &[("name", name)], f64::from(count));
        }
    }
    if kind == "service" {
        rec.set_with(&RESTARTED, &[("name", name)], f64::from(state.restarts));
        rec.set_with(&EXIT, &[("name", name)], f64::from(state.exit_status));
        if !matches!(state.result.as_str(), "" | "success") {
            rec.set_with(&RESULT, &[("name", name), ("result", &state.result)], 1.0);
        }
    }
}

/// A unit or timer that should be up.
struct Unit {
    name: String,
    processes: Vec<Regex>,
    watch: Arc<Watch>,
    changed: Arc<Notify>,
}

impl Unit {
    async fn ask(&self, rec: &mut Recorder) -> Result<(), Failure> {
        let name = &self.name;
        self.watch.begin();
        rec.waiting(Reason::AnswerTimeout, format!("{name}: waiting for systemd's answer over D-Bus"));
        let heard = self.watch.heard();
        let state = match self.watch.systemd.unit(name).await {
            Ok(state) => state,
            Err(error) => return failure(rec, &error),
        };
        record(rec, name, &state);
        if state.load == "loaded" {
            rec.evidence(format!("{name} {state}"));
        }
        if !state.status_text.is_empty() {
            rec.evidence(format!("{name} says: {}", state.status_text));
        }
        let asked = self.watch.asked(&state, heard);
        let outcome = self.judge(rec, &state, asked).await;
        if name.ends_with(".service") {
            rec.set_with(&LIMIT, &[("name", name)], f64::from(u8::from(judge::hit_start_limit(&state, asked))));
        }
        rec.set_with(&UP, &[("name", name)], f64::from(u8::from(outcome.is_ok())));
        outcome
    }

    async fn judge(&self, rec: &mut Recorder, state: &UnitState, asked: Option<bool>) -> Result<(), Failure> {
        let name = &self.name;
        let outcome = judge::unit(name, state, asked);
        if let (Err(_), Some(asked)) = (&outcome, asked) {
            rec.set_with(&REQUESTED, &[("name", name)], f64::from(u8::from(asked)));
        }
        outcome?;
        match &state.timer {
            Some(timer) => self.timer(rec, state, timer).await,
            None if self.processes.is_empty() => Ok(()),
            None => self.processes(rec).await,
        }
    }

    async fn timer(&self, rec: &mut Recorder, state: &UnitState, timer: &Timer) -> Result<(), Failure> {
        let name = &self.name;
        for (family, at) in [(&LAST, timer.last), (&NEXT, timer.next)] {
            if let Some(at) = at {
                rec.set_with(family, &[("name", name)], at.as_secs_f64());
            }
        }
        let behind = match self.watch.systemd.unit(&timer.unit).await {
            Ok(behind) => behind,
            Err(error) => return failure(rec, &error),
        };
        record(rec, &timer.unit, &behind);
        let (late, outcome) = judge::timer(name, state, timer, &behind, tasks::wall_now());
        let labels = [("name", name.as_str()), ("unit", &timer.unit)];
        rec.set_with(&TIMER_FAILED, &labels, f64::from(u8::from(late.failed)));
        rec.set_with(&TIMER_OVERDUE, &labels, f64::from(u8::from(late.overdue)));
        outcome
    }

    /// Looks for each expected command line among the unit's processes.
    async fn processes(&self, rec: &mut Recorder) -> Result<(), Failure> {
        let name = &self.name;
        let running = match self.watch.systemd.processes(name).await {
            Ok(running) => running,
            Err(error) => return failure(rec, &error),
        };
        let is_missing = |pattern: &&Regex| !running.iter().any(|(_, line)| pattern.is_match(line));
        let missing: Vec<&str> = self.processes.iter().filter(is_missing).map(Regex::as_str).collect();
        for pattern in self.processes.iter().map(Regex::as_str) {
            rec.set_with(&PROCESS, &[("name", name), ("process", pattern)], f64::from(u8::from(missing.contains(&pattern))));
        }
        if missing.is_empty() {
            return Ok(());
        }
        for (pid, line) in &running {
            rec.evidence(format!("{pid} {line}"));
        }
        let (all, runs) = (self.processes.len(), running.len());
        Err(Failure::new(
            Reason::Missing,
            format!(
                "{name}: it is active, but {} of {all} expected processes are gone: {} ({runs} processes run; see `systemctl status {name}`)",
                missing.len(),
                missing.join(", ")
            ),
        ))
    }
}

impl Probe for Unit {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        self.ask(rec).boxed()
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        self.changed.notified().boxed()
    }
}

/// Whatever has failed or restarts all the time, expected or not. That fails no run: what matters is expected.
struct Host {
    watch: Arc<Watch>,
    changed: Arc<Notify>,
}

impl Host {
    async fn ask(&self, rec: &mut Recorder) -> Result<(), Failure> {
        self.watch.begin();
        rec.waiting(Reason::AnswerTimeout, "waiting for systemd's answer over D-Bus");
        let failed = match self.watch.systemd.failed_units().await {
            Ok(failed) => failed,
            Err(error) => return failure(rec, &error),
        };
        rec.set(&FAILED, failed.len() as f64);
        if !failed.is_empty() {
            rec.evidence(format!("failed: {}", failed.join(", ")));
        }
        for name in failed.iter().take(MAX_NAMED) {
            let kind = name.rsplit_once('.').map_or("", |(_, kind)| kind);
            rec.set_with(&STATE, &[("name", name), ("type", kind), ("state", "failed")], 1.0);
        }
        for (name, (all, lately)) in self.watch.restarting(tasks::now()).into_iter().take(MAX_NAMED) {
            rec.set_with(&RESTARTED, &[("name", &name)], f64::from(all));
            rec.evidence(format!("{name} was restarted {lately} times by systemd within {}", print(RESTARTS.0)));
        }
        Ok(())
    }
}

impl Probe for Host {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        self.ask(rec).boxed()
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        // A host that starts or stops many things is asked once for a few of them.
        async {
            self.changed.notified().await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decode::from_text;

    #[test]
    fn a_configuration_makes_a_target_per_unit_or_says_what_is_wrong_with_it() {
        let of = |text: &str| {
            let config: SystemdConfig = from_text("f", text).expect(text);
            plan(&config, "units", &Shared::default()).map(|all| all.into_iter().filter_map(|one| one.target).collect::<Vec<_>>())
        };
        let all = of("{units: [a.service, b.socket], timers: [c.timer], processes: {a.service: [x]}}").expect("is right");
        assert_eq!(all, ["a.service", "b.socket", "c.timer", "host"]);
        let many = format!("{{units: [{}]}}", (0..=MAX_UNITS).map(|n| format!("u{n}.service")).collect::<Vec<_>>().join(", "));
        for (text, wrong) in [
            ("{failed: false}", "expected units, timers, or failed: true"),
            ("{timers: [a.service]}", "timers: expected names that end in .timer, found \"a.service\""),
            ("{units: [a.timer]}", "a.timer belongs below timers"),
            ("{units: [a.service, a.service]}", "a.service stands there twice"),
            ("{processes: {a.service: [x]}}", "processes: a.service is not among units"),
            ("{units: [a.service], processes: {a.service: []}}", "expected 1 to 100 regular expressions, found 0"),
            (&many, "expected at most 100 units"),
        ] {
            let why = of(text).expect_err(text);
            assert!(why.contains(wrong), "{text}: {why}");
        }
    }
}
