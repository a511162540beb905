//! How templates print numbers and texts: `humanize*`, `title` and `printf`, as Go and Prometheus' `template` package do.

use super::template::Val;
use crate::model::Timestamp;

/// The widest field and the highest precision of `printf`.
const MAX_WIDTH: usize = 256;

/// Go's `strings.Title`: the first letter of every word in upper case, the rest as it is.
pub(super) fn title(text: &str) -> String {
    let mut inside = false;
    let letter = |c: char| {
        let upper = (!inside).then(|| c.to_uppercase());
        inside = c.is_alphanumeric() || c == '_' || (!c.is_ascii() && !c.is_whitespace());
        upper.map_or_else(|| c.to_string(), String::from_iter)
    };
    text.chars().map(letter).collect()
}

const SMALL: [&str; 8] = ["m", "u", "n", "p", "f", "a", "z", "y"];

pub(super) fn scale_up(mut value: f64, base: f64, prefixes: [&'static str; 8]) -> (f64, &'static str) {
    let mut prefix = "";
    for next in prefixes {
        if value.abs() < base {
            break;
        }
        (prefix, value) = (next, value / base);
    }
    (value, prefix)
}

pub(super) fn scale_down(mut value: f64) -> (f64, &'static str) {
    let mut prefix = "";
    for next in SMALL {
        if value.abs() >= 1.0 {
            break;
        }
        (prefix, value) = (next, value * 1000.0);
    }
    (value, prefix)
}

pub(super) fn humanize(value: f64) -> String {
    let (value, prefix) = match value {
        v if v == 0.0 || !v.is_finite() => (v, ""),
        v if v.abs() >= 1.0 => scale_up(v, 1000.0, ["k", "M", "G", "T", "P", "E", "Z", "Y"]),
        v => scale_down(v),
    };
    go_float(value, 'g', Some(4)) + prefix
}

pub(super) fn humanize1024(value: f64) -> String {
    let (value, prefix) = match value {
        v if v.abs() <= 1.0 || !v.is_finite() => (v, ""),
        v => scale_up(v, 1024.0, ["ki", "Mi", "Gi", "Ti", "Pi", "Ei", "Zi", "Yi"]),
    };
    go_float(value, 'g', Some(4)) + prefix
}

pub(super) fn humanize_duration(value: f64) -> String {
    if !value.is_finite() {
        return go_float(value, 'g', Some(4));
    }
    if value == 0.0 || value.abs() < 1.0 {
        let (value, prefix) = if value == 0.0 { (value, "") } else { scale_down(value) };
        return format!("{}{prefix}s", go_float(value, 'g', Some(4)));
    }
    let sign = if value < 0.0 { "-" } else { "" };
    let whole = value.abs() as i64;
    let (days, hours, minutes, seconds) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60, whole % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{sign}{}s", go_float(value.abs(), 'g', Some(4))),
        (0, 0, _) => format!("{sign}{minutes}m {seconds}s"),
        (0, ..) => format!("{sign}{hours}h {minutes}m {seconds}s"),
        _ => format!("{sign}{days}d {hours}h {minutes}m {seconds}s"),
    }
}

/// Prints seconds since the epoch as Go prints a time in UTC, to the millisecond.
pub(super) fn humanize_timestamp(value: f64) -> Result<String, String> {
    if !value.is_finite() {
        return Ok(go_float(value, 'g', Some(4)));
    }
    // The limit is Prometheus': nanoseconds in an int64.
    if value.abs() * 1e9 >= i64::MAX as f64 {
        return Err(format!("{} cannot be represented as a nanoseconds timestamp since it overflows int64", go_float(value, 'f', None)));
    }
    let millis = (value * 1e9) as i64 / 1_000_000;
    let whole = Timestamp(millis).to_jiff().strftime("%Y-%m-%d %H:%M:%S").to_string();
    let fraction = millis.rem_euclid(1000);
    let fraction = if fraction == 0 { String::new() } else { format!(".{fraction:03}").trim_end_matches('0').to_owned() };
    Ok(format!("{whole}{fraction} +0000 UTC"))
}

/// Prints a number as Go does with `%e`, `%f` or `%g`; without a precision as few digits as are needed (`%g`), else 6.
pub(super) fn go_float(value: f64, verb: char, precision: Option<usize>) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let exponential = |text: String| {
        let (digits, exponent) = text.split_once('e').map_or((text.as_str(), 0), |(d, e)| (d, e.parse().unwrap_or(0)));
        format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, i32::abs(exponent))
    };
    match (verb, precision) {
        ('f', precision) => format!("{value:.*}", precision.unwrap_or(6)),
        ('e', precision) => exponential(format!("{value:.*e}", precision.unwrap_or(6))),
        (_, precision) => {
            let text = match precision {
                Some(digits) => format!("{value:.*e}", digits.max(1) - 1),
                None => format!("{value:e}"),
            };
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let exponent: i32 = exponent.parse().unwrap_or(0);
            let digits = if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits };
            // Without a precision Go decides as if it were 6.
            let most = precision.map_or(6, |digits| i32::try_from(digits.max(1)).unwrap_or(i32::MAX));
            if exponent < -4 || exponent >= most {
                exponential(format!("{digits}e{exponent}"))
            } else {
                let count = i32::try_from(digits.chars().filter(char::is_ascii_digit).count()).unwrap_or(0);
                format!("{value:.*}", usize::try_from(count - 1 - exponent).unwrap_or(0))
            }
        }
    }
}

