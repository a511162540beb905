//! What a database of the tests is told and asked, and clients that hold something open in it.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::nginx::Authority;
use super::process::{eventually, free_port, program, signal_tree};
use super::tunnel::{Mariadb, Postgres, as_user, folder_of, launch_postgres, run};

/// A client program that takes statements from the test and keeps its connection until it is dropped.
pub(crate) struct Client(Child);

impl Client {
    fn start(command: &mut Command) -> Self {
        let quiet = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(quiet.spawn().expect("the client is beside the server"))
    }

    /// Gives it statements; what they do is to be waited for in the server.
    pub(crate) fn say(&mut self, sql: &str) {
        let mut input = self.0.stdin.as_ref().expect("it takes statements");
        input.write_all(format!("{sql}\n").as_bytes()).expect("it is there");
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Writes a secret file of the test's own.
pub(crate) fn secret(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("password");
    std::fs::write(&path, text).expect("the folder takes files");
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("it is ours");
    path
}

/// Puts a certificate and its key where a server of this user may read them.
fn certify(folder: &Path, user: &str, authority: &Authority) {
    let (certificate, key) = authority.issue(&["localhost"], 2040);
    for (name, text) in [("server.crt", certificate), ("server.key", key)] {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("the folder takes files");
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("it is ours");
        if rustix::process::geteuid().is_root() {
            run(Command::new("chown").arg(user).arg(&path));
        }
    }
}

impl Postgres {
    fn psql(&self, user: &str) -> Command {
        let mut command = Command::new("psql");
        command.args(["-X", "-q", "-h", "127.0.0.1", "-d", "postgres", "-U", user, "-p", &self.port.to_string()]);
        command
    }

    /// Asks it something as its superuser.
    pub(crate) fn ask(&self, sql: &str) -> String {
        let output =
            self.psql("postgres").args(["-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]).output().expect("psql is beside the server");
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// A client of its superuser that stays.
    pub(crate) fn client(&self) -> Client {
        self.client_of("postgres")
    }

    /// A client of this user, whom it lets in without a password.
    pub(crate) fn client_of(&self, user: &str) -> Client {
        Client::start(&mut self.psql(user))
    }

    /// Lets in only by these lines, and its superuser.
    pub(crate) fn let_in(&self, lines: &str) {
        let text = format!("host all,replication postgres 127.0.0.1/32 trust\n{lines}\n");
        std::fs::write(self.folder.path().join("db/pg_hba.conf"), text).expect("it is ours");
        self.ask("SELECT pg_reload_conf()");
    }

    /// Sets what needs a restart.
    pub(crate) fn set(&self, setting: &str, value: &str) {
        self.ask(&format!("ALTER SYSTEM SET {setting} = {value}"));
    }

    /// Gives it a certificate of this authority; taken at the next start.
    pub(crate) fn certify(&mut self, authority: &Authority) {
        certify(&self.folder.path().join("db"), "postgres", authority);
        self.tls = true;
    }

    /// Sends a signal to the postmaster and each of its children.
    pub(crate) fn signal_all(&self, name: &str) {
        signal_tree(&self.process.pid().to_string(), name);
    }

    /// Starts a replica of it, which streams.
    pub(crate) async fn replica(&self) -> Self {
        let folder = folder_of("postgres");
        let mut backup = as_user("postgres", &program("pg_basebackup").expect("it is beside initdb"));
        backup.args([
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-R",
            "-X",
            "stream",
            "--no-sync",
            "-c",
            "fast",
            "-p",
            &self.port.to_string(),
            "-D",
        ]);
        run(backup.arg(folder.path().join("db")));
        let port = free_port();
        let replica = Self { process: launch_postgres(folder.path(), port, false), port, tls: false, folder };
        eventually("the replica takes questions", Duration::from_secs(60), || async {
            replica.log().contains("ready to accept read-only connections").then_some(())
        })
        .await;
        replica
    }
}

impl Mariadb {
    /// A client of its root that stays.
    pub(crate) fn client(&self) -> Client {
        let mut command = Command::new("mariadb");
        command.args(["--no-defaults", "-u", "root", "--unbuffered", "-S"]).arg(self.socket());
        Client::start(&mut command)
    }

    /// Its socket in the file system.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// A folder that a server of its user may read, with a certificate of this authority.
    pub(crate) fn certificate(authority: &Authority) -> tempfile::TempDir {
        let folder = folder_of("mysql");
        certify(folder.path(), "mysql", authority);
        folder
    }
}
