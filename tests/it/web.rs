//! Who may read what is served over HTTP, and what the status page says; over real connections.

use std::path::Path;
use std::process::Command as Program;
use std::sync::Arc;
use std::time::Duration;

use proctor::metrics::Metrics;
use proctor::model::decode::{Documented, from_text};
use proctor::model::{Family, ProbeResult, Sample, Sight, Target};
use proctor::snapshot::Snapshot;
use proctor::tasks::{self, Tasks};
use proctor::web::access::{Access, AccessConfig, Gate, HttpServerConfig, RateLimit, TlsConfig};
use proctor::web::{self, Pages, Status, WebConfig};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::nginx::Authority;
use crate::support::process::{eventually, free_port};
use crate::support::proctor::Proctor;
use crate::support::smtp::Sink;

const LONG: Duration = Duration::from_secs(60);
static SIZE: Family = Family::gauge("size", "Something");

struct Site {
    port: u16,
    metrics: Arc<Metrics>,
    access: Access,
    tasks: Tasks,
}

/// Serves with this section `web` and so many series.
async fn site(config: &str, series: usize) -> Site {
    let metrics = Arc::new(Metrics::new());
    let snapshot = Snapshot::new(metrics.clone());
    let target = Arc::new(Target {
        probe: "web".into(),
        target: None,
        kind: "tcp",
        interval: Duration::from_secs(3600),
        timeout: Duration::from_secs(5),
        depends_on: Arc::new([]),
    });
    snapshot.announce(std::slice::from_ref(&target));
    let sample = |n: usize| Sample { family: &SIZE, labels: vec![("n", n.to_string().into())], value: 1.0 };
    snapshot.accept(&ProbeResult {
        target,
        at: tasks::now(),
        duration: Duration::ZERO,
        outcome: Ok(()),
        samples: (0..series).map(sample).collect(),
        sight: Sight::Full,
        evidence: Vec::new(),
    });
    let pages = Pages {
        inbox: Arc::new(|_| None),
        carry: Arc::new(|_, _| Box::pin(async { Err("nothing is changed here".to_owned()) })),
        snapshot,
        ready: Arc::new(|| Ok(())),
        status: Arc::new(|| Status { site: "coursys".to_owned(), ..Status::default() }),
    };
    let config: WebConfig = from_text("test", &format!("{{listen: '127.0.0.1:0', {config}}}")).expect("is right");
    let gate = Gate::load(&config, Some("https://status.example.org/proctor"), proctor::config::read).expect("is right");
    let (access, tasks) = (Access::new(gate, proctor::config::read), Tasks::new());
    let port = web::start(&config, pages, access.clone(), metrics.clone(), &tasks).await.expect("a port is free").port();
    Site { port, metrics, access, tasks }
}

pub(crate) async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> std::io::Result<String> {
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // A server may end TLS without a word.
    let read = stream.read_to_end(&mut answer).await;
    if answer.is_empty() {
        read?;
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Sends a request over plain HTTP.
async fn ask(port: u16, method: &str, path: &str, headers: &str) -> String {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
    let request = format!("{method} {path} HTTP/1.1\r\n{headers}Connection: close\r\nContent-Length: 0\r\n\r\n");
    exchange(stream, &request).await.expect("it answers")
}

pub(crate) fn code(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

/// Makes a client of TLS that trusts one authority, with a certificate of its own where it has one, and speaks what is named.
fn tls(authority: &str, own: Option<&(String, String)>, provider: rustls::crypto::CryptoProvider) -> tokio_rustls::TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).expect("is PEM")).expect("is an authority");
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("are known")
        .with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let cert = CertificateDer::from_pem_slice(cert.as_bytes()).expect("is PEM");
            builder.with_client_auth_cert(vec![cert], PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("is PEM")).expect("fits")
        }
    };
    tokio_rustls::TlsConnector::from(Arc::new(config))
}

/// Sends a whole request over TLS.
pub(crate) async fn exchange_tls(port: u16, connector: tokio_rustls::TlsConnector, request: &str) -> std::io::Result<String> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = ServerName::try_from("localhost").expect("is a name");
    exchange(connector.connect(name, stream).await?, request).await
}

