//! What people change over HTTP: from the forms of the status page, with a password, as over the control socket.

use std::time::Duration;

use tokio::net::TcpStream;

use crate::support::nginx::Authority;
use crate::support::process::{eventually, free_port};
use crate::support::proctor::Proctor;
use crate::web::{basic, certify, code, exchange, exchange_tls, looked_at, trusting, write};

const LONG: Duration = Duration::from_secs(60);
/// What `htpasswd -niBC 10 ann` of apache2-utils 2.4 made of `right`.
const HASH: &str = "$2y$10$yMOBU7USfroVP3Wgl9UlkuD2OOX0/KIx56ccaBQ9aRZcv4ohg/3ri";

/// A Proctor with a memcached that does not run and an action that only says what it would do; with `web.config_file`.
fn configured(port: u16, access: &str) -> Proctor {
    let sections = format!(
        "probes:\n  cache: {{tcp: {{address: '127.0.0.1:{port}'}}}}\n\
         actions:\n  start-cache: {{command: {{argv: [/bin/true]}}, matchers: ['alertname=\"Down\"'], mode: observe}}\n"
    );
    let proctor = Proctor::configured(1, &sections).rules(&[("Down", "probe_success == 0")]);
    let file = proctor.folder.path().join("web.yml");
    write(&file, access, 0o600);
    let text = std::fs::read_to_string(proctor.config()).expect("is there");
    let text = text.replace("web: {", &format!("web: {{readers: [prometheus], config_file: {}, ", file.display()));
    std::fs::write(proctor.config(), text).expect("can be written");
    proctor.started()
}

fn encoded(fields: &[(String, String)]) -> String {
    let escape = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
    fields.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect::<Vec<_>>().join("&")
}

fn fields(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

const FORM: &str = "Content-Type: application/x-www-form-urlencoded\r\n";

fn posts(path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// Somebody with a browser.
struct Browser<'a> {
    proctor: &'a Proctor,
    authority: &'a str,
    password: String,
}

impl Browser<'_> {
    async fn sends(&self, request: &str) -> Option<String> {
        exchange_tls(self.proctor.web, trusting(self.authority), request).await.ok()
    }

    /// Reads the page that does not renew itself, once it contains a text.
    async fn reads(&self, contains: &str) -> String {
        let request = format!("GET /?still HTTP/1.1\r\nHost: localhost\r\n{}Connection: close\r\n\r\n", self.password);
        eventually(&format!("the page says {contains}"), LONG, || async {
            self.sends(&request).await.filter(|page| page.contains(contains))
        })
        .await
    }

    /// Sends a form as a browser does.
    async fn submits(&self, fields: &[(String, String)]) -> String {
        let headers = format!("{}{FORM}Origin: https://localhost\r\nSec-Fetch-Site: same-origin\r\n", self.password);
        self.sends(&posts("/change", &headers, &encoded(fields))).await.expect("it answers")
    }

    /// Sends a form that is to be carried out.
    async fn changes(&self, fields: &[(String, String)]) {
        let answer = self.submits(fields).await;
        assert_eq!(code(&answer), "303", "{answer}");
        assert!(answer.contains("location: ./\r\n"), "{answer}");
    }

    /// Sends a form that is to be refused; returns what the page says.
    async fn is_refused(&self, fields: &[(String, String)]) -> String {
        let answer = self.submits(fields).await;
        assert_eq!(code(&answer), "422", "{answer}");
        assert!(answer.contains("content-security-policy: default-src 'none'") && answer.contains("form-action 'self'"), "{answer}");
        let why = answer.split_once("</strong>").and_then(|(_, rest)| rest.split_once("</p>")).expect("a sentence").0;
        why.replace("&#34;", "\"").replace("&#39;", "'")
    }
}

/// Returns the hidden fields of the first form that holds a text.
fn form(page: &str, holds: &str) -> Vec<(String, String)> {
    let form = page.split("<form").skip(1).find(|form| form.split("</form>").next().is_some_and(|form| form.contains(holds)));
    let form = form.unwrap_or_else(|| panic!("no form with {holds} in {page}")).split("</form>").next().expect("a first");
    let pattern = regex::Regex::new("<input type=\"hidden\" name=\"([a-z]+)\" value=\"([^\"]*)\">").expect("is a pattern");
    let fields = pattern.captures_iter(form).map(|found| (found[1].to_owned(), found[2].replace("&#34;", "\"")));
    fields.collect()
}

