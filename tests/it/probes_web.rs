//! The probes http, tcp, nginx and gunicorn against real services and hostile ones.

use std::sync::Arc;
use std::time::Duration;

use proctor::metrics::Metrics;
use proctor::model::decode::from_text;
use proctor::model::{Failure, ProbeResult, Reason, Sight, Target};
use proctor::probe::ProbeConfig;
use proctor::probe::scheduler::{Scheduled, run};

use super::support::gunicorn::{Connection, Gunicorn};
use super::support::hostile::{Manner, hostile};
use super::support::nginx::{Authority, Nginx};
use super::support::process::{eventually, free_port};

/// Asks once, as the scheduler does, the target of this name of a probe in YAML.
pub(crate) async fn ask_target(yaml: &str, name: Option<&str>, timeout: Duration) -> ProbeResult {
    let config: ProbeConfig = from_text("proctor.yml", yaml).unwrap_or_else(|problems| panic!("{yaml}: {problems:?}"));
    let planned = config.plan().unwrap_or_else(|why| panic!("{yaml}: {why}"));
    let names: Vec<_> = planned.iter().map(|planned| planned.target.clone()).collect();
    let planned = planned.into_iter().find(|planned| planned.target.as_deref() == name);
    let target = Target {
        probe: "web".into(),
        target: name.map(Into::into),
        kind: "test",
        interval: Duration::from_secs(15),
        timeout,
        depends_on: Arc::new([]),
    };
    let probe = planned.unwrap_or_else(|| panic!("{name:?} among {names:?}")).probe;
    let begin = tokio::time::Instant::now();
    let result = run(&Scheduled { target: Arc::new(target), probe }, &Metrics::new()).await.expect("this host is awake");
    assert!(begin.elapsed() < timeout + Duration::from_secs(1), "the limit of {timeout:?} holds: {:?}", begin.elapsed());
    result
}

async fn ask(yaml: &str) -> ProbeResult {
    ask_target(yaml, None, Duration::from_secs(5)).await
}

async fn ask_briefly(yaml: &str) -> ProbeResult {
    ask_target(yaml, None, Duration::from_millis(1500)).await
}

pub(crate) fn value(result: &ProbeResult, name: &str) -> Option<f64> {
    result.samples.iter().find(|sample| sample.family.name == name).map(|sample| sample.value)
}

fn phases(result: &ProbeResult) -> Vec<String> {
    let phases = result.samples.iter().filter(|sample| sample.family.name == "probe_http_duration_seconds");
    phases.map(|sample| sample.labels[0].1.to_string()).collect()
}

#[track_caller]
pub(crate) fn failed(result: &ProbeResult, reason: Reason, words: &str) {
    let Err(Failure { reason: found, detail }) = &result.outcome else { panic!("expected {reason}, found success") };
    assert_eq!(*found, reason, "{detail}");
    assert!(detail.contains(words), "{words:?} in {detail:?}");
}

/// Asks until the port is closed: the workers of a killed master hold it for a moment.
async fn refused(yaml: &str, name: Option<&str>) -> ProbeResult {
    let result = eventually("the port is closed", Duration::from_secs(10), || async {
        let result = ask_target(yaml, name, Duration::from_secs(5)).await;
        matches!(&result.outcome, Err(failure) if failure.reason == Reason::Refused).then_some(result)
    })
    .await;
    failed(&result, Reason::Refused, "Connection refused");
    result
}

#[track_caller]
pub(crate) fn well(result: &ProbeResult) {
    assert_eq!(result.outcome, Ok(()), "{:?}", result.samples);
}

/// An `http` probe of the site on this nginx.
fn site(nginx: &Nginx, path: &str, more: &str) -> String {
    let (port, ca) = (nginx.https, nginx.ca_file());
    format!("http: {{url: 'https://coursys.example.org:{port}{path}', connect_to: '127.0.0.1:{port}', ca_file: {}, {more}}}", ca.display())
}

