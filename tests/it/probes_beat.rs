//! The probe beat against a real celery beat, a worker and a RabbitMQ.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use proctor::model::{ProbeResult, Reason, Sight};

use super::support::process::{eventually, program};
use super::support::rabbitmq::{PERMISSIONS, Rabbitmq};
use super::support::site::Celery;
use super::support::watched::{Watched, failed, value, well};

/// A probe of one schedule, which beat writes every second here.
fn files(schedule: &Path, max_age: &str) -> String {
    format!("  beat: {{beat: {{files: [{}], max_age: {max_age}}}}}\n", schedule.display())
}

async fn is_there(path: &Path) {
    eventually(&path.display().to_string(), Duration::from_secs(60), || async { path.exists().then_some(()) }).await;
}

#[tokio::test]
async fn a_beat_that_is_frozen_is_seen_by_the_age_of_its_schedule_in_every_form() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    for (storage, written) in [("gnu", ""), ("dumb", ".dat"), ("sqlite", "-wal")] {
        let schedule = folder.path().join(storage);
        let watched = Watched::new(&files(&schedule, "4s"));
        failed(&watched.run("beat").await, Reason::Missing, "no such schedule in any form: beat has never run with it");
        let Some(beat) = Celery::beat("memory://", &schedule, storage) else { return };
        let file = folder.path().join(format!("{storage}{written}"));
        is_there(&file).await;
        let written = || std::fs::metadata(&file).and_then(|of| of.modified()).expect("it stays there");
        let first = written();
        eventually("it is written again and again", Duration::from_secs(60), || async {
            (written() > first + Duration::from_secs(6)).then_some(())
        })
        .await;
        let result = watched.until("beat", "it is fresh", 60, ProbeResult::is_success).await;
        well(&result, true);
        assert!(value(&result, "celery_beat_schedule_file_age_seconds", "").is_some_and(|age| age < 4.0), "{storage}");
        assert_eq!(value(&result, "celery_beat_schedule_stale", ""), Some(0.0), "{storage}");

        beat.process.signal("STOP");
        let result = watched.until_failed("beat", "it is seen that it is frozen", 60, Reason::Stalled, "beat hangs or does not run").await;
        assert_eq!(value(&result, "celery_beat_schedule_stale", ""), Some(1.0), "{storage}");
        assert!(value(&result, "celery_beat_schedule_file_age_seconds", "").is_some_and(|age| age > 4.0), "{storage}");
        beat.process.signal("CONT");
        watched.until("beat", "it is seen that it moves again", 60, ProbeResult::is_success).await;
    }
}

#[tokio::test]
async fn a_schedule_that_is_written_only_at_the_end_of_beat_is_neither_red_nor_green() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let schedule = folder.path().join("celerybeat-schedule");
    // So much time there is to look at what beat writes when it ends.
    let watched = Watched::new(&files(&schedule, "8s"));
    let Some(beat) = Celery::beat("memory://", &schedule, "ndbm") else { return };
    is_there(&folder.path().join("celerybeat-schedule.db")).await;
    let blind = |result: &ProbeResult| matches!(result.sight, Sight::Blind { .. });
    let result = watched.until("beat", "it grows old although beat moves", 60, blind).await;
    well(&result, false);
    let Sight::Blind { missing, remedy } = &result.sight else { unreachable!("it was asked for") };
    assert!(missing.contains("is a Berkeley DB, which is written only when beat ends") && remedy.contains("python3-gdbm"), "{missing}");
    assert_eq!(value(&result, "celery_beat_schedule_stale", ""), None);
    beat.stop();
    well(&watched.run("beat").await, true);
}

