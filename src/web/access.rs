//! Who may read what is served over HTTP, and change something there: `web.config_file` in exporter-toolkit's format, and the names of this Proctor.
//!
//! The file and what it names are looked at every second, as the toolkit does at every request: a renewed certificate or
//! a new password is taken without a restart. What is wrong in a new one is said, and the old one stays in force.

mod password;
mod rate;
mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, header};
use rustls::ServerConfig;

pub(super) use self::password::{Passwords, Refusal, User};
use self::rate::Bucket;
pub use self::rate::RateLimit;
pub use self::tls::TlsConfig;
use super::WebConfig;
use crate::model::decode::{Decode, Named, Spanned, from_text};
use crate::model::yaml::{Node, Value};
use crate::model::{Position, Problem, Problems, Secret};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The most users; each wrong password costs one hash, so that their number costs nothing.
const MAX_USERS: usize = 200;
/// The costliest hash: 2^15 rounds take about two seconds.
const MAX_COST: u32 = 15;

/// Reads a file of the configuration; handed in, since that is decided where configurations are.
pub type Read = fn(&Path) -> Result<String, String>;

/// The hash of a password.
#[derive(Clone, Debug)]
pub struct Hash(Secret);

impl Decode for Hash {
    const EXPECTED: &'static str = "a bcrypt hash such as htpasswd -nBC 10 USER makes";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        // What was found is not shown: it may be the password itself.
        let mut wrong = |what: &str| problems.push(node.at, format!("expected {}, found {what}", Self::EXPECTED));
        let Value::Scalar { text, .. } = &node.value else {
            wrong("no text");
            return None;
        };
        match bcrypt::HashParts::from_str(text) {
            Ok(parts) if parts.get_cost() <= MAX_COST => Some(Self(Secret::new(text.clone()))),
            Ok(parts) => {
                wrong(&format!("one of cost {}: at most {MAX_COST}", parts.get_cost()));
                None
            }
            Err(_) => {
                wrong("another text");
                None
            }
        }
    }
}

/// A header that is set on every answer: those that exporter-toolkit lets set.
#[derive(Clone, Debug)]
pub struct Headers(Vec<(HeaderName, HeaderValue)>);

impl Decode for Headers {
    const EXPECTED: &'static str = "a mapping from headers of security";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let known = [
            header::CONTENT_SECURITY_POLICY,
            header::X_CONTENT_TYPE_OPTIONS,
            header::X_FRAME_OPTIONS,
            header::X_XSS_PROTECTION,
            header::STRICT_TRANSPORT_SECURITY,
        ];
        let given = Named::<Spanned<String>>::decode(node, problems)?.0;
        let headers = given.into_iter().map(|(name, value)| {
            let Some(header) = known.iter().find(|known| known.as_str().eq_ignore_ascii_case(&name)) else {
                let known: Vec<&str> = known.iter().map(HeaderName::as_str).collect();
                problems.push(name.at, crate::model::decode::unknown("header", &name, &known));
                return None;
            };
            match HeaderValue::from_str(&value.value) {
                Ok(value) => Some((header.clone(), value)),
                Err(_) => {
                    problems.push(value.at, "expected the value of a header: one line of visible characters");
                    None
                }
            }
        });
        headers.collect::<Vec<_>>().into_iter().collect::<Option<_>>().map(Self)
    }
}

crate::config_struct! {
    /// How HTTP is spoken, in exporter-toolkit's keys.
    pub struct HttpServerConfig {
        /// Taken for files that are shared with exporters: Proctor speaks HTTP/1.1 alone, whatever stands here.
        http2: bool = "true",
        /// Headers of security that are set on every answer, in place of Proctor's own.
        headers: Headers = "{}",
    }
}

crate::config_struct! {
    /// The file that `web.config_file` names, in exporter-toolkit's format.
    pub struct AccessConfig {
        /// TLS; without it what is served is plain HTTP.
        tls_server_config: Option<Spanned<TlsConfig>>,
        /// How HTTP is spoken.
        http_server_config: HttpServerConfig = "{}",
        /// Who may read, and change what the status page lets change, with the bcrypt hash of each one's password; without
        /// it everybody may read and nobody may change anything.
        basic_auth_users: Named<Hash> = "{}",
        /// How many requests are answered.
        rate_limit: Spanned<RateLimit> = "{}",
    }
}

/// What a request must show, under one configuration.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    file: Option<PathBuf>,
    /// The files that it was made from, as they were.
    stamps: Vec<(PathBuf, Stamp)>,
    pub(super) tls: Option<Arc<ServerConfig>>,
    /// Whether every client must show a certificate.
    pub(super) asks_certificates: bool,
    pub(super) users: BTreeMap<String, Secret>,
    pub(super) bucket: Option<Arc<Bucket>>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// The names of this Proctor besides those that are always right.
    pub(super) hosts: BTreeSet<String>,
    /// The users who may only read.
    readers: BTreeSet<String>,
}

/// What tells one version of a file from another: device, inode, length, time of change. Nothing where it is missing.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

fn stamp(path: &Path) -> Stamp {
    let found = std::fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
}

