//! The newest result of every target, with its age, already rendered.
//!
//! A target's lines are rendered once, when its result arrives. The body of `/metrics` joins them, at most every
//! [`JOIN_EVERY`], and a scrape only copies bytes. A result that is too old drops out (invariant 6): Prometheus then
//! marks its series stale.

pub mod history;

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;

use self::history::History;
use crate::metrics::{ByProbe, Metrics};
use crate::model::{Family, Kind, ProbeResult, Sample, Target, Timestamp};

/// The body of `/metrics` is joined anew at most this often.
pub const JOIN_EVERY: Duration = Duration::from_millis(250);

/// The most series of all targets together; a target that would pass it keeps what fits.
pub const MAX_SERIES: usize = 100_000;

/// What is known of one target.
#[derive(Clone, Debug)]
pub struct Latest {
    /// Who is asked.
    pub target: Arc<Target>,
    /// The newest result, without its samples; nothing before the first run.
    pub result: Option<Arc<ProbeResult>>,
    /// How many runs have ended since the start.
    pub runs: u64,
    /// Since when the outcome is what it is now: well, or failing.
    pub since: Option<Timestamp>,
}

impl Latest {
    /// Says whether the newest result failed. No result yet is neither well nor failing.
    pub fn is_failing(&self) -> bool {
        self.result.as_ref().is_some_and(|result| !result.is_success())
    }

    /// Says whether the newest result says nothing about now any more.
    pub fn is_old(&self, now: Timestamp) -> bool {
        self.result.as_ref().is_some_and(|result| now.since(result.at) > self.target.valid_for())
    }
}

/// The format of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `application/openmetrics-text; version=1.0.0`
    OpenMetrics,
    /// `text/plain; version=0.0.4`
    Text,
}

/// The body of `/metrics`, whole and compressed.
#[derive(Clone, Debug, Default)]
pub struct Body {
    /// As it is.
    pub plain: Bytes,
    /// Compressed by gzip.
    pub gzip: Bytes,
}

/// One target's lines, by family.
#[derive(Debug, Default)]
struct Rendered {
    at: Timestamp,
    families: Vec<(&'static Family, String)>,
    series: usize,
}

#[derive(Debug, Default)]
struct Entry {
    latest: Option<Latest>,
    history: Option<History>,
    rendered: Rendered,
}

/// The body in one format, and when it was joined.
#[derive(Debug, Default)]
struct Joined {
    at: Option<Timestamp>,
    body: Body,
}

#[derive(Debug, Default)]
struct Inner {
    targets: BTreeMap<String, Entry>,
    series: usize,
}

/// The newest result of every target. Clones share the same table.
#[derive(Clone, Debug)]
pub struct Snapshot {
    inner: Arc<RwLock<Inner>>,
    /// By format: what nobody asks for is not made.
    joined: Arc<[Mutex<Joined>; 2]>,
    metrics: Arc<Metrics>,
}

impl Snapshot {
    /// Begins without targets.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { inner: Arc::default(), joined: Arc::default(), metrics }
    }

