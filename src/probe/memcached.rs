//! Asks memcached: its counters, and a value through the cache.
//!
//! Two connections: one that stays open for `stats` and `stats items`, so that the counters are still seen when no new
//! connection gets in, and one per run, as the site's own clients connect. Names are those of memcached_exporter; the text
//! protocol is memcached's `doc/protocol.txt`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{Planned, Probe, Recorder, Shared, failure_at};
use crate::changes::{Change, Changes, Kind};
use crate::client::net::{Endpoint, NetError, Phases, Stream};
use crate::model::{Failure, Family, Reason};

/// The longest line that is read.
const MAX_LINE: usize = 8 * 1024;

/// The most bytes that are read as one answer, or of a new connection in one run: `stats` gives about 3 KiB, `stats items`
/// about 900 bytes for each of at most 63 classes of sizes.
const MAX_ANSWERS: usize = 128 * 1024;

/// How long the standing connection may take: it may be dead without saying so, and a new one is tried then.
const STANDING_LIMIT: Duration = Duration::from_millis(500);

/// How long connecting may take to one that is known to be full.
const FULL_LIMIT: Duration = Duration::from_secs(1);

/// How long the canary stays in the cache, in seconds.
const CANARY_SECONDS: u32 = 60;

static UP: Family = Family::gauge("memcached_up", "Whether memcached answered, and took the canary where there is one");
static VERSION: Family = Family::gauge("memcached_version", "Always 1; the label is the version of memcached");
static UPTIME: Family = Family::gauge(
    "memcached_uptime_seconds",
    "Seconds since memcached started; a fall is a restart, which empties the cache: resets(memcached_uptime_seconds[10m])",
);
static COMMANDS: Family = Family::counter("memcached_commands_total", "Commands by name and status");
static CANARY: Family = Family::gauge("memcached_canary_duration_seconds", "How long it took to set a value and to read it back");
static CANARIES: Family = Family::counter(
    "memcached_canaries_total",
    "Values that this probe has set and read back since Proctor started: its own part of memcached_commands_total",
);
static MAX_CONNECTIONS: Family = Family::gauge("memcached_max_connections", "Connections that memcached takes at once");

/// What `stats` gives as one number each, under the exporter's name.
static PLAIN: &[(&str, Family)] = &[
    ("time", Family::gauge("memcached_time_seconds", "The server's clock, in seconds since the epoch")),
    ("curr_connections", Family::gauge("memcached_current_connections", "Open connections")),
    ("total_connections", Family::counter("memcached_connections_total", "Connections opened since the start")),
    ("rejected_connections", Family::counter("memcached_connections_rejected_total", "Connections refused because too many were open")),
    ("conn_yields", Family::counter("memcached_connections_yielded_total", "Times a connection had to let others go first")),
    ("listen_disabled_num", Family::counter("memcached_connections_listener_disabled_total", "Times memcached stopped to accept connections")),
    ("accepting_conns", Family::gauge("memcached_accepting_connections", "1 while memcached accepts connections")),
    ("bytes", Family::gauge("memcached_current_bytes", "Bytes that items use")),
    ("limit_maxbytes", Family::gauge("memcached_limit_bytes", "Bytes that items may use")),
    ("curr_items", Family::gauge("memcached_current_items", "Items in the cache")),
    ("total_items", Family::counter("memcached_items_total", "Items stored since the start")),
    ("evictions", Family::counter("memcached_items_evicted_total", "Items thrown out before their time to make room")),
    ("reclaimed", Family::counter("memcached_items_reclaimed_total", "Items stored in the place of expired ones")),
    ("store_too_large", Family::counter("memcached_item_too_large_total", "Items not stored because they were too large")),
    ("store_no_memory", Family::counter("memcached_item_no_memory_total", "Items not stored because there was no memory")),
    ("direct_reclaims", Family::counter("memcached_direct_reclaims_total", "Times a worker had to make room itself")),
    ("bytes_read", Family::counter("memcached_read_bytes_total", "Bytes read from clients")),
    ("bytes_written", Family::counter("memcached_written_bytes_total", "Bytes sent to clients")),
    ("rusage_user", Family::counter("memcached_process_user_cpu_seconds_total", "Processor time in user mode")),
    ("rusage_system", Family::counter("memcached_process_system_cpu_seconds_total", "Processor time in the kernel")),
];

