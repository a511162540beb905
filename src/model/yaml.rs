//! YAML into a tree in which every node knows its place.
//!
//! The events come from `granit-parser` (the parser beneath serde-saphyr); scalars stay text until a type asks for
//! them, so `label: 1.0` stays `1.0`. Bounds: [`MAX_BYTES`], [`MAX_NODES`] after aliases are expanded, [`MAX_DEPTH`].

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle};

use super::problem::{Position, Problems};

/// The largest file that is read.
pub const MAX_BYTES: usize = 1 << 20;
/// The most nodes, aliases expanded: a billion laughs ends here.
pub const MAX_NODES: usize = 100_000;
/// The deepest nesting.
pub const MAX_DEPTH: usize = 32;

/// One node and its place.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it begins.
    pub at: Position,
    /// What it is.
    pub value: Value,
}

/// What a node is.
#[derive(Clone, Debug)]
pub enum Value {
    /// Nothing: an empty value, `null` or `~`.
    Null,
    /// A text; `plain` where it stood without quotes, so that it may also be a number or a truth value.
    Scalar {
        /// The text.
        text: String,
        /// Whether it stood without quotes.
        plain: bool,
    },
    /// A list.
    Sequence(Vec<Node>),
    /// Keys and values in the order of the file; keys are unique.
    Mapping(Vec<(Key, Node)>),
}

/// A key and its place.
#[derive(Clone, Debug)]
pub struct Key {
    /// Where it stands.
    pub at: Position,
    /// The key.
    pub text: String,
}

impl Node {
    /// Says what is there, for "expected …, found …".
    pub fn found(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Scalar { text, .. } if text.chars().count() > 60 => format!("{:?}…", text.chars().take(60).collect::<String>()),
            Value::Scalar { text, .. } => format!("{text:?}"),
            Value::Sequence(_) => "a list".to_owned(),
            Value::Mapping(_) => "a mapping".to_owned(),
        }
    }

    /// Returns how many nodes this is with all below it.
    fn size(&self) -> usize {
        1 + match &self.value {
            Value::Null | Value::Scalar { .. } => 0,
            Value::Sequence(items) => items.iter().map(Self::size).sum(),
            Value::Mapping(entries) => entries.iter().map(|(_, node)| 1 + node.size()).sum(),
        }
    }
}

/// A collection that is still open.
enum Open {
    Sequence(Vec<Node>),
    Mapping(Vec<(Key, Node)>, Option<Key>),
}

