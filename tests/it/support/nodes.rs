//! Celery nodes under one `celery multi`, as CourSys runs them.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::gunicorn::venv;
use super::process::{eventually, signal_group};

const SITE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stack/site");

/// Nodes of the app `queues`, each named like the queue that it consumes; killed when the test ends.
pub(crate) struct Nodes {
    broker: String,
    backend: String,
    folder: tempfile::TempDir,
}

impl Nodes {
    /// Takes the broker and the result backend; starts none.
    pub(crate) fn of(broker: &str, backend: &str) -> Option<Self> {
        if !venv()?.join("bin/celery").is_file() {
            assert!(std::env::var_os("REQUIRE_SERVICES").is_none(), "celery is not installed: run tests/stack install");
            eprintln!("skipped: celery is not installed");
            return None;
        }
        Some(Self { broker: broker.to_owned(), backend: backend.to_owned(), folder: tempfile::tempdir().expect("a folder can be made") })
    }

    /// Starts these and waits until they are ready; `options` are those of a worker.
    pub(crate) async fn start(&self, names: &[&str], options: &[&str]) {
        for name in names {
            let _ = std::fs::remove_file(self.log_of(name));
        }
        self.multi("start", names, options);
        for name in names {
            eventually(&format!("node {name} is ready"), Duration::from_secs(300), || async {
                self.log(name).contains(" ready.").then_some(())
            })
            .await;
        }
    }

    /// Ends these as the unit does, and waits.
    pub(crate) fn stop(&self, names: &[&str]) {
        self.multi("stopwait", names, &[]);
    }

    fn multi(&self, verb: &str, names: &[&str], options: &[&str]) {
        let folder = self.folder.path().display();
        let mut command = self.command("bin/celery");
        command.args(["multi", verb]).args(names).args(["-A", "queues"]);
        command.args([format!("--pidfile={folder}/%n.pid"), format!("--logfile={folder}/%n.log")]);
        command.args(["--loglevel=INFO", "--concurrency=2"]).args(options);
        for name in names {
            // Two of one queue are called `email` and `email-2`.
            let queue = name.split('-').next().unwrap_or(name);
            command.arg(format!("-Q:{name}")).arg(queue);
        }
        run(command);
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(venv().expect("it was there before").join(program));
        command
            .current_dir(SITE)
            .env("SITE_BROKER", &self.broker)
            .env("SITE_BACKEND", &self.backend)
            .env("C_FORCE_ROOT", "1")
            .env("PYTHONPATH", SITE)
            .env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    /// Runs Python that knows the tasks.
    pub(crate) fn python(&self, code: &str) {
        let mut command = self.command("bin/python");
        command.args(["-c", &format!("from queues import *\n{code}")]);
        run(command);
    }

    /// Sends a remote-control command, such as `cancel_consumer sims`.
    pub(crate) fn control(&self, arguments: &[&str]) {
        let mut command = self.command("bin/celery");
        command.args(["--app", "queues", "control", "--timeout", "30"]).args(arguments);
        run(command);
    }

    fn log_of(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(format!("{name}.log"))
    }

    /// Returns what a node has logged.
    pub(crate) fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.log_of(name)).unwrap_or_default()
    }

    /// Returns the main process of a node.
    #[track_caller]
    pub(crate) fn main(&self, name: &str) -> u32 {
        pid_in(&self.folder.path().join(format!("{name}.pid"))).unwrap_or_else(|| panic!("node {name} runs"))
    }

    /// Sends a signal to the main process of a node alone.
    pub(crate) fn signal_main(&self, name: &str, signal: &str) {
        let told = Command::new("kill").args([&format!("-{signal}"), &self.main(name).to_string()]).status().expect("kill runs");
        assert!(told.success(), "{name} runs");
    }

    /// Sends a signal to the children of a node.
    pub(crate) fn signal_children(&self, name: &str, signal: &str) {
        let told = Command::new("pkill").args([&format!("-{signal}"), "-P", &self.main(name).to_string()]).status().expect("pkill runs");
        assert!(told.success(), "{name} has children");
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        let files = std::fs::read_dir(self.folder.path()).into_iter().flatten().flatten();
        for pid in files.filter_map(|file| pid_in(&file.path())) {
            let output = Command::new("ps").args(["-o", "pgid=", "-p", &pid.to_string()]).output().expect("ps runs");
            if let Ok(group) = String::from_utf8_lossy(&output.stdout).trim().parse::<u32>() {
                signal_group(group, "CONT");
                signal_group(group, "KILL");
            }
        }
    }
}

fn pid_in(path: &Path) -> Option<u32> {
    let is_pid = path.extension().is_some_and(|extension| extension == "pid");
    std::fs::read_to_string(path).ok().filter(|_| is_pid)?.trim().parse().ok()
}

#[track_caller]
fn run(mut command: Command) {
    let output = command.output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    // `celery multi` ends well whatever became of its nodes.
    assert!(output.status.success() && !text.contains("FAILED"), "{command:?}: {text}");
}
