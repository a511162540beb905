//! Asks a web page: status, body, header, redirect.
//!
//! The names are blackbox_exporter's. A redirect is never followed: it is an answer, and where it leads is not ours to
//! ask. No compression is asked for, so no small answer can become a large one.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};
use regex::Regex;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::tcp::{self, beginning};
use super::{Planned, Probe, Recorder, failure_at};
use crate::client::http::{self, Answer, HttpError, Method, Request, Seen, Url};
use crate::client::net::{self, Endpoint, Trust};
use crate::client::secret;
use crate::model::decode::{self, Decode, Named};
use crate::model::yaml::Node;
use crate::model::{Failure, Family, Problems, Reason};

static STATUS: Family = Family::gauge("probe_http_status_code", "The status of the answer");
static PHASE: Family = Family::gauge("probe_http_duration_seconds", "How long each phase of asking a web page took");
static LENGTH: Family = Family::gauge("probe_http_content_length", "The length that the answer declares, -1 where it declares none");
static BODY: Family = Family::gauge("probe_http_uncompressed_body_length", "The length of the body that came");
static SSL: Family = Family::gauge("probe_http_ssl", "Whether the answer came over TLS");
static VERSION: Family = Family::gauge("probe_http_version", "The version of HTTP of the answer");
pub(super) static EXPIRY: Family =
    Family::gauge("probe_ssl_earliest_cert_expiry", "When the first of the served certificates expires, in seconds since the epoch");
pub(super) static TLS_VERSION: Family = Family::gauge("probe_tls_version_info", "The version of TLS that was agreed on");

/// The largest `max_body`: what one probe may hold of an answer.
const LARGEST_BODY: u64 = 16 << 20;

crate::config_struct! {
    /// Asks a web page: status, body, header, redirect. No redirect is followed.
    pub struct HttpConfig {
        /// The page: `http` or `https`, without a password.
        url: Url,
        /// How it is asked: `GET`, `HEAD` or `OPTIONS`.
        method: Looking = "GET",
        /// The `Host` header, where it is not the URL's host.
        host: Option<Host>,
        /// Further headers, names and texts. No secrets here: everybody who reads this file reads them.
        headers: Named<String> = "{}",
        /// File with a token that is sent as `Authorization: Bearer`; read before every request.
        bearer_file: Option<PathBuf>,
        /// The statuses that are right: codes such as `404`, classes such as `2xx`. The default is `[2xx]`, with
        /// `redirect` `[301, 302, 303, 307, 308]`.
        status: Option<Vec<Expected>>,
        /// Regular expression that the body must contain.
        body: Option<Regex>,
        /// Regular expression that the body must not contain.
        not_body: Option<Regex>,
        /// Regular expressions that headers of the answer must contain, by their names.
        header: Named<Regex> = "{}",
        /// Where the page must redirect to: the whole URL, or a regular expression for all of it.
        redirect: Option<Regex>,
        /// The most bytes of the body; a larger one is a failure. At most 16777216.
        max_body: u64 = "1048576",
        /// File with the certificates of the authorities that are trusted instead of the host's own.
        ca_file: Option<PathBuf>,
        /// Where to connect instead of to the URL's host, such as one server of several.
        connect_to: Option<Endpoint>,
    }
}

/// A method that changes nothing.
#[derive(Clone, Debug)]
pub struct Looking(Method);

impl Decode for Looking {
    const EXPECTED: &'static str = "GET, HEAD or OPTIONS";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let text = String::decode(node, &mut Problems::default());
        let method = match text.as_deref() {
            Some("GET") => Some(Method::GET),
            Some("HEAD") => Some(Method::HEAD),
            Some("OPTIONS") => Some(Method::OPTIONS),
            _ => None,
        };
        if method.is_none() {
            decode::mismatch(node, Self::EXPECTED, problems);
        }
        method.map(Self)
    }
}

/// A host as it stands in a URL: a name or an address, without a port unless it stands in a `Host` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host(Url);

impl Host {
    /// Returns the name or address, an IPv6 address without brackets.
    pub fn name(&self) -> &str {
        self.0.host()
    }

    /// Returns what stands in a `Host` header.
    pub fn authority(&self) -> String {
        self.0.authority()
    }

    /// Returns the URL of a path on this host.
    ///
    /// # Errors
    /// A path that does not begin with `/` or holds what a URL cannot.
    pub fn url(&self, path: &str) -> Result<Url, String> {
        if path.starts_with('/') { self.0.with_path(path) } else { Err(format!("expected a path that begins with /, found {path:?}")) }
    }
}

