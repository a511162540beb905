//! `proctor run NAME -- COMMAND`: a job of cron that reports to its heartbeat when it begins and how it ended.
//!
//! The job comes first: it starts before anything is reported, its output, signals and exit code pass through, and
//! where Proctor is down or says no the job does not notice.

use std::collections::VecDeque;
use std::error::Error;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

use super::{Exit, control};
use crate::app::{self, Source};
use crate::client::http::{self, Request, Seen, Url};
use crate::client::net::{Trust, chain};
use crate::client::secret;
use crate::model::Secret;
use crate::probe::heartbeat::{Ended, MAX_OUTPUT, Report};
use crate::tasks::{self, Tasks};
use crate::web::control::Command;

/// Where Proctor listens where nothing else is known: the user of the job need not be able to read the configuration.
const DEFAULT_SOCKET: &str = "/run/proctor/control.sock";
/// The most of a command's output that is read as checks.
const MAX_CHECKS_OUTPUT: usize = 48 * 1024;
/// How long one report may take, and how long the end is tried to be reported: a restart of Proctor is shorter.
const ONE_WITHIN: Duration = Duration::from_secs(3);
const END_WITHIN: Duration = Duration::from_secs(6);
const PAUSE: Duration = Duration::from_millis(500);
/// How long is read on after the job has ended, before that is reported: children of it may hold its output open.
const LINGER: Duration = Duration::from_millis(500);
/// Says that Proctor took no report, where a person sees it.
const UNSEEN: &str = "the job was not reported";

#[derive(Debug, Args)]
pub(super) struct Run {
    /// The heartbeat's name in the configuration
    name: String,
    /// What the command prints is a JSON list of checks: [{"name": "db", "ok": false, "text": "no answer"}]
    #[arg(long)]
    checks: bool,
    /// The control socket of Proctor; the default is the configuration's, else /run/proctor/control.sock
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Reports over HTTP instead, such as to http://127.0.0.1:9797
    #[arg(long, value_name = "URL", requires = "token_file", conflicts_with = "socket")]
    url: Option<String>,
    /// With --url: a file with the token of the heartbeat
    #[arg(long, value_name = "FILE", requires = "url")]
    token_file: Option<PathBuf>,
    /// The command; its exit code becomes this one's
    #[arg(last = true, required = true, value_name = "COMMAND")]
    argv: Vec<String>,
}

/// The way of the reports.
#[derive(Clone, Debug)]
enum Way {
    Socket(PathBuf),
    Http(Url, Secret),
}

pub(super) fn run(source: &Source, job: Run) -> Result<Exit, Box<dyn Error + Send + Sync>> {
    // What is wrong with the way is said, and the job runs.
    let way = way(source, &job).map_err(|error| error.to_string());
    super::block_on(run_reported(job, way))?
}

fn way(source: &Source, job: &Run) -> Result<Way, Box<dyn Error + Send + Sync>> {
    Ok(match (&job.url, &job.token_file, &job.socket, source) {
        (Some(url), Some(file), ..) => {
            let url = Url::parse(&format!("{}/heartbeat/{}", url.trim_end_matches('/'), job.name))?;
            Way::Http(url, secret::read(file)?)
        }
        (_, _, Some(socket), _) => Way::Socket(socket.clone()),
        (_, _, None, Source::File(_)) => {
            let configured = app::load(source).map(|loaded| app::control_socket(&loaded.config));
            Way::Socket(configured.unwrap_or_else(|_| DEFAULT_SOCKET.into()))
        }
        (_, _, None, Source::Host) => Way::Socket(DEFAULT_SOCKET.into()),
    })
}

/// The end of what a job prints, of both its outputs in the order in which it comes.
#[derive(Default)]
struct Printed {
    tail: VecDeque<u8>,
    /// What it printed to its standard output, where that holds checks.
    checks: Vec<u8>,
}

