//! The probe `mysql` against a real MariaDB, and against servers that do what none should.

use std::path::Path;
use std::time::Duration;

use proctor::model::{ProbeResult, Reason, Sight};
use tokio::io::AsyncReadExt;

use super::docs::block;
use super::probes_tunnel::own_address;
use super::support::database::secret;
use super::support::hostile::{Manner, hostile};
use super::support::nginx::Authority;
use super::support::process::{eventually, free_port};
use super::support::tunnel::Mariadb;
use super::support::watched::{Watched, failed, value, well};

/// A user and a table of the site.
const SITE: &str = "
    CREATE USER site@'%' IDENTIFIED BY 'site';
    CREATE DATABASE courses; CREATE TABLE courses.mails (id int PRIMARY KEY, status text);
    INSERT INTO courses.mails VALUES (1, 'sent'), (2, 'sent'), (3, 'failed');";

/// A MariaDB with that, and the user of its page, from wherever he comes.
async fn mariadb(more: &[&str]) -> Option<(Mariadb, tempfile::TempDir)> {
    let mariadb = Mariadb::start(more).await?;
    let user = block("probes/mysql.md", "sql", 0, &[("'…'", "'hunter2'"), ("'127.0.0.1'", "'%'"), ("coursys.", "courses.")]);
    let lines = user.lines().filter(|line| !line.contains("-- MySQL"));
    mariadb.ask(&(SITE.to_owned() + &lines.collect::<Vec<_>>().join("\n")));
    let folder = tempfile::tempdir().expect("a folder can be made");
    secret(folder.path(), "hunter2\n");
    Some((mariadb, folder))
}

fn watched_at(address: &str, folder: &Path, more: &str) -> Watched {
    watched_for("10s", address, folder, more)
}

fn watched_for(timeout: &str, address: &str, folder: &Path, more: &str) -> Watched {
    let password = folder.join("password");
    let (password, more) = (password.display(), more.to_owned());
    Watched::new(&format!("  db:\n    timeout: {timeout}\n    mysql: {{address: '{address}', password_file: {password}, {more}}}"))
}

fn watched(port: u16, folder: &Path, more: &str) -> Watched {
    watched_at(&format!("127.0.0.1:{port}"), folder, more)
}

/// Runs the probe once so many connections are left: those of a client that has ended go a moment later.
async fn alone(watched: &Watched, left: f64) -> ProbeResult {
    let alone = |result: &ProbeResult| value(result, "mysql_connections_left", "") == Some(left);
    watched.until("db", "nobody else is connected any more", 30, alone).await
}

/// Waits until so many of our connections are left there, of the three that the user may have.
async fn ended(mariadb: &Mariadb, left: &str) {
    eventually("connections of ours have ended", Duration::from_secs(30), || async { (ours(mariadb) == left).then_some(()) }).await;
}

/// Waits until the server has counted so many refused logins, which it does after it has said so.
async fn refused(mariadb: &Mariadb, count: u64) {
    eventually("the refused login is counted", Duration::from_secs(30), || async {
        (mariadb.counter("Aborted_connects") >= count).then_some(())
    })
    .await;
    assert_eq!(mariadb.counter("Aborted_connects"), count);
}

fn ours(mariadb: &Mariadb) -> String {
    mariadb.ask("SELECT count(*) FROM information_schema.processlist WHERE user = 'proctor'")
}

