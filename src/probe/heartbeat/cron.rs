//! When cron runs a line, and until when that may be late by a change of the clocks.
//!
//! The five fields, names and `@daily` as in crontab(5) of Debian's cron; where both days are restricted, one of them is
//! enough. A crate would do: those that are kept drag a second jiff in, or chrono.

use std::fmt;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::{AmbiguousOffset, TimeZone};

use crate::model::Problems;
use crate::model::decode::{Decode, mismatch};
use crate::model::yaml::Node;

/// The longest schedule, in bytes.
const MAX_TEXT: usize = 200;
/// A date that has not come by then never comes: 29 February is at most eight years away.
const MAX_DAYS: usize = 366 * 9;

/// The fields: name, smallest and greatest value, names from the smallest on.
const FIELDS: [(&str, u32, u32, &[&str]); 5] = [
    ("minute", 0, 59, &[]),
    ("hour", 0, 23, &[]),
    ("day of month", 1, 31, &[]),
    ("month", 1, 12, &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]),
    ("day of week", 0, 7, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]),
];

/// A schedule of cron.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cron {
    text: String,
    /// A bit per value, in the order of the fields.
    sets: [u64; 5],
    /// One of the two days begins with `*`: both must fit. Else one of them is enough.
    both_days: bool,
}

/// One time at which cron runs the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occurrence {
    /// The first moment at which it may: in an hour that the clocks skip, that of the skip.
    pub earliest: Timestamp,
    /// The last one: in an hour that comes twice, its second time; in one that is skipped, as much later as was skipped.
    /// Which of them it is differs between cron, systemd and others.
    pub latest: Timestamp,
}

impl Cron {
    /// Reads a schedule.
    ///
    /// # Errors
    /// What was expected, and what was found.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.len() > MAX_TEXT {
            return Err(format!("expected at most {MAX_TEXT} bytes, found {}", text.len()));
        }
        let plain = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => other,
        };
        let fields: Vec<&str> = plain.split_ascii_whitespace().collect();
        if fields.len() != FIELDS.len() {
            return Err(format!("expected five fields as in a crontab (minute hour day month weekday) or @daily, found {text:?}"));
        }
        let mut sets = [0; 5];
        for ((field, about), set) in fields.iter().zip(FIELDS).zip(&mut sets) {
            *set = set_of(field, about).map_err(|why| format!("{}: {why}", about.0))?;
        }
        // Sunday is 0 and 7.
        sets[4] = (sets[4] | sets[4] >> 7) & 0x7f;
        let cron = Self { text: text.to_owned(), sets, both_days: fields[2].starts_with('*') || fields[4].starts_with('*') };
        match cron.after(Timestamp::UNIX_EPOCH, &TimeZone::UTC) {
            Some(_) => Ok(cron),
            None => Err(format!("no date is ever {text:?}")),
        }
    }

    fn has(&self, field: usize, value: i8) -> bool {
        u32::try_from(value).is_ok_and(|value| value < 64 && self.sets[field] >> value & 1 == 1)
    }

    fn fits(&self, date: Date) -> bool {
        let (day, weekday) = (self.has(2, date.day()), self.has(4, date.weekday().to_sunday_zero_offset()));
        self.has(3, date.month()) && if self.both_days { day && weekday } else { day || weekday }
    }

    /// Returns the first occurrence whose earliest moment is later than this one.
    pub fn after(&self, moment: Timestamp, zone: &TimeZone) -> Option<Occurrence> {
        // A skipped hour before `moment` may still count.
        let mut date = zone.to_datetime(moment).date().yesterday().ok()?;
        for _ in 0..MAX_DAYS {
            if self.fits(date) {
                let hours = (0..24).filter(|hour| self.has(1, *hour));
                let times = hours.flat_map(|hour| (0..60).filter(|minute| self.has(0, *minute)).map(move |minute| (hour, minute)));
                let found = times
                    .filter_map(|(hour, minute)| occurrence(date.at(hour, minute, 0, 0), zone))
                    .find(|occurrence| occurrence.earliest > moment);
                if found.is_some() {
                    return found;
                }
            }
            date = date.tomorrow().ok()?;
        }
        None
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn occurrence(at: DateTime, zone: &TimeZone) -> Option<Occurrence> {
    let ambiguous = zone.to_ambiguous_timestamp(at);
    let (earlier, later) = (ambiguous.earlier().ok()?, ambiguous.later().ok()?);
    let earliest = match ambiguous.offset() {
        // The moment of the change: what lies in the skipped hour is run then.
        AmbiguousOffset::Gap { .. } => zone.following(earlier).next()?.timestamp(),
        AmbiguousOffset::Fold { .. } | AmbiguousOffset::Unambiguous { .. } => earlier,
    };
    Some(Occurrence { earliest, latest: later })
}

/// Reads one field: a list of `*`, values and ranges, the last two with a step.
fn set_of(field: &str, (_, low, high, names): (&str, u32, u32, &[&str])) -> Result<u64, String> {
    let value = |text: &str| {
        let named = names.iter().zip(low..).find(|(name, _)| text.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        let number = || text.parse::<u32>().ok().filter(|value| (low..=high).contains(value));
        named.or_else(number).ok_or_else(|| format!("expected {low} to {high}, *, lists, ranges or steps of them, found {text:?}"))
    };
    let mut set = 0;
    for part in field.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(step)),
            None => (part, None),
        };
        let (from, to) = match (range, range.split_once('-')) {
            ("*", _) => (low, high),
            (_, Some((from, to))) => (value(from)?, value(to)?),
            (_, None) if step.is_some() => return Err(format!("expected * or a range before the step, found {part:?}")),
            (one, None) => (value(one)?, value(one)?),
        };
        let step = match step.map(str::parse::<usize>) {
            None => 1,
            Some(Ok(step)) if step > 0 => step,
            Some(_) => return Err(format!("expected a step of at least 1, found {part:?}")),
        };
        if from > to {
            return Err(format!("expected a range from less to more, found {part:?}"));
        }
        set |= (from..=to).step_by(step).fold(0u64, |set, value| set | 1 << value);
    }
    Ok(set)
}