#[expect(clippy::print_stderr, reason = "this is the command's answer")]
async fn run_reported(job: Run, way: Result<Way, String>) -> Result<Exit, Box<dyn Error + Send + Sync>> {
    let (begin, id) = (Instant::now(), format!("{}-{}", std::process::id(), tasks::wall_now().0));
    let say = |why: &str| {
        if std::io::stderr().is_terminal() {
            eprintln!("proctor: {UNSEEN}: {why}");
        }
    };
    let (program, arguments) = job.argv.split_first().ok_or("name a command after --")?;
    let mut signals = Signals::new()?;
    let child = tokio::process::Command::new(program).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let (starting, copying) = (Tasks::new(), Tasks::new());
    let report = |report| {
        let (way, name) = (way.clone(), job.name.clone());
        async move { timeout(ONE_WITHIN, send(&way?, &name, report)).await.map_err(|_| Unsent::Again("no answer".to_owned()))? }
    };
    // Beside the job, and before its end: the two must not overtake each other.
    let started = report(Report::Started { run: id.clone() });
    starting.spawn("report", async move { drop(started.await) });
    let printed = Arc::new(Mutex::new(Printed::default()));
    let (exit, mut ended) = match child {
        Ok(mut child) => {
            if let Some(from) = child.stdout.take() {
                copying.spawn("output", copy(from, tokio::io::stdout(), printed.clone(), job.checks));
            }
            if let Some(from) = child.stderr.take() {
                copying.spawn("errors", copy(from, tokio::io::stderr(), printed.clone(), false));
            }
            let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
            let status = loop {
                tokio::select! {
                    status = child.wait() => break status?,
                    signal = signals.next() => signals.hand_on(signal, pid),
                }
            };
            let exit = Exit::of(status);
            (exit, Ended { exit_code: i32::from(exit.code()), ..Ended::default() })
        }
        Err(error) => {
            let why = format!("cannot run {program}: {error}");
            eprintln!("proctor: {why}");
            // As a shell says it.
            let code = if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
            (Exit::Of(code), Ended { exit_code: i32::from(code), output: why, ..Ended::default() })
        }
    };
    ended.duration_seconds = Some(begin.elapsed().as_secs_f64());
    let all = copying.stop(LINGER).await.is_empty();
    {
        let printed = printed.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.output.is_empty() {
            let bytes: Vec<u8> = printed.tail.iter().copied().collect();
            let clean = |c: char| if c.is_control() && !matches!(c, '\n' | '\t') { ' ' } else { c };
            ended.output = String::from_utf8_lossy(&bytes).chars().map(clean).collect();
        }
        if job.checks {
            take_checks(&printed.checks, &mut ended);
        }
    }
    let tell = async {
        drop(starting.stop(ONE_WITHIN).await);
        let until = Instant::now() + END_WITHIN;
        loop {
            match report(Report::Ended { run: id.clone(), ended: ended.clone() }).await {
                Ok(()) => return Ok(()),
                Err(Unsent::Never(why)) => return Err(why),
                Err(Unsent::Again(why)) if Instant::now() + PAUSE > until => return Err(why),
                Err(Unsent::Again(_)) => sleep(PAUSE).await,
            }
        }
    };
    tokio::select! {
        told = tell => if let Err(why) = told { say(&why) },
        // The job is over: whoever stops this now need not wait for Proctor.
        _ = signals.next_to_end() => say("stopped while reporting"),
    }
    if !all {
        // As without us, who reads what the job prints reads on until the last of its children closes it.
        drop(copying.stop(Duration::MAX).await);
    }
    Ok(exit)
}

/// Why a report was not taken.
enum Unsent {
    /// It may be taken later.
    Again(String),
    /// It will not be.
    Never(String),
}

impl From<String> for Unsent {
    fn from(why: String) -> Self {
        Self::Never(why)
    }
}

async fn send(way: &Way, name: &str, report: Report) -> Result<(), Unsent> {
    let (url, token) = match way {
        Way::Socket(socket) => {
            let command = Command::Heartbeat { name: name.to_owned(), report };
            let answer = control::ask_at(socket, &command).await.map_err(|error| Unsent::Again(error.to_string()))?;
            return answer.map(drop).map_err(Unsent::Never);
        }
        Way::Http(url, token) => (url, token),
    };
    let (path, body) = match report {
        Report::Started { run } => (format!("{}/start?run={run}", url.path()), Vec::new()),
        Report::Ended { run, ended } => {
            (format!("{}?run={run}", url.path()), serde_json::to_vec(&ended).map_err(|error| Unsent::Never(error.to_string()))?)
        }
    };
    let request = Request::post_json(url.with_path(&path)?, body).header("authorization", format!("Bearer {}", token.expose()));
    let mut seen = Seen::default();
    let answer = http::send(&request, &Trust::system(), 4096, &mut seen).await.map_err(|error| Unsent::Again(chain(&error)))?;
    match answer.status {
        200 => Ok(()),
        500.. => Err(Unsent::Again(format!("{url} answered {}", answer.status))),
        status => Err(Unsent::Never(format!("{url} answered {status}: {}", answer.text().trim()))),
    }
}

