//! Label sets, their identity, and the matchers that select them.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The label that holds a sample's metric name.
pub const NAME: &str = "__name__";

/// A label set, sorted by name, without duplicates and without empty values (to Prometheus they are the same as absent).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "std::collections::BTreeMap<String, String>", into = "std::collections::BTreeMap<String, String>")]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

/// The identity of a label set: FNV-1a over its sorted names and values, the same on every host and after every restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fingerprint(pub u64);

/// Sixteen hexadecimal digits, as Alertmanager prints fingerprints.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// FNV-1a, 64 bits: small, without state, and stable over versions, unlike the standard library's hasher.
pub fn fnv1a(parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for part in parts {
        for byte in part.as_ref().iter().copied().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

impl Labels {
    /// Builds a label set: sorts, drops empty values; of two with one name the later wins.
    pub fn new<N: Into<Arc<str>>, V: Into<Arc<str>>>(pairs: impl IntoIterator<Item = (N, V)>) -> Self {
        let map: std::collections::BTreeMap<Arc<str>, Arc<str>> =
            pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self(map.into_iter().filter(|(_, value)| !value.is_empty()).collect())
    }

    /// Returns the value of a label, if it is there.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.binary_search_by(|(have, _)| (**have).cmp(name)).ok().map(|index| &*self.0[index].1)
    }

    /// Iterates over names and values, sorted by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> + Clone {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Iterates over the shared names and values, to build other sets without copying text.
    pub fn shared(&self) -> impl ExactSizeIterator<Item = (Arc<str>, Arc<str>)> + '_ {
        self.0.iter().cloned()
    }

    /// Returns this set with `pairs` put over it; an empty value removes the label.
    pub fn with<N: Into<Arc<str>>, V: Into<Arc<str>>>(&self, pairs: impl IntoIterator<Item = (N, V)>) -> Self {
        Self::new(self.shared().chain(pairs.into_iter().map(|(name, value)| (name.into(), value.into()))))
    }

    /// Returns this set without the labels that `drop` names.
    pub fn without(&self, drop: impl Fn(&str) -> bool) -> Self {
        Self(self.0.iter().filter(|(name, _)| !drop(name)).cloned().collect())
    }

    /// Returns the number of labels.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Says whether there is no label.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the identity of this set.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint(fnv1a(self.0.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()])))
    }
}

impl From<std::collections::BTreeMap<String, String>> for Labels {
    fn from(map: std::collections::BTreeMap<String, String>) -> Self {
        Self::new(map)
    }
}

impl From<Labels> for std::collections::BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }
}

/// `{a="1", b="2"}`, values escaped as in the exposition format; a metric name stands in front.
impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = self.get(NAME) {
            f.write_str(name)?;
        }
        let mut separator = "{";
        for (name, value) in self.iter().filter(|(name, _)| *name != NAME) {
            write!(f, "{separator}{name}=\"{}\"", value.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\""))?;
            separator = ", ";
        }
        match (separator, self.get(NAME)) {
            ("{", Some(_)) => Ok(()),
            ("{", None) => f.write_str("{}"),
            _ => f.write_str("}"),
        }
    }
}

/// How a matcher compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MatchOp {
    /// `=`
    Equal,
    /// `!=`
    NotEqual,
    /// `=~`, anchored at both ends, `.` matches a newline
    Regex,
    /// `!~`
    NotRegex,
}

/// A condition on one label. A label that is absent has the empty value.
#[derive(Clone, Debug)]
pub struct Matcher {
    /// The label's name.
    pub name: String,
    /// How it is compared.
    pub op: MatchOp,
    /// The value, or the source of the regular expression.
    pub value: String,
    regex: Option<regex::Regex>,
}

/// Why a text is no matcher.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MatcherError {
    /// The text has no operator or no name, or its quotes do not close.
    #[error("expected a matcher such as alertname=\"DiskFull\" or probe=~\"web.*\", found {0:?}")]
    Syntax(String),
    /// The regular expression is none.
    #[error("{0:?} is no regular expression: {1}")]
    Regex(String, String),
}

