//! What the probes of databases have in common: one session, its failures, what may not be seen, and the `queries` of
//! the configuration.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::http::trust;
use super::{Recorder, Shared};
use crate::client::net::{Endpoint, NetError};
use crate::client::sql::{Login, Question, Rows, Session, Settings, SqlError, number};
use crate::model::decode::{self, Decode, Named};
use crate::model::yaml::Node;
use crate::model::{Failure, Family, Problems, Reason, Sight};

/// The most queries of one probe.
const MAX_QUERIES: usize = 50;
/// The most rows that a query may be allowed.
const MAX_ROWS: usize = 100;
/// The longest time that a statement may be allowed.
const MAX_STATEMENT: Duration = Duration::from_secs(60);
/// How often what costs the server more is asked: sizes.
const SELDOM: Duration = Duration::from_secs(600);

crate::config_struct! {
    /// One query of your own, whose numbers become gauges.
    pub struct Query {
        /// One query (`SELECT …`, `WITH …`), run in a read-only transaction with the statement timeout.
        sql: Sql,
        /// Columns whose texts become labels; every other column must hold numbers, and becomes a series of its own.
        labels: Vec<LabelName> = "[]",
        /// The most rows that are right, at most 100.
        rows: usize = "20",
    }
}

/// One query, of those that read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sql(String);

impl Decode for Sql {
    const EXPECTED: &'static str = "one query that begins with SELECT, WITH, VALUES or TABLE";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let text = String::decode(node, &mut Problems::default()).map(|text| text.trim().trim_end_matches(';').trim_end().to_owned());
        let good = |text: &String| {
            let first = text.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
            ["select", "with", "values", "table"].iter().any(|word| first.eq_ignore_ascii_case(word))
                && text.len() <= 10_000
                && !text.contains('\0')
        };
        let sql = text.filter(good);
        if sql.is_none() {
            decode::mismatch(node, Self::EXPECTED, problems);
        }
        sql.map(Self)
    }
}

/// The name of a label, which is one of a column too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelName(&'static str);

impl Decode for LabelName {
    const EXPECTED: &'static str = "a column's name of letters, digits and _, other than query, column, probe and target";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let good = |text: &String| {
            text.starts_with(|c: char| c.is_ascii_alphabetic())
                && text.len() <= 60
                && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                && !["query", "column", "probe", "target", "job", "instance"].contains(&text.as_str())
        };
        let name = String::decode(node, &mut Problems::default()).filter(good);
        if name.is_none() {
            decode::mismatch(node, Self::EXPECTED, problems);
        }
        name.map(|name| Self(interned(&name)))
    }
}

/// Keeps a name for good, each once: names of labels live as long as the program, and only a configuration brings new
/// ones.
fn interned(name: &str) -> &'static str {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.get(name) {
        return known;
    }
    let kept: &'static str = Box::leak(name.to_owned().into_boxed_str());
    names.insert(kept);
    kept
}

/// Builds the session of a probe; connects to nothing.
///
/// # Errors
/// A password or a file of authorities that cannot be read, a limit out of its range, too many queries.
pub(super) fn session(
    mut settings: Settings,
    tls: bool,
    ca_file: Option<&PathBuf>,
    queries: &Named<Query>,
    shared: &Shared,
) -> Result<Session, String> {
    if !(Duration::from_millis(100)..=MAX_STATEMENT).contains(&settings.statement_timeout) {
        return Err("statement_timeout: expected at least 100ms and at most 1m".to_owned());
    }
    if ca_file.is_some() && !tls {
        return Err("ca_file is set, but tls is not true".to_owned());
    }
    if tls && matches!(settings.endpoint, Endpoint::Unix(_)) {
        return Err("tls: expected false with a unix socket, which nobody else can read".to_owned());
    }
    if queries.0.len() > MAX_QUERIES {
        return Err(format!("queries: expected at most {MAX_QUERIES}, found {}", queries.0.len()));
    }
    for (name, query) in &queries.0 {
        if !(1..=MAX_ROWS).contains(&query.rows) {
            return Err(format!("queries: {}: rows: expected 1 to {MAX_ROWS}, found {}", name.value, query.rows));
        }
    }
    let trusted = trust(ca_file)?;
    settings.tls = tls.then_some(trusted);
    settings.password().map_err(|error| format!("password_file: {error}"))?;
    Ok(Session::new(settings, shared.tasks().clone()))
}