impl Gate {
    /// Makes it of the configuration and of the file that it names.
    ///
    /// # Errors
    /// Every mistake of that file.
    pub fn load(web: &WebConfig, external_url: Option<&str>, read: Read) -> Result<Self, Vec<Problem>> {
        let external = external_url.and_then(|url| Some(url.split_once("://")?.1.split(['/', '?', '#']).next()?.to_owned()));
        let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let hosts = web.hosts.iter().cloned().chain(external).chain([node]);
        let hosts = hosts.map(|host| super::origin::without_port(&host).trim_end_matches('.').to_ascii_lowercase()).collect();
        let readers = web.readers.iter().cloned().collect();
        match &web.config_file {
            None => Ok(Self { hosts, ..Self::default() }),
            Some(file) => Ok(Self { hosts, readers, ..Self::of_file(file, read)? }),
        }
    }

    /// Says whether somebody may change something.
    pub(super) fn lets_change(&self, user: Option<&User>) -> bool {
        user.is_some_and(|User(name)| !self.readers.contains(name))
    }

    /// Says whether TLS is spoken.
    pub fn speaks_tls(&self) -> bool {
        self.tls.is_some()
    }

    fn of_file(file: &Path, read: Read) -> Result<Self, Vec<Problem>> {
        let mut stamps = vec![(file.to_owned(), stamp(file))];
        let wrong = |at, message| vec![Problem { file: file.to_owned(), at, message }];
        let text = read(file).map_err(|message| wrong(Position { line: 1, col: 1 }, message))?;
        let config: AccessConfig = from_text(file, &text)?;
        if config.basic_auth_users.0.len() > MAX_USERS {
            let found = config.basic_auth_users.0.len();
            return Err(wrong(Position { line: 1, col: 1 }, format!("basic_auth_users: expected at most {MAX_USERS}, found {found}")));
        }
        let tls = match &config.tls_server_config {
            None => None,
            Some(tls) => {
                let folder = file.parent().unwrap_or(Path::new(""));
                let files = [Some(&tls.cert_file), Some(&tls.key_file), tls.client_ca_file.as_ref()];
                stamps.extend(files.into_iter().flatten().map(|path| folder.join(path)).map(|path| (path.clone(), stamp(&path))));
                Some(Arc::new(tls::server(tls, folder).map_err(|message| wrong(tls.at, message))?))
            }
        };
        let bucket = config.rate_limit.bucket().map_err(|message| wrong(config.rate_limit.at, message))?.map(Arc::new);
        Ok(Self {
            file: Some(file.to_owned()),
            stamps,
            tls,
            bucket,
            asks_certificates: config.tls_server_config.is_some_and(|tls| tls.asks_certificates()),
            users: config.basic_auth_users.0.into_iter().map(|(name, hash)| (name.value, hash.0)).collect(),
            headers: config.http_server_config.headers.0,
            hosts: BTreeSet::new(),
            readers: BTreeSet::new(),
        })
    }
}

/// Why a changed file is not taken.
#[derive(Clone, Debug)]
pub struct Stale(Vec<Problem>);

/// Names places and no texts: a page shows it.
impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.0.first() else { return Ok(()) };
        write!(f, "{}:{}:{}", first.file.display(), first.at.line, first.at.col)
    }
}

#[derive(Debug)]
struct State {
    gate: Arc<Gate>,
    stale: Option<Stale>,
}

/// What a request must show now. Clones share it.
#[derive(Clone, Debug)]
pub struct Access {
    state: Arc<RwLock<State>>,
    read: Read,
}

impl Access {
    /// Begins with a gate.
    pub fn new(gate: Gate, read: Read) -> Self {
        Self { state: Arc::new(RwLock::new(State { gate: Arc::new(gate), stale: None })), read }
    }

    /// Returns the gate in force.
    pub(super) fn gate(&self) -> Arc<Gate> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).gate.clone()
    }

    /// Puts another gate in force.
    pub fn replace(&self, gate: Gate) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = State { gate: Arc::new(gate), stale: None };
    }

    /// Says why the file as it is now is not in force.
    pub fn stale(&self) -> Option<Stale> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).stale.clone()
    }

    /// Takes the file anew whenever it, or what it names, has changed.
    pub(super) async fn keep(self) {
        let mut seen: Vec<(PathBuf, Stamp)> = Vec::new();
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tick.tick().await;
            let (access, known) = (self.clone(), std::mem::take(&mut seen));
            // Files may be slow.
            match tokio::task::spawn_blocking(move || access.look(known)).await {
                Ok(now) => seen = now,
                Err(_) => return,
            }
        }
    }

    /// Looks once; `refused` are the files as they were when they were last refused.
    fn look(&self, refused: Vec<(PathBuf, Stamp)>) -> Vec<(PathBuf, Stamp)> {
        let gate = self.gate();
        let Some(file) = &gate.file else { return Vec::new() };
        let now: Vec<(PathBuf, Stamp)> = gate.stamps.iter().map(|(path, _)| (path.clone(), stamp(path))).collect();
        if now == gate.stamps || now == refused {
            return refused;
        }
        let made = Gate::of_file(file, self.read);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        // A reload may have put another one in force meanwhile.
        if !Arc::ptr_eq(&state.gate, &gate) {
            return Vec::new();
        }
        match made {
            Ok(fresh) => {
                tracing::info!(file = %file.display(), "what is asked of those who read over HTTP was taken anew");
                *state = State { gate: Arc::new(Gate { hosts: gate.hosts.clone(), readers: gate.readers.clone(), ..fresh }), stale: None };
            }
            Err(problems) => {
                let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
                tracing::error!("{}; the one of before stays in force", text.join("; "));
                state.stale = Some(Stale(problems));
            }
        }
        now
    }
}
