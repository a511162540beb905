//! The notation of series in unit tests, as Prometheus' `promql/parser` reads it: `1 _ stale 5+2x3 7x2 _x4`.

use crate::window::STALE;

/// Expands the values of a series; nothing is a gap. `most` is how many there may be.
///
/// # Errors
/// The word that is no value, and what was expected.
pub(super) fn expand(text: &str, most: usize) -> Result<Vec<Option<f64>>, String> {
    let mut values = Vec::new();
    if text.contains("{{") {
        return Err("native histograms are not evaluated here; Prometheus accepts them".to_owned());
    }
    for word in text.split_ascii_whitespace() {
        let shown: String = word.chars().take(40).collect();
        let (start, step, more) = parse(word)
            .ok_or_else(|| format!("expected values such as 1, -2.5, _, stale, 1+2x3 (1 3 5 7), 4x2 (4 4 4) or _x3, found {shown:?}"))?;
        let count = more.checked_add(usize::from(start.is_some())).filter(|count| values.len() + count <= most);
        let count = count.ok_or_else(|| format!("expected at most {} samples in a test, found more in {shown:?}", super::MAX_SAMPLES))?;
        // Added up as Prometheus does, so that the last bits are the same.
        let mut value = start;
        for _ in 0..count {
            values.push(value);
            value = value.map(|value| value + step);
        }
    }
    Ok(values)
}

/// Reads one word: the first value (nothing is a gap), what is added each time, and how many follow; of gaps, how many.
fn parse(word: &str) -> Option<(Option<f64>, f64, usize)> {
    if let Some(gaps) = word.strip_prefix('_') {
        return Some((None, 0.0, if gaps.is_empty() { 1 } else { times(gaps.strip_prefix('x')?)? }));
    }
    if word == "stale" {
        return Some((Some(STALE), 0.0, 0));
    }
    let (start, rest) = number(word)?;
    if rest.is_empty() {
        return Some((Some(start), 0.0, 0));
    }
    let (step, rest) = if rest.starts_with(['+', '-']) { number(rest)? } else { (0.0, rest) };
    Some((Some(start), step, times(rest.strip_prefix('x')?)?))
}

fn times(text: &str) -> Option<usize> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Reads a number with its sign at the beginning and returns what follows it.
fn number(text: &str) -> Option<(f64, &str)> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => (-1.0, &text[1..]),
        b'+' => (1.0, &text[1..]),
        _ => (1.0, text),
    };
    let name = digits.bytes().take_while(u8::is_ascii_alphanumeric).count();
    if let Some(value) = match digits[..name].to_ascii_lowercase().as_str() {
        "inf" => Some(f64::INFINITY),
        "nan" => Some(f64::NAN),
        _ => None,
    } {
        return Some((sign * value, &digits[name..]));
    }
    let bytes = digits.as_bytes();
    let skip = |from: usize| from + bytes[from.min(bytes.len())..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut end = skip(0);
    if bytes.get(end) == Some(&b'.') {
        end = skip(end + 1);
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let signed = end + 1 + usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        end = skip(signed);
    }
    let value: f64 = digits[..end].parse().ok()?;
    Some((sign * value, &digits[end..]))
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// The samples of a series in a unit test.
    pub fn samples(text: &str) {
        assert!(expand(text, 1000).map_or(true, |samples| samples.len() <= 1000));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::window::is_stale;

    /// `tests/it/rules/unit.rs` asks promtool itself about the notation.
    #[test]
    fn values_expand_as_promtool_expands_them() {
        for (text, wanted) in [
            ("", ""),
            ("1 2.5 -3 +4 .5 1e3 1e-1", "1 2.5 -3 4 0.5 1000 0.1"),
            ("-2+4x3", "-2 2 6 10"),
            (" 1-2x4 ", "1 -1 -3 -5 -7"),
            ("1x4", "1 1 1 1 1"),
            ("1 _x3 stale", "1 _ _ _ stale"),
            ("_ _x0 _x1", "_ _"),
            ("7x0 1e2+1e1x1", "7 100 110"),
            ("NaN Inf -inf", "NaN inf -inf"),
        ] {
            let values = expand(text, 100).unwrap_or_else(|error| panic!("{text}: {error}"));
            let shown = values.iter().map(|value| match value {
                None => "_".to_owned(),
                Some(value) if is_stale(*value) => "stale".to_owned(),
                Some(value) => value.to_string(),
            });
            assert_eq!(shown.collect::<Vec<_>>().join(" "), wanted, "{text}");
        }
    }

    #[test]
    fn what_is_no_value_is_named() {
        for word in ["x", "1x", "1+2", "1+-2x3", "0x10y", "stalex3", "_3", "__", "1_", "2x1.5", "2x-1", "e5", "1+x3", "{}", "1,2", "1x1x1"]
        {
            let error = expand(&format!("1 {word} 2"), 100).expect_err(word);
            assert!(error.contains(&format!("found {word:?}")), "{error}");
        }
        assert!(expand("1x99", 100).is_ok());
        for bomb in ["1x100", "_x18446744073709551615", "1x18446744073709551615", "1x60 1x60"] {
            assert!(expand(bomb, 100).expect_err(bomb).contains("at most 1000000 samples"), "{bomb}");
        }
        assert!(expand("{{schema:1 sum:2}}", 100).expect_err("no").contains("native histograms"));
    }
}
