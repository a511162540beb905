//! What no component can check alone: references between sections.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Config;
use crate::model::decode::{Spanned, unknown};
use crate::model::duration::print;
use crate::model::yaml::{Node, Value};
use crate::model::{Position, Problems};
use crate::mute::depends::{Depends, DependsError};

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
    let brokers = config.probes.0.iter().filter(|(_, probe)| probe.rabbitmq.is_some());
    let brokers: Vec<&str> = brokers.map(|(name, _)| name.as_str()).collect();
    for (name, probe) in &config.probes.0 {
        check_name("probe", name, problems);
        match probe.kinds().as_slice() {
            [_] => {}
            [] => problems.push(
                name.at,
                format!("probe {:?}: expected one kind of probe, found none; known: {}", name.value, crate::probe::KINDS.join(", ")),
            ),
            several => problems.push(
                name.at,
                format!("probe {:?}: expected one kind of probe, found {}: {}", name.value, several.len(), several.join(", ")),
            ),
        }
        check_references("probe", &probe.depends_on, &names, problems);
        check_references("rabbitmq probe", probe.via().map_or(&[], std::slice::from_ref), &brokers, problems);
        let interval = probe.interval.unwrap_or(config.defaults.interval);
        let timeout = probe.timeout.unwrap_or(config.defaults.timeout);
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
    }
    let edges = config.probes.0.iter().map(|(name, probe)| (name.value.clone(), probe.needs().map(str::to_owned).collect()));
    for error in Depends::new(edges).err().into_iter().flatten() {
        // Names that are not known were said above, at their place.
        if matches!(error, DependsError::Cycle { .. }) {
            let at = config
                .probes
                .0
                .iter()
                .find(|(name, _)| name.as_str() == error.place().0)
                .map_or(Position { line: 1, col: 1 }, |(name, _)| name.at);
            problems.push(at, error.to_string());
        }
    }
    for (name, action) in &config.actions.0 {
        check_name("action", name, problems);
        action.check(name, problems);
        check_references("probe", &action.verify.probes, &names, problems);
    }
    if let Some(notify) = &config.notify {
        notify.check(notify.at, !notify.webhooks.0.is_empty(), problems);
    }
}

fn check_name(what: &str, name: &Spanned<String>, problems: &mut Problems) {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(valid) {
        problems
            .push(name.at, format!("expected the name of a {what}: 1 to {MAX_NAME} letters, digits, -, _ or ., found {:?}", name.value));
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

/// Checks the references of a file that did not decode as a whole, from its tree, so that one run names every mistake.
pub(super) fn cross_undecoded(node: &Node, problems: &mut Problems) {
    let Some(probes) = entry(node, "probes") else { return };
    let Value::Mapping(entries) = &probes.value else { return };
    let defined: BTreeSet<&str> = entries.iter().map(|(key, _)| key.text.as_str()).collect();
    let defined: Vec<&str> = defined.into_iter().collect();
    let brokers = entries.iter().filter(|(_, probe)| entry(probe, "rabbitmq").is_some());
    let brokers: Vec<&str> = brokers.map(|(key, _)| key.text.as_str()).collect();
    for (_, probe) in entries {
        check_references("probe", &texts(entry(probe, "depends_on")), &defined, problems);
        for kind in crate::probe::KINDS {
            let via = entry(probe, kind).and_then(|kind| entry(kind, "via")).and_then(text);
            check_references("rabbitmq probe", via.as_slice(), &brokers, problems);
        }
    }
    if let Some(Value::Mapping(actions)) = entry(node, "actions").map(|actions| &actions.value) {
        for (_, action) in actions {
            let probes = entry(action, "verify").and_then(|verify| entry(verify, "probes"));
            check_references("probe", &texts(probes), &defined, problems);
        }
    }
}

fn entry<'a>(node: &'a Node, name: &str) -> Option<&'a Node> {
    let Value::Mapping(entries) = &node.value else { return None };
    entries.iter().find(|(key, _)| key.text == name).map(|(_, node)| node)
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
