//! nginx's processes, its configuration, its logs, and maintenance, against a real nginx.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use proctor::changes;
use proctor::model::{ProbeResult, Reason, Sight, Timestamp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::hostile::{Manner, hostile};
use super::support::nginx::Nginx;
use super::support::process::{eventually, program};
use super::support::tmpfs::Tmpfs;
use super::support::watched::{Watched, failed, value, well};

/// Its processes and logs.
fn watched(nginx: &Nginx, more: &str) -> Watched {
    let folder = nginx.folder().display();
    Watched::new(&format!(
        "  web: {{nginx: {{status: 'http://127.0.0.1:{}/nginx_status', pid_file: {folder}/nginx.pid,
      configuration: [{folder}/nginx.conf], error_logs: [{folder}/error.log]{more}}}}}",
        nginx.http
    ))
}

async fn until(watched: &Watched, target: &str, what: &str, like: impl Fn(&ProbeResult) -> bool) -> ProbeResult {
    eventually(what, Duration::from_secs(30), || async {
        let result = watched.run_target(target).await;
        like(&result).then_some(result)
    })
    .await
}

/// Sends a request over plain HTTP and keeps the connection.
async fn send(port: u16, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("nginx listens");
    stream.write_all(request.as_bytes()).await.expect("nginx reads");
    stream
}

/// Asks for a page and waits until all of it came.
async fn get(port: u16, path: &str) {
    let mut stream = send(port, &format!("GET {path} HTTP/1.0\r\nUser-Agent: somebody\r\n\r\n")).await;
    stream.read_to_end(&mut Vec::new()).await.expect("nginx answers");
}

#[tokio::test]
async fn a_configuration_that_no_worker_has_is_seen_whether_the_reload_failed_or_never_came() {
    let Some(nginx) = Nginx::start().await else { return };
    let watched = watched(&nginx, "");
    let result = watched.run_target("workers").await;
    well(&result, true);
    let told = |result: &ProbeResult| {
        ["nginx_master_up", "nginx_workers", "nginx_workers_shutting_down", "nginx_configuration_unloaded"]
            .map(|name| value(result, name, ""))
    };
    assert_eq!(told(&result), [Some(1.0), Some(1.0), Some(0.0), Some(0.0)]);

    // Changed, and not reloaded. What is written within two seconds of the workers' start is taken for theirs.
    let unloaded = |result: &ProbeResult| value(result, "nginx_configuration_unloaded", "") == Some(1.0);
    let result = eventually("the change is seen", Duration::from_secs(30), || async {
        nginx.configure("# changed");
        let result = watched.run_target("workers").await;
        unloaded(&result).then_some(result)
    })
    .await;
    well(&result, true);
    assert!(result.evidence.iter().any(|line| line.contains("nginx.conf: ")), "{:?}", result.evidence);
    assert_eq!(watched.changes.between(Timestamp(0), Timestamp(i64::MAX)), []);
    nginx.reload().await;
    until(&watched, "workers", "the reload is seen", |result| !unloaded(result)).await;
    let changes = watched.changes.between(Timestamp(0), Timestamp(i64::MAX));
    assert_eq!(changes.iter().map(|change| (change.kind, &*change.subject)).collect::<Vec<_>>(), [(changes::Kind::Reloaded, "nginx")]);

    // Broken, and reloaded: the master keeps the old one and says so in its log only.
    well(&watched.run_target(&nginx.folder().join("error.log").display().to_string()).await, true);
    nginx.rewrite("# changed", "no_such_directive on;");
    nginx.tell("HUP");
    let log = nginx.folder().join("error.log").display().to_string();
    let result =
        until(&watched, &log, "the refusal is counted", |result| value(result, "nginx_error_log_messages_total", "emerg") == Some(1.0))
            .await;
    assert!(result.evidence.iter().any(|line| line.contains("unknown directive \"no_such_directive\"")), "{:?}", result.evidence);
    eventually("the change is seen", Duration::from_secs(30), || async {
        nginx.configure("no_such_directive on;");
        unloaded(&watched.run_target("workers").await).then_some(())
    })
    .await;
    well(&watched.run_target("status").await, true);
}