/// What `stats items` gives for each class of sizes that has or had items, under the exporter's name.
static SLABS: &[(&str, Family)] = &[
    ("number", Family::gauge("memcached_slab_current_items", "Items in the cache")),
    ("age", Family::gauge("memcached_slab_items_age_seconds", "How long ago the oldest item was last asked for or stored")),
    ("evicted", Family::counter("memcached_slab_items_evicted_total", "Items thrown out before their time to make room")),
    (
        "evicted_time",
        Family::gauge("memcached_slab_items_evicted_time_seconds", "How long ago the item that was thrown out last had been asked for or stored"),
    ),
    ("outofmemory", Family::counter("memcached_slab_items_outofmemory_total", "Items not stored because there was no memory")),
];

/// The most classes of sizes that are recorded: memcached has no more (`MAX_NUMBER_OF_SLAB_CLASSES`).
const MAX_SLABS: usize = 63;

/// Two starts of memcached are further apart than this, in seconds: it counts in whole ones.
const STARTS_APART: u64 = 1;

crate::config_struct! {
    /// Asks memcached: its counters, and a value through the cache.
    pub struct MemcachedConfig {
        /// Where: `host:port` or `unix:/path`.
        address: Endpoint,
        /// Whether a small value (key `proctor:canary:…`, gone after a minute) is set and read back in every run. It
        /// costs two commands and about 100 bytes of cache; without it nothing is written.
        canary: bool = "false",
    }
}

/// Builds the one target.
///
/// # Errors
/// None.
pub fn plan(config: &MemcachedConfig, _name: &str, shared: &Shared) -> Result<Vec<Planned>, String> {
    static PLANNED: AtomicU64 = AtomicU64::new(0);
    // Two that share a cache (two hosts, or `check` beside `serve`) must not read each other's values.
    let host: String = rustix::system::uname().nodename().to_string_lossy().chars().filter(char::is_ascii_graphic).take(64).collect();
    let nth = PLANNED.fetch_add(1, Ordering::Relaxed);
    Ok(Planned::only(Memcached {
        config: config.clone(),
        key: format!("proctor:canary:{host}:{}:{nth}", std::process::id()),
        runs: AtomicU64::new(0),
        started: AtomicU64::new(0),
        changes: shared.changes().clone(),
        standing: Arc::default(),
    }))
}

struct Memcached {
    config: MemcachedConfig,
    key: String,
    runs: AtomicU64,
    /// When memcached started, in seconds since the epoch by its own clock; 0 before it is known.
    started: AtomicU64,
    changes: Changes,
    /// Taken out while it is used: a run that is dropped at its deadline closes it and leaves nothing half read.
    standing: Arc<Mutex<Option<Talk>>>,
}

impl Probe for Memcached {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        self.ask(rec).boxed()
    }

    fn up(&self) -> Option<&'static Family> {
        Some(&UP)
    }
}

impl Memcached {
    async fn ask(&self, rec: &mut Recorder) -> Result<(), Failure> {
        let address = &self.config.address;
        let standing = self.standing.lock().await.take();
        let mut full = None;
        let mut have_stats = false;
        rec.set(&CANARIES, self.runs.load(Ordering::Relaxed) as f64);
        if let Some(mut talk) = standing {
            rec.waiting(Reason::AnswerTimeout, format!("{address}: waiting for the answer to stats"));
            // An error here is no finding: memcached closes idle connections if it is told to. The new one decides.
            if let Ok(Ok(stats)) = tokio::time::timeout(STANDING_LIMIT, talk.all_stats(address)).await {
                full = self.record(rec, &stats);
                have_stats = true;
                *self.standing.lock().await = Some(talk);
            }
        }
        let mut phases = Phases::default();
        let stream = match &full {
            None => rec.connect(address, &mut phases).await?,
            // One that is full takes no more, or leaves them to the kernel, which does not take many either.
            Some(full) => {
                let unserved = format!("{address}: {full}: a new one is not served");
                let connected = tokio::time::timeout(FULL_LIMIT, rec.connect(address, &mut phases)).await;
                rec.waiting(Reason::Saturated, unserved.clone());
                connected.unwrap_or_else(|_| Err(Failure::new(Reason::Saturated, unserved)))?
            }
        };
        let mut talk = Talk::new(stream);
        talk.send(address, "version\r\n").await?;
        let version = talk.line(address).await?;
        let Some(version) = version.strip_prefix("VERSION ") else {
            return Err(unexpected(address, "VERSION", &version));
        };
        rec.set_with(&VERSION, &[("version", version)], 1.0);
        rec.waiting(Reason::AnswerTimeout, format!("{address}: {phases}, then version answered, waiting for the next answer"));
        if self.config.canary {
            self.canary(rec, &mut talk).await?;
        }
        if have_stats {
            // Politely: memcached closes, and counts no broken connection. It is not worth a failure if it does not.
            if let Err(failure) = talk.send(address, "quit\r\n").await {
                tracing::debug!(%failure, "memcached closed before it was told to");
            }
        } else {
            let stats = talk.all_stats(address).await?;
            self.record(rec, &stats);
            *self.standing.lock().await = Some(talk);
        }
        Ok(())
    }

