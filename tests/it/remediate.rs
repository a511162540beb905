//! Repairs: the runner with an action that counts, programs, and the real docker and systemd of `tests/stack`.

mod acts;
mod runner;

use std::collections::HashMap;

use proctor::model::decode::{Spanned, from_text};
use proctor::model::{Alert, AlertState, Labels, Position, Problems};
use proctor::remediate::{ActionConfig, Occasion, Tools};

/// An alert that has been firing for an hour.
fn firing(name: &str, probe: &str) -> Alert {
    let fired_at = proctor::tasks::now() - std::time::Duration::from_secs(3600);
    Alert {
        labels: Labels::new([("alertname", name), ("probe", probe)]),
        annotations: Labels::default(),
        state: AlertState::Firing,
        value: 1.0,
        active_at: fired_at,
        fired_at: Some(fired_at),
        resolved_at: None,
        keep_firing_since: None,
        rule: format!("g/{name}"),
        evidence: Vec::new(),
        attempts: Vec::new(),
    }
}

fn occasion() -> Occasion {
    Occasion { attempt: "00ff".into(), action: "a".into(), target: "t".into(), alert: firing("Down", "web") }
}

/// Decodes and checks one entry; returns it, or all that is wrong with it.
fn read(text: &str) -> Result<ActionConfig, Vec<String>> {
    let config: ActionConfig = from_text("p.yml", text).map_err(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let mut problems = Problems::new("p.yml");
    config.check(&Spanned { value: "a".into(), at: Position { line: 1, col: 1 } }, &mut problems);
    let found: Vec<String> = problems.into_sorted().iter().map(ToString::to_string).collect();
    if found.is_empty() { Ok(config) } else { Err(found) }
}

#[test]
fn an_action_is_read_with_its_defaults_and_only_looks_unless_told_otherwise() {
    let config = read("docker: {service: memcached, verb: restart}\nmatchers: ['alertname=\"MemcachedDown\"']\n").expect("is right");
    let planned = config.plan("restart-cache", &Tools::of_this_host(None)).expect("can be built");
    let terms = planned.terms;
    assert!(!terms.acts, "the default is to observe");
    assert_eq!((terms.target.as_str(), terms.verb, terms.attempts), ("docker:memcached", "restart", 3));
    assert_eq!([terms.firing_for, terms.per, terms.cooldown, planned.within].map(|d| d.as_secs()), [60, 1800, 120, 60]);
}

#[test]
fn every_mistake_of_an_action_is_named() {
    let m = "matchers: ['alertname=\"X\"']\n";
    let cases: HashMap<String, &str> = HashMap::from([
        (m.to_owned(), "expected one of command, systemd, docker, webhook, found none"),
        (format!("{m}systemd: {{unit: a.service}}\ndocker: {{container: a}}\n"), "found systemd and docker"),
        ("systemd: {unit: a.service}\nmatchers: []\n".to_owned(), "p.yml:2:11: expected at least one matcher"),
        ("systemd: {unit: a.service}\nmatchers: ['probe!=\"x\"']\n".to_owned(), "expected a matcher that needs a label"),
        (format!("{m}command: {{argv: [ls]}}\n"), "expected a list: the absolute path of a program, and its arguments, found \"ls\" first"),
        (format!("{m}command: {{argv: []}}\n"), "found an empty list"),
        (format!("{m}systemd: {{unit: nginx}}\n"), "p.yml:2:17: expected the whole name of a unit"),
        (format!("{m}systemd: {{unit: a.service, verb: stop}}\n"), "expected restart, start, reload or reset-failed, found \"stop\""),
        (format!("{m}docker: {{container: ../../x}}\n"), "p.yml:2:21: expected a name of letters"),
        (format!("{m}docker: {{container: a, service: b}}\n"), "expected either service or container"),
        (format!("{m}docker: {{container: a, project: b}}\n"), "project is only for a service"),
        (format!("{m}docker: {{container: a, verb: kill}}\n"), "expected restart, found \"kill\""),
        (format!("{m}webhook: {{timeout: 3s}}\n"), "expected either url or url_file"),
        (format!("{m}webhook: {{url: 'http://u:secret@h/'}}\n"), "a password in a URL is refused"),
        (format!("{m}docker: {{container: a}}\nmode: yes\n"), "p.yml:3:7: expected observe or act, found \"yes\""),
        (format!("{m}docker: {{container: a}}\nlimit: {{attempts: 0}}\n"), "expected attempts of at least 1"),
        (format!("{m}docker: {{container: a}}\nlimit: {{per: 0s}}\n"), "limit.per: expected more than 0s"),
        (format!("{m}docker: {{contianer: a}}\n"), "did you mean \"container\"?"),
    ]);
    for (text, expected) in cases {
        let found = read(&text).expect_err(&text).join("\n");
        assert!(found.contains(expected), "{text}\nexpected {expected}\nfound {found}");
        assert!(!found.contains("secret"), "{found}");
    }
}

#[test]
fn a_webhook_whose_file_is_missing_is_said_when_it_is_built() {
    let config = read("webhook: {url_file: /nonexistent/url}\nmatchers: ['alertname=\"X\"']\n").expect("is right");
    let Err(error) = config.plan("hook", &Tools::of_this_host(None)) else { panic!("is refused") };
    assert!(error.contains("/nonexistent/url"), "{error}");
}
