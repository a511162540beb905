//! Expands the texts of rules: the part of Go's text/template that nearly all public rules use, with its exact output.
//!
//! `$labels.x`, `$value`, `$externalLabels.x`, `$externalURL` and their dotted forms, literals, parentheses, pipes and
//! [`FUNCTIONS`]. Everything else that Prometheus knows is refused by its name when a file is loaded. What a label
//! holds is text: `{{` in it is never expanded again.

use super::format::{check_format, go_float, humanize, humanize_duration, humanize_timestamp, humanize1024, printf, title};
use crate::model::Labels;

/// The longest text that comes out of one template, in bytes; longer ones are cut.
pub const MAX_EXPANDED: usize = 16 * 1024;
/// The deepest nesting of parentheses.
const MAX_DEPTH: usize = 16;

/// The functions that are expanded here.
pub const FUNCTIONS: &[&str] =
    &["humanize", "humanize1024", "humanizeDuration", "humanizePercentage", "humanizeTimestamp", "printf", "title", "toLower", "toUpper"];

/// What Prometheus expands and we do not: Go's keywords and functions, and Prometheus' own.
const UNSUPPORTED: &[&str] = &[
    "if",
    "else",
    "end",
    "range",
    "with",
    "define",
    "template",
    "block",
    "break",
    "continue",
    "and",
    "or",
    "not",
    "print",
    "println",
    "html",
    "js",
    "len",
    "index",
    "slice",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "call",
    "urlquery",
    "query",
    "first",
    "label",
    "value",
    "strvalue",
    "args",
    "reReplaceAll",
    "safeHtml",
    "match",
    "graphLink",
    "tableLink",
    "sortByLabel",
    "stripPort",
    "stripDomain",
    "parseDuration",
    "toTime",
    "toDuration",
    "now",
    "pathPrefix",
    "externalURL",
    "tmpl",
    "true",
    "false",
    "nil",
    "urlQueryEscape",
];

/// Why a text is no template of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TemplateError {
    /// Where in the text, in bytes.
    pub offset: usize,
    /// What was expected, what was found.
    pub message: String,
}

/// What a template may name.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// `$labels`: the labels of the sample, `__name__` among them.
    pub labels: &'a Labels,
    /// `$value`.
    pub value: f64,
    /// `$externalLabels`.
    pub external_labels: &'a Labels,
    /// `$externalURL`.
    pub external_url: &'a str,
}

/// A text that was read and can be expanded.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    source: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Action(Pipeline),
}

#[derive(Clone, Debug, PartialEq)]
struct Pipeline(Vec<Command>);

#[derive(Clone, Debug, PartialEq)]
enum Command {
    Value(Operand),
    Call(&'static str, Vec<Operand>),
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Labels,
    Label(String),
    ExternalLabels,
    ExternalLabel(String),
    ExternalUrl,
    Value,
    Literal(Val),
    Group(Pipeline),
}

/// A value while it goes through the pipes, with the type that Go would give it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Val {
    Text(String),
    Int(i64),
    Float(f64),
    Map(Labels),
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// What is wrong, or what Prometheus would accept and we do not, with its place in the text.
    pub fn parse(source: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let (mut at, mut trim_next) = (0, false);
        while let Some(open) = source[at..].find("{{").map(|found| at + found) {
            let after = &source[open + 2..];
            let trim_before = after.starts_with('-') && after[1..].starts_with([' ', '\t', '\r', '\n']);
            push_text(&mut parts, &source[at..open], trim_next, trim_before);
            let begin = open + 2 + usize::from(trim_before);
            if let Some(comment) = source[begin..].trim_start().strip_prefix("/*") {
                let start = source.len() - comment.len();
                let close = comment.find("*/").ok_or_else(|| wrong(open, "this comment is not closed"))?;
                let rest = &source[start + close + 2..];
                let tail = rest.trim_start();
                let (tail, trim) = tail.strip_prefix('-').map_or((tail, false), |tail| (tail, true));
                if !tail.starts_with("}}") {
                    return Err(wrong(open, "expected }} after the comment"));
                }
                (at, trim_next) = (source.len() - tail.len() + 2, trim);
                continue;
            }
            let mut reader = Reader { source, at: begin, open, depth: 0 };
            parts.push(Part::Action(reader.pipeline()?));
            reader.spaces();
            let rest = &source[reader.at..];
            (at, trim_next) = if rest.starts_with("}}") {
                (reader.at + 2, false)
            } else if rest.starts_with("-}}") {
                (reader.at + 3, true)
            } else {
                return Err(reader.unexpected("}}"));
            };
        }
        push_text(&mut parts, &source[at..], trim_next, false);
        Ok(Self { source: source.to_owned(), parts })
    }