/// Parses one YAML document; an empty one is [`Value::Null`]. Mistakes go to `problems`, and then nothing is returned.
pub fn parse(text: &str, problems: &mut Problems) -> Option<Node> {
    let start = Position { line: 1, col: 1 };
    if text.len() > MAX_BYTES {
        problems.push(start, format!("expected at most {MAX_BYTES} bytes, found {}", text.len()));
        return None;
    }
    let mut stack: Vec<(Position, usize, Open)> = Vec::new();
    let mut anchors: HashMap<usize, Node> = HashMap::new();
    let mut root = None;
    let mut nodes = 0usize;
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = match event {
            Ok(next) => next,
            Err(error) => {
                let mark = error.marker();
                problems.push(Position { line: mark.line(), col: mark.col() + 1 }, format!("this is not YAML: {}", error.info()));
                return None;
            }
        };
        let at = Position { line: span.start.line(), col: span.start.col() + 1 };
        let (mut node, anchor, expanded) = match event {
            Event::Scalar(text, style, anchor, _) => {
                let plain = style == ScalarStyle::Plain;
                let value = match &*text {
                    "" | "~" | "null" if plain => Value::Null,
                    _ => Value::Scalar { text: text.into_owned(), plain },
                };
                (Node { at, value }, anchor, 1)
            }
            Event::SequenceStart(_, anchor, _) => {
                stack.push((at, anchor, Open::Sequence(Vec::new())));
                if stack.len() > MAX_DEPTH {
                    problems.push(at, format!("expected at most {MAX_DEPTH} levels, found more"));
                    return None;
                }
                continue;
            }
            Event::MappingStart(_, anchor, _) => {
                stack.push((at, anchor, Open::Mapping(Vec::new(), None)));
                if stack.len() > MAX_DEPTH {
                    problems.push(at, format!("expected at most {MAX_DEPTH} levels, found more"));
                    return None;
                }
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match stack.pop() {
                Some((at, anchor, Open::Sequence(items))) => (Node { at, value: Value::Sequence(items) }, anchor, 1),
                Some((at, anchor, Open::Mapping(entries, _))) => (Node { at, value: Value::Mapping(entries) }, anchor, 1),
                None => continue,
            },
            Event::Alias(anchor) => match anchors.get(&anchor) {
                Some(node) => (Node { at, value: node.value.clone() }, 0, node.size()),
                None => {
                    problems.push(at, "this alias stands inside the node it names");
                    return None;
                }
            },
            Event::DocumentStart(..) => {
                documents += 1;
                if documents > 1 {
                    problems.push(at, "expected one YAML document, found a second");
                    return None;
                }
                continue;
            }
            _ => continue,
        };
        nodes += expanded;
        if nodes > MAX_NODES {
            problems.push(at, format!("expected at most {MAX_NODES} nodes with aliases expanded, found more"));
            return None;
        }
        if anchor != 0 {
            anchors.insert(anchor, node.clone());
        }
        match stack.last_mut().map(|(_, _, open)| open) {
            None => root = Some(node),
            Some(Open::Sequence(items)) => items.push(node),
            Some(Open::Mapping(entries, key @ None)) => match &mut node.value {
                Value::Scalar { text, .. } => {
                    let text = std::mem::take(text);
                    if let Some((first, _)) = entries.iter().find(|(known, _)| known.text == text) {
                        problems.push(at, format!("key {text:?} stands here a second time; the first is in line {}", first.at.line));
                    }
                    *key = Some(Key { at, text });
                }
                _ => {
                    problems.push(at, format!("expected a key, found {}", node.found()));
                    *key = Some(Key { at, text: String::new() });
                }
            },
            Some(Open::Mapping(entries, key)) => {
                if let Some(key) = key.take() {
                    entries.push((key, node));
                }
            }
        }
    }
    if problems.is_empty() { Some(root.unwrap_or(Node { at: start, value: Value::Null })) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str) -> Vec<String> {
        let mut problems = Problems::new("f.yml");
        assert!(parse(text, &mut problems).is_none(), "{text}");
        problems.into_sorted().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn mistakes_stand_where_they_are() {
        insta::assert_debug_snapshot!([mistakes("a: 1\na: 2\n"), mistakes("a: [1\n"), mistakes("---\na: 1\n---\nb: 1\n")]);
    }

    #[test]
    fn a_billion_laughs_and_deep_nesting_are_refused_at_once() {
        let mut laughs = "a: &a [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for (name, of) in [("b", "a"), ("c", "b"), ("d", "c"), ("e", "d"), ("f", "e"), ("g", "f"), ("h", "g")] {
            laughs += &format!("{name}: &{name} [{}]\n", vec![format!("*{of}"); 10].join(","));
        }
        assert!(mistakes(&laughs)[0].contains("expected at most 100000 nodes"), "{:?}", mistakes(&laughs));
        assert!(mistakes(&format!("{}1{}", "[".repeat(40), "]".repeat(40)))[0].contains("expected at most 32 levels"));
        assert_eq!(mistakes(&"[".repeat(100_000)).len(), 1);
        assert!(mistakes(&"a: 1\n".repeat(1 << 18))[0].contains("expected at most 1048576 bytes"));
    }

    #[test]
    fn a_number_stays_the_text_that_was_written() {
        let node = parse("le: 1.0\n", &mut Problems::new("f")).expect("is YAML");
        let Value::Mapping(entries) = node.value else { panic!("a mapping") };
        assert!(matches!(&entries[0].1.value, Value::Scalar { text, plain: true } if text == "1.0"));
    }
}
