//! Calls a URL, which then repairs.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Action, Done, Occasion, line};
use crate::client::http::{self, Request, Seen, Url};
use crate::client::net::{Trust, chain};
use crate::client::secret;
use crate::model::duration::print;
use crate::model::{Position, Problems};

/// The largest answer that is read, in bytes; it is kept as the attempt's output.
const MAX_ANSWER: usize = 16 * 1024;

crate::config_struct! {
    /// Sends a POST with JSON: `attempt`, `action`, `target`, `episode`, `labels`, `annotations`. The header
    /// `Idempotency-Key` is the attempt. An answer of 200 to 299 is taken as done; redirects are not followed.
    pub struct WebhookConfig {
        /// Where; a URL that holds a token belongs into `url_file`.
        url: Option<Url>,
        /// A file that holds the URL.
        url_file: Option<PathBuf>,
        /// How long the whole call may take.
        timeout: Duration = "30s",
    }
}

impl WebhookConfig {
    /// Notes what is wrong between the keys.
    pub fn check(&self, name: &str, at: Position, problems: &mut Problems) {
        if self.url.is_some() == self.url_file.is_some() {
            problems.push(at, format!("actions.{name}.webhook: expected either url or url_file"));
        }
    }
}

/// A URL of the configuration.
#[derive(Clone)]
pub struct Webhook {
    url: Url,
    timeout: Duration,
}

impl Webhook {
    /// Takes the configuration and reads the file, if the URL stands in one.
    ///
    /// # Errors
    /// A file that cannot be read, or holds no URL.
    pub fn new(config: &WebhookConfig) -> Result<Self, String> {
        let url = match (&config.url, &config.url_file) {
            (Some(url), _) => url.clone(),
            (None, Some(path)) => {
                let text = secret::read(path).map_err(|error| chain(&error))?;
                Url::parse(text.expose().trim()).map_err(|why| format!("{}: {why}", path.display()))?
            }
            (None, None) => return Err("expected either url or url_file".to_owned()),
        };
        Ok(Self { url, timeout: config.timeout })
    }

    async fn call(&self, occasion: &Occasion) -> Done {
        // The path may be the secret: people see only where the call goes.
        let place = format!("{}:{}", self.url.host(), self.url.port());
        let body = serde_json::json!({
            "attempt": occasion.attempt,
            "action": occasion.action,
            "target": occasion.target,
            "episode": occasion.alert.episode(),
            "labels": occasion.alert.labels,
            "annotations": occasion.alert.annotations,
        });
        let request = Request::post_json(self.url.clone(), body.to_string().into_bytes()).header("idempotency-key", &occasion.attempt);
        let mut seen = Seen::default();
        let answer = tokio::time::timeout(self.timeout, http::send(&request, &Trust::system(), MAX_ANSWER, &mut seen)).await;
        match answer {
            Err(_) => Done::quiet(Err(format!("{place} did not answer the call within {} ({})", print(self.timeout), seen.net))),
            Ok(Err(error)) => Done::quiet(Err(line(&format!("the call to {place} failed: {}", chain(&error))))),
            Ok(Ok(answer)) => {
                let output: String = answer.text().chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
                let result = match answer.status {
                    200..=299 => Ok(format!("{place} answered the call with status {}", answer.status)),
                    300..=399 => Err(format!("{place} answered the call with status {}: redirects are not followed", answer.status)),
                    status => Err(line(&format!("{place} answered the call with status {status}: {}", line(&output)))),
                };
                Done { result, output }
            }
        }
    }
}

impl Action for Webhook {
    fn act<'a>(&'a self, occasion: &'a Occasion) -> BoxFuture<'a, Done> {
        self.call(occasion).boxed()
    }

    fn deadline(&self) -> Duration {
        self.timeout + Duration::from_secs(1)
    }
}
