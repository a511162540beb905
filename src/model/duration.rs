//! Durations as Prometheus writes them: `30s`, `1h30m`, `250ms`, `0s`.

use std::time::Duration;

/// The units of Prometheus' grammar, largest first, in milliseconds.
const UNITS: [(&str, u64); 7] =
    [("y", 31_536_000_000), ("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a duration such as 30s, 5m or 1h30m, found {0:?}")]
pub struct DurationError(String);

/// Parses a duration of Prometheus' grammar: units in falling order, each at most once; `0` alone is allowed.
///
/// # Errors
/// Anything else, a number without a unit, or more than 2^63 ms.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let wrong = || DurationError(text.chars().take(40).collect());
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut rest, mut total, mut last) = (text, 0u64, 0usize);
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = rest.split_at(letters);
        let index = UNITS.iter().position(|(name, _)| *name == unit).ok_or_else(wrong)?;
        if index < last {
            return Err(wrong());
        }
        last = index + 1;
        total = number.checked_mul(UNITS[index].1).and_then(|ms| total.checked_add(ms)).ok_or_else(wrong)?;
        rest = tail;
    }
    if total > i64::MAX as u64 { Err(wrong()) } else { Ok(Duration::from_millis(total)) }
}

/// Prints a duration so that [`parse`] reads it back, for people too: `1h30m`, `250ms`, `0s`.
pub fn print(duration: Duration) -> String {
    let mut ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if ms == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    // Years and weeks are read but not printed: "14d" says more than "2w".
    for (unit, size) in &UNITS[2..] {
        if ms >= *size {
            text.push_str(&format!("{}{unit}", ms / size));
            ms %= size;
        }
    }
    text
}

/// Prints a measured time for people, with the unit that fits: `0.3ms`, `45ms`, `2.1s`, `41s`, `2h3m`.
pub fn print_measured(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match seconds {
        s if s < 0.01 => format!("{:.1}ms", s * 1000.0),
        s if s < 1.0 => format!("{:.0}ms", s * 1000.0),
        s if s < 10.0 => format!("{s:.1}s"),
        s if s < 60.0 => format!("{s:.0}s"),
        s if s < 86_400.0 => print(Duration::from_secs(if s < 3600.0 { s as u64 } else { s as u64 / 60 * 60 })),
        s => print(Duration::from_secs(s as u64 / 3600 * 3600)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_printed_as_prometheus_does() {
        for (text, ms) in [("30s", 30_000), ("1h30m", 5_400_000), ("250ms", 250), ("0", 0), ("0s", 0), ("2w", 1_209_600_000)] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
            assert_eq!(parse(&print(Duration::from_millis(ms))), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "5", "m", "5 m", "-1s", "1.5h", "30s1h", "1m1m", "999999999999999999y"] {
            assert!(parse(text).is_err(), "{text} is no duration");
        }
    }

    #[test]
    fn measured_times_have_the_unit_that_fits() {
        for (ms, text) in [(0.3, "0.3ms"), (45.0, "45ms"), (2100.0, "2.1s"), (41_000.0, "41s"), (125_000.0, "2m5s"), (7_380_000.0, "2h3m")]
        {
            assert_eq!(print_measured(Duration::from_secs_f64(ms / 1000.0)), text);
        }
    }
}