#[tokio::test]
async fn what_is_asked_is_told_under_the_exporters_names_over_one_connection() {
    let Some((mariadb, folder)) = mariadb(&[]).await else { return };
    let queries = "database: courses, queries: {mails: {sql: 'SELECT status, count(*) AS n FROM mails GROUP BY 1', labels: [status]}}";
    let watched = watched(mariadb.port, folder.path(), queries);
    let result = alone(&watched, 150.0).await;
    well(&result, true);
    for (name, label, wanted) in [
        ("mysql_up", "", 1.0),
        ("mysql_version_info", "", 1.0),
        ("mysql_global_variables_max_connections", "", 151.0),
        ("mysql_global_variables_max_connect_errors", "", 3.0),
        ("mysql_global_variables_read_only", "", 0.0),
        ("mysql_writable", "", 1.0),
        ("mysql_global_status_threads_connected", "", 1.0),
        ("mysql_connections_left", "", 150.0),
        ("mysql_idle_in_transaction_max_seconds", "", 0.0),
        ("mysql_lock_waits", "row", 0.0),
        ("mysql_lock_waits", "table", 0.0),
        ("mysql_lock_wait_max_seconds", "", 0.0),
        ("mysql_info_schema_processlist_threads", "query", 1.0),
        ("mysql_global_status_connection_errors_total", "max_connections", 0.0),
        ("mysql_query_success", "mails", 1.0),
        ("mysql_query_value", "sent", 2.0),
        ("mysql_query_value", "failed", 1.0),
    ] {
        assert_eq!(value(&result, name, label), Some(wanted), "{name} {label}");
    }
    assert!(value(&result, "mysql_database_size_bytes", "courses").is_some_and(|bytes| bytes > 0.0));
    assert!(value(&result, "mysql_global_status_commands_total", "select").is_some_and(|count| count > 0.0));
    for _ in 0..3 {
        well(&watched.run("db").await, true);
        assert_eq!(ours(&mariadb), "1");
    }
    // Each login ends politely, in the socket too.
    let socket = format!("unix:{}", mariadb.socket().display());
    let anew = watched_at(&socket, folder.path(), "login_every: 0s");
    for _ in 0..5 {
        well(&anew.run("db").await, true);
    }
    drop((watched, anew));
    ended(&mariadb, "0").await;
    assert_eq!((mariadb.counter("Aborted_clients"), mariadb.counter("Aborted_connects")), (0, 0));
}

#[tokio::test]
async fn each_way_to_be_turned_away_has_its_reason_and_a_way_back() {
    let Some((mariadb, folder)) = mariadb(&["--max-connections=10"]).await else { return };
    let less = watched(mariadb.port, folder.path(), "login_every: 0s");
    mariadb.ask("REVOKE PROCESS, REPLICA MONITOR ON *.* FROM proctor@'%'");
    // How many are left is seen without any right.
    let result = alone(&less, 9.0).await;
    well(&result, false);
    let Sight::Partial { missing, remedy } = &result.sight else { panic!("{:?}", result.sight) };
    assert!(missing.contains("idle in a transaction") && missing.contains("the replication"), "{missing}");
    assert_eq!(remedy, "run GRANT PROCESS, REPLICA MONITOR ON *.* TO 'proctor'@'%'");
    mariadb.ask(remedy.strip_prefix("run ").expect("is a line to run"));
    well(&less.run("db").await, true);

    secret(folder.path(), "wrong");
    let all = watched(mariadb.port, folder.path(), "");
    failed(&all.run("db").await, Reason::Auth, "Access denied for user 'proctor'");
    refused(&mariadb, 1).await;
    failed(&all.run("db").await, Reason::Auth, "Access denied for user 'proctor'");
    assert_eq!(mariadb.counter("Aborted_connects"), 1, "the same password is not tried again at once");
    secret(folder.path(), "hunter2");
    well(&all.run("db").await, true);
    for (more, reason, words) in [
        ("database: nowhere", Reason::Forbidden, "to database 'nowhere'"),
        ("database: mysql", Reason::Forbidden, "to database 'mysql'"),
        ("queries: {a: {sql: SELECT 1 AS n FROM courses.nothing}}", Reason::Forbidden, "SELECT command denied"),
        ("database: courses, queries: {a: {sql: SELECT nothing FROM mails}}", Reason::Missing, "Unknown column"),
        ("tls: true", Reason::Tls, "does not offer encryption"),
    ] {
        ended(&mariadb, "2").await;
        failed(&watched(mariadb.port, folder.path(), more).run("db").await, reason, words);
    }
    ended(&mariadb, "2").await;
    mariadb.ask("GRANT SELECT ON *.* TO proctor@'%'");
    failed(&watched(mariadb.port, folder.path(), "database: nowhere").run("db").await, Reason::Missing, "Unknown database");
    let tried = mariadb.counter("Aborted_connects");
    mariadb.ask("ALTER USER proctor@'%' ACCOUNT LOCK");
    failed(&less.run("db").await, Reason::Auth, "account is locked");
    mariadb.ask("ALTER USER proctor@'%' ACCOUNT UNLOCK");
    eventually("that refusals are counted there is no accident", Duration::from_secs(30), || async {
        (mariadb.counter("Aborted_connects") > tried).then_some(())
    })
    .await;

    mariadb.ask("SET GLOBAL read_only = ON");
    let result = all.run("db").await;
    failed(&result, Reason::Blocked, "found read_only ON");
    assert_eq!((value(&result, "mysql_up", ""), value(&result, "mysql_writable", "")), (Some(1.0), Some(0.0)));
    well(&watched(mariadb.port, folder.path(), "writable: false").run("db").await, true);
    mariadb.ask("SET GLOBAL read_only = OFF");

    mariadb.ask("KILL USER proctor");
    well(&all.run("db").await, true);
    // All are taken: whoever is in says so, and so does whoever is not.
    alone(&all, 9.0).await;
    let held: Vec<_> = (0..9).map(|_| mariadb.client()).collect();
    let result = all.until_failed("db", "no connection is left", 30, Reason::Saturated, "no connection is left for the site").await;
    assert_eq!(value(&result, "mysql_up", ""), Some(1.0));
    failed(&watched(mariadb.port, folder.path(), "").run("db").await, Reason::Saturated, "no login gets in");
    drop(held);
    all.until("db", "connections are left again", 30, ProbeResult::is_success).await;
}

