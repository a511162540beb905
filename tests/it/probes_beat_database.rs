//! The probe `beat` against a real beat of django-celery-beat, whose schedule is in a real PostgreSQL or MariaDB.

use proctor::model::{ProbeResult, Reason, Sight};

use super::docs::block;
use super::support::database::secret;
use super::support::process::eventually;
use super::support::site::Celery;
use super::support::tunnel::{Mariadb, Postgres};
use super::support::watched::{Watched, failed, value, well};

fn watched(port: u16, more: &str) -> Watched {
    Watched::new(&format!(
        "  db:\n    postgres: {{address: '127.0.0.1:{port}', database: postgres}}\n  beat:\n    timeout: 5s\n    beat: {{database: db, {more}}}"
    ))
}

#[tokio::test]
async fn a_beat_that_keeps_its_schedule_in_the_database_is_seen_to_move_to_hang_and_to_leave_an_entry_out() {
    let Some(postgres) = Postgres::start(false).await else { return };
    postgres.ask("CREATE ROLE proctor LOGIN");
    // Before Django has made its tables.
    failed(&watched(postgres.port, "").run("beat").await, Reason::Missing, "django_celery_beat_periodictask");
    let Some(beat) = Celery::scheduled(&format!("postgresql:{}", postgres.port)) else { return };
    beat.said("Sending due task beat test").await;
    let watched_for = |more: &str| watched(postgres.port, more);
    let unseen = watched_for("").run("beat").await;
    let Sight::Blind { missing, remedy } = &unseen.sight else { panic!("{:?} {:?}", unseen.sight, unseen.outcome) };
    assert!(missing.contains("the periodic tasks in the database"), "{missing}");
    let grants = remedy.strip_prefix("run ").expect("is a line to run");
    grants.split(';').for_each(|grant| drop(postgres.ask(grant)));
    assert_eq!(watched_for("").run("beat").await.sight, Sight::Full);
    // What the page says does the same.
    postgres.ask("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM proctor");
    assert!(matches!(watched_for("").run("beat").await.sight, Sight::Blind { .. }));
    postgres.ask(&block("probes/beat.md", "sql", 0, &[]));

    let usual = watched_for("");
    let sent =
        |result: &ProbeResult| result.is_success() && value(result, "celery_beat_entry_last_run_timestamp_seconds", "beat test").is_some();
    let result = usual.until("beat", "it is written that it was sent", 60, sent).await;
    well(&result, true);
    assert_eq!(value(&result, "celery_beat_schedule_stale", ""), Some(0.0));
    assert_eq!(value(&result, "celery_beat_entry_overdue", "beat test"), Some(0.0));
    failed(&watched_for("task: no.such").run("beat").await, Reason::Missing, "expected an enabled periodic task no.such");
    well(&watched_for("task: coredata.tasks.beat_test, within: 5m").run("beat").await, true);
    // An entry that beat does not send, beside one that it does.
    let never = "INSERT INTO django_celery_beat_periodictask SELECT id + 100, 'left out', 'site.never', args, kwargs, queue, exchange, routing_key, \
                 expires, enabled, now() - interval '1 day', total_run_count, date_changed, description, crontab_id, interval_id, solar_id, one_off, \
                 start_time, priority, headers, clocked_id, expire_seconds FROM django_celery_beat_periodictask WHERE name = 'beat test'";
    postgres.ask(never);
    let words = "beat sends, but 1 of 2 entries were not sent in time: left out (site.never)";
    let result = usual.until_failed("beat", "one is left out", 60, Reason::Overdue, words).await;
    assert_eq!(value(&result, "celery_beat_entry_overdue", "left out"), Some(1.0));
    assert_eq!(value(&result, "celery_beat_entry_overdue", "beat test"), Some(0.0));
    postgres.ask("UPDATE django_celery_beat_periodictask SET enabled = false WHERE name = 'left out'");
    well(&usual.until("beat", "none is left out", 60, ProbeResult::is_success).await, true);

    beat.process.signal("STOP");
    let hasty = watched_for("max_age: 2s");
    let result = hasty.until_failed("beat", "beat hangs", 60, Reason::Stalled, "beat hangs, does not run").await;
    assert_eq!(value(&result, "celery_beat_schedule_stale", ""), Some(1.0));
    well(&usual.run("beat").await, true);
    beat.process.signal("CONT");
    hasty.until("beat", "beat goes on", 60, ProbeResult::is_success).await;
    // All of it went over the one connection of the database's probe.
    well(&usual.run("db").await, false);
    drop(hasty);
    eventually("one connection is left", std::time::Duration::from_secs(60), || async {
        (postgres.ask("SELECT count(*) FROM pg_stat_activity WHERE usename = 'proctor'") == "1").then_some(())
    })
    .await;
    // A clock is wrong.
    postgres
        .ask("UPDATE django_celery_beat_periodictask SET enabled = true, last_run_at = now() + interval '8 hours' WHERE name = 'left out'");
    failed(&usual.run("beat").await, Reason::Mismatch, "in the future");
}

