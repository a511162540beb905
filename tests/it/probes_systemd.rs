//! The probe `systemd`, against a real systemd as PID 1 in a container.

use std::path::Path;
use std::time::Duration;

use proctor::changes::Kind;
use proctor::model::{ProbeResult, Reason, Sight, Timestamp};
use tokio::net::UnixListener;
use tokio::time::Instant;

use crate::support::hostile::{Manner, hostile};
use crate::support::process::eventually;
use crate::support::proctor::Proctor;
use crate::support::systemd::{Cuttable, Unit, bus, inside};
use crate::support::watched::{Watched, failed, fails, value, well};

const SLEEPS: &str = "ExecStart=/bin/sleep infinity";

/// One probe by the name `units`, on this bus.
fn watched(bus: &Path, config: &str) -> Watched {
    Watched::new(&format!("  units: {{interval: 1m, timeout: 20s, systemd: {{bus: \"unix:path={}\", {config}}}}}", bus.display()))
}

/// A watched unit that should be up.
fn expecting(bus: &Path, unit: &Unit) -> Watched {
    watched(bus, &format!("units: [{}], failed: false", unit.0))
}

/// Waits until its first run is well and systemd is listened to.
async fn up(watched: &Watched) {
    watched.until("units", "it is up", 60, ProbeResult::is_success).await;
    listened_to(watched).await;
}

/// Waits until systemd is listened to: whoever begins to listen says so.
async fn listened_to(watched: &Watched) {
    watched.told("units", "what systemd says").await;
}

/// Waits until the last change of the unit is of this kind, and returns what was said of it.
async fn change(watched: &Watched, unit: &Unit, kind: Kind) -> String {
    let last = || watched.changes.between(Timestamp(0), Timestamp(i64::MAX)).into_iter().rfind(|change| change.subject == unit.0);
    eventually(&format!("{} is {}: {:?}", unit.0, kind.as_str(), last()), Duration::from_secs(20), async || {
        last().filter(|change| change.kind == kind).map(|change| change.detail)
    })
    .await
}

#[tokio::test]
async fn a_death_that_nobody_ordered_is_told_from_a_stop_and_from_a_restart() {
    let Some(bus) = bus() else { return };
    let unit = Unit::new("plain.service", &["[Service]", SLEEPS]);
    unit.systemctl("start");
    let watched = expecting(&bus, &unit);
    up(&watched).await;
    let result = watched.run("units").await;
    assert_eq!((value(&result, "systemd_unit_up", ""), value(&result, "systemd_unit_state", "active")), (Some(1.0), Some(1.0)));
    assert_eq!(
        (value(&result, "systemd_unit_stop_requested", ""), value(&result, "systemd_unit_need_daemon_reload", "")),
        (None, Some(0.0))
    );
    assert!(value(&result, "systemd_unit_start_time_seconds", "").is_some_and(|at| at > 1.7e9), "{:?}", result.samples);

    unit.kill();
    let words = "expected it to be active, found failed (failed): it was ended by signal 9; nobody had ordered it";
    let like = |result: &ProbeResult| value(result, "systemd_unit_stop_requested", "") == Some(0.0);
    let result = watched.until("units", "its death is seen", 20, like).await;
    failed(&result, Reason::Unavailable, words);
    assert_eq!((value(&result, "systemd_unit_up", ""), value(&result, "systemd_unit_state", "failed")), (Some(0.0), Some(1.0)));
    assert_eq!(
        (value(&result, "systemd_service_exit_status", ""), value(&result, "systemd_service_result_info", "signal")),
        (Some(9.0), Some(1.0))
    );
    assert_eq!(change(&watched, &unit, Kind::Died).await, "result signal, exit status 9; nobody had ordered it");

    unit.systemctl("start");
    change(&watched, &unit, Kind::Started).await;
    well(&watched.run("units").await, true);
    unit.systemctl("restart");
    change(&watched, &unit, Kind::Restarted).await;
    assert_eq!(value(&watched.run("units").await, "systemd_unit_stop_requested", ""), None, "it is up");
    unit.systemctl("stop");
    change(&watched, &unit, Kind::Stopped).await;
    let result = watched.run("units").await;
    failed(&result, Reason::Unavailable, "found inactive (dead); somebody had ordered a stop or restart");
    assert_eq!(value(&result, "systemd_unit_stop_requested", ""), Some(1.0));
}