/// Makes a client of TLS that trusts one authority.
pub(crate) fn trusting(authority: &str) -> tokio_rustls::TlsConnector {
    tls(authority, None, rustls::crypto::ring::default_provider())
}

/// Asks for a page over TLS, trusting one authority, with a certificate of the client's own where it has one.
async fn ask_tls(port: u16, authority: &str, own: Option<&(String, String)>, path: &str, headers: &str) -> std::io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n");
    exchange_tls(port, tls(authority, own, rustls::crypto::ring::default_provider()), &request).await
}

pub(crate) fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    format!("Authorization: Basic {}\r\n", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

/// Writes a file at once: a Proctor that looks at it meanwhile never finds half of it.
pub(crate) fn write(path: &Path, text: &str, mode: u32) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("can be written");
    std::fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("can be set");
    std::fs::rename(&new, path).expect("can be renamed");
}

/// Writes a certificate for localhost and its key.
pub(crate) fn certify(folder: &Path, authority: &Authority) {
    let (cert, key) = authority.issue_for(&["localhost"], (-1.0, 30.0));
    write(&folder.join("key.pem"), &key, 0o600);
    write(&folder.join("cert.pem"), &cert, 0o644);
}

#[tokio::test]
async fn a_name_that_leads_here_is_not_enough_and_a_page_elsewhere_may_only_link_here() {
    let site = site("hosts: [proctor.example.org]", 1).await;
    for (host, wanted) in [
        ("127.0.0.1:9797", "200"),
        ("localhost", "200"),
        ("proctor.example.org", "200"),
        ("status.example.org:443", "200"),
        ("evil.example", "403"),
        ("evil.example:9797", "403"),
        ("", "403"),
    ] {
        let answer = ask(site.port, "GET", "/", &format!("Host: {host}\r\n")).await;
        assert_eq!(code(&answer), wanted, "{host}: {answer}");
        assert!(answer.contains("x-frame-options: DENY") && answer.contains("content-security-policy: default-src 'none'"), "{answer}");
    }
    let refused = ask(site.port, "GET", "/", "Host: evil.example\r\n").await;
    assert!(refused.ends_with("this Proctor is not known as \"evil.example\": if it should be, add the name to web.hosts\n"), "{refused}");
    for path in ["/metrics", "/-/healthy", "/-/ready"] {
        assert_eq!(code(&ask(site.port, "GET", path, "Host: evil.example\r\nSec-Fetch-Site: cross-site\r\n").await), "200", "{path}");
    }
    let ours = "Host: localhost\r\n";
    for (method, path, headers, wanted) in [
        ("GET", "/", "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n", "200"),
        ("GET", "/", "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: image\r\n", "403"),
        ("GET", "/", "Sec-Fetch-Site: same-origin\r\n", "200"),
        ("POST", "/heartbeat/backup", "Sec-Fetch-Site: cross-site\r\n", "403"),
        ("POST", "/heartbeat/backup", "Sec-Fetch-Site: same-site\r\n", "403"),
        ("POST", "/heartbeat/backup", "Origin: https://evil.example\r\n", "403"),
        ("POST", "/heartbeat/backup", "Origin: null\r\n", "403"),
        // Those reach the token, which is wrong.
        ("POST", "/heartbeat/backup", "", "401"),
        ("POST", "/heartbeat/backup", "Origin: http://localhost\r\n", "401"),
        ("POST", "/", "", "405"),
    ] {
        let answer = ask(site.port, method, path, &format!("{ours}{headers}")).await;
        assert_eq!(code(&answer), wanted, "{method} {path} {headers}: {answer}");
        assert!(answer.contains("x-content-type-options: nosniff"), "{answer}");
    }
}