#[tokio::test]
async fn the_same_is_seen_in_mariadb() {
    let Some(mariadb) = Mariadb::start(&[]).await else { return };
    mariadb.ask(
        "CREATE DATABASE site; CREATE USER site@'%' IDENTIFIED BY 'site'; GRANT ALL ON site.* TO site@'%'; \
         CREATE USER proctor@'%' IDENTIFIED BY 'hunter2'; CREATE TABLE site.own (id int); GRANT SELECT ON site.own TO proctor@'%'",
    );
    let folder = tempfile::tempdir().expect("a folder can be made");
    let password = secret(folder.path(), "hunter2\n");
    let watched_for = |more: &str| {
        let (port, password) = (mariadb.port, password.display());
        let login = format!("address: '127.0.0.1:{port}', database: site, password_file: {password}");
        Watched::new(&format!("  db: {{mysql: {{{login}}}}}\n  beat: {{timeout: 5s, beat: {{database: db, {more}}}}}"))
    };
    let Some(beat) = Celery::scheduled(&format!("mysql:{}", mariadb.port)) else { return };
    beat.said("Sending due task beat test").await;
    let unseen = watched_for("").run("beat").await;
    let Sight::Blind { remedy, .. } = &unseen.sight else { panic!("{:?} {:?}", unseen.sight, unseen.outcome) };
    let grants = remedy.strip_prefix("run ").expect("is a line to run");
    grants.split(';').for_each(|grant| drop(mariadb.ask(&format!("USE site; {grant}"))));

    let usual = watched_for("task: coredata.tasks.beat_test, within: 5m");
    let sent =
        |result: &ProbeResult| result.is_success() && value(result, "celery_beat_entry_last_run_timestamp_seconds", "beat test").is_some();
    let result = usual.until("beat", "it is written that it was sent", 60, sent).await;
    well(&result, true);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("is later").as_secs_f64();
    let at = value(&result, "celery_beat_entry_last_run_timestamp_seconds", "beat test").expect("was asked for");
    assert!((now - at).abs() < 120.0, "its time is in UTC: {at} at {now}");
    assert_eq!(value(&result, "celery_beat_schedule_stale", ""), Some(0.0));
    failed(&watched_for("task: no.such").run("beat").await, Reason::Missing, "expected an enabled periodic task no.such");
    // An entry that beat does not send, beside one that it does.
    mariadb.ask(
        "USE site; CREATE TEMPORARY TABLE t SELECT * FROM django_celery_beat_periodictask WHERE name = 'beat test'; \
         UPDATE t SET id = id + 100, name = 'left out', task = 'site.never', last_run_at = utc_timestamp() - INTERVAL 1 DAY; \
         INSERT INTO django_celery_beat_periodictask SELECT * FROM t",
    );
    let words = "beat sends, but 1 of 2 entries were not sent in time: left out (site.never)";
    usual.until_failed("beat", "one is left out", 60, Reason::Overdue, words).await;
    mariadb.ask("UPDATE site.django_celery_beat_periodictask SET enabled = false WHERE name = 'left out'");
    well(&usual.until("beat", "none is left out", 60, ProbeResult::is_success).await, true);

    beat.process.signal("STOP");
    let hasty = watched_for("max_age: 2s");
    let result = hasty.until_failed("beat", "beat hangs", 60, Reason::Stalled, "beat hangs, does not run").await;
    assert_eq!(value(&result, "celery_beat_schedule_stale", ""), Some(1.0));
    beat.process.signal("CONT");
    hasty.until("beat", "beat goes on", 60, ProbeResult::is_success).await;
}
