//! Child processes that end with the test, free ports, and waiting for a condition with a deadline.

use std::future::Future;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A child process, killed with its whole process group when the test ends.
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts a program; what it prints goes to `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Self {
        use std::os::unix::process::CommandExt;
        let file = std::fs::File::create(log).expect("the log can be written");
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a file can be shared"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self { child }
    }

    /// Returns the process id, which is also that of its group.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name to the whole group: `STOP`, `CONT`, `KILL`, `TERM`, `HUP`.
    pub(crate) fn signal(&self, name: &str) {
        signal_group(self.pid(), name);
    }

    /// Kills it and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.signal("KILL");
        let _ = self.child.wait();
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().expect("a child can be waited for")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal("CONT");
        self.kill();
    }
}

/// Sends a signal to a process group.
pub(crate) fn signal_group(pid: u32, name: &str) {
    let _ = Command::new("kill").args([&format!("-{name}"), "--", &format!("-{pid}")]).stderr(Stdio::null()).status();
    if name == "STOP" {
        let of_group = |process: &procfs::process::Process| process.stat().is_ok_and(|stat| i64::from(stat.pgrp) == i64::from(pid));
        procfs::process::all_processes().expect("/proc is there").flatten().filter(of_group).for_each(|process| stopped(process.pid));
    }
}

/// Waits until a process has stopped as a whole: one of its threads takes the signal, and the others go on until it has.
fn stopped(pid: i32) {
    let begin = std::time::Instant::now();
    let runs = |task: procfs::process::Task| task.stat().is_ok_and(|stat| !['T', 't', 'Z', 'X'].contains(&stat.state));
    while procfs::process::Process::new(pid).and_then(|process| process.tasks()).is_ok_and(|tasks| tasks.flatten().any(runs)) {
        assert!(begin.elapsed() < Duration::from_secs(30), "process {pid} does not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sends a signal to a process and all its descendants, in whatever groups they are, the youngest first.
pub(crate) fn signal_tree(pid: &str, name: &str) {
    for child in std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default().split_whitespace() {
        signal_tree(child, name);
    }
    let _ = Command::new("kill").args([&format!("-{name}"), pid]).stderr(Stdio::null()).status();
    if name == "STOP" {
        stopped(pid.parse().expect("is the number of a process"));
    }
}

/// Returns a port that is free, each only once in this process: tests run at the same time. It is none of those from which the
/// kernel takes one for whoever connects somewhere or wants any port, so that it stays free until it is bound, and refuses as
/// long as nobody binds it.
pub(crate) fn free_port() -> u16 {
    use std::net::UdpSocket;
    use std::sync::Mutex;
    // Another process that runs the same tests begins elsewhere.
    static NEXT: Mutex<Option<u16>> = Mutex::new(None);
    let mut next = NEXT.lock().expect("no test panics in here");
    let next = next.get_or_insert_with(|| PORTS.start + (std::process::id() * 631 % u32::from(PORTS.end - PORTS.start)) as u16);
    loop {
        *next = if *next + 1 < PORTS.end { *next + 1 } else { PORTS.start };
        if TcpListener::bind(("0.0.0.0", *next)).is_ok() && UdpSocket::bind(("0.0.0.0", *next)).is_ok() {
            return *next;
        }
    }
}

/// Ports below those that the kernel gives away (`net.ipv4.ip_local_port_range`, from 32768).
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// Waits until a condition holds, asking every 20 ms; panics with `what` at the deadline.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, within: Duration, mut ask: impl FnMut() -> F) -> T {
    let begin = tokio::time::Instant::now();
    loop {
        if let Some(value) = ask().await {
            return value;
        }
        assert!(begin.elapsed() < within, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Puts a program at a place from which it can be run at once, by everybody. Another program writes it: what this process
/// has open for writing, a child that another test starts just then has too for a moment, and such a file cannot be run.
pub(crate) fn install(from: &Path, to: &Path) {
    let done = Command::new("install").args(["-m", "0755"]).args([from, to]).status();
    assert!(done.is_ok_and(|status| status.success()), "{} is put at {}", from.display(), to.display());
}

/// Finds a program of the stack; where it is missing the test fails under `REQUIRE_SERVICES=1` and says that it is
/// skipped elsewhere.
pub(crate) fn program(name: &str) -> Option<std::path::PathBuf> {
    let dirs = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin:/usr/lib/postgresql/15/bin";
    let found = dirs.split(':').map(|dir| Path::new(dir).join(name)).find(|path| path.is_file());
    if found.is_none() {
        assert!(std::env::var_os("REQUIRE_SERVICES").is_none(), "{name} is not installed: run tests/stack install");
        eprintln!("skipped: {name} is not installed");
    }
    found
}
