//! What docker says of its own accord: `/events`, one JSON object per line, as long as the connection stands.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::container::Service;
use super::{Api, DockerError, encode, refusal};
use crate::client::http::{self, HttpError, Method, Seen};
use crate::client::net;
use crate::model::Timestamp;

/// The longest event, in bytes: it repeats the labels of the container.
const MAX_EVENT: usize = 64 * 1024;

/// What is asked for: not the `exec_*` that each health check makes.
const ACTIONS: &[&str] = &["start", "kill", "die", "stop", "restart", "destroy", "oom", "health_status", "pause", "unpause"];

/// What happened to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It was started, by order or by its restart policy.
    Start,
    /// Docker was told to send it this signal.
    Kill(u32),
    /// It ended with this exit code.
    Die(i64),
    /// Docker was told to stop it, and it has ended.
    Stop,
    /// Docker was told to restart it, and it runs.
    Restart,
    /// It was removed.
    Destroy,
    /// The kernel killed one of its processes for its memory.
    Oom,
    /// Something else that changes what is known of it: its health, a pause.
    Other,
}

/// An event of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, in nanoseconds since the epoch by docker's clock: also its place in the order of events.
    pub nanos: i64,
    /// The container's id.
    pub id: String,
    /// The container's name.
    pub name: String,
    /// What it belongs to; nothing for what `docker compose run` started.
    pub service: Option<Service>,
    /// What happened.
    pub action: Action,
}

impl Event {
    /// Returns when it happened.
    pub fn at(&self) -> Timestamp {
        Timestamp(self.nanos / 1_000_000)
    }
}

#[derive(Deserialize)]
struct Told {
    #[serde(rename = "Action")]
    action: String,
    #[serde(rename = "Actor")]
    actor: Actor,
    #[serde(rename = "timeNano")]
    nanos: i64,
}

#[derive(Deserialize)]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Attributes", default)]
    attributes: BTreeMap<String, String>,
}

impl From<Told> for Event {
    fn from(told: Told) -> Self {
        let attributes = told.actor.attributes;
        let of = |name: &str| attributes.get(name).map(String::as_str).unwrap_or_default();
        let name = of("name").to_owned();
        let action = match told.action.as_str() {
            "start" => Action::Start,
            // Podman writes a signal by its name; 15 is what it nearly always is.
            "kill" => Action::Kill(of("signal").parse().unwrap_or(15)),
            "die" => Action::Die(of("exitCode").parse().unwrap_or_default()),
            "stop" => Action::Stop,
            "restart" => Action::Restart,
            "destroy" => Action::Destroy,
            "oom" => Action::Oom,
            _ => Action::Other,
        };
        Self { nanos: told.nanos, service: Service::of(&attributes, &name), id: told.actor.id, name, action }
    }
}

impl Api<'_> {
    /// Follows the events of containers from a moment on, and ends when the connection does: with nothing where docker
    /// closed it in good order. `take` is called once without an event when docker has begun to answer.
    ///
    /// Docker keeps the last 256 events of all kinds, so what happened in a short absence is not lost.
    ///
    /// # Errors
    /// [`DockerError`].
    pub async fn follow(&self, since: Timestamp, take: &mut (dyn FnMut(Option<Event>) + Send)) -> Result<(), DockerError> {
        let what = "its events";
        let filters = encode(&serde_json::json!({ "type": ["container"], "event": ACTIONS }).to_string());
        let (seconds, millis) = (since.0.div_euclid(1000), since.0.rem_euclid(1000));
        let path = format!("/v{}/events?since={seconds}.{millis:03}000000&filters={filters}", self.version);
        let (at, request) = self.docker.request(Method::GET, &path, what)?;
        let mut rest = Vec::new();
        let mut wrong = None;
        let mut begun = false;
        let mut piece = |status: u16, piece: &[u8]| {
            if status != 200 {
                rest.extend(piece.iter().take(MAX_EVENT.saturating_sub(rest.len())));
                return Ok(());
            }
            if !begun {
                begun = true;
                take(None);
            }
            for byte in piece {
                if *byte != b'\n' {
                    if rest.len() >= MAX_EVENT {
                        return Err(HttpError::TooLarge { what: "event", limit: MAX_EVENT });
                    }
                    rest.push(*byte);
                    continue;
                }
                if rest.iter().any(|byte| !byte.is_ascii_whitespace()) {
                    match serde_json::from_slice::<Told>(&rest) {
                        Ok(told) => take(Some(told.into())),
                        Err(error) => {
                            wrong = Some(error.to_string());
                            return Err(HttpError::Eof { what: "body" });
                        }
                    }
                }
                rest.clear();
            }
            Ok(())
        };
        let followed = async {
            let stream = net::connect(at, &mut net::Phases::default()).await?;
            http::exchange_piecewise(stream, &request, &mut piece, &mut Seen::default()).await
        };
        match (followed.await, wrong) {
            (_, Some(why)) => Err(DockerError::Reply { what: what.to_owned(), why }),
            (Ok(answer), None) if answer.status == 200 => Ok(()),
            (Ok(answer), None) => Err(refusal(what, answer.status, &rest)),
            (Err(source), None) => Err(DockerError::Http { at: at.clone(), source }),
        }
    }
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// Events of docker, one a line.
    pub fn docker_events(bytes: &[u8]) {
        for told in bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Told>(line).ok()) {
            Event::from(told).at();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_as_docker_writes_them() {
        let event = |action: &str, attributes: &str| -> (Action, Option<String>, i64) {
            let text = format!(
                r#"{{"status":"x","id":"a1","Type":"container","Action":"{action}","Actor":{{"ID":"a1","Attributes":{{"name":"c"{attributes}}}}},"scope":"local","time":1795640486,"timeNano":1795640486296121045}}"#
            );
            let event: Event = serde_json::from_str::<Told>(&text).expect("is right").into();
            (event.action.clone(), event.service.clone().map(|service| service.to_string()), event.at().0)
        };
        let (c, at) = (Some("c".to_owned()), 1_795_640_486_296);
        assert_eq!(event("die", r#","exitCode":"137""#), (Action::Die(137), c.clone(), at));
        assert_eq!(event("kill", r#","signal":"1""#), (Action::Kill(1), c.clone(), at));
        assert_eq!(event("health_status: unhealthy", ""), (Action::Other, c, at));
        let service = r#","com.docker.compose.service":"s","com.docker.compose.project":"p""#;
        assert_eq!(event("start", service).1.as_deref(), Some("p/s"));
        assert_eq!(event("start", &format!(r#"{service},"com.docker.compose.oneoff":"True""#)).1, None);
    }
}
