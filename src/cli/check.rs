//! `proctor check`: asks every probe once, in parallel, and says what is wrong now.

mod formats;
mod table;

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use futures_util::StreamExt;
use serde::Serialize;

use super::Exit;
use crate::app::{self, Source};
use crate::changes::Changes;
use crate::client::amqp::{first_told, waits_for_another};
use crate::client::net::chain;
use crate::metrics::Metrics;
use crate::model::decode::unknown;
use crate::model::{ProbeResult, Problems, Sight, Target, Timestamp, one_line};
use crate::probe::scheduler::{self, Scheduled};
use crate::tasks::{self, Tasks};

/// The most targets that are asked at the same time: each costs a file descriptor, and the host is the site's.
const MAX_AT_ONCE: usize = 64;
/// How long connections that stand may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(super) struct Check {
    /// How to say it; nagios has exit codes of its own (0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN)
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Asks only this probe; may be given several times
    #[arg(long, value_name = "PROBE")]
    only: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people, on 80 columns
    Table,
    /// One object; its shape is described in docs/life.md and stays
    Json,
    /// One line and performance data, then one line per target that is not well
    Nagios,
    /// A test suite with one test per target
    Junit,
}

/// How one target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// It works.
    Ok,
    /// It works, as far as could be seen.
    Partial,
    /// Nothing could be seen: neither well nor failing.
    Blind,
    /// It does not work.
    Failed,
    /// This host was too slow to judge.
    Unjudged,
}

impl State {
    /// The word of the table.
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Partial => "partly",
            Self::Blind => "blind",
            Self::Failed => "FAILED",
            Self::Unjudged => "unsure",
        }
    }
}

/// What one target answered. The order and the names are those of `--format json`.
#[derive(Debug, Serialize)]
struct Row {
    probe: String,
    target: Option<String>,
    kind: &'static str,
    state: State,
    /// Of the closed set, where it failed.
    reason: Option<&'static str>,
    /// What is wrong, or what could not be seen and how to change that.
    detail: Option<String>,
    duration_seconds: Option<f64>,
    #[serde(skip)]
    name: String,
    /// The probe that it depends on and that says why, where that is wrong with it too.
    #[serde(skip)]
    see: Option<String>,
}

impl Row {
    fn new(target: &Target, result: Option<&ProbeResult>) -> Self {
        let (state, reason, detail) = match result.map(|result| (&result.outcome, &result.sight)) {
            None => (State::Unjudged, None, Some("this host was too slow or asleep to judge it: ask again".to_owned())),
            Some((Err(failure), _)) => (State::Failed, Some(failure.reason.as_str()), Some(failure.detail.clone())),
            Some((Ok(()), Sight::Full)) => (State::Ok, None, None),
            Some((Ok(()), sight @ (Sight::Partial { missing, remedy } | Sight::Blind { missing, remedy }))) => {
                let state = if matches!(sight, Sight::Blind { .. }) { State::Blind } else { State::Partial };
                (state, None, Some(format!("cannot see {missing}; {remedy}")))
            }
        };
        // What a probe could not see may hold what a service said.
        let detail = detail.map(|text| one_line(&text, usize::MAX));
        Self {
            probe: target.probe.to_string(),
            target: target.target.as_deref().map(str::to_owned),
            kind: target.kind,
            state,
            reason,
            detail,
            duration_seconds: result.map(|result| result.duration.as_secs_f64()),
            name: target.to_string(),
            see: None,
        }
    }
}

/// Finds those that fail because a probe that they depend on does: what is wrong is then said once, there.
fn refer(rows: &mut [Row], scheduled: &[Scheduled]) {
    let failed: Vec<(String, &str, String)> =
        rows.iter().filter_map(|row| Some((row.name.clone(), row.reason?, first_told(row.detail.as_deref()?).to_owned()))).collect();
    for (row, one) in rows.iter_mut().zip(scheduled) {
        let (Some(reason), Some(detail)) = (row.reason, row.detail.as_deref()) else { continue };
        let own = first_told(detail);
        let same = |(root, of, said): &&(String, &str, String)| {
            let texts = said.starts_with(own) || own.starts_with(said) || waits_for_another(detail);
            one.target.depends_on.iter().any(|parent| **parent == **root) && *of == reason && texts
        };
        row.see = failed.iter().find(same).map(|(root, ..)| root.clone());
    }
    // To the first of a row of causes; a circle is no configuration.
    let next: Vec<(String, String)> = rows.iter().filter_map(|row| Some((row.name.clone(), row.see.clone()?))).collect();
    for row in rows {
        while let Some((_, root)) = next.iter().find(|(name, _)| row.see.as_ref() == Some(name)) {
            row.see = Some(root.clone());
        }
    }
}