fn with(mut form: Vec<(String, String)>, more: &[(&str, &str)]) -> Vec<(String, String)> {
    form.extend(fields(more));
    form
}

fn told(proctor: &Proctor, args: &[&str]) -> String {
    let output = proctor.run(args);
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test]
async fn each_form_of_the_page_does_what_the_command_does_and_the_log_says_who_did_it() {
    let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port());
    let authority = Authority::new();
    certify(folder.path(), &authority);
    let place = |name: &str| folder.path().join(name).display().to_string();
    let proctor = configured(
        port,
        &format!(
            "tls_server_config: {{cert_file: {}, key_file: {}}}\nbasic_auth_users:\n  ann: {HASH}\n",
            place("cert.pem"),
            place("key.pem")
        ),
    );
    let ann = Browser { proctor: &proctor, authority: &authority.pem, password: basic("ann", "right") };

    // Acknowledged.
    let page = ann.reads("value=\"ack\"").await;
    assert!(page.contains("referrer-policy: same-origin") && !page.contains("<script"), "{page}");
    let alert = form(&page, "value=\"ack\"");
    assert!(alert.contains(&("matcher".to_owned(), "alertname=\"Down\"".to_owned())), "{alert:?}");
    ann.changes(&with(alert.clone(), &[("comment", "a new one <b>comes</b>"), ("for", ""), ("do", "ack")])).await;
    let page = ann.reads("Down").await;
    assert!(
        page.contains("acknowledged by ann over HTTP") && page.contains(": a new one &#60;b&#62;comes&#60;/b&#62;"),
        "the next page shows it: {page}"
    );

    // Silenced, and no longer.
    ann.changes(&with(alert.clone(), &[("comment", "planned"), ("for", "90m"), ("do", "silence")])).await;
    let listed = told(&proctor, &["silence", "list"]);
    assert!(listed.contains("active") && listed.contains("alertname=\"Down\"") && listed.contains("by ann over HTTP: planned"), "{listed}");
    let silence = form(&ann.reads("End the silence").await, "End the silence");
    assert!(listed.starts_with(&silence[0].1), "{silence:?} {listed}");
    ann.changes(&with(silence.clone(), &[("do", "expire")])).await;
    assert_eq!(told(&proctor, &["silence", "list"]), "no silence is pending or active\n");

    // Paused, and run again.
    ann.changes(&with(form(&ann.reads("Pause all actions").await, "Pause all actions"), &[("do", "pause")])).await;
    assert!(told(&proctor, &["action", "list"]).starts_with("PAUSED by ann over HTTP since "), "{}", told(&proctor, &["action", "list"]));
    ann.changes(&with(form(&ann.reads("Let them run again").await, "Let them run again"), &[("do", "resume")])).await;
    assert!(!told(&proctor, &["action", "list"]).contains("PAUSED"));

    // A hold ends.
    assert!(told(&proctor, &["hold", "15m", "--reason", "a deploy"]).starts_with("held for 15m"));
    let hold = form(&ann.reads("End the hold").await, "End the hold");
    ann.changes(&with(hold.clone(), &[("do", "end")])).await;
    assert_eq!(told(&proctor, &["hold", "list"]), "nothing is held\n");

    // What is wrong is said in the words of the command line, and nothing is changed.
    let of = |args: &[&str]| told(&proctor, args).trim().trim_start_matches("proctor: ").to_owned();
    assert_eq!(ann.is_refused(&with(silence.clone(), &[("do", "expire")])).await, of(&["silence", "expire", &silence[0].1]));
    assert_eq!(ann.is_refused(&with(hold.clone(), &[("do", "end")])).await, of(&["hold", "end", &hold[0].1]));
    assert_eq!(ann.is_refused(&fields(&[("do", "expire"), ("id", "x'\"y")])).await, of(&["silence", "expire", "x'\"y"]));
    for (matcher, args) in [("a=~(", ["silence", "add", "a=~("]), ("a=~.*", ["silence", "add", "a=~.*"]), ("=", ["silence", "add", "="])] {
        assert_eq!(ann.is_refused(&fields(&[("do", "silence"), ("for", "1h"), ("matcher", matcher)])).await, of(&args));
    }
    for (length, why) in [
        ("soon", "expected a duration such as 30s, 5m or 1h30m, found \"soon\""),
        ("0", "the end of a silence must be in the future and after its start"),
    ] {
        assert_eq!(ann.is_refused(&with(alert.clone(), &[("for", length), ("do", "silence")])).await, why);
    }
    assert_eq!(ann.is_refused(&fields(&[("do", "ack")])).await, "name an alert, or matchers such as alertname=\"DiskFull\"");
    assert!(ann.is_refused(&fields(&[("do", "reload")])).await.starts_with("unknown change \"reload\""));
    assert_eq!(told(&proctor, &["silence", "list"]), "no silence is pending or active\n");

    // The alert is gone, and what was on the screen is sent once more.
    let answers = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.expect("the port is free");
    tokio::spawn(async move { while answers.accept().await.is_ok() {} });
    ann.reads("All is well").await;
    let why = ann.is_refused(&with(alert, &[("comment", "again"), ("do", "ack")])).await;
    assert_eq!(why, "no alert that is pending or firing is like that: `proctor alert list` shows them");

    let log = proctor.log();
    for (command, what) in [
        ("AlertAck", "comment: \"a new one <b>comes</b>\""),
        ("SilenceAdd", "for_ms: 5400000"),
        ("SilenceExpire", &silence[0].1),
        ("ActionPause", ""),
        ("ActionResume", ""),
        ("HoldEnd", &hold[0].1),
    ] {
        let line = log.lines().find(|line| line.contains("asked over HTTP") && line.contains(command) && line.contains(what));
        assert!(line.is_some_and(|line| line.contains("user=\"ann\" from=127.0.0.1")), "{command}: {line:?} in {log}");
    }
    assert!(!log.contains("Basic ") && !log.contains("right\""), "no password: {log}");
}