#[tokio::test]
async fn what_systemd_starts_again_by_itself_is_counted_and_is_no_order() {
    let Some(bus) = bus() else { return };
    // Long enough to be looked at in between, also on a busy machine.
    let unit = Unit::new("again.service", &["[Service]", SLEEPS, "Restart=always", "RestartSec=10s"]);
    unit.systemctl("start");
    let watched = expecting(&bus, &unit);
    up(&watched).await;
    unit.kill();
    let words = "found activating (auto-restart): it was ended by signal 9, systemd starts it again (for the 1. time)";
    watched.until_failed("units", "its death is seen", 60, Reason::Unavailable, words).await;
    let result = watched.until("units", "it is up again", 60, ProbeResult::is_success).await;
    assert_eq!(value(&result, "systemd_service_restart_total", ""), Some(1.0));
    let died = change(&watched, &unit, Kind::Died).await;
    assert!(died.starts_with("result signal, exit status 9; nobody had ordered it"), "{died}");
}

#[tokio::test]
async fn a_crash_loop_that_systemd_has_given_up_says_so() {
    let Some(bus) = bus() else { return };
    let crash = "ExecStart=/bin/sh -c 'sleep 0.2; exit 7'";
    let limit = ["[Unit]", "StartLimitBurst=3", "StartLimitIntervalSec=1h", "[Service]", "Restart=on-failure", "RestartSec=100ms"];
    let unit = Unit::new("loop.service", &[&limit[..], &[crash]].concat());
    let watched = expecting(&bus, &unit);
    let result = watched.run("units").await;
    failed(&result, Reason::Unavailable, "found inactive (dead)");
    assert_eq!(value(&result, "systemd_unit_stop_requested", ""), None, "nothing was seen of its end");
    listened_to(&watched).await;
    unit.systemctl("start");
    let hit = |result: &ProbeResult| value(result, "systemd_unit_start_limit_hit", "") == Some(1.0);
    let result = watched.until("units", "systemd gives up", 60, hit).await;
    failed(&result, Reason::Unavailable, "it ended with exit status 7");
    failed(&result, Reason::Unavailable, "systemd has started it again 3 times and gave up (`systemctl reset-failed");
    let result =
        watched.until("units", "nobody had ordered it", 20, |result| value(result, "systemd_unit_stop_requested", "") == Some(0.0)).await;
    failed(&result, Reason::Unavailable, "nobody had ordered it");
}

#[tokio::test]
async fn a_slow_crash_loop_and_a_failed_unit_are_named_though_nobody_expects_them() {
    let Some(bus) = bus() else { return };
    let watched = watched(&bus, "failed: true");
    let lines =
        ["[Unit]", "StartLimitIntervalSec=0", "[Service]", "ExecStart=/bin/sh -c 'sleep 1; exit 1'", "Restart=always", "RestartSec=1s"];
    well(&watched.run("units").await, true);
    listened_to(&watched).await;
    let (slow, once) =
        (Unit::new("slow.service", &lines), Unit::new("once.service", &["[Service]", "Type=oneshot", "ExecStart=/bin/false"]));
    slow.systemctl("start");
    inside(&["systemctl", "start", &once.0]);
    let loops = |result: &ProbeResult| value(result, "systemd_service_restart_total", &slow.0).is_some_and(|count| count >= 3.0);
    let result = watched.until("units", "the loop is seen", 120, loops).await;
    well(&result, true);
    assert!(value(&result, "systemd_units_failed", "").is_some_and(|count| count >= 1.0));
    assert_eq!(value(&result, "systemd_unit_state", &once.0), Some(1.0));
    let evidence = result.evidence.join("\n");
    assert!(evidence.contains(&once.0) && evidence.contains(&format!("{} was restarted", slow.0)), "{evidence}");
}

#[tokio::test]
async fn a_unit_that_is_not_there_masked_or_unreadable_fails_by_name() {
    let Some(bus) = bus() else { return };
    let broken = Unit::new("broken.service", &["[Service]", "Type=simple"]);
    for (unit, reason, words) in [
        ("proctor-nowhere.service", Reason::Missing, "proctor-nowhere.service: there is no such unit"),
        ("proctor-masked.service", Reason::Unavailable, "it is masked: somebody has forbidden to start it"),
        (broken.0.as_str(), Reason::Mismatch, "systemd cannot load it (bad-setting)"),
    ] {
        let result = watched(&bus, &format!("units: [{unit}], failed: false")).run("units").await;
        failed(&result, reason, words);
        assert_eq!(
            (value(&result, "systemd_unit_up", ""), value(&result, "systemd_unit_state", "active")),
            (Some(0.0), Some(0.0)),
            "{unit}"
        );
    }
}

