//! `proctor render systemd`: the unit of this Proctor, closed but for what its configuration needs.
//!
//! What is closed for everybody stands in [`CLOSED`]. Each further door is opened only where something in the
//! configuration needs it, and the unit says what that is. Paths and addresses are found by walking over all texts of the
//! file, so that a new kind of probe cannot be forgotten here.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::app::Source;
use crate::client::net::Endpoint;
use crate::config::{self, Config};
use crate::model::Problems;
use crate::model::yaml::{self, Node, Value};

/// Kinds of probes that look at the processes of other users.
pub(in crate::cli) const SEE_PROCESSES: &[&str] = &["code", "gunicorn", "host", "tunnel"];
/// Where systemd puts the credentials of this unit.
const CREDENTIALS: &str = "/run/credentials/proctor.service/";
/// Where their sources lie.
const CREDENTIAL_SOURCES: &str = "/etc/proctor/credentials";
/// What the unit may write besides its private `/tmp`: its state, and its socket's folder (deploy/proctor.tmpfiles).
const WRITABLE: [&str; 2] = ["/var/lib/proctor", "/run/proctor"];

/// What no Proctor needs.
const CLOSED: &str = "\
# Limits. Proctor itself needs about 20 MiB.
MemorySwapMax=0
LimitNOFILE=4096
LimitCORE=0
OOMScoreAdjust=-500
# No rights besides those of its user.
CapabilityBoundingSet=
AmbientCapabilities=
NoNewPrivileges=yes
SecureBits=noroot-locked
RestrictSUIDSGID=yes
PrivateUsers=yes
KeyringMode=private
RestrictNamespaces=yes
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources @mount @debug @cpu-emulation @obsolete @clock @module @raw-io @reboot @swap
SystemCallErrorNumber=EPERM
# It writes its state and nothing else, and sees no devices.
ProtectSystem=strict
PrivateDevices=yes
DevicePolicy=closed
PrivateMounts=yes
PrivateIPC=yes
RemoveIPC=yes
ProtectHostname=yes
ProtectClock=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
# AF_NETLINK: the queues of sockets (sock_diag).
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SocketBindDeny=any
";

/// What the configuration needs.
#[derive(Debug, Default)]
struct Needs {
    /// Names of credentials.
    credentials: BTreeSet<String>,
    /// Folders that are written, besides [`WRITABLE`].
    writes: BTreeSet<PathBuf>,
    /// Ports that are listened at, besides the web's, as `SocketBindAllow=` wants them.
    listens: BTreeSet<String>,
    /// The first path below homes, and below `/tmp`.
    home: Option<String>,
    tmp: Option<String>,
    /// Who looks at other users' processes, who asks docker, who runs programs.
    processes: Vec<String>,
    docker: Vec<String>,
    programs: Vec<String>,
    /// Addresses outside this host, and names, whose addresses are not known here.
    addresses: BTreeSet<IpAddr>,
    names: BTreeSet<String>,
}

/// Writes the unit.
pub(super) fn render(source: &Source, config: &Config, user: &str, program: &str) -> Result<String, String> {
    let (file, text) = match source {
        Source::File(path) => {
            let whole = std::path::absolute(path).map_err(|error| format!("{}: {error}", path.display()))?;
            (Some(whole.clone()), config::read(&whole)?)
        }
        // What is found on a host now may be something else tomorrow: the unit is that of no configuration.
        Source::Host => (None, String::new()),
    };
    let plain = |text: &str| text.starts_with('/') && text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+@".contains(c));
    for path in file.iter().map(|path| path.to_string_lossy()).chain([program.into()]) {
        if !plain(&path) {
            return Err(format!("expected a path from / of letters, digits and ._-+@, found {path:?}: systemd would read it otherwise"));
        }
    }
    let needs = match &file {
        Some(_) => Needs::of(config, yaml::parse(&text, &mut Problems::default()).as_ref()),
        None => Needs::default(),
    };
    needs.unit(config, file.as_deref(), user, program).map_err(|error: fmt::Error| error.to_string())
}