impl Decode for Host {
    const EXPECTED: &'static str = "a host such as www.example.org or 127.0.0.1";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let host = String::decode(node, &mut Problems::default())
            .filter(|text| !text.contains(['/', '?', '#']))
            .and_then(|text| Url::parse(&format!("http://{text}")).or_else(|_| Url::parse(&format!("http://[{text}]"))).ok());
        if host.is_none() {
            decode::mismatch(node, Self::EXPECTED, problems);
        }
        host.map(Self)
    }
}

/// A status or a class of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// One status.
    Code(u16),
    /// The first digit.
    Class(u16),
}

impl Expected {
    fn fits(self, status: u16) -> bool {
        match self {
            Self::Code(code) => code == status,
            Self::Class(class) => class == status / 100,
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "{code}"),
            Self::Class(class) => write!(f, "{class}xx"),
        }
    }
}

impl Decode for Expected {
    const EXPECTED: &'static str = "a status such as 200, or a class such as 2xx";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let text = String::decode(node, &mut Problems::default()).unwrap_or_default();
        let number = |text: &str, from: u16, to: u16| text.parse::<u16>().ok().filter(|number| (from..=to).contains(number));
        let expected = match text.strip_suffix("xx") {
            Some(class) => number(class, 1, 5).map(Self::Class),
            None => number(&text, 100, 599).map(Self::Code),
        };
        if expected.is_none() {
            decode::mismatch(node, Self::EXPECTED, problems);
        }
        expected
    }
}

/// Builds the one target.
///
/// # Errors
/// A header that cannot be sent, a file that cannot be read.
pub fn plan(config: &HttpConfig) -> Result<Vec<Planned>, String> {
    let mut request = Request::get(config.url.clone());
    request.method = config.method.0.clone();
    request.at = config.connect_to.clone();
    for (name, value) in &config.headers.0 {
        let valid = HeaderName::from_bytes(name.as_bytes()).is_ok() && HeaderValue::from_str(value).is_ok();
        if !valid {
            return Err(format!("headers: {:?} cannot be sent: name or text holds characters that HTTP does not allow", name.value));
        }
        request = request.header(name.value.clone(), value);
    }
    if let Some(host) = &config.host {
        request = request.header("host", host.authority());
    }
    if let Some(path) = &config.bearer_file {
        secret::read(path).map_err(|error| format!("bearer_file: {}", net::chain(&error)))?;
    }
    let redirect = match &config.redirect {
        Some(pattern) => Some(whole(pattern)?),
        None => None,
    };
    let default: &[Expected] = if redirect.is_some() { &REDIRECTS } else { &[Expected::Class(2)] };
    if config.max_body > LARGEST_BODY {
        return Err(format!("max_body: expected at most {LARGEST_BODY}, found {}", config.max_body));
    }
    Ok(Planned::only(Http {
        request,
        trust: trust(config.ca_file.as_ref())?,
        status: config.status.clone().filter(|list| !list.is_empty()).unwrap_or_else(|| default.to_vec()),
        redirect,
        max_body: usize::try_from(config.max_body).unwrap_or(usize::MAX),
        config: config.clone(),
    }))
}

/// The statuses by which a page redirects.
pub(super) const REDIRECTS: [Expected; 5] =
    [Expected::Code(301), Expected::Code(302), Expected::Code(303), Expected::Code(307), Expected::Code(308)];

/// Returns whom a probe trusts.
pub(super) fn trust(ca_file: Option<&PathBuf>) -> Result<Trust, String> {
    secret::trust(ca_file.map(PathBuf::as_path)).map_err(|error| format!("ca_file: {}", net::chain(&error)))
}

/// The same pattern for the whole of a text.
fn whole(pattern: &Regex) -> Result<Regex, String> {
    Regex::new(&format!("^(?:{pattern})$")).map_err(|error| format!("redirect: {error}"))
}

