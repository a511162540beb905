//! Elasticsearch from its published jars, a node of the test's own, and an nginx that guards it as x-pack would.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use proctor::client::http::{Method, Request, Seen, Url, send};
use proctor::client::net::Trust;
use serde_json::Value;

use super::nginx::Authority;
use super::process::{Process, eventually, free_port, program};

/// A running node.
pub(crate) struct Elasticsearch {
    /// The Java machine.
    pub(crate) process: Process,
    /// Where it listens on 127.0.0.1.
    pub(crate) port: u16,
    kind: &'static str,
    transport: u16,
    folder: tempfile::TempDir,
}

impl Elasticsearch {
    /// Starts it with further settings (`key=value`) and waits until it answers; it may still be without indices then.
    pub(crate) async fn start(more: &[&str]) -> Option<Self> {
        Self::start_of("elasticsearch", more).await
    }

    /// The same of another kind: `elasticsearch5`, which takes no settings, or `opensearch`.
    pub(crate) async fn start_of(kind: &'static str, more: &[&str]) -> Option<Self> {
        program("java")?;
        if !home(kind).join("classes/Elasticsearch.class").is_file() {
            assert!(std::env::var_os("REQUIRE_SERVICES").is_none(), "{kind} is not installed: run tests/stack/stack install");
            eprintln!("skipped: {kind} is not installed");
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder can be made");
        let (port, transport) = (free_port(), free_port());
        let node = Self { process: launch(kind, &folder, port, transport, more), port, kind, transport, folder };
        node.ready().await;
        Some(node)
    }

    /// Kills it and starts it again with its data and other settings.
    pub(crate) async fn restart(&mut self, more: &[&str]) {
        self.process.kill();
        self.process = launch(self.kind, &self.folder, self.port, self.transport, more);
        self.ready().await;
    }

    async fn ready(&self) {
        eventually("Elasticsearch answers", Duration::from_secs(300), || async {
            self.try_call(Method::GET, "/", "").await.filter(|(status, _)| *status == 200)
        })
        .await;
    }

    async fn try_call(&self, method: Method, path: &str, body: &str) -> Option<(u16, Value)> {
        let url = Url::parse(&format!("http://127.0.0.1:{}{path}", self.port)).expect("is a URL");
        let mut request = Request::post_json(url, body.as_bytes().to_vec());
        request.method = method;
        let answer = send(&request, &Trust::system(), 1 << 20, &mut Seen::default()).await.ok()?;
        Some((answer.status, serde_json::from_slice(&answer.body).unwrap_or_default()))
    }

    /// Tells it something; it must agree.
    pub(crate) async fn call(&self, method: Method, path: &str, body: &str) -> Value {
        let (status, answer) = self.try_call(method, path, body).await.expect("it answers");
        assert!(status < 300, "{path}: {answer}");
        answer
    }

    /// Puts settings of the cluster; `null` takes one back.
    pub(crate) async fn set(&self, settings: &str) {
        self.call(Method::PUT, "/_cluster/settings", &format!("{{\"transient\": {{{settings}}}}}")).await;
    }

    /// Makes an index with so many documents, `number 1 of a course` and so on, without replicas.
    pub(crate) async fn fill(&self, index: &str, documents: usize) {
        self.call(Method::PUT, &format!("/{index}"), r#"{"settings": {"number_of_replicas": 0, "number_of_shards": 1}}"#).await;
        let bulk: String = (1..=documents).map(|n| format!("{{\"index\": {{}}}}\n{{\"text\": \"number {n} of a course\"}}\n")).collect();
        if documents > 0 {
            // Until 6, a document has a type.
            let doc = if self.kind == "elasticsearch5" { "/doc" } else { "" };
            self.call(Method::POST, &format!("/{index}{doc}/_bulk?refresh=true"), &bulk).await;
        }
    }
}

fn home(kind: &str) -> PathBuf {
    std::env::var_os("PROCTOR_STACK").map_or_else(|| PathBuf::from("/tmp/proctor-stack"), PathBuf::from).join(kind)
}

fn launch(kind: &str, folder: &tempfile::TempDir, port: u16, transport: u16, more: &[&str]) -> Process {
    let mut command = Command::new("java");
    command.args(["-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
    command.args(["--add-opens", "java.base/java.lang=ALL-UNNAMED", "--add-opens", "java.base/java.io=ALL-UNNAMED"]);
    command.arg("-cp").arg(format!("{0}/classes:{0}/lib/*", home(kind).display()));
    command.arg("Elasticsearch").arg(folder.path().join("node")).args([port.to_string(), transport.to_string()]).args(more);
    Process::start(&mut command, &folder.path().join("log"))
}

/// An nginx in front of a node: TLS for `localhost`, user `proctor` with the password `hunter2-canary`, and 403 for what
/// its user has no privilege for, in the words of x-pack.
pub(crate) struct Guard {
    /// The nginx.
    pub(crate) process: Process,
    /// Where it listens on 127.0.0.1.
    pub(crate) port: u16,
    folder: tempfile::TempDir,
}

impl Guard {
    /// Starts it; `denied` is a regular expression of paths.
    pub(crate) async fn start(node: &Elasticsearch, denied: &str) -> Option<Self> {
        let program = program("nginx")?;
        let folder = tempfile::tempdir().expect("a folder can be made");
        let authority = Authority::new();
        let (certificate, key) = authority.issue(&["localhost"], 2040);
        let (port, to) = (free_port(), node.port);
        let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
        let forbidden = r#"{"error":{"root_cause":[{"type":"security_exception","reason":"action [x] is unauthorized for user [proctor]"}],"type":"security_exception","reason":"action [x] is unauthorized for user [proctor]"},"status":403}"#;
        let text = format!(
            r#"
daemon off;
{user}
worker_processes 1;
pid nginx.pid;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate site.pem; ssl_certificate_key site.key;
        auth_basic search; auth_basic_user_file users;
        location / {{ proxy_pass http://127.0.0.1:{to}; }}
        location ~ "{denied}" {{ try_files /none @denied; }}
        location @denied {{ default_type application/json; return 403 '{forbidden}'; }}
    }}
}}
"#
        );
        for (name, text) in [
            ("nginx.conf", text.as_str()),
            ("site.pem", &certificate),
            ("site.key", &key),
            ("ca.pem", &authority.pem),
            ("users", "proctor:{PLAIN}hunter2-canary\n"),
        ] {
            std::fs::write(folder.path().join(name), text).expect("the folder takes files");
        }
        for (name, text) in [("right", "hunter2-canary\n"), ("wrong", "another-canary\n")] {
            use std::os::unix::fs::PermissionsExt;
            std::fs::write(folder.path().join(name), text).expect("the folder takes files");
            std::fs::set_permissions(folder.path().join(name), std::fs::Permissions::from_mode(0o600)).expect("it is ours");
        }
        let mut command = Command::new(program);
        command.arg("-p").arg(folder.path()).args(["-e", "stderr", "-c", "nginx.conf"]);
        let process = Process::start(&mut command, &folder.path().join("log"));
        eventually("nginx listens", Duration::from_secs(10), || async {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok().map(drop)
        })
        .await;
        Some(Self { process, port, folder })
    }

    /// One of its files: `ca.pem`, and the passwords `right` and `wrong`.
    pub(crate) fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}
