//! Whether a unit does what it should, in words. Pure.

use std::time::Duration;

use crate::client::systemd::{Timer, UnitState};
use crate::model::duration::print_measured;
use crate::model::{Failure, Reason, Timestamp};

/// How late a timer may be: systemd itself fires up to a minute late (`AccuracySec=`).
const LATE: Duration = Duration::from_secs(5 * 60);
/// What a timer starts does not run longer than this.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Says how a service ended.
pub(super) fn ending(state: &UnitState) -> String {
    let status = state.exit_status;
    match state.result.as_str() {
        "" | "success" => format!("it ended by itself with exit status {status}"),
        "exit-code" => format!("it ended with exit status {status}"),
        "signal" => format!("it was ended by signal {status}"),
        "core-dump" => format!("it crashed with signal {status}"),
        "oom-kill" => "it was killed for lack of memory".to_owned(),
        "timeout" => "it took too long to start or to stop".to_owned(),
        "watchdog" => "it gave no sign of life to its watchdog".to_owned(),
        "protocol" => "it did not start as its Type= says".to_owned(),
        "start-limit-hit" => "it was started too often".to_owned(),
        other => format!("its result is {other}"),
    }
}

/// Says whether systemd has given up starting it again.
pub(super) fn hit_start_limit(state: &UnitState, asked: Option<bool>) -> bool {
    // The result stays that of the last end: what would be restarted and was not has hit the limit.
    let gave_up = matches!(state.restart.as_str(), "always" | "on-failure") && state.restarts > 0 && asked != Some(true);
    state.active == "failed" && (state.result == "start-limit-hit" || gave_up)
}

/// Judges a unit that should be up.
pub(super) fn unit(name: &str, state: &UnitState, asked: Option<bool>) -> Result<(), Failure> {
    let wrong = |reason, what: String| Err(Failure::new(reason, format!("{name}: {what}")));
    match state.load.as_str() {
        "loaded" => {}
        "not-found" => {
            return wrong(Reason::Missing, "there is no such unit: is its name right, or its file gone? (`systemctl list-unit-files`)".into());
        }
        "masked" => {
            return wrong(Reason::Unavailable, format!("it is masked: somebody has forbidden to start it (`systemctl unmask {name}`)"));
        }
        load => return wrong(Reason::Mismatch, format!("systemd cannot load it ({load}): see `systemctl status {name}`")),
    }
    let is = format!("expected it to be active, found {} ({})", state.active, state.sub);
    let says = match state.status_text.as_str() {
        "" => String::new(),
        text => format!("; it said: {text}"),
    };
    let oneshot = state.kind == "oneshot";
    match (state.active.as_str(), state.sub.as_str()) {
        // A unit of a program that stays, and nothing of it runs: `RemainAfterExit=` hides that.
        ("active", "exited") if matches!(state.kind.as_str(), "forking" | "notify" | "notify-reload" | "dbus" | "exec") => wrong(
            Reason::Unavailable,
            format!("it counts as active, but no process of it runs (RemainAfterExit=yes); see `journalctl -u {name}`"),
        ),
        ("active" | "reloading" | "refreshing", _) => Ok(()),
        ("activating", "auto-restart" | "auto-restart-queued") => {
            let times = state.restarts.saturating_add(1);
            wrong(Reason::Unavailable, format!("{is}: {}, systemd starts it again (for the {times}. time){says}", ending(state)))
        }
        ("activating", _) if oneshot => Ok(()),
        ("activating", _) => wrong(Reason::Starting, format!("{is}{says}")),
        ("inactive", _) if oneshot && matches!(state.result.as_str(), "success" | "") => Ok(()),
        _ => {
            let who = match asked {
                Some(true) => "; somebody had ordered a stop or restart",
                Some(false) => "; nobody had ordered it",
                None => "",
            };
            let limit = match hit_start_limit(state, asked) {
                true => format!("; systemd has started it again {} times and gave up (`systemctl reset-failed {name}`)", state.restarts),
                false => String::new(),
            };
            let how = match (state.active.as_str(), asked) {
                ("deactivating", _) | ("inactive", Some(true) | None) => String::new(),
                _ => format!(": {}", ending(state)),
            };
            wrong(Reason::Unavailable, format!("{is}{how}{who}{limit}{says}; see `journalctl -u {name}`"))
        }
    }
}

/// What is wrong with a timer, besides its unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Late {
    /// What it starts has failed.
    pub(super) failed: bool,
    /// It should have fired, or what it started does not end.
    pub(super) overdue: bool,
}