/// Connects, encrypts, asks; records each phase as soon as it is over and says what it waits for.
///
/// # Errors
/// The failure; any status is an answer.
pub(super) async fn ask(
    rec: &mut Recorder,
    request: &Request,
    trust: &Trust,
    max_body: usize,
    seen: &mut Seen,
) -> Result<Answer, Failure> {
    let connected = rec.connect(&request.endpoint(), &mut seen.net).await;
    record_connect(rec, seen);
    let stream = connected?;
    let (endpoint, url) = (request.endpoint(), &request.url);
    if url.is_https() {
        rec.waiting(Reason::AnswerTimeout, format!("{endpoint}: {}, waiting for the TLS handshake", seen.net));
    }
    let secured = http::secure(stream, url, trust, seen).await;
    record_tls(rec, seen);
    let stream = secured.map_err(|error| failure_at(url, &error))?;
    rec.waiting(Reason::AnswerTimeout, format!("{endpoint}: {}, waiting for the answer to {} {url}", seen.net, request.method));
    let answer = http::exchange(stream, request, max_body, seen).await;
    record_answer(rec, url, seen, answer.as_ref().ok());
    answer.map_err(|error| failure_of(url, &error))
}

/// Turns an error of HTTP into a failure.
pub(super) fn failure_of(place: impl fmt::Display, error: &HttpError) -> Failure {
    Failure::new(error.reason(), format!("{place}: {}", net::chain(error)))
}

fn phase(rec: &mut Recorder, name: &str, took: Option<Duration>) {
    if let Some(took) = took {
        rec.set_with(&PHASE, &[("phase", name)], took.as_secs_f64());
    }
}

/// Records what connecting showed.
pub(super) fn record_connect(rec: &mut Recorder, seen: &Seen) {
    tcp::record_net(rec, &seen.net);
    phase(rec, "resolve", seen.net.resolve);
    phase(rec, "connect", seen.net.connect);
}

fn record_tls(rec: &mut Recorder, seen: &Seen) {
    phase(rec, "tls", seen.net.tls);
    let Some(served) = &seen.served else { return };
    let expiry = |der: &[u8]| x509_parser::parse_x509_certificate(der).ok().map(|(_, cert)| cert.validity().not_after.timestamp());
    if let Some(first) = served.chain.iter().filter_map(|der| expiry(der)).min() {
        rec.set(&EXPIRY, first as f64);
    }
    rec.set_with(&TLS_VERSION, &[("version", served.version)], 1.0);
}

/// Records what came, as far as it came.
pub(super) fn record_answer(rec: &mut Recorder, url: &Url, seen: &Seen, answer: Option<&Answer>) {
    phase(rec, "processing", seen.processing);
    phase(rec, "transfer", seen.transfer);
    if let (Some(status), Some(version)) = (seen.status, seen.version) {
        rec.set(&STATUS, f64::from(status));
        rec.set(&VERSION, version);
        rec.set(&SSL, f64::from(u8::from(url.is_https())));
    }
    if let Some(answer) = answer {
        rec.set(&LENGTH, answer.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(-1.0));
        rec.set(&BODY, answer.body.len() as f64);
    }
}

/// Judges a status.
///
/// # Errors
/// What was expected and what was found.
pub(super) fn judge_status(url: &Url, answer: &Answer, expected: &[Expected]) -> Result<(), Failure> {
    if expected.iter().any(|expected| expected.fits(answer.status)) {
        return Ok(());
    }
    let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
    Err(Failure::new(Reason::Mismatch, format!("{url}: expected status {}, found {}", expected.join(" or "), found(answer))))
}

/// Says what came, for people: `503 Service Unavailable; the body begins "down on purpose"`.
pub(super) fn found(answer: &Answer) -> String {
    let name = StatusCode::from_u16(answer.status).ok().and_then(|status| status.canonical_reason());
    let mut text = answer.status.to_string();
    if let Some(name) = name {
        text = format!("{text} {name}");
    }
    if let Some(to) = answer.header("location") {
        text = format!("{text} to {}", beginning(to.as_bytes()));
    }
    if !answer.body.is_empty() {
        text = format!("{text}; the body begins {}", beginning(&answer.body));
    }
    text
}

/// Returns where an answer redirects to, as a whole URL where it is one of `http` or `https`.
pub(super) fn location(url: &Url, answer: &Answer) -> Option<String> {
    let to = answer.header("location")?.trim();
    let resolved = if to.starts_with("//") {
        Url::parse(&format!("{}:{to}", if url.is_https() { "https" } else { "http" }))
    } else if to.starts_with('/') {
        url.with_path(to)
    } else if to.contains("://") {
        Url::parse(to)
    } else {
        let folder = url.path().split('?').next().and_then(|path| path.rsplit_once('/')).map_or("", |(folder, _)| folder);
        url.with_path(&format!("{folder}/{to}"))
    };
    Some(resolved.map_or_else(|_| to.to_owned(), |url| url.to_string()))
}

