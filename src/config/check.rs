//! What no component can check alone: references between sections.

use std::time::Duration;

use super::{Config, Defaults, HeartbeatOutConfig};
use crate::model::decode::{Decode, Spanned, from_text, unknown};
use crate::model::duration::print;
use crate::model::yaml::{Key, Node, Value};
use crate::model::{Position, Problems};
use crate::mute::depends::{Depends, DependsError};
use crate::notify::NotifyConfig;
use crate::probe::{ProbeConfig, Shared, plan_entries};
use crate::remediate::ActionConfig;

/// The longest name of a probe or action: it is a label and stands in a line of 80 columns.
const MAX_NAME: usize = 40;

/// Checks a configuration that decoded.
pub(super) fn cross(config: &Config, problems: &mut Problems) {
    let names: Vec<&str> = config.probes.0.iter().map(|(name, _)| name.as_str()).collect();
    if let Some(heartbeat) = &config.heartbeat_out
        && let Err(why) = heartbeat.check()
    {
        problems.push(heartbeat.at, why);
    }
    let those = |fits: fn(&ProbeConfig) -> bool| {
        config.probes.0.iter().filter(move |(_, probe)| fits(probe)).map(|(name, _)| name.as_str()).collect::<Vec<&str>>()
    };
    let names = Names {
        all: names,
        brokers: those(|probe| probe.rabbitmq.is_some()),
        databases: those(|probe| probe.postgres.is_some() || probe.mysql.is_some()),
    };
    let mut whole = Vec::new();
    for (name, probe) in &config.probes.0 {
        if check_probe(name, probe, Some(&config.defaults), &names, problems) {
            whole.push((name, probe));
        }
    }
    let needs = |(name, probe): &(Spanned<String>, ProbeConfig)| (name.clone(), probe.needs().map(str::to_owned).collect());
    check_circles(&config.probes.0.iter().map(needs).collect::<Vec<_>>(), problems);
    for (name, action) in &config.actions.0 {
        check_action(name, action, &names.all, problems);
    }
    if let Some(notify) = &config.notify {
        notify.check(notify.at, !notify.webhooks.0.is_empty(), problems);
    }
    // Where all is right, what shows only when probes are built is said by who builds them.
    if !problems.is_empty() {
        drop(plan_entries(whole.into_iter(), &mut Shared::default(), problems));
    }
}

/// What a probe may name.
struct Names<'a> {
    /// Every probe.
    all: Vec<&'a str>,
    /// Those that others may ask RabbitMQ over.
    brokers: Vec<&'a str>,
    /// Those that others may ask a database over.
    databases: Vec<&'a str>,
}

/// Says whether nothing is wrong with it.
fn check_probe(
    name: &Spanned<String>,
    probe: &ProbeConfig,
    defaults: Option<&Defaults>,
    names: &Names<'_>,
    problems: &mut Problems,
) -> bool {
    let before = problems.len();
    check_name("a probe", name, problems);
    match probe.kinds().as_slice() {
        [_] => {}
        [] => problems.push(
            name.at,
            format!("probe {:?}: expected one kind of probe, found none; known: {}", name.value, crate::probe::KINDS.join(", ")),
        ),
        several => problems
            .push(name.at, format!("probe {:?}: expected one kind of probe, found {}: {}", name.value, several.len(), several.join(", "))),
    }
    check_references("probe", &probe.depends_on, &names.all, problems);
    check_references("rabbitmq probe", probe.via().map_or(&[], std::slice::from_ref), &names.brokers, problems);
    check_references("postgres or mysql probe", probe.database().map_or(&[], std::slice::from_ref), &names.databases, problems);
    // Of defaults with a mistake nobody knows what was meant.
    let (Some(interval), Some(timeout)) =
        (probe.interval.or(defaults.map(|defaults| defaults.interval)), probe.timeout.or(defaults.map(|defaults| defaults.timeout)))
    else {
        return problems.len() == before;
    };
    let told = format!("probe {:?}: ", name.value);
    if interval < Duration::from_millis(100) {
        problems.push(name.at, format!("{told}expected an interval of at least 100ms, found {}", print(interval)));
    }
    if timeout.is_zero() || timeout > interval.max(Duration::from_secs(1)) {
        problems.push(
            name.at,
            format!("{told}expected a timeout above 0s and not longer than the interval {}, found {}", print(interval), print(timeout)),
        );
    }
    problems.len() == before
}

/// Says which probes need one another in a circle.
fn check_circles(edges: &[(Spanned<String>, Vec<String>)], problems: &mut Problems) {
    let named = edges.iter().map(|(name, needs)| (name.value.clone(), needs.clone()));
    for error in Depends::new(named).err().into_iter().flatten() {
        // Names that are not known are said at their place.
        if matches!(error, DependsError::Cycle { .. }) {
            let first = edges.iter().find(|(name, _)| name.as_str() == error.place().0);
            problems.push(first.map_or(Position { line: 1, col: 1 }, |(name, _)| name.at), error.to_string());
        }
    }
}

