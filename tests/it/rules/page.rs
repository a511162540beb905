//! The page of the alerts, docs/alerts.md: a section per alert, and which failure gives which, written from the rules.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use proctor::config;
use proctor::model::Problems;
use proctor::model::yaml::{self, Node, Value};
use regex::Regex;

use super::covered::CASES;

/// What stands above it is written by hand.
const MARK: &str = "<!-- From here on written by `make docs` from the rules: change those. -->\n";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn get<'a>(node: &'a Node, key: &str) -> Option<&'a Node> {
    let Value::Mapping(pairs) = &node.value else { return None };
    pairs.iter().find(|(name, _)| name.text == key).map(|(_, value)| value)
}

fn text(node: Option<&Node>) -> &str {
    match node.map(|node| &node.value) {
        Some(Value::Scalar { text, .. }) => text,
        _ => "",
    }
}

fn list(node: Option<&Node>) -> &[Node] {
    match node.map(|node| &node.value) {
        Some(Value::Sequence(items)) => items,
        _ => &[],
    }
}

/// The alerts of a file: its head comment, then each rule.
fn alerts(file: &Path) -> (String, Vec<Node>) {
    let source = config::read(file).expect("it can be read");
    let head: Vec<&str> = source.lines().map_while(|line| line.strip_prefix('#')).map(str::trim).collect();
    let node = yaml::parse(&source, &mut Problems::new(file)).expect("it is right");
    let groups = list(get(&node, "groups"));
    let rules = groups.iter().flat_map(|group| list(get(group, "rules"))).filter(|rule| get(rule, "alert").is_some());
    (head.join(" "), rules.cloned().collect())
}

/// Shows a template to people: ‹probe› for a label, ‹value› for what was measured.
fn shown(template: &str) -> String {
    let label = Regex::new(r"\{\{ *\$labels\.(\w+) *\}\}").expect("a pattern");
    let quoted = Regex::new(r#"\{\{ *"([^"]*)" *\}\}"#).expect("a pattern");
    let value = Regex::new(r"\{\{[^}]*\$value[^}]*\}\}").expect("a pattern");
    let text = label.replace_all(template, "‹$1›").into_owned();
    value.replace_all(&quoted.replace_all(&text, "$1"), "‹value›").into_owned()
}

fn section(page: &mut String, rule: &Node) {
    let (labels, annotations) = (get(rule, "labels"), get(rule, "annotations"));
    let severity = text(labels.and_then(|labels| get(labels, "severity")));
    let of = |name: &str| shown(text(annotations.and_then(|annotations| get(annotations, name))));
    let after = match text(get(rule, "for")) {
        "" => "at once".to_owned(),
        time => format!("after {time}"),
    };
    write!(page, "\n### {}\n\n**{severity}**, {after}: *{}*\n", text(get(rule, "alert")), of("summary")).expect("fits");
    write!(page, "\n{}\n\n```promql\n{}\n```\n", of("description"), text(get(rule, "expr")).trim()).expect("fits");
}

fn written() -> String {
    let mut page = MARK.to_owned();
    let files: Vec<PathBuf> = glob::glob(&root().join("alerts/*.yml").display().to_string()).expect("a pattern").flatten().collect();
    let mut severities: BTreeMap<String, String> = BTreeMap::new();
    let mut sections = String::new();
    for file in &files {
        let stem = file.file_stem().expect("has a name").to_string_lossy();
        let (head, rules) = alerts(file);
        let of_probe = format!("probes/{stem}.md");
        let more = if root().join("docs").join(&of_probe).exists() {
            format!(" What its probe asks: [{stem}]({of_probe}).")
        } else {
            String::new()
        };
        write!(sections, "\n## alerts/{stem}.yml\n\n{head}{more}\n").expect("fits");
        for rule in &rules {
            let severity = text(get(rule, "labels").and_then(|labels| get(labels, "severity"))).to_owned();
            severities.insert(text(get(rule, "alert")).to_owned(), severity);
            section(&mut sections, rule);
        }
    }
    let (head, rules) = alerts(&root().join("deploy/prometheus/proctor-alerts.yml"));
    write!(sections, "\n## deploy/prometheus/proctor-alerts.yml\n\n{head}\n").expect("fits");
    for rule in rules.iter().filter(|rule| !severities.contains_key(text(get(rule, "alert")))) {
        section(&mut sections, rule);
    }
    page += "\n## Which failure gives which alert\n\n| probe | what fails | reasons | alert | severity |\n|---|---|---|---|---|\n";
    for case in CASES {
        let reasons = if case.reasons.len() == proctor::model::Reason::ALL.len() {
            "any".to_owned()
        } else {
            case.reasons.iter().map(|reason| format!("`{reason}`")).collect::<Vec<_>>().join(" ")
        };
        for alert in case.alerts {
            let severity = severities.get(*alert).map_or("", String::as_str);
            let link = alert.to_lowercase();
            writeln!(page, "| [{0}](probes/{0}.md) | {1} | {reasons} | [{alert}](#{link}) | {severity} |", case.kind, case.what)
                .expect("fits");
        }
    }
    page + &sections
}

#[test]
fn the_page_of_the_alerts_has_a_section_for_each_and_is_what_the_rules_say() {
    let wanted = crate::docs::holds("docs/alerts.md", MARK, &written());
    let mut anchors: Vec<&str> = wanted.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let all = anchors.len();
    anchors.sort_unstable();
    anchors.dedup();
    assert_eq!(anchors.len(), all, "an alert has two sections");
}