    /// Returns the text as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Expands the template, at most to [`MAX_EXPANDED`] bytes. An error becomes the text, as in Prometheus:
    /// `<error expanding template: …>`.
    pub fn expand(&self, facts: &Facts<'_>) -> String {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(literal) => text.push_str(literal),
                Part::Action(pipeline) => match pipeline.run(facts) {
                    Ok(value) => text.push_str(&value.print()),
                    Err(error) => return format!("<error expanding template: {error}>"),
                },
            }
        }
        if text.len() > MAX_EXPANDED {
            let cut = (0..=MAX_EXPANDED).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
            text.truncate(cut);
        }
        text
    }
}

fn push_text(parts: &mut Vec<Part>, text: &str, trim_start: bool, trim_end: bool) {
    const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];
    let text = if trim_start { text.trim_start_matches(SPACE) } else { text };
    let text = if trim_end { text.trim_end_matches(SPACE) } else { text };
    if !text.is_empty() {
        parts.push(Part::Text(text.to_owned()));
    }
}

fn wrong(offset: usize, message: impl Into<String>) -> TemplateError {
    TemplateError { offset, message: message.into() }
}

/// Reads one action.
struct Reader<'a> {
    source: &'a str,
    at: usize,
    open: usize,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn spaces(&mut self) {
        self.at = self.source.len() - self.rest().trim_start_matches([' ', '\t', '\r', '\n']).len();
    }

    fn ends(&self) -> bool {
        let rest = self.rest();
        rest.is_empty() || rest.starts_with("}}") || rest.starts_with("-}}") || rest.starts_with(['|', ')'])
    }

    fn unexpected(&self, expected: &str) -> TemplateError {
        match self.rest().chars().next() {
            None => wrong(self.open, "this action is not closed: expected }}"),
            Some(_) if self.rest().starts_with(":=") => unsupported(self.at, ":="),
            Some(_) if self.rest().starts_with("}}") => wrong(self.at, format!("expected {expected}, found }}}}")),
            Some(found) => wrong(self.at, format!("expected {expected}, found {found:?}")),
        }
    }

    fn pipeline(&mut self) -> Result<Pipeline, TemplateError> {
        let mut commands = Vec::new();
        loop {
            self.spaces();
            let at = self.at;
            let command = self.command()?;
            if !commands.is_empty() && matches!(command, Command::Value(_)) {
                return Err(wrong(at, "expected a function after |"));
            }
            commands.push(command);
            self.spaces();
            if self.rest().starts_with('|') {
                self.at += 1;
            } else {
                return Ok(Pipeline(commands));
            }
        }
    }

    fn command(&mut self) -> Result<Command, TemplateError> {
        let at = self.at;
        let word: &str = word(self.rest());
        if !word.is_empty() && !word.starts_with(|c: char| c.is_ascii_digit()) {
            let Some(function) = FUNCTIONS.iter().find(|name| **name == word) else {
                return Err(if UNSUPPORTED.contains(&word) {
                    unsupported(at, word)
                } else {
                    wrong(at, format!("function {word:?} is not defined; defined here: {}", FUNCTIONS.join(", ")))
                });
            };
            self.at += word.len();
            let mut arguments = Vec::new();
            loop {
                self.spaces();
                if self.ends() {
                    break;
                }
                arguments.push(self.operand()?);
            }
            if let ("printf", Some(Operand::Literal(Val::Text(format)))) = (*function, arguments.first()) {
                check_format(format).map_err(|why| wrong(at, why))?;
            }
            return Ok(Command::Call(function, arguments));
        }
        let value = self.operand()?;
        self.spaces();
        if self.ends() { Ok(Command::Value(value)) } else { Err(self.unexpected("| or }}")) }
    }

    fn operand(&mut self) -> Result<Operand, TemplateError> {
        let at = self.at;
        let rest = self.rest();
        let operand = match rest.chars().next() {
            Some('(') => {
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return Err(wrong(at, format!("expected at most {MAX_DEPTH} nested parentheses, found more")));
                }
                self.at += 1;
                let inner = self.pipeline()?;
                if !self.rest().starts_with(')') {
                    return Err(self.unexpected(")"));
                }
                self.at += 1;
                self.depth -= 1;
                Operand::Group(inner)
            }
            Some('"') => Operand::Literal(Val::Text(self.quoted()?)),
            Some('`') => {
                let close = rest[1..].find('`').ok_or_else(|| wrong(at, "this text is not closed: expected `"))?;
                self.at += close + 2;
                Operand::Literal(Val::Text(rest[1..=close].to_owned()))
            }
            Some('$' | '.') if !rest[1..].starts_with(|c: char| c.is_ascii_digit()) => self.named()?,
            Some(c) if c.is_ascii_digit() || matches!(c, '-' | '+' | '.') => {
                let length = rest
                    .char_indices()
                    .position(|(i, c)| {
                        !(c.is_ascii_alphanumeric()
                            || matches!(c, '.' | '_')
                            || (matches!(c, '-' | '+') && (i == 0 || rest[..i].ends_with(['e', 'E']))))
                    })
                    .unwrap_or(rest.len());
                let text = &rest[..length];
                self.at += length;
                match (text.parse::<i64>(), text.parse::<f64>()) {
                    (Ok(whole), _) => Operand::Literal(Val::Int(whole)),
                    (_, Ok(number)) if number.is_finite() => Operand::Literal(Val::Float(number)),
                    _ => return Err(wrong(at, format!("expected a number, found {text:?}"))),
                }
            }
            _ => {
                let found = word(rest);
                if UNSUPPORTED.contains(&found) {
                    return Err(unsupported(at, found));
                }
                return Err(if FUNCTIONS.contains(&found) {
                    wrong(at, format!("expected a value, found the function {found:?}: put it and its arguments in parentheses"))
                } else {
                    self.unexpected("a value")
                });
            }
        };
        // Go wants a space between two operands, and knows no field of a text or number.
        if self.rest().starts_with(|c: char| !matches!(c, ' ' | '\t' | '\r' | '\n' | '|' | ')' | '}' | '-')) {
            return Err(self.unexpected("a space, | or }}"));
        }
        Ok(operand)
    }

    /// Reads `$labels`, `$labels.x`, `.Labels.x` and the like.
    fn named(&mut self) -> Result<Operand, TemplateError> {
        let at = self.at;
        let name = word(&self.rest()[1..]);
        let root = &self.rest()[..=name.len()];
        self.at += root.len();
        let map = matches!(root, "$labels" | ".Labels" | "$externalLabels" | ".ExternalLabels");
        let mut key = "";
        if map && self.rest().starts_with('.') {
            key = word(&self.rest()[1..]);
            if key.is_empty() {
                return Err(wrong(self.at, format!("expected the name of a label after {root}.")));
            }
            self.at += 1 + key.len();
        }
        Ok(match (root, key) {
            ("$labels" | ".Labels", "") => Operand::Labels,
            ("$labels" | ".Labels", key) => Operand::Label(key.to_owned()),
            ("$externalLabels" | ".ExternalLabels", "") => Operand::ExternalLabels,
            ("$externalLabels" | ".ExternalLabels", key) => Operand::ExternalLabel(key.to_owned()),
            ("$value" | ".Value", _) => Operand::Value,
            ("$externalURL" | ".ExternalURL", _) => Operand::ExternalUrl,
            ("." | "$", _) => return Err(unsupported(at, root)),
            _ if self.rest().trim_start().starts_with(":=") => return Err(unsupported(at, ":=")),
            _ => return Err(wrong(at, format!("{root:?} is not defined; defined: $labels, $value, $externalLabels, $externalURL"))),
        })
    }

    fn quoted(&mut self) -> Result<String, TemplateError> {
        let at = self.at;
        let mut text = String::new();
        let mut chars = self.rest()[1..].char_indices();
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += i + 2;
                    return Ok(text);
                }
                '\n' => break,
                '\\' => match chars.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, 't')) => text.push('\t'),
                    Some((_, 'r')) => text.push('\r'),
                    Some((_, c @ ('"' | '\\' | '\''))) => text.push(c),
                    Some((i, c)) => return Err(wrong(at + i, format!("expected \\n, \\t, \\r, \\\" or \\\\ in a text, found \\{c}"))),
                    None => break,
                },
                c => text.push(c),
            }
        }
        Err(wrong(at, "this text is not closed: expected \""))
    }
}