#[tokio::test]
async fn a_frozen_server_is_waited_for_with_one_connection_and_a_host_is_never_blocked() {
    let Some((mut mariadb, folder)) = mariadb(&[]).await else { return };
    // Broken logins are counted by address, and not those of 127.0.0.1.
    let host = own_address().map_or_else(|| "127.0.0.1".to_owned(), |own| own.to_string());
    let address = format!("{host}:{}", mariadb.port);
    let (inside, outside) = (watched_for("3s", &address, folder.path(), ""), watched_for("3s", &address, folder.path(), ""));
    inside.until("db", "it lets in", 30, ProbeResult::is_success).await;
    mariadb.process.signal("STOP");
    for _ in 0..4 {
        let (inside, outside) = tokio::join!(inside.run("db"), outside.run("db"));
        failed(&inside, Reason::AnswerTimeout, "waiting for the answer to the first question");
        failed(&outside, Reason::AnswerTimeout, "waiting for MySQL to take the login");
    }
    mariadb.process.signal("CONT");
    inside.until("db", "it answers again", 30, ProbeResult::is_success).await;
    outside.until("db", "it lets in", 30, ProbeResult::is_success).await;
    assert_eq!(ours(&mariadb), "2");
    assert_eq!(mariadb.counter("Aborted_connects"), 0, "no login was broken off");
    if own_address().is_some() {
        for _ in 0..3 {
            let before = mariadb.counter("Aborted_connects");
            let mut rude = tokio::net::TcpStream::connect(&address).await.expect("it listens");
            assert!(rude.read(&mut [0u8; 512]).await.expect("it greets") > 0);
            drop(rude);
            eventually("the rude client was counted", Duration::from_secs(10), || async {
                (mariadb.counter("Aborted_connects") > before).then_some(())
            })
            .await;
        }
        failed(&watched_at(&address, folder.path(), "").run("db").await, Reason::Forbidden, "mysqladmin flush-hosts");
    }
    mariadb.process.kill();
    inside.until_failed("db", "it is gone", 30, Reason::Refused, "Connection refused").await;
}

/// Runs the probe until it ends like this, a few times a second: InnoDB shows what it showed last where that was asked
/// for within the last tenth of a second.
async fn seldom(watched: &Watched, what: &str, like: impl Fn(&ProbeResult) -> bool) -> ProbeResult {
    eventually(what, Duration::from_secs(30), || async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let result = watched.run("db").await;
        like(&result).then_some(result)
    })
    .await
}