#[test]
fn a_schedule_that_may_not_be_seen_is_neither_red_nor_green() {
    use std::os::unix::fs::PermissionsExt;
    let Some(setpriv) = program("setpriv") else { return };
    let folder = tempfile::tempdir().expect("a folder can be made");
    let shut = folder.path().join("status");
    std::fs::create_dir(&shut).expect("is made");
    std::fs::write(shut.join("celerybeat-schedule"), "").expect("is written");
    std::fs::set_permissions(&shut, std::fs::Permissions::from_mode(0o700)).expect("is set");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("is set");
    let file = folder.path().join("proctor.yml");
    std::fs::write(&file, format!("probes:\n{}", files(&shut.join("celerybeat-schedule"), "1h"))).expect("is written");
    let check = |user: &str| {
        let mut command = Command::new(&setpriv);
        command.args(["--reuid", user, "--regid", user, "--clear-groups", env!("CARGO_BIN_EXE_proctor"), "check", "--config"]);
        let output = command.arg(&file).output().expect("it runs");
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let told = check("65534").split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(told.contains("blind beat beat") && told.contains("Permission denied") && told.contains("setfacl -m u:proctor:x"), "{told}");
    let told = check("0");
    assert!(told.contains("The target is well") && !told.contains("blind"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_beat_that_hangs_is_told_from_one_that_sends_what_nobody_runs() {
    // With heartbeats as RabbitMQ has them: with short ones a busy machine loses connections.
    let Some(mut rabbitmq) = Rabbitmq::start_with(false, "heartbeat = 60\n").await else { return };
    // What probes need which ask over that one, and less.
    rabbitmq.user("proctor", "/", PERMISSIONS);
    rabbitmq.user("poor", "/", ["^$", "^$", "^$"]);
    let folder = tempfile::tempdir().expect("a folder can be made");
    let schedule = folder.path().join("celerybeat-schedule");
    let old = folder.path().join("old");
    let hour_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
    std::fs::File::create(&old).and_then(|file| file.set_modified(hour_ago)).expect("is made");
    let login = |user: &str| {
        let password = rabbitmq.password_file(user);
        format!("{{rabbitmq: {{port: {}, username: {user}, password_file: {}}}}}", rabbitmq.port, password.display())
    };
    let task = "task: coredata.tasks.beat_test, via: rabbitmq";
    let (at, elsewhere) = (schedule.display(), old.display());
    let text = format!(
        "  rabbitmq: {}\n  poor: {}\n  both: {{beat: {{files: [{at}], max_age: 4s, {task}, within: 6s}}}}\n\
         \x20 count: {{beat: {{{task}, within: 6s}}}}\n  calm: {{beat: {{files: [{at}], max_age: 40s, {task}, within: 40s}}}}\n\
         \x20 elsewhere: {{beat: {{files: [{elsewhere}], {task}}}}}\n  nowhere: {{beat: {{files: [/nowhere/schedule], {task}}}}}\n\
         \x20 shut: {{beat: {{files: [{at}], max_age: 40s, task: a, via: poor}}}}\n",
        login("proctor"),
        login("poor")
    );
    let watched = Watched::new(&text);
    assert_eq!(watched.target("both").target.depends_on.iter().map(|on| &**on).collect::<Vec<_>>(), ["rabbitmq"]);

    // No worker has ever connected: the time runs all the same.
    let result = watched.run("count").await;
    well(&result, false);
    assert_eq!(result.evidence, ["no celery node answers"]);
    failed(
        &watched.until("count", "nobody runs it", 60, |result| !result.is_success()).await,
        Reason::Overdue,
        "coredata.tasks.beat_test was not run since Proctor looks, expected within 6s",
    );

    let url = format!("amqp://guest:guest@127.0.0.1:{}//", rabbitmq.port);
    let Some(worker) = Celery::worker(&url) else { return };
    let Some(beat) = Celery::beat(&url, &schedule, "gnu") else { return };
    worker.said("ready.").await;
    is_there(&schedule).await;
    let full = |result: &ProbeResult| result.is_success() && result.sight == Sight::Full;
    for probe in ["both", "count", "calm"] {
        let seen = |result: &ProbeResult| full(result) && result.evidence[0].starts_with("celery nodes that answer: fast@");
        let result = watched.until(probe, "its count grows", 90, seen).await;
        assert_eq!(value(&result, "celery_beat_task_overdue", "coredata.tasks.beat_test"), Some(0.0), "{probe}");
        assert!(value(&result, "celery_beat_last_seen_timestamp_seconds", "coredata.tasks.beat_test").is_some(), "{probe}");
    }
    let channels =
        || rabbitmq.ctl(&["list_channels", "user", "-q", "--no-table-headers"]).lines().filter(|user| *user == "proctor").count();
    let before = channels();
    let quick = |result: &ProbeResult| result.is_success() && result.duration < Duration::from_millis(500);
    watched.until("count", "it ends when all have answered", 60, quick).await;
    // So does a first look, as in `proctor check`, which knows nobody yet: it ends when no more answers come.
    eventually("a first look that does not wait for a second", Duration::from_secs(60), || async {
        let first = Watched::new(&text).run("count").await;
        (first.is_success() && first.duration < Duration::from_millis(900)).then_some(())
    })
    .await;
    for _ in 0..10 {
        assert!(watched.run("count").await.is_success());
    }
    // What the first looks opened is closed by the broker a moment after they have ended.
    eventually("a run opens nothing", Duration::from_secs(60), || async {
        for probe in ["both", "count", "calm"] {
            watched.run(probe).await;
        }
        (channels() == before).then_some(())
    })
    .await;

    // What runs although the file is old or missing is sent by a beat with another schedule.
    let result = watched.until("elsewhere", "its count grows", 60, |result| !failed_for(result, Reason::Stalled)).await;
    failed(&result, Reason::Mismatch, "beat keeps its schedule elsewhere, or cannot write it");
    assert_eq!(value(&result, "celery_beat_schedule_stale", ""), Some(0.0));
    let said = |result: &ProbeResult| result.outcome.as_ref().is_err_and(|failure| failure.detail.contains("was last run"));
    failed(&watched.until("nowhere", "its count grows", 60, said).await, Reason::Missing, "beat keeps its schedule elsewhere");
    // Who may not ask the workers sees the file.
    let result = watched.run("shut").await;
    well(&result, false);
    let Sight::Partial { missing, remedy } = &result.sight else { panic!("{:?}", result.sight) };
    assert!(
        missing.contains("whether a is run") && missing.contains("403") && remedy.contains("docs/probes/rabbitmq.md"),
        "{missing} {remedy}"
    );

    // Beat sends, nobody runs: the worker's MainProcess is frozen.
    worker.process.signal("STOP");
    let result = watched.until_failed("both", "nobody runs it", 60, Reason::Overdue, "beat sends (it wrote its schedule ").await;
    let seen = |name: &str| value(&result, name, "");
    assert_eq!((seen("celery_beat_schedule_stale"), seen("celery_beat_task_overdue")), (Some(0.0), Some(1.0)));
    assert_eq!(result.evidence, ["no celery node answers"]);
    watched.until_failed("count", "nobody runs it", 60, Reason::Overdue, "beat does not send, or nobody runs what it sends").await;
    worker.process.signal("CONT");
    for probe in ["both", "count", "calm"] {
        watched.until(probe, "it is run again", 60, ProbeResult::is_success).await;
    }

    // Beat hangs.
    beat.process.signal("STOP");
    let result = watched.until_failed("both", "beat hangs", 60, Reason::Stalled, "beat hangs or does not run").await;
    assert_eq!(value(&result, "celery_beat_schedule_stale", ""), Some(1.0));
    watched.until_failed("count", "nothing is sent", 60, Reason::Overdue, "beat does not send, or nobody runs what it sends").await;
    beat.process.signal("CONT");
    for probe in ["both", "count"] {
        watched.until(probe, "it is sent again", 60, ProbeResult::is_success).await;
    }

    // While the broker takes nothing the workers cannot be asked; the time begins anew when they can.
    rabbitmq.ctl(&["set_vm_memory_high_watermark", "0.00001"]);
    for probe in ["both", "count", "calm"] {
        watched.until_failed(probe, "the workers cannot be asked", 60, Reason::Blocked, "low on memory").await;
    }
    rabbitmq.ctl(&["set_vm_memory_high_watermark", "0.4"]);
    for probe in ["both", "count", "calm"] {
        watched.until(probe, "they are asked, and run what is sent", 60, full).await;
    }

    // A restart of beat, as cron does it every hour, and one of the worker are ordinary.
    watched.until("calm", "all is well", 60, full).await;
    let restarted = async {
        beat.stop();
        let beat = Celery::beat(&url, &schedule, "gnu").expect("it ran before");
        beat.said("beat: Starting...").await;
        worker.stop();
        let worker = Celery::worker(&url).expect("it ran before");
        worker.said("ready.").await;
        (beat, worker)
    };
    let mut restarted = std::pin::pin!(restarted);
    let (_beat, worker) = loop {
        tokio::select! {
            done = &mut restarted => break done,
            result = watched.run("calm") => well(&result, true),
        }
    };
    let before = value(&watched.run("calm").await, "celery_beat_last_seen_timestamp_seconds", "");
    let later = |result: &ProbeResult| value(result, "celery_beat_last_seen_timestamp_seconds", "") > before;
    well(&watched.until("calm", "the new worker runs what the new beat sends", 60, later).await, true);

    // No worker at all.
    worker.stop();
    watched.until_failed("count", "nobody runs it", 60, Reason::Overdue, "nobody runs what it sends").await;
    // A broker that is gone is said as such while the file is fresh, and time begins anew when it is back.
    rabbitmq.kill();
    watched.until_failed("calm", "the broker is gone", 60, Reason::Refused, "127.0.0.1").await;
    rabbitmq.relaunch();
    let result = watched.until("calm", "it can be asked again", 180, ProbeResult::is_success).await;
    assert_eq!(value(&result, "celery_beat_task_overdue", ""), Some(0.0));
}

fn failed_for(result: &ProbeResult, reason: Reason) -> bool {
    result.outcome.as_ref().is_err_and(|failure| failure.reason == reason)
}