#[tokio::test]
async fn a_file_that_came_or_went_with_an_old_time_is_a_change_too() {
    let Some(nginx) = Nginx::start().await else { return };
    let snippets = nginx.folder().join("snippets");
    fs::create_dir(&snippets).expect("a folder can be made");
    nginx.configure("include snippets/*.conf;");
    nginx.reload().await;
    let watched = watched(&nginx, "");
    let unloaded = async || {
        let result = watched.run_target("workers").await;
        (value(&result, "nginx_configuration_unloaded", ""), result.evidence.join(" "))
    };
    assert_eq!(unloaded().await.0, Some(0.0));
    let added = snippets.join("added.conf");
    fs::write(&added, "").expect("the folder takes files");
    fs::File::options().write(true).open(&added).expect("it is ours").set_modified(std::time::UNIX_EPOCH).expect("its time can be set");
    let (found, why) = unloaded().await;
    assert!(found == Some(1.0) && why.contains("added.conf: not as it was when they began"), "{why}");
    nginx.reload().await;
    assert_eq!(unloaded().await.0, Some(0.0));
    fs::remove_file(added).expect("it is ours");
    assert_eq!(unloaded().await.0, Some(1.0));
}

#[tokio::test]
async fn an_old_worker_that_a_long_poll_keeps_alive_is_seen_until_it_ends() {
    let Some(nginx) = Nginx::start().await else { return };
    let silent = hostile(Manner::Silent).await;
    nginx.rewrite(
        "location / {",
        &format!("location = /poll {{ proxy_pass http://127.0.0.1:{silent}; proxy_read_timeout 1h; }} location / {{"),
    );
    nginx.reload().await;
    let watched = watched(&nginx, "");
    well(&watched.run_target("workers").await, true);
    let poll = send(nginx.http, "GET /poll HTTP/1.0\r\n\r\n").await;
    eventually("nginx asks what is behind it", Duration::from_secs(10), || async {
        let status = watched.run_target("status").await;
        value(&status, "nginx_connections_writing", "").filter(|writing| *writing >= 2.0)
    })
    .await;
    nginx.tell("HUP");
    let ending = |result: &ProbeResult| value(result, "nginx_workers_shutting_down", "");
    until(&watched, "workers", "the old worker is seen beside the new one", |result| {
        (ending(result), value(result, "nginx_workers", "")) == (Some(1.0), Some(1.0))
    })
    .await;
    let result = until(&watched, "workers", "its time passes", |result| {
        value(result, "nginx_worker_shutting_down_seconds", "").is_some_and(|seconds| seconds > 0.5)
    })
    .await;
    assert!(result.evidence.iter().any(|line| line.contains("has been shutting down for")), "{:?}", result.evidence);
    drop(poll);
    let result = until(&watched, "workers", "it has ended", |result| ending(result) == Some(0.0)).await;
    assert_eq!(value(&result, "nginx_worker_shutting_down_seconds", ""), Some(0.0));
}

#[tokio::test]
async fn a_master_or_a_worker_that_is_frozen_or_gone_is_named() {
    let Some(mut nginx) = Nginx::start().await else { return };
    let watched = watched(&nginx, "");
    let master = nginx.process.pid();
    nginx.tell("STOP");
    let stalled = async |words: String| {
        let result = until(&watched, "workers", "it is stopped", |result| !result.is_success()).await;
        failed(&result, Reason::Stalled, &words);
    };
    stalled(format!("process {master} (nginx: master process")).await;
    nginx.tell("CONT");
    until(&watched, "workers", "it goes on", ProbeResult::is_success).await;
    let worker = nginx.children().concat();
    let tell = |signal: &str| assert!(Command::new("kill").args([signal, &worker]).status().expect("kill runs").success());
    tell("-STOP");
    stalled(format!("process {worker} (nginx: worker process) is stopped")).await;
    tell("-CONT");
    until(&watched, "workers", "it goes on", ProbeResult::is_success).await;

    // The workers go on without their master, and nobody could reload them.
    nginx.tell("KILL");
    nginx.process.wait();
    let result = watched.run_target("workers").await;
    failed(&result, Reason::Missing, &format!("names process {master}, which is gone: see `systemctl status nginx`"));
    assert_eq!(value(&result, "nginx_master_up", ""), Some(0.0));
    well(&watched.run_target("status").await, true);
    let pid_file = nginx.folder().join("nginx.pid");
    fs::write(&pid_file, std::process::id().to_string()).expect("it is ours");
    failed(&watched.run_target("workers").await, Reason::Missing, "which is not nginx's master but");
    fs::write(&pid_file, "{{").expect("it is ours");
    failed(&watched.run_target("workers").await, Reason::Missing, "expected the number of a process, found \"{{\"");
    fs::remove_file(&pid_file).expect("it is ours");
    failed(&watched.run_target("workers").await, Reason::Missing, "expected the process number of nginx's master: No such file");
}

