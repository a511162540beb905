//! nginx with two sites over TLS, a redirect, stub_status and a default server that is none of them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use super::process::{Process, eventually, free_port, program};

/// A certificate authority of the test's own.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, as PEM.
    pub(crate) pem: String,
}

impl Authority {
    /// Makes one.
    pub(crate) fn new() -> Self {
        Self::named("Proctor test authority")
    }

    /// Makes one of this name.
    pub(crate) fn named(common: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(common);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key can be made");
        let pem = params.self_signed(&key).expect("it signs itself").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Makes one that this one vouches for: what it issues needs its certificate beside it.
    pub(crate) fn intermediate(&self) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = name("Proctor test intermediate");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key can be made");
        let pem = params.signed_by(&key, &self.issuer).expect("it is signed").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Issues a certificate for these names that is valid from and until so many days from now; returns certificate and
    /// key as PEM.
    pub(crate) fn issue_for(&self, names: &[&str], (from, until): (f64, f64)) -> (String, String) {
        let day = |days: f64| {
            let away = Duration::from_secs_f64(days.abs() * 86_400.0);
            let now = std::time::SystemTime::now();
            if days < 0.0 { now - away } else { now + away }
        };
        let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).expect("names are names");
        params.distinguished_name = name(names[0]);
        (params.not_before, params.not_after) = (day(from).into(), day(until).into());
        let key = KeyPair::generate().expect("a key can be made");
        (params.signed_by(&key, &self.issuer).expect("it is signed").pem(), key.serialize_pem())
    }

    /// Issues a certificate for these names that ends in the year given; returns certificate and key as PEM.
    pub(crate) fn issue(&self, names: &[&str], last_year: i32) -> (String, String) {
        let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).expect("names are names");
        params.distinguished_name = name(names[0]);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(last_year, 1, 1);
        let key = KeyPair::generate().expect("a key can be made");
        (params.signed_by(&key, &self.issuer).expect("it is signed").pem(), key.serialize_pem())
    }
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

/// A running nginx.
pub(crate) struct Nginx {
    /// The master and, in its group, the worker.
    pub(crate) process: Process,
    /// The port for plain HTTP.
    pub(crate) http: u16,
    /// The port for TLS.
    pub(crate) https: u16,
    /// Who signed what it serves.
    pub(crate) authority: Authority,
    folder: tempfile::TempDir,
}

impl Nginx {
    /// Starts it:
    ///
    /// - `https://coursys.example.org/` answers `<title>CourSys</title>`, `/old` redirects to `/`, `/loop` to itself,
    ///   `/503` is in maintenance;
    /// - `http://coursys.example.org/…` and `http://redirect.example.org/…` redirect to the site over TLS;
    /// - `http://127.0.0.1/nginx_status` is stub_status;
    /// - every other name gets the default server: 404, with a certificate for `default.example.org`.
    pub(crate) async fn start() -> Option<Self> {
        let program = program("nginx")?;
        let folder = tempfile::tempdir().expect("a folder can be made");
        let authority = Authority::new();
        std::fs::write(folder.path().join("ca.pem"), &authority.pem).expect("the folder takes files");
        let (http, https) = (free_port(), free_port());
        let process = {
            write_certificate(folder.path(), "site", &authority.issue(&["coursys.example.org"], 2040));
            write_certificate(folder.path(), "default", &authority.issue(&["default.example.org"], 2040));
            configure(folder.path(), http, https, "");
            launch(&program, folder.path())
        };
        let nginx = Self { process, http, https, authority, folder };
        nginx.ready().await;
        Some(nginx)
    }

    async fn ready(&self) {
        eventually("nginx listens", Duration::from_secs(30), || async {
            tokio::net::TcpStream::connect(("127.0.0.1", self.https)).await.ok().map(drop)
        })
        .await;
        // It listens before it has a worker.
        self.served_by("nginx has a worker", |_| true).await;
    }

    /// Waits until it has workers, and only such ones, that have begun: a child is one once it has its name.
    async fn served_by(&self, what: &str, wanted: impl Fn(&String) -> bool) {
        let serves = |pid: &String| {
            let title = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            wanted(pid) && title.starts_with("nginx: worker process")
        };
        eventually(what, Duration::from_secs(30), || async {
            let workers = self.children();
            (!workers.is_empty() && workers.iter().all(serves)).then_some(())
        })
        .await;
    }

