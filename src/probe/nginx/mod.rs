//! Asks nginx: its own counters, each site under its own name, each redirect, its processes, its logs.
//!
//! The counters' names are nginx-prometheus-exporter's. A site is asked with its own `Host`, since the default server
//! answers every other name, and does so even when the site's own server block is gone.

pub mod format;
pub mod log;
pub mod tail;

pub mod configuration;
mod workers;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::http::{self, Expected, Host, REDIRECTS, ask, found, judge_status, location};
use super::{Planned, Probe, Recorder, Shared};
use crate::client::http::{Answer, Request, Seen, Url};
use crate::client::net::{Endpoint, Trust};
use crate::model::decode::{Decode, Named};
use crate::model::yaml::Node;
use crate::model::{Failure, Family, Problems, Reason};

use format::LogFormat;
use log::{Errors, Log, Requests};
use workers::Workers;

static UP: Family = Family::gauge("nginx_up", "Whether nginx's stub_status answers");
static ACTIVE: Family = Family::gauge("nginx_connections_active", "Connections that are open, those that wait for a request among them");
static READING: Family = Family::gauge("nginx_connections_reading", "Connections whose request is being read");
static WRITING: Family = Family::gauge("nginx_connections_writing", "Connections whose answer is being made or written");
static WAITING: Family = Family::gauge("nginx_connections_waiting", "Connections that wait for their next request");
static ACCEPTED: Family = Family::borrowed_counter("nginx_connections_accepted", "Connections that were accepted");
static HANDLED: Family =
    Family::borrowed_counter("nginx_connections_handled", "Connections that were accepted and found a place in worker_connections");
static REQUESTS: Family = Family::counter("nginx_http_requests_total", "Requests");
static MAINTENANCE: Family = Family::gauge("nginx_site_maintenance", "Whether the page answers 503 while a file of maintenance.files exists");

/// The most bytes of a page that are read: it is asked whether it comes, not what is in it.
const MAX_PAGE: usize = 1 << 20;
/// The most bytes of stub_status, which has about a hundred.
const MAX_STATUS: usize = 4096;

crate::config_struct! {
    /// Asks nginx: its own counters, each site under its own name, each redirect, its processes, its logs. One target
    /// for each of them.
    pub struct NginxConfig {
        /// The page of `stub_status`, such as `http://127.0.0.1/nginx_status`.
        status: Option<Url>,
        /// Pages of the sites, each asked under its own name, its certificate verified: 2xx is right, and a redirect
        /// that does not lead to the page itself. What is in them, an `http` probe asks.
        sites: Vec<Url> = "[]",
        /// Pages that redirect, and where to.
        redirects: Redirects = "{}",
        /// Files that nginx serves itself: 200 is right, with a body that is no HTML.
        static_files: Vec<Url> = "[]",
        /// Host where the pages of `sites` and `redirects` are asked, at the port of their URL: this nginx, instead of
        /// whatever their public names lead to.
        address: Option<Host>,
        /// File with the certificates of the authorities that are trusted instead of the host's own.
        ca_file: Option<PathBuf>,
        /// File with the process number of the master, such as `/run/nginx.pid`: whether its workers have the
        /// configuration that is on disk, and whether old ones ever end.
        pid_file: Option<PathBuf>,
        /// Where nginx's configuration begins: files, each with all that it includes, and folders with all that is in
        /// them. Looked at with `pid_file` only.
        configuration: Vec<PathBuf> = "[/etc/nginx/nginx.conf]",
        /// Access logs, followed through rotation.
        access_logs: Vec<PathBuf> = "[]",
        /// The format of `access_logs`: `combined`, or the text of nginx's `log_format`. With `$request_time` and
        /// `$upstream_response_time` in it there are histograms of both.
        log_format: LogFormat = "combined",
        /// Error logs, followed through rotation.
        error_logs: Vec<PathBuf> = "[]",
    }
}

/// From URL to URL.
#[derive(Clone, Debug)]
pub struct Redirects(pub Vec<(Url, Url)>);

impl Decode for Redirects {
    const EXPECTED: &'static str = "a mapping from URLs to URLs";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let pairs = Named::<Url>::decode(node, problems)?.0;
        let pairs: Vec<_> = pairs
            .into_iter()
            .map(|(from, to)| Url::parse(&from).map_err(|why| problems.push(from.at, why)).ok().map(|from| (from, to)))
            .collect();
        pairs.into_iter().collect::<Option<_>>().map(Self)
    }
}

