//! What an answer of Elasticsearch says: a document of JSON, or an error with a type in it.
//!
//! The status alone says little: a full heap and a full queue are both 429, a block and a missing privilege both 403.

use serde_json::Value;

use super::super::http::found;
use super::Run;
use crate::client::http::Answer;
use crate::model::{Failure, Reason};

/// The most types of errors that are looked at in one answer.
const MAX_TYPES: usize = 64;
/// The most characters of what Elasticsearch gives as its reason that are repeated.
const MAX_WHY: usize = 200;

/// What came instead of what was asked for.
#[derive(Debug)]
pub(super) struct Complaint {
    pub(super) reason: Reason,
    pub(super) detail: String,
}

impl From<Complaint> for Failure {
    fn from(complaint: Complaint) -> Self {
        Self::new(complaint.reason, complaint.detail)
    }
}

/// An answer.
#[derive(Debug)]
pub(super) enum Found {
    /// What was asked for.
    Body(Value),
    /// The privilege is missing.
    Forbidden,
    /// An error.
    Wrong(Complaint),
}

impl Found {
    /// Returns what was asked for; notes `what` as not seen where the privilege is missing.
    ///
    /// # Errors
    /// Any error.
    pub(super) fn or_forbidden(self, run: &mut Run, what: &'static str) -> Result<Option<Value>, Failure> {
        match self {
            Self::Body(body) => Ok(Some(body)),
            Self::Wrong(complaint) => Err(complaint.into()),
            Self::Forbidden => {
                if !run.missing.contains(&what) {
                    run.missing.push(what);
                }
                Ok(None)
            }
        }
    }

    /// Like [`Found::or_forbidden`] for what is not the question itself: what this version does not know is not seen
    /// either.
    ///
    /// # Errors
    /// An error of the service.
    pub(super) fn or_missing(self, run: &mut Run, what: &'static str) -> Result<Option<Value>, Failure> {
        match self {
            Self::Wrong(Complaint { reason: Reason::Mismatch | Reason::Missing, .. }) => Self::Forbidden.or_forbidden(run, what),
            other => other.or_forbidden(run, what),
        }
    }
}

/// Reads an answer.
///
/// # Errors
/// What is no answer of Elasticsearch at all.
pub(super) fn read(place: String, answer: &Answer, with_login: bool) -> Result<Found, Failure> {
    let body = serde_json::from_slice::<Value>(&answer.body).ok().filter(Value::is_object);
    if answer.status == 200 {
        return body.map(Found::Body).ok_or_else(|| Failure::new(Reason::Protocol, format!("{place}: expected JSON, found {}", found(answer))));
    }
    let error = body.as_ref().map_or(&Value::Null, |body| &body["error"]);
    let types = types(error);
    let why = why(error);
    let (reason, what) = match (answer.status, of_types(&types, &why)) {
        (401, _) if with_login => (Reason::Auth, "user and password, or the API key, are refused"),
        (401, _) => (Reason::Auth, "it wants a login: set username and password_file, or api_key_file"),
        (_, Some(known)) => known,
        (403, None) => return Ok(Found::Forbidden),
        (404, None) if types.is_empty() => (Reason::Mismatch, "this is not Elasticsearch, or not its root"),
        (404, None) => (Reason::Missing, "there is no such thing"),
        (429, None) => (Reason::Saturated, "it is overloaded"),
        (502..=504, None) => (Reason::Unavailable, "it cannot serve now"),
        (_, None) => (Reason::Mismatch, "it does not answer as expected"),
    };
    let said = if why.is_empty() { found(answer) } else { format!("{}, {why}", answer.status) };
    Ok(Found::Wrong(Complaint { reason, detail: format!("{place}: {what} ({said})") }))
}

