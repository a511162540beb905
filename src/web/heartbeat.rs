//! `POST /heartbeat/NAME`, `…/start`, `…/fail`: what a job reports, with the token of that heartbeat.
//!
//! The one way to change something that is open to the network, and it changes no more than what is known of one job.
//! The token is looked at before the body is read, wrong ones are counted by the address that sent them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Router};
use serde::Deserialize;
use tokio::time::Instant;

use super::tries::Tries;
use crate::probe::heartbeat::{Ended, Inbox, Report};
use crate::store::Committed;

/// The largest report, in bytes.
const MAX_BODY: usize = 64 * 1024;
/// The longest that it may take to arrive.
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// Returns where the reports of a heartbeat come in, by its name.
pub type FindInbox = Arc<dyn Fn(&str) -> Option<Inbox> + Send + Sync>;

#[derive(Clone)]
struct Door {
    find: FindInbox,
    tries: Arc<Tries>,
}

pub(super) fn router(find: FindInbox) -> Router {
    let door = Door { find, tries: Arc::default() };
    Router::new().route("/heartbeat/{name}", post(ended)).route("/heartbeat/{name}/{what}", post(told)).with_state(door)
}

/// Which run it is, where begin and end are to be told apart from those of another one.
#[derive(Deserialize)]
struct Run {
    #[serde(default)]
    run: String,
}

type Caller = (State<Door>, Extension<IpAddr>, HeaderMap);

async fn ended(caller: Caller, Path(name): Path<String>, Query(run): Query<Run>, body: Body) -> Response {
    take(caller, &name, "", run.run, body).await
}

async fn told(caller: Caller, Path((name, what)): Path<(String, String)>, Query(run): Query<Run>, body: Body) -> Response {
    take(caller, &name, &what, run.run, body).await
}

async fn take((State(door), Extension(from), headers): Caller, name: &str, what: &str, run: String, body: Body) -> Response {
    let now = Instant::now();
    if door.tries.are_spent(from, now) {
        return (StatusCode::TOO_MANY_REQUESTS, "too many wrong tokens from this address: wait a minute\n").into_response();
    }
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let token = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer ")).map(str::trim);
    let inbox = (door.find)(name).zip(token).filter(|(inbox, token)| inbox.takes(token)).map(|(inbox, _)| inbox);
    let Some(inbox) = inbox else {
        door.tries.count(from, now);
        tracing::info!(%from, name, "a report was refused: no heartbeat of this name takes this token");
        return (StatusCode::UNAUTHORIZED, "no heartbeat of this name takes this token (Authorization: Bearer …)\n").into_response();
    };
    let bytes = match tokio::time::timeout(BODY_WITHIN, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => return (StatusCode::PAYLOAD_TOO_LARGE, format!("expected at most {MAX_BODY} bytes\n")).into_response(),
        Err(_) => return (StatusCode::REQUEST_TIMEOUT, "the report did not arrive in time\n").into_response(),
    };
    let is_json = text(header::CONTENT_TYPE).is_some_and(|value| value.contains("json"));
    let report = match what {
        "start" => Ok(Report::Started { run }),
        "" | "fail" => ended_of(is_json, &bytes, what == "fail").map(|ended| Report::Ended { run, ended }),
        _ => return (StatusCode::NOT_FOUND, "expected /heartbeat/NAME, /heartbeat/NAME/start or /heartbeat/NAME/fail\n").into_response(),
    };
    match report {
        Err(why) => (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
        Ok(report) => match inbox.report(report).await {
            Committed::Durable => "taken\n".into_response(),
            Committed::InMemory => "taken, in memory only: the state cannot be written now\n".into_response(),
        },
    }
}

/// Reads a body: a list of checks, an object, or a text that the job has printed.
fn ended_of(is_json: bool, bytes: &[u8], fails: bool) -> Result<Ended, String> {
    let mut ended = if !is_json {
        Ended { output: String::from_utf8_lossy(bytes).into_owned(), ..Ended::default() }
    } else if bytes.trim_ascii_start().starts_with(b"[") {
        let checks = serde_json::from_slice(bytes).map_err(|error| format!("expected a list of {{name, ok, text}}: {error}"))?;
        Ended { checks, ..Ended::default() }
    } else {
        serde_json::from_slice(bytes).map_err(|error| {
            format!("expected an object with exit_code, duration_seconds, output, checks (each may be missing): {error}")
        })?
    };
    if fails && ended.exit_code == 0 {
        ended.exit_code = 1;
    }
    Ok(ended)
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// A report of a job.
    pub fn report(bytes: &[u8]) {
        for fails in [false, true] {
            assert!(ended_of(true, bytes, fails).map_or(true, |ended| !fails || ended.exit_code != 0));
            assert!(ended_of(false, bytes, fails).is_ok(), "any text is a report");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_a_text_a_list_of_checks_or_an_object() {
        let of = |json, text: &str, fails| ended_of(json, text.as_bytes(), fails);
        assert_eq!(of(false, "[not json", true).map(|ended| (ended.exit_code, ended.output)), Ok((1, "[not json".to_owned())));
        let checks = of(true, " [{\"name\": \"db\", \"ok\": false, \"text\": \"gone\"}, {\"name\": \"disk\", \"ok\": true}]", false);
        assert_eq!(checks.map(|ended| (ended.checks.len(), ended.is_well())), Ok((2, false)));
        assert_eq!(of(true, "{\"exit_code\": 3, \"output\": \"x\"}", true).map(|ended| ended.exit_code), Ok(3));
        for wrong in ["", "5", "[{\"ok\": true}]", "{\"exit\": 1}", "[{\"name\": \"a\", \"ok\": 1}]"] {
            assert!(of(true, wrong, false).is_err(), "{wrong}");
        }
    }
}