#[tokio::test]
async fn passwords_are_asked_for_over_tls_on_loopback_too_and_guessing_ends_after_ten() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new();
    certify(folder.path(), &authority);
    let hash = bcrypt::hash("right", 4).expect("is hashed");
    let file = folder.path().join("web.yml");
    let text = format!(
        "tls_server_config: {{cert_file: cert.pem, key_file: key.pem, min_version: TLS13}}\n\
         http_server_config: {{headers: {{Strict-Transport-Security: max-age=31536000, X-Frame-Options: SAMEORIGIN}}}}\n\
         basic_auth_users: {{prometheus: '{hash}'}}\n"
    );
    write(&file, &text, 0o600);
    let site = site(&format!("config_file: {}", file.display()), 1).await;
    let get = |path: &'static str, headers: String| {
        let (authority, port) = (authority.pem.clone(), site.port);
        async move { ask_tls(port, &authority, None, path, &headers).await.expect("it answers") }
    };
    for path in ["/", "/metrics", "/nowhere"] {
        let answer = get(path, String::new()).await;
        assert_eq!(code(&answer), "401", "{path}: {answer}");
        assert!(answer.contains("www-authenticate: Basic realm=\"Proctor\""), "{answer}");
        assert!(
            answer.contains("strict-transport-security: max-age=31536000") && answer.contains("x-frame-options: SAMEORIGIN"),
            "{answer}"
        );
    }
    assert_eq!(code(&get("/-/healthy", String::new()).await), "200");
    assert!(get("/metrics", basic("prometheus", "right")).await.contains("size{probe=\"web\""));
    for _ in 0..10 {
        assert_eq!(code(&get("/", basic("prometheus", "wrong")).await), "401");
    }
    let answer = get("/", basic("nobody", "right")).await;
    assert_eq!(code(&answer), "429", "{answer}");
    assert!(answer.contains("retry-after: 60"), "{answer}");
    assert_eq!(code(&get("/", basic("prometheus", "right")).await), "200", "who was right before is let in");
    // Plain HTTP gets nothing, and nobody who does not trust the authority.
    let plain = TcpStream::connect(("127.0.0.1", site.port)).await.expect("it listens");
    let answer = exchange(plain, "GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap_or_default();
    assert!(!answer.contains("HTTP/1.1"), "{answer}");
    ask_tls(site.port, &Authority::new().pem, None, "/", "").await.expect_err("another authority");
}

#[tokio::test]
async fn a_renewed_certificate_and_a_changed_password_are_taken_without_a_restart_and_a_broken_file_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let (old, new) = (Authority::named("old"), Authority::named("new"));
    certify(folder.path(), &old);
    let file = folder.path().join("web.yml");
    let with = |users: &str| format!("tls_server_config: {{cert_file: cert.pem, key_file: key.pem}}\n{users}");
    write(&file, &with(""), 0o600);
    let site = site(&format!("config_file: {}", file.display()), 1).await;
    let get = |authority: &Authority, headers: String| {
        let authority = authority.pem.clone();
        async move { ask_tls(site.port, &authority, None, "/", &headers).await.ok().map(|answer| code(&answer).to_owned()) }
    };
    assert_eq!(get(&old, String::new()).await.as_deref(), Some("200"));
    certify(folder.path(), &new);
    eventually("the renewed certificate is served", LONG, || async { get(&new, String::new()).await }).await;
    write(&file, &with(&format!("basic_auth_users: {{ann: '{}'}}\n", bcrypt::hash("pw", 4).expect("is hashed"))), 0o600);
    eventually("a password is asked for", LONG, || async { get(&new, String::new()).await.filter(|code| code == "401") }).await;
    write(&file, &with("basic_auth_users: {ann: 'pw'}\n"), 0o600);
    let stale = eventually("the broken file is noticed", LONG, || async { site.access.stale() }).await;
    assert_eq!(stale.to_string(), format!("{}:2:25", file.display()));
    assert_eq!(get(&new, String::new()).await.as_deref(), Some("401"), "the one of before stays in force");
    assert_eq!(get(&new, basic("ann", "pw")).await.as_deref(), Some("200"));
    write(&file, &with(""), 0o600);
    eventually("no password is asked for", LONG, || async { get(&new, String::new()).await.filter(|code| code == "200") }).await;
    assert!(site.access.stale().is_none());
}