#[tokio::test]
async fn a_page_is_measured_under_the_names_of_blackbox_exporter() {
    let Some(nginx) = Nginx::start().await else { return };
    let result = ask(&site(&nginx, "/", "body: '<title>CourSys</title>', header: {content-type: text/html}")).await;
    well(&result);
    assert_eq!(phases(&result), ["resolve", "connect", "tls", "processing", "transfer"]);
    for (name, wanted) in [
        ("probe_http_status_code", 200.0),
        ("probe_http_content_length", 37.0),
        ("probe_http_uncompressed_body_length", 37.0),
        ("probe_http_ssl", 1.0),
        ("probe_http_version", 1.1),
        ("probe_ip_protocol", 4.0),
        ("probe_failed_due_to_regex", 0.0),
        ("probe_tls_version_info", 1.0),
        ("probe_ssl_earliest_cert_expiry", 2_208_988_800.0),
    ] {
        assert_eq!(value(&result, name), Some(wanted), "{name}");
    }
    assert!(value(&result, "probe_dns_lookup_time_seconds").is_some());
    // nginx writes its log after it has answered.
    let line = format!("coursys.example.org:{} GET / 200 Proctor/", nginx.https);
    eventually(&line, Duration::from_secs(10), || async { nginx.access_log().contains(&line).then_some(()) }).await;
}

#[tokio::test]
async fn what_is_not_the_expected_page_is_said_with_what_was_found() {
    let Some(nginx) = Nginx::start().await else { return };
    nginx.configure("location = /error { return 500; } location = /none { return 204; }");
    nginx.reload().await;
    let port = nginx.https;
    for (path, more, words) in [
        ("/503", "", "expected status 2xx, found 503 Service Temporarily Unavailable; the body begins \"down on purpose\""),
        ("/", "status: [404, 3xx]", "expected status 404 or 3xx, found 200 OK; the body begins \"<!doctype html><title>CourSys</title>\""),
        ("/", "body: Nothing", "expected a body that matches Nothing, found 200 OK"),
        ("/", "not_body: Cour.*</title>", "expected no body that matches Cour.*</title>, found \"CourSys</title>\" in it"),
        ("/", "header: {x-frame-options: DENY}", "expected the header x-frame-options to match DENY, found no such header"),
        ("/", "header: {content-type: json}", "expected the header content-type to match json, found \"text/html\""),
        ("/old", "", "expected status 2xx, found 302 Found to \"https://coursys.example.org"),
        ("/old", "redirect: 'https://elsewhere.example.org/'", "expected a redirect to https://elsewhere.example.org/, found 302"),
        ("/", "redirect: 'https://coursys.example.org/'", "expected status 301 or 302 or 303 or 307 or 308, found 200 OK"),
        // Asked for by another name, the default server answers.
        ("/", "host: elsewhere.example.org", "found 404 Not Found; the body begins \"the default server\""),
    ] {
        let result = ask(&site(&nginx, path, more)).await;
        // nginx says "Temporarily", the name of the status is the standard's.
        failed(&result, Reason::Mismatch, &words.replace("Temporarily ", ""));
        let regex = ["body", "header", "redirect: 'https://elsewhere"].iter().any(|key| more.contains(key));
        let due = value(&result, "probe_failed_due_to_regex");
        assert_eq!(due, Some(f64::from(u8::from(regex))), "{path} {more}");
    }
    for (path, more) in [
        ("/old", format!("redirect: 'https://coursys.example.org:{port}/'")),
        ("/old", format!("redirect: 'https://.*:{port}/'")),
        ("/old", format!("redirect: 'https://coursys.example.org:{port}', status: [302]")),
        ("/none", "method: HEAD, status: [204]".to_owned()),
        ("/error", "status: [5xx]".to_owned()),
    ] {
        well(&ask(&site(&nginx, path, &more)).await);
    }
}

