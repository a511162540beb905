//! RabbitMQ of a test's own, and brokers that do what none should.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use proctor::client::amqp::{Broker, Settings};
use proctor::client::net::Endpoint;
use proctor::tasks::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::nginx::Authority;
use super::process::{Process, eventually, free_port, program};

/// Where Debian's package keeps the programs: those in PATH change to the user rabbitmq and its folders.
const PROGRAMS: &str = "/usr/lib/rabbitmq/bin";

/// Configure, write, read: what docs/probes/rabbitmq.md says that the user of the probe rabbitmq needs.
pub(crate) const OWN: [&str; 3] = ["^$", r"^amq\.default$", "^$"];
/// The same for the user of all probes that ask over that one.
pub(crate) const PERMISSIONS: [&str; 3] = [r"^amq\.gen-.*$", r"^(amq\.default|amq\.gen-.*|celery\.pidbox)$", r"^(amq\.gen-.*|celeryev)$"];

/// A running RabbitMQ.
pub(crate) struct Rabbitmq {
    /// The node, in a process group of its own.
    pub(crate) process: Process,
    /// Its port for AMQP.
    pub(crate) port: u16,
    /// Its port for AMQP over TLS.
    pub(crate) tls: u16,
    /// Who signed the certificate of `localhost` that it serves there, as a PEM file.
    pub(crate) authority: std::path::PathBuf,
    /// The port of the plugin `rabbitmq_prometheus`, where it was asked for.
    pub(crate) prometheus: u16,
    /// The port of the management API, where it was asked for.
    pub(crate) management: u16,
    epmd: Process,
    epmd_port: u16,
    distribution: u16,
    folder: tempfile::TempDir,
}

impl Rabbitmq {
    /// Starts it on free ports, with both plugins or without any, and waits until it is up.
    pub(crate) async fn start(plugins: bool) -> Option<Self> {
        Self::start_with(plugins, "heartbeat = 5\n").await
    }

    /// Starts it with these lines at the end of `rabbitmq.conf`.
    pub(crate) async fn start_with(plugins: bool, more: &str) -> Option<Self> {
        program("rabbitmqctl")?;
        let folder = tempfile::tempdir().expect("a folder can be made");
        let [port, tls, prometheus, management, epmd_port, distribution] = [(); 6].map(|()| free_port());
        let signer = Authority::new();
        let (certificate, key) = signer.issue(&["localhost"], 2100);
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("is written");
            path
        };
        let authority = write("authority.pem", &signer.pem);
        let (certificate, key) = (write("certificate.pem", &certificate), write("key.pem", &key));
        let conf = format!(
            "listeners.tcp.default = 127.0.0.1:{port}\nprometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {prometheus}\n\
             management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {management}\nlog.file.level = info\n\
             listeners.ssl.default = 127.0.0.1:{tls}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\n\
             ssl_options.keyfile = {}\n{more}",
            authority.display(),
            certificate.display(),
            key.display(),
        );
        write("rabbitmq.conf", &conf);
        // How often it looks for what was not acknowledged has no key in the other file.
        write("advanced.config", "[{rabbit, [{channel_tick_interval, 1000}]}].");
        write("enabled_plugins", if plugins { "[rabbitmq_management,rabbitmq_prometheus]." } else { "[]." });
        // In front, so that it ends with the test; else the node would start one that stays.
        let mut command = Command::new("epmd");
        command.args(["-port", &epmd_port.to_string(), "-address", "127.0.0.1"]);
        let epmd = Process::start(&mut command, &folder.path().join("epmd.log"));
        let process = Self::launch(folder.path(), port, epmd_port, distribution);
        let mut rabbitmq = Self { process, port, tls, authority, prometheus, management, epmd, epmd_port, distribution, folder };
        rabbitmq.ready().await;
        Some(rabbitmq)
    }

    fn launch(folder: &Path, port: u16, epmd: u16, distribution: u16) -> Process {
        let mut command = Command::new(format!("{PROGRAMS}/rabbitmq-server"));
        command
            .env("HOME", folder)
            .env("ERL_EPMD_PORT", epmd.to_string())
            .env("RABBITMQ_NODENAME", "test@localhost")
            .env("RABBITMQ_NODE_PORT", port.to_string())
            .env("RABBITMQ_DIST_PORT", distribution.to_string())
            // Not open to other hosts: tests of the host would see it come.
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
            .env("RABBITMQ_MNESIA_BASE", folder.join("mnesia"))
            .env("RABBITMQ_LOG_BASE", folder.join("log"))
            .env("RABBITMQ_CONFIG_FILE", folder.join("rabbitmq"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", folder.join("advanced.config"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("enabled_plugins"))
            .env("RABBITMQ_PID_FILE", folder.join("pid"));
        Process::start(&mut command, &folder.join("out"))
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same ports, and does not wait.
    pub(crate) fn relaunch(&mut self) {
        self.process = Self::launch(self.folder.path(), self.port, self.epmd_port, self.distribution);
    }

    async fn ready(&mut self) {
        let out = self.folder.path().join("out");
        eventually("RabbitMQ has started", Duration::from_secs(300), || async {
            let out = std::fs::read_to_string(&out).unwrap_or_default();
            assert!(!out.contains("Kernel pid terminated"), "{out}");
            out.contains("Starting broker... completed").then_some(())
        })
        .await;
    }

    /// Runs `rabbitmqctl` and returns what it printed.
    #[track_caller]
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(format!("{PROGRAMS}/rabbitmqctl"));
        command.env("HOME", self.folder.path()).env("ERL_EPMD_PORT", self.epmd_port.to_string()).env("RABBITMQ_NODENAME", "test@localhost");
        let output = command.args(arguments).output().expect("rabbitmqctl runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "rabbitmqctl {arguments:?}: {text}");
        text
    }

    /// Runs a command of a shell in which `rabbitmqctl` is the one of this node.
    pub(crate) fn shell(&self, text: &str) -> std::process::Output {
        let path = format!("{PROGRAMS}:{}", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("sh");
        command.args(["-c", text]).env("PATH", path).env("HOME", self.folder.path()).env("ERL_EPMD_PORT", self.epmd_port.to_string());
        command.env("RABBITMQ_NODENAME", "test@localhost").output().expect("sh runs")
    }

    /// Declares a durable queue.
    pub(crate) fn queue(&self, vhost: &str, queue: &str) {
        let name = format!("{{resource, <<\"{vhost}\">>, queue, <<\"{queue}\">>}}");
        self.ctl(&["eval", &format!("rabbit_amqqueue:declare({name}, true, false, [], none, <<\"test\">>).")]);
    }

    /// Adds a user with the password `pw-NAME` and these permissions: configure, write, read.
    pub(crate) fn user(&self, name: &str, vhost: &str, permissions: [&str; 3]) {
        self.ctl(&["add_user", name, &format!("pw-{name}")]);
        let [configure, write, read] = permissions;
        self.ctl(&["set_permissions", "-p", vhost, name, configure, write, read]);
    }

    /// Returns a client of it.
    pub(crate) fn broker(&self, vhost: &str, user: &str) -> Broker {
        let password = self.password_file(user);
        Broker::new(settings(self.port, vhost, user, Some(password)), Tasks::new())
    }

    /// Writes the password of [`Rabbitmq::user`] into a file; that of `guest` is `guest`.
    pub(crate) fn password_file(&self, user: &str) -> std::path::PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.folder.path().join(format!("password-{user}"));
        std::fs::write(&path, if user == "guest" { "guest".to_owned() } else { format!("pw-{user}") }).expect("is written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("is set");
        path
    }

    /// What it wrote into its log.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log/test@localhost.log")).unwrap_or_default()
    }
}

/// Settings for a broker on this host.
pub(crate) fn settings(port: u16, vhost: &str, user: &str, password_file: Option<std::path::PathBuf>) -> Settings {
    let endpoint = Endpoint::Tcp { host: "127.0.0.1".to_owned(), port };
    Settings { endpoint, tls: None, vhost: vhost.to_owned(), username: user.to_owned(), password_file }
}

/// Builds a frame with a method.
pub(crate) fn method(channel: u16, class: u16, method: u16, arguments: &[u8]) -> Vec<u8> {
    frame(1, channel, &[&class.to_be_bytes()[..], &method.to_be_bytes(), arguments].concat())
}

/// Builds a frame.
pub(crate) fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).expect("is small").to_be_bytes();
    [&[kind][..], &channel.to_be_bytes(), &size, payload, &[0xCE]].concat()
}