#[tokio::test]
async fn a_client_without_a_certificate_of_the_named_authority_is_not_let_in() {
    let folder = tempfile::tempdir().expect("a folder");
    let (authority, clients) = (Authority::new(), Authority::named("clients"));
    certify(folder.path(), &authority);
    write(&folder.path().join("clients.pem"), &clients.pem, 0o644);
    let file = folder.path().join("web.yml");
    let keys = "cert_file: cert.pem, key_file: key.pem, client_auth_type: RequireAndVerifyClientCert, client_ca_file: clients.pem";
    write(&file, &format!("tls_server_config: {{{keys}}}\n"), 0o600);
    let site = site(&format!("config_file: {}", file.display()), 1).await;
    let own = clients.issue_for(&["prometheus"], (-1.0, 30.0));
    let stranger = Authority::named("others").issue_for(&["prometheus"], (-1.0, 30.0));
    assert_eq!(code(&ask_tls(site.port, &authority.pem, Some(&own), "/metrics", "").await.expect("it is let in")), "200");
    for other in [None, Some(&stranger)] {
        let answer = ask_tls(site.port, &authority.pem, other, "/metrics", "").await;
        assert!(answer.as_ref().is_err() || answer.as_ref().is_ok_and(String::is_empty), "{answer:?}");
    }
}

#[tokio::test]
async fn of_the_clients_of_an_authority_only_those_are_let_in_that_have_a_name_of_the_list() {
    let folder = tempfile::tempdir().expect("a folder");
    let (authority, clients) = (Authority::new(), Authority::named("clients"));
    certify(folder.path(), &authority);
    write(&folder.path().join("clients.pem"), &clients.pem, 0o644);
    let file = folder.path().join("web.yml");
    let keys = "cert_file: cert.pem, key_file: key.pem, client_auth_type: RequireAndVerifyClientCert, client_ca_file: clients.pem, \
                client_allowed_sans: [prometheus.example.org, 10.1.2.3, '2001:db8::1']";
    write(&file, &format!("tls_server_config: {{{keys}}}\n"), 0o600);
    let site = site(&format!("config_file: {}", file.display()), 1).await;
    for (names, wanted) in [
        (&["prometheus.example.org"][..], true),
        (&["other.example.org", "10.1.2.3"], true),
        (&["2001:db8::1"], true),
        // Letter by letter: no wildcard, no case, no part.
        (&["*.example.org"], false),
        (&["Prometheus.example.org"], false),
        (&["example.org", "10.1.2.4"], false),
    ] {
        let own = clients.issue_for(names, (-1.0, 30.0));
        let answer = ask_tls(site.port, &authority.pem, Some(&own), "/metrics", "").await;
        assert_eq!(answer.as_ref().is_ok_and(|answer| code(answer) == "200"), wanted, "{names:?}: {answer:?}");
    }
    // The name alone is not enough.
    let stranger = Authority::named("others").issue_for(&["prometheus.example.org"], (-1.0, 30.0));
    for other in [None, Some(&stranger)] {
        let answer = ask_tls(site.port, &authority.pem, other, "/metrics", "").await;
        assert!(answer.as_ref().is_err() || answer.as_ref().is_ok_and(String::is_empty), "{answer:?}");
    }
}

#[tokio::test]
async fn of_tls_12_only_the_named_cipher_suites_are_spoken_and_of_tls_13_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new();
    certify(folder.path(), &authority);
    let file = folder.path().join("web.yml");
    let keys = "cert_file: cert.pem, key_file: key.pem, cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, TLS_AES_128_GCM_SHA256]";
    write(&file, &format!("tls_server_config: {{{keys}}}\n"), 0o600);
    let site = site(&format!("config_file: {}", file.display()), 1).await;
    for (suite, wanted) in [
        (rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, true),
        (rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, false),
        (rustls::CipherSuite::TLS13_AES_128_GCM_SHA256, true),
        (rustls::CipherSuite::TLS13_AES_256_GCM_SHA384, true),
    ] {
        let mut provider = rustls::crypto::ring::default_provider();
        provider.cipher_suites.retain(|known| known.suite() == suite);
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let answer = exchange_tls(site.port, tls(&authority.pem, None, provider), request).await;
        assert_eq!(answer.as_ref().is_ok_and(|answer| code(answer) == "200"), wanted, "{suite:?}: {answer:?}");
    }
}

