//! Rule files in Prometheus' format, decoded as strictly as Prometheus does (`model/rulefmt`): an unknown key, which
//! Prometheus would refuse, is refused here too, and what we do not evaluate is refused by its name.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::RulesConfig;
use super::template::Template;
use crate::model::decode::{Fields, Named, Spanned, mismatch};
use crate::model::duration::print;
use crate::model::labels::NAME;
use crate::model::yaml::{self, Node, Value};
use crate::model::{Labels, Position, Problem, Problems};
use crate::promql::{self, Expr};
use crate::window::MAX_LOOK_BACK;

/// The most rule files, and the most rules of all of them.
pub const MAX_FILES: usize = 200;
/// The most rules of all files.
pub const MAX_RULES: usize = 5000;

/// The rules that Proctor brings with it.
const BUILT_IN: &[(&str, &str)] = &[
    ("built-in/beat.yml", include_str!("../../alerts/beat.yml")),
    ("built-in/celery.yml", include_str!("../../alerts/celery.yml")),
    ("built-in/code.yml", include_str!("../../alerts/code.yml")),
    ("built-in/docker.yml", include_str!("../../alerts/docker.yml")),
    ("built-in/certificate.yml", include_str!("../../alerts/certificate.yml")),
    ("built-in/command.yml", include_str!("../../alerts/command.yml")),
    ("built-in/file.yml", include_str!("../../alerts/file.yml")),
    ("built-in/heartbeat.yml", include_str!("../../alerts/heartbeat.yml")),
    ("built-in/host.yml", include_str!("../../alerts/host.yml")),
    ("built-in/elasticsearch.yml", include_str!("../../alerts/elasticsearch.yml")),
    ("built-in/gunicorn.yml", include_str!("../../alerts/gunicorn.yml")),
    ("built-in/markup.yml", include_str!("../../alerts/markup.yml")),
    ("built-in/memcached.yml", include_str!("../../alerts/memcached.yml")),
    ("built-in/mysql.yml", include_str!("../../alerts/mysql.yml")),
    ("built-in/nginx.yml", include_str!("../../alerts/nginx.yml")),
    ("built-in/postgres.yml", include_str!("../../alerts/postgres.yml")),
    ("built-in/probes.yml", include_str!("../../alerts/probes.yml")),
    ("built-in/proctor.yml", include_str!("../../alerts/proctor.yml")),
    ("built-in/rabbitmq.yml", include_str!("../../alerts/rabbitmq.yml")),
    ("built-in/systemd.yml", include_str!("../../alerts/systemd.yml")),
    ("built-in/tunnel.yml", include_str!("../../alerts/tunnel.yml")),
];

/// What an alerting rule says besides its expression.
#[derive(Clone, Debug, PartialEq)]
pub struct AlertRule {
    /// The name of its alerts.
    pub name: String,
    /// How long the condition must hold (`for`).
    pub hold: Duration,
    /// How long an alert goes on after the condition.
    pub keep_firing_for: Duration,
    /// Labels of its alerts, those of the group among them.
    pub labels: Vec<(String, Template)>,
    /// Texts for people.
    pub annotations: Vec<(String, Template)>,
}

/// One rule of a group.
#[derive(Clone, Debug)]
pub struct Rule {
    /// What is evaluated.
    pub expr: Expr,
    /// What becomes of the result.
    pub kind: RuleKind,
}

/// What becomes of a rule's result.
#[derive(Clone, Debug)]
pub enum RuleKind {
    /// Alerts.
    Alerting(Arc<AlertRule>),
    /// Series under another name.
    Recording {
        /// The name.
        name: String,
        /// Labels put over those of the result.
        labels: Labels,
    },
}

/// Rules that are evaluated one after the other at the same moments.
#[derive(Clone, Debug)]
pub struct RuleGroup {
    /// The file it stands in.
    pub file: PathBuf,
    /// Unique in its file.
    pub name: String,
    /// Time between two evaluations.
    pub interval: Duration,
    /// How far in the past it evaluates.
    pub query_offset: Duration,
    /// The most alerts or series of one rule; 0 is no limit.
    pub limit: usize,
    /// In the order of the file.
    pub rules: Vec<Rule>,
}

