//! What workers and publishers tell on `celeryev` (celery/events/event.py), as far as it is needed.
//!
//! A message is one event or, where a worker sends those of tasks in batches, a list of them. Arguments and results of
//! tasks are among their fields and are never read.

use std::borrow::Cow;
use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::Deserialize as Decode;

/// The most events of one message: a worker's batches have about twenty (celery/events/dispatcher.py).
const MAX_EVENTS: usize = 1000;

/// A text that lies in the message, unless it is written with escapes.
#[derive(Debug, Decode)]
pub(super) struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl std::ops::Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

/// One event.
#[derive(Debug, Decode)]
pub(super) struct Event<'a> {
    /// `worker-heartbeat`, `task-succeeded` and the like.
    #[serde(borrow, rename = "type")]
    pub(super) kind: Text<'a>,
    /// The node, such as `email@host`; of who publishes tasks, such as `gen123@host`.
    #[serde(borrow)]
    pub(super) hostname: Text<'a>,
    /// By its own clock, in seconds.
    #[serde(default)]
    pub(super) timestamp: Option<f64>,
    /// Of a worker: seconds between two heartbeats.
    #[serde(default)]
    pub(super) freq: Option<f64>,
    /// Of a worker: tasks that it runs now.
    #[serde(default)]
    pub(super) active: Option<f64>,
    /// Of a task.
    #[serde(borrow, default)]
    pub(super) uuid: Option<Text<'a>>,
    /// Of `task-sent` and `task-received` only.
    #[serde(borrow, default)]
    pub(super) name: Option<Text<'a>>,
    /// Of `task-sent` only.
    #[serde(borrow, default)]
    pub(super) queue: Option<Text<'a>>,
    /// Of `task-sent` and `task-received`: when it is due, where that is later than at once.
    #[serde(borrow, default)]
    pub(super) eta: Option<Text<'a>>,
    /// Of `task-succeeded`: seconds.
    #[serde(default)]
    pub(super) runtime: Option<f64>,
    /// Of `task-failed` and `task-retried`: the exception as Python prints it.
    #[serde(borrow, default)]
    pub(super) exception: Option<Text<'a>>,
}

impl Event<'_> {
    /// Returns the class of the exception, as celery-exporter finds it: what stands before the first parenthesis.
    pub(super) fn exception_class(&self) -> &str {
        let printed = self.exception.as_deref().unwrap_or_default();
        let end = printed.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(printed.len());
        if end > 0 && printed[end..].starts_with('(') { &printed[..end] } else { "UnknownException" }
    }
}

/// Gives each event of a message to `take`; nothing is collected, so that a message of a million events costs no more
/// memory than one.
///
/// # Errors
/// It is neither an event nor a list of at most [`MAX_EVENTS`]; those before what is wrong were given.
pub(super) fn each(body: &[u8], take: impl FnMut(Event<'_>)) -> Result<(), serde_json::Error> {
    let mut json = serde_json::Deserializer::from_slice(body);
    json.deserialize_any(Each(take))?;
    json.end()
}

struct Each<F>(F);

impl<'de, F: FnMut(Event<'de>)> Visitor<'de> for Each<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an event or a list of at most {MAX_EVENTS}")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, map: A) -> Result<(), A::Error> {
        (self.0)(Event::deserialize(MapAccessDeserializer::new(map))?);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        for _ in 0..MAX_EVENTS {
            match list.next_element()? {
                Some(event) => (self.0)(event),
                None => return Ok(()),
            }
        }
        Err(serde::de::Error::custom("too many events"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &[u8]) -> Result<Vec<String>, String> {
        let mut seen = Vec::new();
        each(body, |event| seen.push(format!("{} {}", &*event.kind, &*event.hostname))).map_err(|why| why.to_string())?;
        Ok(seen)
    }

    #[test]
    fn an_event_and_a_list_of_them_are_read_and_garbage_is_refused() {
        let beat = br#"{"type":"worker-heartbeat","hostname":"a\u0040b","freq":2.0,"active":1,"loadavg":[1,2,3],"clock":7}"#;
        assert_eq!(read(beat), Ok(vec!["worker-heartbeat a@b".to_owned()]));
        let list = br#"[{"type":"task-started","hostname":"a@b","uuid":"1","args":[[1]]},{"type":"task-failed","hostname":"a@b","uuid":null}]"#;
        assert_eq!(read(list), Ok(vec!["task-started a@b".to_owned(), "task-failed a@b".to_owned()]));
        assert_eq!(read(b"[]"), Ok(vec![]));
        let nested = format!(r#"{{"type":"a","hostname":"b","args":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(read(nested.as_bytes()), Ok(vec!["a b".to_owned()]), "what is not read is skipped without recursion");
        let many = format!("[{}]", vec![r#"{"type":"a","hostname":"b"}"#; MAX_EVENTS + 1].join(","));
        let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
        for (garbage, words) in [
            (&b""[..], "EOF"),
            (b"\xff\xfe", "expected value"),
            (b"7", "expected an event or a list of at most 1000"),
            (b"{}", "missing field `type`"),
            (br#"{"type":"a"}"#, "missing field `hostname`"),
            (br#"{"type":"a","hostname":5}"#, "expected a string"),
            (br#"{"type":"task-succeeded","hostname":"a","runtime":NaN}"#, "expected"),
            (br#"{"type":"task-succeeded","hostname":"a","runtime":"long"}"#, "expected f64"),
            (br#"{"type":"a","hostname":"b"} {}"#, "trailing"),
            (b"[1]", "expected"),
            (many.as_bytes(), "too many events"),
            (&deep, "expected"),
        ] {
            let why = read(garbage).expect_err(&garbage[..garbage.len().min(60)].escape_ascii().to_string());
            assert!(why.contains(words), "{words:?} in {why:?}");
        }
    }

    #[test]
    fn the_class_of_an_exception_is_told() {
        for (printed, class) in [
            ("ValueError('x')", "ValueError"),
            ("My_Error2()", "My_Error2"),
            ("Retry in 180s", "UnknownException"),
            ("(", "UnknownException"),
            ("", "UnknownException"),
            ("<Broken>", "UnknownException"),
        ] {
            let body = serde_json::json!({"type": "task-failed", "hostname": "a", "exception": printed}).to_string();
            each(body.as_bytes(), |event| assert_eq!(event.exception_class(), class)).expect("is one");
        }
    }
}