impl Needs {
    fn of(config: &Config, text: Option<&Node>) -> Self {
        let mut needs = Self::default();
        if let Some(text) = text {
            walk(text, "", &mut |key, text| needs.take(key, text));
        }
        for (name, probe) in &config.probes.0 {
            for kind in probe.kinds() {
                let who = format!("{} ({kind})", name.value);
                match kind {
                    "docker" => needs.docker.push(who),
                    "command" => needs.programs.push(who),
                    kind if SEE_PROCESSES.contains(&kind) => needs.processes.push(who),
                    _ => {}
                }
            }
        }
        for (name, action) in &config.actions.0 {
            let who = format!("action {}", name.value);
            if action.docker.is_some() {
                needs.docker.push(who);
            } else if action.command.is_some() {
                needs.programs.push(who);
            }
        }
        // Who reads from elsewhere has an address that the configuration does not name.
        if !config.web.listen.0.ip().is_loopback() {
            needs.names.insert("who reads at web.listen".to_owned());
        }
        let mut written = vec![config.state.path.as_deref(), config.control.socket.as_deref()];
        for (_, probe) in &config.probes.0 {
            match probe.gunicorn.as_ref().and_then(|gunicorn| gunicorn.statsd.as_ref()) {
                Some(Endpoint::Unix(path)) => written.push(Some(path)),
                Some(Endpoint::Tcp { port, .. }) => drop(needs.listens.insert(format!("udp:{port}"))),
                None => {}
            }
        }
        let written = written.into_iter().flatten().filter_map(Path::parent);
        needs.writes = written.filter(|folder| !WRITABLE.iter().any(|known| folder.starts_with(known))).map(PathBuf::from).collect();
        needs
    }

    /// Takes one text of the configuration.
    fn take(&mut self, key: &str, text: &str) {
        let path = text.strip_prefix("unix:").map_or(text, |rest| rest.strip_prefix("path=").unwrap_or(rest));
        if path.starts_with('/') {
            if let Some(name) = path.strip_prefix(CREDENTIALS) {
                self.credentials.insert(name.to_owned());
            }
            let below = |folders: &[&str]| folders.iter().any(|folder| Path::new(path).starts_with(folder)).then(|| path.to_owned());
            self.home = self.home.take().or_else(|| below(&["/home", "/root", "/run/user"]));
            self.tmp = self.tmp.take().or_else(|| below(&["/tmp", "/var/tmp"]));
            if key == "url_file" {
                self.names.insert(format!("the URL in {path}"));
            }
            return;
        }
        // A question over UDP is bound to whatever port is free.
        if key == "clock" && text.starts_with("ntp://") {
            self.listens.insert("udp".to_owned());
        }
        let Some(host) = host_of(key, text) else { return };
        match host.parse::<IpAddr>() {
            Ok(address) if address.is_loopback() || address.is_unspecified() => {}
            Ok(address) => drop(self.addresses.insert(address)),
            Err(_) if host == "localhost" => {}
            Err(_) => drop(self.names.insert(host.to_owned())),
        }
    }

