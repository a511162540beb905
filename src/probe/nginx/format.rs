//! A `log_format` of nginx, and what a line of it says.
//!
//! Values are whatever a client sent, but nginx writes `"`, `\` and all that is not printable as `\xNN` (or, with
//! `escape=json`, as JSON does), so what stands between quotes ends at the next one.

use memchr::memmem::Finder;

use crate::model::Problems;
use crate::model::decode::{Decode, mismatch};
use crate::model::yaml::Node;

/// nginx's own format, where none is named.
const COMBINED: &str =
    r#"$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer" "$http_user_agent""#;

/// The most variables of a format.
const MAX_VARIABLES: usize = 64;

/// What Proctor's own requests call themselves.
const OWN_AGENT: &[u8] = b"Proctor/";

/// What of a line is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Line {
    /// The first digit of the status: 1 to 5; 0 for any other status.
    pub class: u8,
    /// Bytes of the answer.
    pub bytes: Option<u64>,
    /// Seconds from the first byte of the request to the last of the answer.
    pub request_time: Option<f64>,
    /// Seconds until the servers behind nginx had answered, together; nothing where none was asked.
    pub upstream_time: Option<f64>,
    /// Whether Proctor itself asked.
    pub own: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variable {
    Status,
    Bytes,
    RequestTime,
    UpstreamTime,
    Agent,
    Other,
}

/// A format, ready to read lines.
#[derive(Clone, Debug)]
pub struct LogFormat {
    /// What stands before the first variable.
    begin: Box<[u8]>,
    /// Each variable, and what stands after it.
    parts: Vec<(Variable, Finder<'static>)>,
}

impl Decode for LogFormat {
    const EXPECTED: &'static str = "combined, or the text of nginx's log_format with $status in it";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let Some(text) = String::decode(node, &mut Problems::default()) else {
            mismatch(node, Self::EXPECTED, problems);
            return None;
        };
        Self::new(&text).map_err(|why| problems.push(node.at, why)).ok()
    }
}

impl LogFormat {
    /// Reads a format as it stands in nginx's configuration, its quotes removed.
    ///
    /// # Errors
    /// It has no `$status`, or where one variable ends cannot be told.
    pub fn new(text: &str) -> Result<Self, String> {
        let text = if text == "combined" { COMBINED } else { text };
        let mut pieces = text.split('$');
        let begin = pieces.next().unwrap_or_default().as_bytes().into();
        let mut parts = Vec::new();
        let mut names = Vec::new();
        let mut pieces = pieces.peekable();
        while let Some(piece) = pieces.next() {
            let word = |text: &str| text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
            let (name, after) = match piece.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
                Some(braced) => braced,
                None => piece.split_at(word(piece)),
            };
            if name.is_empty() {
                return Err(format!("expected the name of a variable after $, found {:?}", piece.chars().take(20).collect::<String>()));
            }
            if after.is_empty() && pieces.peek().is_some() {
                return Err(format!("expected something between ${name} and the next variable, by which its end is told"));
            }
            let variable = match name {
                "status" => Variable::Status,
                "body_bytes_sent" => Variable::Bytes,
                "request_time" => Variable::RequestTime,
                "upstream_response_time" => Variable::UpstreamTime,
                "http_user_agent" => Variable::Agent,
                _ => Variable::Other,
            };
            names.push(variable);
            parts.push((variable, Finder::new(after.as_bytes()).into_owned()));
        }
        if !names.contains(&Variable::Status) {
            return Err("expected combined, or a log_format with $status in it".to_owned());
        }
        if parts.len() > MAX_VARIABLES {
            return Err(format!("expected at most {MAX_VARIABLES} variables, found {}", parts.len()));
        }
        Ok(Self { begin, parts })
    }

    /// Says whether lines tell how long a request took.
    pub fn has_request_time(&self) -> bool {
        self.has(Variable::RequestTime)
    }

    /// Says whether lines tell how long the servers behind nginx took.
    pub fn has_upstream_time(&self) -> bool {
        self.has(Variable::UpstreamTime)
    }

    fn has(&self, wanted: Variable) -> bool {
        self.parts.iter().any(|(variable, _)| *variable == wanted)
    }

    /// Reads a line; nothing where it is not of this format.
    pub fn read(&self, line: &[u8]) -> Option<Line> {
        let mut rest = line.strip_prefix(&*self.begin)?;
        let mut read = Line::default();
        for (variable, after) in &self.parts {
            let end = match (variable, after.needle()) {
                (Variable::UpstreamTime, after) => {
                    let (end, sum) = upstream(rest)?;
                    read.upstream_time = sum;
                    rest.get(end..)?.starts_with(after).then_some(end)?
                }
                (_, []) => rest.len(),
                // One byte, as most are: looking for it costs less without a machine built for the search.
                (_, [byte]) => memchr::memchr(*byte, rest)?,
                _ => after.find(rest)?,
            };
            let value = &rest[..end];
            match variable {
                Variable::Status => read.class = class(value)?,
                Variable::Bytes => read.bytes = number(value),
                Variable::RequestTime => read.request_time = Some(seconds(value)?),
                Variable::Agent => read.own = value.starts_with(OWN_AGENT),
                Variable::UpstreamTime | Variable::Other => {}
            }
            rest = &rest[end + after.needle().len()..];
        }
        Some(read)
    }
}

