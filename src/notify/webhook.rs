//! A message as JSON to a URL: one POST, bounded, never redirected.

use std::path::PathBuf;
use std::time::Duration;

use super::Delivery;
use crate::client::http::{self, HttpError, Request, Seen, Url};
use crate::client::net::{self, NetError};
use crate::client::secret;
use crate::model::duration::print;
use crate::model::{Reason, one_line};

use super::outbox::Fate;

/// The most bytes of an answer that are read: it is only quoted when it is a refusal.
const MAX_ANSWER: usize = 64 * 1024;

crate::config_struct! {
    /// A URL that takes messages as JSON, in the format of Alertmanager's webhooks.
    pub struct WebhookConfig {
        /// The URL; one with a token in it belongs into `url_file`.
        url: Option<Url>,
        /// File with the URL, read at every use.
        url_file: Option<PathBuf>,
        /// PEM file with the authorities that may sign the certificate; the default is what the host trusts.
        ca_file: Option<PathBuf>,
        /// The limit of one attempt.
        timeout: Duration = "10s",
    }
}

impl WebhookConfig {
    /// Checks what one key says against another; reads and connects to nothing.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self) -> Result<(), String> {
        match (&self.url, &self.url_file) {
            (Some(_), Some(_)) => Err("expected either url or url_file, found both".to_owned()),
            (None, None) => Err("expected url or url_file, found neither".to_owned()),
            _ if self.timeout.is_zero() || self.timeout > Duration::from_secs(300) => {
                Err(format!("expected a timeout from 1ms to 5m, found {}", print(self.timeout)))
            }
            _ => Ok(()),
        }
    }

    fn url(&self) -> Result<Url, String> {
        match (&self.url, &self.url_file) {
            (Some(url), _) => Ok(url.clone()),
            (None, Some(path)) => {
                let text = secret::read(path).map_err(|error| net::chain(&error))?;
                Url::parse(text.expose().trim()).map_err(|why| format!("{}: {why}", path.display()))
            }
            (None, None) => Err("has neither url nor url_file".to_owned()),
        }
    }
}

/// Posts a message. The receiver knows a repetition by `Idempotency-Key`, which is the delivery's id.
pub async fn post(config: &WebhookConfig, delivery: &Delivery) -> Fate {
    let prepared = config.url().and_then(|url| Ok((url, secret::trust(config.ca_file.as_deref()).map_err(|error| net::chain(&error))?)));
    let (url, trust) = match prepared {
        Ok(prepared) => prepared,
        Err(why) => return Fate::Held(why),
    };
    let place = url.endpoint();
    let request = Request::post_json(url, delivery.message.payload.to_string().into_bytes()).header("Idempotency-Key", &delivery.id);
    let mut seen = Seen::default();
    // The path of the URL is in none of these texts: it may be a token.
    match tokio::time::timeout(config.timeout, http::send(&request, &trust, MAX_ANSWER, &mut seen)).await {
        Ok(Ok(answer)) => {
            let quoted = one_line(&answer.text(), 200);
            judge(answer.status, format!("{place} answered {} {}", answer.status, quoted.trim()))
        }
        Ok(Err(HttpError::TooLarge { what: "body", .. })) => {
            let status = seen.status.unwrap_or(500);
            judge(status, format!("{place} answered {status} and more than {MAX_ANSWER} bytes"))
        }
        Ok(Err(error)) => {
            let why = format!("{place}: {}", net::chain(&error));
            match (&error, error.reason()) {
                (_, Reason::Tls | Reason::Certificate) => Fate::Held(why),
                (HttpError::Net(NetError::Resolve { .. } | NetError::Connect { .. } | NetError::Tls { .. }), _) => Fate::Dead(why),
                _ => Fate::Later(why),
            }
        }
        Err(_) if seen.net.connect.is_none() => Fate::Dead(format!("{place}: no connection within {}", print(config.timeout))),
        Err(_) => Fate::Later(format!("{place}: no answer within {}", print(config.timeout))),
    }
}

fn judge(status: u16, said: String) -> Fate {
    match status {
        200..300 => Fate::Sent,
        408 | 425 | 429 | 500.. => Fate::Later(said),
        _ => Fate::Rejected(said),
    }
}
