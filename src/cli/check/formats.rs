//! The answer for machines: Nagios' plugins (Monitoring Plugins Development Guidelines) and JUnit's XML.

use std::fmt::Write as _;

use super::{Report, Row, State};

/// Writes the line of a check that could not run.
pub(super) fn nagios_unknown(why: &str) -> String {
    format!("PROCTOR UNKNOWN - {}", plain(why))
}

/// Writes one line with performance data, then one per target that is not well.
pub(super) fn nagios(report: &Report) -> String {
    let (counts, of) = (report.counts, report.targets.len());
    let names = |state: State| {
        let names = report.targets.iter().filter(|row| row.state == state).take(10);
        names.map(|row| row.reason.map_or(row.name.clone(), |why| format!("{} ({why})", row.name))).collect::<Vec<_>>().join(", ")
    };
    let (word, said) = if counts.failed > 0 {
        ("CRITICAL", format!("{} of {of} targets failed: {}", counts.failed, names(State::Failed)))
    } else if of == 0 {
        return nagios_unknown("nothing to ask: the configuration names no probe") + "\n";
    } else if counts.unjudged > 0 {
        ("UNKNOWN", format!("{} of {of} targets could not be judged: {}", counts.unjudged, names(State::Unjudged)))
    } else if counts.partial + counts.blind > 0 {
        let names: Vec<String> = [State::Blind, State::Partial].into_iter().map(names).filter(|names| !names.is_empty()).collect();
        ("WARNING", format!("{} of {of} targets could not be wholly seen: {}", counts.partial + counts.blind, names.join(", ")))
    } else {
        ("OK", format!("{of} of {of} targets are well"))
    };
    let mut text = format!(
        "PROCTOR {word} - {} | ok={};;;0;{of} partial={};;;0;{of} blind={};;;0;{of} failed={};;0;0;{of} unjudged={};;;0;{of}\n",
        plain(&said),
        counts.ok,
        counts.partial,
        counts.blind,
        counts.failed,
        counts.unjudged
    );
    for row in report.targets.iter().filter(|row| row.state != State::Ok) {
        writeln!(text, "{}", plain(&format!("{} {}", row.state.word(), row.told().as_ref().unwrap_or(&row.name)))).ok();
    }
    text
}

/// `|` begins performance data, and a line break another kind of line.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c == '|' {
                '/'
            } else if c.is_control() {
                ' '
            } else {
                c
            }
        })
        .collect()
}

/// Writes one test suite; a target that could not be seen is a skipped test, one that could not be judged an error.
pub(super) fn junit(report: &Report) -> String {
    let (counts, of) = (report.counts, report.targets.len());
    let time: f64 = report.targets.iter().filter_map(|row| row.duration_seconds).sum();
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n<testsuite name=\"{}\" tests=\"{of}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" time=\"{time:.3}\" timestamp=\"{}\">\n",
        xml(&format!("proctor check {}", report.site)),
        counts.failed,
        counts.unjudged,
        counts.blind,
        report.at
    );
    report.targets.iter().for_each(|row| text += &case(row));
    text + "</testsuite>\n</testsuites>\n"
}

fn case(row: &Row) -> String {
    let detail = xml(row.detail.as_deref().unwrap_or(""));
    let inner = match row.state {
        State::Ok => String::new(),
        State::Partial => format!("<system-out>{detail}</system-out>"),
        State::Blind => format!("<skipped message=\"{detail}\"/>"),
        State::Failed => format!("<failure type=\"{}\" message=\"{detail}\"/>", row.reason.unwrap_or("")),
        State::Unjudged => format!("<error type=\"unjudged\" message=\"{detail}\"/>"),
    };
    let time = row.duration_seconds.unwrap_or(0.0);
    format!("<testcase classname=\"{}\" name=\"{}\" time=\"{time:.3}\">{inner}</testcase>\n", row.kind, xml(&row.name))
}

/// Escapes text for an attribute or an element; what XML 1.0 has no way to write (§2.2) becomes a blank.
fn xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&apos;",
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}
