//! What gunicorn tells of itself by statsd (`--statsd-host`): requests, answers by code, how long, workers, log levels.
//!
//! Datagrams, by UDP or over a socket in the file system, taken by a standing listener. Their names are fixed
//! (`gunicorn/instrument/statsd.py`), but for a prefix that people may choose. Whatever else comes is counted as such.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{UdpSocket, UnixDatagram};

use crate::client::net::Endpoint;
use crate::model::{Family, Histogram, Observed};
use crate::probe::Recorder;
use crate::tasks::Tasks;

static DATAGRAMS: Family = Family::counter("gunicorn_statsd_datagrams_total", "Datagrams that came to the statsd listener");
static UNREAD: Family = Family::counter("gunicorn_statsd_errors_total", "Lines that came to the statsd listener and are not gunicorn's");
static REQUESTS: Family = Family::counter("gunicorn_requests_total", "Requests that workers have answered");
static RESPONSES: Family = Family::counter("gunicorn_responses_total", "Answers by the code of their status");
static MESSAGES: Family = Family::counter("gunicorn_log_messages_total", "Messages in gunicorn's log by level");
static DURATION: Histogram = Histogram::new(
    ["gunicorn_request_duration_seconds_bucket", "gunicorn_request_duration_seconds_sum", "gunicorn_request_duration_seconds_count"],
    "How long workers took for a request",
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0],
);

/// The largest datagram that is read whole; gunicorn's have about fifty bytes.
const MAX_DATAGRAM: usize = 8192;

/// Of a flood so many datagrams are counted in each slice of time. By UDP the others are left to the kernel, which drops
/// what its buffer does not hold. Over a socket in the file system they are taken and thrown away: a worker that finds
/// its buffer full would wait for us.
const MAX_AT_ONCE: u32 = 5000;
const SLICE: Duration = Duration::from_millis(100);

/// The most codes that are told apart; what comes beyond them is `other`.
const MAX_CODES: usize = 40;

/// What one datagram may add to a counter.
const MAX_STEP: f64 = 1e6;

/// Levels as gunicorn names them.
const LEVELS: [&str; 4] = ["critical", "error", "warning", "exception"];

/// What has come.
#[derive(Clone, Debug)]
struct Counts {
    datagrams: u64,
    unread: u64,
    requests: f64,
    codes: BTreeMap<u16, f64>,
    other_codes: f64,
    levels: [f64; LEVELS.len()],
    duration: Observed,
    workers: Option<f64>,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            datagrams: 0,
            unread: 0,
            requests: 0.0,
            codes: BTreeMap::new(),
            other_codes: 0.0,
            levels: [0.0; LEVELS.len()],
            duration: Observed::nothing(&DURATION),
            workers: None,
        }
    }
}

impl Counts {
    fn take(&mut self, datagram: &[u8]) {
        self.datagrams += 1;
        for line in datagram.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            if std::str::from_utf8(line).ok().and_then(|line| self.line(line)).is_none() {
                self.unread += 1;
            }
        }
    }

    /// `PREFIX.gunicorn.requests:1|c|@1.0|#tag:value`
    fn line(&mut self, line: &str) -> Option<()> {
        let (name, rest) = line.split_once(':')?;
        let at = name.rfind("gunicorn.").filter(|at| *at == 0 || name.as_bytes()[at - 1] == b'.')?;
        let name = &name[at + "gunicorn.".len()..];
        let mut fields = rest.split('|');
        let value: f64 = fields.next()?.parse().ok()?;
        let kind = fields.next()?;
        let rate: f64 = fields.find_map(|field| field.strip_prefix('@')).map_or(Some(1.0), |rate| rate.parse().ok())?;
        let counted = Some(value / rate).filter(|step| kind == "c" && (0.0..=MAX_STEP).contains(step) && rate > 0.0);
        match name {
            "requests" => self.requests += counted?,
            "request.duration" => {
                let seconds = value / 1000.0;
                self.duration.add(&DURATION, Some(seconds).filter(|seconds| kind == "ms" && (0.0..=MAX_STEP).contains(seconds))?);
            }
            "workers" => self.workers = Some(value).filter(|value| kind == "g" && (0.0..=MAX_STEP).contains(value)).or(self.workers),
            // Each loop of the arbiter with --enable-backlog-metric: the kernel is asked for it here.
            "backlog" => {}
            _ => match (name.strip_prefix("request.status."), name.strip_prefix("log.")) {
                (Some(code), _) => {
                    let code = code.parse().ok().filter(|code| (100..1000).contains(code))?;
                    let full = self.codes.len() >= MAX_CODES && !self.codes.contains_key(&code);
                    *(if full { &mut self.other_codes } else { self.codes.entry(code).or_default() }) += counted?;
                }
                (None, Some(level)) => self.levels[LEVELS.iter().position(|known| *known == level)?] += counted?,
                (None, None) => return None,
            },
        }
        Some(())
    }
}

