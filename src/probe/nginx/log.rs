//! What nginx's logs say: real requests by the class of their status and how long they took, and errors by level.

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Mutex;

use super::format::LogFormat;
use super::tail::{News, Tail};
use crate::client::process;
use crate::model::{Failure, Family, Histogram, Observed, Reason, Sight, Timestamp};
use crate::probe::{Probe, Recorder};
use crate::tasks;

static FOLLOWED: Family = Family::gauge("nginx_log_followed", "Whether the log is there and can be followed");
static GROWN: Family = Family::counter("nginx_log_bytes_total", "Bytes by which the log grew since Proctor follows it");
static SKIPPED: Family =
    Family::counter("nginx_log_skipped_bytes_total", "Bytes of the log that were not read, since they were too many at once");
static UNREAD: Family = Family::counter("nginx_parse_errors_total", "Lines of the log that are not of its format, or too long");
static RESPONSES: Family =
    Family::counter("nginx_http_response_count_total", "Requests in the access log by the class of their status, without Proctor's own");
static SIZE: Family = Family::borrowed_counter("nginx_http_response_size_bytes", "Bytes of the answers in the access log");
static ERRORS: Family = Family::counter("nginx_error_log_messages_total", "Messages in the error log by level");

/// Those of Prometheus' own clients, and two more: a page of a site may take a minute.
const BOUNDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

static REQUEST_TIME: Histogram = Histogram::new(
    ["nginx_http_response_time_seconds_bucket", "nginx_http_response_time_seconds_sum", "nginx_http_response_time_seconds_count"],
    "How long requests in the access log took, as $request_time",
    BOUNDS,
);
static UPSTREAM_TIME: Histogram = Histogram::new(
    ["nginx_http_upstream_time_seconds_bucket", "nginx_http_upstream_time_seconds_sum", "nginx_http_upstream_time_seconds_count"],
    "How long the servers behind nginx took, as $upstream_response_time",
    BOUNDS,
);

/// Classes of status, as labels; `other` is what nginx writes where no answer was sent.
const CLASSES: [&str; 6] = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// The levels of the error log (`ngx_log.c`), the worst first.
const LEVELS: [&str; 8] = ["emerg", "alert", "crit", "error", "warn", "notice", "info", "debug"];

/// The last messages of these levels go into the mail.
const TOLD_LEVELS: usize = 3;

/// How many of them, and for how long.
const TOLD: usize = 3;
const TOLD_FOR: Duration = Duration::from_secs(600);

/// What a log is followed for.
pub(super) trait Count: Send + 'static {
    /// Takes a line of the log.
    fn line(&mut self, line: &[u8], now: Timestamp);
    /// Records what was counted.
    fn record(&self, rec: &mut Recorder, now: Timestamp);
    /// Returns how many lines were of no use.
    fn unread(&self) -> u64 {
        0
    }
}

/// Requests of an access log.
pub struct Requests {
    format: LogFormat,
    classes: [u64; CLASSES.len()],
    bytes: u64,
    request_time: Observed,
    upstream_time: Observed,
    unread: u64,
}

impl Requests {
    /// Begins with none, of lines in this format.
    pub fn new(format: LogFormat) -> Self {
        let (request_time, upstream_time) = (Observed::nothing(&REQUEST_TIME), Observed::nothing(&UPSTREAM_TIME));
        Self { format, classes: [0; CLASSES.len()], bytes: 0, request_time, upstream_time, unread: 0 }
    }

    /// Takes a line of the log.
    pub fn take(&mut self, line: &[u8]) {
        let Some(read) = self.format.read(line) else {
            self.unread += 1;
            return;
        };
        if read.own {
            return;
        }
        self.classes[usize::from(read.class)] += 1;
        self.bytes += read.bytes.unwrap_or(0);
        if let Some(time) = read.request_time {
            self.request_time.add(&REQUEST_TIME, time);
        }
        if let Some(time) = read.upstream_time {
            self.upstream_time.add(&UPSTREAM_TIME, time);
        }
    }
}