#[tokio::test]
async fn more_requests_than_the_limit_get_429_from_whomever_but_health_and_the_reports_of_jobs_do_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("web.yml");
    write(&file, "rate_limit: {interval: 1h, burst: 3}\n", 0o600);
    let site = site(&format!("config_file: {}", file.display()), 1).await;
    let host = "Host: localhost\r\n";
    let mut codes = Vec::new();
    for path in ["/metrics", "/", "/nowhere", "/metrics", "/"] {
        codes.push(code(&ask(site.port, "GET", path, host).await).to_owned());
    }
    assert_eq!(codes, ["200", "200", "404", "429", "429"]);
    let refused = ask(site.port, "GET", "/", host).await;
    assert!(refused.contains("retry-after: 3600") && refused.ends_with("more requests than the rate_limit of web.config_file lets in\n"));
    assert_eq!(code(&ask(site.port, "GET", "/-/healthy", host).await), "200");
    assert_eq!(code(&ask(site.port, "POST", "/heartbeat/backup", host).await), "401");
    // Without a restart, as everything of that file.
    write(&file, "rate_limit: {interval: 0s, burst: 3}\n", 0o600);
    eventually("no limit", LONG, || async { (code(&ask(site.port, "GET", "/", host).await) == "200").then_some(()) }).await;
}

#[test]
fn the_example_of_the_file_is_right_and_names_every_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/web.example.yml");
    let text = std::fs::read_to_string(&path).expect("is there");
    from_text::<AccessConfig>(&path, &text).unwrap_or_else(|problems| panic!("{problems:?}"));
    for key in AccessConfig::KEYS.iter().chain(TlsConfig::KEYS).chain(HttpServerConfig::KEYS).chain(RateLimit::KEYS) {
        let names = |line: &str| line.trim_start_matches([' ', '#']).starts_with(&format!("{}:", key.name));
        assert!(text.lines().any(names), "the example does not name {}", key.name);
    }
}

#[test]
fn config_check_names_every_mistake_of_the_file_and_shows_no_password() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("proctor.yml");
    std::fs::write(&path, format!("web: {{config_file: {}/web.yml}}\n", folder.path().display())).expect("can be written");
    let authority = Authority::new();
    certify(folder.path(), &authority);
    let check = |text: &str| {
        std::fs::write(folder.path().join("web.yml"), text).expect("can be written");
        let output = Program::new(env!("CARGO_BIN_EXE_proctor")).args(["config", "check"]).arg(&path).output().expect("it runs");
        let told = String::from_utf8_lossy(&output.stderr).replace(&format!("{}/", folder.path().display()), "");
        (output.status.code(), told)
    };
    assert_eq!(check("tls_server_config: {cert_file: cert.pem, key_file: key.pem}\nhttp_server_config: {http2: true}\n").0, Some(0));
    let (exit, told) = check(
        "tls_server_config:\n  cert_fiel: cert.pem\n  key_file: key.pem\n  min_version: TLS10\n  client_auth_type: RequestClientCert\n\
         http_server_config:\n  headers: {Server: x}\nbasic_auth_users:\n  ann: hunter2secret\n  bob: $2y$17$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi\n",
    );
    assert_eq!(exit, Some(1), "{told}");
    assert!(!told.contains("hunter2"), "{told}");
    insta::assert_snapshot!(told);
    let mut told = String::new();
    write(&folder.path().join("open.pem"), "x", 0o644);
    for keys in [
        "cert_file: nowhere.pem, key_file: key.pem",
        "cert_file: cert.pem, key_file: open.pem",
        "cert_file: key.pem, key_file: key.pem",
        "cert_file: cert.pem, key_file: key.pem, client_auth_type: RequireAndVerifyClientCert",
        "cert_file: cert.pem, key_file: key.pem, client_ca_file: cert.pem",
        "cert_file: cert.pem, key_file: key.pem, min_version: TLS13, max_version: TLS12",
        "cert_file: cert.pem, key_file: key.pem, client_allowed_sans: [a]",
        "cert_file: cert.pem, key_file: key.pem, client_auth_type: RequireAndVerifyClientCert, client_ca_file: cert.pem, client_allowed_sans: []",
        "cert_file: cert.pem, key_file: key.pem, cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]",
        "cert_file: cert.pem, key_file: key.pem}, rate_limit: {interval: 1s, burst: 0",
        "cert_file: cert.pem, key_file: key.pem}, rate_limit: {interval: 2h, burst: 5",
    ] {
        let (exit, line) = check(&format!("{{tls_server_config: {{{keys}}}}}\n"));
        assert_eq!(exit, Some(1), "{line}");
        told += line.lines().next().unwrap_or_default();
        told += "\n";
    }
    let (_, key) = authority.issue_for(&["localhost"], (-1.0, 30.0));
    write(&folder.path().join("other.pem"), &key, 0o600);
    told += check("tls_server_config: {cert_file: cert.pem, key_file: other.pem}\n").1.lines().next().unwrap_or_default();
    insta::assert_snapshot!(told.replace(&format!("{}/", folder.path().display()), ""));
}

