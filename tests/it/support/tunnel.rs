//! An SSH tunnel and what can be at its far end: sshd with `ssh -L`, PostgreSQL, MariaDB, Derby.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::process::{Process, eventually, free_port, program, signal_tree};

/// Returns a command that runs a daemon which refuses to be root as this user; where we are not root, as ourselves.
pub(crate) fn as_user(user: &str, program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    let group = if user == "nobody" { "nogroup" } else { user };
    command.args([&format!("--reuid={user}"), &format!("--regid={group}"), "--clear-groups", "--"]).arg(program);
    command
}

/// Makes a folder that a daemon of this user may use.
pub(super) fn folder_of(user: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder can be made");
    if rustix::process::geteuid().is_root() {
        run(Command::new("chown").arg(user).arg(folder.path()));
    }
    folder
}

pub(super) fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {told}{}", String::from_utf8_lossy(&output.stdout));
}

async fn listens(what: &str, port: u16) {
    eventually(what, Duration::from_secs(60), || async { tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok().map(drop) }).await;
}

/// sshd and an `ssh -N -L` to it.
pub(crate) struct Tunnel {
    /// The near side: `ssh -N -L …`.
    pub(crate) ssh: Process,
    /// The far side's sshd, which also speaks ssh itself.
    pub(crate) sshd: Process,
    /// Where sshd listens.
    pub(crate) sshd_port: u16,
    /// Where ssh listens, one port for each far end.
    pub(crate) ports: Vec<u16>,
    far: Vec<String>,
    folder: tempfile::TempDir,
}

impl Tunnel {
    /// Starts both, with a way to each of these far ends (`host:port`); `"sshd"` is sshd itself.
    pub(crate) async fn to(far: &[&str]) -> Option<Self> {
        let (sshd, keygen) = (program("sshd")?, program("ssh-keygen")?);
        program("ssh")?;
        let folder = tempfile::tempdir().expect("a folder can be made");
        let path = |name: &str| folder.path().join(name);
        for key in ["host", "key"] {
            run(Command::new(&keygen).args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path(key)));
        }
        std::fs::copy(path("key.pub"), path("authorized_keys")).expect("the folder takes files");
        if rustix::process::geteuid().is_root() {
            std::fs::create_dir_all("/run/sshd").expect("sshd wants it");
        }
        let sshd_port = free_port();
        let config = format!(
            "ListenAddress 127.0.0.1:{sshd_port}\nHostKey {host}\nAuthorizedKeysFile {keys}\nStrictModes no\nUsePAM no\n\
             PidFile none\nPermitRootLogin prohibit-password\nPasswordAuthentication no\nMaxStartups 300\nMaxSessions 500\nUseDNS no\n",
            host = path("host").display(),
            keys = path("authorized_keys").display(),
        );
        std::fs::write(path("sshd_config"), config).expect("the folder takes files");
        let sshd = Process::start(Command::new(sshd).args(["-D", "-e", "-f"]).arg(path("sshd_config")), &path("sshd.log"));
        listens("sshd listens", sshd_port).await;
        let far: Vec<String> =
            far.iter().map(|far| if *far == "sshd" { format!("127.0.0.1:{sshd_port}") } else { (*far).to_owned() }).collect();
        let ports: Vec<u16> = far.iter().map(|_| free_port()).collect();
        let ssh = launch(folder.path(), sshd_port, &ports, &far);
        let tunnel = Self { ssh, sshd, sshd_port, ports, far, folder };
        tunnel.ready().await;
        Some(tunnel)
    }

    async fn ready(&self) {
        let last = std::net::SocketAddr::from(([127, 0, 0, 1], *self.ports.last().expect("it leads somewhere")));
        eventually("ssh -L listens", Duration::from_secs(60), || async {
            proctor::client::sock_diag::tcp(last).expect("the kernel tells").map(drop)
        })
        .await;
    }

    /// Kills ssh and starts it again on the same ports.
    pub(crate) async fn restart(&mut self) {
        self.ssh.kill();
        self.ssh = launch(self.folder.path(), self.sshd_port, &self.ports, &self.far);
        self.ready().await;
    }

    /// Sends a signal to all that there is of sshd: each of its connections has a session of its own.
    pub(crate) fn signal_far(&self, name: &str) {
        signal_tree(&self.sshd.pid().to_string(), name);
    }

    /// What sshd logged.
    pub(crate) fn sshd_log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("sshd.log")).unwrap_or_default()
    }
}