/// Three digits. nginx writes 000 where it closed without an answer, and 009 for HTTP/0.9.
fn class(value: &[u8]) -> Option<u8> {
    match value {
        [class, b'0'..=b'9', b'0'..=b'9'] if class.is_ascii_digit() => Some(if (b'1'..=b'5').contains(class) { class - b'0' } else { 0 }),
        _ => None,
    }
}

fn number(value: &[u8]) -> Option<u64> {
    (value.len() <= 15 && !value.is_empty())
        .then(|| value.iter().try_fold(0, |sum, byte| byte.is_ascii_digit().then(|| sum * 10 + u64::from(byte - b'0'))))?
}

/// `0.123`: digits, a point, digits.
fn seconds(value: &[u8]) -> Option<f64> {
    let point = memchr::memchr(b'.', value)?;
    let (whole, thousandths) = (number(&value[..point])?, number(&value[point + 1..])?);
    Some(whole as f64 + thousandths as f64 / 10f64.powi((value.len() - point - 1) as i32))
}

/// `0.001`, `-`, and several, separated by `, ` and ` : ` (`ngx_http_upstream_response_time_variable`). Returns where it
/// ends and the sum of the numbers.
fn upstream(text: &[u8]) -> Option<(usize, Option<f64>)> {
    let mut end = 0;
    let mut sum = None;
    loop {
        let rest = &text[end..];
        if rest.first() == Some(&b'-') {
            end += 1;
        } else {
            let length = rest.iter().position(|byte| !byte.is_ascii_digit() && *byte != b'.').unwrap_or(rest.len());
            sum = Some(sum.unwrap_or(0.0) + seconds(&rest[..length])?);
            end += length;
        }
        match &text[end..] {
            [b',', b' ', ..] => end += 2,
            [b' ', b':', b' ', ..] => end += 3,
            _ => return Some((end, sum)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_combined_are_read_whatever_clients_sent() {
        let format = LogFormat::new("combined").unwrap();
        let agent = "\"-\" \"Mozilla/5.0 (X11; Linux) [en] 200\"";
        for (line, wanted) in [
            (format!(r#"10.0.0.1 - - [25/Nov/2026:21:00:00 +0000] "GET /a?b=c HTTP/1.1" 200 612 {agent}"#), Some((2, 612))),
            (format!(r#"::1 - bob [x] smith [25/Nov/2026:21:00:00 +0000] "GET / HTTP/2.0" 503 0 {agent}"#), Some((5, 0))),
            // What TLS and scanners send to a plain port.
            (r#"1.2.3.4 - - [25/Nov/2026:21:00:00 +0000] "\x16\x03\x01\x00{{ 200 }}\x22 500 1" 400 150 "-" "-""#.to_owned(), Some((4, 150))),
            (r#"1.2.3.4 - - [25/Nov/2026:21:00:00 +0000] "" 000 0 "-" "-""#.to_owned(), Some((0, 0))),
            (r#"1.2.3.4 - - [25/Nov/2026:21:00:00 +0000] "-" 009 0 "-" "-""#.to_owned(), Some((0, 0))),
            (r#"1.2.3.4 - - [25/Nov/2026:21:00:00 +0000] "GET /" 20"#.to_owned(), None),
            (r#"1.2.3.4 - - [25/Nov/2026:21:00:00 +0000] "GET /" abc 5 "-" "-""#.to_owned(), None),
            (String::new(), None),
            ("\u{1b}[31m{{ .Values }}".to_owned(), None),
        ] {
            let found = format.read(line.as_bytes());
            assert_eq!(found.map(|line| (line.class, line.bytes.unwrap_or(9))), wanted, "{line}");
        }
        assert_eq!(format.read(&[0xff; 3000]), None);
        let own = r#"::1 - - [25/Nov/2026:21:00:00 +0000] "GET / HTTP/1.1" 200 6 "-" "Proctor/0.1.0""#;
        assert!(format.read(own.as_bytes()).unwrap().own);
        assert!(!format.has_request_time() && !format.has_upstream_time());
    }

    #[test]
    fn times_are_read_with_every_server_that_was_asked() {
        let formats = [
            (r"$status ${request_time}s $upstream_response_time $host", "200 1.250s UP example.org"),
            (r#"rt=$request_time urt="$upstream_response_time" $status"#, r#"rt=1.250 urt="UP" 200"#),
            (r#"{"t":"$request_time","s":$status,"u":"$upstream_response_time"}"#, r#"{"t":"1.250","s":200,"u":"UP"}"#),
        ];
        for (format, line) in formats {
            let format = LogFormat::new(format).unwrap();
            assert!(format.has_request_time() && format.has_upstream_time());
            for (up, wanted) in [("0.500", Some(0.5)), ("-", None), ("0.250, 0.500", Some(0.75)), ("0.001, - : 0.002", Some(0.003))] {
                let read = format.read(line.replace("UP", up).as_bytes()).unwrap();
                assert_eq!((read.class, read.request_time, read.upstream_time), (2, Some(1.25), wanted), "{line} {up}");
            }
            for up in ["", "nan", "1e9", "-1", "0.1,", ", ", "9999999999999999999.0", "..", "0.1 : "] {
                assert_eq!(format.read(line.replace("UP", up).as_bytes()), None, "{line} {up}");
            }
        }
    }

    #[test]
    fn a_format_in_which_nothing_can_be_found_is_refused() {
        for (text, why) in [
            ("main", "with $status in it"),
            ("$remote_addr", "with $status in it"),
            ("$a$status", "expected something between $a and the next variable"),
            ("$status $ ", "expected the name of a variable after $"),
            (&"$status ".repeat(65), "expected at most 64 variables, found 65"),
        ] {
            let error = LogFormat::new(text).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_the_reading_panic(line: Vec<u8>, text in "[$ -~]{0,40}\\$status[ -~]{0,40}") {
            for format in [LogFormat::new("combined"), LogFormat::new("$status $upstream_response_time, $request_time"), LogFormat::new(&text)] {
                let own = format.as_ref().ok().and_then(|format| format.read(&line));
                let after = format.ok().and_then(|format| format.read(&[b"200 ", &*line].concat()));
                proptest::prop_assert!(own.into_iter().chain(after).all(|line| line.class <= 5));
            }
        }
    }
}
