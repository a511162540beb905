//! What people and Prometheus read over HTTP, and the control socket over which something is changed.
//!
//! `/metrics`, the status page and the two health answers only read. What changes something (reload, silence, hold)
//! goes over a socket in the file system whose rights decide who may: see [`control`]. Over HTTP comes only what a job
//! reports of itself, with a token, and what people do on the page, with a password: see `change`. Who may read is
//! decided by [`access`], and by where a browser comes from.

pub mod access;
mod change;
pub mod control;
mod heartbeat;
mod listen;
mod origin;
mod status;
mod tries;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, RawQuery, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use tokio::time::Instant;

use self::access::{Access, Gate, Passwords, Refusal, User};
use self::control::Carry;
use crate::metrics::Metrics;
use crate::model::decode::{Decode, mismatch};
use crate::model::yaml::Node;
use crate::model::{Problems, Timestamp};
use crate::snapshot::{Body, Format, Snapshot};
use crate::tasks::{self, Tasks};

pub use heartbeat::FindInbox;
pub use status::{AlertRow, Button, CheckRow, Event, Group, Notice, Rows, Status, TargetRow, Tone, Trouble};

/// The status page is rendered anew at most this often, whoever asks.
const RENDER_EVERY: Duration = Duration::from_secs(1);

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
        /// Where to listen. Everything here only reads, but for reports of jobs that show a token and for who shows a
        /// password, and it tells a stranger much about the site: keep it on loopback, or let only Prometheus reach it.
        listen: Listen = "127.0.0.1:9797",
        /// TLS and passwords, in the format of Prometheus' exporter-toolkit; without it everybody may read who reaches it,
        /// and nobody can change anything on the status page.
        config_file: Option<PathBuf>,
        /// Further names that browsers reach it by. Addresses, `localhost`, names without a dot, the name of this host and
        /// that of `site.external_url` are always right.
        hosts: Vec<String> = "[]",
        /// Users of `config_file` who may only read, such as Prometheus; all others may also change something on the page.
        readers: Vec<String> = "[]",
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
    /// What carries out what is asked for on the status page.
    pub carry: Carry,
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
    /// Nothing can be remembered safely.
    #[error("passwords cannot be looked at")]
    Random(#[source] std::io::Error),
}

/// Listens and serves until the tasks are stopped; returns the address, whose port was chosen by the kernel if it was 0.
///
/// # Errors
/// See [`WebError`].
pub async fn start(config: &WebConfig, pages: Pages, access: Access, metrics: Arc<Metrics>, tasks: &Tasks) -> Result<SocketAddr, WebError> {
    let address = config.listen.0;
    let failed = |source| WebError::Bind { address, source };
    let listener = tokio::net::TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let gate = access.gate();
    if !bound.ip().is_loopback() && gate.users.is_empty() && !gate.asks_certificates {
        tracing::info!("whoever reaches {bound} may read what Proctor knows of the site: web.config_file can ask for a password");
    }
    let guard = Guard { access: access.clone(), passwords: Passwords::new().map_err(WebError::Random)? };
    tasks.spawn_until_stopped("web access", access.clone().keep());
    tasks.spawn("web", listen::serve(listen::Tcp { listener, access }, router(pages, guard), metrics, tasks.clone()));
    Ok(bound)
}

fn router(pages: Pages, guard: Guard) -> Router {
    let reports = heartbeat::router(pages.inbox.clone());
    Router::new()
        .route("/", get(page))
        .route("/metrics", get(exposition))
        .route("/-/healthy", get(|| async { "ok\n" }))
        .route("/-/ready", get(ready))
        .route("/change", post(change::change).layer(DefaultBodyLimit::max(change::MAX_FORM)))
        .with_state(Desk { pages, access: guard.access.clone(), rendered: Arc::default() })
        .merge(reports)
        .layer(axum::middleware::from_fn_with_state(guard, pass))
}

/// Who is let in.
#[derive(Clone)]
struct Guard {
    access: Access,
    passwords: Passwords,
}

/// Lets a request through or refuses it, and sets the headers that every answer has.
async fn pass(State(guard): State<Guard>, Extension(from): Extension<IpAddr>, request: Request, next: Next) -> Response {
    let gate = guard.access.gate();
    let (mut head, body) = request.into_parts();
    let mut response = match guard.admit(&gate, from, &head).await {
        Err(refused) => refused,
        Ok(user) => {
            if let Some(user) = user {
                head.extensions.insert(user);
            }
            next.run(Request::from_parts(head, body)).await
        }
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let Some(policy) = &*status::POLICY {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy.clone());
    }
    for (name, value) in &gate.headers {
        headers.insert(name, value.clone());
    }
    response
}