#[tokio::test]
async fn a_changed_unit_file_that_systemd_has_not_read_is_seen() {
    let Some(bus) = bus() else { return };
    let unit = Unit::new("edited.service", &["[Service]", SLEEPS]);
    unit.systemctl("start");
    let watched = expecting(&bus, &unit);
    assert_eq!(value(&watched.run("units").await, "systemd_unit_need_daemon_reload", ""), Some(0.0));
    unit.write(&["[Service]", SLEEPS, "Nice=5"]);
    let stale = |result: &ProbeResult| value(result, "systemd_unit_need_daemon_reload", "") == Some(1.0);
    well(&watched.until("units", "the change is seen", 20, stale).await, true);
}

#[tokio::test]
async fn one_of_five_forked_processes_that_is_gone_is_named_while_the_unit_is_active() {
    let Some(bus) = bus() else { return };
    // As `celery multi` does: all nodes in the background, and the starter ends.
    let nodes = "for n in batch email fast photo sims; do setsid bash -c \"exec -a celery@host-$$n sleep infinity\" & done";
    let unit = Unit::new("nodes.service", &["[Service]", "Type=forking", &format!("ExecStart=/bin/bash -c '{nodes}'")]);
    unit.systemctl("start");
    let expected = r#""^celery@.*-batch", "^celery@.*-email", "^celery@.*-fast", "^celery@.*-photo", "^celery@.*-sims""#;
    let watched = watched(
        &bus,
        &format!("units: [{0}], failed: false, processes: {{{0}: ['{1}']}}", unit.0, expected.replace("\", \"", "', '").trim_matches('"')),
    );
    well(&watched.until("units", "all five run", 60, ProbeResult::is_success).await, true);
    let of = "case \"$(tr '\\0' ' ' <$p/cmdline)\" in celery@host-email*) kill -9 ${p#/proc/};; esac";
    let (well, said) = inside(&["sh", "-c", &format!("for p in /proc/[0-9]*; do {of}; done")]);
    assert!(well, "{said}");
    let result = watched.until("units", "its end is seen", 20, |result| !result.is_success()).await;
    failed(&result, Reason::Missing, "it is active, but 1 of 5 expected processes are gone: ^celery@.*-email (4 processes run");
    assert_eq!(value(&result, "systemd_unit_state", "active"), Some(1.0));
    assert_eq!(value(&result, "systemd_unit_process_missing", "^celery@.*-email"), Some(1.0));
    assert_eq!(value(&result, "systemd_unit_process_missing", "^celery@.*-fast"), Some(0.0));
    assert!(result.evidence.iter().any(|line| line.contains("celery@host-sims")), "{:?}", result.evidence);
}

#[tokio::test]
async fn a_timer_is_judged_by_what_it_starts_and_by_whether_it_fires() {
    let Some(bus) = bus() else { return };
    let timer = |name: &str, when: &str, program: &str| {
        let service = Unit::new(&format!("{name}.service"), &["[Service]", "Type=oneshot", &format!("ExecStart={program}")]);
        let timer = Unit::new(&format!("{name}.timer"), &["[Timer]", when, "AccuracySec=1ms", &format!("Unit={}", service.0)]);
        timer.systemctl("start");
        (timer, service)
    };
    let of = |unit: &Unit| watched(&bus, &format!("timers: [{}], failed: false", unit.0));

    // None that may fire while it is looked at.
    let (yearly, _service) = timer("yearly", "OnCalendar=yearly", "/bin/true");
    let result = of(&yearly).run("units").await;
    well(&result, true);
    let next = value(&result, "systemd_timer_next_trigger_seconds", "").expect("is known");
    let run = value(&result, "probe_last_run_timestamp_seconds", "").expect("each has it");
    assert!((0.0..=366.0 * 86_400.0).contains(&(next - run)), "within a year: {}", next - run);
    assert_eq!(
        (value(&result, "systemd_timer_last_trigger_seconds", ""), value(&result, "systemd_timer_service_failed", "")),
        (None, Some(0.0))
    );

    let (backup, service) = timer("backup", "OnActiveSec=100ms", "/bin/sh -c 'exit 5'");
    let watched = of(&backup);
    let result = watched.until_failed("units", "its service has failed", 60, Reason::Unavailable, "it last fired ").await;
    failed(&result, Reason::Unavailable, &format!("and {} failed: it ended with exit status 5", service.0));
    assert_eq!(value(&result, "systemd_timer_service_failed", ""), Some(1.0));

    // It has fired once, and nothing makes it fire again.
    let (never, _service) = timer("never", "OnActiveSec=100ms", "/bin/true");
    let result = of(&never).until_failed("units", "it has elapsed", 60, Reason::Overdue, "and it will not fire again").await;
    assert_eq!(value(&result, "systemd_timer_overdue", ""), Some(1.0));
    yearly.systemctl("stop");
    failed(&of(&yearly).run("units").await, Reason::Unavailable, "found inactive (dead)");
}