#[tokio::test]
async fn connections_that_found_no_place_are_counted() {
    let Some(nginx) = Nginx::start().await else { return };
    nginx.rewrite("worker_connections 64", "worker_connections 12");
    nginx.reload().await;
    let watched = watched(&nginx, "");
    well(&watched.run_target("status").await, true);
    // Requests that never end, so that nginx may not close them for others. A worker of before the reload may still take
    // the first of them.
    let mut held = Vec::new();
    loop {
        for _ in 0..20 {
            held.push(send(nginx.http, "GET / HTTP/1.1\r\nHost: ").await);
        }
        if !watched.run_target("status").await.is_success() {
            break;
        }
        assert!(held.len() < 400, "nginx turns away");
    }
    drop(held);
    let result = until(&watched, "status", "nginx takes connections again", ProbeResult::is_success).await;
    let [accepted, handled] = ["nginx_connections_accepted", "nginx_connections_handled"].map(|name| value(&result, name, "").expect(name));
    assert!(accepted > handled, "{accepted} {handled}");
}

/// nginx with a second log, with times, and a page behind it.
async fn timed() -> Option<(Nginx, Watched, String)> {
    let nginx = Nginx::start().await?;
    let behind = hostile(Manner::Says(b"HTTP/1.0 200 OK\r\n\r\nhello".to_vec())).await;
    nginx.rewrite(
        "location / {",
        &format!("location = /up {{ proxy_pass http://127.0.0.1:{behind}; }} location = /down {{ return 503; }} location / {{"),
    );
    let format = "$remote_addr - $remote_user [$time_local] \"$request\" $status $body_bytes_sent \"$http_user_agent\" \
                  $request_time \"$upstream_response_time\"";
    nginx.rewrite(
        "access_log access.log asked;",
        &format!("access_log access.log asked; log_format timed '{format}'; access_log timed.log timed;"),
    );
    nginx.reload().await;
    let log = nginx.folder().join("timed.log").display().to_string();
    let watched = watched(&nginx, &format!(", access_logs: [{log}], log_format: '{format}'"));
    well(&watched.run_target(&log).await, true);
    Some((nginx, watched, log))
}

/// Requests by class, once so many have been counted.
async fn counted(watched: &Watched, log: &str, all: u32) -> ([f64; 4], ProbeResult) {
    let classes = |result: &ProbeResult| {
        ["2xx", "3xx", "4xx", "5xx"].map(|class| value(result, "nginx_http_response_count_total", class).unwrap_or(0.0))
    };
    let what = format!("{all} requests are counted");
    let result = until(watched, log, &what, |result| classes(result).iter().sum::<f64>() >= f64::from(all)).await;
    well(&result, true);
    assert_eq!(value(&result, "nginx_parse_errors_total", ""), Some(0.0));
    (classes(&result), result)
}

#[tokio::test]
async fn an_access_log_is_counted_by_class_and_time_without_proctors_own_requests() {
    let Some((nginx, watched, log)) = timed().await else { return };
    for path in ["/up", "/up", "/down", "/none", "/%22%1b[31m{{x}}"] {
        get(nginx.http, path).await;
    }
    well(&watched.run_target("status").await, true);
    let garbage = send(nginx.http, "\u{16}\u{3}\u{1}\u{0}\u{1b}[2J{{ $x }} \"500\"\r\n\r\n").await;
    let (classes, result) = counted(&watched, &log, 6).await;
    assert_eq!(classes, [2.0, 0.0, 3.0, 1.0]);
    drop(garbage);
    let time = |name: &str, label| value(&result, &format!("nginx_http_{name}_time_seconds_{label}"), "").expect(name);
    assert_eq!((time("response", "count"), time("upstream", "count")), (6.0, 2.0));
    assert!(time("response", "sum") < 60.0);
    assert_eq!(value(&result, "nginx_http_upstream_time_seconds_bucket", "+Inf"), Some(2.0));
    assert!(value(&result, "nginx_http_response_size_bytes", "").is_some_and(|bytes| bytes > 10.0));
    assert!(value(&result, "nginx_log_bytes_total", "").is_some_and(|bytes| bytes > 500.0));
}