#[tokio::test]
async fn a_redirect_is_never_followed() {
    let Some(nginx) = Nginx::start().await else { return };
    let result = ask(&site(&nginx, "/loop", "")).await;
    failed(&result, Reason::Mismatch, "found 302 Found to");
    // nginx writes its log after it has answered.
    let log =
        eventually("nginx has logged it", Duration::from_secs(5), || async { Some(nginx.access_log()).filter(|log| !log.is_empty()) });
    assert_eq!(log.await.lines().count(), 1, "{}", nginx.access_log());
}

#[tokio::test]
async fn a_certificate_that_is_not_right_is_named_and_measured_and_nothing_is_sent_to_it() {
    let Some(nginx) = Nginx::start().await else { return };
    let before = nginx.access_log();
    let (port, ca) = (nginx.https, nginx.ca_file());
    let named = |name: &str, ca: &str| format!("http: {{url: 'https://{name}:{port}/', connect_to: '127.0.0.1:{port}'{ca}}}");
    let ca = format!(", ca_file: {}", ca.display());
    for (yaml, words) in [(named("elsewhere.example.org", &ca), "elsewhere.example.org"), (named("coursys.example.org", ""), "not valid")] {
        let result = ask(&yaml).await;
        failed(&result, Reason::Certificate, words);
        assert!(value(&result, "probe_ssl_earliest_cert_expiry").is_some(), "an invalid certificate is measured too");
    }
    nginx.swap_certificate(&nginx.authority.issue(&["coursys.example.org"], 2021));
    nginx.reload().await;
    let result = ask(&named("coursys.example.org", &ca)).await;
    failed(&result, Reason::Certificate, "expired");
    assert_eq!(value(&result, "probe_ssl_earliest_cert_expiry"), Some(1_609_459_200.0));
    nginx.swap_certificate(&Authority::new().issue(&["coursys.example.org"], 2040));
    nginx.reload().await;
    failed(&ask(&named("coursys.example.org", &ca)).await, Reason::Certificate, "not valid");
    assert_eq!(nginx.access_log(), before);
}

#[tokio::test]
async fn a_token_comes_from_a_file_and_is_in_no_message() {
    let Some(nginx) = Nginx::start().await else { return };
    nginx.configure(
        r#"location = /token { if ($http_authorization != "Bearer canary-7") { return 401; } return 200 "let in"; } location = /shut { return 403; }"#,
    );
    nginx.reload().await;
    let folder = tempfile::tempdir().expect("a folder can be made");
    let file = folder.path().join("token");
    std::fs::write(&file, "canary-7\n").expect("the folder takes files");
    let mode = |mode| std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("it is ours");
    mode(0o600);
    let bearer = format!("bearer_file: {}", file.display());
    well(&ask(&site(&nginx, "/token", &bearer)).await);
    let result = ask(&site(&nginx, "/shut", &bearer)).await;
    failed(&result, Reason::Mismatch, "403 Forbidden");
    assert!(!format!("{result:?}").contains("canary-7"));
    failed(&ask(&site(&nginx, "/token", "")).await, Reason::Mismatch, "401 Unauthorized");
    mode(0o644);
    let config: ProbeConfig = from_text("f", &site(&nginx, "/token", &bearer)).expect("is right");
    let why = config.plan().err().expect("the file is open to all");
    assert!(why.contains("chmod o-r") && !why.contains("canary"), "{why}");
}