/// The listener and what came to it.
#[derive(Debug)]
pub(super) struct Statsd {
    endpoint: Endpoint,
    tasks: Tasks,
    counts: Arc<Mutex<Counts>>,
    listens: tokio::sync::Mutex<bool>,
}

impl Statsd {
    /// Will listen there once it is first asked.
    pub(super) fn new(endpoint: Endpoint, tasks: Tasks) -> Self {
        Self { endpoint, tasks, counts: Arc::default(), listens: tokio::sync::Mutex::new(false) }
    }

    /// Records what came; begins to listen where that has not been possible before.
    ///
    /// # Errors
    /// It cannot listen there: what is missing, and what would help.
    pub(super) async fn record(&self, rec: &mut Recorder) -> Result<(), (String, String)> {
        let mut listens = self.listens.lock().await;
        if !*listens {
            let socket = Socket::bind(&self.endpoint).await.map_err(|error| {
                let help = match error.kind() {
                    io::ErrorKind::AddrInUse => "stop who listens there (another statsd, or Proctor itself where this is `proctor check`)",
                    io::ErrorKind::PermissionDenied => "let Proctor's user write to the folder of the socket",
                    _ => "name an address of this host, or a path in a folder that exists",
                };
                (format!("what gunicorn tells by statsd: cannot listen at {}: {error}", self.endpoint), help.to_owned())
            })?;
            let counts = self.counts.clone();
            self.tasks.spawn_until_stopped(format!("statsd {}", self.endpoint), async move { listen(&socket, &counts).await });
            *listens = true;
        }
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        rec.set(&DATAGRAMS, counts.datagrams as f64);
        rec.set(&UNREAD, counts.unread as f64);
        rec.set(&REQUESTS, counts.requests);
        for (code, count) in &counts.codes {
            rec.set_with(&RESPONSES, &[("code", &code.to_string())], *count);
        }
        if counts.other_codes > 0.0 {
            rec.set_with(&RESPONSES, &[("code", "other")], counts.other_codes);
        }
        for (level, count) in LEVELS.iter().zip(counts.levels) {
            rec.set_with(&MESSAGES, &[("level", level)], count);
        }
        rec.set_histogram(&DURATION, &[], &counts.duration);
        Ok(())
    }

    /// Returns how many workers gunicorn has, where it has said so: it does when the number changes.
    pub(super) fn workers(&self) -> Option<f64> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).workers
    }
}

async fn listen(socket: &Socket, counts: &Mutex<Counts>) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    let mut taken = 0u32;
    let mut slice = tokio::time::Instant::now();
    loop {
        // What is longer than the buffer is cut by the kernel, and then counted as unread or read up to there.
        match socket.receive(&mut buffer).await {
            Ok(_) if taken >= MAX_AT_ONCE => {}
            Ok(length) => counts.lock().unwrap_or_else(PoisonError::into_inner).take(&buffer[..length]),
            Err(error) => {
                tracing::warn!(%error, "reading statsd failed");
                tokio::time::sleep(SLICE).await;
            }
        }
        taken = taken.saturating_add(1);
        if slice.elapsed() >= SLICE {
            (taken, slice) = (0, tokio::time::Instant::now());
        } else if taken >= MAX_AT_ONCE && matches!(socket, Socket::Udp(_)) {
            tokio::time::sleep(SLICE.saturating_sub(slice.elapsed())).await;
            (taken, slice) = (0, tokio::time::Instant::now());
        }
    }
}

enum Socket {
    Udp(UdpSocket),
    Unix(UnixDatagram, PathBuf),
}

impl Socket {
    async fn bind(endpoint: &Endpoint) -> io::Result<Self> {
        match endpoint {
            Endpoint::Tcp { host, port } => UdpSocket::bind((host.as_str(), *port)).await.map(Self::Udp),
            Endpoint::Unix(path) => {
                let socket = match UnixDatagram::bind(path) {
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_left_over(path) => {
                        std::fs::remove_file(path)?;
                        UnixDatagram::bind(path)?
                    }
                    bound => bound?,
                };
                // gunicorn runs as another user; who may enter the folder may tell numbers, as everybody may over UDP.
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
                Ok(Self::Unix(socket, path.clone()))
            }
        }
    }