#[tokio::test]
async fn a_log_is_followed_through_every_way_of_rotation_while_requests_come() {
    let Some(logrotate) = program("logrotate") else { return };
    let Some((nginx, watched, log)) = timed().await else { return };
    let mut all = 0;
    let mut ask = async |count: u32| {
        for _ in 0..count {
            get(nginx.http, "/").await;
        }
        all += count;
        all
    };
    let rotate = |how: &str| {
        let pid = nginx.process.pid();
        let text = format!("{log} {{\n rotate 3\n {how}\n sharedscripts\n postrotate\n  kill -USR1 {pid}\n endscript\n}}\n");
        let config = nginx.folder().join("rotate");
        fs::write(&config, text).expect("the folder takes files");
        let done = Command::new(&logrotate).arg("-f").arg("-s").arg(nginx.folder().join("state")).arg(&config).status();
        assert!(done.expect("logrotate runs").success(), "{how}");
    };
    // Until the worker writes to the file that has the name, what it logs may go to one that is no more.
    let reopened = async || {
        let has = |pid: &String| {
            let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|file| file == Path::new(&log))
        };
        eventually("nginx has the new file", Duration::from_secs(30), || async { nginx.children().iter().all(has).then_some(()) }).await;
    };
    let sum = |classes: [f64; 4]| classes.iter().sum::<f64>();
    for how in ["create 0640", "nocreate", "create\n compress", "copytruncate"] {
        ask(5).await;
        // What copytruncate may lose is read before.
        let before = if how == "copytruncate" { ask(0).await } else { 0 };
        counted(&watched, &log, before).await;
        rotate(how);
        let expected = ask(5).await;
        assert_eq!(sum(counted(&watched, &log, expected).await.0), f64::from(expected), "{how}");
        reopened().await;
    }
    // By hand, the signal late.
    fs::rename(&log, format!("{log}.old")).expect("it is ours");
    let expected = ask(5).await;
    assert_eq!(sum(counted(&watched, &log, expected).await.0), f64::from(expected));
    nginx.tell("USR1");
    let expected = ask(5).await;
    assert_eq!(sum(counted(&watched, &log, expected).await.0), f64::from(expected));
    reopened().await;
    // Deleted and forgotten: nginx goes on writing to a file that has no name.
    fs::remove_file(&log).expect("it is ours");
    let result = until(&watched, &log, "it is missing", |result| !result.is_success()).await;
    failed(&result, Reason::Missing, "nginx -s reopen");
    assert_eq!(value(&result, "nginx_log_followed", ""), Some(0.0));
    nginx.tell("USR1");
    until(&watched, &log, "it is back", ProbeResult::is_success).await;
    reopened().await;
    let expected = ask(5).await;
    assert_eq!(sum(counted(&watched, &log, expected).await.0), f64::from(expected));
}