/// What the user may not see, and what would let it.
#[derive(Default)]
pub(super) struct Unseen {
    missing: Vec<String>,
    remedy: String,
}

impl Unseen {
    /// Notes it; the first remedy stays, since it is the one that a database of this kind has.
    pub(super) fn add(&mut self, missing: impl Into<String>, remedy: impl Into<String>) {
        self.missing.push(missing.into());
        if self.remedy.is_empty() {
            self.remedy = remedy.into();
        }
    }

    /// Says it to the recorder.
    pub(super) fn say(self, rec: &mut Recorder) {
        if !self.missing.is_empty() {
            rec.sight(Sight::Partial { missing: self.missing.join(", "), remedy: self.remedy });
        }
    }
}

/// One run's way to ask.
pub(super) struct Asking<'a> {
    pub(super) session: &'a Session,
    pub(super) unseen: Unseen,
    /// What is to be run where the server forbids something.
    pub(super) grant: String,
}

impl<'a> Asking<'a> {
    pub(super) fn of(session: &'a Session) -> Self {
        Self { session, unseen: Unseen::default(), grant: String::new() }
    }

    /// Logs in, anew where the login is older than this, and asks for the smallest answer there is; returns how the
    /// login went and how long the answer took.
    pub(super) async fn log_in(&self, rec: &mut Recorder, older_than: Duration) -> Result<(Login, Rows, Duration), Failure> {
        let begin = Instant::now();
        let told = &mut |reason, text: String| rec.waiting(reason, text);
        let (login, rows) =
            self.session.ask(Question::Login { older_than }, "the first question", told).await.map_err(|error| self.failure(&error))?;
        let took = begin.max(login.at).elapsed();
        Ok((login, rows, took))
    }

    /// Asks for what must be answered.
    pub(super) async fn must(&self, rec: &mut Recorder, sql: &'static str, what: &'static str) -> Result<Rows, Failure> {
        let told = &mut |reason, text: String| rec.waiting(reason, text);
        let answer = self.session.ask(Question::Ours(sql), what, told).await;
        answer.map(|(_, rows)| rows).map_err(|error| self.failure(&error))
    }

    /// Asks for what may be kept from us: then it is noted as not seen, and the rest goes on.
    pub(super) async fn may(&mut self, rec: &mut Recorder, sql: &'static str, what: &'static str) -> Result<Option<Rows>, Failure> {
        let told = &mut |reason, text: String| rec.waiting(reason, text);
        match self.session.ask(Question::Ours(sql), what, told).await {
            Ok((_, rows)) => Ok(Some(rows)),
            Err(error @ SqlError::Server { fatal: false, .. }) => {
                match error.reason() {
                    Reason::Forbidden => self.unseen.add(what, self.grant.clone()),
                    _ => self.unseen.add(format!("{what}: {error}"), "see the server's log".to_owned()),
                }
                Ok(None)
            }
            Err(error) => Err(self.failure(&error)),
        }
    }

    /// Says what an error means, with where it happened in front.
    pub(super) fn failure(&self, error: &SqlError) -> Failure {
        let settings = self.session.settings();
        match error {
            SqlError::Net(net) if matches!(**net, NetError::Resolve { .. } | NetError::Connect { .. }) => {
                Failure::new(error.reason(), error.to_string())
            }
            // It names user and database itself, or they do not matter.
            _ => Failure::new(error.reason(), format!("{}: {}: {error}", settings.endpoint, settings.dialect)),
        }
    }