/// Loads the files that the configuration names, or the built-in ones.
///
/// # Errors
/// Every mistake of every file.
pub fn load(config: &RulesConfig, read: impl Fn(&Path) -> Result<String, String>) -> Result<Vec<RuleGroup>, Vec<Problem>> {
    let start = Position { line: 1, col: 1 };
    let mut problems = Problems::new("rules");
    let mut groups = Vec::new();
    let mut texts: Vec<(PathBuf, String)> = Vec::new();
    match &config.files {
        None => texts.extend(BUILT_IN.iter().map(|(name, text)| (PathBuf::from(name), (*text).to_owned()))),
        Some(patterns) => {
            for pattern in patterns {
                let mut of_pattern = Problems::new(pattern);
                match glob::glob(pattern) {
                    Err(error) => of_pattern.push(start, format!("expected a path with * or ?, found {pattern:?}: {error}")),
                    Ok(paths) => {
                        let paths: Vec<PathBuf> = paths.flatten().take(MAX_FILES + 1).collect();
                        if paths.is_empty() {
                            of_pattern.push(start, "expected at least one rule file, found none: put some there, or leave rules.files out for the rules that come with Proctor");
                        }
                        for path in paths {
                            match read(&path) {
                                Ok(text) => texts.push((path, text)),
                                Err(message) => {
                                    let mut of_file = Problems::new(&path);
                                    of_file.push(start, message);
                                    of_pattern.absorb(of_file);
                                }
                            }
                        }
                    }
                }
                problems.absorb(of_pattern);
            }
        }
    }
    if texts.len() > MAX_FILES {
        problems.push(start, format!("expected at most {MAX_FILES} rule files, found more"));
        texts.clear();
    }
    for (file, text) in &texts {
        let mut of_file = Problems::new(file);
        groups.extend(from_text(file, text, config.interval, &mut of_file));
        problems.absorb(of_file);
    }
    if groups.iter().map(|group| group.rules.len()).sum::<usize>() > MAX_RULES {
        problems.push(start, format!("expected at most {MAX_RULES} rules, found more"));
    }
    if problems.is_empty() { Ok(groups) } else { Err(problems.into_sorted()) }
}

/// Reads one file; what is wrong goes to `problems`.
pub fn from_text(file: &Path, text: &str, interval: Duration, problems: &mut Problems) -> Vec<RuleGroup> {
    let Some(node) = yaml::parse(text, problems) else { return Vec::new() };
    let Some(mut fields) = Fields::of(&node, "a mapping with the key groups", problems) else { return Vec::new() };
    let nodes = fields.node("groups");
    fields.finish(&["groups"], problems);
    let nodes = match nodes.map(|node| (&node.value, node)) {
        Some((Value::Sequence(items), _)) => items.as_slice(),
        Some((Value::Null, _)) | None => &[],
        Some((_, node)) => {
            mismatch(node, "a list of groups", problems);
            &[]
        }
    };
    let mut reader = Reader { text, problems };
    let mut names = BTreeSet::new();
    let mut groups = Vec::new();
    for node in nodes {
        let Some(group) = reader.group(file, node, interval) else { continue };
        if !names.insert(group.name.clone()) {
            reader.problems.push(node.at, format!("group {:?} stands here a second time in this file", group.name));
        }
        groups.push(group);
    }
    groups
}

struct Reader<'a> {
    text: &'a str,
    problems: &'a mut Problems,
}