/// Builds a target for the counters, one per page, one for the processes, one per log.
///
/// # Errors
/// Nothing to ask, a page or a log that stands twice, a file of authorities that cannot be read.
pub fn plan(config: &NginxConfig, _name: &str, shared: &Shared) -> Result<Vec<Planned>, String> {
    let trust = http::trust(config.ca_file.as_ref())?;
    let page = |url: &Url, wanted: Wanted| {
        let mut request = Request::get(url.clone());
        request.at = config.address.as_ref().map(|host| Endpoint::Tcp { host: host.name().to_owned(), port: url.port() });
        let maintenance = shared.maintenance().clone();
        Planned::one(url.to_string(), Page { request, trust: trust.clone(), wanted, maintenance })
    };
    let status = config.status.iter().map(|url| Planned::one("status", Status { request: Request::get(url.clone()), trust: trust.clone() }));
    let sites = config.sites.iter().map(|url| page(url, Wanted::Page));
    let redirects = config.redirects.0.iter().map(|(from, to)| page(from, Wanted::RedirectTo(to.clone())));
    let files = config.static_files.iter().map(|url| page(url, Wanted::File));
    let workers = config.pid_file.iter().map(|pid_file| {
        let workers = Workers::new(pid_file.clone(), config.configuration.clone(), shared.changes().clone());
        Planned::one("workers", workers)
    });
    let access = config.access_logs.iter().map(|path| {
        let requests = Requests::new(config.log_format.clone());
        Planned::one(path.to_string_lossy(), Log::new(path, requests))
    });
    let errors = config.error_logs.iter().map(|path| Planned::one(path.to_string_lossy(), Log::new(path, Errors::default())));
    let planned: Vec<Planned> = status.chain(sites).chain(redirects).chain(files).chain(workers).chain(access).chain(errors).collect();
    let mut names = BTreeSet::new();
    match planned.iter().filter_map(|planned| planned.target.as_deref()).find(|name| !names.insert(*name)) {
        Some(twice) => Err(format!("{twice} stands here twice")),
        None if planned.is_empty() => {
            Err("expected at least one of status, sites, redirects, static_files, pid_file, access_logs and error_logs, found none".to_owned())
        }
        None => Ok(planned),
    }
}

/// The page of stub_status.
struct Status {
    request: Request,
    trust: Trust,
}

impl Probe for Status {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        async move {
            let url = &self.request.url;
            let answer = ask(rec, &self.request, &self.trust, MAX_STATUS, &mut Seen::default()).await?;
            let reason = match answer.status {
                200 => None,
                403 => Some(Reason::Forbidden),
                404 => Some(Reason::Missing),
                _ => Some(Reason::Mismatch),
            };
            let remedy = "nginx needs 'location = /nginx_status { stub_status; allow 127.0.0.1; deny all; }' in the server that is asked";
            if let Some(reason) = reason {
                return Err(Failure::new(reason, format!("{url}: expected stub_status, found {}: {remedy}", found(&answer))));
            }
            let Some(values) = numbers(&answer.text()) else {
                return Err(Failure::new(Reason::Protocol, format!("{url}: expected stub_status, found {}: {remedy}", found(&answer))));
            };
            for (family, value) in [&ACTIVE, &ACCEPTED, &HANDLED, &REQUESTS, &READING, &WRITING, &WAITING].into_iter().zip(values) {
                rec.set(family, value as f64);
            }
            Ok(())
        }
        .boxed()
    }

    fn up(&self) -> Option<&'static Family> {
        Some(&UP)
    }
}

/// Reads the seven numbers of stub_status (`ngx_http_stub_status_module.c`): active, accepted, handled, requests,
/// reading, writing, waiting.
fn numbers(text: &str) -> Option<[u64; 7]> {
    let rest = text.strip_prefix("Active connections: ")?;
    let (active, rest) = rest.split_once("\nserver accepts handled requests\n")?;
    let (counts, states) = rest.split_once('\n')?;
    let mut words = states.split_whitespace();
    let mut values = vec![active.trim()];
    values.extend(counts.split_whitespace());
    for name in ["Reading:", "Writing:", "Waiting:"] {
        words.next().filter(|word| *word == name)?;
        values.push(words.next()?);
    }
    let values: Option<Vec<u64>> = values.into_iter().map(|value| value.parse().ok()).collect();
    values?.try_into().ok()
}

/// What a page should be.
enum Wanted {
    /// A page, or a redirect to another.
    Page,
    /// A redirect to exactly this.
    RedirectTo(Url),
    /// A file that nginx serves itself.
    File,
}

/// A page of a site, or one that redirects, or a file.
struct Page {
    request: Request,
    trust: Trust,
    wanted: Wanted,
    /// Files that say that the site is down on purpose.
    maintenance: Arc<[PathBuf]>,
}

