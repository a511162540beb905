//! The probe `postgres` against a real PostgreSQL, and against servers that do what none should.

use std::path::Path;
use std::time::Duration;

use proctor::model::{ProbeResult, Reason, Sight};

use super::docs::block;
use super::support::database::secret;
use super::support::hostile::{Manner, hostile};
use super::support::nginx::Authority;
use super::support::process::{eventually, free_port};
use super::support::tunnel::Postgres;
use super::support::watched::{Watched, failed, value, well};

/// A user and a table of the site.
const SITE: &str = "
    CREATE ROLE site LOGIN; CREATE TABLE mails (id int PRIMARY KEY, status text); INSERT INTO mails VALUES (1, 'sent'), (2, 'sent'), (3, 'failed');";

const LET_IN: &str = "host all proctor 127.0.0.1/32 scram-sha-256";

/// A PostgreSQL with that, and the user of its page, who needs a password.
async fn postgres() -> Option<(Postgres, tempfile::TempDir)> {
    let postgres = Postgres::start(false).await?;
    let user = block("probes/postgres.md", "sql", 0, &[("'…'", "'hunter2'")]);
    for statement in (SITE.to_owned() + &user).split(';') {
        postgres.ask(statement);
    }
    postgres.let_in(LET_IN);
    let folder = tempfile::tempdir().expect("a folder can be made");
    secret(folder.path(), "hunter2\n");
    Some((postgres, folder))
}

fn watched(port: u16, folder: &Path, more: &str) -> Watched {
    watched_for("10s", port, folder, more)
}

fn watched_for(timeout: &str, port: u16, folder: &Path, more: &str) -> Watched {
    let password = folder.join("password");
    Watched::new(&format!(
        "  db:\n    timeout: {timeout}\n    postgres: {{address: '127.0.0.1:{port}', database: postgres, password_file: {}, {more}}}",
        password.display()
    ))
}

/// How many connections of ours there are.
const OURS: &str = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'proctor'";

/// Runs the probe once so many connections are left: those of a client that has ended go a moment later.
async fn alone(watched: &Watched, left: f64) -> ProbeResult {
    watched.until("db", "nobody else is connected any more", 30, |result| value(result, "pg_connections_left", "") == Some(left)).await
}

/// Waits until it answers this.
async fn answers(postgres: &Postgres, sql: &str, wanted: &str) {
    eventually(&format!("{sql}: {wanted}"), Duration::from_secs(30), || async { (postgres.ask(sql) == wanted).then_some(()) }).await;
}

fn evidence(result: &ProbeResult) -> String {
    result.evidence.join("\n")
}

#[tokio::test]
async fn what_is_asked_is_told_under_the_exporters_names_over_one_connection() {
    let Some((postgres, folder)) = postgres().await else { return };
    let queries = "queries: {mails: {sql: 'SELECT status, count(*) AS n, max(id) AS newest FROM mails GROUP BY 1', labels: [status]}}";
    let watched = watched(postgres.port, folder.path(), queries);
    let result = alone(&watched, 96.0).await;
    well(&result, true);
    for (name, label, wanted) in [
        ("pg_up", "", 1.0),
        ("pg_static", "15", 1.0),
        ("pg_settings_max_connections", "", 100.0),
        ("pg_settings_superuser_reserved_connections", "", 3.0),
        ("pg_writable", "", 1.0),
        ("pg_replication_is_replica", "", 0.0),
        ("pg_replication_lag_seconds", "", 0.0),
        ("pg_connections_left", "", 96.0),
        ("pg_role_connections_left", "proctor", 2.0),
        ("pg_idle_in_transaction_max_seconds", "", 0.0),
        ("pg_lock_waits", "", 0.0),
        ("pg_lock_wait_max_seconds", "", 0.0),
        ("pg_stat_activity_count", "active", 1.0),
        ("pg_query_success", "mails", 1.0),
    ] {
        let found = if name == "pg_static" {
            result.samples.iter().find(|sample| sample.family.name == name).map(|sample| sample.value)
        } else {
            value(&result, name, label)
        };
        assert_eq!(found, Some(wanted), "{name} {label}");
    }
    for name in ["pg_login_duration_seconds", "pg_answer_duration_seconds", "pg_postmaster_start_time_seconds"] {
        assert!(value(&result, name, "").is_some_and(|value| value > 0.0), "{name}");
    }
    for name in ["pg_stat_database_xact_commit", "pg_database_size_bytes", "pg_database_wraparound_age_datfrozenxid_seconds"] {
        assert!(value(&result, name, "postgres").is_some_and(|value| value > 0.0), "{name}");
    }
    let numbers: Vec<(String, f64)> = result
        .samples
        .iter()
        .filter(|sample| sample.family.name == "pg_query_value")
        .map(|sample| (sample.labels.iter().map(|(name, value)| format!("{name}={value} ")).collect(), sample.value))
        .collect();
    for wanted in [("query=mails column=n status=sent ", 2.0), ("query=mails column=newest status=failed ", 3.0)] {
        assert!(numbers.contains(&(wanted.0.to_owned(), wanted.1)), "{numbers:?}");
    }
    for _ in 0..3 {
        well(&watched.run("db").await, true);
        assert_eq!(postgres.ask(OURS), "1");
    }
    drop(watched);
    // The goodbye is said: nobody stays.
    answers(&postgres, OURS, "0").await;
}

