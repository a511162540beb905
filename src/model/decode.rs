//! From a YAML tree to values, with every mistake noted and none in the way of the next.
//!
//! serde stops at the first mistake and loses positions behind `flatten` and `tag`; here a field decodes into its value
//! or a positioned problem. A component declares its configuration with [`crate::config_struct!`]: the field's doc
//! comment is its reference, its default is written as the YAML that a person would write.

use std::path::PathBuf;
use std::time::Duration;

use super::duration;
use super::labels::{Labels, Matcher};
use super::problem::{Position, Problems};
use super::yaml::{Node, Value};

/// A type that a YAML node can become.
pub trait Decode: Sized {
    /// What people are told to write: "a duration such as 30s".
    const EXPECTED: &'static str;

    /// Reads the node; notes what is wrong and then returns nothing.
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self>;

    /// Returns the value where the key is absent and has no default; nothing where the key is required.
    fn absent() -> Option<Self> {
        None
    }
}

/// A key of a configuration struct, for the reference and the nearest-key hint.
#[derive(Debug)]
pub struct KeyDoc {
    /// The key as it is written.
    pub name: &'static str,
    /// What it takes.
    pub expected: &'static str,
    /// Its default as YAML; nothing where it is required or optional.
    pub default: Option<&'static str>,
    /// What it is for.
    pub doc: &'static str,
}

/// A configuration struct that can list its keys.
pub trait Documented {
    /// The keys in the order of the struct.
    const KEYS: &'static [KeyDoc];
}

/// Notes "expected …, found …".
pub fn mismatch(node: &Node, expected: &str, problems: &mut Problems) {
    problems.push(node.at, format!("expected {expected}, found {}", node.found()));
}

/// Reads a mapping key by key; what nobody asked for is an unknown key.
#[derive(Debug)]
pub struct Fields<'a> {
    at: Position,
    entries: Vec<(&'a super::yaml::Key, &'a Node, bool)>,
}

impl<'a> Fields<'a> {
    /// Begins with a node that should be a mapping; an empty node is an empty mapping.
    pub fn of(node: &'a Node, expected: &str, problems: &mut Problems) -> Option<Self> {
        match &node.value {
            Value::Mapping(entries) => {
                Some(Self { at: node.at, entries: entries.iter().map(|(key, value)| (key, value, false)).collect() })
            }
            Value::Null => Some(Self { at: node.at, entries: Vec::new() }),
            _ => {
                mismatch(node, expected, problems);
                None
            }
        }
    }

    /// Returns the node of a key and marks the key as known.
    pub fn node(&mut self, name: &str) -> Option<&'a Node> {
        let entry = self.entries.iter_mut().find(|(key, ..)| key.text == name)?;
        entry.2 = true;
        Some(entry.1)
    }

    /// Reads one key: its value, else the default, else what the type says of absence, else a problem.
    pub fn take<T: Decode>(&mut self, name: &str, default: Option<&'static str>, problems: &mut Problems) -> Option<T> {
        let absent_is_empty = T::absent().is_some();
        match (self.node(name), default) {
            (Some(node), default) if !matches!(node.value, Value::Null) || !(absent_is_empty || default.is_some()) => {
                T::decode(node, problems)
            }
            (_, Some(text)) => T::decode(&super::yaml::parse(text, problems)?, problems),
            (Some(_), None) => T::absent(),
            (None, None) => T::absent().or_else(|| {
                problems.push(self.at, format!("key {name:?} is missing: expected {}", T::EXPECTED));
                None
            }),
        }
    }

    /// Notes every key that nobody asked for, with the nearest of those that are known here.
    pub fn finish(self, known: &[&str], problems: &mut Problems) {
        for (key, _, taken) in self.entries {
            if !taken && !key.text.is_empty() {
                problems.push(key.at, unknown("key", &key.text, known));
            }
        }
    }
}

/// The most known names that are listed; of more, the nearest three.
const MAX_KNOWN: usize = 40;

/// Says that a name is not known, with the nearest known one, else all of them, else the nearest three of many.
pub fn unknown(what: &str, found: &str, known: &[&str]) -> String {
    let mut nearest: Vec<(usize, &str)> = known.iter().map(|name| (strsim::damerau_levenshtein(found, name), *name)).collect();
    nearest.sort_unstable();
    nearest.dedup();
    let found: String = found.chars().take(60).collect();
    match nearest.first() {
        Some((distance, name)) if *distance <= 2.max(name.len() / 3) => format!("unknown {what} {found:?}; did you mean {name:?}?"),
        Some(_) if nearest.len() > MAX_KNOWN => {
            // Who leaves out the end or the beginning is nearer than who mistypes.
            let lower = found.to_lowercase();
            let (parts, others): (Vec<&str>, Vec<&str>) =
                nearest.iter().map(|(_, name)| *name).partition(|name| name.to_lowercase().contains(&lower));
            let three: Vec<&str> = parts.into_iter().chain(others).take(3).collect();
            format!("unknown {what} {found:?}; the nearest of {} known here: {}", nearest.len(), three.join(", "))
        }
        Some(_) => format!("unknown {what} {found:?}; known here: {}", known.join(", ")),
        None => format!("unknown {what} {found:?}"),
    }
}