#[tokio::test]
async fn who_reads_nothing_is_closed_and_so_is_who_never_ends_the_handshake() {
    let site = site("hosts: []", 20_000).await;
    let mut slow = TcpStream::connect(("127.0.0.1", site.port)).await.expect("it listens");
    // About 1 MB each: far more than any buffer between the two.
    slow.write_all("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100).as_bytes()).await.expect("it reads");
    eventually("it is served", LONG, || async { (site.metrics.http_connections.get() == 1).then_some(()) }).await;
    eventually("a client that takes nothing is closed", LONG, || async { (site.metrics.http_connections.get() == 0).then_some(()) }).await;

    let folder = tempfile::tempdir().expect("a folder");
    certify(folder.path(), &Authority::new());
    let file = folder.path().join("web.yml");
    write(&file, "tls_server_config: {cert_file: cert.pem, key_file: key.pem}\n", 0o600);
    let site = self::site(&format!("config_file: {}", file.display()), 1).await;
    let mut silent = Vec::new();
    for bytes in [&b""[..], b"\x16\x03\x01", b"GET / HTTP/1.1\r\n"] {
        let mut stream = TcpStream::connect(("127.0.0.1", site.port)).await.expect("it listens");
        stream.write_all(bytes).await.expect("it reads");
        silent.push(stream);
    }
    for mut stream in silent {
        let mut rest = Vec::new();
        // That it ends is what counts: by a close or by a reset.
        tokio::time::timeout(LONG, stream.read_to_end(&mut rest)).await.expect("it is closed").ok();
    }
    assert!(site.tasks.stop(Duration::from_secs(5)).await.is_empty());
}

const HOSTILE: &str = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}";

/// Reads the page from its `<body>` on, once it contains a text.
async fn page(proctor: &Proctor, contains: &str) -> String {
    eventually(&format!("the page says {contains}"), LONG, || async {
        let page = proctor.get("/").await?;
        let body = page.split_once("<body>")?.1.to_owned();
        body.contains(contains).then_some(body)
    })
    .await
}