    /// Runs the queries of the configuration, each whether or not one before it failed; the first that failed fails
    /// the run.
    pub(super) async fn queries(
        &self,
        rec: &mut Recorder,
        queries: &Named<Query>,
        families: &'static QueryFamilies,
    ) -> Result<(), Failure> {
        let mut outcome = Ok(());
        for (name, query) in &queries.0 {
            let name = name.as_str();
            let begin = Instant::now();
            let question = Question::Theirs { sql: query.sql.0.clone(), rows: query.rows };
            let told = &mut |reason, text: String| rec.waiting(reason, format!("{text} {name}"));
            let answer = self.session.ask(question, "the query", told).await;
            let asked = match &answer {
                Ok((_, rows)) => series(query, rows),
                // The connection is gone, and so is the rest.
                Err(error) if !matches!(error, SqlError::Server { fatal: false, .. }) => return Err(self.failure(error)),
                Err(error) if error.reason() == Reason::Blocked => {
                    Err(Failure::new(Reason::Blocked, format!("it writes, which it may not: {error}")))
                }
                Err(error) => Err(Failure::new(error.reason(), error.to_string())),
            };
            rec.set_with(&families.success, &[("query", name)], f64::from(u8::from(asked.is_ok())));
            match asked {
                Ok(all) => {
                    rec.set_with(&families.duration, &[("query", name)], begin.elapsed().as_secs_f64());
                    for Series { column, labels, value } in all {
                        let mut whole = vec![("query", name), ("column", column)];
                        whole.extend(labels);
                        rec.set_with(&families.value, &whole, value);
                    }
                }
                Err(failure) if outcome.is_ok() => {
                    let place = format!("{}: query {name}", self.session.settings().endpoint);
                    outcome = Err(Failure::new(failure.reason, format!("{place}: {failure}")));
                }
                Err(_) => {}
            }
        }
        outcome
    }
}

/// The three metrics of queries, under the names of their database.
pub(super) struct QueryFamilies {
    pub(super) value: Family,
    pub(super) success: Family,
    pub(super) duration: Family,
}

/// One number of a query's answer.
#[derive(Debug, PartialEq)]
struct Series<'a> {
    column: &'a str,
    labels: Vec<(&'static str, &'a str)>,
    value: f64,
}

/// Turns an answer into series.
fn series<'a>(query: &Query, rows: &'a Rows) -> Result<Vec<Series<'a>>, Failure> {
    let wrong = |reason, what: String| Err(Failure::new(reason, what));
    for LabelName(label) in &query.labels {
        if !rows.columns.iter().any(|column| column.eq_ignore_ascii_case(label)) {
            return wrong(
                Reason::Mismatch,
                format!("expected a column {label}, which is named under labels, found {}", rows.columns.join(", ")),
            );
        }
    }
    let is_label = |column: &str| query.labels.iter().any(|LabelName(label)| label.eq_ignore_ascii_case(column));
    if rows.columns.iter().all(|column| is_label(column)) {
        return wrong(Reason::Mismatch, "expected a column of numbers besides the labels, found none".to_owned());
    }
    if rows.rows.len() > query.rows {
        return wrong(Reason::TooLarge, format!("expected at most {} rows, found more: see its key rows", query.rows));
    }
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for row in &rows.rows {
        let labels: Vec<_> = query.labels.iter().map(|LabelName(label)| (*label, rows.at(row, label).unwrap_or_default())).collect();
        if !seen.insert(labels.clone()) {
            let shown: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
            let which = if shown.is_empty() { "without labels".to_owned() } else { format!("with {}", shown.join(", ")) };
            return wrong(
                Reason::Mismatch,
                format!("expected one row {which}, found several: name the columns that tell them apart under labels"),
            );
        }
        for (column, value) in rows.columns.iter().zip(row) {
            // NULL is no number, and no mistake: a maximum of nothing.
            let Some(text) = value.as_ref().filter(|_| !is_label(column)) else { continue };
            let Some(value) = number(text) else {
                let text: String = text.chars().take(40).collect();
                return wrong(
                    Reason::Mismatch,
                    format!("expected numbers in column {column}, found {text:?}: name it under labels, or leave it out"),
                );
            };
            found.push(Series { column, labels: labels.clone(), value });
        }
    }
    Ok(found)
}

