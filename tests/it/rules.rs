//! Rule files: the same file, the same verdict as promtool's.

mod covered;
mod page;
mod unit;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use proctor::config;
use proctor::model::Problems;
use proctor::model::decode::from_text;
use proctor::rules::RulesConfig;
use proctor::rules::load;

use crate::support::process::program;

fn mistakes(text: &str) -> String {
    let mut problems = Problems::new("alerts/db.yml");
    load::from_text(Path::new("alerts/db.yml"), text, Duration::from_secs(15), &mut problems);
    problems.into_sorted().iter().map(|problem| format!("{problem}\n")).collect()
}

/// Asks promtool about the same text.
fn promtool_accepts(promtool: &Path, text: &str) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("rules.yml");
    std::fs::write(&path, text).expect("it can be written");
    Command::new(promtool).args(["check", "rules"]).arg(path).output().expect("promtool runs").status.success()
}

#[test]
fn the_rules_that_come_with_proctor_load_here_and_in_promtool() {
    let built_in: RulesConfig = from_text("test", "{}").expect("is right");
    let groups = load::load(&built_in, config::read).expect("they are right");
    assert!(groups.iter().map(|group| group.rules.len()).sum::<usize>() >= 9);
    let pattern = format!("{}/alerts/*.yml", env!("CARGO_MANIFEST_DIR"));
    let named: RulesConfig = from_text("test", &format!("files: [{pattern:?}]")).expect("is right");
    assert_eq!(load::load(&named, config::read).expect("they are right").len(), groups.len());
    let Some(promtool) = program("promtool") else { return };
    for file in glob::glob(&pattern).expect("a pattern").flatten() {
        assert!(promtool_accepts(&promtool, &std::fs::read_to_string(&file).expect("it is there")), "{}", file.display());
    }
}

#[test]
fn what_promtool_refuses_is_refused_with_its_place_and_all_at_once() {
    let rule = |rest: &str| format!("groups:\n- name: db\n  rules:\n  - {rest}\n");
    let bad = [
        "groups: 5\n".to_owned(),
        "group: []\n".to_owned(),
        "groups:\n- name: a\n- name: a\n".to_owned(),
        "groups:\n- name: a\n  intervall: 1m\n".to_owned(),
        "groups:\n- rules: []\n".to_owned(),
        rule("{alert: DbDown, expr: 'up =='}"),
        rule("{alert: DbDown, expr: \"up == 0 and (x\"}"),
        rule("{alert: DbDown, expr: nosuch(up)}"),
        rule("{alert: DbDown, expr: rate(up)}"),
        rule("alert: DbDown\n    expr: |\n      up == 0\n      and sum by (\n    for: 1m"),
        rule("{alert: DbDown}"),
        rule("{expr: up}"),
        rule("{alert: A, record: b, expr: up}"),
        rule("{record: 'a b', expr: up}"),
        rule("{record: a, expr: up, for: 1m}"),
        rule("{record: a, expr: up, annotations: {a: b}}"),
        rule("{alert: A, expr: up, for: soon}"),
        rule("{alert: A, expr: up, labels: {'a-b': c}}"),
        rule("{alert: A, expr: up, labels: {__name__: c}}"),
        rule("{alert: A, expr: up, annotations: {a: '{{ $labels.x'}}"),
        rule("{alert: A, expr: up, fro: 1m, laebls: {}}"),
    ];
    let told: String = bad.iter().map(|text| format!("{}\n", mistakes(text))).collect();
    insta::assert_snapshot!(told);
    for text in &bad {
        assert!(!mistakes(text).is_empty(), "{text} is taken");
    }
    let Some(promtool) = program("promtool") else { return };
    for text in &bad {
        assert!(!promtool_accepts(&promtool, text), "promtool takes what we refuse:\n{text}");
    }
}

#[test]
fn what_prometheus_takes_and_we_do_not_evaluate_is_refused_by_name() {
    let rule = |expr: &str| format!("groups:\n- name: db\n  rules:\n  - alert: A\n    expr: {expr}\n");
    for (expr, name) in
        [("limitk(2, up)", "limitk"), ("histogram_avg(up)", "histogram_avg"), ("info(up)", "info"), ("avg_over_time(up[7h])", "7h")]
    {
        let told = mistakes(&rule(expr));
        assert!(told.contains(name) && told.starts_with("alerts/db.yml:5:"), "{expr}: {told}");
    }
}