/// Checks that all shards took part and none ran out of time: what is left out of an answer is missing on the pages.
///
/// # Errors
/// What kept them.
pub(super) fn whole(place: &str, body: &Value) -> Result<(), Failure> {
    if body["timed_out"] == true {
        return Err(Failure::new(Reason::AnswerTimeout, format!("{place}: the search did not come to its end within {}", super::PATIENCE)));
    }
    let shards = &body["_shards"];
    let (Some(failed), Some(total)) = (super::number(&shards["failed"]), super::number(&shards["total"])) else {
        return Err(Failure::new(Reason::Protocol, format!("{place}: expected the number of shards that answered, found none")));
    };
    if failed == 0.0 {
        return Ok(());
    }
    let failures = shards["failures"].as_array();
    let types: Vec<&str> = failures.into_iter().flatten().filter_map(|one| one["reason"]["type"].as_str()).take(MAX_TYPES).collect();
    let why = why(&shards["failures"][0]["reason"]);
    let (reason, what) = of_types(&types, &why).unwrap_or((Reason::Unavailable, "a part of it is not there"));
    Err(Failure::new(reason, format!("{place}: {failed} of {total} shards do not answer: {what} ({why})")))
}

/// Returns the types in an error: its own, those of its causes, those of the shards.
fn types(error: &Value) -> Vec<&str> {
    let causes = error["root_cause"].as_array().into_iter().flatten().map(|cause| &cause["type"]);
    let shards = error["failed_shards"].as_array().into_iter().flatten().map(|shard| &shard["reason"]["type"]);
    [&error["type"]].into_iter().chain(causes).chain(shards).filter_map(Value::as_str).take(MAX_TYPES).collect()
}

/// Returns what an error says, cut.
fn why(error: &Value) -> String {
    let cause = &error["root_cause"][0];
    let texts = [&error["type"], &error["reason"], &cause["type"], &cause["reason"]].into_iter().filter_map(Value::as_str);
    let mut texts: Vec<&str> = texts.chain(error.as_str()).collect();
    texts.dedup();
    let mut seen = Vec::new();
    texts.retain(|text| !seen.contains(text) && {
        seen.push(*text);
        true
    });
    texts.join(": ").chars().take(MAX_WHY).collect()
}

/// Returns what the types of an error mean (`ElasticsearchException`'s registered names, the same in 5 to 8 and in
/// OpenSearch); nothing where none is known.
fn of_types(types: &[&str], why: &str) -> Option<(Reason, &'static str)> {
    let has = |name: &str| types.contains(&name);
    Some(if has("circuit_breaking_exception") {
        (Reason::Saturated, "its heap is full, so it refuses searches (circuit breaker)")
    } else if has("es_rejected_execution_exception") || has("rejected_execution_exception") {
        (Reason::Saturated, "its queue is full, so it refuses searches")
    } else if has("cluster_block_exception") {
        of_block(why)
    } else if has("master_not_discovered_exception") || has("cluster_manager_not_discovered_exception") {
        // The latter is OpenSearch's word for it.
        (Reason::Unavailable, NO_MASTER)
    } else if has("index_not_found_exception") {
        (Reason::Missing, "there is no such index: searches find nothing. Is it being rebuilt? Else rebuild it (manage.py rebuild_index)")
    } else if has("index_closed_exception") {
        (Reason::Unavailable, "the index is closed: POST /INDEX/_open opens it")
    } else if has("no_shard_available_action_exception") || has("search_phase_execution_exception") {
        (Reason::Unavailable, "no copy of the index can be read")
    } else {
        return None;
    })
}

const NO_MASTER: &str = "the cluster has no master";