#[tokio::test]
async fn every_kind_of_bad_answer_has_its_reason_within_the_limit() {
    let ok = b"HTTP/1.1 200 OK\r\n".as_slice();
    let gzip = {
        // 8 MiB of zeros in 8 KiB: never unpacked, since no encoding was asked for.
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::Write::write_all(&mut packed, &vec![0; 8 << 20]).expect("memory takes it");
        let packed = packed.finish().expect("memory takes it");
        [ok, format!("Content-Encoding: gzip\r\nContent-Length: {}\r\n\r\n", packed.len()).as_bytes(), &packed].concat()
    };
    let chunked = [ok, b"Transfer-Encoding: chunked\r\n\r\n"].concat();
    let both = [ok, b"Content-Length: 3\r\nContent-Length: 5\r\n\r\nabcde"].concat();
    for (manner, reason, words) in [
        (Manner::Silent, Reason::AnswerTimeout, "connected after"),
        (Manner::Drips(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()), Reason::AnswerTimeout, "waiting for the answer to GET"),
        (Manner::Says(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()), Reason::Protocol, "the answer is not HTTP"),
        (Manner::Says(vec![0xff; 4000]), Reason::Protocol, "the answer is not HTTP"),
        (Manner::Says([ok, b"Content-Length: 100\r\n\r\nhalf"].concat()), Reason::Eof, "before the body of the answer was complete"),
        (Manner::Says(b"HTTP/1.1 200 OK\r\nServ".to_vec()), Reason::Eof, "before the head of the answer was complete"),
        (Manner::Says([chunked.clone(), b"zz\r\n".to_vec()].concat()), Reason::Protocol, "not HTTP"),
        (Manner::Says(both), Reason::Protocol, "not HTTP"),
        (Manner::SaysAndHolds([ok, b"Content-Length: 9\r\n\r\nhalf"].concat()), Reason::AnswerTimeout, "connected after"),
        (Manner::Endless([ok, b"\r\n"].concat()), Reason::TooLarge, "the body of the answer is larger than 1048576 bytes"),
        (Manner::Endless([ok, b"X-Long: "].concat()), Reason::TooLarge, "the head of the answer is larger than"),
        (Manner::Endless(b"HTTP/1.1 200 ".to_vec()), Reason::TooLarge, "the head of the answer is larger than"),
        (Manner::Closes, Reason::Eof, "closed before"),
        (Manner::Resets, Reason::Reset, "broke"),
        (Manner::Says(gzip), Reason::Mismatch, "expected a body that matches CourSys"),
        (Manner::Says(b"HTTP/1.1 418 I'm\r\nContent-Length: 9\r\n\r\na\r\nBcc: x".to_vec()), Reason::Mismatch, "begins \"a Bcc: x\""),
    ] {
        let port = hostile(manner.clone()).await;
        let result = ask_briefly(&format!("http: {{url: 'http://127.0.0.1:{port}/', body: CourSys}}")).await;
        // A reset may overtake what was sent before it, and a close with our request unread is one.
        match (&manner, &result.outcome) {
            (Manner::Closes | Manner::Resets, Err(failure)) if matches!(failure.reason, Reason::Eof | Reason::Reset) => {}
            _ => failed(&result, reason, words),
        }
        assert!(value(&result, "probe_success") == Some(0.0) && phases(&result).starts_with(&["resolve".into(), "connect".into()]));
    }
}

#[tokio::test]
async fn a_flood_of_interim_answers_ends_at_the_limit() {
    let flood = hostile(Manner::SaysAndHolds(b"HTTP/1.1 100 Continue\r\n\r\n".repeat(100_000))).await;
    let result = ask_briefly(&format!("http: {{url: 'http://127.0.0.1:{flood}/'}}")).await;
    failed(&result, Reason::TooLarge, "the head of the answer is larger than");
}

#[tokio::test]
async fn tls_where_none_is_expected_and_the_reverse_are_told_apart() {
    let Some(nginx) = Nginx::start().await else { return };
    let result = ask(&format!("http: {{url: 'https://127.0.0.1:{}/'}}", nginx.http)).await;
    failed(&result, Reason::Tls, "TLS handshake");
    // nginx knows what it is asked and says so.
    let result = ask(&format!("http: {{url: 'http://127.0.0.1:{}/'}}", nginx.https)).await;
    failed(&result, Reason::Mismatch, "400 Bad Request");
    for (manner, reason) in [
        (Manner::Silent, Reason::AnswerTimeout),
        (Manner::Says(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()), Reason::Tls),
        (Manner::Drips(vec![22, 3, 3, 0, 100]), Reason::AnswerTimeout),
        (Manner::Endless(vec![22, 3, 3, 0x3f, 0xff]), Reason::Tls),
    ] {
        let port = hostile(manner).await;
        failed(&ask_briefly(&format!("http: {{url: 'https://127.0.0.1:{port}/'}}")).await, reason, "TLS");
    }
}