fn word(text: &str) -> &str {
    &text[..text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len())]
}

fn unsupported(offset: usize, what: &str) -> TemplateError {
    let supported = FUNCTIONS.join(" ");
    wrong(
        offset,
        format!(
            "{what:?} is not supported here; Prometheus accepts it. Supported: $labels.x $value $externalLabels.x $externalURL, pipes, {supported}"
        ),
    )
}

impl Pipeline {
    fn run(&self, facts: &Facts<'_>) -> Result<Val, String> {
        let mut last = None;
        for command in &self.0 {
            last = Some(match command {
                Command::Value(operand) => operand.get(facts)?,
                Command::Call(name, operands) => {
                    let mut values = operands.iter().map(|operand| operand.get(facts)).collect::<Result<Vec<_>, _>>()?;
                    values.extend(last.take());
                    call(name, &values).map_err(|why| format!("error calling {name}: {why}"))?
                }
            });
        }
        last.ok_or_else(|| "an empty action".to_owned())
    }
}

impl Operand {
    fn get(&self, facts: &Facts<'_>) -> Result<Val, String> {
        Ok(match self {
            Self::Labels => Val::Map(facts.labels.clone()),
            Self::Label(name) => Val::Text(facts.labels.get(name).unwrap_or("").to_owned()),
            Self::ExternalLabels => Val::Map(facts.external_labels.clone()),
            Self::ExternalLabel(name) => Val::Text(facts.external_labels.get(name).unwrap_or("").to_owned()),
            Self::ExternalUrl => Val::Text(facts.external_url.to_owned()),
            Self::Value => Val::Float(facts.value),
            Self::Literal(value) => value.clone(),
            Self::Group(pipeline) => pipeline.run(facts)?,
        })
    }
}