/// `connection.start` with these server properties, already encoded.
pub(crate) fn start(properties: &[u8]) -> Vec<u8> {
    let long = |bytes: &[u8]| [&u32::try_from(bytes.len()).expect("is small").to_be_bytes()[..], bytes].concat();
    method(0, 10, 10, &[&[0, 9][..], &long(properties), &long(b"PLAIN"), &long(b"en_US")].concat())
}

/// `connection.tune`.
pub(crate) fn tune(channel_max: u16, frame_max: u32, heartbeat: u16) -> Vec<u8> {
    method(0, 10, 30, &[&channel_max.to_be_bytes()[..], &frame_max.to_be_bytes(), &heartbeat.to_be_bytes()].concat())
}

/// `connection.open-ok`.
pub(crate) fn open_ok() -> Vec<u8> {
    method(0, 10, 41, &[0])
}

/// A broker that reads the protocol header and then a frame before each further step, and sends the step; after the
/// last it sends `flood` without end, or is silent where that is empty. Returns its port and what it has read.
pub(crate) async fn scripted(steps: Vec<Vec<u8>>, flood: Vec<u8>) -> (u16, std::sync::Arc<std::sync::Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    let seen = std::sync::Arc::<std::sync::Mutex<Vec<u8>>>::default();
    let all = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(play(stream, steps.clone(), flood.clone(), seen.clone()));
        }
    });
    (port, all)
}

async fn play(mut stream: TcpStream, steps: Vec<Vec<u8>>, flood: Vec<u8>, seen: std::sync::Arc<std::sync::Mutex<Vec<u8>>>) -> Option<()> {
    let mut header = [0; 8];
    stream.read_exact(&mut header).await.ok()?;
    for (at, step) in steps.iter().enumerate() {
        if at > 0 {
            let mut head = [0; 7];
            loop {
                stream.read_exact(&mut head).await.ok()?;
                let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
                let mut rest = vec![0; size + 1];
                stream.read_exact(&mut rest).await.ok()?;
                seen.lock().expect("no panic in here").extend([&head[..], &rest].concat());
                // Heartbeats and what the client says of itself are no questions.
                if head[0] == 1 && !(rest.starts_with(&[0, 10, 0, 31]) && at > 0) {
                    break;
                }
            }
        }
        stream.write_all(step).await.ok()?;
    }
    while !flood.is_empty() {
        stream.write_all(&flood).await.ok()?;
    }
    tokio::time::sleep(Duration::from_secs(3600)).await;
    Some(())
}