#[tokio::test]
async fn with_less_than_it_needs_it_sees_what_it_may_and_says_what_would_help() {
    let Some((postgres, folder)) = postgres().await else { return };
    let watched = watched(postgres.port, folder.path(), "");
    postgres.ask("REVOKE pg_monitor FROM proctor");
    // That others are there is seen.
    let result = alone(&watched, 96.0).await;
    well(&result, false);
    let Sight::Partial { missing, remedy } = &result.sight else { panic!("{:?}", result.sight) };
    assert!(missing.contains("who waits for whom") && remedy == "run GRANT pg_monitor TO proctor", "{missing} {remedy}");
    postgres.ask("GRANT pg_monitor TO proctor");
    well(&watched.run("db").await, true);
}

#[tokio::test]
async fn each_way_to_be_turned_away_has_its_reason_and_a_way_back() {
    let Some((postgres, folder)) = postgres().await else { return };
    secret(folder.path(), "wrong");
    let all = watched(postgres.port, folder.path(), "");
    failed(&all.run("db").await, Reason::Auth, "wrong password");
    let tried = || postgres.log().matches("password authentication failed").count();
    let before = tried();
    failed(&all.run("db").await, Reason::Auth, "wrong password");
    assert_eq!(tried(), before, "the same password is not tried again at once");
    secret(folder.path(), "hunter2");
    well(&all.run("db").await, true);

    let other = watched(postgres.port, folder.path(), "username: nobody_knows");
    failed(&other.run("db").await, Reason::Forbidden, "add a line for it there");
    let missing = Watched::new(&format!(
        "  db:\n    postgres: {{address: '127.0.0.1:{}', database: none, password_file: {}}}",
        postgres.port,
        folder.path().join("password").display()
    ));
    failed(&missing.run("db").await, Reason::Missing, "database \"none\" does not exist");
    for (line, reason, words) in [
        ("", Reason::Forbidden, "add a line for it there, or say tls: true"),
        ("host all proctor 127.0.0.1/32 reject", Reason::Forbidden, "pg_hba.conf rejects"),
        ("host all proctor 127.0.0.1/32 password", Reason::Auth, "asks for the password in clear"),
    ] {
        postgres.let_in(line);
        // A standing connection is not turned away: a new one is.
        failed(&watched(postgres.port, folder.path(), "").run("db").await, reason, words);
    }
    well(&all.run("db").await, true);
    postgres.let_in(LET_IN);
    // A login every moment sees it at once.
    postgres.ask("ALTER ROLE proctor PASSWORD 'changed'");
    let anew = watched(postgres.port, folder.path(), "login_every: 0s");
    failed(&anew.run("db").await, Reason::Auth, "wrong password");
    postgres.ask("REVOKE CONNECT ON DATABASE postgres FROM PUBLIC");
    secret(folder.path(), "changed");
    failed(&anew.run("db").await, Reason::Forbidden, "permission denied for database");
}

#[tokio::test]
async fn a_server_without_connections_says_so_to_whoever_is_in_and_to_whoever_is_not() {
    let Some((mut postgres, folder)) = postgres().await else { return };
    postgres.set("max_connections", "6");
    postgres.set("superuser_reserved_connections", "3");
    postgres.restart().await;
    postgres.let_in(&format!("{LET_IN}\nhost all site 127.0.0.1/32 trust"));
    let inside = watched(postgres.port, folder.path(), "");
    well(&alone(&inside, 2.0).await, true);
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(postgres.client_of("site"));
    }
    let result = inside.until_failed("db", "no connection is left", 30, Reason::Saturated, "no connection is left for the site").await;
    assert_eq!((value(&result, "pg_up", ""), value(&result, "pg_connections_left", "")), (Some(1.0), Some(0.0)));
    let outside = watched(postgres.port, folder.path(), "");
    failed(&outside.run("db").await, Reason::Saturated, "no login gets in");
    drop(held);
    inside.until("db", "connections are left again", 30, ProbeResult::is_success).await;
    well(&outside.run("db").await, true);
}