    /// Records the numbers; returns a sentence if no connection is free.
    fn record(&self, rec: &mut Recorder, stats: &[(String, String)]) -> Option<String> {
        let number = |name: &str| stats.iter().find(|(have, _)| have == name).and_then(|(_, value)| value.parse::<f64>().ok());
        for (name, family) in PLAIN {
            if let Some(value) = number(name) {
                rec.set(family, value);
            }
        }
        if let Some(uptime) = number("uptime") {
            rec.set(&UPTIME, uptime);
            if let Some(time) = number("time") {
                self.compare_start(rec, time - uptime, uptime);
            }
        }
        for command in ["get", "delete", "incr", "decr", "cas", "touch"] {
            for (status, stat) in [("hit", "hits"), ("miss", "misses")] {
                if let Some(value) = number(&format!("{command}_{stat}")) {
                    rec.set_with(&COMMANDS, &[("command", command), ("status", status)], value);
                }
            }
        }
        let cas: f64 = ["cas_hits", "cas_misses", "cas_badval"].into_iter().filter_map(number).sum();
        // memcached counts each cas as a set too; the exporter takes them out again.
        let sets = number("cmd_set").map(|sets| (sets - cas).max(0.0));
        for (command, status, value) in
            [("cas", "badval", number("cas_badval")), ("flush", "hit", number("cmd_flush")), ("set", "hit", sets)]
        {
            if let Some(value) = value {
                rec.set_with(&COMMANDS, &[("command", command), ("status", status)], value);
            }
        }
        record_slabs(rec, stats);
        let (open, most) = (number("curr_connections"), number("max_connections"));
        if let Some(most) = most {
            rec.set(&MAX_CONNECTIONS, most);
        }
        match (open, most, number("accepting_conns")) {
            (Some(open), Some(most), _) if open >= most => Some(format!("{open} of {most} connections are open")),
            (_, _, Some(0.0)) => Some("memcached does not accept connections".to_owned()),
            _ => None,
        }
    }

    /// Tells of a restart, which empties the cache: for mails, it is no failure.
    fn compare_start(&self, rec: &mut Recorder, started: f64, uptime: f64) {
        let started = started as u64;
        let before = self.started.swap(started, Ordering::Relaxed);
        if before > 0 && started > before.saturating_add(STARTS_APART) {
            rec.evidence(format!("memcached was restarted {uptime} s ago, which emptied the cache; it had started {} s earlier", started - before));
            let at = crate::tasks::now() - Duration::try_from_secs_f64(uptime).unwrap_or_default();
            let (subject, detail) = (format!("memcached at {}", self.config.address), "its cache is empty since".to_owned());
            self.changes.record(Change { at, kind: Kind::Restarted, subject, detail });
        }
    }

    /// Sets a value that no earlier run has set, and reads it back.
    async fn canary(&self, rec: &mut Recorder, talk: &mut Talk) -> Result<(), Failure> {
        let (address, key) = (&self.config.address, &self.key);
        let value = format!("{}-{}", self.runs.fetch_add(1, Ordering::Relaxed), crate::tasks::now().0);
        rec.waiting(Reason::AnswerTimeout, format!("{address}: waiting for the answer to the canary"));
        let begin = Instant::now();
        talk.send(address, &format!("set {key} 0 {CANARY_SECONDS} {}\r\n{value}\r\n", value.len())).await?;
        let stored = talk.line(address).await?;
        match stored.as_str() {
            "STORED" => {}
            refused if refused.starts_with("SERVER_ERROR out of memory") || refused == "NOT_STORED" => {
                return Err(Failure::new(Reason::Blocked, format!("{address}: memcached takes no new value: {refused}")));
            }
            other => return Err(unexpected(address, "STORED", other)),
        }
        talk.send(address, &format!("get {key}\r\n")).await?;
        let head = talk.line(address).await?;
        if head == "END" {
            let what = format!("{address}: expected the value that was just stored under {key}, found none: it was thrown out at once");
            return Err(Failure::new(Reason::Mismatch, what));
        }
        if head != format!("VALUE {key} 0 {}", value.len()) {
            return Err(match head.strip_prefix("VALUE ") {
                Some(_) => Failure::new(Reason::Mismatch, format!("{address}: expected the {} bytes of the canary, found {head:?}", value.len())),
                None => unexpected(address, "VALUE", &head),
            });
        }
        let found = talk.line(address).await?;
        if found != value {
            return Err(Failure::new(Reason::Mismatch, format!("{address}: expected the canary {value:?} back, found {found:?}")));
        }
        let end = talk.line(address).await?;
        if end != "END" {
            return Err(unexpected(address, "END", &end));
        }
        rec.set(&CANARY, begin.elapsed().as_secs_f64());
        Ok(())
    }
}

