//! The answer for people: one line per target, then what is wrong now. It reads well on 80 columns and without colour.

use std::time::Duration;

use super::{Report, Row, State};
use crate::model::duration::print_measured;

/// The width that a line is folded to.
const COLUMNS: usize = 80;
/// What a line holds besides name, kind and reason: a state of 6 and a time of 6, and two blanks between all of them.
const BESIDES: usize = 6 + 6 + 4 * 2;

/// Writes it.
pub(super) fn write(report: &Report) -> String {
    let mut text = String::new();
    if !report.configured {
        text += "No configuration: this is what was found on this host.\n";
        report.left_out.iter().for_each(|line| text += &fold(&format!("Not asked: {line}"), 0));
        text += "\n";
    }
    if report.targets.is_empty() {
        return text + "Nothing to ask. Write /etc/proctor/proctor.yml and name what to ask under probes:\n";
    }
    let widest = |of: fn(&Row) -> usize| report.targets.iter().map(of).max().unwrap_or(0);
    let (kind, reason) = (widest(|row| row.kind.len()), widest(|row| row.reason.unwrap_or("").len()));
    // A longer one is cut; where something is wrong with it, it stands whole below.
    let name = widest(|row| row.name.chars().count()).min(COLUMNS.saturating_sub(BESIDES + kind + reason));
    for row in &report.targets {
        let took = row.duration_seconds.map(|seconds| print_measured(Duration::from_secs_f64(seconds))).unwrap_or_default();
        let line = format!(
            "{:6}  {:name$}  {:kind$}  {took:>6}  {}",
            row.state.word(),
            shorten(&row.name, name),
            row.kind,
            row.reason.unwrap_or("")
        );
        text += line.trim_end();
        text += "\n";
    }
    text += "\n";
    let told = |state| report.targets.iter().filter(move |row| row.state == state).filter_map(Row::told);
    let unseen: String = [State::Partial, State::Blind, State::Unjudged].into_iter().flat_map(told).map(|told| fold(&told, 2)).collect();
    if !unseen.is_empty() {
        text += &format!("Not seen:\n{unseen}\n");
    }
    let counts = report.counts;
    let seen = counts.ok + counts.partial;
    let mut unknown = String::new();
    for (count, what) in [(counts.blind, "could not be seen"), (counts.unjudged, "could not be judged")] {
        if count > 0 {
            unknown += &format!(", {count} {what}");
        }
    }
    let of = report.targets.len();
    let plural = if of == 1 { "target" } else { "targets" };
    text += &match (counts.failed, unknown.is_empty()) {
        (0, true) if of == 1 => "The target is well.\n".to_owned(),
        (0, true) => format!("All {of} targets are well.\n"),
        (0, false) => format!("{seen} of {of} {plural} well{unknown}.\n"),
        (failed, _) => format!("Wrong now: {failed} of {of} {plural}{unknown}.\n"),
    };
    // What is wrong comes last: it stands next to the prompt.
    for row in report.targets.iter().filter(|row| row.state == State::Failed && row.see.is_none()) {
        row.told().iter().for_each(|told| text += &fold(told, 2));
        let behind: Vec<&str> =
            report.targets.iter().filter(|other| other.see.as_ref() == Some(&row.name)).map(|other| other.name.as_str()).collect();
        if !behind.is_empty() {
            text += &fold(&format!("{}: see {}", behind.join(", "), row.name), 2);
        }
    }
    text
}

/// Cuts the middle out: of several pages of one site the ends differ.
fn shorten(name: &str, most: usize) -> String {
    let name: Vec<char> = name.chars().collect();
    let (head, tail) = (most / 2, most.saturating_sub(most / 2 + 1));
    if name.len() <= most { name.iter().collect() } else { name[..head].iter().chain(&['…']).chain(&name[name.len() - tail..]).collect() }
}

/// Folds a line at blanks, and a word that is longer than a line anywhere; what follows is indented by two more.
fn fold(line: &str, indent: usize) -> String {
    let mut text = " ".repeat(indent);
    let mut column = indent;
    let mut begun = false;
    for word in line.split_whitespace() {
        let mut word: Vec<char> = word.chars().collect();
        if begun && column + 1 + word.len() > COLUMNS {
            text += &format!("\n{}", " ".repeat(indent + 2));
            column = indent + 2;
        } else if begun {
            text.push(' ');
            column += 1;
        }
        while column + word.len() > COLUMNS {
            let rest = word.split_off(COLUMNS - column);
            text.extend(word);
            text += &format!("\n{}", " ".repeat(indent + 2));
            column = indent + 2;
            word = rest;
        }
        column += word.len();
        text.extend(word);
        begun = true;
    }
    text + "\n"
}