/// An answer that is asked for seldom, and kept meanwhile.
#[derive(Default)]
pub(super) struct Seldom(Mutex<Option<(Instant, Rows)>>);

impl Seldom {
    /// Returns what is kept, while it is young enough.
    pub(super) fn kept(&self) -> Option<Rows> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref().filter(|(at, _)| at.elapsed() < SELDOM).map(|(_, rows)| rows.clone())
    }

    /// Keeps an answer.
    pub(super) fn keep(&self, rows: Rows) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), rows));
    }
}

/// Prints how long something has been going on, to the second.
pub(super) fn seconds(seconds: f64) -> String {
    crate::model::duration::print(Duration::from_secs(seconds.max(0.0) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decode::from_text;

    fn rows(columns: &[&str], rows: &[&[Option<&str>]]) -> Rows {
        Rows {
            columns: columns.iter().map(|name| (*name).to_owned()).collect(),
            rows: rows.iter().map(|row| row.iter().map(|value| value.map(str::to_owned)).collect()).collect(),
        }
    }

    #[test]
    fn a_query_says_what_is_wrong_with_it_at_load() {
        for text in [
            "sql: 'DELETE FROM a'",
            "sql: ''",
            "sql: 'explain select 1'",
            "sql: select 1\nlabels: [probe]",
            "sql: select 1\nlabels: ['a b']",
            "{}",
        ] {
            from_text::<Query>("f", text).expect_err(text);
        }
        let query: Query = from_text("f", "sql: ' select 1 ; '\nlabels: [status]").expect("is right");
        assert_eq!((query.sql, query.rows), (Sql("select 1".to_owned()), 20));
        assert_eq!(interned("status"), "status");
    }

    #[test]
    fn an_answer_becomes_series_or_says_what_is_wrong_with_it() {
        let query = |labels: &str| from_text::<Query>("f", &format!("sql: select 1\nlabels: {labels}\nrows: 2")).expect("is right");
        let two = rows(&["status", "n", "oldest"], &[&[Some("sent"), Some("3"), None], &[None, Some("4"), Some("1.5")]]);
        let found: Vec<_> =
            series(&query("[status]"), &two).expect("is right").into_iter().map(|one| (one.column, one.labels[0].1, one.value)).collect();
        assert_eq!(found, [("n", "sent", 3.0), ("n", "", 4.0), ("oldest", "", 1.5)]);
        assert_eq!(series(&query("[]"), &rows(&["n"], &[])).expect("is right"), []);
        for (labels, rows, reason, words) in [
            ("[]", &two, Reason::Mismatch, "expected numbers in column status, found \"sent\""),
            ("[kind]", &two, Reason::Mismatch, "expected a column kind"),
            ("[]", &rows(&["n"], &[&[Some("1")], &[Some("2")]]), Reason::Mismatch, "expected one row without labels, found several"),
            ("[n]", &rows(&["n"], &[&[Some("1")]]), Reason::Mismatch, "expected a column of numbers besides"),
            (
                "[n]",
                &rows(&["n", "m"], &[&[Some("1"), None], &[Some("2"), None], &[Some("3"), None]]),
                Reason::TooLarge,
                "expected at most 2 rows",
            ),
        ] {
            let failure = series(&query(labels), rows).expect_err(words);
            assert_eq!(failure.reason, reason, "{failure}");
            assert!(failure.detail.contains(words), "{failure}");
        }
    }
}