impl Row {
    /// Returns name and detail as one line, where there is a detail; one that begins with the target's own name does
    /// not say it twice.
    fn told(&self) -> Option<String> {
        let detail = self.detail.as_ref()?;
        let twice = self.target.as_ref().is_some_and(|target| detail.starts_with(target.as_str()));
        Some(if twice { format!("{}/{detail}", self.probe) } else { format!("{}: {detail}", self.name) })
    }
}

/// What all of them answered.
#[derive(Debug, Serialize)]
struct Report {
    /// The version of this shape: keys may be added, none is removed or changes its meaning within a version.
    version: u32,
    site: String,
    #[serde(serialize_with = "in_words")]
    at: Timestamp,
    counts: Counts,
    targets: Vec<Row>,
    /// What was found on the host and is not asked, where there is no configuration.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    left_out: Vec<String>,
    #[serde(skip)]
    configured: bool,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Counts {
    ok: usize,
    partial: usize,
    blind: usize,
    failed: usize,
    unjudged: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over so")]
fn in_words<S: serde::Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(at)
}

impl Report {
    fn exit(&self, format: Format) -> Exit {
        let Counts { partial, blind, failed, unjudged, .. } = self.counts;
        let nothing = self.targets.is_empty() || unjudged > 0;
        match (format, failed > 0, nothing) {
            (Format::Nagios, true, _) => Exit::Of(2),
            (Format::Nagios, false, true) => Exit::Of(3),
            (Format::Nagios, false, false) => Exit::Of(u8::from(partial + blind > 0)),
            (_, true, _) => Exit::Failed,
            (_, false, true) => Exit::CouldNotRun,
            (_, false, false) => Exit::Well,
        }
    }
}

pub(super) fn run(source: &Source, check: &Check) -> Result<Exit, Box<dyn Error + Send + Sync>> {
    let report = match ask(source, &check.only) {
        Ok(report) => report,
        // Nagios reads what is printed, and knows 2 as CRITICAL.
        Err(error) if check.format == Format::Nagios => {
            super::say(&(formats::nagios_unknown(&chain(&*error)) + "\n"))?;
            return Ok(Exit::Of(3));
        }
        Err(error) => return Err(error),
    };
    let text = match check.format {
        Format::Table => table::write(&report),
        Format::Json => serde_json::to_string_pretty(&report)? + "\n",
        Format::Nagios => formats::nagios(&report),
        Format::Junit => formats::junit(&report),
    };
    super::say(&text)?;
    Ok(report.exit(check.format))
}

fn ask(source: &Source, only: &[String]) -> Result<Report, Box<dyn Error + Send + Sync>> {
    let loaded = app::load(source)?;
    let names: Vec<&str> = loaded.config.probes.0.iter().map(|(name, _)| name.as_str()).collect();
    if let Some(wrong) = only.iter().find(|name| !names.contains(&name.as_str())) {
        return Err(format!("--only: {}", unknown("probe", wrong, &names)).into());
    }
    let tasks = Tasks::new();
    let mut problems = Problems::new(&loaded.file);
    let mut scheduled = app::plan(&loaded.config, &tasks, &Changes::default(), &mut problems);
    if !problems.is_empty() {
        return Err(app::AppError::Config(problems.into_sorted()).into());
    }
    scheduled.retain(|one| only.is_empty() || only.iter().any(|name| **name == *one.target.probe));
    let metrics = Arc::new(Metrics::new());
    let at = tasks::wall_now();
    let targets = super::block_on(async {
        let mut rows = ask_all(&scheduled, &metrics).await;
        tasks.stop(GOODBYE).await;
        refer(&mut rows, &scheduled);
        rows
    })?;
    let count = |state| targets.iter().filter(|row| row.state == state).count();
    let counts = Counts {
        ok: count(State::Ok),
        partial: count(State::Partial),
        blind: count(State::Blind),
        failed: count(State::Failed),
        unjudged: count(State::Unjudged),
    };
    let configured = loaded.found.is_none();
    let left_out = loaded.found.map(|found| found.left_out()).unwrap_or_default();
    Ok(Report { version: 1, site: loaded.config.site.name.clone(), at, counts, targets, left_out, configured })
}

/// Asks each once, in the order of the configuration.
async fn ask_all(scheduled: &[Scheduled], metrics: &Metrics) -> Vec<Row> {
    let asked = scheduled.iter().map(|one| async move { Row::new(&one.target, scheduler::run(one, metrics).await.as_ref()) });
    futures_util::stream::iter(asked).buffered(MAX_AT_ONCE).collect().await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{Failure, Reason};

    /// A report of one target in each state, with what hostile services say.
    fn report() -> Report {
        let target = |name: &str, of: Option<&str>, kind| {
            let (interval, timeout) = (Duration::from_secs(15), Duration::from_secs(5));
            let depends_on = Arc::new([]);
            Arc::new(Target { probe: name.into(), target: of.map(Into::into), kind, interval, timeout, depends_on })
        };
        let row = |name: &str, of: Option<&str>, kind, outcome, sight| {
            let target = target(name, of, kind);
            let (samples, evidence, duration) = (Vec::new(), Vec::new(), Duration::from_micros(300));
            Row::new(&target, Some(&ProbeResult { target: target.clone(), at: Timestamp(0), duration, outcome, samples, sight, evidence }))
        };
        let silent = "127.0.0.1:50000: no answer within 5s (connected after 0.3ms, waiting for the server's first bytes): the tunnel is up but the far end is silent";
        let hostile = "127.0.0.1:80 said <b>|\u{1b}[31m\"&'; \r\nSTATUS OK and a word that has no end xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";
        let (missing, remedy) = ("the accept queue".to_owned(), "run proctor in the host's network".to_owned());
        let mut targets = vec![
            row("cache", None, "memcached", Ok(()), Sight::Full),
            row("csrpt", None, "tunnel", Err(Failure::new(Reason::RemoteSilent, silent)), Sight::Full),
            row(
                "web",
                Some("https://coursys.example.org/a/long/path/of/one/site"),
                "nginx",
                Err(Failure::new(Reason::ConnectTimeout, hostile)),
                Sight::Full,
            ),
            row("search", None, "elasticsearch", Ok(()), Sight::Partial { missing: missing.clone(), remedy: remedy.clone() }),
            row("app", None, "gunicorn", Ok(()), Sight::Blind { missing, remedy }),
        ];
        targets.push(Row::new(&target("slow", None, "http"), None));
        let counts = Counts { ok: 1, partial: 1, blind: 1, failed: 2, unjudged: 1 };
        Report { version: 1, site: "coursys".into(), at: Timestamp(0), counts, targets, left_out: Vec::new(), configured: true }
    }

    fn well() -> Report {
        let mut report = report();
        report.targets.truncate(1);
        Report { counts: Counts { ok: 1, ..Counts::default() }, ..report }
    }

    #[test]
    fn a_tired_person_sees_what_is_wrong_at_the_end_of_80_columns() {
        let text = table::write(&report());
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(!text.contains('\u{1b}'));
        insta::assert_snapshot!("table", text);
        insta::assert_snapshot!("table_well", table::write(&well()));
    }

    #[test]
    fn machines_get_the_same_in_their_own_shape() {
        insta::assert_snapshot!("json", serde_json::to_string_pretty(&report()).expect("is JSON"));
        insta::assert_snapshot!("nagios", formats::nagios(&report()));
        insta::assert_snapshot!("nagios_well", formats::nagios(&well()));
        insta::assert_snapshot!("junit", formats::junit(&report()));
    }

    #[test]
    fn the_exit_code_is_that_of_the_worst_target() {
        let with = |counts: Counts| Report { counts, ..report() };
        let none = Counts::default();
        for (counts, exit, nagios) in [
            (Counts { ok: 1, ..none }, 0, 0),
            (Counts { partial: 1, ..none }, 0, 1),
            (Counts { blind: 1, ..none }, 0, 1),
            (Counts { failed: 1, unjudged: 1, ..none }, 1, 2),
            (Counts { ok: 5, unjudged: 1, ..none }, 2, 3),
        ] {
            let report = with(counts);
            assert_eq!((report.exit(Format::Table).code(), report.exit(Format::Nagios).code()), (exit, nagios), "{counts:?}");
        }
        let nothing = Report { targets: Vec::new(), counts: none, ..report() };
        assert_eq!((nothing.exit(Format::Json).code(), nothing.exit(Format::Nagios).code()), (2, 3), "nothing was asked");
    }
}