    fn unit(&self, config: &Config, file: Option<&Path>, user: &str, program: &str) -> Result<String, fmt::Error> {
        let named = file.map_or(String::new(), |file| format!(" --config {}", file.display()));
        let mut unit = format!(
            "# Written by `proctor render systemd`{}. What is open is so because of what the comment above it names.
[Unit]
Description=Proctor asks every service of the site whether it really works
After=network.target dbus.service
# However often it must be started again: nobody else would say that it is gone.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={program}{named} serve
ExecReload={program}{named} reload
WatchdogSec=30
TimeoutAbortSec=5
TimeoutStopSec=15
Restart=always
RestartSec=1
User={user}
Group={user}
UMask=0077
StateDirectory=proctor
StateDirectoryMode=0700
Environment=RUNTIME_DIRECTORY=/run/proctor
{CLOSED}",
            file.map_or(" without a configuration".to_owned(), |file| format!(" from {}", file.display())),
        );
        writeln!(unit, "SocketBindAllow=tcp:{}", config.web.listen.0.port())?;
        for port in &self.listens {
            writeln!(unit, "SocketBindAllow={port}")?;
        }
        let listed = |who: &[String]| who.join(", ");
        let writes = WRITABLE.iter().map(|path| format!("-{path}")).chain(self.writes.iter().map(|path| path.display().to_string()));
        writeln!(unit, "ReadWritePaths={}", writes.collect::<Vec<_>>().join(" "))?;
        for name in &self.credentials {
            writeln!(unit, "LoadCredential={name}:{CREDENTIAL_SOURCES}/{name}")?;
        }
        match &self.home {
            Some(path) => writeln!(unit, "# {path}\nProtectHome=read-only")?,
            None => writeln!(unit, "ProtectHome=yes")?,
        }
        match &self.tmp {
            Some(path) => writeln!(unit, "# {path}\nPrivateTmp=no")?,
            None => writeln!(unit, "PrivateTmp=yes")?,
        }
        match self.processes.as_slice() {
            [] => writeln!(unit, "ProtectProc=invisible")?,
            who => writeln!(unit, "# Processes of others: {}\nProtectProc=default", listed(who))?,
        }
        match self.docker.as_slice() {
            [] => writeln!(unit, "InaccessiblePaths=-/run/docker.sock -/run/containerd -/etc/ssh")?,
            who => writeln!(
                unit,
                "# Who may use docker's socket is as good as root. {}\nSupplementaryGroups=docker\nInaccessiblePaths=-/run/containerd -/etc/ssh",
                listed(who)
            )?,
        }
        match self.programs.as_slice() {
            [] => write!(
                unit,
                "MemoryHigh=96M\nMemoryMax=128M\nTasksMax=64\nMemoryDenyWriteExecute=yes\nNoExecPaths=/ /tmp /var/tmp {} /dev/shm\nExecPaths={program} /usr/lib /lib -/lib64\n",
                WRITABLE[0]
            )?,
            who => writeln!(unit, "# Programs: {}\nMemoryMax=1G\nTasksMax=512", listed(who))?,
        }
        if let Some(name) = self.names.first() {
            let more = if self.names.len() > 1 { format!(" and {} more", self.names.len() - 1) } else { String::new() };
            writeln!(unit, "# Addresses that change: {name}{more}; with only numbers in the configuration all others would be closed.")?;
        } else if file.is_some() {
            let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
            writeln!(unit, "IPAddressDeny=any\nIPAddressAllow=localhost {}", addresses.join(" "))?;
        }
        unit.push_str("\n[Install]\nWantedBy=multi-user.target\n");
        Ok(unit.lines().map(|line| format!("{}\n", line.trim_end())).collect())
    }
}

/// Hands every text of a tree over with the key it stands below; keys are texts too where they are URLs.
pub(in crate::cli) fn walk(node: &Node, key: &str, take: &mut impl FnMut(&str, &str)) {
    match &node.value {
        Value::Null => {}
        Value::Scalar { text, .. } => take(key, text),
        Value::Sequence(items) => items.iter().for_each(|item| walk(item, key, take)),
        Value::Mapping(entries) => {
            for (key, value) in entries {
                if key.text.contains("://") {
                    take("", &key.text);
                }
                walk(value, &key.text, take);
            }
        }
    }
}

