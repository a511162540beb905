//! Runs a program: fixed arguments, never a shell, a clean environment, a deadline.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Action, Done, Occasion, line};
use crate::model::Problems;
use crate::model::decode::Decode;
use crate::model::duration::print;
use crate::model::yaml::Node;

/// The most of its output that is kept: the end, where programs say why they failed.
pub const MAX_OUTPUT: usize = 64 * 1024;
/// How long a program may take to end after SIGTERM, before SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// How long is read on after the program ended: children that it left behind may hold its output open for ever.
const LINGER: Duration = Duration::from_millis(500);
/// The longest value of a variable, in characters.
const MAX_VALUE: usize = 200;
/// Where programs that the program names are looked up.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program's absolute path and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argv(pub Vec<String>);

impl Decode for Argv {
    const EXPECTED: &'static str = "a list: the absolute path of a program, and its arguments";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let argv = Vec::<String>::decode(node, problems)?;
        let fine = argv.first().is_some_and(|program| Path::new(program).is_absolute()) && argv.iter().all(|arg| !arg.contains('\0'));
        if !fine {
            let found = argv.first().map_or_else(|| "an empty list".to_owned(), |first| format!("{first:?} first"));
            problems.push(node.at, format!("expected {}, found {found}", Self::EXPECTED));
        }
        fine.then_some(Self(argv))
    }
}

crate::config_struct! {
    /// Runs a program, with `/` as its folder and an environment of `PATH`, `LANG` and `PROCTOR_ALERTNAME`,
    /// `PROCTOR_PROBE`, `PROCTOR_TARGET`, `PROCTOR_EPISODE`. What it leaves running must close its output.
    pub struct CommandConfig {
        /// The absolute path of the program and its arguments; no shell reads them, nothing in them is replaced.
        argv: Argv,
        /// How long it may run. Then it gets SIGTERM, and SIGKILL 5 s later, with all its children.
        timeout: Duration = "60s",
    }
}

/// A program of the configuration.
#[derive(Clone, Debug)]
pub struct Command(CommandConfig);

impl Command {
    /// Takes the configuration.
    pub fn new(config: &CommandConfig) -> Self {
        Self(config.clone())
    }
}

impl Action for Command {
    fn act<'a>(&'a self, occasion: &'a Occasion) -> BoxFuture<'a, Done> {
        run(&self.0, occasion).boxed()
    }

    fn deadline(&self) -> Duration {
        self.0.timeout + GRACE + LINGER + Duration::from_secs(1)
    }
}

/// Kills a process group when it is dropped: a run that is given up leaves nothing behind.
struct Group(Option<Pid>);