fn check_action(name: &Spanned<String>, action: &ActionConfig, names: &[&str], problems: &mut Problems) {
    check_name("an action", name, problems);
    action.check(name, problems);
    check_references("probe", &action.verify.probes, names, problems);
}

fn check_name(what: &str, name: &Spanned<String>, problems: &mut Problems) {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(valid) {
        problems.push(name.at, format!("expected the name of {what}: 1 to {MAX_NAME} letters, digits, -, _ or ., found {:?}", name.value));
    }
}

/// Says which references dangle, and what is defined.
fn check_references(what: &str, references: &[Spanned<String>], defined: &[&str], problems: &mut Problems) {
    for reference in references {
        if !defined.contains(&reference.as_str()) {
            problems.push(reference.at, unknown(what, reference, defined));
        }
    }
}

/// Checks a file that did not decode as a whole: each part that decodes by itself, and of the others the references, so
/// that one run names every mistake. What is wrong with a part that does not decode was said already.
pub(super) fn cross_undecoded(node: &Node, problems: &mut Problems) {
    let defaults: Option<Defaults> = entry(node, "defaults").map_or_else(|| from_text("", "{}").ok(), decoded);
    let probes = entry(node, "probes").map_or(&[] as &[_], entries);
    let those = |kinds: &[&str]| {
        let fits = |probe: &Node| kinds.iter().any(|kind| entry(probe, kind).is_some());
        probes.iter().filter(|(_, probe)| kinds.is_empty() || fits(probe)).map(|(key, _)| key.text.as_str()).collect::<Vec<&str>>()
    };
    let names = Names { all: those(&[]), brokers: those(&["rabbitmq"]), databases: those(&["postgres", "mysql"]) };
    let (mut whole, mut edges) = (Vec::new(), Vec::new());
    for (key, node) in probes {
        let name = Spanned { value: key.text.clone(), at: key.at };
        if let Some(probe) = decoded::<ProbeConfig>(node) {
            edges.push((name.clone(), probe.needs().map(str::to_owned).collect()));
            if check_probe(&name, &probe, defaults.as_ref(), &names, problems) {
                whole.push((name, probe));
            }
            continue;
        }
        edges.push((name.clone(), texts(entry(node, "depends_on")).into_iter().map(|need| need.value).collect()));
        check_name("a probe", &name, problems);
        check_references("probe", &texts(entry(node, "depends_on")), &names.all, problems);
        for kind in crate::probe::KINDS {
            let via = entry(node, kind).and_then(|kind| entry(kind, "via")).and_then(text);
            check_references("rabbitmq probe", via.as_slice(), &names.brokers, problems);
        }
        // The key of the same name at a database's own probe is another thing.
        let database = entry(node, "beat").and_then(|beat| entry(beat, "database")).and_then(text);
        check_references("postgres or mysql probe", database.as_slice(), &names.databases, problems);
    }
    check_circles(&edges, problems);
    // What the parts that decode show only when they are built.
    drop(plan_entries(whole.iter().map(|(name, probe)| (name, probe)), &mut Shared::default(), problems));
    for (key, node) in entry(node, "actions").map_or(&[] as &[_], entries) {
        let name = Spanned { value: key.text.clone(), at: key.at };
        if let Some(action) = decoded::<ActionConfig>(node) {
            check_action(&name, &action, &names.all, problems);
            continue;
        }
        check_name("an action", &name, problems);
        let probes = entry(node, "verify").and_then(|verify| entry(verify, "probes"));
        check_references("probe", &texts(probes), &names.all, problems);
    }
    if let Some((node, notify)) = entry(node, "notify").and_then(|node| Some((node, decoded::<NotifyConfig>(node)?))) {
        notify.check(node.at, !notify.webhooks.0.is_empty(), problems);
    }
    if let Some((node, heartbeat)) = entry(node, "heartbeat_out").and_then(|node| Some((node, decoded::<HeartbeatOutConfig>(node)?)))
        && let Err(why) = heartbeat.check()
    {
        problems.push(node.at, why);
    }
}

/// Decodes one part; what is wrong with it was said already.
fn decoded<T: Decode>(node: &Node) -> Option<T> {
    T::decode(node, &mut Problems::default())
}

fn entries(node: &Node) -> &[(Key, Node)] {
    if let Value::Mapping(entries) = &node.value { entries } else { &[] }
}

fn entry<'a>(node: &'a Node, name: &str) -> Option<&'a Node> {
    entries(node).iter().find(|(key, _)| key.text == name).map(|(_, node)| node)
}

fn texts(node: Option<&Node>) -> Vec<Spanned<String>> {
    let Some(Value::Sequence(items)) = node.map(|node| &node.value) else { return Vec::new() };
    items.iter().filter_map(text).collect()
}

fn text(node: &Node) -> Option<Spanned<String>> {
    match &node.value {
        Value::Scalar { text, .. } => Some(Spanned { value: text.clone(), at: node.at }),
        _ => None,
    }
}