/// A value and its place, for cross-checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where it stands; line 0 where it is a default.
    pub at: Position,
}

impl<T: Decode> Decode for Spanned<T> {
    const EXPECTED: &'static str = T::EXPECTED;
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        T::decode(node, problems).map(|value| Self { value, at: node.at })
    }
}

impl<T> std::ops::Deref for Spanned<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Decode> Decode for Option<T> {
    const EXPECTED: &'static str = T::EXPECTED;
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        T::decode(node, problems).map(Some)
    }
    fn absent() -> Option<Self> {
        Some(None)
    }
}

impl<T: Decode> Decode for Vec<T> {
    const EXPECTED: &'static str = "a list";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let Value::Sequence(items) = &node.value else {
            problems.push(node.at, format!("expected a list, each item {}, found {}", T::EXPECTED, node.found()));
            return None;
        };
        // All items are read before any failure counts, so that each mistake is named.
        let items: Vec<Option<T>> = items.iter().map(|item| T::decode(item, problems)).collect();
        items.into_iter().collect()
    }
}

/// A mapping from names that people choose, in the order of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Named<T>(pub Vec<(Spanned<String>, T)>);

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Decode> Decode for Named<T> {
    const EXPECTED: &'static str = "a mapping from names";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let Value::Mapping(entries) = &node.value else {
            mismatch(node, Self::EXPECTED, problems);
            return None;
        };
        let entries: Vec<_> = entries
            .iter()
            .map(|(key, node)| T::decode(node, problems).map(|value| (Spanned { value: key.text.clone(), at: key.at }, value)))
            .collect();
        entries.into_iter().collect::<Option<Vec<_>>>().map(Self)
    }
}

macro_rules! scalar {
    ($type:ty, $expected:literal, |$text:ident, $plain:ident| $body:expr) => {
        impl Decode for $type {
            const EXPECTED: &'static str = $expected;
            fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
                let value: Option<Self> = match &node.value {
                    Value::Scalar { text: $text, plain: $plain } => {
                        let _ = $plain;
                        $body
                    }
                    _ => None,
                };
                if value.is_none() {
                    mismatch(node, $expected, problems);
                }
                value
            }
        }
    };
}

scalar!(String, "a text", |text, plain| Some(text.clone()));
scalar!(bool, "true or false", |text, plain| match text.as_str() {
    "true" if *plain => Some(true),
    "false" if *plain => Some(false),
    _ => None,
});
scalar!(u64, "a whole number", |text, plain| if *plain { text.parse().ok() } else { None });
scalar!(u32, "a whole number", |text, plain| if *plain { text.parse().ok() } else { None });
// Every one of them is a port.
scalar!(u16, "a port from 1 to 65535", |text, plain| if *plain { text.parse().ok().filter(|port| *port != 0) } else { None });
scalar!(usize, "a whole number", |text, plain| if *plain { text.parse().ok() } else { None });
scalar!(f64, "a number", |text, plain| if *plain { text.parse().ok().filter(|v: &f64| v.is_finite()) } else { None });
scalar!(Duration, "a duration such as 30s, 5m or 1h30m", |text, plain| duration::parse(text).ok());
scalar!(PathBuf, "a path", |text, plain| Some(PathBuf::from(text)).filter(|_| !text.is_empty() && !text.contains('\0')));

impl Decode for regex::Regex {
    const EXPECTED: &'static str = "a regular expression";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let text = String::decode(node, problems)?;
        match regex::RegexBuilder::new(&text).size_limit(1 << 20).build() {
            Ok(regex) => Some(regex),
            Err(error) => {
                let why = error.to_string();
                problems
                    .push(node.at, format!("expected a regular expression, found {text:?}: {}", why.lines().last().unwrap_or("").trim()));
                None
            }
        }
    }
}

impl Decode for Matcher {
    const EXPECTED: &'static str = "a matcher such as alertname=\"DiskFull\"";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let text = String::decode(node, problems)?;
        Matcher::parse(&text).map_err(|error| problems.push(node.at, error.to_string())).ok()
    }
}

