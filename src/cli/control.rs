//! Asks the running Proctor for something over its control socket.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use super::{Exit, complain, say};
use crate::app::{self, Source};
use crate::client::http::{self, Request, Seen, Url};
use crate::client::net::{Endpoint, Trust, chain};
use crate::web::control::{Command, Reply};

/// The largest answer.
const MAX_ANSWER: usize = 1 << 20;
/// The longest that an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(70);

/// Sends a command and prints what came of it.
pub(super) fn send(source: &Source, command: Command) -> Result<Exit, Box<dyn Error + Send + Sync>> {
    Ok(match super::block_on(ask(source, &command))?? {
        Ok(reply) => {
            say(&format!("{}\n", reply.text))?;
            Exit::Well
        }
        Err(why) => {
            complain(&format!("proctor: {why}"));
            Exit::Failed
        }
    })
}

/// Sends a command; the inner error is what Proctor answered.
pub(super) async fn ask(source: &Source, command: &Command) -> Result<Result<Reply, String>, Box<dyn Error + Send + Sync>> {
    ask_at(&app::control_socket(&app::load(source)?.config), command).await
}

/// Sends a command to the Proctor that listens there.
pub(super) async fn ask_at(socket: &Path, command: &Command) -> Result<Result<Reply, String>, Box<dyn Error + Send + Sync>> {
    let request =
        Request::post_json(Url::parse("http://localhost/command")?, serde_json::to_vec(command)?).at(Endpoint::Unix(socket.to_owned()));
    let mut seen = Seen::default();
    let sent = tokio::time::timeout(ANSWER_WITHIN, http::send(&request, &Trust::system(), MAX_ANSWER, &mut seen)).await;
    let answer = sent.map_err(|_| format!("Proctor did not answer at {} in time", socket.display()))?;
    let answer = answer.map_err(|error| format!("{}: is Proctor running, and are you in the group proctor-operators?", chain(&error)))?;
    let reply: Reply = serde_json::from_slice(&answer.body).map_err(|error| format!("Proctor answered what is no reply: {error}"))?;
    Ok(if answer.status == 200 { Ok(reply) } else { Err(reply.text) })
}