impl Count for Requests {
    fn line(&mut self, line: &[u8], _now: Timestamp) {
        self.take(line);
    }

    fn record(&self, rec: &mut Recorder, _now: Timestamp) {
        for (class, count) in CLASSES.iter().zip(self.classes) {
            rec.set_with(&RESPONSES, &[("status", class)], count as f64);
        }
        rec.set(&SIZE, self.bytes as f64);
        if self.format.has_request_time() {
            rec.set_histogram(&REQUEST_TIME, &[], &self.request_time);
        }
        if self.format.has_upstream_time() {
            rec.set_histogram(&UPSTREAM_TIME, &[], &self.upstream_time);
        }
    }

    fn unread(&self) -> u64 {
        self.unread
    }
}

/// Messages of an error log.
#[derive(Default)]
pub(super) struct Errors {
    levels: [u64; LEVELS.len()],
    last: VecDeque<(Timestamp, String)>,
}

/// `2026/11/25 21:00:00 [error] 7#7: *1 …` (`ngx_log_error_core`); what does not begin so goes on with the line before.
fn level(line: &[u8]) -> Option<usize> {
    let rest = line.get(19..)?.strip_prefix(b" [")?;
    let name = &rest[..memchr::memchr(b']', rest)?];
    LEVELS.iter().position(|level| level.as_bytes() == name)
}

impl Count for Errors {
    fn line(&mut self, line: &[u8], now: Timestamp) {
        let Some(level) = level(line) else { return };
        self.levels[level] += 1;
        if level < TOLD_LEVELS {
            // Cut before it is kept: a line may have 256 KiB.
            let text = String::from_utf8_lossy(&line[..line.len().min(400)]).into_owned();
            self.last.push_back((now, text));
            if self.last.len() > TOLD {
                self.last.pop_front();
            }
        }
    }

    fn record(&self, rec: &mut Recorder, now: Timestamp) {
        for (level, count) in LEVELS.iter().zip(self.levels) {
            rec.set_with(&ERRORS, &[("level", level)], count as f64);
        }
        for (_, line) in self.last.iter().filter(|(at, _)| now.since(*at) <= TOLD_FOR) {
            rec.evidence(line);
        }
    }
}

struct Followed<C> {
    tail: Tail,
    count: C,
    grown: u64,
    skipped: u64,
    long: u64,
    /// Whether the last look found no file of that name.
    missing: bool,
    begun: bool,
}

impl<C: Count> Followed<C> {
    fn look(&mut self, now: Timestamp) -> io::Result<News> {
        let count = &mut self.count;
        let news = self.tail.look(&mut |line| count.line(line, now))?;
        self.grown += news.grown;
        self.skipped += news.skipped;
        self.long += news.long;
        Ok(news)
    }

    fn record(&self, rec: &mut Recorder, now: Timestamp) {
        self.count.record(rec, now);
        rec.set(&UNREAD, (self.long + self.count.unread()) as f64);
        rec.set(&GROWN, self.grown as f64);
        rec.set(&SKIPPED, self.skipped as f64);
    }
}

/// A log that is followed.
pub(super) struct Log<C> {
    followed: Arc<Mutex<Followed<C>>>,
    path: Box<Path>,
}

impl<C: Count> Log<C> {
    /// Follows this file; what stands in it now is not counted.
    pub(super) fn new(path: &Path, count: C) -> Self {
        let followed =
            Followed { tail: Tail::new(path.to_owned()), count, grown: 0, skipped: 0, long: 0, missing: false, begun: false };
        Self { followed: Arc::new(Mutex::new(followed)), path: path.into() }
    }