const HEADERS: [(HeaderName, &str); 6] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    // With `no-referrer` a browser says of the page's own forms that they come from `null`.
    (header::REFERRER_POLICY, "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

impl Guard {
    /// Lets a request in, with whose it is where that is asked for; else answers why not.
    async fn admit(&self, gate: &Gate, from: IpAddr, head: &Parts) -> Result<Option<User>, Response> {
        let path = head.uri.path();
        let (is_health, headers) = (path.starts_with("/-/"), &head.headers);
        // What jobs report shows a token of its own.
        let is_free = is_health || path.starts_with("/heartbeat/");
        let retry = |seconds: u64| [(header::RETRY_AFTER, seconds.to_string())];
        if let Some(bucket) = gate.bucket.as_ref().filter(|bucket| !is_free && !bucket.takes(Instant::now())) {
            let why = "more requests than the rate_limit of web.config_file lets in\n";
            return Err((StatusCode::TOO_MANY_REQUESTS, retry(bucket.interval.as_secs().max(1)), why).into_response());
        }
        if path != "/metrics" && !is_health {
            let host = head.uri.authority().map_or(text(headers, &header::HOST), |authority| authority.as_str());
            if !origin::is_ours(host, &gate.hosts) {
                let named: String = host.chars().take(100).collect();
                let why = format!("this Proctor is not known as {named:?}: if it should be, add the name to web.hosts\n");
                return Err((StatusCode::FORBIDDEN, why).into_response());
            }
            if origin::is_foreign(&head.method, headers, host) {
                return Err((StatusCode::FORBIDDEN, "this was asked by a page of another origin\n").into_response());
            }
        }
        if gate.users.is_empty() || is_free {
            return Ok(None);
        }
        let checked = self.passwords.check(&gate.users, text(headers, &header::AUTHORIZATION), from).await;
        checked.map(Some).map_err(|refusal| match refusal {
            Refusal::Unauthorized => {
                let asks = [(header::WWW_AUTHENTICATE, "Basic realm=\"Proctor\", charset=\"UTF-8\"")];
                (StatusCode::UNAUTHORIZED, asks, "a name and its password are expected\n").into_response()
            }
            Refusal::TooMany => {
                let why = "too many wrong passwords from this address: wait a minute\n";
                (StatusCode::TOO_MANY_REQUESTS, retry(60), why).into_response()
            }
            Refusal::Busy => (StatusCode::SERVICE_UNAVAILABLE, retry(1), "too many passwords at once\n").into_response(),
        })
    }
}

/// The page, and when it was rendered.
type Rendered = Option<(Timestamp, Body)>;

/// What answers are made from.
#[derive(Clone)]
struct Desk {
    pages: Pages,
    access: Access,
    /// The status page that renews itself, and the one that does not, without and with forms: each rendered at most once
    /// every [`RENDER_EVERY`].
    rendered: Arc<[[Mutex<Rendered>; 2]; 2]>,
}

impl Desk {
    fn page(&self, renews: bool, changes: bool, now: Timestamp) -> Result<Body, askama::Error> {
        // Held while rendering: who asks meanwhile waits the few milliseconds and shares the result.
        let mut rendered = self.rendered[usize::from(changes)][usize::from(renews)].lock().unwrap_or_else(PoisonError::into_inner);
        match &*rendered {
            Some((at, body)) if now.since(*at) < RENDER_EVERY && now >= *at => Ok(body.clone()),
            _ => {
                let body = Body::of((self.pages.status)().render(now, renews, changes)?);
                *rendered = Some((now, body.clone()));
                Ok(body)
            }
        }
    }

    /// Forgets the pages, which something has changed.
    fn forget(&self) {
        self.rendered.iter().flatten().for_each(|page| *page.lock().unwrap_or_else(PoisonError::into_inner) = None);
    }
}

async fn page(State(desk): State<Desk>, user: Option<Extension<User>>, RawQuery(query): RawQuery, headers: HeaderMap) -> Response {
    let changes = desk.access.gate().lets_change(user.as_deref());
    match desk.page(query.as_deref() != Some("still"), changes, tasks::now()) {
        Ok(body) => send([(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::VARY, "Accept-Encoding")], body, &headers),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("the status page cannot be made: {error}\n")).into_response(),
    }
}

/// Sends a body, compressed if that is asked for.
fn send(head: [(HeaderName, &'static str); 2], body: Body, headers: &HeaderMap) -> Response {
    if accepts_gzip(text(headers, &header::ACCEPT_ENCODING)) && !body.gzip.is_empty() {
        return (head, [(header::CONTENT_ENCODING, "gzip")], body.gzip).into_response();
    }
    (head, body.plain).into_response()
}

/// Returns a header as text; empty where it is missing or none.
fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
}

async fn ready(State(desk): State<Desk>) -> Response {
    match (desk.pages.ready)() {
        Ok(()) => "ready\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response(),
    }
}

async fn exposition(State(desk): State<Desk>, headers: HeaderMap) -> Response {
    let format = negotiate(text(&headers, &header::ACCEPT));
    let content_type = match format {
        Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        Format::Text => "text/plain; version=0.0.4; charset=utf-8",
    };
    let head = [(header::CONTENT_TYPE, content_type), (header::VARY, "Accept, Accept-Encoding")];
    send(head, desk.pages.snapshot.body(format, tasks::now()), &headers)
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

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// `Accept`, `Accept-Encoding` and `Host` of a reader.
    pub fn headers(text: &str) {
        negotiate(text);
        accepts_gzip(text);
        origin::is_ours(text, &["status.example.org".to_owned()].into());
    }
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