/// A path on which nothing comes back any more, until it is dropped.
pub(crate) struct Cut(Vec<String>);

impl Tunnel {
    /// Cuts the path from ssh to sshd, as a dead network does; nothing where that is not allowed here.
    pub(crate) fn cut(&self) -> Option<Cut> {
        let iptables = program("iptables").filter(|_| rustix::process::geteuid().is_root())?;
        let port = self.sshd_port.to_string();
        // On the way in: of what is dropped on the way out, the sender is told.
        let rule = ["INPUT", "-i", "lo", "-p", "tcp", "--dport", &port, "-j", "DROP"].map(str::to_owned).to_vec();
        run(Command::new(iptables).args(["-w", "-I"]).args(&rule));
        Some(Cut(rule))
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        let _ = Command::new("iptables").args(["-w", "-D"]).args(&self.0).status();
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // A connection of sshd that is frozen would outlive both.
        self.signal_far("CONT");
    }
}

fn launch(folder: &Path, sshd_port: u16, ports: &[u16], far: &[String]) -> Process {
    let mut command = Command::new("ssh");
    command.args(["-N", "-F", "none", "-p", &sshd_port.to_string(), "-i"]).arg(folder.join("key"));
    for option in ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ExitOnForwardFailure=yes", "BatchMode=yes"] {
        command.args(["-o", option]);
    }
    for (port, far) in ports.iter().zip(far) {
        command.args(["-L", &format!("127.0.0.1:{port}:{far}")]);
    }
    Process::start(command.arg("127.0.0.1"), &folder.join("ssh.log"))
}

/// A PostgreSQL of the test's own.
pub(crate) struct Postgres {
    /// The postmaster.
    pub(crate) process: Process,
    /// Where it listens on 127.0.0.1.
    pub(crate) port: u16,
    pub(super) tls: bool,
    pub(super) folder: tempfile::TempDir,
}

impl Postgres {
    /// Starts it; with TLS it has a certificate that nobody trusts.
    pub(crate) async fn start(tls: bool) -> Option<Self> {
        let initdb = program("initdb")?;
        let folder = folder_of("postgres");
        run(as_user("postgres", &initdb).args(["--no-sync", "-A", "trust", "-U", "postgres", "-D"]).arg(folder.path().join("db")));
        if tls {
            let (certificate, key) = super::nginx::Authority::new().issue(&["db.example.org"], 2040);
            for (name, text) in [("server.crt", certificate), ("server.key", key)] {
                let path = folder.path().join("db").join(name);
                std::fs::write(&path, text).expect("the folder takes files");
                std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("it is ours");
                if rustix::process::geteuid().is_root() {
                    run(Command::new("chown").arg("postgres").arg(&path));
                }
            }
        }
        let port = free_port();
        let postgres = Self { process: launch_postgres(folder.path(), port, tls), port, tls, folder };
        postgres.ready().await;
        Some(postgres)
    }

    pub(super) async fn ready(&self) {
        eventually("PostgreSQL is ready", Duration::from_secs(60), || async {
            self.log().contains("ready to accept connections").then_some(())
        })
        .await;
    }

    /// Starts it again after it was killed.
    pub(crate) async fn restart(&mut self) {
        self.process.kill();
        eventually("the old postmaster's children have ended", Duration::from_secs(30), || async {
            let lock = self.folder.path().join("db/postmaster.pid");
            let shared = std::fs::read_to_string(&lock).unwrap_or_default();
            let ids: Vec<&str> = shared.lines().nth(6).unwrap_or_default().split_whitespace().collect();
            let attached = Command::new("ipcs").arg("-m").output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            let in_use = attached.unwrap_or_default().lines().any(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                ids.get(1).is_some_and(|id| fields.get(1) == Some(id)) && fields.get(5).is_some_and(|count| *count != "0")
            });
            (!in_use).then_some(())
        })
        .await;
        self.process = launch_postgres(self.folder.path(), self.port, self.tls);
        self.ready().await;
    }

    /// What it logged since it was started.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