#[tokio::test]
async fn nothing_is_changed_without_a_password_or_from_elsewhere_and_nobody_is_shown_a_form_in_vain() {
    let proctor = configured(free_port(), "http_server_config: {http2: true}\n");
    let (file, port) = (proctor.folder.path().join("web.yml"), proctor.web);
    let send = |request: String| async move {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        exchange(stream, &request).await.ok()
    };
    let get = |path: &str, headers: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n");
    let body = encoded(&fields(&[("do", "silence"), ("for", "1h"), ("matcher", "alertname=Down"), ("comment", "x")]));

    // Nobody has a password: not on loopback either.
    let page =
        eventually("the alert fires", LONG, || async { send(get("/?still", "")).await.filter(|page| page.contains("fires for")) }).await;
    assert!(!page.contains("<form") && !page.contains("<button") && !page.contains("#do-"), "{page}");
    let answer = send(posts("/change", FORM, &body)).await.expect("it answers");
    assert_eq!(code(&answer), "403", "{answer}");
    assert!(answer.contains("name basic_auth_users in web.config_file (docs/web.md)"), "{answer}");

    let hash = bcrypt::hash("right", 4).expect("is hashed");
    write(&file, &format!("basic_auth_users: {{ann: '{hash}', prometheus: '{hash}'}}\n"), 0o600);
    let (right, reader) = (basic("ann", "right"), basic("prometheus", "right"));
    eventually("the forms are shown", LONG, || async { send(get("/?still", &right)).await.filter(|page| page.contains("value=\"ack\"")) })
        .await;
    // The page that renews itself has no field that it would empty, but the way to it.
    let page = send(get("/", &right)).await.expect("it answers");
    assert!(page.contains("href=\"./?still#do-") && !page.contains("name=\"comment\""), "{page}");

    // Who may only read is shown none, and is refused.
    let page = send(get("/?still", &reader)).await.expect("it answers");
    assert!(code(&page) == "200" && !page.contains("<form") && !page.contains("#do-"), "{page}");
    let answer = send(posts("/change", &format!("{FORM}{reader}"), &body)).await.expect("it answers");
    assert!(code(&answer) == "403" && answer.ends_with("prometheus may only read: web.readers names it\n"), "{answer}");

    let large = format!("{body}{}", "x".repeat(16 * 1024));
    let wrong = basic("ann", "wrong");
    for (path, headers, body, wanted) in [
        ("/change", FORM.to_owned(), &body, "401"),
        ("/change", format!("{FORM}{wrong}"), &body, "401"),
        ("/change", format!("{FORM}{right}Sec-Fetch-Site: cross-site\r\n"), &body, "403"),
        ("/change", format!("{FORM}{right}Sec-Fetch-Site: same-site\r\n"), &body, "403"),
        ("/change", format!("{FORM}{right}Origin: https://evil.example\r\n"), &body, "403"),
        ("/change", format!("{FORM}{right}Origin: null\r\n"), &body, "403"),
        ("/change", format!("{right}Content-Type: application/json\r\n"), &body, "415"),
        ("/change", format!("{right}Content-Type: text/plain\r\n"), &body, "415"),
        ("/change", right.clone(), &body, "415"),
        ("/change", format!("{FORM}{right}"), &large, "413"),
        ("/", format!("{FORM}{right}"), &body, "405"),
        ("/change/", format!("{FORM}{right}"), &body, "404"),
    ] {
        let answer = send(posts(path, &headers, body)).await.expect("it answers");
        assert_eq!(code(&answer), wanted, "{path} {headers}: {answer}");
        assert!(answer.contains("x-content-type-options: nosniff"), "{answer}");
    }
    let rebound = posts("/change", &format!("{FORM}{right}"), &body).replace("Host: localhost", "Host: evil.example");
    assert_eq!(code(&send(rebound).await.expect("it answers")), "403");
    for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"] {
        let request = get(&format!("/change?{body}"), &right).replace("GET ", &format!("{method} "));
        assert_eq!(code(&send(request).await.expect("it answers")), "405", "{method}");
    }
    assert_eq!(told(&proctor, &["silence", "list"]), "no silence is pending or active\n");
    assert!(!proctor.log().contains("asked over HTTP"));
    // And what was refused all the time is taken where it is right, from curl too.
    assert_eq!(code(&send(posts("/change", &format!("{FORM}{right}"), &body)).await.expect("it answers")), "303");
    assert!(told(&proctor, &["silence", "list"]).contains("by ann over HTTP: x"));
}