    /// The file with the authority's certificate.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The file with the certificate that it serves once it is reloaded.
    pub(crate) fn certificate_file(&self) -> PathBuf {
        self.folder.path().join("site.pem")
    }

    /// Puts another certificate on disk; what is served changes only by [`Nginx::reload`].
    pub(crate) fn swap_certificate(&self, (certificate, key): &(String, String)) {
        write_certificate(self.folder.path(), "site", &(certificate.clone(), key.clone()));
    }

    /// Adds lines to the site's server block; they count after [`Nginx::reload`].
    pub(crate) fn configure(&self, more: &str) {
        configure(self.folder.path(), self.http, self.https, more);
    }

    /// Tells the master to read its configuration again, and waits until only new workers serve.
    pub(crate) async fn reload(&self) {
        let before = self.children();
        self.tell("HUP");
        self.served_by("nginx serves by new workers", |pid| !before.contains(pid)).await;
    }

    /// Its folder, with `nginx.conf`, `nginx.pid` and the logs.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Puts one text for another in its configuration; it counts after [`Nginx::reload`].
    pub(crate) fn rewrite(&self, from: &str, to: &str) {
        let path = self.folder.path().join("nginx.conf");
        let text = std::fs::read_to_string(&path).expect("it is there");
        assert!(text.contains(from), "{from} in {text}");
        std::fs::write(path, text.replace(from, to)).expect("the folder takes files");
    }

    /// Sends a signal to the master alone.
    pub(crate) fn tell(&self, signal: &str) {
        let told = Command::new("kill").args([&format!("-{signal}"), &self.process.pid().to_string()]).status();
        assert!(told.expect("kill runs").success(), "it runs");
    }

    pub(crate) fn children(&self) -> Vec<String> {
        let pid = self.process.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        children.split_whitespace().map(str::to_owned).collect()
    }

    /// Kills it and starts it again on the same ports.
    pub(crate) async fn restart(&mut self) {
        self.process.kill();
        self.process = launch(&program("nginx").expect("it ran before"), self.folder.path());
        self.ready().await;
    }

    /// What it logged of requests: one line `coursys.example.org GET / 200 Proctor/0.1.0` each.
    pub(crate) fn access_log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default()
    }
}

fn launch(program: &Path, folder: &Path) -> Process {
    Process::start(Command::new(program).arg("-p").arg(folder).args(["-e", "stderr", "-c", "nginx.conf"]), &folder.join("log"))
}

fn write_certificate(folder: &Path, name: &str, (certificate, key): &(String, String)) {
    for (suffix, text) in [("pem", certificate), ("key", key)] {
        let new = folder.join(format!("{name}.{suffix}.new"));
        std::fs::write(&new, text).expect("the folder takes files");
        std::fs::rename(&new, folder.join(format!("{name}.{suffix}"))).expect("a file can be renamed");
    }
}

fn configure(folder: &Path, http: u16, https: u16, more: &str) {
    let root = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let text = format!(
        r#"
daemon off;
{root}
worker_processes 1;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 64; }}
http {{
    log_format asked '$http_host $request_method $request_uri $status $http_user_agent';
    access_log access.log asked;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    default_type text/html;
    server {{
        listen 127.0.0.1:{http} default_server;
        location = /nginx_status {{ stub_status; }}
        location / {{ return 404 "the default server"; }}
    }}
    server {{
        listen 127.0.0.1:{http};
        server_name coursys.example.org redirect.example.org;
        return 301 https://coursys.example.org$request_uri;
    }}
    server {{
        listen 127.0.0.1:{https} ssl default_server;
        ssl_certificate default.pem; ssl_certificate_key default.key;
        return 404 "the default server";
    }}
    server {{
        listen 127.0.0.1:{https} ssl;
        server_name coursys.example.org;
        ssl_certificate site.pem; ssl_certificate_key site.key;
        location = / {{ return 200 "<!doctype html><title>CourSys</title>"; }}
        location = /old {{ return 302 /; }}
        location = /loop {{ return 302 $scheme://$http_host$request_uri; }}
        location = /503 {{ return 503 "down on purpose"; }}
        {more}
    }}
}}
"#
    );
    std::fs::write(folder.join("nginx.conf"), text).expect("the folder takes files");
}