impl Val {
    /// Prints as Go's `%v`.
    pub(super) fn print(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Int(whole) => whole.to_string(),
            Self::Float(number) => go_float(*number, 'g', None),
            Self::Map(labels) => {
                format!("map[{}]", labels.iter().map(|(name, value)| format!("{name}:{value}")).collect::<Vec<_>>().join(" "))
            }
        }
    }

    /// Converts as Prometheus' `convertToFloat`: numbers, and texts that are numbers.
    fn number(&self) -> Result<f64, String> {
        match self {
            Self::Float(number) => Ok(*number),
            Self::Int(whole) => Ok(*whole as f64),
            Self::Text(text) => text.parse().map_err(|_| format!("{text:?} is no number")),
            Self::Map(_) => Err("a map is no number".to_owned()),
        }
    }

    pub(super) fn go_type(&self) -> &'static str {
        match self {
            Self::Text(_) => "string",
            Self::Int(_) => "int",
            Self::Float(_) => "float64",
            Self::Map(_) => "map[string]string",
        }
    }
}

fn call(name: &str, values: &[Val]) -> Result<Val, String> {
    if name == "printf" {
        let Some((Val::Text(format), arguments)) = values.split_first() else { return Err("expected a text as the format".to_owned()) };
        return printf(format, arguments).map(Val::Text);
    }
    let [value] = values else { return Err(format!("expected 1 argument, found {}", values.len())) };
    let text = match (name, value) {
        ("toUpper", Val::Text(text)) => text.to_uppercase(),
        ("toLower", Val::Text(text)) => text.to_lowercase(),
        ("title", Val::Text(text)) => title(text),
        ("toUpper" | "toLower" | "title", other) => return Err(format!("expected a text, found a {}", other.go_type())),
        ("humanize", value) => humanize(value.number()?),
        ("humanize1024", value) => humanize1024(value.number()?),
        ("humanizeDuration", value) => humanize_duration(value.number()?),
        ("humanizePercentage", value) => go_float(value.number()? * 100.0, 'g', Some(4)) + "%",
        ("humanizeTimestamp", value) => humanize_timestamp(value.number()?)?,
        _ => return Err("is not defined".to_owned()),
    };
    Ok(Val::Text(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_print_what_prometheus_prints() {
        let labels = Labels::new([("probe", "web-1"), ("hostile", "{{ $value }}<b>")]);
        let external = Labels::new([("site", "coursys")]);
        let facts = |value| Facts { labels: &labels, value, external_labels: &external, external_url: "http://p" };
        // The wanted texts are Prometheus' own documentation and the tests of its `template` package.
        for (template, value, wanted) in [
            ("{{ $labels.probe }} is {{ $value }}", 0.0, "web-1 is 0"),
            ("{{ .Labels.probe }} {{ .Value }}", 1.5, "web-1 1.5"),
            ("{{ $labels.absent }}", 0.0, ""),
            ("{{ $externalLabels.site }} {{ $externalURL }}", 0.0, "coursys http://p"),
            ("{{ $labels.hostile }}", 0.0, "{{ $value }}<b>"),
            ("{{ $value | humanize }}", 1_234_567.0, "1.235M"),
            ("{{ $value | humanize }}", 0.00012, "120u"),
            ("{{ $value | humanize1024 }}", 1_048_576.0, "1Mi"),
            ("{{ $value | humanizeDuration }}", 899.99, "14m 59s"),
            ("{{ $value | humanizeDuration }}", 0.0054, "5.4ms"),
            ("{{ $value | humanizeDuration }}", 100_000.0, "1d 3h 46m 40s"),
            ("{{ $value | humanizePercentage }}", 0.1234, "12.34%"),
            ("{{ $value | humanizeTimestamp }}", 1_435_065_584.128, "2015-06-23 13:19:44.128 +0000 UTC"),
            ("{{ printf \"%.2f\" $value }}", 2.71559, "2.72"),
            ("{{ $labels.probe | toUpper }} {{ \"a bc\" | title }}", 0.0, "WEB-1 A Bc"),
        ] {
            assert_eq!(Template::parse(template).expect(template).expand(&facts(value)), wanted, "{template}");
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_by_its_name() {
        for (template, named) in
            [("{{ range query \"up\" }}{{ end }}", "range"), ("{{ nosuch $value }}", "nosuch"), ("{{ $labels.x", "not closed")]
        {
            let error = Template::parse(template).expect_err(template);
            assert!(error.message.contains(named), "{template}: {}", error.message);
        }
    }
}