#[tokio::test]
async fn stopped_frozen_and_killed_are_told_apart_and_recovered_from_over_one_connection() {
    let Some((mut postgres, folder)) = postgres().await else { return };
    let patient = watched(postgres.port, folder.path(), "");
    well(&patient.run("db").await, true);
    // Our own backend is killed, as by an administrator: the next run does not even notice.
    postgres.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'proctor'");
    well(&patient.run("db").await, true);
    answers(&postgres, OURS, "1").await;
    drop(patient);
    let watched = watched_for("3s", postgres.port, folder.path(), "");
    watched.until("db", "it lets in", 30, ProbeResult::is_success).await;
    answers(&postgres, OURS, "1").await;
    postgres.signal_all("STOP");
    for _ in 0..3 {
        failed(&watched.run("db").await, Reason::AnswerTimeout, "waiting for the answer to");
    }
    // Somebody who is not in yet waits with one connection too, and not with one more in each run.
    let outside = watched_for("3s", postgres.port, folder.path(), "");
    for _ in 0..3 {
        failed(&outside.run("db").await, Reason::AnswerTimeout, "waiting for PostgreSQL to take the login");
    }
    postgres.signal_all("CONT");
    watched.until("db", "it answers again", 30, ProbeResult::is_success).await;
    outside.until("db", "it lets in", 30, ProbeResult::is_success).await;
    answers(&postgres, OURS, "2").await;
    // Those, and the one that asks this.
    answers(&postgres, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'", "3").await;
    postgres.process.kill();
    watched.until_failed("db", "it is gone", 30, Reason::Refused, "Connection refused").await;
    postgres.restart().await;
    watched.until("db", "it lets in again", 30, ProbeResult::is_success).await;
}

#[tokio::test]
async fn a_replica_takes_no_writes_and_says_when_nobody_sends_it_anything() {
    let Some((mut postgres, folder)) = postgres().await else { return };
    let replica = postgres.replica().await;
    let found = watched(replica.port, folder.path(), "").run("db").await;
    failed(&found, Reason::Blocked, "is in recovery");
    assert_eq!((value(&found, "pg_up", ""), value(&found, "pg_writable", "")), (Some(1.0), Some(0.0)));
    let wanted = watched(replica.port, folder.path(), "writable: false, queries: {a: {sql: SELECT count(*) AS n FROM mails}}");
    let receives = |up: f64| move |result: &ProbeResult| value(result, "pg_replication_receiver_up", "") == Some(up);
    let result = wanted.until("db", "it streams", 60, receives(1.0)).await;
    well(&result, true);
    assert_eq!(value(&result, "pg_replication_is_replica", ""), Some(1.0));
    assert_eq!(value(&result, "pg_query_value", "a"), Some(3.0));
    let primary = watched(postgres.port, folder.path(), "");
    let result = primary
        .until("db", "the primary knows it", 30, |result| value(result, "pg_stat_replication_pg_wal_lsn_diff", "streaming").is_some())
        .await;
    well(&result, true);
    // A slot that nobody reads keeps its log for ever.
    postgres.ask("SELECT pg_create_physical_replication_slot('forgotten', true)");
    let result = primary.run("db").await;
    assert_eq!(value(&result, "pg_replication_slot_slot_is_active", "forgotten"), Some(0.0));
    assert!(value(&result, "pg_replication_slots_pg_wal_lsn_diff", "forgotten").is_some());
    postgres.process.kill();
    // Once it has replayed what it has received, the exporter's lag shows nothing of it.
    let nobody = |result: &ProbeResult| receives(0.0)(result) && value(result, "pg_replication_lag_seconds", "") == Some(0.0);
    wanted.until("db", "nobody sends, and the lag is none", 60, nobody).await;
    // Read-only for everybody, and not only for us.
    postgres.restart().await;
    postgres.set("default_transaction_read_only", "on");
    postgres.ask("SELECT pg_reload_conf()");
    primary.until_failed("db", "it is read-only", 20, Reason::Blocked, "default_transaction_read_only is on").await;
}

#[tokio::test]
async fn who_idles_in_a_transaction_and_who_holds_up_whom_is_said_without_any_query() {
    let Some((postgres, folder)) = postgres().await else { return };
    let watched = watched(postgres.port, folder.path(), "");
    let (mut holder, mut second, mut third) = (postgres.client(), postgres.client(), postgres.client());
    holder.say("BEGIN; UPDATE mails SET status = 'topsecret' WHERE id = 1;");
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    answers(&postgres, "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'", "1").await;
    second.say("ALTER TABLE mails ADD COLUMN topsecret text;");
    answers(&postgres, waiting, "1").await;
    third.say("SELECT * FROM mails WHERE status = 'topsecret';");
    answers(&postgres, waiting, "2").await;
    // Who has waited for a second looks for a deadlock, and does not wait for that moment.
    let said = |result: &ProbeResult| value(result, "pg_lock_waits", "") == Some(2.0) && evidence(result).contains("holds up 2 others");
    let result = watched.until("db", "the chain is seen", 20, said).await;
    well(&result, true);
    assert!(value(&result, "pg_lock_wait_max_seconds", "").is_some_and(|seconds| seconds > 0.0));
    assert!(value(&result, "pg_idle_in_transaction_max_seconds", "").is_some_and(|seconds| seconds > 0.0));
    assert!(value(&result, "pg_stat_activity_max_tx_duration", "idle in transaction").is_some_and(|seconds| seconds > 0.0));
    assert!(value(&result, "pg_locks_count", "accessexclusivelock").is_some());
    let head = postgres.ask("SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction'");
    let evidence = evidence(&result);
    assert!(evidence.contains(&format!("pid {head} (postgres, psql, idle in transaction")), "{evidence}");
    assert!(!evidence.contains("topsecret"), "{evidence}");
    // A query of the configuration waits for that lock no longer than a second, and stands in nobody's way after it.
    let impatient = super::probes_postgres::watched(postgres.port, folder.path(), "queries: {a: {sql: SELECT count(*) FROM mails}}");
    failed(&impatient.run("db").await, Reason::AnswerTimeout, "somebody holds a lock on it");
    drop(holder);
    watched.until("db", "nobody waits", 30, |result| value(result, "pg_lock_waits", "") == Some(0.0)).await;
    well(&impatient.run("db").await, true);
}

#[tokio::test]
async fn a_query_that_is_not_as_it_should_be_says_what_is_wrong_and_harms_nobody() {
    let Some((postgres, folder)) = postgres().await else { return };
    postgres.ask("GRANT ALL ON mails TO proctor");
    postgres.ask("CREATE FUNCTION spoil() RETURNS int LANGUAGE sql AS 'UPDATE mails SET status = null RETURNING id'");
    for (sql, reason, words) in [
        ("SELECT spoil() AS n", Reason::Blocked, "it writes, which it may not"),
        ("WITH gone AS (DELETE FROM mails RETURNING id) SELECT count(*) AS n FROM gone", Reason::Unavailable, "data-modifying"),
        ("SELECT 1 AS n; DROP TABLE mails", Reason::Mismatch, "multiple commands"),
        ("SELECT 1 AS n; COMMIT; DELETE FROM mails", Reason::Mismatch, "multiple commands"),
        ("SELECT id, status FROM mails", Reason::Mismatch, "expected numbers in column status"),
        ("SELECT generate_series(1, 100000000) AS n", Reason::TooLarge, "expected at most 20 rows"),
        ("SELECT pg_sleep(60)::text AS n", Reason::AnswerTimeout, "longer than statement_timeout"),
        ("SELECT nothing FROM mails", Reason::Missing, "column \"nothing\" does not exist"),
        ("SELECT rolpassword AS n FROM pg_authid", Reason::Forbidden, "permission denied"),
        ("SELECT 1/0 AS n", Reason::Unavailable, "division by zero"),
    ] {
        let more = format!("statement_timeout: 500ms, queries: {{bad: {{sql: '{sql}'}}, good: {{sql: SELECT 7 AS n}}}}");
        // The role may have three connections.
        answers(&postgres, OURS, "0").await;
        let result = watched(postgres.port, folder.path(), &more).run("db").await;
        failed(&result, reason, words);
        failed(&result, reason, "query bad");
        assert_eq!((value(&result, "pg_up", ""), value(&result, "pg_query_success", "bad")), (Some(1.0), Some(0.0)), "{sql}");
        assert_eq!(value(&result, "pg_query_value", "good"), Some(7.0), "{sql}");
    }
    assert_eq!(postgres.ask("SELECT count(status) FROM mails"), "3", "nothing was written");
}

#[tokio::test]
async fn encryption_is_asked_for_and_verified() {
    let Some((mut postgres, folder)) = postgres().await else { return };
    let authority = Authority::new();
    postgres.certify(&authority);
    postgres.restart().await;
    postgres.let_in("hostssl all proctor 127.0.0.1/32 scram-sha-256");
    failed(&watched(postgres.port, folder.path(), "").run("db").await, Reason::Forbidden, "say tls: true");
    let write = |name: &str, authority: &Authority| {
        std::fs::write(folder.path().join(name), &authority.pem).expect("the folder takes files");
        format!("tls: true, ca_file: {}", folder.path().join(name).display())
    };
    let (right, wrong) = (write("ca.pem", &authority), write("other.pem", &Authority::new()));
    let by_name = |more: &str| {
        let password = folder.path().join("password");
        let (port, password) = (postgres.port, password.display());
        Watched::new(&format!("  db: {{postgres: {{address: 'localhost:{port}', database: postgres, password_file: {password}, {more}}}}}"))
    };
    well(&by_name(&right).run("db").await, true);
    failed(&by_name(&wrong).run("db").await, Reason::Certificate, "");
    failed(&watched(postgres.port, folder.path(), &right).run("db").await, Reason::Certificate, "");
}

#[tokio::test]
async fn a_server_that_does_what_none_should_has_its_reason_in_time() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    secret(folder.path(), "hunter2");
    let message = |kind: u8, body: &[u8]| [&[kind], &(body.len() as u32 + 4).to_be_bytes()[..], body].concat();
    // Lets anybody in, and then answers every question with rows without end.
    let ready = message(b'Z', b"I");
    let open = [message(b'R', &[0; 4]), message(b'K', &[0; 8]), ready].concat();
    let column = message(b'T', b"\0\x01a\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0");
    let row = message(b'D', b"\0\x01\0\0\0\x01x");
    let huge = [&open[..], &column, b"D\x7f\xff\xff\xff\0\x01\x7f\xff\xff\xf0"].concat();
    let scram = |iterations: &str| {
        [message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"), message(b'R', format!("\0\0\0\x0br=x,s=eA==,i={iterations}").as_bytes())].concat()
    };
    let startup = b"SFATAL\0C57P03\0Mthe database system is starting up\0\0";
    for (manner, reason) in [
        (Manner::Silent, Reason::AnswerTimeout),
        (Manner::Drips(b"R\0\0\0\x08\0\0\0\0".to_vec()), Reason::AnswerTimeout),
        (Manner::Closes, Reason::Eof),
        (Manner::Resets, Reason::Reset),
        (Manner::Says(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()), Reason::Protocol),
        (Manner::Says(b"\x4a\0\0\0\x0a5.5.5-10.11".to_vec()), Reason::Protocol),
        (Manner::Endless(b"R\x7f\xff\xff\xff".to_vec()), Reason::Protocol),
        (Manner::Endless(open.clone()), Reason::TooLarge),
        (Manner::Endless(huge), Reason::TooLarge),
        (Manner::SaysAndHolds([&open[..], &column, &row.repeat(100_000)].concat()), Reason::TooLarge),
        (Manner::SaysAndHolds(open.clone()), Reason::AnswerTimeout),
        (Manner::SaysAndHolds(scram("4294967295")), Reason::Protocol),
        (Manner::Says(message(b'E', startup)), Reason::Starting),
        (Manner::Says(b"EFATAL:  could not fork new process\n\0".to_vec()), Reason::Unavailable),
        (Manner::SaysAndHolds([&open[..], &message(b'D', b"\0\x01\0\0\0\x01x"), &open].concat()), Reason::Protocol),
    ] {
        let told = format!("{manner:?}").chars().take(90).collect::<String>();
        let port = hostile(manner).await;
        let result = watched_for("3s", port, folder.path(), "").run("db").await;
        let failure = result.outcome.as_ref().expect_err(&told);
        // Who closes with our login unread resets.
        let closed = reason == Reason::Eof && failure.reason == Reason::Reset;
        // Whether it is a message of that length, or none at all, is the library's to say.
        let either = reason == Reason::TooLarge && failure.reason == Reason::Protocol;
        assert!(failure.reason == reason || closed || either, "{told}: expected {reason}, found {}: {failure}", failure.reason);
        assert!(failure.detail.contains(&port.to_string()) && !failure.detail.contains("hunter2"), "{failure}");
    }
    failed(&watched(free_port(), folder.path(), "").run("db").await, Reason::Refused, "Connection refused");
    let plain = hostile(Manner::Says(b"N".to_vec())).await;
    failed(&watched(plain, folder.path(), "tls: true").run("db").await, Reason::Tls, "does not offer encryption");
    let garbage = hostile(Manner::Says(b"Sgarbage garbage".to_vec())).await;
    failed(&watched(garbage, folder.path(), "tls: true").run("db").await, Reason::Tls, "");
}