#[tokio::test]
async fn the_page_names_the_root_before_what_it_takes_down_and_shows_hostile_texts_as_texts() {
    let sink = Sink::start().await;
    let (closed, folder) = (free_port(), tempfile::tempdir().expect("a folder"));
    let token = folder.path().join("token");
    write(&token, "0123456789abcdef\n", 0o600);
    let script = folder.path().join("hostile");
    write(&script, &format!("#!/bin/sh\ncat <<'END'\n{HOSTILE}\nEND\nexit 1\n"), 0o755);
    let sections = format!(
        "probes:\n  aaa-child: {{tcp: {{address: '127.0.0.1:{closed}'}}, depends_on: [root]}}\n  root: {{tcp: {{address: '127.0.0.1:{closed}'}}}}\n  \
         quota: {{command: {{argv: [{}]}}, interval: 5s, timeout: 5s}}\n  fine: {{command: {{argv: [/bin/true]}}, interval: 5s, timeout: 5s}}\n  \
         site: {{heartbeat: {{every: 1h, token_file: {}}}}}\n",
        script.display(),
        token.display()
    );
    let proctor = Proctor::configured(sink.port, &sections).rules(&[("Down", "probe_success == 0")]).started();
    let body = page(&proctor, "3 alerts fire").await;
    let place = |text: &str| body.find(text).unwrap_or_else(|| panic!("{text} in {body}"));
    assert!(body.contains("3 of 5 targets fail: root, quota"), "{body}");
    assert!(
        place("<h3>root</h3>") < place("Needs it and fails too") && place("Needs it and fails too") < place("<b>aaa-child</b>"),
        "{body}"
    );
    assert!(!body.contains("<h3>aaa-child</h3>"), "what it takes down is no root: {body}");

    // The site's own checks are pushed.
    let checks =
        serde_json::json!([{"name": HOSTILE, "ok": false, "text": HOSTILE}, {"name": "database", "ok": true, "text": ""}]).to_string();
    let stream = TcpStream::connect(("127.0.0.1", proctor.web)).await.expect("it listens");
    let request = format!(
        "POST /heartbeat/site HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer 0123456789abcdef\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{checks}",
        checks.len()
    );
    assert_eq!(code(&exchange(stream, &request).await.expect("it answers")), "200");
    let body = page(&proctor, "<td class=\"n\">database</td>").await;
    for row in ["<td class=\"n\">fine</td>", "<td class=\"n\">quota</td>"] {
        assert!(body.contains(row), "{row} in {body}");
    }

    // Who cares for it is said, and what is muted.
    for args in
        [&["silence", "add", "--for", "1h", "--comment", HOSTILE, "probe=quota"][..], &["alert", "ack", "--comment", HOSTILE, "probe=root"]]
    {
        let output = proctor.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let body = page(&proctor, "acknowledged by").await;
    assert!(body.contains("silenced by"), "{body}");

    // A refused reload is shown, by its places alone.
    let config = std::fs::read_to_string(proctor.config()).expect("is there");
    std::fs::write(proctor.config(), format!("{config}secret-typo: hunter2\n")).expect("can be written");
    proctor.process.as_ref().expect("it runs").signal("HUP");
    let body = page(&proctor, "The new configuration was refused").await;
    assert!(body.contains("proctor.yml:") && !body.contains("hunter2") && !body.contains("secret-typo"), "{body}");

    // Nothing of all that is markup, and nothing comes from elsewhere.
    let whole = proctor.get("/").await.expect("it answers");
    assert!(body.contains("&#60;script&#62;alert(1)&#60;/script&#62;") && body.contains("{{7*7}}"), "{body}");
    for bad in ["<script", "<img", "onerror=alert(2)>", "style=\"", "<iframe", "http-equiv=\"set"] {
        assert!(!whole.contains(bad), "{bad} in {whole}");
    }
    let style = whole.split_once("<style>").and_then(|(_, rest)| rest.split_once("</style>")).expect("a style").0;
    use base64::Engine as _;
    let hash = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(style));
    assert!(whole.contains(&format!("style-src 'sha256-{hash}'")), "the policy is that of the style: {whole}");
    assert!(
        whole.contains("http-equiv=\"refresh\"") && !proctor.get("/?still").await.expect("it answers").contains("http-equiv=\"refresh\"")
    );
}

#[tokio::test]
async fn the_page_says_that_it_does_not_know_where_nothing_has_answered_and_that_all_is_well_where_it_is() {
    let proctor = Proctor::configured(1, "probes: {fine: {command: {argv: [/bin/true]}}, slow: {command: {argv: [/bin/true]}}}\n")
        .rules(&[("Down", "probe_success == 0")])
        .started();
    let body = page(&proctor, "All is well").await;
    assert!(body.contains("2 targets answer, and no alert fires"), "{body}");
    let nothing = Proctor::configured(1, "probes: {}\n").rules(&[("Down", "probe_success == 0")]).started();
    let body = page(&nothing, "Nothing is watched").await;
    assert!(body.contains("class=\"card verdict unsure\""), "{body}");
    let blind = Proctor::configured(1, "probes: {job: {heartbeat: {every: 1h}}}\n").rules(&[("Down", "probe_success == 0")]).started();
    let body = page(&blind, "Nothing can be seen").await;
    assert!(body.contains("class=\"card verdict unsure\""), "{body}");
}

