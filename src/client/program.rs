//! Runs a program: fixed arguments, never a shell, a clean environment, a deadline, a bound on what it prints.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::{Instant, sleep_until, timeout};

use crate::model::Problems;
use crate::model::decode::Decode;
use crate::model::yaml::Node;

/// The most of its output that is kept: the end, where programs say why they failed.
pub const MAX_OUTPUT: usize = 64 * 1024;
/// How long a program may take to end after SIGTERM, before SIGKILL; and after that.
const GRACE: Duration = Duration::from_secs(5);
/// How long is read on after the program ended: children that it left behind may hold its output open for ever.
const LINGER: Duration = Duration::from_millis(500);
/// How much longer than its limit a run may take in all.
pub const MARGIN: Duration = Duration::from_secs(1).saturating_add(GRACE).saturating_add(LINGER);
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

/// What is run.
#[derive(Clone, Debug)]
pub struct Program<'a> {
    /// The program and its arguments.
    pub argv: &'a Argv,
    /// Its environment besides `PATH` and `LANG`.
    pub environment: Vec<(&'a str, String)>,
    /// How long it may run. Then it gets SIGTERM, and SIGKILL 5 s later, with all its children.
    pub timeout: Duration,
    /// Whether what it leaves running is meant to run, such as a tunnel; else that is killed at its end.
    pub leaves: bool,
    /// The folder it runs in; `/` where none is named.
    pub folder: Option<&'a Path>,
    /// The numbers of the user and group it runs as, without further groups; only root may name others than its own.
    pub user: Option<(u32, u32)>,
}

/// How a run ended.
#[derive(Debug)]
pub enum Ending {
    /// It could not be started; why, and what to do.
    NotStarted(String),
    /// By itself.
    Ended(ExitStatus),
    /// It was killed at its limit.
    Killed,
    /// It cannot be killed: it hangs in the kernel.
    Hangs,
}

/// What came of a run.
#[derive(Debug)]
pub struct Ran {
    /// How it ended.
    pub ending: Ending,
    /// What it printed, both its outputs as they came, without control characters but line ends and tabs; of more than
    /// [`MAX_OUTPUT`] bytes the end, after a line that says so.
    pub output: String,
    /// How long it took.
    pub took: Duration,
}

impl Ran {
    /// Returns the last line that says something, `: ` before it, for a message; else nothing.
    pub fn last_line(&self) -> String {
        let last = self.output.lines().rev().find(|line| !line.trim().is_empty());
        last.map(|line| format!(": {}", crate::model::Failure::new(crate::model::Reason::Internal, line.trim()).detail)).unwrap_or_default()
    }
}

/// Runs it to its end. Dropped before that, it kills the program and all its children.
pub async fn run(program: &Program<'_>) -> Ran {
    let (begin, path) = (Instant::now(), &program.argv.0[0]);
    let spawned = (|| {
        let (sender, receiver) = pipe::pipe()?;
        let output: OwnedFd = sender.into_blocking_fd()?;
        let mut command = tokio::process::Command::new(path);
        command.args(&program.argv.0[1..]).env_clear().env("PATH", PATH).env("LANG", "C.UTF-8");
        command.envs(program.environment.iter().map(|(name, value)| (name, value)));
        if let Some((uid, gid)) = program.user {
            command.uid(uid).gid(gid);
        }
        command
            .current_dir(program.folder.unwrap_or(Path::new("/")))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .kill_on_drop(true);
        // The command is dropped here, and with it our copies of the pipe's end for writing.
        command.spawn().map(|child| (child, receiver))
    })();
    let (mut child, mut receiver) = match spawned {
        Ok(spawned) => spawned,
        Err(error) => {
            return Ran { ending: Ending::NotStarted(cannot_start(path, &error)), output: String::new(), took: begin.elapsed() };
        }
    };
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw));
    let mut tail = Tail::default();
    let mut ended = watch(&mut child, &mut receiver, &mut tail, begin + program.timeout).await;
    let timed_out = ended.is_none();
    if timed_out {
        group.signal(Signal::TERM);
        ended = watch(&mut child, &mut receiver, &mut tail, Instant::now() + GRACE).await;
        // Its children may ignore SIGTERM though it did not.
        group.signal(Signal::KILL);
        if ended.is_none() {
            ended = watch(&mut child, &mut receiver, &mut tail, Instant::now() + GRACE).await;
        }
    } else if !program.leaves {
        group.signal(Signal::KILL);
    }
    group.0 = None;
    // An error of reading ends the reading, no more: the outcome is the program's.
    if let Ok(Err(error)) = timeout(LINGER, tail.read(&mut receiver)).await {
        tracing::debug!(%error, path, "the output of a program cannot be read");
    }
    let ending = match ended {
        None => Ending::Hangs,
        Some(_) if timed_out => Ending::Killed,
        Some(Ok(status)) => Ending::Ended(status),
        Some(Err(error)) => Ending::NotStarted(format!("cannot wait for {path}: {error}")),
    };
    Ran { ending, output: tail.text(), took: begin.elapsed() }
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

/// Says how it ended: `status 3`, `signal 9`.
pub fn status_text(status: ExitStatus) -> String {
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