impl Group {
    fn signal(&self, signal: Signal) {
        // A group that is gone already is what was wanted.
        if let Some(Err(error)) = self.0.map(|pid| kill_process_group(pid, signal))
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(%error, ?signal, "a process group cannot be signalled");
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Keeps the end of what is read.
#[derive(Default)]
struct Tail {
    kept: Vec<u8>,
    seen: usize,
}

impl Tail {
    async fn read(&mut self, from: &mut pipe::Receiver) -> io::Result<()> {
        let mut chunk = [0u8; 8192];
        loop {
            match from.read(&mut chunk).await? {
                0 => return Ok(()),
                n => {
                    self.seen += n;
                    self.kept.extend_from_slice(&chunk[..n]);
                    if self.kept.len() > 2 * MAX_OUTPUT {
                        self.kept.drain(..self.kept.len() - MAX_OUTPUT);
                    }
                }
            }
        }
    }

    /// Returns the text of at most [`MAX_OUTPUT`] bytes, without control characters but line ends and tabs.
    fn text(mut self) -> String {
        let mut text = String::new();
        // What is not UTF-8 becomes three bytes for one: the bound is on what comes out.
        let most = MAX_OUTPUT - 100;
        self.kept.drain(..self.kept.len().saturating_sub(most));
        let clean: String = String::from_utf8_lossy(&self.kept)
            .chars()
            .map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { ' ' } else { c })
            .collect();
        let mut begin = clean.len().saturating_sub(most);
        while !clean.is_char_boundary(begin) {
            begin += 1;
        }
        if self.seen > most || begin > 0 {
            text = format!("(the end of {} bytes)\n", self.seen);
        }
        text.push_str(&clean[begin..]);
        text
    }
}

async fn run(config: &CommandConfig, occasion: &Occasion) -> Done {
    let program = &config.argv.0[0];
    let begin = Instant::now();
    let spawned = (|| {
        let (sender, receiver) = pipe::pipe()?;
        let output: OwnedFd = sender.into_blocking_fd()?;
        let mut command = tokio::process::Command::new(program);
        command.args(&config.argv.0[1..]).env_clear().env("PATH", PATH).env("LANG", "C.UTF-8").envs(environment(occasion));
        command.current_dir("/").stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0).kill_on_drop(true);
        // The command is dropped here, and with it our copies of the pipe's end for writing.
        command.spawn().map(|child| (child, receiver))
    })();
    let (mut child, mut receiver) = match spawned {
        Ok(spawned) => spawned,
        Err(error) => return Done::quiet(Err(cannot_start(program, &error))),
    };
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw));
    let mut tail = Tail::default();
    let deadline = begin + config.timeout;
    let mut ended = watch(&mut child, &mut receiver, &mut tail, deadline).await;
    let timed_out = ended.is_none();
    if timed_out {
        group.signal(Signal::TERM);
        ended = watch(&mut child, &mut receiver, &mut tail, Instant::now() + GRACE).await;
        // Its children may ignore SIGTERM though it did not.
        group.signal(Signal::KILL);
        if ended.is_none() {
            ended = watch(&mut child, &mut receiver, &mut tail, Instant::now() + GRACE).await;
        }
    }
    // It ended by itself: what it left running is meant to run, such as a tunnel.
    group.0 = None;
    // An error of reading ends the reading, no more: the outcome is the program's.
    if let Ok(Err(error)) = timeout(LINGER, tail.read(&mut receiver)).await {
        tracing::debug!(%error, program, "the output of a program cannot be read");
    }
    let output = tail.text();
    let last = output.lines().rev().find(|line| !line.trim().is_empty()).map(|text| format!(": {}", line(text))).unwrap_or_default();
    let took = crate::model::duration::print_measured(begin.elapsed());
    let result = match ended {
        _ if timed_out => Err(format!("{program} did not end within {} and was killed{last}", print(config.timeout))),
        Some(Ok(status)) if status.success() => Ok(format!("{program} ended well after {took}")),
        Some(Ok(status)) => Err(format!("{program} ended with {} after {took}{last}", status_text(status))),
        Some(Err(error)) => Err(format!("cannot wait for {program}: {error}")),
        None => Err(format!("{program} cannot be killed: it hangs in the kernel")),
    };
    Done { result, output }
}

/// Reads and waits until the program ends; nothing at the deadline.
async fn watch(
    child: &mut tokio::process::Child,
    receiver: &mut pipe::Receiver,
    tail: &mut Tail,
    deadline: Instant,
) -> Option<io::Result<ExitStatus>> {
    let read = async {
        // After an end of the output, or an error, the program alone is waited for.
        if let Err(error) = tail.read(receiver).await {
            tracing::debug!(%error, "the output of a program cannot be read");
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        status = child.wait() => Some(status),
        () = read => None,
        () = sleep_until(deadline) => None,
    }
}

fn status_text(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".to_owned(),
    }
}

fn cannot_start(program: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => format!("{program} does not exist (or its interpreter does not): check argv"),
        io::ErrorKind::PermissionDenied => format!("{program} may not be executed by the user of Proctor: check its mode and owner"),
        _ => format!("cannot start {program}: {error}"),
    }
}

/// Returns what a program is told of the alert. A value can do no harm but in a program that makes code of it: control
/// characters (of which NUL could not be passed on) become spaces, and it is bounded.
fn environment(occasion: &Occasion) -> [(&'static str, String); 4] {
    let clean = |value: &str| value.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_VALUE).collect::<String>();
    [
        ("PROCTOR_ALERTNAME", clean(occasion.alert.name())),
        ("PROCTOR_PROBE", clean(occasion.alert.probe().unwrap_or(""))),
        ("PROCTOR_TARGET", clean(occasion.alert.labels.get("target").unwrap_or(""))),
        ("PROCTOR_EPISODE", clean(&occasion.alert.episode())),
    ]
}