pub(super) fn launch_postgres(folder: &Path, port: u16, tls: bool) -> Process {
    let postgres = program("postgres").expect("initdb is beside it");
    let mut command = as_user("postgres", &postgres);
    command.arg("-D").arg(folder.join("db")).args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
    command.args(["-c", "unix_socket_directories=", "-c", "fsync=off", "-c", if tls { "ssl=on" } else { "ssl=off" }]);
    Process::start(&mut command, &folder.join("log"))
}

/// A MariaDB of the test's own.
pub(crate) struct Mariadb {
    /// The server.
    pub(crate) process: Process,
    /// Where it listens, on every address.
    pub(crate) port: u16,
    pub(super) folder: tempfile::TempDir,
}

impl Mariadb {
    /// Starts it with more options; it blocks a host after three broken handshakes.
    pub(crate) async fn start(more: &[&str]) -> Option<Self> {
        let (install, server) = (program("mariadb-install-db")?, program("mariadbd")?);
        let folder = folder_of("mysql");
        let data = folder.path().join("db");
        // A server that starts removes what it finds of temporary tables in its folder for them: in /tmp, another's.
        let mut installing = as_user("mysql", &install);
        installing.env("TMPDIR", folder.path());
        installing.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
        run(installing.arg(format!("--datadir={}", data.display())));
        let port = free_port();
        let mut command = as_user("mysql", &server);
        command.env("TMPDIR", folder.path());
        command.args(["--no-defaults", "--bind-address=0.0.0.0", "--max-connect-errors=3", "--innodb-flush-log-at-trx-commit=0"]);
        command.args([format!("--datadir={}", data.display()), format!("--port={port}")]);
        command.arg(format!("--socket={}", folder.path().join("socket").display())).args(more);
        let process = Process::start(&mut command, &folder.path().join("log"));
        let mariadb = Self { process, port, folder };
        eventually("MariaDB is ready", Duration::from_secs(60), || async { mariadb.try_ask("SELECT 1").filter(|answer| answer == "1") })
            .await;
        Some(mariadb)
    }

    fn try_ask(&self, sql: &str) -> Option<String> {
        let mut command = Command::new("mariadb");
        command.args(["--no-defaults", "-u", "root", "-N", "-B", "-e", sql, "-S"]).arg(self.folder.path().join("socket"));
        let output = command.stderr(Stdio::null()).output().expect("the client is beside the server");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Asks it something as root, over its own socket.
    pub(crate) fn ask(&self, sql: &str) -> String {
        self.try_ask(sql).unwrap_or_else(|| panic!("MariaDB does not answer {sql:?}: {}", self.log()))
    }

    /// One of its counters.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let answer = self.ask(&format!("SHOW GLOBAL STATUS LIKE '{name}'"));
        answer.split_whitespace().nth(1).and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name}: {answer:?}"))
    }

    /// What it logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

/// Derby's network server, which speaks DRDA as DB2 does.
pub(crate) struct Derby {
    /// The Java machine.
    pub(crate) process: Process,
    /// Where it listens on 127.0.0.1.
    pub(crate) port: u16,
    folder: tempfile::TempDir,
}

impl Derby {
    /// Starts it.
    pub(crate) async fn start() -> Option<Self> {
        let java = program("java")?;
        let stack = std::env::var_os("PROCTOR_STACK").map_or_else(|| PathBuf::from("/tmp/proctor-stack"), PathBuf::from);
        let jars = stack.join("derby");
        if !jars.join("derbynet-10.16.1.1.jar").is_file() {
            assert!(std::env::var_os("REQUIRE_SERVICES").is_none(), "Derby is not installed: run tests/stack install");
            eprintln!("skipped: Derby is not installed");
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder can be made");
        let port = free_port();
        let mut command = Command::new(java);
        command.arg("-cp").arg(jars.join("*")).arg("org.apache.derby.drda.NetworkServerControl").arg("start");
        command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-noSecurityManager"]).current_dir(folder.path());
        let process = Process::start(&mut command, &folder.path().join("log"));
        listens("Derby listens", port).await;
        Some(Self { process, port, folder })
    }

    /// What it logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}
