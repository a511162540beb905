//! Unit tests of rules: our verdict and promtool's on the same files, and every alert that comes with Proctor tested.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use proctor::config;
use proctor::model::Problems;
use proctor::model::decode::from_text;
use proctor::rules::load::{self, RuleKind};
use proctor::rules::template::Template;
use proctor::rules::unit::{self, TestCase, TestFile};

use crate::support::process::program;

/// The rules that the files below test.
const RULES: &str = r#"
groups:
- name: first
  rules:
  - {record: 'probe:down:sum', expr: sum(up == 0) by (probe)}
  - alert: Down
    expr: up == 0
    for: 1m
    labels: {severity: critical, gone: '{{ $labels.nothing }}'}
    annotations: {summary: '{{ $labels.probe }} is down at {{ $externalURL }} of {{ $externalLabels.site }}', empty: '{{ $labels.nothing }}'}
- name: second
  rules:
  - {alert: DownSums, expr: 'probe:down:sum > 1', keep_firing_for: 1m}
  - {alert: Clash, expr: clash, labels: {probe: same}}
- name: limited
  limit: 1
  rules: [{alert: Many, expr: many}]
- name: recorded
  limit: 1
  rules:
  - {record: 'lots:copy', expr: lots}
  - {record: 'same:copy', expr: same, labels: {n: x}}
"#;

fn folder_with_rules() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("rules.yml"), RULES).expect("it can be written");
    std::fs::write(folder.path().join("broken.yml"), "groups: [{name: a, rules: [{alert: A, expr: 'up =='}]}]\n")
        .expect("it can be written");
    folder
}

/// Runs ours in a folder, so that what it prints does not depend on where that is.
fn ours(folder: &Path, files: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_proctor")).current_dir(folder).args(["rules", "test"]).args(files).output().expect("it runs")
}

/// Every promtool there is: Debian's, and the one of Prometheus 3 that `make promtool3-verdicts` builds.
fn oracles() -> Vec<PathBuf> {
    program("promtool").into_iter().chain(std::env::var_os("PROMTOOL3").map(PathBuf::from)).collect()
}

fn promtools(promtool: &Path, folder: &Path, files: &[&Path]) -> Output {
    Command::new(promtool).current_dir(folder).args(["test", "rules"]).args(files).output().expect("promtool runs")
}

/// One test of the rules above; `rest` says what is measured and expected.
fn one(rest: &str) -> String {
    format!("rule_files: [rules.yml]\ntests:\n- name: it\n  interval: 1m\n{rest}")
}

