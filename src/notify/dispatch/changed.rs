//! What a mail says of the changes on the host around an alert.

use std::time::Duration;

use super::Dispatcher;
use crate::changes::{Change, Kind};
use crate::model::duration::print;
use crate::model::{Alert, Timestamp};
use crate::notify::message::{Section, line};

/// The most lines; of more, the newest.
const MAX_LINES: usize = 12;
/// Packages that were upgraded within this time of one another are one line, and it names so many.
const ONE_UPGRADE: Duration = Duration::from_secs(120);
const MAX_PACKAGES: usize = 5;

impl Dispatcher {
    /// While something fires: what changed from [`super::Wiring::before`] before it until now. Once it is over: what
    /// changed meanwhile, which is often what mended it.
    pub(super) fn changed_since(&self, began: Timestamp, firing: &[&Alert], now: Timestamp) -> Section {
        let before = self.wiring.before;
        let (title, from) = match firing {
            [] => ("What changed meanwhile".to_owned(), began),
            _ => (format!("In the {} before, and since", print(before)), began - before),
        };
        let told = lines(&self.wiring.changes.between(from, now), &|at| self.voice.hour(at, now));
        let skipped = told.len().saturating_sub(MAX_LINES);
        let first = (skipped > 0).then(|| format!("… {skipped} changes before these are not shown"));
        Section::fixed(&title, first.into_iter().chain(told.into_iter().skip(skipped)))
    }
}

/// One line for each change, but one for all packages of an upgrade.
fn lines(changes: &[Change], hour: &dyn Fn(Timestamp) -> String) -> Vec<String> {
    let one_upgrade = |a: &Change, b: &Change| a.kind == Kind::Upgraded && b.kind == Kind::Upgraded && b.at.since(a.at) <= ONE_UPGRADE;
    let tell = |changes: &[Change]| {
        let (at, kind) = (hour(changes[0].at), changes[0].kind.as_str());
        let detailed = |change: &Change| match change.detail.as_str() {
            "" => change.subject.clone(),
            detail => format!("{}: {detail}", change.subject),
        };
        let what = match changes {
            [one] => detailed(one),
            many => {
                let more = many.len().saturating_sub(MAX_PACKAGES);
                let names: Vec<&str> = many
                    .iter()
                    .take(MAX_PACKAGES)
                    .map(|change| change.subject.strip_prefix("package ").unwrap_or(&change.subject))
                    .collect();
                format!(
                    "{} packages: {}{}",
                    many.len(),
                    names.join(", "),
                    if more > 0 { format!(" and {more} more") } else { String::new() }
                )
            }
        };
        line(&format!("{at} {kind} {what}"), 200)
    };
    changes.chunk_by(one_upgrade).map(tell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_is_a_line_and_an_upgrade_of_many_packages_is_one() {
        let change = |seconds, kind, subject: &str, detail: &str| Change {
            at: Timestamp::from_secs(seconds),
            kind,
            subject: subject.into(),
            detail: detail.into(),
        };
        let mut changes = vec![change(0, Kind::Restarted, "celery.service", "by a job of systemd")];
        changes.extend((1..=7).map(|n| change(n, Kind::Upgraded, &format!("package p{n}"), "1 → 2")));
        changes.push(change(8, Kind::Died, "container memcached", "\u{202e}exit code 137\nSubject: x"));
        changes.push(change(500, Kind::Upgraded, "package nginx", "1 → 2"));
        changes.push(change(501, Kind::Booted, "this host", ""));
        let told = lines(&changes, &|at| at.0.to_string());
        let expected = [
            "0 restarted celery.service: by a job of systemd",
            "1000 upgraded 7 packages: p1, p2, p3, p4, p5 and 2 more",
            "8000 died container memcached: exit code 137 Subject: x",
            "500000 upgraded package nginx: 1 → 2",
            "501000 booted this host",
        ];
        assert_eq!(told, expected);
    }
}