    async fn look(&self, rec: &mut Recorder) -> Result<(), Failure> {
        let path = self.path.display();
        rec.waiting(Reason::AnswerTimeout, format!("reading {path}"));
        let now = tasks::now();
        // The guard travels into the thread, which may outlive this run.
        let mut followed = self.followed.clone().lock_owned().await;
        let looked = tokio::task::spawn_blocking(move || {
            let looked = followed.look(now);
            (followed, looked)
        });
        let (mut followed, looked) =
            looked.await.map_err(|error| Failure::new(Reason::Internal, format!("reading {path} failed: {error}")))?;
        let first = !std::mem::replace(&mut followed.begun, true);
        match looked {
            // While a log is rotated there is none for a moment.
            Ok(news) if news.missing && (std::mem::replace(&mut followed.missing, true) || first) => {
                let remedy = "if nginx runs it still writes to the file that was removed: `nginx -s reopen`";
                Err(Failure::new(Reason::Missing, format!("{path}: expected a log of nginx, found nothing; {remedy}")))
            }
            Ok(news) => {
                followed.missing = news.missing;
                followed.record(rec, now);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                rec.sight(Sight::Blind { missing: format!("{path}: {error}"), remedy: remedy(&self.path) });
                Ok(())
            }
            Err(error) => Err(Failure::new(Reason::Unavailable, format!("{path}: {error}"))),
        }
    }
}

/// Returns what lets this user read a log that is made anew again and again: its group where that may read it, else a
/// default for what its folder will hold.
fn remedy(path: &Path) -> String {
    let user = process::own_user();
    let folder = path.parent().unwrap_or(Path::new("/"));
    match std::fs::metadata(path) {
        Ok(of) if of.mode() & 0o040 != 0 && of.gid() != 0 => {
            format!("usermod -aG {} {user}, and restart Proctor", process::group_name(of.gid()))
        }
        _ => {
            let (path, folder) = (path.display(), folder.display());
            format!("setfacl -m u:{user}:rx {folder} && setfacl -d -m u:{user}:r {folder} && setfacl -m u:{user}:r {path}")
        }
    }
}

impl<C: Count> Probe for Log<C> {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        self.look(rec).boxed()
    }

    fn up(&self) -> Option<&'static Family> {
        Some(&FOLLOWED)
    }
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// Lines of an error log.
    pub fn error_log(bytes: &[u8]) {
        let mut errors = Errors::default();
        bytes.split(|byte| *byte == b'\n').for_each(|line| errors.line(line, Timestamp(0)));
        errors.record(&mut Recorder::default(), Timestamp(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_log_is_counted_by_level_and_the_worst_are_told_for_a_while() {
        let mut errors = Errors::default();
        let now = Timestamp::from_secs(1000);
        for line in [
            "2026/11/25 21:00:00 [error] 7#7: *1 open() \"/x\" failed (2: No such file or directory)",
            "2026/11/25 21:00:00 [emerg] 7#7: unknown directive \"\u{1b}[31m{{ .X }}\" in /etc/nginx/nginx.conf:3",
            "  goes on [alert] here",
            "2026/11/25 21:00:00 [error",
            "2026/11/25 21:00:00 [odd] 7#7: x",
            "",
        ] {
            errors.line(line.as_bytes(), now);
        }
        errors.line(&[b"2026/11/25 21:00:00 [alert] ".to_vec(), vec![0xff; 100_000]].concat(), now);
        assert_eq!(errors.levels, [1, 1, 0, 1, 0, 0, 0, 0]);
        assert!(errors.last.iter().all(|(_, line)| line.len() < 2000));
        let told = |at: Timestamp| {
            let mut rec = Recorder::default();
            errors.record(&mut rec, at);
            rec.finish().evidence
        };
        assert_eq!(told(now).len(), 2);
        assert!(told(now)[0].contains("unknown directive \" [31m{{ .X }}\""), "{:?}", told(now));
        assert_eq!(told(now + Duration::from_secs(601)), [""; 0]);
    }
}
