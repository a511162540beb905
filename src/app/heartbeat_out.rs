//! The heartbeat to the outside: somebody else notices when this host dies.
//!
//! One GET while all is well with Proctor itself; silence is the alarm. So nothing is sent when it is in doubt, and the
//! first call waits until every loop has come round: a Proctor that crashes again and again must not look alive.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::health::{Health, Unwell};
use crate::client::http::{self, Request, Seen, Url};
use crate::client::net::{self, Trust};
use crate::client::secret;
use crate::config::HeartbeatOutConfig;
use crate::metrics::{ByOutcome, Metrics};
use crate::model::duration::print;
use crate::tasks;

/// The limit of one call.
const CALL_WITHIN: Duration = Duration::from_secs(10);
/// The most bytes of an answer that are read: nobody looks at them.
const MAX_ANSWER: usize = 64 * 1024;
/// While Proctor is starting it is looked again this often.
const STARTING_EVERY: Duration = Duration::from_secs(1);

/// What was last said in the log: each thing once.
#[derive(PartialEq)]
enum Said {
    Nothing,
    Sent,
    Withheld(&'static str),
    Failed(String),
}

/// Calls until it is dropped.
pub(super) async fn keep_calling(config: HeartbeatOutConfig, health: Health, metrics: Arc<Metrics>) {
    let mut said = Said::Nothing;
    // A reload does not put the next call off.
    let passed = tasks::wall_now().as_secs_f64() - metrics.heartbeat_out_last_success.get();
    let rest = Duration::try_from_secs_f64(config.every.as_secs_f64() - passed).unwrap_or_default();
    let mut due = Instant::now() + rest.min(config.every);
    loop {
        tokio::time::sleep_until(due).await;
        due = (due + config.every).max(Instant::now());
        let (outcome, now_said) = match health.well(tasks::now()) {
            Err(Unwell::Starting(why)) => {
                tracing::debug!(why, "no heartbeat yet");
                due = Instant::now() + STARTING_EVERY.min(config.every);
                continue;
            }
            Err(Unwell::Wrong { part, why }) => {
                if said != Said::Withheld(part) {
                    tracing::error!("no heartbeat goes out: {why}");
                }
                ("withheld", Said::Withheld(part))
            }
            Ok(()) => match call(&config).await {
                Ok(()) => {
                    metrics.heartbeat_out_last_success.set(tasks::wall_now().as_secs_f64());
                    if said != Said::Sent {
                        tracing::info!("the heartbeat goes out every {}", print(config.every));
                    }
                    ("sent", Said::Sent)
                }
                Err(why) => {
                    if !matches!(&said, Said::Failed(known) if *known == why) {
                        tracing::warn!("the heartbeat does not arrive: {why}");
                    }
                    ("failed", Said::Failed(why))
                }
            },
        };
        metrics.heartbeats_out.get_or_create(&ByOutcome { outcome }).inc();
        said = now_said;
    }
}

/// Calls once. The error never holds the path of the URL: it is the secret.
async fn call(config: &HeartbeatOutConfig) -> Result<(), String> {
    let text = secret::read(&config.url_file).map_err(|error| net::chain(&error))?;
    let url = Url::parse(text.expose().trim()).map_err(|why| format!("{}: {why}", config.url_file.display()))?;
    let place = url.endpoint();
    let request = Request::get(url);
    let mut seen = Seen::default();
    match tokio::time::timeout(CALL_WITHIN, http::send(&request, &Trust::system(), MAX_ANSWER, &mut seen)).await {
        Ok(Ok(answer)) => match answer.status {
            200..300 => Ok(()),
            status @ 300..400 => {
                Err(format!("{place} answered {status}: redirects are not followed; put the URL it leads to into the file"))
            }
            status => Err(format!("{place} answered {status}")),
        },
        Ok(Err(error)) => Err(format!("{place}: {}", net::chain(&error))),
        Err(_) => Err(format!("{place}: no answer within {}", print(CALL_WITHIN))),
    }
}