/// Records what `stats items` says of each class of sizes: `items:5:evicted_time 12`.
fn record_slabs(rec: &mut Recorder, stats: &[(String, String)]) {
    let mut slabs: BTreeMap<u8, BTreeMap<&str, f64>> = BTreeMap::new();
    for (name, value) in stats {
        let mut parts = name.split(':');
        if let (Some("items"), Some(Ok(slab)), Some(what), Ok(value)) = (parts.next(), parts.next().map(str::parse), parts.next(), value.parse()) {
            slabs.entry(slab).or_default().insert(what, value);
        }
    }
    for (slab, values) in slabs.iter().take(MAX_SLABS) {
        for (what, family) in SLABS {
            if let Some(value) = values.get(what) {
                rec.set_with(family, &[("slab", &slab.to_string())], *value);
            }
        }
    }
}

/// Says what an answer means that is not the expected one.
fn unexpected(address: &Endpoint, expected: &str, found: &str) -> Failure {
    let reason = match found {
        f if f.starts_with("ERROR Too many open connections") => Reason::Saturated,
        f if f.starts_with("CLIENT_ERROR unauthenticated") || f.starts_with("CLIENT_ERROR authentication") => Reason::Auth,
        f if f.starts_with("SERVER_ERROR") => Reason::Unavailable,
        _ => Reason::Protocol,
    };
    let found: String = found.chars().take(120).collect();
    Failure::new(reason, format!("{address}: expected memcached's answer {expected}, found {found:?}"))
}

/// One connection and what has come over it.
struct Talk {
    stream: Stream,
    buffer: Vec<u8>,
    /// Bytes that may still come in this run.
    room: usize,
}

impl Talk {
    fn new(stream: Stream) -> Self {
        Self { stream, buffer: Vec::new(), room: MAX_ANSWERS }
    }

    async fn send(&mut self, address: &Endpoint, text: &str) -> Result<(), Failure> {
        self.stream.write_all(text.as_bytes()).await.map_err(|error| failure_at(address, &error.into()))
    }

    /// Reads one line without its end.
    async fn line(&mut self, address: &Endpoint) -> Result<String, Failure> {
        let mut looked_at = 0;
        loop {
            if let Some(end) = self.buffer[looked_at..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=looked_at + end).collect();
                let line = line.strip_suffix(b"\r\n").unwrap_or(&line[..line.len() - 1]);
                return Ok(String::from_utf8_lossy(line).into_owned());
            }
            looked_at = self.buffer.len();
            if looked_at >= MAX_LINE {
                return Err(failure_at(address, &NetError::TooLarge { limit: MAX_LINE }));
            }
            if self.room == 0 {
                return Err(failure_at(address, &NetError::TooLarge { limit: MAX_ANSWERS }));
            }
            let mut chunk = [0u8; 4096];
            let most = chunk.len().min(self.room).min(MAX_LINE - looked_at);
            match self.stream.read(&mut chunk[..most]).await {
                Ok(0) => return Err(failure_at(address, &NetError::Eof { after: looked_at })),
                Ok(n) => {
                    self.room -= n;
                    self.buffer.extend_from_slice(&chunk[..n]);
                }
                Err(error) => return Err(failure_at(address, &error.into())),
            }
        }
    }

    /// Asks for `stats` and `stats items`. Not everything that speaks memcached's protocol knows the second.
    async fn all_stats(&mut self, address: &Endpoint) -> Result<Vec<(String, String)>, Failure> {
        let mut stats = self.stats(address, "stats").await?;
        match self.stats(address, "stats items").await {
            Ok(items) => stats.extend(items),
            Err(Failure { reason: Reason::Protocol, detail }) => tracing::debug!(detail, "no stats items"),
            Err(failure) => return Err(failure),
        }
        Ok(stats)
    }

    /// Asks for numbers; the answer is bounded by [`MAX_ANSWERS`].
    async fn stats(&mut self, address: &Endpoint, question: &str) -> Result<Vec<(String, String)>, Failure> {
        self.room = MAX_ANSWERS;
        self.send(address, &format!("{question}\r\n")).await?;
        let mut stats = Vec::new();
        loop {
            let line = self.line(address).await?;
            if line == "END" {
                return Ok(stats);
            }
            match line.strip_prefix("STAT ").and_then(|rest| rest.split_once(' ')) {
                Some((name, value)) => stats.push((name.to_owned(), value.to_owned())),
                None => return Err(unexpected(address, "STAT", &line)),
            }
        }
    }
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// An answer of memcached to `stats`.
    pub fn memcached(bytes: &[u8]) {
        let address = Endpoint::parse("127.0.0.1:11211").expect("is an address");
        let stats = crate::fuzzing::answered(bytes, async |stream| Talk::new(Stream::Unix(stream)).stats(&address, "stats").await);
        let Ok(stats) = stats else { return };
        assert!(stats.iter().all(|(name, value)| !name.contains([' ', '\n']) && !value.contains('\n')));
        let config = MemcachedConfig { address, canary: false };
        let (runs, started) = (AtomicU64::new(0), AtomicU64::new(9));
        let memcached = Memcached { config, key: String::new(), runs, started, changes: Changes::default(), standing: Arc::default() };
        memcached.record(&mut Recorder::default(), &stats);
    }
}