/// What a browser makes of the page: the widths of the page and of the window, and the colour behind everything.
pub(crate) fn looked_at(page: &str, width: u32, dark: bool) -> (u32, u32, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let (head, html) = page.split_once("\r\n\r\n").expect("a head");
    let policy = head.lines().find_map(|line| line.strip_prefix("content-security-policy: ")).expect("a policy");
    // The page with its own policy, but for the script that measures it.
    let policy =
        policy.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';").replace("frame-ancestors 'none'; ", "");
    let html = html.replace(
        "<meta charset=\"utf-8\">",
        &format!("<meta charset=utf-8><meta http-equiv=Content-Security-Policy content=\"{policy}\">"),
    );
    let script = "<script>for (const all of document.querySelectorAll('details')) all.open = true;
        for (const form of document.querySelectorAll('.do')) form.style.display = 'flex';
        const it = document.documentElement;
        parent.postMessage(`seen ${it.scrollWidth} ${innerWidth} ${getComputedStyle(document.body).backgroundColor} end`, '*')</script></body>";
    let file = folder.path().join("page.html");
    std::fs::write(&file, html.replace("</body>", script)).expect("can be written");
    // No window is as small as a phone: a frame is.
    let frame = format!(
        "<meta name=color-scheme content='light dark'><script>onmessage = told => document.documentElement.title = told.data</script>\
         <iframe src=page.html width={width} height=1200 frameborder=0></iframe>"
    );
    let file = folder.path().join("frame.html");
    std::fs::write(&file, frame).expect("can be written");
    let output = Program::new("timeout")
        .args(["120", "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .arg(format!("--user-data-dir={}", folder.path().join("user").display()))
        .arg(format!("--blink-settings=preferredColorScheme={}", u8::from(!dark)))
        .args(["--window-size=2000,1300", "--virtual-time-budget=10000"])
        .arg("--dump-dom")
        .arg(format!("file://{}", file.display()))
        .output()
        .expect("it runs");
    let dom = String::from_utf8_lossy(&output.stdout);
    let seen = dom.split_once("title=\"seen ").and_then(|(_, rest)| rest.split_once(" end\""));
    let seen = seen.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr))).0;
    let mut words = seen.splitn(3, ' ');
    let mut number = || words.next().and_then(|word| word.parse().ok()).expect("a number");
    (number(), number(), words.next().expect("a colour").to_owned())
}

#[tokio::test]
#[ignore = "needs a browser: make test-slow"]
async fn the_page_fits_a_phone_and_a_wall_in_both_schemes_with_ten_and_with_a_thousand_targets() {
    if crate::support::process::program("chromium").is_none() {
        return;
    }
    let (closed, listener) = (free_port(), std::net::TcpListener::bind("127.0.0.1:0").expect("a port"));
    let open = listener.local_addr().expect("it is bound").port();
    let long = "x".repeat(200);
    for (count, each) in [(6, 2), (600, 100)] {
        let folder = tempfile::tempdir().expect("a folder");
        let (cert, _) = Authority::new().issue_for(&["localhost"], (-1.0, 30.0));
        let mut sections = String::from("probes:\n");
        for group in 0..4 {
            let files: Vec<String> =
                (0..each).map(|n| folder.path().join(format!("{group}-{n}-{}.pem", &long[..100])).display().to_string()).collect();
            files.iter().for_each(|file| write(Path::new(file), &cert, 0o644));
            sections += &format!("  certs-{group}: {{certificate: {{files: [{}]}}, interval: 30s}}\n", files.join(", "));
        }
        for n in 0..count {
            let port = if n % 50 == 0 { closed } else { open };
            sections += &format!("  room-{n}-of-a-long-name: {{tcp: {{address: '127.0.0.1:{port}'}}, interval: 30s}}\n");
        }
        sections += &format!("  quota: {{command: {{argv: [/bin/sh, -c, 'echo {long}; exit 1']}}}}\n");
        let proctor = Proctor::configured(1, &sections).rules(&[("Down", "probe_success == 0")]).started();
        eventually("all have answered", Duration::from_secs(120), || async {
            proctor.get("/-/ready").await?.contains("200 OK").then_some(())
        })
        .await;
        page(&proctor, "fire").await;
        let page = proctor.get("/?still").await.expect("it answers");
        let mut behind = std::collections::BTreeSet::new();
        for (width, dark) in [(360, false), (360, true), (1920, false), (1920, true)] {
            let (needs, has, colour) = looked_at(&page, width, dark);
            assert_eq!(has, width, "the window is that wide");
            assert!(needs <= has, "{count} probes, {width} px: the page needs {needs}");
            behind.insert((dark, colour));
        }
        assert_eq!(behind.len(), 2, "one colour for each scheme: {behind:?}");
    }
}