/// Passes on what the job prints, and keeps the end of it. Where nobody reads any more, the job is told by the pipe.
async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, printed: Arc<Mutex<Printed>>, checks: bool) {
    let mut chunk = [0u8; 8192];
    loop {
        let read = match from.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(read) => read,
        };
        let bytes = &chunk[..read];
        {
            let mut printed = printed.lock().unwrap_or_else(PoisonError::into_inner);
            printed.tail.extend(bytes);
            let over = printed.tail.len().saturating_sub(MAX_OUTPUT);
            printed.tail.drain(..over);
            if checks {
                let room = (MAX_CHECKS_OUTPUT + 1).saturating_sub(printed.checks.len());
                printed.checks.extend_from_slice(&bytes[..read.min(room)]);
            }
        }
        if to.write_all(bytes).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
}

/// Reads the checks; what is none is a failure of the job.
fn take_checks(bytes: &[u8], ended: &mut Ended) {
    let wrong = match serde_json::from_slice(bytes) {
        _ if bytes.len() > MAX_CHECKS_OUTPUT => format!("expected at most {MAX_CHECKS_OUTPUT} bytes of checks"),
        Ok(checks) => {
            ended.checks = checks;
            ended.output.clear();
            return;
        }
        Err(error) => format!("expected a JSON list of checks {{name, ok, text}} on the standard output: {error}"),
    };
    ended.output = format!("{}\n{wrong}", ended.output);
    if ended.exit_code == 0 {
        ended.exit_code = 1;
    }
}

/// The signals that are handed on to the job.
struct Signals(Vec<(Signal, tokio::signal::unix::Signal)>);

impl Signals {
    fn new() -> std::io::Result<Self> {
        let kinds = [
            (Signal::TERM, SignalKind::terminate()),
            (Signal::INT, SignalKind::interrupt()),
            (Signal::QUIT, SignalKind::quit()),
            (Signal::HUP, SignalKind::hangup()),
            (Signal::USR1, SignalKind::user_defined1()),
            (Signal::USR2, SignalKind::user_defined2()),
        ];
        // What is ignored, as under nohup, stays ignored, for the job too.
        let ignored = ignored_signals();
        let heard = kinds.into_iter().filter(|(name, _)| ignored >> (name.as_raw() - 1) & 1 == 0);
        heard.map(|(name, kind)| Ok((name, signal(kind)?))).collect::<std::io::Result<_>>().map(Self)
    }

    async fn next(&mut self) -> Signal {
        let waiting = self.0.iter_mut().map(|(name, heard)| {
            Box::pin(async move {
                heard.recv().await;
                *name
            })
        });
        futures_util::future::select_all(waiting).await.0
    }

    async fn next_to_end(&mut self) -> Signal {
        loop {
            let signal = self.next().await;
            if matches!(signal, Signal::TERM | Signal::INT | Signal::QUIT) {
                return signal;
            }
        }
    }

    /// Sends it to the job. A terminal sends its own to the whole group, the job included.
    fn hand_on(&self, signal: Signal, to: Option<Pid>) {
        let by_terminal = matches!(signal, Signal::INT | Signal::QUIT) && std::io::stdin().is_terminal();
        if let Some(pid) = to.filter(|_| !by_terminal) {
            // It may have ended meanwhile.
            let _gone = kill_process(pid, signal);
        }
    }
}

/// Returns the signals that this process ignores, a bit for each (proc(5), `SigIgn`).
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string(Path::new("/proc/self/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// The checks that a job prints.
    pub fn checks(bytes: &[u8]) {
        let mut ended = Ended::default();
        take_checks(bytes, &mut ended);
        assert!(ended.output.is_empty() || ended.exit_code != 0);
    }
}