/// A port that takes no further connection: its queue is full, so the kernel drops what knocks.
pub(crate) fn black_hole() -> (u16, Vec<std::net::TcpStream>, rustix::fd::OwnedFd) {
    use rustix::net::{AddressFamily, SocketType, bind, listen, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    let port = free_port();
    let address: std::net::SocketAddr = ([127, 0, 0, 1], port).into();
    bind(&socket, &address).expect("the port is free");
    listen(&socket, 0).expect("it listens");
    let mut held = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        held.push(stream);
    }
    (port, held, socket)
}

#[tokio::test]
async fn a_closed_port_a_black_hole_and_a_name_that_is_none_have_their_reasons() {
    let (hole, ..) = &tokio::task::spawn_blocking(black_hole).await.expect("it is full");
    let closed = free_port();
    for kind in ["http: {url: 'http://", "tcp: {address: '"] {
        let result = ask(&format!("{kind}127.0.0.1:{closed}'}}")).await;
        failed(&result, Reason::Refused, &format!("cannot connect to 127.0.0.1:{closed}: Connection refused"));
        let result = ask_briefly(&format!("{kind}127.0.0.1:{hole}'}}")).await;
        failed(&result, Reason::ConnectTimeout, &format!("no answer within 1s500ms: connecting to 127.0.0.1:{hole}"));
        let result = ask(&format!("{kind}no-such-name.invalid:80'}}")).await;
        failed(&result, Reason::Resolve, "no-such-name.invalid");
    }
    let folder = tempfile::tempdir().expect("a folder can be made");
    failed(&ask(&format!("tcp: {{address: 'unix:{}/none'}}", folder.path().display())).await, Reason::Missing, "none");
}

#[tokio::test]
async fn a_tcp_port_is_asked_and_its_answer_expected() {
    let says = |text: &str| hostile(Manner::SaysAndHolds(text.as_bytes().to_vec()));
    let port = says("220 mail.example.org ESMTP\r\n").await;
    for yaml in ["", ", expect: '^220 '", ", send: \"QUIT\\r\\n\", expect: ESMTP"] {
        let result = ask(&format!("tcp: {{address: '127.0.0.1:{port}'{yaml}}}")).await;
        well(&result);
        assert_eq!(value(&result, "probe_ip_protocol"), Some(4.0));
    }
    let expect = "expect: '^220 '";
    for (manner, reason, words) in [
        (Manner::SaysAndHolds(b"554 go away\r\n".to_vec()), Reason::Mismatch, "expected what matches ^220 , found so far \"554 go away\""),
        (Manner::SaysAndHolds(b"22".to_vec()), Reason::AnswerTimeout, "found so far \"22\""),
        (Manner::Drips(b"220 mail".to_vec()), Reason::AnswerTimeout, "found so far \"2"),
        (Manner::Silent, Reason::AnswerTimeout, "waiting for an answer"),
        (
            Manner::Says(b"554 bye".to_vec()),
            Reason::Mismatch,
            "expected an answer that matches ^220 , found \"554 bye\", and the connection was closed",
        ),
        (Manner::Endless(b"554 ".to_vec()), Reason::Mismatch, "larger than 16384 bytes"),
        (Manner::Closes, Reason::Eof, "closed after 0 bytes"),
    ] {
        let port = hostile(manner).await;
        failed(&ask_briefly(&format!("tcp: {{address: '127.0.0.1:{port}', {expect}}}")).await, reason, words);
    }
}

fn nginx_yaml(nginx: &Nginx) -> String {
    let (http, https, ca) = (nginx.http, nginx.https, nginx.ca_file());
    format!(
        "nginx:
  status: http://127.0.0.1:{http}/nginx_status
  sites: ['https://coursys.example.org:{https}/', 'https://coursys.example.org:{https}/loop', 'https://default.example.org:{https}/']
  redirects:
    http://redirect.example.org:{http}/a?b=c: https://coursys.example.org/a?b=c
    http://coursys.example.org:{http}/: https://elsewhere.example.org/
    https://coursys.example.org:{https}/503: https://coursys.example.org/
  address: 127.0.0.1
  ca_file: {}
",
        ca.display()
    )
}

