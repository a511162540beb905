//! Cuts an expression into tokens with their places.

use std::time::Duration;

use crate::model::duration;

/// What a token is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// A name or a word of the grammar; words are told apart by the parser, since most of them are names too.
    Word,
    /// A number, `Inf` or `NaN`.
    Number(f64),
    /// A duration, which is also a number of seconds.
    Span(Duration),
    /// A text, unquoted.
    Text(String),
    /// An operator, a bracket, a comma, a colon.
    Sign,
    /// What no token begins or ends like this, with the reason.
    Bad(String),
    /// The end of the input.
    End,
}

/// A token: what it is, how it is written, and at which byte it begins.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token<'a> {
    pub kind: Kind,
    pub text: &'a str,
    pub at: usize,
}

/// Every sign of the grammar, longer ones before their beginnings.
const SIGNS: [&str; 24] =
    ["==", "=~", "!=", "!~", "<=", ">=", "=", "<", ">", "+", "-", "*", "/", "%", "^", "(", ")", "{", "}", "[", "]", ",", "@", ":"];

/// Cuts `text` into tokens; the last is [`Kind::End`] or [`Kind::Bad`]. The colon is a sign in brackets only, elsewhere
/// it is part of a name.
pub(super) fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let (mut at, mut in_brackets) = (0, false);
    loop {
        let rest = &text[at..];
        let Some(first) = rest.chars().next() else { break };
        if first.is_ascii_whitespace() {
            at += 1;
            continue;
        }
        if first == '#' {
            at += rest.find('\n').unwrap_or(rest.len());
            continue;
        }
        let follows_digit = first == '.' && rest[1..].starts_with(|c: char| c.is_ascii_digit());
        let (kind, length) = if first.is_ascii_digit() || follows_digit {
            number(rest)
        } else if first.is_ascii_alphabetic() || first == '_' || (first == ':' && !in_brackets) {
            let length = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).unwrap_or(rest.len());
            let word = &rest[..length];
            let number = ["inf", "nan"].iter().position(|name| word.eq_ignore_ascii_case(name));
            (number.map_or(Kind::Word, |index| Kind::Number([f64::INFINITY, f64::NAN][index])), length)
        } else if matches!(first, '"' | '\'' | '`') {
            string(rest, first)
        } else if let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            in_brackets = *sign == "[" || (in_brackets && *sign != "]");
            (Kind::Sign, sign.len())
        } else {
            let advice = if first == '!' { "; \"not equal\" is written !=, \"and not\" is written unless" } else { "" };
            (Kind::Bad(format!("unexpected character {first:?}{advice}")), first.len_utf8())
        };
        let bad = matches!(kind, Kind::Bad(_));
        found.push(Token { kind, text: &rest[..length], at });
        at += length;
        if bad {
            return found;
        }
    }
    found.push(Token { kind: Kind::End, text: "", at: text.trim_end().len() });
    found
}

/// Reads a number or a duration at the beginning of `rest`, which starts with a digit or a point.
fn number(rest: &str) -> (Kind, usize) {
    let mut length = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '_')).unwrap_or(rest.len());
    let hexadecimal = rest.starts_with("0x") || rest.starts_with("0X");
    // The sign of an exponent.
    if !hexadecimal && rest[..length].ends_with(['e', 'E']) && rest[length..].starts_with(['+', '-']) {
        let digits = rest[length + 1..].bytes().take_while(u8::is_ascii_digit).count();
        length += if digits > 0 { digits + 1 } else { 0 };
    }
    let text = &rest[..length];
    let separated = text.contains('_')
        && text.as_bytes().windows(3).any(|of| of[1] == b'_' && !(of[0].is_ascii_hexdigit() && of[2].is_ascii_hexdigit()))
        || text.ends_with('_');
    let plain = text.replace('_', "");
    let value = if separated {
        None
    } else if hexadecimal {
        u64::from_str_radix(&plain[2..], 16).ok().map(|value| value as f64)
    } else if plain.len() > 1 && plain.starts_with('0') && plain.bytes().all(|byte| (b'0'..b'8').contains(&byte)) {
        // As Go reads it, and so Prometheus: a leading zero means octal.
        u64::from_str_radix(&plain, 8).ok().map(|value| value as f64)
    } else if plain.bytes().any(|byte| byte.is_ascii_alphabetic() && !byte.eq_ignore_ascii_case(&b'e')) {
        None
    } else {
        plain.parse().ok()
    };
    let kind = match (value, duration::parse(text)) {
        (Some(value), _) => Kind::Number(value),
        (None, Ok(span)) => Kind::Span(span),
        (None, Err(_)) => {
            Kind::Bad(format!("expected a number such as 0.5 or 1e6, or a duration such as 30s, 5m or 1h30m, found {:?}", clip(text)))
        }
    };
    (kind, length)
}

/// Reads a text with Go's escapes at the beginning of `rest`, which starts with `quote`.
fn string(rest: &str, quote: char) -> (Kind, usize) {
    let unclosed = || (Kind::Bad(format!("the text that begins here has no closing {quote}")), rest.len());
    if quote == '`' {
        return match rest[1..].find('`') {
            Some(end) => (Kind::Text(rest[1..=end].to_owned()), end + 2),
            None => unclosed(),
        };
    }
    let mut bytes = Vec::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((index, c)) = chars.next() {
        match c {
            '\n' => return unclosed(),
            c if c == quote => {
                return match String::from_utf8(bytes) {
                    Ok(text) => (Kind::Text(text), index + 1),
                    Err(_) => (Kind::Bad("this text is no UTF-8 once its escapes are read".to_owned()), index + 1),
                };
            }
            '\\' => {
                let Some((_, escape)) = chars.next() else { return unclosed() };
                let (base, digits) = match escape {
                    'x' => (16, 2),
                    'u' => (16, 4),
                    'U' => (16, 8),
                    '0'..='7' => (8, 2),
                    _ => (0, 0),
                };
                if base > 0 {
                    let start = if base == 8 { escape.to_string() } else { String::new() };
                    let text = chars.by_ref().take(digits).fold(start, |text, (_, c)| text + c.encode_utf8(&mut [0; 4]));
                    let value = u32::from_str_radix(&text, base).ok();
                    let byte = value.and_then(|value| u8::try_from(value).ok()).filter(|_| digits == 2);
                    match (byte, value.filter(|_| digits > 2).and_then(char::from_u32)) {
                        (Some(byte), _) => bytes.push(byte),
                        (None, Some(c)) => bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
                        (None, None) => return (Kind::Bad(format!("this text has the broken escape \\{escape}")), rest.len()),
                    }
                    continue;
                }
                bytes.push(match escape {
                    'a' => 7,
                    'b' => 8,
                    'f' => 12,
                    'n' => b'\n',
                    'r' => b'\r',
                    't' => b'\t',
                    'v' => 11,
                    '\\' => b'\\',
                    c if c == quote => quote as u8,
                    c => {
                        let advice = format!("write \\\\{c} for a backslash in a regular expression, or use backquotes");
                        return (Kind::Bad(format!("this text has the unknown escape \\{c}; {advice}")), rest.len());
                    }
                });
            }
            c => bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    unclosed()
}

/// Cuts a text that goes into a message.
pub(super) fn clip(text: &str) -> String {
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