#[tokio::test]
async fn a_log_that_cannot_grow_while_requests_come_is_seen_in_two_counters() {
    let Some(nginx) = Nginx::start().await else { return };
    let Some(full) = Tmpfs::mount("64k") else { return };
    let log = full.path().join("full.log");
    nginx.rewrite("access_log access.log asked;", &format!("access_log {};", log.display()));
    nginx.reload().await;
    let watched = watched(&nginx, &format!(", access_logs: [{}]", log.display()));
    let log = log.display().to_string();
    well(&watched.run_target(&log).await, true);
    get(nginx.http, "/").await;
    counted(&watched, &log, 1).await;
    let mut filler = fs::File::create(full.path().join("filler")).expect("the folder takes files");
    while filler.write_all(&[0; 4096]).is_ok() {}
    // The page that the log already has still takes some lines.
    for _ in 0..60 {
        get(nginx.http, "/").await;
    }
    let grown = async || value(&watched.run_target(&log).await, "nginx_log_bytes_total", "").expect("it is counted");
    let requests = async || value(&watched.run_target("status").await, "nginx_http_requests_total", "").expect("it is counted");
    let before = (grown().await, requests().await);
    for _ in 0..5 {
        get(nginx.http, "/").await;
    }
    let after = (grown().await, requests().await);
    assert!(after.0 - before.0 < 1.0 && after.1 - before.1 >= 5.0, "{before:?} {after:?}");
    // Half a line was written when the disk was full; what follows it is one line that cannot be read, not more.
    drop(filler);
    fs::remove_file(full.path().join("filler")).expect("it is ours");
    // nginx does not try again within the same second (`ngx_http_log_write`).
    eventually("it grows again", Duration::from_secs(30), || async {
        get(nginx.http, "/").await;
        (grown().await > after.0).then_some(())
    })
    .await;
    let result = watched.run_target(&log).await;
    assert!(value(&result, "nginx_parse_errors_total", "").is_some_and(|lines| lines <= 1.0), "{:?}", result.samples);
}

#[tokio::test]
async fn whatever_stands_in_a_log_is_a_number_or_a_clean_line() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let [access, errors] = ["access.log", "error.log"].map(|name| folder.path().join(name));
    let append = |path: &PathBuf, bytes: &[u8]| {
        fs::File::options()
            .append(true)
            .create(true)
            .open(path)
            .and_then(|mut file| file.write_all(bytes))
            .expect("the folder takes files");
    };
    append(&access, b"");
    append(&errors, b"");
    let [log, error_log] = [&access, &errors].map(|path| path.display().to_string());
    let watched = Watched::new(&format!("  web: {{nginx: {{access_logs: [{log}], error_logs: [{error_log}]}}}}"));
    well(&watched.run_target(&log).await, true);
    well(&watched.run_target(&error_log).await, true);
    let good = "10.0.0.1 - - [25/Nov/2026:21:00:00 +0000] \"GET / HTTP/1.1\" 200 5 \"-\" \"x\"\n";
    for hostile in [
        b"\x1b[31m\x1b]0;owned\x07\n".to_vec(),
        b"{{ .Values }} {{ $labels.x }} \" 500 \"\n".to_vec(),
        [vec![0xff; 5000], vec![b'\n']].concat(),
        [vec![0; 70_000], vec![b'\n']].concat(),
        b"\r\n\r\n\n\n".to_vec(),
        [vec![b'"'; 1 << 20], vec![b'\n']].concat(),
    ] {
        append(&access, &hostile);
        append(&access, good.as_bytes());
        append(&errors, &hostile);
        append(&errors, b"2026/11/25 21:00:00 [crit] 7#7: \x1b[31m{{ .X }} \xff\x07\r \n");
    }
    let result = watched.run_target(&log).await;
    assert_eq!(value(&result, "nginx_http_response_count_total", "2xx"), Some(6.0));
    assert_eq!(value(&result, "nginx_parse_errors_total", ""), Some(9.0));
    let result = watched.run_target(&error_log).await;
    assert_eq!(value(&result, "nginx_error_log_messages_total", "crit"), Some(6.0));
    assert_eq!(result.evidence.len(), 3);
    assert!(
        result.evidence.iter().all(|line| line.chars().count() <= 200 && !line.contains(|c: char| c.is_control())),
        "{:?}",
        result.evidence
    );
    // More than is read at once: its end, and the rest is counted.
    fs::File::options().write(true).open(&access).expect("it is ours").set_len(1 << 30).expect("it can be sparse");
    append(&access, format!("\n{good}").as_bytes());
    let result = watched.run_target(&log).await;
    assert_eq!(value(&result, "nginx_http_response_count_total", "2xx"), Some(7.0));
    assert!(value(&result, "nginx_log_skipped_bytes_total", "").is_some_and(|bytes| bytes > 1e9), "{:?}", result.samples);
    // A pipe or a folder in its place.
    fs::remove_file(&access).expect("it is ours");
    assert!(Command::new("mkfifo").arg(&access).status().expect("mkfifo runs").success());
    failed(&watched.run_target(&log).await, Reason::Unavailable, "expected a file");
}