#[tokio::test]
async fn nginx_is_asked_for_its_counters_its_sites_and_its_redirects() {
    let Some(nginx) = Nginx::start().await else { return };
    let yaml = nginx_yaml(&nginx);
    let (http, https) = (nginx.http, nginx.https);
    let ask = async |name: &str| ask_target(&yaml, Some(name), Duration::from_secs(5)).await;

    let result = ask("status").await;
    well(&result);
    for name in ["nginx_up", "nginx_connections_active", "nginx_connections_writing", "nginx_http_requests_total"] {
        assert!(value(&result, name).is_some_and(|value| value >= 1.0), "{name} in {:?}", result.samples);
    }
    assert_eq!(value(&result, "nginx_connections_accepted"), value(&result, "nginx_connections_handled"));

    well(&ask(&format!("https://coursys.example.org:{https}/")).await);
    failed(&ask(&format!("https://coursys.example.org:{https}/loop")).await, Reason::Mismatch, "redirects to itself");
    // A site whose server block is gone is answered by the default server.
    failed(&ask(&format!("https://default.example.org:{https}/")).await, Reason::Mismatch, "404 Not Found");
    well(&ask(&format!("http://redirect.example.org:{http}/a?b=c")).await);
    let wrong = ask(&format!("http://coursys.example.org:{http}/")).await;
    failed(&wrong, Reason::Mismatch, "expected a redirect to https://elsewhere.example.org/, found 301 Moved Permanently to");
    failed(&ask(&format!("https://coursys.example.org:{https}/503")).await, Reason::Mismatch, "503 Service Unavailable");

    nginx.configure("server_tokens off;");
    nginx.reload().await;
    well(&ask("status").await);
}

#[tokio::test]
async fn an_nginx_that_is_frozen_or_dead_is_told_apart_and_its_way_back_is_seen() {
    let Some(mut nginx) = Nginx::start().await else { return };
    let yaml = nginx_yaml(&nginx);
    let page = format!("https://coursys.example.org:{}/", nginx.https);
    nginx.process.signal("STOP");
    for name in ["status", &page] {
        let result = ask_target(&yaml, Some(name), Duration::from_millis(1000)).await;
        failed(&result, Reason::AnswerTimeout, "connected after");
        assert_eq!(value(&result, "nginx_up"), (name == "status").then_some(0.0));
    }
    nginx.process.signal("CONT");
    well(&ask_target(&yaml, Some("status"), Duration::from_secs(5)).await);
    nginx.process.kill();
    // The kernel resets what was in its queue while the socket dies: only then is the port closed.
    eventually("the port is closed", Duration::from_secs(5), async || {
        let refused = tokio::net::TcpStream::connect(("127.0.0.1", nginx.http)).await.err()?;
        (refused.kind() == std::io::ErrorKind::ConnectionRefused).then_some(())
    })
    .await;
    let result = refused(&yaml, Some("status")).await;
    assert_eq!((value(&result, "nginx_up"), value(&result, "nginx_connections_active")), (Some(0.0), None));
    nginx.restart().await;
    well(&ask_target(&yaml, Some("status"), Duration::from_secs(5)).await);
}

#[tokio::test]
async fn a_stub_status_that_is_missing_or_shut_says_what_nginx_needs() {
    let Some(nginx) = Nginx::start().await else { return };
    nginx.configure("location = /shut { deny all; }");
    nginx.reload().await;
    let status = |url: String| format!("nginx: {{status: '{url}', ca_file: {}}}", nginx.ca_file().display());
    let result = ask_target(&status(format!("http://127.0.0.1:{}/none", nginx.http)), Some("status"), Duration::from_secs(5)).await;
    failed(&result, Reason::Missing, "location = /nginx_status { stub_status;");
    let page = hostile(Manner::Says(b"HTTP/1.1 200 OK\r\n\r\nActive connections: many".to_vec())).await;
    let result = ask_target(&status(format!("http://127.0.0.1:{page}/")), Some("status"), Duration::from_secs(5)).await;
    failed(&result, Reason::Protocol, "expected stub_status, found 200 OK; the body begins \"Active connections: many\"");
}