/// Judges a timer that is up, and the unit that it starts.
pub(super) fn timer(name: &str, state: &UnitState, timer: &Timer, behind: &UnitState, now: Timestamp) -> (Late, Result<(), Failure>) {
    let fired = match timer.last {
        Some(at) => format!("it last fired {} ago", print_measured(now.since(at))),
        None => "it has never fired".to_owned(),
    };
    let unit = &timer.unit;
    let wrong = |late, reason, what: String| (late, Err(Failure::new(reason, format!("{name}: {fired}, {what}"))));
    let (failed, overdue) = (Late { failed: true, overdue: false }, Late { failed: false, overdue: true });
    if behind.load != "loaded" {
        return wrong(failed, Reason::Missing, format!("but {unit}, which it starts, is {}", behind.load));
    }
    if behind.active == "failed" {
        return wrong(failed, Reason::Unavailable, format!("and {unit} failed: {}; see `journalctl -u {unit}`", ending(behind)));
    }
    if behind.active == "activating"
        && let Some(since) = behind.started.map(|at| now.since(at)).filter(|since| *since > LONGEST)
    {
        return wrong(overdue, Reason::Stalled, format!("and {unit} has been running for {}: does it hang?", print_measured(since)));
    }
    match timer.next {
        _ if state.sub == "elapsed" => {
            wrong(overdue, Reason::Overdue, format!("and it will not fire again (see `systemctl list-timers --all {name}`)"))
        }
        Some(next) if state.sub == "waiting" && now.since(next) > LATE => {
            wrong(overdue, Reason::Overdue, format!("and should have fired {} ago", print_measured(now.since(next))))
        }
        _ => (Late::default(), Ok(())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(kind: &str, active: &str, sub: &str, result: &str) -> UnitState {
        let text = str::to_owned;
        UnitState { load: "loaded".into(), kind: text(kind), active: text(active), sub: text(sub), result: text(result), ..UnitState::default() }
    }

    #[test]
    fn each_state_of_a_unit_is_told_in_words() {
        for (state, asked, reason, words) in [
            (state("simple", "active", "running", "success"), None, None, ""),
            (state("oneshot", "active", "exited", "success"), None, None, ""),
            (state("oneshot", "activating", "start", "success"), None, None, ""),
            (state("oneshot", "inactive", "dead", "success"), Some(false), None, ""),
            (state("forking", "active", "exited", "success"), None, Some(Reason::Unavailable), "no process of it runs"),
            (state("simple", "inactive", "dead", "success"), Some(true), Some(Reason::Unavailable), "(dead); somebody had ordered a stop"),
            (state("simple", "inactive", "dead", "success"), Some(false), Some(Reason::Unavailable), "ended by itself with exit status 0; nobody"),
            (state("notify", "activating", "start", "success"), None, Some(Reason::Starting), "found activating (start)"),
            (state("simple", "deactivating", "stop-sigterm", "success"), Some(true), Some(Reason::Unavailable), "found deactivating"),
            (state("simple", "failed", "failed", "oom-kill"), Some(false), Some(Reason::Unavailable), "for lack of memory; nobody had ordered it"),
            (UnitState { load: "bad-setting".into(), ..UnitState::default() }, None, Some(Reason::Mismatch), "cannot load it (bad-setting)"),
            (
                UnitState { restart: "always".into(), restarts: 5, exit_status: 1, ..state("simple", "failed", "failed", "exit-code") },
                Some(false),
                Some(Reason::Unavailable),
                "exit status 1; nobody had ordered it; systemd has started it again 5 times and gave up",
            ),
            (
                UnitState { status_text: "no database".into(), restarts: 1, ..state("simple", "activating", "auto-restart", "signal") },
                Some(false),
                Some(Reason::Unavailable),
                "starts it again (for the 2. time); it said: no database",
            ),
        ] {
            let found = unit("x.service", &state, asked);
            assert_eq!(found.as_ref().err().map(|failure| failure.reason), reason, "{state:?}");
            assert!(found.err().is_none_or(|failure| failure.detail.contains(words)), "{words}: {:?}", unit("x.service", &state, asked));
        }
    }

    #[test]
    fn a_timer_is_judged_by_what_it_starts_and_by_when_it_should_have_fired() {
        let now = Timestamp::from_secs(1_000_000);
        let at = |ago: i64| Some(Timestamp::from_secs(1_000_000 - ago));
        let one = |last, next| Timer { unit: "x.service".into(), last, next };
        let waiting = state("", "active", "waiting", "success");
        let well = state("oneshot", "inactive", "dead", "success");
        let hung = UnitState { started: at(90_000), ..state("oneshot", "activating", "start", "success") };
        for (timed, waits, behind, reason, words) in [
            (one(at(3600), at(-3600)), &waiting, &well, None, ""),
            (one(None, at(-3600)), &waiting, &well, None, ""),
            (one(at(3600), at(200)), &waiting, &well, None, ""),
            (one(at(90_000), at(400)), &waiting, &well, Some(Reason::Overdue), "should have fired 6m"),
            (one(at(90_000), None), &state("", "active", "elapsed", ""), &well, Some(Reason::Overdue), "will not fire again"),
            (one(at(90_000), None), &state("", "active", "running", ""), &hung, Some(Reason::Stalled), "does it hang?"),
            (one(at(60), at(-60)), &waiting, &state("oneshot", "failed", "failed", "exit-code"), Some(Reason::Unavailable), "x.service failed"),
            (one(at(60), at(-60)), &waiting, &UnitState { load: "not-found".into(), ..UnitState::default() }, Some(Reason::Missing), "not-found"),
        ] {
            let (late, found) = timer("x.timer", waits, &timed, behind, now);
            assert_eq!(found.as_ref().err().map(|failure| failure.reason), reason, "{timed:?} {behind:?}");
            assert_eq!(found.is_ok(), late == Late::default());
            assert!(found.as_ref().err().is_none_or(|failure| failure.detail.contains(words)), "{words}: {found:?}");
        }
    }
}