    /// Announces the targets of a configuration: new ones without a result, those that are gone removed.
    pub fn announce(&self, targets: &[Arc<Target>]) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let mut old = std::mem::take(&mut inner.targets);
        for target in targets {
            let mut entry = old.remove(&target.to_string()).unwrap_or_default();
            entry.latest = Some(match entry.latest {
                Some(latest) => Latest { target: target.clone(), ..latest },
                None => Latest { target: target.clone(), result: None, runs: 0, since: None },
            });
            let history = entry.history.filter(|history| history.fits(target.interval));
            entry.history = Some(history.unwrap_or_else(|| History::new(target.interval)));
            inner.targets.insert(target.to_string(), entry);
        }
        inner.series = inner.targets.values().map(|entry| entry.rendered.series).sum();
    }

    /// Takes a result in place of the target's last one; says whether the outcome is another one than before.
    pub fn accept(&self, result: &ProbeResult) -> bool {
        let mut rendered = render(result);
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let others = inner.series;
        let Some(entry) = inner.targets.get_mut(&result.target.to_string()) else { return false };
        let Some(latest) = &mut entry.latest else { return false };
        let was = latest.result.as_ref().map(|old| old.is_success());
        let changed = was != Some(result.is_success());
        if changed {
            latest.since = Some(result.at);
        }
        latest.runs += 1;
        if let Some(history) = &mut entry.history {
            history.note(result);
        }
        latest.result = Some(Arc::new(ProbeResult { samples: Vec::new(), ..result.clone() }));
        let others = others - entry.rendered.series;
        if others + rendered.series > MAX_SERIES {
            let by_probe = ByProbe { probe: result.target.probe.to_string() };
            self.metrics.series_dropped.get_or_create_owned(&by_probe).inc_by((others + rendered.series - MAX_SERIES) as u64);
            rendered.keep(MAX_SERIES.saturating_sub(others));
        }
        let series = others + rendered.series;
        entry.rendered = rendered;
        inner.series = series;
        changed
    }

    /// Returns what is known of every target, sorted by name.
    pub fn all(&self) -> Vec<Latest> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.targets.values().filter_map(|entry| entry.latest.clone()).collect()
    }

    /// Returns what is known of every target with its last answers, sorted by name.
    pub fn histories(&self) -> Vec<(Latest, History)> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.targets.values().filter_map(|entry| Some((entry.latest.clone()?, entry.history.clone()?))).collect()
    }

    /// Returns the body of `/metrics`: the last one, or a new one where that is older than [`JOIN_EVERY`].
    pub fn body(&self, format: Format, now: Timestamp) -> Body {
        // Held while joining: scrapes that come meanwhile wait the few milliseconds and share the result.
        let mut joined = self.joined[format as usize].lock().unwrap_or_else(PoisonError::into_inner);
        if joined.at.is_none_or(|at| now.since(at) >= JOIN_EVERY) {
            *joined = Joined { at: Some(now), body: self.join(format, now) };
        }
        joined.body.clone()
    }

    fn join(&self, format: Format, now: Timestamp) -> Body {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let mut families: BTreeMap<&'static str, (&'static Family, Vec<&str>)> = BTreeMap::new();
        let fresh = |entry: &&Entry| entry.latest.as_ref().is_some_and(|latest| now.since(entry.rendered.at) <= latest.target.valid_for());
        for entry in inner.targets.values().filter(fresh) {
            for (family, lines) in &entry.rendered.families {
                families.entry(family.metric()).or_insert((family, Vec::new())).1.push(lines);
            }
        }
        let own = self.metrics.encode();
        let own = own.strip_suffix("# EOF\n").unwrap_or(&own);
        let size =
            families.values().flat_map(|(_, chunks)| chunks).map(|lines| lines.len()).sum::<usize>() + own.len() + 200 * families.len();
        let mut body = String::with_capacity(size);
        for (family, chunks) in families.values() {
            head(&mut body, family, format);
            chunks.iter().for_each(|lines| body.push_str(lines));
        }
        match format {
            Format::OpenMetrics => {
                body.push_str(own);
                body.push_str("# EOF\n");
            }
            Format::Text => own_as_text(&mut body, own),
        }
        // Compressing takes longest, and results must not wait for it.
        drop(families);
        drop(inner);
        Body::of(body)
    }
}

impl Body {
    /// Compresses a text.
    pub fn of(plain: String) -> Self {
        let mut encoder = flate2::write::GzEncoder::new(Vec::with_capacity(plain.len() / 8), flate2::Compression::fast());
        // Writing into memory cannot fail; without the compressed form the plain one is sent.
        let gzip = encoder.write_all(plain.as_bytes()).and_then(|()| encoder.finish()).unwrap_or_default();
        Self { plain: plain.into(), gzip: gzip.into() }
    }
}