struct Http {
    config: HttpConfig,
    request: Request,
    trust: Trust,
    status: Vec<Expected>,
    redirect: Option<Regex>,
    max_body: usize,
}

impl Http {
    /// Judges an answer; says also whether a regular expression was to blame.
    fn judge(&self, answer: &Answer) -> Result<(), (Failure, bool)> {
        let url = &self.request.url;
        let mismatch = |text: String| (Failure::new(Reason::Mismatch, format!("{url}: {text}")), true);
        judge_status(url, answer, &self.status).map_err(|failure| (failure, false))?;
        if let (Some(pattern), Some(wanted)) = (&self.redirect, &self.config.redirect) {
            let wanted = wanted.as_str();
            let plain = Url::parse(wanted).map(|url| url.to_string());
            let raw = answer.header("location").unwrap_or_default();
            let to = location(url, answer).unwrap_or_default();
            if ![raw, &to].into_iter().any(|to| to == wanted || pattern.is_match(to)) && plain.as_ref() != Ok(&to) {
                return Err(mismatch(format!("expected a redirect to {wanted}, found {}", found(answer))));
            }
        }
        for (name, pattern) in &self.config.header.0 {
            let values: Vec<_> = answer.headers.get_all(name.as_str()).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
            if !values.iter().any(|value| pattern.is_match(value)) {
                let what = values.first().map_or("no such header".to_owned(), |value| beginning(value.as_bytes()));
                return Err(mismatch(format!("expected the header {} to match {pattern}, found {what}", name.value)));
            }
        }
        let text = answer.text();
        if let Some(pattern) = self.config.body.as_ref().filter(|pattern| !pattern.is_match(&text)) {
            return Err(mismatch(format!("expected a body that matches {pattern}, found {}", found(answer))));
        }
        match self.config.not_body.as_ref().and_then(|pattern| pattern.find(&text).map(|hit| (pattern, hit.as_str()))) {
            Some((pattern, hit)) => {
                Err(mismatch(format!("expected no body that matches {pattern}, found {} in it", beginning(hit.as_bytes()))))
            }
            None => Ok(()),
        }
    }
}

impl Probe for Http {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        async move {
            let mut request = self.request.clone();
            if let Some(path) = &self.config.bearer_file {
                let token = secret::read(path).map_err(|error| Failure::new(Reason::Auth, net::chain(&error)))?;
                request = request.header(AUTHORIZATION.as_str(), format!("Bearer {}", token.expose()));
            }
            let answer = ask(rec, &request, &self.trust, self.max_body, &mut Seen::default()).await?;
            let judged = self.judge(&answer);
            rec.set(&tcp::REGEX, f64::from(u8::from(matches!(judged, Err((_, true))))));
            judged.map_err(|(failure, _)| failure)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_names_what_is_wrong_with_it() {
        for (text, wrong) in [
            ("url: ftp://a", "expected a URL that begins with http:// or https://"),
            ("url: http://a\nmethod: DELETE", "expected GET, HEAD or OPTIONS"),
            ("url: http://a\nstatus: [2xx, 99]", "expected a status such as 200, or a class such as 2xx, found \"99\""),
            ("url: http://a\nhost: 'a/b'", "expected a host such as"),
            ("url: http://a\nbody: '('", "expected a regular expression"),
        ] {
            let problems = decode::from_text::<HttpConfig>("f", text).expect_err(text);
            assert!(problems[0].message.contains(wrong), "{text}: {}", problems[0]);
        }
        for text in ["headers: {'a b': c}", "headers: {a: \"b\\r\\nc: d\"}", "max_body: 999999999", "ca_file: /dev/null", "bearer_file: /nowhere"] {
            let config: HttpConfig = decode::from_text("f", &format!("url: http://a\n{text}")).expect(text);
            assert!(plan(&config).is_err(), "{text}");
        }
    }

    #[test]
    fn a_location_is_resolved_against_the_page() {
        let url = Url::parse("https://a.example/deep/page?x=1").expect("is a URL");
        for (to, whole) in [
            ("/", "https://a.example/"),
            ("other", "https://a.example/deep/other"),
            ("//b.example/x", "https://b.example/x"),
            ("http://c.example", "http://c.example/"),
            ("javascript://%0aalert(1)", "javascript://%0aalert(1)"),
        ] {
            let headers = [("location".parse().expect("a name"), to.parse().expect("a value"))].into_iter().collect();
            let answer = Answer { status: 302, headers, body: Vec::new() };
            assert_eq!(location(&url, &answer).as_deref(), Some(whole));
        }
    }
}
