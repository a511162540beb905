//! memcached on a port of its own.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::process::{Process, eventually, program};

/// Starts memcached; its log goes to `folder`.
pub(crate) fn memcached(folder: &Path, port: u16) -> Option<Process> {
    let program = program("memcached")?;
    let mut command = Command::new(program);
    command.args(["-u", "nobody", "-l", "127.0.0.1", "-p"]).arg(port.to_string());
    Some(Process::start(&mut command, &folder.join("memcached.log")))
}

/// A memcached that is nobody's child, as an action starts it: killed when the test ends.
pub(crate) struct Daemon(String);

impl Daemon {
    /// Starts one.
    pub(crate) async fn start(port: u16) -> Option<Self> {
        let mut command = Command::new(program("memcached")?);
        let started = command.args(["-d", "-u", "nobody", "-l", "127.0.0.1", "-p"]).arg(port.to_string()).status();
        assert!(started.is_ok_and(|status| status.success()), "memcached starts");
        Some(Self::on(port).await)
    }

    /// Takes over the one that listens, or is about to.
    pub(crate) async fn on(port: u16) -> Self {
        let ask = || async {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
            stream.write_all(b"stats\r\nquit\r\n").await.ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.ok()?;
            answer.lines().find_map(|line| line.strip_prefix("STAT pid ").map(str::to_owned))
        };
        Self(eventually("memcached says its process id", Duration::from_secs(10), ask).await)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-KILL", &self.0]).status();
    }
}
