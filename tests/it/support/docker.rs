//! Containers on the real docker engine of `tests/stack`, and engines of a test's own.

use std::path::{Path, PathBuf};
use std::process::Command;

/// `sleep` as PID 1 has no way to end at SIGTERM, so a restart would take docker's whole 10 s.
pub(crate) const POLITE: &[&str] = &["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"];

/// Runs docker's own command line; returns whether it went well, and what it printed.
pub(crate) fn docker(socket: &Path, arguments: &[&str]) -> (bool, String) {
    let out = Command::new("docker").arg("-H").arg(format!("unix://{}", socket.display())).args(arguments).output().unwrap();
    (out.status.success(), String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// A container of the test, removed at its end.
pub(crate) struct Container {
    socket: PathBuf,
    /// Its name, which ends in the number of the test's process.
    pub(crate) name: String,
}

impl Container {
    /// Starts one of busybox, without a network.
    #[track_caller]
    pub(crate) fn start(socket: &Path, name: &str, options: &[&str], command: &[&str]) -> Self {
        Self::of_image(socket, name, options, "proctor-busybox", command)
    }

    /// Starts one of another image.
    #[track_caller]
    pub(crate) fn of_image(socket: &Path, name: &str, options: &[&str], image: &str, command: &[&str]) -> Self {
        let name = format!("{name}-{}", std::process::id());
        let this = Self { socket: socket.to_owned(), name };
        this.cli(&["rm", "-f", &this.name]);
        let options = [&["run", "-d", "--network", "none", "--name", &this.name], options, &[image], command].concat();
        assert!(this.cli(&options).0, "{options:?}");
        this
    }

    /// Runs docker's own command line.
    pub(crate) fn cli(&self, arguments: &[&str]) -> (bool, String) {
        docker(&self.socket, arguments)
    }

    /// Returns what `docker inspect` says in this format.
    pub(crate) fn inspect(&self, format: &str) -> String {
        self.cli(&["inspect", "-f", format, &self.name]).1
    }

    /// Returns when it was started.
    pub(crate) fn started_at(&self) -> String {
        self.inspect("{{.State.StartedAt}}")
    }

    /// Kills its first process with SIGKILL from the host, so that docker is not asked.
    pub(crate) fn dies(&self) {
        let pid = self.inspect("{{.State.Pid}}");
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success(), "{} runs as {pid}", self.name);
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.cli(&["rm", "-f", &self.name]);
    }
}

/// A project of docker-compose, taken down at its end.
pub(crate) struct Compose {
    socket: PathBuf,
    /// Its name, which ends in the number of the test's process.
    pub(crate) project: String,
    folder: PathBuf,
}

impl Compose {
    /// Starts what the `docker-compose.yml` of a folder describes.
    #[track_caller]
    pub(crate) fn up(socket: &Path, name: &str, folder: &Path) -> Self {
        let this = Self { socket: socket.to_owned(), project: format!("{name}{}", std::process::id()), folder: folder.to_owned() };
        let (well, told) = this.run(&["up", "-d"]);
        assert!(well, "{told}");
        this
    }

    /// Runs docker-compose; returns whether it went well, and what it printed.
    pub(crate) fn run(&self, arguments: &[&str]) -> (bool, String) {
        let mut command = Command::new("docker-compose");
        command.current_dir(&self.folder).args(["-p", &self.project]).args(arguments);
        let out = command.env("DOCKER_HOST", format!("unix://{}", self.socket.display())).output().expect("docker-compose runs");
        (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr))
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        self.run(&["down", "-v", "-t", "1"]);
    }
}

/// An engine of the test's own, ended with it.
pub(crate) struct Engine {
    folder: tempfile::TempDir,
}

impl Engine {
    /// Starts it; nothing where docker is not installed.
    pub(crate) fn start() -> Option<Self> {
        super::process::program("dockerd")?;
        let this = Self { folder: tempfile::tempdir().expect("a folder") };
        this.told("start");
        Some(this)
    }

    /// Starts it again, or stops it.
    pub(crate) fn told(&self, what: &str) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stack/docker.sh");
        let status = Command::new("bash").arg(script).arg(what).env("PROCTOR_STACK", self.folder.path()).status();
        assert!(status.expect("it runs").success(), "{what}");
    }

    /// Returns its process.
    pub(crate) fn pid(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("docker.pid")).expect("it runs").trim().to_owned()
    }

    /// Returns its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.told("stop");
    }
}