#[tokio::test]
#[ignore = "needs a browser: make test-slow"]
async fn the_forms_fit_a_phone_and_a_wall_in_both_schemes() {
    if crate::support::process::program("chromium").is_none() {
        return;
    }
    let proctor = configured(free_port(), &format!("basic_auth_users: {{ann: '{}'}}\n", bcrypt::hash("right", 4).expect("is hashed")));
    let request = format!("GET /?still HTTP/1.1\r\nHost: localhost\r\n{}Connection: close\r\n\r\n", basic("ann", "right"));
    let page = |shown: &'static str| {
        let (web, request) = (proctor.web, &request);
        eventually("the page has that and an alert", LONG, move || async move {
            let stream = TcpStream::connect(("127.0.0.1", web)).await.ok()?;
            exchange(stream, request).await.ok().filter(|page| page.contains(shown) && page.contains("value=\"ack\""))
        })
    };
    // It runs before anything is asked of it.
    page("Pause all actions").await;
    for (args, shown) in [
        (&["hold", "1h", "--reason", "a deploy that takes a long time, as all of them do"][..], "value=\"end\""),
        (&["silence", "add", &format!("probe={}", "x".repeat(300)), "--comment", "planned"], "value=\"expire\""),
        (&["action", "pause"], "value=\"resume\""),
    ] {
        assert!(proctor.run(args).status.success(), "{args:?}");
        let page = page(shown).await;
        for (width, dark) in [(360, false), (1920, true)] {
            let (needs, has, _) = looked_at(&page, width, dark);
            assert!(needs <= has && has == width, "{shown}, {width} px: the page needs {needs}");
        }
    }
}