    async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Udp(socket) => socket.recv(buffer).await,
            Self::Unix(socket, _) => socket.recv(buffer).await,
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self
            && let Err(error) = std::fs::remove_file(&path)
        {
            tracing::warn!(%error, path = %path.display(), "the socket cannot be removed");
        }
    }
}

/// A socket that nobody listens at any more.
fn is_left_over(path: &Path) -> bool {
    let connected = UnixDatagram::unbound().and_then(|socket| socket.connect(path));
    connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// A datagram of gunicorn.
    pub fn statsd(bytes: &[u8]) {
        let mut counts = Counts::default();
        counts.take(bytes);
        assert!(counts.requests.is_finite() && counts.codes.len() <= MAX_CODES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gunicorns_lines_are_counted_with_prefix_tags_and_rate() {
        let mut counts = Counts::default();
        for line in [
            "gunicorn.requests:1|c|@1.0",
            "site.a.gunicorn.requests:1|c|@0.5|#env:prod,x:y",
            "gunicorn.site.gunicorn.requests:1|c",
            "gunicorn.request.duration:1500.5|ms\ngunicorn.request.status.200:1|c|@1.0\ngunicorn.request.status.503:2|c",
            "gunicorn.workers:3|g",
            "gunicorn.backlog:7|h",
            "gunicorn.log.critical:1|c|@1.0",
        ] {
            counts.take(line.as_bytes());
        }
        assert_eq!((counts.datagrams, counts.unread, counts.requests, counts.workers), (7, 0, 4.0, Some(3.0)));
        assert_eq!(counts.codes, BTreeMap::from([(200, 1.0), (503, 2.0)]));
        assert_eq!(counts.levels, [1.0, 0.0, 0.0, 0.0]);
        let mut expected = Observed::nothing(&DURATION);
        expected.add(&DURATION, 1.5005);
        assert_eq!(counts.duration, expected);
    }

    #[test]
    fn what_is_not_gunicorns_is_counted_as_that_and_changes_nothing_else() {
        let mut counts = Counts::default();
        let lines = [
            "",
            "x",
            "gunicorn.requests",
            "gunicorn.requests:",
            "gunicorn.requests:x|c",
            "gunicorn.requests:-1|c",
            "gunicorn.requests:inf|c",
            "gunicorn.requests:nan|c",
            "gunicorn.requests:1|g",
            "gunicorn.requests:1|c|@0",
            "gunicorn.requests:1|c|@1e-300",
            "gunicorn.requests:1|c|@x",
            "mygunicorn.requests:1|c",
            "gunicorn.requestsé:1|c",
            "gunicorn.request.duration:-1|ms",
            "gunicorn.request.duration:1e300|ms",
            "gunicorn.request.status.99:1|c",
            "gunicorn.request.status.99999999999:1|c",
            "gunicorn.request.status.{{x}}:1|c",
            "gunicorn.log.\u{1b}[31m:1|c",
            "gunicorn.other:1|c",
        ];
        for line in lines {
            counts.take(line.as_bytes());
        }
        counts.take(&[0xff; 4000]);
        assert_eq!((counts.datagrams, counts.unread), (22, 21));
        let untouched = Counts { datagrams: 22, unread: 21, ..Counts::default() };
        assert_eq!(format!("{counts:?}"), format!("{untouched:?}"));
        for code in 100..1000 {
            counts.take(format!("gunicorn.request.status.{code}:1|c").as_bytes());
        }
        assert_eq!((counts.codes.len(), counts.other_codes), (MAX_CODES, 900.0 - MAX_CODES as f64));
    }

    proptest::proptest! {
        #[test]
        fn no_datagram_makes_the_reading_panic(bytes: Vec<u8>, text in "[a-z.]{0,9}gunicorn\\.[a-z.]{0,20}:[0-9e.+-]{0,9}\\|[a-z]{0,2}[|@#0-9.]{0,9}") {
            let mut counts = Counts::default();
            counts.take(&bytes);
            counts.take(text.as_bytes());
            proptest::prop_assert!(counts.requests.is_finite());
        }
    }
}