const DOWN: &str = "  input_series: [{series: 'up{probe=\"web\"}', values: '1 0x5 1x5'}]\n";
const FIRES: &str = r#"
  external_labels: {site: coursys}
  external_url: http://here
  alert_rule_test:
  - eval_time: 2m
    alertname: Down
    exp_alerts: [{exp_labels: {probe: web, severity: critical}, exp_annotations: {summary: web is down at http://here of coursys, empty: ''}}]
"#;

/// Files that pass in both.
fn right() -> Vec<String> {
    vec![
        one(&format!("{DOWN}{FIRES}")),
        // Pending does not count, an end does; a moment between two turns is the turn before.
        one(&format!(
            "{DOWN}  alert_rule_test:\n  - {{eval_time: 1m59s, alertname: Down}}\n  - {{eval_time: 7m, alertname: Down, exp_alerts: []}}\n"
        )),
        // A name that no rule has cannot fire.
        one(&format!("{DOWN}  alert_rule_test: [{{eval_time: 5m, alertname: Dwon, exp_alerts: []}}]\n")),
        // Recording rules, series that end with their cause, ALERTS, keep_firing_for.
        one(r#"
  input_series:
  - {series: 'up{probe="web", n="1"}', values: '1 0x5 1x5'}
  - {series: 'up{probe="web", n="2"}', values: '1 0x2 stale'}
  promql_expr_test:
  - {expr: 'probe:down:sum', eval_time: 2m, exp_samples: [{labels: 'probe:down:sum{probe="web"}', value: 0}]}
  - {expr: 'count by (probe) (up == 0)', eval_time: 2m, exp_samples: [{labels: '{probe="web"}', value: 2}]}
  - {expr: up, eval_time: 4m, exp_samples: [{labels: 'up{n="1",probe="web"}', value: 0}]}
  - {expr: 'probe:down:sum', eval_time: 7m}
  - {expr: 'count by (alertname, alertstate) (ALERTS)', eval_time: 1m, exp_samples: [{labels: '{alertname="Down", alertstate="pending"}', value: 2}]}
  - {expr: 'count by (alertname, alertstate) (ALERTS)', eval_time: 2m, exp_samples: [{labels: '{alertname="Down", alertstate="firing"}', value: 2}]}
  - {expr: 'min by (alertname) (ALERTS_FOR_STATE)', eval_time: 2m, exp_samples: [{labels: '{alertname="Down"}', value: 60}]}
  - {expr: ALERTS, eval_time: 7m}
  - {expr: time(), eval_time: 90s, exp_samples: [{value: 90}]}
  - {expr: 1 / 0, eval_time: 0s, exp_samples: [{labels: '{}', value: .inf}]}
"#),
        one(r#"
  input_series: [{series: 'probe:down:sum{probe="web"}', values: '_ 2x2 1x5'}]
  alert_rule_test:
  - {eval_time: 1m, alertname: DownSums, exp_alerts: [{exp_labels: {probe: web}}]}
  - {eval_time: 4m, alertname: DownSums, exp_alerts: [{exp_labels: {probe: web}}]}
  - {eval_time: 5m, alertname: DownSums}
"#),
        // Samples beyond the last turn are not there.
        "tests:\n- interval: 15s\n  input_series: [{series: up, values: '0+1x100'}]\n  promql_expr_test:\n  - {expr: up, eval_time: 90s, exp_samples: [{labels: up, value: 4}]}\n"
            .to_owned(),
        // Every notation of values.
        one(r#"
  input_series:
  - {series: 'a{x="y",}', values: '_ -2+4x3 _x2 1e2-.5x1 stale NaN Inf +3 7x0'}
  - {series: '{b="c"}', values: ' '}
  promql_expr_test:
  - {expr: 'sum_over_time(a[4m30s])', eval_time: 4m, exp_samples: [{labels: '{x="y"}', value: 16}]}
  - {expr: a, eval_time: 8m, exp_samples: [{labels: 'a{x="y"}', value: 99.5}]}
  - {expr: a, eval_time: 9m}
  - {expr: a, eval_time: 11m, exp_samples: [{labels: 'a{x="y"}', value: .inf}]}
  - {expr: a, eval_time: 13m, exp_samples: [{labels: 'a{x="y"}', value: 7}]}
"#),
        "rule_files: [nowhere.yml, '*.yaml']\n".to_owned(),
        "rule_files: [broken.yml]\ntests: []\n".to_owned(),
        String::new(),
    ]
}

/// Files that fail in both, each for one reason.
fn wrong() -> Vec<String> {
    let tests = |rest: &str| format!("rule_files: [rules.yml]\n{rest}");
    let series = |values: &str| one(&format!("  input_series: [{{series: up, values: '{values}'}}]\n"));
    let expr = |rest: &str| one(&format!("{DOWN}  promql_expr_test: [{{{rest}}}]\n"));
    let alert = |rest: &str| one(&format!("{DOWN}  external_labels: {{site: x}}\n  alert_rule_test: [{{{rest}}}]\n"));
    let summary = "exp_annotations: {summary: web is down at  of x, empty: ''}";
    vec![
        // What is expected and does not come.
        alert("eval_time: 2m, alertname: Down, exp_alerts: []"),
        alert(&format!("eval_time: 1m, alertname: Down, exp_alerts: [{{exp_labels: {{probe: web, severity: critical}}, {summary}}}]")),
        alert(&format!("eval_time: 2m, alertname: Down, exp_alerts: [{{exp_labels: {{probe: web}}, {summary}}}]")),
        alert("eval_time: 2m, alertname: Down, exp_alerts: [{exp_labels: {probe: web, severity: critical}}]"),
        alert(
            "eval_time: 2m, alertname: Down, exp_alerts: [{exp_labels: {probe: web, severity: critical}, exp_annotations: {summary: else, empty: ''}}]",
        ),
        alert(&format!(
            "eval_time: 2m, alertname: Down, exp_alerts: [{{exp_labels: {{probe: web, severity: critical, gone: ''}}, {summary}}}]"
        )),
        alert("eval_time: 2m, alertname: Nothing, exp_alerts: [{}]"),
        expr("expr: up, eval_time: 1m"),
        expr("expr: up, eval_time: 1m, exp_samples: [{labels: 'up{probe=\"web\"}', value: 1}]"),
        expr("expr: up, eval_time: 1m, exp_samples: [{labels: 'up{probe=\"web\"}', value: 0}, {labels: down, value: 0}]"),
        expr("expr: vector(NaN), eval_time: 1m, exp_samples: [{value: .nan}]"),
        // Rules that cannot be evaluated end the test.
        one("  input_series: [{series: 'clash{probe=\"a\"}', values: '1'}, {series: 'clash{probe=\"b\"}', values: '1'}]\n"),
        one("  input_series: [{series: 'many{n=\"a\"}', values: '1'}, {series: 'many{n=\"b\"}', values: '1'}]\n"),
        one("  input_series: [{series: 'lots{n=\"a\"}', values: '1'}, {series: 'lots{n=\"b\"}', values: '1'}]\n"),
        one("  input_series: [{series: 'same{n=\"a\"}', values: '1'}, {series: 'same{n=\"b\"}', values: '1'}]\n"),
        expr("expr: up + on() group_left() up, eval_time: nope"),
        expr("expr: 'up +', eval_time: 1m"),
        expr("expr: '\"text\"', eval_time: 1m"),
        expr("expr: up, eval_time: 1m, exp_samples: [{labels: 'up{probe!=\"web\"}', value: 0}]"),
        expr("expr: up, eval_time: 1m, exp_samples: [{labels: 'up{', value: 0}]"),
        expr("eval_time: 1m"),
        // Files that are none.
        alert("eval_time: 2m, exp_alerts: []"),
        alert("eval_time: 2, alertname: Down"),
        alert("eval_time: 2m, alertname: Down, exp_alert: []"),
        alert("eval_time: 2m, alertname: Down, exp_alerts: {}"),
        expr("expr: up, eval_time: 1m, exp_samples: [{labels: up, value: Inf}]"),
        expr("expr: up, eval_time: 1m, exp_samples: [{labels: up, value: '1'}]"),
        tests("test: []\n"),
        tests("tests: 5\n"),
        tests("evaluation_interval: often\n"),
        tests("tests: []\ntests: []\n"),
        tests("group_eval_order: [first, first]\ntests: [{}]\n"),
        "rule_files: [broken.yml]\ntests: [{interval: 1m}]\n".to_owned(),
        "rule_files: [rules.yml\n".to_owned(),
        one("  input_series: [{series: 'up{', values: '1'}]\n"),
        one("  input_series: [{series: 'up{a=~\"b\"}', values: '1'}]\n"),
        one("  input_series: [{series: up}, {values: '1'}]\n"),
        one("  input_series: [{series: up, value: '1'}]\n"),
        series("1 x"),
        series("1x"),
        series("1+2"),
        series("1+-2x3"),
        series("1stale"),
        series("stalex3"),
        series("_3"),
        series("1_"),
        series("2x1.5"),
        series("1,2"),
        series("1x1x1"),
        series("nix"),
    ]
}

/// Runs both over every file on its own and compares the exit codes with `code`; returns what ours says.
fn compare(files: &[String], code: i32) -> String {
    let folder = folder_with_rules();
    let oracles = oracles();
    let mut told = String::new();
    for text in files {
        let path = Path::new("tests.yml");
        std::fs::write(folder.path().join(path), text).expect("it can be written");
        let output = ours(folder.path(), &[path]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{text}\n{said}");
        told += &said;
        for promtool in &oracles {
            let output = promtools(promtool, folder.path(), &[path]);
            let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{promtool:?}:\n{text}\n{said}");
        }
    }
    told
}

#[test]
fn what_passes_in_promtool_passes_here() {
    insta::assert_snapshot!(compare(&right(), 0));
}

#[test]
fn what_fails_in_promtool_fails_here_and_says_what_was_expected_and_found() {
    insta::assert_snapshot!(compare(&wrong(), 1));
}

#[test]
fn what_promtool_2_does_not_know_yet_or_drops_in_silence_is_said() {
    let folder = folder_with_rules();
    let path = folder.path().join("tests.yml");
    let told = |text: &str| {
        std::fs::write(&path, text).expect("it can be written");
        let verdict = unit::test(&path, config::read);
        verdict.problems.iter().map(|problem| format!("{}:{}: {}\n", problem.at.line, problem.at.col, problem.message)).collect::<String>()
    };
    let fuzzy = |value: &str, fuzzy: bool| {
        told(&format!("fuzzy_compare: {fuzzy}\ntests:\n- promql_expr_test: [{{expr: 0.1 + 0.2, exp_samples: [{{value: {value}}}]}}]\n"))
    };
    assert_eq!(fuzzy("0.30000000000000004", false), "");
    assert_eq!(fuzzy("0.3", true), "");
    assert_eq!(fuzzy("0.3", false), "3:22: 0.1 + 0.2 at 0s: {}: expected 0.3, found 0.30000000000000004\n");
    for start in ["2026-03-01T12:00:00Z", "1772366400"] {
        let text = format!(
            "tests:\n- start_timestamp: {start}\n  promql_expr_test: [{{expr: hour(), eval_time: 1h, exp_samples: [{{labels: '{{}}', value: 13}}]}}]\n"
        );
        assert_eq!(told(&text), "", "{text}");
    }
    // Without an interval the samples are evaluation_interval apart; 5m of them are five, as ranges are left-open.
    assert_eq!(
        told(&one(&format!("{DOWN}  promql_expr_test: [{{expr: 'count_over_time(up[5m])', eval_time: 5m, exp_samples: [{{labels: '{{probe=\"web\"}}', value: 5}}]}}]\n")).replace("  interval: 1m\n", "")),
        ""
    );
    for (text, wanted) in [
        (one("  input_series: [{series: up, values: '{{schema:1 sum:2 count:3}}x2'}]\n"), "5:39: native histograms are not evaluated here"),
        (
            one("  input_series: [{series: up, values: \"1\\n\"}, {series: down, values: '1'}]\n"),
            "5:39: expected one line, found a line break",
        ),
        (one("  input_series: [{series: up, values: '1x9999999'}]\n"), "5:39: expected at most 1000000 samples"),
        (one("  promql_expr_test: [{expr: up, eval_time: 100y}]\n"), "3:3: expected at most 200000 turns"),
        ("tests: [{start_timestamp: never}]\n".to_owned(), "1:27: expected a moment"),
    ] {
        let found = told(&text);
        assert!(found.starts_with(wanted) && found.lines().count() == 1, "{text}\n{found}");
    }
}

#[test]
fn a_rule_that_looks_back_longer_than_a_day_is_tested_over_all_its_samples() {
    let folder = folder_with_rules();
    let path = folder.path().join("tests.yml");
    std::fs::write(&path, "tests:\n- interval: 1m\n  input_series: [{series: up, values: '7 1x4000'}]\n  promql_expr_test:\n  - {expr: up, eval_time: 0s, exp_samples: [{labels: up, value: 7}]}\n  - {expr: up, eval_time: 66h, exp_samples: [{labels: up, value: 1}]}\n").expect("it can be written");
    assert_eq!(ours(folder.path(), &[&path]).status.code(), Some(0));
    for promtool in oracles() {
        assert_eq!(promtools(&promtool, folder.path(), &[&path]).status.code(), Some(0));
    }
}

#[test]
fn rules_check_has_promtools_exit_codes() {
    let folder = folder_with_rules();
    let (right, broken, absent) = (folder.path().join("rules.yml"), folder.path().join("broken.yml"), folder.path().join("absent.yml"));
    for (files, code) in [(vec![&right], 0), (vec![&broken], 1), (vec![&right, &broken], 1), (vec![&absent], 1)] {
        let output = Command::new(env!("CARGO_BIN_EXE_proctor")).args(["rules", "check"]).args(&files).output().expect("it runs");
        assert_eq!(output.status.code(), Some(code), "{files:?}: {output:?}");
        for promtool in oracles() {
            let output = Command::new(promtool).args(["check", "rules"]).args(&files).output().expect("promtool runs");
            assert_eq!(output.status.code(), Some(code), "promtool: {files:?}: {output:?}");
        }
    }
}

/// The rules for a Prometheus that watches Proctor, and their tests.
const FOR_PROMETHEUS: (&str, &str) = ("../deploy/prometheus/proctor-alerts.yml", "../deploy/prometheus/proctor-alerts-test.yml");

/// The files of a folder of `alerts`, by path.
fn files(pattern: &str) -> Vec<PathBuf> {
    let pattern = format!("{}/alerts/{pattern}", env!("CARGO_MANIFEST_DIR"));
    let files: Vec<PathBuf> = glob::glob(&pattern).expect("a pattern").flatten().collect();
    assert!(!files.is_empty(), "{pattern}");
    files
}

#[test]
fn the_unit_tests_of_the_alerts_pass_here_and_in_promtool() {
    let files: Vec<PathBuf> = files("tests/*.yml").into_iter().chain(files(FOR_PROMETHEUS.1)).collect();
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = ours(here, &files);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
    for promtool in oracles() {
        let output = promtools(&promtool, here, &files);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Says of one test when an alert must fire and when it must not.
fn asked<'a>(test: &'a TestCase, alert: &'a str) -> (Vec<Duration>, Vec<Duration>) {
    let of = test.alert_rule_test.iter().filter(|asked| *asked.alertname == alert);
    let (fires, silent): (Vec<_>, Vec<_>) = of.partition(|asked| !asked.exp_alerts.is_empty());
    let times = |asked: Vec<&'a proctor::model::decode::Spanned<unit::AlertTest>>| asked.iter().map(|one| one.eval_time).collect();
    (times(fires), times(silent))
}

#[test]
fn every_alert_that_comes_with_proctor_is_tested_to_fire_not_to_fire_and_to_resolve() {
    let tests: Vec<TestFile> = files("tests/*.yml")
        .iter()
        .chain(&files(FOR_PROMETHEUS.1))
        .map(|file| from_text(file, &config::read(file).expect("it can be read")).unwrap_or_else(|problems| panic!("{problems:?}")))
        .collect();
    let cases: Vec<&TestCase> = tests.iter().flat_map(|file| &file.tests).map(|test| &test.value).collect();
    let mut alerts = BTreeSet::new();
    for file in files("*.yml").into_iter().chain(files(FOR_PROMETHEUS.0)) {
        let mut problems = Problems::new(&file);
        let text = config::read(&file).expect("it can be read");
        let groups = load::from_text(&file, &text, Duration::from_secs(15), &mut problems);
        alerts.extend(groups.iter().flat_map(|group| group.alert_names().map(str::to_owned).collect::<Vec<_>>()));
    }
    assert!(alerts.len() >= 9, "{alerts:?}");
    // It fires for ever.
    assert!(alerts.remove("ProctorWatchdog"));
    let mut missing = Vec::new();
    for alert in &alerts {
        let asked: Vec<_> = cases.iter().map(|test| asked(test, alert)).collect();
        let has = |what: &str, is: bool| (!is).then(|| format!("{alert}: no test says that it {what}"));
        missing.extend(has("fires", asked.iter().any(|(fires, _)| !fires.is_empty())));
        let before = |(fires, silent): &(Vec<Duration>, Vec<Duration>)| silent.iter().any(|at| fires.iter().all(|fires| at < fires));
        missing.extend(has("does not fire", asked.iter().any(before)));
        let after = |(fires, silent): &(Vec<Duration>, Vec<Duration>)| silent.iter().any(|at| fires.iter().any(|fires| at > fires));
        missing.extend(has("resolves", asked.iter().any(after)));
    }
    assert!(missing.is_empty(), "write them in alerts/tests:\n{}", missing.join("\n"));
}

#[test]
fn every_alert_that_comes_with_proctor_has_a_severity_with_a_meaning_and_says_what_to_do() {
    let mut wrong = Vec::new();
    for file in files("*.yml").into_iter().chain(files(FOR_PROMETHEUS.0)) {
        let text = config::read(&file).expect("it can be read");
        let groups = load::from_text(&file, &text, Duration::from_secs(15), &mut Problems::new(&file));
        for rule in groups.iter().flat_map(|group| &group.rules) {
            let RuleKind::Alerting(alert) = &rule.kind else { continue };
            let text = |of: &[(String, Template)], name: &str| {
                of.iter().find(|(known, _)| known == name).map(|(_, text)| text.source().to_owned()).unwrap_or_default()
            };
            // What each means stands in docs/rules.md.
            let severity = text(&alert.labels, "severity");
            if !["critical", "warning", "info"].contains(&severity.as_str()) && alert.name != "ProctorWatchdog" {
                wrong.push(format!("{}: severity {severity:?}", alert.name));
            }
            for annotation in ["summary", "description"] {
                if text(&alert.annotations, annotation).is_empty() {
                    wrong.push(format!("{}: no {annotation}", alert.name));
                }
            }
            if !text(&alert.annotations, "description").contains('`') {
                wrong.push(format!("{}: names no command or place that would confirm it", alert.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_prometheus_is_told_of_proctor_is_word_for_word_what_proctor_says_of_itself() {
    let rules = |file: &str| -> BTreeMap<String, String> {
        let path = format!("{}/{file}", env!("CARGO_MANIFEST_DIR"));
        let source = config::read(Path::new(&path)).expect("it can be read");
        let rules = source.split("      - alert: ").skip(1);
        rules.map(|rule| (rule.lines().next().unwrap_or_default().to_owned(), rule.trim_end().to_owned())).collect()
    };
    let (own, watched) = (rules("alerts/proctor.yml"), rules("deploy/prometheus/proctor-alerts.yml"));
    let both: Vec<&String> = own.keys().filter(|name| watched.contains_key(*name)).collect();
    assert!(both.len() >= 5, "{both:?}");
    for name in both {
        assert_eq!(own[name], watched[name]);
    }
}

/// The YAML blocks of a page of the documentation, by the file name in their first line; a configuration has none.
fn snippets(page: &str) -> Vec<(String, String)> {
    let blocks = page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    let name = |block: &str| block.lines().next().and_then(|line| line.strip_prefix("# ")).unwrap_or("proctor.yml").to_owned();
    blocks.map(|block| (name(block), block.to_owned())).collect()
}

#[test]
fn the_rule_and_the_test_of_the_documentation_are_right_here_and_in_promtool() {
    let folder = tempfile::tempdir().expect("a folder");
    let snippets = snippets(include_str!("../../../docs/rules.md"));
    assert_eq!(snippets.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["proctor.yml", "site.yml", "site-test.yml"]);
    config::Config::from_text(Path::new("proctor.yml"), &snippets[0].1).expect("it is right");
    for (name, text) in &snippets {
        std::fs::write(folder.path().join(name), text).expect("it can be written");
    }
    let mut programs = vec![(PathBuf::from(env!("CARGO_BIN_EXE_proctor")), ["rules", "check"], ["rules", "test"])];
    programs.extend(oracles().into_iter().map(|promtool| (promtool, ["check", "rules"], ["test", "rules"])));
    for (program, check, test) in programs {
        for (command, file) in [(check, "site.yml"), (test, "site-test.yml")] {
            let output = Command::new(&program).current_dir(folder.path()).args(command).arg(file).output().expect("it runs");
            assert!(output.status.success(), "{}: {output:?}", program.display());
        }
    }
}