impl Page {
    fn judge(&self, answer: &Answer) -> Result<(), Failure> {
        let url = &self.request.url;
        let mismatch = |text| Err(Failure::new(Reason::Mismatch, format!("{url}: {text}")));
        match &self.wanted {
            Wanted::RedirectTo(to) => {
                judge_status(url, answer, &REDIRECTS)?;
                if location(url, answer).as_deref() == Some(&to.to_string()) {
                    return Ok(());
                }
                mismatch(format!("expected a redirect to {to}, found {}", found(answer)))
            }
            Wanted::Page => {
                judge_status(url, answer, &[Expected::Class(2), Expected::Class(3)])?;
                if location(url, answer).as_deref() == Some(&url.to_string()) {
                    return mismatch(format!("redirects to itself, so no browser ever sees it: {}", found(answer)));
                }
                Ok(())
            }
            Wanted::File => {
                judge_status(url, answer, &[Expected::Code(200)])?;
                let is_html = answer.header("content-type").is_some_and(|kind| kind.starts_with("text/html"));
                match answer.body.is_empty() {
                    true => mismatch("expected a file that nginx serves, found an empty one".to_owned()),
                    false if is_html => mismatch(format!("expected a file that nginx serves, found a page: {}", found(answer))),
                    false => Ok(()),
                }
            }
        }
    }

    /// Says whether the site is down on purpose: one look into a folder, as the one that mutes does it.
    fn is_maintained(&self) -> bool {
        self.maintenance.iter().any(|file| file.exists())
    }
}

impl Probe for Page {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        async move {
            let mut seen = Seen::default();
            let answer = ask(rec, &self.request, &self.trust, MAX_PAGE, &mut seen).await;
            let maintained = seen.status == Some(503) && self.is_maintained();
            if !self.maintenance.is_empty() {
                rec.set(&MAINTENANCE, f64::from(u8::from(maintained)));
            }
            match answer {
                _ if maintained => Ok(()),
                Ok(answer) => self.judge(&answer),
                // A page that is longer than is read here is a page all the same.
                Err(failure) if failure.reason == Reason::TooLarge && seen.status == Some(200) => match self.wanted {
                    Wanted::Page | Wanted::File => Ok(()),
                    Wanted::RedirectTo(_) => Err(failure),
                },
                Err(failure) => Err(failure),
            }
        }
        .boxed()
    }
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// The page of stub_status.
    pub fn stub_status(bytes: &[u8]) {
        numbers(&String::from_utf8_lossy(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decode::from_text;

    #[test]
    fn stub_status_is_read_and_nothing_like_it() {
        let text = "Active connections: 291 \nserver accepts handled requests\n 16630948 16630947 31070465 \nReading: 6 Writing: 179 Waiting: 106 \n";
        assert_eq!(numbers(text), Some([291, 16_630_948, 16_630_947, 31_070_465, 6, 179, 106]));
        for length in 0..text.len() - 6 {
            assert_eq!(numbers(&text[..length]), None, "cut at {length}");
        }
        // Tengine has a fourth count and another header: it is not taken for nginx.
        for text in ["", "<html>", &text.replace("31070465 ", "31070465 7 "), &text.replace("291", "-1"), &text.replace("6 W", "x W")] {
            assert_eq!(numbers(text), None, "{text}");
        }
    }

    #[test]
    fn every_page_is_a_target_of_its_own() {
        let config = |text: &str| from_text::<NginxConfig>("f", text).expect(text);
        let text = "status: http://127.0.0.1/nginx_status\nsites: ['https://a.example', 'https://b.example/x']\nredirects: {'http://a.example': 'https://a.example'}\naddress: ::1\npid_file: /run/nginx.pid\naccess_logs: [/a.log]\nerror_logs: [/b.log]\nstatic_files: ['https://a.example/x.css']";
        let plan = |config: &NginxConfig| plan(config, "web", &Shared::default());
        let planned = plan(&config(text)).expect("is right");
        let names: Vec<_> = planned.iter().filter_map(|planned| planned.target.as_deref()).collect();
        assert_eq!(names, ["status", "https://a.example/", "https://b.example/x", "http://a.example/", "https://a.example/x.css", "workers", "/a.log", "/b.log"]);
        assert!(plan(&config("")).is_err_and(|why| why.contains("at least one of")));
        assert!(plan(&config("access_logs: [/a.log]\nerror_logs: [/a.log]")).is_err_and(|why| why.contains("/a.log stands here twice")));
        assert!(plan(&config("sites: ['http://a/', 'http://a']")).is_err_and(|why| why.contains("twice")));
        let problems = from_text::<NginxConfig>("f", "redirects: {a: b, 'http://c': d}\naddress: a:b:c").expect_err("is wrong");
        assert_eq!(problems.iter().map(|problem| (problem.at.line, problem.at.col)).collect::<Vec<_>>(), [(1, 16), (1, 31), (2, 10)]);
    }
}