fn gunicorn_yaml(gunicorn: &Gunicorn) -> String {
    format!("gunicorn: {{listen: '{}', host_header: coursys.example.org}}", gunicorn.listen)
}

/// Sends slow requests: three keep all workers busy, the others wait.
async fn slow(gunicorn: &Gunicorn, requests: usize) -> Vec<Box<dyn Connection>> {
    let mut held = Vec::new();
    for _ in 0..requests {
        // A full queue turns one away until the workers have taken theirs.
        held.push(eventually("a place is free", Duration::from_secs(10), async || gunicorn.ask("/slow?s=60").await.ok()).await);
    }
    held
}

/// The same over TCP and over a socket in the file system.
async fn seven_slow_requests(gunicorn: &Gunicorn) {
    let yaml = gunicorn_yaml(gunicorn);
    let result = ask(&yaml).await;
    well(&result);
    assert_eq!((value(&result, "gunicorn_accept_queue"), value(&result, "gunicorn_accept_queue_max")), (Some(0.0), Some(5.0)));
    assert_eq!((value(&result, "gunicorn_up"), value(&result, "probe_http_status_code")), (Some(1.0), Some(200.0)));
    assert_eq!(result.sight, Sight::Full);

    let held = slow(gunicorn, 7).await;
    let result = ask_briefly(&yaml).await;
    assert!(value(&result, "gunicorn_accept_queue").is_some_and(|waiting| waiting >= 4.0), "{:?}", result.samples);
    failed(&result, Reason::Saturated, "all workers are busy or stand still");
    assert_eq!((value(&result, "gunicorn_accept_queue_max"), value(&result, "gunicorn_up")), (Some(5.0), Some(0.0)));
    // A look at the port alone sees nothing of it.
    let port = format!("tcp: {{address: '{}'}}", gunicorn.listen);
    eventually("the port opens", Duration::from_secs(10), || async { ask(&port).await.outcome.ok() }).await;
    // Now it is full. What knocks is turned away at once, or is not let in.
    eventually("the queue is full", Duration::from_secs(10), || async {
        let result = ask_briefly(&yaml).await;
        failed(&result, Reason::Saturated, "all workers are busy or stand still");
        matches!(&result.outcome, Err(failure) if failure.detail.contains("accept queue is full")).then_some(())
    })
    .await;
    drop(held);
}

#[tokio::test]
async fn seven_slow_requests_on_three_gunicorn_workers_raise_the_accept_queue_while_the_port_still_opens() {
    let Some(mut gunicorn) = Gunicorn::tcp().await else { return };
    seven_slow_requests(&gunicorn).await;
    gunicorn.restart(&[]).await;
    well(&ask(&gunicorn_yaml(&gunicorn)).await);
}

#[tokio::test]
async fn the_accept_queue_of_a_unix_socket_is_seen_too() {
    let Some(gunicorn) = Gunicorn::unix().await else { return };
    seven_slow_requests(&gunicorn).await;
}