impl Reader<'_> {
    fn group(&mut self, file: &Path, node: &Node, default_interval: Duration) -> Option<RuleGroup> {
        const KEYS: &[&str] = &["name", "interval", "query_offset", "limit", "labels", "rules"];
        let problems = &mut *self.problems;
        let mut fields = Fields::of(node, "a group", problems)?;
        let name: Option<String> = fields.take("name", None, problems);
        let interval: Option<Option<Duration>> = fields.take("interval", None, problems);
        let offset: Option<Duration> = fields.take("query_offset", Some("0s"), problems);
        let limit: Option<usize> = fields.take("limit", Some("0"), problems);
        let labels: Option<Named<String>> = fields.take("labels", Some("{}"), problems);
        let rules = fields.node("rules");
        fields.finish(KEYS, problems);
        if name.as_ref().is_some_and(String::is_empty) {
            problems.push(node.at, "expected the name of the group, found nothing");
        }
        let shown = name.clone().unwrap_or_default();
        let group_labels = self.templates(&format!("group {shown:?}: "), labels.unwrap_or_default(), "label");
        let nodes = match rules.map(|node| (&node.value, node)) {
            Some((Value::Sequence(items), _)) => items.as_slice(),
            Some((Value::Null, _)) | None => &[],
            Some((_, node)) => {
                mismatch(node, "a list of rules", self.problems);
                &[]
            }
        };
        let mut rules = Vec::new();
        for (index, node) in nodes.iter().enumerate() {
            rules.extend(self.rule(&format!("group {shown:?}, rule {}", index + 1), node, &group_labels));
        }
        let interval = interval?.unwrap_or(default_interval);
        if interval.is_zero() {
            self.problems.push(node.at, format!("group {shown:?}: expected an interval above 0s"));
        }
        Some(RuleGroup { file: file.to_owned(), name: name?, interval, query_offset: offset?, limit: limit?, rules })
    }

    fn rule(&mut self, place: &str, node: &Node, group_labels: &[(String, Template)]) -> Option<Rule> {
        const KEYS: &[&str] = &["record", "alert", "expr", "for", "keep_firing_for", "labels", "annotations"];
        let problems = &mut *self.problems;
        let mut fields = Fields::of(node, "a rule", problems)?;
        let record: Option<Spanned<String>> = fields.take("record", None, problems)?;
        let alert: Option<Spanned<String>> = fields.take("alert", None, problems)?;
        let expr: Option<Spanned<String>> = fields.take("expr", None, problems);
        let hold: Option<Option<Spanned<Duration>>> = fields.take("for", None, problems);
        let keep: Option<Option<Spanned<Duration>>> = fields.take("keep_firing_for", None, problems);
        let labels: Option<Named<String>> = fields.take("labels", Some("{}"), problems);
        let annotations: Option<Named<String>> = fields.take("annotations", Some("{}"), problems);
        fields.finish(KEYS, problems);
        let name = record.as_ref().or(alert.as_ref());
        let place = format!("{place}, {:?}: ", name.map_or("", |name| name.as_str()));
        match (&record, &alert) {
            (Some(_), Some(_)) => problems.push(node.at, format!("{place}expected record or alert, found both")),
            (None, None) => problems.push(node.at, format!("{place}expected record or alert, found neither")),
            _ => {}
        }
        let expr = expr.and_then(|expr| self.expr(&place, &expr));
        let labels = self.templates(&place, labels?, "label");
        let annotations = self.templates(&place, annotations?, "annotation");
        let (hold, keep) = (hold?, keep?);
        let problems = &mut *self.problems;
        let kind = if let Some(record) = record {
            for (set, at) in [("for", hold.map(|value| value.at)), ("keep_firing_for", keep.map(|value| value.at))] {
                if let Some(at) = at {
                    problems.push(at, format!("{place}a recording rule has no {set}"));
                }
            }
            if !annotations.is_empty() {
                problems.push(record.at, format!("{place}a recording rule has no annotations"));
            }
            let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
            if record.is_empty() || !record.chars().all(valid) || record.starts_with(|c: char| c.is_ascii_digit()) {
                problems.push(record.at, format!("{place}expected the name of a metric, found {:?}", record.value));
            }
            let all = group_labels.iter().chain(&labels).map(|(name, text)| (name.clone(), text.source().to_owned()));
            RuleKind::Recording { name: record.value, labels: Labels::new(all) }
        } else {
            let alert = alert?;
            if alert.is_empty() {
                problems.push(alert.at, format!("{place}expected the name of the alert, found nothing"));
            }
            let own = group_labels.iter().filter(|(name, _)| labels.iter().all(|(known, _)| known != name)).cloned();
            RuleKind::Alerting(Arc::new(AlertRule {
                name: alert.value,
                hold: hold.map_or(Duration::ZERO, |value| value.value),
                keep_firing_for: keep.map_or(Duration::ZERO, |value| value.value),
                labels: own.chain(labels.iter().cloned()).collect(),
                annotations,
            }))
        };
        Some(Rule { expr: expr?, kind })
    }

    /// Parses an expression; the position of what fails is found in the file.
    fn expr(&mut self, place: &str, text: &Spanned<String>) -> Option<Expr> {
        match promql::parse(text) {
            Ok(expr) if expr.look_back() > MAX_LOOK_BACK => {
                let (asked, kept) = (print(expr.look_back()), print(MAX_LOOK_BACK));
                self.problems
                    .push(text.at, format!("{place}it looks {asked} back, but at most {kept} are kept here; Prometheus accepts it"));
                None
            }
            Ok(expr) => Some(expr),
            Err(error) => {
                let at = self.within(text.at, error.line, error.column);
                self.problems.push(at, format!("{place}{error}"));
                None
            }
        }
    }

    /// Finds a place within a scalar: behind its quote, or in the block whose text begins at `at`.
    fn within(&self, at: Position, line: usize, column: usize) -> Position {
        let first = self.text.lines().nth(at.line - 1).and_then(|text| text.chars().nth(at.col - 1));
        let quote = usize::from(matches!(first, Some('"' | '\'')));
        Position { line: at.line + line - 1, col: at.col + column - 1 + quote }
    }

    fn templates(&mut self, place: &str, pairs: Named<String>, what: &str) -> Vec<(String, Template)> {
        let mut templates = Vec::new();
        for (name, text) in pairs.0 {
            let valid = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let forbidden = what == "label" && name.as_str() == NAME;
            if name.is_empty() || !name.chars().all(valid) || name.starts_with(|c: char| c.is_ascii_digit()) || forbidden {
                self.problems.push(name.at, format!("{place}expected the name of a {what}, found {:?}", name.value));
            }
            match Template::parse(&text) {
                Ok(template) => templates.push((name.value, template)),
                Err(error) => self.problems.push(name.at, format!("{place}{what} {:?}: {}", name.value, error.message)),
            }
        }
        templates
    }
}

impl Rule {
    /// Returns the name of its alerts or series.
    pub fn name(&self) -> &str {
        match &self.kind {
            RuleKind::Alerting(alert) => &alert.name,
            RuleKind::Recording { name, .. } => name,
        }
    }
}

impl RuleGroup {
    /// Iterates over the names of its alerting rules.
    pub fn alert_names(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().filter(|rule| matches!(rule.kind, RuleKind::Alerting(_))).map(Rule::name)
    }

    /// Returns the unique name of a rule: its group and its own name, and the number where two share them.
    pub fn rule_id(&self, index: usize) -> String {
        let own = self.rules[index].name();
        let before = self.rules[..index].iter().filter(|rule| rule.name() == own).count();
        let file = self.file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        if before == 0 { format!("{file}/{}/{own}", self.name) } else { format!("{file}/{}/{own}#{}", self.name, before + 1) }
    }
}