#[tokio::test]
async fn who_idles_in_a_transaction_and_who_holds_up_whom_is_said_without_any_query() {
    let Some((mariadb, folder)) = mariadb(&["--innodb-lock-wait-timeout=600"]).await else { return };
    mariadb.ask("GRANT ALL ON courses.* TO proctor@'%'");
    let watched = watched(mariadb.port, folder.path(), "");
    let (mut holder, mut second, mut third) = (mariadb.client(), mariadb.client(), mariadb.client());
    holder.say("BEGIN; UPDATE courses.mails SET status = 'topsecret' WHERE id = 1;");
    seldom(&watched, "one idles", |result| value(result, "mysql_idle_in_transaction_max_seconds", "").is_some_and(|idle| idle >= 1.0))
        .await;
    second.say("UPDATE courses.mails SET status = 'topsecret' WHERE id = 1;");
    let result = seldom(&watched, "one waits for a row", |result| value(result, "mysql_lock_waits", "row") == Some(1.0)).await;
    well(&result, true);
    let result = seldom(&watched, "who holds it up is known", |result| !result.evidence.is_empty()).await;
    let evidence = result.evidence.join("\n");
    assert!(evidence.contains("(root, , sleep, its transaction open for") && evidence.contains("holds up thread"), "{evidence}");
    assert!(!evidence.contains("topsecret"), "{evidence}");
    third.say("ALTER TABLE courses.mails ADD COLUMN topsecret text;");
    // The server counts whole seconds.
    let result = seldom(&watched, "one waits for the table, and one of both for a second", |result| {
        value(result, "mysql_lock_waits", "table") == Some(1.0)
            && value(result, "mysql_lock_wait_max_seconds", "").is_some_and(|waits| waits >= 1.0)
    })
    .await;
    well(&result, true);
    // A query of the configuration waits for that no longer than a second, and is in nobody's way after it.
    let impatient =
        super::probes_mysql::watched(mariadb.port, folder.path(), "queries: {a: {sql: SELECT count(*) AS n FROM courses.mails}}");
    failed(&impatient.run("db").await, Reason::AnswerTimeout, "somebody holds a lock on it");
    drop(holder);
    seldom(&watched, "nobody waits", |result| value(result, "mysql_lock_wait_max_seconds", "") == Some(0.0)).await;
    drop((watched, impatient));
    let spoil = "DELIMITER //\nCREATE FUNCTION courses.spoil() RETURNS int BEGIN DELETE FROM courses.mails; RETURN 1; END//";
    mariadb.ask(spoil);
    for (sql, reason, words) in [
        ("SELECT 1 AS n; DROP TABLE courses.mails", Reason::Mismatch, "error in your SQL syntax"),
        ("WITH a AS (SELECT 1 AS n) DELETE FROM courses.mails", Reason::Mismatch, ""),
        ("SELECT courses.spoil() AS n", Reason::Blocked, "it writes, which it may not"),
        ("SELECT id, status FROM courses.mails", Reason::Mismatch, "expected numbers in column status"),
        ("SELECT seq AS n FROM seq_1_to_1000000", Reason::TooLarge, "expected at most 20 rows"),
        (
            "SELECT count(*) AS n FROM seq_1_to_1000000 a, seq_1_to_1000000 b WHERE a.seq * b.seq % 7 = 3",
            Reason::AnswerTimeout,
            "longer than statement_timeout",
        ),
    ] {
        let more = format!("database: courses, statement_timeout: 500ms, queries: {{bad: {{sql: '{sql}'}}, good: {{sql: SELECT 7 AS n}}}}");
        ended(&mariadb, "0").await;
        let result = super::probes_mysql::watched(mariadb.port, folder.path(), &more).run("db").await;
        failed(&result, reason, words);
        assert_eq!((value(&result, "mysql_up", ""), value(&result, "mysql_query_success", "bad")), (Some(1.0), Some(0.0)), "{sql}");
        assert_eq!(value(&result, "mysql_query_value", "good"), Some(7.0), "{sql}");
    }
    assert_eq!(mariadb.ask("SELECT count(*) FROM courses.mails"), "3", "nothing was written");
}

#[tokio::test]
async fn encryption_is_asked_for_and_verified_and_a_replica_is_watched() {
    let authority = Authority::new();
    let certificate = Mariadb::certificate(&authority);
    let path = |name: &str| certificate.path().join(name).display().to_string();
    let options = [format!("--ssl-cert={}", path("server.crt")), format!("--ssl-key={}", path("server.key"))];
    let options = [options[0].as_str(), &options[1], "--server-id=2", "--require-secure-transport=ON"];
    let Some((mariadb, folder)) = mariadb(&options).await else { return };
    let write = |name: &str, authority: &Authority| {
        std::fs::write(folder.path().join(name), &authority.pem).expect("the folder takes files");
        format!("tls: true, ca_file: {}", folder.path().join(name).display())
    };
    let (right, wrong) = (write("ca.pem", &authority), write("other.pem", &Authority::new()));
    let address = format!("localhost:{}", mariadb.port);
    failed(&watched_at(&address, folder.path(), "").run("db").await, Reason::Auth, "one that wants encryption (tls: true)");
    failed(&watched_at(&address, folder.path(), &wrong).run("db").await, Reason::Certificate, "");
    failed(&watched(mariadb.port, folder.path(), &right).run("db").await, Reason::Certificate, "");
    refused(&mariadb, 3).await;
    let replica = watched_at(&address, folder.path(), &format!("writable: false, {right}"));
    let result = replica.run("db").await;
    well(&result, true);
    assert_eq!(value(&result, "mysql_slave_status_slave_io_running", ""), None, "it is no replica");
    assert_eq!(mariadb.counter("Aborted_connects"), 3);
    // It cannot reach its primary, and applies what it has: which the lag alone does not say.
    mariadb.ask(&format!("CHANGE MASTER TO master_host = '127.0.0.1', master_port = {}, master_user = 'nobody'; START SLAVE", free_port()));
    let runs = |result: &ProbeResult| value(result, "mysql_slave_status_slave_sql_running", "") == Some(1.0);
    let result = replica.until("db", "it replicates", 30, runs).await;
    assert_eq!(value(&result, "mysql_slave_status_slave_io_running", ""), Some(0.0));
    assert_eq!(value(&result, "mysql_slave_status_seconds_behind_master", ""), None);
    assert!(result.evidence.join("\n").contains("receives nothing"), "{:?}", result.evidence);
}