/// Returns what a block means, by its description: those of a node that starts or looks for its master block all.
pub(super) fn of_block(why: &str) -> (Reason, &'static str) {
    if why.contains("state not recovered") {
        (Reason::Starting, "it has not read its indices yet")
    } else if why.contains("no master") {
        (Reason::Unavailable, NO_MASTER)
    } else {
        (Reason::Blocked, "a block keeps it from answering")
    }
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// An answer of Elasticsearch.
    pub fn elasticsearch(bytes: &[u8]) {
        for status in [200, 401, 403, 404, 429, 503] {
            let answer = Answer { status, headers: Default::default(), body: bytes.to_vec() };
            if let Ok(Found::Body(body)) = read("here".to_owned(), &answer, true) {
                let rec = &mut crate::probe::Recorder::default();
                super::numbers::record_version(rec, &body);
                super::numbers::record_health(rec, &body);
                super::numbers::record_node(rec, &body);
                super::numbers::fullest(&body);
                drop(whole("here", &body));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer { status, headers: Default::default(), body: body.as_bytes().to_vec() }
    }

    /// An error as Elasticsearch writes it.
    fn error(kind: &str, why: &str) -> String {
        format!(r#"{{"error": {{"root_cause": [{{"type": "{kind}", "reason": "{why}"}}], "type": "{kind}", "reason": "{why}"}}}}"#)
    }

    #[test]
    fn an_error_is_known_by_its_type_and_not_by_its_status_alone() {
        for (status, body, wanted) in [
            (401, error("security_exception", "missing credentials"), Some(Reason::Auth)),
            (403, error("security_exception", "action is unauthorized"), None),
            (403, String::new(), None),
            (403, error("cluster_block_exception", "blocked by: [FORBIDDEN/7/index read (api)];"), Some(Reason::Blocked)),
            (503, error("cluster_block_exception", "blocked by: [SERVICE_UNAVAILABLE/1/state not recovered / initialized];"), Some(Reason::Starting)),
            (503, error("cluster_block_exception", "blocked by: [SERVICE_UNAVAILABLE/2/no master];"), Some(Reason::Unavailable)),
            (503, error("master_not_discovered_exception", ""), Some(Reason::Unavailable)),
            (429, error("circuit_breaking_exception", "[parent] Data too large"), Some(Reason::Saturated)),
            (503, error("cluster_manager_not_discovered_exception", ""), Some(Reason::Unavailable)),
            // Elasticsearch 5 and 6 say 503 there.
            (503, error("circuit_breaking_exception", "[parent] Data too large"), Some(Reason::Saturated)),
            (429, error("es_rejected_execution_exception", "queue capacity = 1000"), Some(Reason::Saturated)),
            (503, r#"{"error": {"type": "search_phase_execution_exception", "failed_shards": [{"reason": {"type": "es_rejected_execution_exception"}}]}}"#.to_owned(), Some(Reason::Saturated)),
            (404, error("index_not_found_exception", "no such index"), Some(Reason::Missing)),
            (400, error("index_closed_exception", "closed"), Some(Reason::Unavailable)),
            (503, error("search_phase_execution_exception", "all shards failed"), Some(Reason::Unavailable)),
            (404, "<html>nginx</html>".to_owned(), Some(Reason::Mismatch)),
            (502, "<html>nginx</html>".to_owned(), Some(Reason::Unavailable)),
            (405, r#"{"error": "Incorrect HTTP method for uri"}"#.to_owned(), Some(Reason::Mismatch)),
            (500, r#"{"error": [[{}]]}"#.to_owned(), Some(Reason::Mismatch)),
        ] {
            let reason = match read("here".to_owned(), &answer(status, &body), false).expect("is an answer") {
                Found::Wrong(complaint) => Some(complaint.reason),
                Found::Forbidden => None,
                Found::Body(body) => panic!("{body} is taken for an answer"),
            };
            assert_eq!(reason, wanted, "{status} {body}");
        }
        for body in ["", "<html>", "[]", "1", r#"{"a": "#, &"[".repeat(100_000)] {
            let failure = read("here".to_owned(), &answer(200, body), false).expect_err(body);
            assert_eq!(failure.reason, Reason::Protocol, "{}", failure.detail);
        }
    }

    #[test]
    fn an_answer_without_some_of_its_shards_is_none() {
        for (body, wanted) in [
            (r#"{"_shards": {"total": 5, "failed": 0}}"#, None),
            (r#"{"_shards": {"total": "5", "failed": "0"}, "timed_out": false}"#, None),
            (r#"{"_shards": {"total": 5, "failed": 0}, "timed_out": true}"#, Some(Reason::AnswerTimeout)),
            (r#"{"_shards": {"total": 5, "failed": 1}}"#, Some(Reason::Unavailable)),
            (r#"{"_shards": {"total": 5, "failed": 1, "failures": [{"reason": {"type": "circuit_breaking_exception"}}]}}"#, Some(Reason::Saturated)),
            (r#"{"_shards": []}"#, Some(Reason::Protocol)),
            ("{}", Some(Reason::Protocol)),
        ] {
            let body: Value = serde_json::from_str(body).expect("is JSON");
            assert_eq!(whole("here", &body).err().map(|failure| failure.reason), wanted, "{body}");
        }
    }
}
