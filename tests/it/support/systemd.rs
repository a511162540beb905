//! The real systemd of `tests/stack/systemd.sh`, and units of a test in it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;

/// Returns a file that the stack makes; where it is missing the test fails under `REQUIRE_SERVICES=1` and says that it is
/// skipped elsewhere.
pub(crate) fn stack(file: &str) -> Option<PathBuf> {
    let path = Path::new(&std::env::var("PROCTOR_STACK").unwrap_or_else(|_| "/tmp/proctor-stack".into())).join(file);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("REQUIRE_SERVICES").is_none(), "{} is missing: run tests/stack/stack start", path.display());
    eprintln!("skipped: {} is missing: run tests/stack/stack start", path.display());
    None
}

/// Returns the socket of its bus.
pub(crate) fn bus() -> Option<PathBuf> {
    stack("systemd-bus/system_bus_socket")
}

/// Runs a command where systemd runs; returns what it printed, and whether it ended well.
pub(crate) fn inside(command: &[&str]) -> (bool, String) {
    let socket = stack("docker.sock").expect("the stack runs");
    let docker = Command::new("docker")
        .arg("-H")
        .arg(format!("unix://{}", socket.display()))
        .args(["exec", "proctor-systemd"])
        .args(command)
        .output();
    let out = docker.expect("docker is installed");
    (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr))
}

/// Runs `systemctl`.
#[track_caller]
pub(crate) fn systemctl(arguments: &[&str]) {
    let (well, said) = inside(&[&["systemctl"], arguments].concat());
    assert!(well, "systemctl {arguments:?}: {said}");
}

/// A unit of one test: stopped and removed at its end.
pub(crate) struct Unit(pub(crate) String);

impl Unit {
    /// Writes it, under a name of its own. systemd reads the file of a name that it does not know when it is asked.
    pub(crate) fn new(name: &str, lines: &[&str]) -> Self {
        let (stem, kind) = name.rsplit_once('.').expect("a whole name");
        let unit = Self(format!("proctor-it-{}-{stem}.{kind}", std::process::id()));
        unit.write(lines);
        unit
    }

    /// Writes it anew, and does not tell systemd.
    pub(crate) fn write(&self, lines: &[&str]) {
        let script = format!("printf '%s\\n' \"$@\" >/etc/systemd/system/{}", self.0);
        let (well, said) = inside(&[&["sh", "-c", &script, "sh"], lines].concat());
        assert!(well, "{said}");
    }

    /// Runs `systemctl VERB` on it.
    #[track_caller]
    pub(crate) fn systemctl(&self, verb: &str) {
        systemctl(&[verb, &self.0]);
    }

    /// Kills its main process.
    #[track_caller]
    pub(crate) fn kill(&self) {
        systemctl(&["kill", "--kill-who=main", "-s", "KILL", &self.0]);
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        let script = format!("systemctl stop {0}; rm -f /etc/systemd/system/{0}; systemctl reset-failed {0}", self.0);
        inside(&["sh", "-c", &script]);
    }
}

/// A bus in front of the real one, so that cutting it disturbs no other test.
pub(crate) struct Cuttable {
    folder: tempfile::TempDir,
    cut: Arc<Notify>,
}

impl Cuttable {
    /// Begins to pass on.
    pub(crate) fn new(real: PathBuf) -> Self {
        let this = Self { folder: tempfile::tempdir().expect("a folder"), cut: Arc::default() };
        let listener = UnixListener::bind(this.path()).expect("it can be bound");
        let cut = this.cut.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (real, cut) = (real.clone(), cut.clone());
                tokio::spawn(async move {
                    let mut far = UnixStream::connect(&real).await.expect("the real one is there");
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        () = cut.notified() => {}
                    }
                });
            }
        });
        this
    }

    /// Where it is.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("bus")
    }

    /// Ends all connections.
    pub(crate) fn cut(&self) {
        self.cut.notify_waiters();
    }
}