impl Decode for Labels {
    const EXPECTED: &'static str = "a mapping from label names to texts";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let valid = |name: &str| {
            name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                && !name.is_empty()
                && !name.starts_with(|c: char| c.is_ascii_digit())
        };
        let pairs = Named::<String>::decode(node, problems)?.0;
        let mut fine = true;
        for (name, _) in &pairs {
            if !valid(name) || name.as_str() == super::labels::NAME {
                problems.push(name.at, format!("expected a label name of letters, digits and _, found {:?}", name.value));
                fine = false;
            }
        }
        fine.then(|| Labels::new(pairs.into_iter().map(|(name, value)| (name.value, value))))
    }
}

/// Declares a configuration struct: its fields' doc comments are the reference, defaults are written as YAML.
///
/// `name: Type` is required unless the type is an `Option`; `name: Type = "yaml"` has a default.
#[macro_export]
macro_rules! config_struct {
    ($(#[doc = $sdoc:literal])* pub struct $name:ident { $($(#[doc = $doc:literal])+ $field:ident : $type:ty $(= $default:literal)?),+ $(,)? }) => {
        $(#[doc = $sdoc])*
        #[derive(Clone, Debug)]
        pub struct $name { $($(#[doc = $doc])+ pub $field: $type),+ }

        impl $crate::model::decode::Documented for $name {
            const KEYS: &'static [$crate::model::decode::KeyDoc] = &[$($crate::model::decode::KeyDoc {
                name: stringify!($field),
                expected: <$type as $crate::model::decode::Decode>::EXPECTED,
                default: $crate::config_struct!(@default $($default)?),
                doc: concat!($($doc, "\n"),+),
            }),+];
        }

        impl $crate::model::decode::Decode for $name {
            const EXPECTED: &'static str = concat!("a mapping with the keys " $(, stringify!($field), " ")+);
            fn decode(node: &$crate::model::yaml::Node, problems: &mut $crate::model::Problems) -> Option<Self> {
                let mut fields = $crate::model::decode::Fields::of(node, "a mapping", problems)?;
                $(let $field: Option<$type> = fields.take(stringify!($field), $crate::config_struct!(@default $($default)?), problems);)+
                fields.finish(&[$(stringify!($field)),+], problems);
                Some(Self { $($field: $field?),+ })
            }
        }
    };
    (@default) => { None };
    (@default $default:literal) => { Some($default) };
}

/// Decodes a whole text; used for files and, in tests, for snippets.
///
/// # Errors
/// Every mistake of the text, in its order.
pub fn from_text<T: Decode>(file: impl AsRef<std::path::Path>, text: &str) -> Result<T, Vec<super::Problem>> {
    let mut problems = Problems::new(file);
    let value = super::yaml::parse(text, &mut problems).and_then(|node| T::decode(&node, &mut problems));
    match value {
        Some(value) if problems.is_empty() => Ok(value),
        _ => Err(problems.into_sorted()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    config_struct! {
        /// Something.
        pub struct Thing {
            /// Who.
            name: String,
            /// How long.
            wait: Duration = "5s",
            /// How many.
            count: Option<u64>,
            /// Which.
            parts: Vec<u16> = "[]",
        }
    }

    #[test]
    fn of_many_names_the_nearest_three_are_said() {
        let many: Vec<String> = (0..100).map(|number| format!("SomethingElse{number}")).chain(["MemcachedDown".to_owned()]).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(
            unknown("alert", "Memc", &many),
            "unknown alert \"Memc\"; the nearest of 101 known here: MemcachedDown, SomethingElse0, SomethingElse1"
        );
        assert_eq!(unknown("alert", "MemcachedDwon", &many), "unknown alert \"MemcachedDwon\"; did you mean \"MemcachedDown\"?");
        assert_eq!(unknown("queue", "x", &["fast", "photo"]), "unknown queue \"x\"; known here: fast, photo");
    }

    #[test]
    fn a_struct_is_read_with_its_defaults() {
        let thing: Thing = from_text("f", "name: x\nparts: [1, 2]\n").expect("is right");
        assert_eq!((thing.name.as_str(), thing.wait, thing.count, thing.parts), ("x", Duration::from_secs(5), None, vec![1, 2]));
        assert_eq!(Thing::KEYS[1].default, Some("5s"));
        assert_eq!(Thing::KEYS[1].doc.trim(), "How long.");
    }

    #[test]
    fn all_mistakes_of_a_struct_are_named_in_one_run() {
        let problems = from_text::<Thing>("f", "wait: soon\ncuont: 3\nparts: [1, x, 70000]\n").expect_err("is wrong");
        insta::assert_snapshot!(problems.iter().map(|p| p.to_string() + "\n").collect::<String>());
    }
}