/// One verb of a format: flags, width, precision, letter.
struct Verb {
    flags: String,
    width: usize,
    precision: Option<usize>,
    letter: char,
}

fn verbs(format: &str) -> Result<Vec<Result<Verb, String>>, String> {
    let (mut parts, mut text) = (Vec::new(), String::new());
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| {
            let mut digits = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            if digits.is_empty() { Ok(0) } else { digits.parse().ok().filter(|n| *n <= MAX_WIDTH).ok_or(digits) }
        };
        let mut flags = String::new();
        while let Some(flag) = chars.next_if(|c| matches!(c, '+' | '-' | ' ' | '0' | '#')) {
            flags.push(flag);
        }
        let width = number(&mut chars);
        let precision = chars.next_if_eq(&'.').map(|_| number(&mut chars)).transpose();
        let (width, precision) = match (width, precision) {
            (Ok(width), Ok(precision)) => (width, precision),
            (Err(found), _) | (_, Err(found)) => return Err(format!("printf: expected a width of at most {MAX_WIDTH}, found {found}")),
        };
        match chars.next() {
            Some('%') => text.push('%'),
            Some(letter @ ('d' | 's' | 'v' | 'q' | 'f' | 'F' | 'e' | 'g' | 't')) => {
                parts.push(Err(std::mem::take(&mut text)));
                parts.push(Ok(Verb { flags, width, precision, letter }));
            }
            Some(letter) => return Err(format!("printf: %{letter} is not supported here; supported: %d %e %f %g %q %s %t %v %%")),
            None => text.push_str("%!(NOVERB)"),
        }
    }
    parts.push(Err(text));
    Ok(parts)
}

pub(super) fn check_format(format: &str) -> Result<(), String> {
    verbs(format).map(drop)
}

/// Go's `fmt.Sprintf` for the values that a template has.
pub(super) fn printf(format: &str, arguments: &[Val]) -> Result<String, String> {
    let (mut text, mut arguments) = (String::new(), arguments.iter());
    for part in verbs(format)? {
        let verb = match part {
            Ok(verb) => verb,
            Err(literal) => {
                text.push_str(&literal);
                continue;
            }
        };
        let Some(value) = arguments.next() else {
            text.push_str(&format!("%!{}(MISSING)", verb.letter));
            continue;
        };
        let numeric = matches!(value, Val::Int(_) | Val::Float(_));
        let mut printed = match (verb.letter, value) {
            ('d' | 'v', Val::Int(whole)) => whole.to_string(),
            ('f' | 'F', Val::Float(number)) => go_float(*number, 'f', verb.precision),
            ('e', Val::Float(number)) => go_float(*number, 'e', verb.precision),
            ('g', Val::Float(number)) => go_float(*number, 'g', verb.precision),
            ('v', Val::Float(number)) => go_float(*number, 'g', verb.precision),
            ('s' | 'v', Val::Text(value)) => value.chars().take(verb.precision.unwrap_or(usize::MAX)).collect(),
            ('q', Val::Text(value)) => format!("{:?}", value.chars().take(verb.precision.unwrap_or(usize::MAX)).collect::<String>()),
            ('s' | 'v', Val::Map(_)) => value.print(),
            (letter, value) => format!("%!{letter}({}={})", value.go_type(), value.print()),
        };
        if numeric && !printed.starts_with(['-', '+', '%']) {
            if verb.flags.contains('+') {
                printed.insert(0, '+');
            } else if verb.flags.contains(' ') {
                printed.insert(0, ' ');
            }
        }
        let missing = verb.width.saturating_sub(printed.chars().count());
        let (left, zeros) = (verb.flags.contains('-'), verb.flags.contains('0') && numeric && !printed.ends_with(['f', 'N']));
        match (left, zeros) {
            (true, _) => text.push_str(&(printed + &" ".repeat(missing))),
            (false, true) => {
                let sign = usize::from(printed.starts_with(['-', '+', ' ']));
                printed.insert_str(sign, &"0".repeat(missing));
                text.push_str(&printed);
            }
            (false, false) => text.push_str(&(" ".repeat(missing) + &printed)),
        }
    }
    let extra: Vec<String> = arguments.map(|value| format!("{}={}", value.go_type(), value.print())).collect();
    if !extra.is_empty() {
        text.push_str(&format!("%!(EXTRA {})", extra.join(", ")));
    }
    Ok(text)
}