impl Matcher {
    /// Builds a matcher; a regular expression is anchored at both ends.
    ///
    /// # Errors
    /// A regular expression that does not compile, or would need more than 1 MiB.
    pub fn new(name: impl Into<String>, op: MatchOp, value: impl Into<String>) -> Result<Self, MatcherError> {
        let (name, value) = (name.into(), value.into());
        let regex = match op {
            MatchOp::Equal | MatchOp::NotEqual => None,
            MatchOp::Regex | MatchOp::NotRegex => {
                Some(regex::RegexBuilder::new(&format!("^(?s:{value})$")).size_limit(1 << 20).build().map_err(|error| {
                    MatcherError::Regex(value.clone(), error.to_string().lines().last().unwrap_or("").trim().to_owned())
                })?)
            }
        };
        Ok(Self { name, op, value, regex })
    }

    /// Parses one matcher as Alertmanager writes it: `name="value"`, `name!=value`, `name=~"a|b"`, `name!~x`.
    ///
    /// # Errors
    /// See [`MatcherError`].
    pub fn parse(text: &str) -> Result<Self, MatcherError> {
        let wrong = || MatcherError::Syntax(text.chars().take(80).collect());
        let text = text.trim();
        let at = text.find(['=', '!']).ok_or_else(wrong)?;
        let (name, rest) = (text[..at].trim(), &text[at..]);
        let valid = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        if name.is_empty() || !name.chars().all(valid) || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(wrong());
        }
        let (op, value) = [("=~", MatchOp::Regex), ("!~", MatchOp::NotRegex), ("!=", MatchOp::NotEqual), ("=", MatchOp::Equal)]
            .into_iter()
            .find_map(|(sign, op)| rest.strip_prefix(sign).map(|value| (op, value.trim())))
            .ok_or_else(wrong)?;
        let value = match value.strip_prefix('"') {
            None if value.contains('"') => return Err(wrong()),
            None => value.to_owned(),
            Some(_) => serde_json::from_str::<String>(value).map_err(|_| wrong())?,
        };
        Self::new(name, op, value)
    }

    /// Says whether a value matches.
    pub fn matches_value(&self, value: &str) -> bool {
        match (self.op, &self.regex) {
            (MatchOp::Equal, _) => self.value == value,
            (MatchOp::NotEqual, _) => self.value != value,
            (MatchOp::Regex, Some(regex)) => regex.is_match(value),
            (MatchOp::NotRegex, Some(regex)) => !regex.is_match(value),
            (MatchOp::Regex | MatchOp::NotRegex, None) => false,
        }
    }

    /// Says whether a label set matches.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.matches_value(labels.get(&self.name).unwrap_or(""))
    }
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.op {
            MatchOp::Equal => "=",
            MatchOp::NotEqual => "!=",
            MatchOp::Regex => "=~",
            MatchOp::NotRegex => "!~",
        };
        // JSON's escapes, which `parse` reads; Rust's own would not come back.
        write!(f, "{}{sign}{}", self.name, serde_json::Value::from(self.value.as_str()))
    }
}

impl PartialEq for Matcher {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, self.op, &self.value) == (&other.name, other.op, &other.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_sets_are_sorted_and_an_empty_value_is_no_label() {
        let labels = Labels::new([("b", "2"), ("a", "1"), ("c", "")]);
        assert_eq!(labels.to_string(), r#"{a="1", b="2"}"#);
        assert_eq!(labels.with([("a", "")]).to_string(), r#"{b="2"}"#);
        assert_eq!(labels.fingerprint(), Labels::new([("a", "1"), ("b", "2")]).fingerprint());
        assert_ne!(Labels::new([("ab", "c")]).fingerprint(), Labels::new([("a", "bc")]).fingerprint());
    }

    #[test]
    fn matchers_are_read_as_alertmanager_writes_them() {
        let labels = Labels::new([("probe", "web-1"), ("text", "a\nb")]);
        for (text, wanted) in [
            ("probe=web-1", true),
            (r#"probe="web-1""#, true),
            ("probe!=web-1", false),
            ("probe=~web", false),
            (r#"probe=~"web.*""#, true),
            ("text=~a.b", true),
            ("absent=", true),
            ("absent!~.+", true),
        ] {
            assert_eq!(Matcher::parse(text).expect(text).matches(&labels), wanted, "{text}");
        }
        for value in ["a\"b", "a\\b", "tab\t\u{7f}\u{200b}é'", ""] {
            let matcher = Matcher::new("a", MatchOp::Equal, value).expect("is right");
            assert_eq!(Matcher::parse(&matcher.to_string()).as_ref(), Ok(&matcher), "what is printed can be read");
        }
        for text in ["", "probe", "=x", "a b=c", r#"a="b"#, "1a=b", "a=~("] {
            assert!(Matcher::parse(text).is_err(), "{text}");
        }
    }
}