impl Rendered {
    /// Keeps only so many series.
    fn keep(&mut self, series: usize) {
        let mut room = series;
        for (_, lines) in &mut self.families {
            let end = lines.match_indices('\n').map(|(at, _)| at + 1).take(room).last().unwrap_or(0);
            room -= lines[..end].matches('\n').count();
            lines.truncate(end);
        }
        self.families.retain(|(_, lines)| !lines.is_empty());
        self.series = series - room;
    }
}

/// Renders the lines of one result, grouped by family; of two series with the same labels the first stays, since one
/// duplicate makes Prometheus refuse the whole scrape.
fn render(result: &ProbeResult) -> Rendered {
    let mut rendered = Rendered { at: result.at, ..Rendered::default() };
    let mut seen = HashSet::new();
    for Sample { family, labels, value } in &result.samples {
        let mut line = String::with_capacity(96);
        line.push_str(family.name);
        push_label(&mut line, '{', "probe", &result.target.probe);
        if let Some(target) = &result.target.target {
            push_label(&mut line, ',', "target", target);
        }
        for (name, value) in labels {
            push_label(&mut line, ',', name, value);
        }
        line.push_str("} ");
        if !seen.insert(line.clone()) {
            continue;
        }
        push_value(&mut line, *value);
        line.push('\n');
        rendered.series += 1;
        match rendered.families.iter_mut().find(|(known, _)| known.metric() == family.metric()) {
            Some((_, lines)) => lines.push_str(&line),
            None => rendered.families.push((family, line)),
        }
    }
    rendered
}

fn push_label(line: &mut String, separator: char, name: &str, value: &str) {
    line.push(separator);
    line.push_str(name);
    line.push_str("=\"");
    for c in value.chars() {
        match c {
            '\\' => line.push_str("\\\\"),
            '"' => line.push_str("\\\""),
            '\n' => line.push_str("\\n"),
            c => line.push(c),
        }
    }
    line.push('"');
}

fn push_value(line: &mut String, value: f64) {
    let written = match value {
        v if v.is_nan() => line.write_str("NaN"),
        f64::INFINITY => line.write_str("+Inf"),
        f64::NEG_INFINITY => line.write_str("-Inf"),
        v => write!(line, "{v}"),
    };
    debug_assert!(written.is_ok(), "writing to a String cannot fail");
}

/// Writes `# HELP` and `# TYPE`: OpenMetrics names a counter's family without `_total`, text 0.0.4 with it.
fn head(body: &mut String, family: &Family, format: Format) {
    let (name, kind) = match (family.kind, format) {
        (Kind::Gauge, _) => (family.name, "gauge"),
        (Kind::Histogram, _) => (family.metric(), "histogram"),
        (Kind::Counter, Format::OpenMetrics) => (family.name.strip_suffix("_total").unwrap_or(family.name), "counter"),
        (Kind::BorrowedCounter, Format::OpenMetrics) => (family.name, "unknown"),
        (Kind::Counter | Kind::BorrowedCounter, Format::Text) => (family.name, "counter"),
    };
    for part in ["# HELP ", name, " ", family.help, ".\n# TYPE ", name, " ", kind, "\n"] {
        body.push_str(part);
    }
}

