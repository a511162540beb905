//! Proctor itself, as a process with its own state, intervals of 1 s and two ADMINS.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::process::{Process, eventually, free_port};

/// A folder with a configuration, and the Proctor that runs on it, if one does.
pub(crate) struct Proctor {
    /// Configuration, rules, log, and the state unless another place was named.
    pub(crate) folder: tempfile::TempDir,
    /// The port of the web.
    pub(crate) web: u16,
    /// The process.
    pub(crate) process: Option<Process>,
    env: Vec<(&'static str, String)>,
    /// The program that starts it, with its arguments; none where it is started directly.
    under: Vec<String>,
}

/// The program that is tested: the one that was built with the tests, or the one that `PROCTOR_BIN` names.
pub(crate) fn built() -> String {
    std::env::var("PROCTOR_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_proctor").to_owned())
}

impl Proctor {
    /// Writes a configuration that mails `relay`; `sections` are `probes:`, `actions:` and what else is wanted. Starts
    /// nothing.
    pub(crate) fn configured(relay: u16, sections: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let state = folder.path().join("state.db");
        let proctor = Self { folder, web: free_port(), process: None, env: Vec::new(), under: Vec::new() };
        proctor.configure(&state, relay, sections);
        proctor
    }

    /// Writes the configuration anew.
    pub(crate) fn configure(&self, state: &Path, relay: u16, sections: &str) {
        let config = format!(
            r#"
site: {{name: coursys}}
web: {{listen: "127.0.0.1:{web}"}}
control: {{socket: "{folder}/control.sock"}}
state: {{path: "{state}"}}
defaults: {{interval: 1s, timeout: 1s}}
rules: {{files: ["{folder}/rules*.yml"], interval: 1s}}
startup: {{first_look: 0s, after_boot: 0s}}
notify:
  admins: ["Ann <ann@example.org>", bob@example.org]
  from: proctor@example.org
  subject_prefix: "[CourSys] "
  group_wait: 1s
  resolve_wait: 1s
  smtp: {{host: 127.0.0.1, port: {relay}}}
{sections}"#,
            web = self.web,
            folder = self.folder.path().display(),
            state = state.display()
        );
        std::fs::write(self.config(), config).expect("it can be written");
    }

    /// Writes the rules: one alert that holds for 1 s per pair of name and expression.
    pub(crate) fn rules(self, alerts: &[(&str, &str)]) -> Self {
        let mut text = "groups:\n- name: site\n  rules:\n".to_owned();
        for (name, expr) in alerts {
            text += &format!(
                "  - alert: {name}\n    expr: {expr}\n    for: 1s\n    labels: {{severity: critical}}\n    \
                 annotations: {{summary: '{name}: {{{{ $labels.probe }}}} does not answer'}}\n"
            );
        }
        std::fs::write(self.folder.path().join("rules.yml"), text).expect("it can be written");
        self
    }

    /// Takes the rules that Proctor brings with it, with a `for` of 1 s where it is longer.
    pub(crate) fn built_in_rules(self) -> Self {
        self.rules_with(|line| if line.trim_start().starts_with("for: ") { "        for: 1s" } else { line })
    }

    /// Takes the rules that Proctor brings with it.
    pub(crate) fn rules_as_they_are(self) -> Self {
        self.rules_with(|line| line)
    }

    fn rules_with(self, change: fn(&str) -> &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("alerts");
        for file in std::fs::read_dir(folder).expect("they are there").flatten().filter(|file| file.path().is_file()) {
            let text = std::fs::read_to_string(file.path()).expect("it can be read");
            let name = format!("rules-{}", file.file_name().to_string_lossy());
            let lines: Vec<&str> = text.lines().map(change).collect();
            std::fs::write(self.folder.path().join(name), lines.join("\n")).expect("it can be written");
        }
        self
    }

    /// Gives the process a variable.
    pub(crate) fn env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    /// Has another program start the process: its arguments end with that of Proctor.
    pub(crate) fn under<'a>(mut self, program: impl IntoIterator<Item = &'a str>) -> Self {
        self.under = program.into_iter().map(str::to_owned).collect();
        self
    }

    /// Starts the process.
    pub(crate) fn started(mut self) -> Self {
        self.start();
        self
    }

    /// Starts the process once more.
    pub(crate) fn start(&mut self) {
        let mut words = self.under.iter().cloned().chain([built()]);
        let mut command = Command::new(words.next().expect("Proctor at least"));
        command.args(words).arg("--config").arg(self.config()).arg("serve").envs(self.env.iter().map(|(name, value)| (name, value)));
        self.process = Some(Process::start(&mut command, &self.folder.path().join("proctor.log")));
    }

    /// Kills it with SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Tells it to stop and waits for its end.
    pub(crate) fn stop(&mut self) -> Option<std::process::ExitStatus> {
        let mut process = self.process.take()?;
        process.signal("TERM");
        Some(process.wait())
    }

    /// Runs another command of Proctor with this configuration, and returns what it printed.
    pub(crate) fn run(&self, args: &[&str]) -> std::process::Output {
        let mut command = Command::new(built());
        command.arg("--config").arg(self.config()).args(args).output().expect("it runs")
    }

    /// Returns the configuration's place.
    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("proctor.yml")
    }

    /// Returns what it has logged since its last start.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("proctor.log")).unwrap_or_default()
    }

    /// Reads `/metrics`.
    pub(crate) async fn metrics(&self) -> Option<String> {
        self.get("/metrics").await
    }

    /// Reads a page, with its head.
    pub(crate) async fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.web)).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    /// Waits until a line of `/metrics` begins so.
    pub(crate) async fn shows(&self, line: &str, within: Duration) {
        let what = format!("/metrics shows {line}");
        eventually(&what, within, || async { self.metrics().await?.lines().any(|shown| shown.starts_with(line)).then_some(()) }).await;
    }
}