impl Decode for Cron {
    const EXPECTED: &'static str = "a schedule as in a crontab, such as \"30 2 * * *\"";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let text = String::decode(node, problems)?;
        Self::parse(&text).map_err(|why| problems.push(node.at, why)).ok()
    }
}

/// A time zone of the host's database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone(pub TimeZone);

impl Decode for Zone {
    const EXPECTED: &'static str = "a time zone such as America/Vancouver";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let zone = String::decode(node, &mut Problems::default()).and_then(|name| TimeZone::get(&name).ok()).map(Self);
        if zone.is_none() {
            mismatch(node, Self::EXPECTED, problems);
        }
        zone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone() -> TimeZone {
        TimeZone::get("America/Vancouver").expect("tzdata is installed")
    }

    /// What follows a moment, as `earliest` or `earliest..latest`, in UTC.
    fn next(cron: &str, moment: &str, zone: &TimeZone) -> String {
        let cron = Cron::parse(cron).expect(cron);
        let Occurrence { earliest, latest } = cron.after(moment.parse().expect(moment), zone).expect("comes");
        if earliest == latest { earliest.to_string() } else { format!("{earliest}..{latest}") }
    }

    #[test]
    fn the_next_occurrence_is_the_one_of_cron() {
        let utc = TimeZone::UTC;
        for (cron, from, to) in [
            ("* * * * *", "2026-03-01T10:00:00Z", "2026-03-01T10:01:00Z"),
            ("*/15 * * * *", "2026-03-01T10:00:01Z", "2026-03-01T10:15:00Z"),
            ("30 2 * * *", "2026-03-01T02:30:00Z", "2026-03-02T02:30:00Z"),
            ("0 4 * * mon-fri", "2026-02-28T12:00:00Z", "2026-03-02T04:00:00Z"),
            ("0 0 29 2 *", "2026-03-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            // One of the days is enough, unless one of them is any.
            ("0 0 13 * 5", "2026-03-01T00:00:00Z", "2026-03-06T00:00:00Z"),
            ("0 0 */2 * sun", "2026-03-02T00:00:00Z", "2026-03-15T00:00:00Z"),
            ("0 0 * * 7", "2026-03-02T00:00:00Z", "2026-03-08T00:00:00Z"),
            ("5,10-20/5 0 1 Jan *", "2026-01-01T00:10:00Z", "2026-01-01T00:15:00Z"),
            ("@daily", "2026-12-31T00:00:00Z", "2027-01-01T00:00:00Z"),
        ] {
            assert_eq!(next(cron, from, &utc), to, "{cron} after {from}");
        }
    }

    #[test]
    fn a_change_of_the_clocks_makes_it_neither_lost_nor_due_twice() {
        // 2026-03-08 02:00 PST becomes 03:00 PDT (10:00 UTC); 2026-11-01 02:00 PDT becomes 01:00 PST (09:00 UTC).
        for (cron, from, to) in [
            ("30 2 * * *", "2026-03-07T12:00:00Z", "2026-03-08T10:00:00Z..2026-03-08T10:30:00Z"),
            // It ran at the change: the next one is that of the next day.
            ("30 2 * * *", "2026-03-08T10:00:01Z", "2026-03-09T09:30:00Z"),
            ("0 * * * *", "2026-03-08T09:00:00Z", "2026-03-08T10:00:00Z"),
            ("0 * * * *", "2026-03-08T10:00:00Z", "2026-03-08T11:00:00Z"),
            ("30 1 * * *", "2026-10-31T12:00:00Z", "2026-11-01T08:30:00Z..2026-11-01T09:30:00Z"),
            ("30 1 * * *", "2026-11-01T08:30:05Z", "2026-11-02T09:30:00Z"),
            ("*/30 * * * *", "2026-11-01T09:30:00Z", "2026-11-01T10:00:00Z"),
        ] {
            assert_eq!(next(cron, from, &zone()), to, "{cron} after {from}");
        }
    }

    #[test]
    fn what_is_no_schedule_is_said() {
        for (text, why) in [
            ("", "expected five fields"),
            ("* * * *", "expected five fields"),
            ("@reboot", "expected five fields"),
            ("60 * * * *", "minute: expected 0 to 59"),
            ("* * 0 * *", "day of month: expected 1 to 31"),
            ("* * * foo *", "month: expected 1 to 12"),
            ("5/2 * * * *", "expected * or a range before the step"),
            ("*/0 * * * *", "expected a step of at least 1"),
            ("9-5 * * * *", "expected a range from less to more"),
            ("1,,2 * * * *", "found \"\""),
            ("0 0 30 2 *", "no date is ever"),
            (&"1,".repeat(200), "expected at most 200 bytes"),
        ] {
            let found = Cron::parse(text).expect_err(text);
            assert!(found.contains(why), "{text}: {found}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_stands_there_is_a_schedule_that_goes_forward_or_a_mistake(
            text in proptest::prop_oneof![
                "([0-9*,/a-z-]{0,6} ){0,5}[0-9*,/a-z-]{0,6}",
                "(\\*|[0-5]?[0-9](-[0-5]?[0-9])?)(/[0-9]{1,2})? (\\*|[01]?[0-9]) (\\*|[0-3]?[0-9]) (\\*|1?[0-9]) (\\*|[0-7])",
                ".{0,80}",
            ],
            seconds in 0i64..4_102_444_800,
        ) {
            let moment = Timestamp::from_second(seconds).expect("is one");
            if let Ok(cron) = Cron::parse(&text) && let Some(next) = cron.after(moment, &zone()) {
                proptest::prop_assert!(next.latest > moment && next.earliest <= next.latest, "{text} after {moment}: {next:?}");
            }
        }
    }
}
