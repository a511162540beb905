//! Networks of the kernel's own, apart from that of this host: what is done in one is seen in no other.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::process::program;

/// The network of a process.
pub(crate) struct Network {
    pid: u32,
    /// The process, where it is there for nothing else.
    holder: Option<Child>,
}

impl Network {
    /// That of this process.
    pub(crate) fn of(pid: u32) -> Self {
        Self { pid, holder: None }
    }

    /// Makes one with nothing but its own loopback. It goes with the process that holds it, and that goes with this one,
    /// however it ends. Where that is not permitted the test is skipped, or fails under `REQUIRE_SERVICES=1`.
    pub(crate) fn new() -> Option<Self> {
        let (unshare, _) = (program("unshare")?, program("ip")?);
        let mut command = Command::new(unshare);
        // It reads until the other end of its input is closed, even by a SIGKILL.
        command.args(["--net", "sh", "-c", "ip link set lo up && echo ready && exec cat"]);
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare starts");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("is piped")).read_line(&mut line).expect("can be read");
        let network = Self { pid: holder.id(), holder: Some(holder) };
        if line.trim() == "ready" {
            return Some(network);
        }
        assert!(std::env::var_os("REQUIRE_SERVICES").is_none(), "a network of its own needs root and CAP_SYS_ADMIN");
        eprintln!("skipped: a network of its own is not permitted here");
        None
    }

    /// Returns the process by which `ip link set … netns` knows it.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Does something on a thread in it: sockets made and processes started there belong to it for ever.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let network = File::open(format!("/proc/{}/ns/net", self.pid())).expect("it is there");
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).expect("may be entered");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `ip` in it, once per line.
    pub(crate) fn ip(&self, lines: &str) {
        self.within(|| {
            for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
                let output = Command::new("ip").args(line.split(' ')).output().expect("ip runs");
                assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
            }
        });
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(holder) = &mut self.holder {
            drop(holder.stdin.take());
            let _ = holder.wait();
        }
    }
}