#[tokio::test]
async fn the_bus_goes_and_comes_back_and_its_signals_too() {
    let Some(real) = bus() else { return };
    let front = Cuttable::new(real);
    let unit = Unit::new("bus.service", &["[Unit]", "StartLimitIntervalSec=0", "[Service]", SLEEPS]);
    unit.systemctl("start");
    let watched = expecting(&front.path(), &unit);
    up(&watched).await;
    front.cut();
    let restarts = || watched.changes.between(Timestamp(0), Timestamp(i64::MAX)).iter().filter(|one| one.kind == Kind::Restarted).count();
    eventually("its restart is seen", Duration::from_secs(60), async || {
        unit.systemctl("restart");
        tokio::time::sleep(Duration::from_secs(1)).await;
        (restarts() > 0).then_some(())
    })
    .await;
    unit.kill();
    assert_eq!(change(&watched, &unit, Kind::Died).await, "result signal, exit status 9; nobody had ordered it");
}

#[tokio::test]
async fn a_bus_that_is_absent_silent_or_speaks_something_else_is_told_and_never_hangs_the_probe() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bus");
    let config = |path: &Path, timeout: &str| {
        Watched::new(&format!("  units: {{timeout: {timeout}, systemd: {{bus: \"unix:path={}\", units: [a.service]}}}}", path.display()))
    };
    failed(&config(&path, "5s").run("units").await, Reason::Refused, "cannot connect to the system bus at unix:path=");
    let listener = UnixListener::bind(&path).unwrap();
    failed(&config(&path, "1s").run("units").await, Reason::AnswerTimeout, "a.service: waiting for systemd's answer over D-Bus");
    drop(listener);
    for (manner, reason) in [
        (Manner::Says(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()), Reason::Protocol),
        (Manner::Closes, Reason::Eof),
        (Manner::Says(b"REJECTED EXTERNAL\r\n".to_vec()), Reason::Forbidden),
    ] {
        let port = hostile(manner.clone()).await;
        let text = format!("  units: {{timeout: 5s, systemd: {{bus: \"tcp:host=127.0.0.1,port={port}\", units: [a.service]}}}}");
        let (watched, begin) = (Watched::new(&text), Instant::now());
        let result = watched.run("units").await;
        assert!(begin.elapsed() < Duration::from_secs(6), "{manner:?}");
        match reason {
            Reason::Forbidden => {
                assert!(matches!(result.sight, Sight::Blind { .. }) && result.is_success(), "{manner:?}: {:?}", result.outcome)
            }
            // Who closes with our greeting unread resets.
            Reason::Eof if fails(&result, Reason::Reset, "") => {}
            reason => failed(&result, reason, ""),
        }
    }
}

#[tokio::test]
async fn a_death_is_in_the_metrics_long_before_the_next_slot() {
    let Some(bus) = bus() else { return };
    let unit = Unit::new("quick.service", &["[Service]", SLEEPS]);
    unit.systemctl("start");
    let probes = format!(
        "probes:\n  units: {{interval: 5m, timeout: 20s, systemd: {{bus: \"unix:path={}\", units: [{}], failed: false}}}}",
        bus.display(),
        unit.0
    );
    let proctor = Proctor::configured(1, &probes).rules(&[("Down", "probe_success == 0")]).started();
    let state = |state: &str, value: u8| {
        let labels = format!("probe=\"units\",target=\"{0}\",name=\"{0}\",type=\"service\",state=\"{state}\"", unit.0);
        format!("systemd_unit_state{{{labels}}} {value}")
    };
    proctor.shows(&state("active", 1), Duration::from_secs(30)).await;
    // A start is seen before the next slot only where systemd is listened to.
    let started = async || {
        let page = proctor.metrics().await?;
        Some(page.lines().find(|line| line.starts_with("systemd_unit_start_time_seconds"))?.to_owned())
    };
    let before = started().await.expect("it is shown");
    unit.systemctl("restart");
    eventually("the restart is shown", Duration::from_secs(30), async || (started().await? != before).then_some(())).await;
    let begin = Instant::now();
    unit.kill();
    let requested = format!("systemd_unit_stop_requested{{probe=\"units\",target=\"{0}\",name=\"{0}\"}} 0", unit.0);
    proctor.shows(&requested, Duration::from_secs(30)).await;
    proctor.shows(&state("failed", 1), Duration::from_secs(10)).await;
    println!("seen {:?} after the order to kill it", begin.elapsed());
}