/// Rewrites the library's OpenMetrics as text 0.0.4: a counter's family has the name of its sample there.
fn own_as_text(body: &mut String, own: &str) {
    let counters: HashSet<&str> = own.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    for line in own.lines().filter(|line| !line.starts_with("# UNIT ")) {
        let renamed = line.strip_prefix("# ").and_then(|rest| {
            let (keyword, rest) = rest.split_once(' ')?;
            let (name, rest) = rest.split_once(' ')?;
            counters.contains(name).then(|| format!("# {keyword} {name}_total {rest}"))
        });
        body.push_str(renamed.as_deref().unwrap_or(line));
        body.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Histogram, Observed};

    static ACTIVE: Family = Family::gauge("nginx_connections_active", "Active connections");
    static ACCEPTED: Family = Family::borrowed_counter("nginx_connections_accepted", "Accepted connections");
    static SEEN: Family = Family::counter("seen_total", "Seen");
    static TOOK: Histogram =
        Histogram::new(["took_seconds_bucket", "took_seconds_sum", "took_seconds_count"], "How long it took", &[0.5, 1.0]);

    fn target(probe: &str, target: Option<&str>) -> Arc<Target> {
        Arc::new(Target {
            probe: probe.into(),
            target: target.map(Into::into),
            kind: "fake",
            interval: Duration::from_secs(15),
            timeout: Duration::from_secs(5),
            depends_on: Arc::new([]),
        })
    }

    fn result(target: &Arc<Target>, at: i64, samples: Vec<Sample>) -> ProbeResult {
        ProbeResult {
            target: target.clone(),
            at: Timestamp::from_secs(at),
            duration: Duration::ZERO,
            outcome: Ok(()),
            samples,
            sight: crate::model::Sight::Full,
            evidence: Vec::new(),
        }
    }

    fn own_removed(body: &Bytes) -> String {
        String::from_utf8_lossy(body).lines().filter(|line| !line.contains("proctor_")).map(|line| format!("{line}\n")).collect()
    }

    #[test]
    fn families_are_contiguous_and_have_the_same_names_in_both_formats() {
        let snapshot = Snapshot::new(Arc::new(Metrics::new()));
        let (a, b) = (target("web", Some("x\"\\\n")), target("web2", None));
        snapshot.announce(&[a.clone(), b.clone()]);
        let sample = |family, value| Sample { family, labels: vec![], value };
        snapshot.accept(&result(&a, 100, vec![sample(&ACTIVE, 1.0), sample(&ACCEPTED, 1e21), sample(&ACTIVE, 2.0)]));
        let mut samples = vec![sample(&SEEN, 0.1), sample(&ACTIVE, f64::NAN)];
        for (of, values) in [("x", &[0.1, 1.0, 9.0][..]), ("y", &[])] {
            let mut observed = Observed::nothing(&TOOK);
            values.iter().for_each(|value| observed.add(&TOOK, *value));
            samples.extend(observed.series(&TOOK).map(|(family, le, value)| {
                let le = le.map(|le| ("le", le.into()));
                Sample { family, labels: [("of", of.into())].into_iter().chain(le).collect(), value }
            }));
        }
        snapshot.accept(&result(&b, 100, samples));
        let open = own_removed(&snapshot.body(Format::OpenMetrics, Timestamp::from_secs(101)).plain);
        let text = own_removed(&snapshot.body(Format::Text, Timestamp::from_secs(101)).plain);
        insta::assert_snapshot!(format!("{open}---\n{text}"));
    }

    #[test]
    fn a_result_that_is_too_old_drops_out() {
        let snapshot = Snapshot::new(Arc::new(Metrics::new()));
        let target = target("web", None);
        snapshot.announce(std::slice::from_ref(&target));
        snapshot.accept(&result(&target, 100, vec![Sample { family: &ACTIVE, labels: vec![], value: 1.0 }]));
        let shown = |at| own_removed(&snapshot.body(Format::Text, Timestamp::from_secs(at)).plain).contains("nginx_connections_active{");
        assert!(shown(160));
        assert!(!shown(161));
    }

    #[test]
    fn too_many_series_are_dropped_and_counted() {
        let metrics = Arc::new(Metrics::new());
        let snapshot = Snapshot::new(metrics.clone());
        let targets: Vec<_> = (0..51).map(|n| target(&format!("p{n}"), None)).collect();
        snapshot.announce(&targets);
        for target in &targets {
            let samples =
                (0..2000).map(|n: u32| Sample { family: &ACTIVE, labels: vec![("n", n.to_string().into())], value: 1.0 }).collect();
            snapshot.accept(&result(target, 100, samples));
        }
        let body = snapshot.body(Format::Text, Timestamp::from_secs(101)).plain;
        assert_eq!(String::from_utf8_lossy(&body).matches("nginx_connections_active{").count(), MAX_SERIES);
        assert_eq!(metrics.series_dropped.get_or_create_owned(&ByProbe { probe: "p50".into() }).get(), 2000);
    }
}