#[tokio::test]
async fn a_server_that_does_what_none_should_has_its_reason_in_time() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    secret(folder.path(), "hunter2");
    let packet = |number: u8, body: &[u8]| [&(body.len() as u32).to_le_bytes()[..3], &[number], body].concat();
    let greeting = |plugin: &str| {
        let head = b"\x0a8.4.0\0\x01\0\0\0abcdefgh\0\xff\xf7\x2d\x02\0\xff\x81\x15\0\0\0\0\0\0\0\0\0\0ijklmnopqrst\0";
        packet(0, &[&head[..], plugin.as_bytes(), b"\0"].concat())
    };
    let native = greeting("mysql_native_password");
    let ok = |number| packet(number, b"\0\0\0\x02\0\0\0");
    let open = [&native[..], &ok(2)].concat();
    // The answers to the four statements of a new connection, and then what comes.
    let inside = |more: &[u8]| [&open[..], &ok(1), &ok(1), &ok(1), more].concat();
    let columns =
        [packet(1, b"\x01"), packet(2, b"\x03def\0\0\0\x01a\0\x0c\x3f\0\0\0\0\0\xfd\0\0\0\0\0"), packet(3, b"\xfe\0\0\x02\0")].concat();
    let rows: Vec<u8> = (0..2100u32).flat_map(|row| packet((row as u8).wrapping_add(4), b"\x01x")).collect();
    let blocked = b"\xff\x69\x04Host 'a' is blocked because of many connection errors";
    for (manner, reason) in [
        (Manner::Silent, Reason::AnswerTimeout),
        (Manner::Drips(native.clone()), Reason::AnswerTimeout),
        (Manner::Closes, Reason::Eof),
        (Manner::Resets, Reason::Reset),
        (Manner::Says(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()), Reason::Protocol),
        (Manner::Says(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()), Reason::Protocol),
        (Manner::Endless(b"\xff\xff\xff\0\x0a".to_vec()), Reason::TooLarge),
        (Manner::Says(packet(0, blocked)), Reason::Forbidden),
        (Manner::Says(packet(0, b"\xff\x10\x04Too many connections")), Reason::Saturated),
        (Manner::SaysAndHolds(native.clone()), Reason::AnswerTimeout),
        (
            Manner::SaysAndHolds([&native[..], &packet(2, b"\xfemysql_clear_password\0"), &packet(4, b"\xff\x15\x04#28000no")].concat()),
            Reason::Auth,
        ),
        (
            Manner::SaysAndHolds(
                [&greeting("caching_sha2_password")[..], &packet(2, b"\x01\x04"), &packet(4, b"\xff\x15\x04#28000no")].concat(),
            ),
            Reason::Auth,
        ),
        (Manner::SaysAndHolds([&native[..], &packet(2, b"\x01\x09")].concat()), Reason::Protocol),
        (Manner::Endless(open.clone()), Reason::Protocol),
        (Manner::SaysAndHolds(inside(&packet(1, b"\xfb/etc/passwd"))), Reason::Protocol),
        (Manner::SaysAndHolds(inside(&packet(1, b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff"))), Reason::Protocol),
        (Manner::SaysAndHolds(inside(&[&columns[..], &packet(4, b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff")].concat())), Reason::Protocol),
        (Manner::SaysAndHolds(inside(&[&columns[..], &rows].concat())), Reason::TooLarge),
        (Manner::SaysAndHolds(inside(&columns)), Reason::AnswerTimeout),
    ] {
        let told = format!("{manner:?}").chars().take(90).collect::<String>();
        let port = hostile(manner).await;
        let result = watched_for("3s", &format!("127.0.0.1:{port}"), folder.path(), "").run("db").await;
        let failure = result.outcome.as_ref().expect_err(&told);
        assert_eq!(failure.reason, reason, "{told}: {failure}");
        assert!(failure.detail.contains(&port.to_string()) && !failure.detail.contains("hunter2"), "{failure}");
    }
    failed(&watched(free_port(), folder.path(), "").run("db").await, Reason::Refused, "Connection refused");
}