#[tokio::test]
async fn what_may_not_be_read_is_partial_and_says_what_helps() {
    let Some(setpriv) = program("setpriv").filter(|_| rustix::process::geteuid().is_root()) else { return };
    let Some(nginx) = Nginx::start().await else { return };
    let open = |path: &Path, mode| fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("it is ours");
    let folder = nginx.folder();
    open(folder, 0o755);
    for (name, mode) in [("nginx.conf", 0o644), ("nginx.pid", 0o644), ("access.log", 0o600), ("error.log", 0o640)] {
        open(&folder.join(name), mode);
    }
    let group = Command::new("chgrp").arg("adm").arg(folder.join("error.log")).status();
    assert!(group.expect("chgrp runs").success());
    fs::create_dir(folder.join("closed")).expect("a folder can be made");
    open(&folder.join("closed"), 0o700);
    nginx.configure("include closed/*;");
    nginx.reload().await;
    let path = folder.display();
    let config = folder.join("proctor.yml");
    let yaml = format!(
        "probes:\n  web: {{nginx: {{pid_file: {path}/nginx.pid, configuration: [{path}/nginx.conf], access_logs: [{path}/access.log], error_logs: [{path}/error.log]}}}}\n"
    );
    fs::write(&config, yaml).expect("the folder takes files");
    let mut command = Command::new(setpriv);
    command
        .args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups", env!("CARGO_BIN_EXE_proctor"), "check", "--config"])
        .arg(&config);
    let output = command.output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let told = told.split_whitespace().collect::<Vec<_>>().join(" ");
    for words in [
        format!("setfacl -m u:nobody:rx {path}/closed"),
        format!("setfacl -m u:nobody:rx {path} && setfacl -d -m u:nobody:r {path} && setfacl -m u:nobody:r {path}/access.log"),
        "usermod -aG adm nobody, and restart Proctor".to_owned(),
    ] {
        assert!(told.contains(&words), "{words:?} in {told}");
    }
}

#[tokio::test]
async fn a_site_that_is_down_on_purpose_is_not_red() {
    let Some(nginx) = Nginx::start().await else { return };
    let mark = nginx.folder().join("503");
    nginx.configure("location = /style.css { return 200 'body {}'; default_type text/css; } location = /empty.css { return 200; default_type text/css; }");
    nginx.reload().await;
    let site = format!("https://coursys.example.org:{}", nginx.https);
    let watched = Watched::whole(&format!(
        "maintenance: {{files: [{}]}}\nprobes:\n  web: {{nginx: {{address: 127.0.0.1, ca_file: {}, sites: ['{site}/503', '{site}/'],
      static_files: ['{site}/style.css', '{site}/empty.css', '{site}/none.css', '{site}/old']}}}}\n",
        mark.display(),
        nginx.ca_file().display()
    ));
    let page = format!("{site}/503");
    failed(&watched.run_target(&page).await, Reason::Mismatch, "503 Service Unavailable");
    fs::write(&mark, "").expect("the folder takes files");
    let result = watched.run_target(&page).await;
    well(&result, true);
    assert_eq!(value(&result, "nginx_site_maintenance", ""), Some(1.0));
    let result = watched.run_target(&format!("{site}/")).await;
    well(&result, true);
    assert_eq!(value(&result, "nginx_site_maintenance", ""), Some(0.0));
    fs::remove_file(&mark).expect("it is ours");
    failed(&watched.run_target(&page).await, Reason::Mismatch, "503 Service Unavailable");

    well(&watched.run_target(&format!("{site}/style.css")).await, true);
    failed(&watched.run_target(&format!("{site}/empty.css")).await, Reason::Mismatch, "found an empty one");
    failed(&watched.run_target(&format!("{site}/none.css")).await, Reason::Mismatch, "expected status 200, found 404");
    failed(&watched.run_target(&format!("{site}/old")).await, Reason::Mismatch, "expected status 200, found 302");
    assert_eq!(result.sight, Sight::Full);
}

#[test]
fn its_rules_speak_when_they_should_and_only_then() {
    let Some(promtool) = program("promtool") else { return };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("alerts/tests/nginx.yml");
    let output = Command::new(promtool).args(["test", "rules"]).arg(file).output().expect("promtool runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