/// Returns the host of a URL, of `host:port`, or of a key that holds one.
fn host_of<'a>(key: &str, text: &'a str) -> Option<&'a str> {
    // For people and for the log: nothing connects there.
    if matches!(key, "external_url" | "hosts" | "subject_prefix" | "payload" | "from" | "admins") {
        return None;
    }
    let part = match text.split_once("://") {
        Some((_, rest)) => rest.split(['/', '?', '#']).next().unwrap_or(rest),
        None if text.contains(char::is_whitespace) => return None,
        None if matches!(key, "host" | "address" | "connect_to") && !text.starts_with("unix:") => text,
        None => {
            let (host, port) = text.rsplit_once(':')?;
            port.parse::<u16>().ok().map(|_| host)?
        }
    };
    let host = match part.strip_prefix('[') {
        Some(rest) => rest.split(']').next()?,
        None if part.parse::<IpAddr>().is_ok() => part,
        None => part.split(':').next()?,
    };
    (!host.is_empty()).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn rendered(text: &str) -> String {
        let config = Config::from_text("f".as_ref(), text).unwrap_or_else(|problems| panic!("{text}: {problems:?}"));
        let node = yaml::parse(text, &mut Problems::default());
        Needs::of(&config, node.as_ref())
            .unit(&config, Some(Path::new("/etc/proctor/proctor.yml")), "proctor", "/usr/bin/proctor")
            .expect("is text")
    }

    #[test]
    fn what_nothing_needs_is_closed() {
        let unit = rendered("probes: {cache: {memcached: {address: '127.0.0.1:11211'}}}\n");
        for line in [
            "ProtectHome=yes",
            "PrivateTmp=yes",
            "ProtectProc=invisible",
            "IPAddressDeny=any",
            "IPAddressAllow=localhost",
            "NoExecPaths=/ /tmp /var/tmp /var/lib/proctor /dev/shm",
            "InaccessiblePaths=-/run/docker.sock -/run/containerd -/etc/ssh",
            "SocketBindAllow=tcp:9797",
            "ReadWritePaths=-/var/lib/proctor -/run/proctor",
        ] {
            assert!(unit.lines().any(|found| found == line), "{line}:\n{unit}");
        }
        assert!(!unit.contains("LoadCredential") && !unit.contains("docker\n"), "{unit}");
    }

    #[test]
    fn each_door_is_opened_by_what_needs_it_and_says_so() {
        let secret = "password_file: /run/credentials/proctor.service/smtp";
        for (text, lines) in [
            (
                format!("notify: {{admins: [a@x.org], smtp: {{host: 10.0.0.7, port: 465, tls: tls, username: x, {secret}}}}}"),
                &["LoadCredential=smtp:/etc/proctor/credentials/smtp", "IPAddressAllow=localhost 10.0.0.7"][..],
            ),
            (
                "web: {listen: '0.0.0.0:9797', hosts: ['status.example.org:443']}".into(),
                &["# Addresses that change: who reads at web.listen; with only numbers in the configuration all others would be closed."],
            ),
            ("maintenance: {files: [/home/coursys/503]}".into(), &["# /home/coursys/503", "ProtectHome=read-only"]),
            ("probes: {a: {gunicorn: {listen: 'unix:/tmp/g.sock', host_header: x.org}}}".into(), &["# /tmp/g.sock", "PrivateTmp=no"]),
            (
                "probes: {a: {tunnel: {address: '127.0.0.1:50000', speaks: db2}}}".into(),
                &["# Processes of others: a (tunnel)", "ProtectProc=default"],
            ),
            (
                "actions: {r: {docker: {service: x}, matchers: ['a=\"b\"']}}".into(),
                &["# Who may use docker's socket is as good as root. action r", "SupplementaryGroups=docker"],
            ),
            ("actions: {r: {command: {argv: [/bin/true]}, matchers: ['a=\"b\"']}}".into(), &["# Programs: action r", "TasksMax=512"]),
            ("state: {path: /srv/p/state.db}".into(), &["ReadWritePaths=-/var/lib/proctor -/run/proctor /srv/p"]),
            ("web: {listen: '127.0.0.1:9000'}".into(), &["SocketBindAllow=tcp:9000"]),
            (
                "probes: {g: {gunicorn: {listen: '127.0.0.1:8000', host_header: a, statsd: '127.0.0.1:8125'}}}".into(),
                &["SocketBindAllow=udp:8125"],
            ),
            ("probes: {h: {host: {clock: 'ntp://10.0.0.1'}}}".into(), &["SocketBindAllow=udp"]),
            (
                "probes: {g: {gunicorn: {listen: '127.0.0.1:8000', host_header: a, statsd: 'unix:/run/statsd/sock'}}}".into(),
                &["ReadWritePaths=-/var/lib/proctor -/run/proctor /run/statsd"],
            ),
            (
                "probes: {w: {nginx: {sites: ['https://b.example.org/', 'https://a.example.org/']}}}".into(),
                &["# Addresses that change: a.example.org and 1 more; with only numbers in the configuration all others would be closed."],
            ),
        ] {
            let unit = rendered(&text);
            for line in lines {
                assert!(unit.lines().any(|found| found == *line), "{line}:\n{unit}");
            }
        }
    }

    #[test]
    fn hosts_are_found_in_every_form() {
        for (key, text, host) in [
            ("url", "https://a.example.org:8443/x", Some("a.example.org")),
            ("served", "smtp://mail.example.org:25", Some("mail.example.org")),
            ("served", "coursys.example.org:443", Some("coursys.example.org")),
            ("address", "[2001:db8::1]:25", Some("2001:db8::1")),
            ("host", "mail.example.org", Some("mail.example.org")),
            ("address", "10.0.0.5", Some("10.0.0.5")),
            ("connect_to", "10.0.0.5:443", Some("10.0.0.5")),
            ("external_url", "https://status.example.org", None),
            ("word", "course", None),
            ("task", "a.b.c", None),
            ("interval", "15s", None),
        ] {
            assert_eq!(host_of(key, text), host, "{key}: {text}");
        }
    }
}