#[tokio::test]
async fn one_busy_round_of_all_workers_is_saturation_although_nobody_waited_before_us() {
    let Some(gunicorn) = Gunicorn::tcp().await else { return };
    let _held = slow(&gunicorn, 3).await;
    eventually("all three are taken", Duration::from_secs(10), || async {
        let result = ask_briefly(&gunicorn_yaml(&gunicorn)).await;
        let own = "connected after";
        matches!(&result.outcome, Err(failure) if failure.reason == Reason::Saturated && failure.detail.contains(own)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn any_answer_means_that_gunicorn_lives_and_django_mails_nobody() {
    let Some(gunicorn) = Gunicorn::tcp().await else { return };
    let yaml = |more: &str| format!("gunicorn: {{listen: '{}', host_header: coursys.example.org{more}}}", gunicorn.listen);
    for (more, status) in [("", 200.0), (", path: /none", 404.0), (", forwarded_proto: http", 301.0), (", path: /healthcheck", 200.0)] {
        let result = ask(&yaml(more)).await;
        well(&result);
        assert_eq!(value(&result, "probe_http_status_code"), Some(status), "{more}");
    }
    assert_eq!(gunicorn.mails(), 0);
    assert!(!gunicorn.log().contains("DisallowedHost"), "{}", gunicorn.log());
    // gunicorn writes its log after it has answered.
    let line = "ACCESS GET coursys.example.org/ 200 Proctor/";
    eventually(line, Duration::from_secs(10), || async { gunicorn.log().contains(line).then_some(()) }).await;
    // What the site's own name is for: the same with another one is mailed by Django. So is the failure of a page.
    well(&ask(&format!("gunicorn: {{listen: '{}', host_header: other.example.org}}", gunicorn.listen)).await);
    eventually("Django mails about the other name", Duration::from_secs(10), || async { (gunicorn.mails() > 0).then_some(()) }).await;
    let result = ask(&yaml(", path: /error")).await;
    well(&result);
    assert_eq!((value(&result, "probe_http_status_code"), value(&result, "gunicorn_up")), (Some(500.0), Some(1.0)));
}

#[tokio::test]
async fn a_gunicorn_that_is_frozen_dead_or_another_program_has_its_reason() {
    let Some(mut gunicorn) = Gunicorn::tcp().await else { return };
    let yaml = gunicorn_yaml(&gunicorn);
    gunicorn.process.signal("STOP");
    failed(&ask_briefly(&yaml).await, Reason::Saturated, "all workers are busy or stand still");
    gunicorn.process.signal("CONT");
    well(&ask(&yaml).await);
    gunicorn.process.kill();
    let result = refused(&yaml, None).await;
    assert_eq!((value(&result, "gunicorn_up"), value(&result, "gunicorn_accept_queue")), (Some(0.0), None));
    assert_eq!(result.sight, Sight::Full, "a dead gunicorn is no question of what we may see");
    for (manner, reason, words) in [
        (Manner::Says(b"220 mail ESMTP\r\n".to_vec()), Reason::Protocol, "the answer is not HTTP"),
        (Manner::Closes, Reason::Eof, ""),
        (Manner::Silent, Reason::AnswerTimeout, "a worker took the request"),
        (Manner::Endless(b"HTTP/1.1 200 OK\r\nX: ".to_vec()), Reason::TooLarge, "the head of the answer"),
    ] {
        let port = hostile(manner).await;
        let result = ask_briefly(&format!("gunicorn: {{listen: '127.0.0.1:{port}', host_header: a.example}}")).await;
        match &result.outcome {
            Err(failure) if reason == Reason::Eof && failure.reason == Reason::Reset => {}
            _ => failed(&result, reason, words),
        }
    }
    // The head is an answer, whatever becomes of the body.
    for manner in
        [Manner::Endless(b"HTTP/1.1 500 x\r\n\r\n".to_vec()), Manner::Says(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx".to_vec())]
    {
        let port = hostile(manner).await;
        well(&ask_briefly(&format!("gunicorn: {{listen: '127.0.0.1:{port}', host_header: a.example}}")).await);
    }
}

#[tokio::test]
async fn the_healthcheck_of_the_site_names_the_database_that_does_not_answer() {
    let Some(mut gunicorn) = Gunicorn::tcp().await else { return };
    let closed = free_port();
    gunicorn.restart(&[("SITE_DB", &format!("127.0.0.1:{closed}"))]).await;
    let yaml = format!("http: {{url: 'http://coursys.example.org/healthcheck', connect_to: '{}', body: okay}}", gunicorn.listen);
    failed(&ask(&yaml).await, Reason::Mismatch, "expected status 2xx, found 503 Service Unavailable; the body begins \"database: ");
    well(&ask(&gunicorn_yaml(&gunicorn)).await);
}