#[cfg(test)]
mod tests {
    use proptest::strategy::Strategy as _;

    use super::*;

    #[test]
    fn what_is_not_the_expected_answer_has_a_reason() {
        let address = Endpoint::parse("127.0.0.1:11211").expect("is an address");
        for (found, reason) in [
            ("ERROR Too many open connections", Reason::Saturated),
            ("CLIENT_ERROR unauthenticated", Reason::Auth),
            ("SERVER_ERROR busy", Reason::Unavailable),
            ("HTTP/1.1 400 Bad Request", Reason::Protocol),
            ("", Reason::Protocol),
        ] {
            assert_eq!(unexpected(&address, "VERSION", found).reason, reason, "{found}");
        }
    }

    #[test]
    fn no_name_is_given_twice() {
        let names: std::collections::BTreeSet<_> = PLAIN.iter().chain(SLABS).map(|(_, family)| family.name).collect();
        assert_eq!(names.len(), PLAIN.len() + SLABS.len());
        assert!(PLAIN.iter().chain(SLABS).all(|(_, f)| f.name.ends_with("_total") == (f.kind == crate::model::Kind::Counter)));
    }

    /// Reads one answer to `stats` out of these bytes, after which the server closes.
    fn read(bytes: &[u8]) -> Result<Vec<(String, String)>, Failure> {
        use std::io::Write;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
            ours.set_nonblocking(true).expect("is set");
            theirs.write_all(bytes).expect("fits the socket");
            theirs.shutdown(std::net::Shutdown::Write).expect("is open");
            let stream = Stream::Unix(tokio::net::UnixStream::from_std(ours).expect("is taken"));
            Talk::new(stream).stats(&Endpoint::parse("127.0.0.1:11211").expect("is an address"), "stats").await
        })
    }

    proptest::proptest! {
        #[test]
        fn no_answer_to_stats_breaks_the_reading(
            pieces in proptest::collection::vec(proptest::prop_oneof![
                proptest::sample::select(vec![&b"STAT "[..], b"pid", b" ", b"1", b"18446744073709551616", b"-1", b"nan", b"\r\n", b"\n", b"END\r\n", b"uptime", b"curr_connections", b"max_connections", b"time", b"items:", b":age", b":evicted"]).prop_map(<[u8]>::to_vec),
                proptest::collection::vec(proptest::num::u8::ANY, 0..9),
            ], 0..80),
        ) {
            use proptest::prelude::*;
            let bytes = pieces.concat();
            if let Ok(stats) = read(&bytes) {
                prop_assert!(String::from_utf8_lossy(&bytes).contains("END"));
                prop_assert!(stats.iter().all(|(name, value)| !name.contains([' ', '\n']) && !value.contains('\n')));
                let config = MemcachedConfig { address: Endpoint::parse("127.0.0.1:11211").expect("is an address"), canary: false };
                let memcached = Memcached { config, key: String::new(), runs: AtomicU64::new(0), started: AtomicU64::new(9), changes: Changes::default(), standing: Arc::default() };
                memcached.record(&mut Recorder::default(), &stats);
            }
        }
    }
}
