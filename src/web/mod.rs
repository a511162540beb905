//! What people and Prometheus read over HTTP, and the control socket over which something is changed.
//!
//! `/metrics`, the status page and the two health answers only read. What changes something (reload, silence, hold)
//! goes over a socket in the file system whose rights decide who may: see [`control`]. Only what a job reports of
//! itself may come in here, with a token.

pub mod control;
mod heartbeat;
mod listen;
mod status;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;

use crate::metrics::Metrics;
use crate::model::decode::{Decode, mismatch};
use crate::model::yaml::Node;
use crate::model::{Problems, Timestamp};
use crate::snapshot::{Format, Snapshot};
use crate::tasks::{self, Tasks};

pub use heartbeat::FindInbox;
pub use status::{AlertRow, Status, TargetRow};

/// The address to listen on; an address and not a name, so that it never listens where nobody meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen(pub SocketAddr);

impl Decode for Listen {
    const EXPECTED: &'static str = "an address and port such as 127.0.0.1:9797";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let address = String::decode(node, &mut Problems::default()).and_then(|text| text.parse().ok()).map(Self);
        if address.is_none() {
            mismatch(node, Self::EXPECTED, problems);
        }
        address
    }
}

crate::config_struct! {
    /// What is read over HTTP.
    pub struct WebConfig {
        /// Where to listen. Everything here only reads, but for reports of jobs that show a token, and it tells a
        /// stranger much about the site: keep it on loopback, or let only Prometheus reach it.
        listen: Listen = "127.0.0.1:9797",
    }
}

/// Says whether everything has been asked once and the first evaluation is over.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;
/// Makes the rows of the status page.
pub type MakeStatus = Arc<dyn Fn() -> Status + Send + Sync>;

/// What the pages are made from; handed in by `app`.
#[derive(Clone)]
pub struct Pages {
    /// The results.
    pub snapshot: Snapshot,
    /// Whether it is ready.
    pub ready: Ready,
    /// The status page.
    pub status: MakeStatus,
    /// Where the reports of jobs come in.
    pub inbox: FindInbox,
}

/// Why the web does not come up.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// The address is taken or not ours.
    #[error("cannot listen on {address} (web.listen)")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// Listens and serves until the tasks are stopped; returns the address, whose port was chosen by the kernel if it was 0.
///
/// # Errors
/// [`WebError::Bind`].
pub async fn start(config: &WebConfig, pages: Pages, metrics: Arc<Metrics>, tasks: &Tasks) -> Result<SocketAddr, WebError> {
    let address = config.listen.0;
    let failed = |source| WebError::Bind { address, source };
    let listener = tokio::net::TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let accept = listen::Tcp(listener);
    tasks.spawn("web", listen::serve(accept, router(pages), metrics, tasks.clone()));
    Ok(bound)
}

fn router(pages: Pages) -> Router {
    let reports = heartbeat::router(pages.inbox.clone());
    Router::new()
        .route("/", get(page))
        .route("/metrics", get(exposition))
        .route("/-/healthy", get(|| async { "ok\n" }))
        .route("/-/ready", get(ready))
        .with_state(pages)
        .merge(reports)
        .layer(axum::middleware::map_response(with_security_headers))
}

async fn with_security_headers(mut response: Response) -> Response {
    const HEADERS: [(HeaderName, &str); 4] = [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn page(State(pages): State<Pages>) -> Response {
    match (pages.status)().render(tasks::now()) {
        Ok(text) => Html(text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("the status page cannot be made: {error}\n")).into_response(),
    }
}

async fn ready(State(pages): State<Pages>) -> Response {
    match (pages.ready)() {
        Ok(()) => "ready\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response(),
    }
}

async fn exposition(State(pages): State<Pages>, headers: HeaderMap) -> Response {
    let header = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    let format = negotiate(header(header::ACCEPT));
    let body = pages.snapshot.body(format, now());
    let content_type = match format {
        Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        Format::Text => "text/plain; version=0.0.4; charset=utf-8",
    };
    let common = [(header::CONTENT_TYPE, content_type), (header::VARY, "Accept, Accept-Encoding")];
    if accepts_gzip(header(header::ACCEPT_ENCODING)) && !body.gzip.is_empty() {
        return (common, [(header::CONTENT_ENCODING, "gzip")], body.gzip).into_response();
    }
    (common, body.plain).into_response()
}

fn now() -> Timestamp {
    tasks::now()
}

/// Chooses the format with the highest `q` that `Accept` names; text 0.0.4 where nothing fits, as Prometheus' own
/// exporters do.
fn negotiate(accept: &str) -> Format {
    let weight = |wanted: &str, version: &str| {
        accept
            .split(',')
            .take(32)
            .filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                if !parts.next()?.eq_ignore_ascii_case(wanted) {
                    return None;
                }
                let mut q = 1.0;
                for part in parts {
                    match part.split_once('=')? {
                        ("q", value) => q = value.parse().ok()?,
                        ("version", value) if value.trim_matches('"') != version => return None,
                        _ => {}
                    }
                }
                Some(q)
            })
            .fold(0.0f64, f64::max)
    };
    let open_metrics = weight("application/openmetrics-text", "1.0.0");
    if open_metrics > 0.0 && open_metrics >= weight("text/plain", "0.0.4") { Format::OpenMetrics } else { Format::Text }
}

/// Says whether `Accept-Encoding` names gzip and does not give it `q=0`.
fn accepts_gzip(accept: &str) -> bool {
    accept.split(',').take(32).any(|coding| {
        let (name, q) = coding.split_once(';').unwrap_or((coding, ""));
        let refused = q.trim().strip_prefix("q=").is_some_and(|q| q.trim().parse::<f64>().is_ok_and(|q| q == 0.0));
        name.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_the_one_that_the_reader_likes_best() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.1";
        for (accept, format) in [
            ("", Format::Text),
            ("*/*", Format::Text),
            (prometheus, Format::OpenMetrics),
            ("text/plain;version=0.0.4;q=0.9,application/openmetrics-text;version=1.0.0;q=0.3", Format::Text),
            ("application/openmetrics-text;version=2.0.0", Format::Text),
            ("application/openmetrics-text", Format::OpenMetrics),
        ] {
            assert_eq!(negotiate(accept), format, "{accept}");
        }
        assert!(accepts_gzip("deflate, gzip;q=1.0") && !accepts_gzip("gzip;q=0") && !accepts_gzip("identity"));
    }
}
