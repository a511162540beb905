//! Certificates as they are served: by each address of a name, with that name, and the same as on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join, join_all};
use rustls::CertificateError as Wrong;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

use super::disk::{Bundle, Disk, Look};
use super::facts::{Facts, top};
use super::{Entry, days, record_dates, record_remaining};
use crate::client::net::{self, Endpoint, NetError, Phases, Trust};
use crate::model::{Failure, Family, Reason, Sight, Timestamp};
use crate::probe::http::{EXPIRY, TLS_VERSION};
use crate::probe::tcp::record_net;
use crate::probe::{Probe, Recorder, failure, failure_at};
use crate::tasks;

/// The most certificates of a chain that are looked at.
const MAX_CHAIN: usize = 16;

/// A renewed certificate is served after this time: a renewal reloads the server within seconds.
const RELOAD_WITHIN: Duration = Duration::from_secs(5 * 60);

static VALID: Family = Family::gauge(
    "certificate_served_valid",
    "Whether the certificate that is served is valid now, covers the name and leads to a trusted authority; absent without a handshake",
);
static COVERS: Family = Family::gauge("certificate_covers_name", "Whether the certificate that is served covers the name that was asked for");
static COMPLETE: Family = Family::gauge(
    "certificate_chain_complete",
    "Whether the certificates between that of the server and an authority are served with it; 0 also where that authority is not known",
);
static MATCHES: Family = Family::gauge(
    "certificate_served_matches_disk",
    "Whether the certificate that is served is one of those on disk that cover its name; absent where none does, or not all may be read",
);

static NEWER: Family = Family::gauge(
    "certificate_disk_newer_seconds",
    "How much later the newest certificate on disk that covers the name begins than the one that is served; negative where an older one lies there",
);

/// One place where a certificate is served.
pub(super) struct Served {
    pub(super) entry: Entry,
    /// Where it is asked.
    pub(super) at: Endpoint,
    pub(super) trust: Trust,
    /// What should be served.
    pub(super) disk: Arc<Disk>,
}

/// What one address served.
struct Shown {
    address: IpAddr,
    chain: Vec<Facts>,
    version: &'static str,
    /// What is wrong with it.
    wrong: Option<String>,
}

/// Why an address showed nothing.
enum Missed {
    /// It failed.
    Failed(Failure),
    /// This host has no way to it, no IPv6 say: no fault of the server's while another address answers.
    NoWay(Failure),
}

impl From<Failure> for Missed {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// The recorder, and what each address is waited for: they are asked at the same time.
struct Progress<'a> {
    rec: &'a mut Recorder,
    waiting: BTreeMap<SocketAddr, (Reason, String)>,
}

impl Progress<'_> {
    fn waits(&mut self, address: SocketAddr, reason: Reason, what: String) {
        self.waiting.insert(address, (reason, what));
        self.say();
    }

    fn done(&mut self, address: SocketAddr) {
        self.waiting.remove(&address);
        self.say();
    }

    fn say(&mut self) {
        if let Some((reason, what)) = self.waiting.values().next() {
            self.rec.waiting(*reason, what.clone());
        }
    }
}

impl Served {
    async fn ask(&self, rec: &mut Recorder) -> Result<(), Failure> {
        let mut phases = Phases::default();
        rec.waiting(Reason::Resolve, format!("looking up the name of {}", self.at));
        let addresses = net::lookup(&self.at, &mut phases).await.map_err(|error| failure(&error))?;
        record_net(rec, &phases);
        self.ask_all(rec, &addresses.into_iter().collect()).await
    }

    /// Asks all addresses at the same time, and looks at the disk.
    async fn ask_all(&self, rec: &mut Recorder, addresses: &BTreeSet<SocketAddr>) -> Result<(), Failure> {
        let several = addresses.len() > 1;
        rec.waiting(Reason::AnswerTimeout, format!("reading {}", self.disk.told()));
        let progress = Mutex::new(Progress { rec, waiting: BTreeMap::new() });
        let each = addresses.iter().map(|address| async {
            let shown = self.ask_one(*address, several, &progress).await;
            lock(&progress).done(*address);
            (*address, shown)
        });
        let (shown, look) = join(join_all(each), self.disk.look()).await;
        let rec = progress.into_inner().unwrap_or_else(PoisonError::into_inner).rec;
        self.conclude(rec, shown, &look)
    }

    fn place(&self, address: SocketAddr, several: bool) -> String {
        if several { format!("{} at {}", self.entry.text, address.ip()) } else { self.entry.text.clone() }
    }

    /// Asks one address, and records what it shows at once: another may never answer.
    async fn ask_one(&self, address: SocketAddr, several: bool, progress: &Mutex<Progress<'_>>) -> Result<Shown, Missed> {
        let place = self.place(address, several);
        let upgrade = self.entry.upgrade;
        let waits = |reason, what| lock(progress).waits(address, reason, what);
        let mut phases = Phases::default();
        waits(Reason::ConnectTimeout, format!("connecting to {place}"));
        let mut stream = net::connect_to(&self.at, &[address], &mut phases).await.map_err(|error| match &error {
            NetError::Connect { source, .. } if is_no_way(source) => Missed::NoWay(failure_at(&place, &error)),
            error => Missed::Failed(failure_at(&place, error)),
        })?;
        waits(Reason::AnswerTimeout, format!("{place}: {phases}, waiting for the answer before encryption"));
        upgrade.ask(&place, &mut stream).await?;
        waits(Reason::AnswerTimeout, format!("{place}: {phases}, waiting for the TLS handshake"));
        let shaken = net::tls_observed(stream, &self.entry.name, &self.trust, &mut phases).await;
        let (stream, served) = shaken.map_err(|error| failure_at(&place, &error))?;
        let chain: Vec<Facts> = served.chain.iter().take(MAX_CHAIN).filter_map(Facts::read).collect();
        let Some(leaf) = chain.first() else {
            return Err(Failure::new(Reason::Tls, format!("{place}: served no certificate that can be read")).into());
        };
        let now = tasks::now();
        let judged = self.judge(&chain, now).map_err(|why| Failure::new(Reason::Internal, format!("{place}: {why}")))?;
        {
            let mut progress = lock(progress);
            let ip = address.ip().to_string();
            let labels = [("address", ip.as_str())];
            let mut set = |family, yes| progress.rec.set_with(family, &labels, f64::from(u8::from(yes)));
            set(&VALID, judged.wrong.is_none());
            set(&COVERS, judged.covers);
            set(&COMPLETE, judged.complete);
            record_dates(progress.rec, &labels, leaf, now);
            record_remaining(progress.rec, &labels, leaf, now);
        }
        waits(Reason::AnswerTimeout, format!("{place}: saying goodbye"));
        upgrade.end(stream).await;
        Ok(Shown { address: address.ip(), chain, version: served.version, wrong: judged.wrong })
    }

    fn judge(&self, chain: &[Facts], now: Timestamp) -> Result<Judged, String> {
        let name = ServerName::try_from(self.entry.name.as_str()).map_err(|error| error.to_string())?;
        let Some(leaf) = chain.first() else { return Err("no certificate".to_owned()) };
        let ders: Vec<CertificateDer<'_>> = chain.iter().map(|facts| facts.der.clone()).collect();
        let verify = |at: Timestamp| self.trust.verify(&ders, &name, UnixTime::since_unix_epoch(at.since(Timestamp(0))));
        // Asked for a moment at which the certificate itself is valid: an expired one may come with a whole chain.
        let valid_then = now.clamp(Timestamp::from_secs(leaf.not_before), Timestamp::from_secs(leaf.not_after.max(leaf.not_before)));
        let unknown = matches!(verify(valid_then), Err(rustls::Error::InvalidCertificate(Wrong::UnknownIssuer)));
        let complete = !unknown || top(chain).is_some_and(Facts::is_self_signed);
        let wrong = verify(now).err().map(|error| self.explain(chain, leaf, &error, complete, now));
        Ok(Judged { covers: leaf.covers(&name), complete, wrong })
    }

    /// Says what is wrong with a certificate, and what to do.
    fn explain(&self, chain: &[Facts], leaf: &Facts, error: &rustls::Error, complete: bool, now: Timestamp) -> String {
        let name = &self.entry.name;
        let issuer = &leaf.issuer;
        if leaf.is_expired(now) {
            let end = Timestamp::from_secs(leaf.not_after);
            return format!("the certificate expired {} ago, at {end}", days(now.since(end)));
        }
        if leaf.is_not_yet_valid(now) {
            let begin = Timestamp::from_secs(leaf.not_before);
            return format!("the certificate is valid only from {begin}, in {}: is it the clock of this host ({now}) that is wrong?", days(begin.since(now)));
        }
        match error {
            rustls::Error::InvalidCertificate(Wrong::NotValidForName | Wrong::NotValidForNameContext { .. }) => {
                format!("the certificate does not cover {name}, only {}", leaf.told_names())
            }
            rustls::Error::InvalidCertificate(Wrong::Expired | Wrong::ExpiredContext { .. }) => {
                "a certificate of the chain, not the server's own, has expired".to_owned()
            }
            // Not only an unknown issuer: openssl marks what it makes as an authority, which no server's own may be.
            rustls::Error::InvalidCertificate(_) if leaf.is_self_signed() => format!(
                "the certificate is self-signed ({issuer}): nobody trusts it who was not told to (ca_file, and not marked CA:TRUE itself)"
            ),
            rustls::Error::InvalidCertificate(Wrong::UnknownIssuer) => match chain.len() {
                _ if complete => {
                    let root = top(chain).map_or("", |top| top.subject.as_str());
                    format!("the chain leads to {root:?}, which this host does not trust: is it an authority of your own (ca_file)?")
                }
                1 => format!(
                    "its issuer {issuer:?} is not served with the certificate, and no authority that this host knows: let the server send fullchain.pem, not cert.pem (or name your own authority in ca_file)"
                ),
                n => format!("the {} certificates that come with it belong to another chain: none is its issuer {issuer:?}", n - 1),
            },
            rustls::Error::InvalidCertificate(Wrong::BadSignature) => {
                format!("the certificate is not signed by the {issuer:?} that this host trusts, but by another of the same name")
            }
            rustls::Error::InvalidCertificate(why) => format!("the certificate is not valid: {}", net::in_words(why)),
            rustls::Error::General(why) => why.clone(),
            error => error.to_string(),
        }
    }

    /// Records what only all addresses and the disk together say, and how it ended.
    fn conclude(&self, rec: &mut Recorder, shown: Vec<(SocketAddr, Result<Shown, Missed>)>, look: &Look) -> Result<(), Failure> {
        let several = shown.len() > 1;
        let no_way = shown.iter().all(|(_, shown)| matches!(shown, Err(Missed::NoWay(_))));
        let mut failures = Vec::new();
        let mut versions = BTreeSet::new();
        let mut ends = Vec::new();
        let name = ServerName::try_from(self.entry.name.as_str()).ok();
        let candidates: Vec<&Bundle> =
            look.bundles.iter().filter(|bundle| name.as_ref().is_some_and(|name| bundle.chain[0].covers(name))).collect();
        if let Some((missing, remedy)) = look.unseen() {
            rec.sight(Sight::Partial { missing: format!("whether the certificate on disk is the one that is served, nor {missing}"), remedy });
        }
        for (address, shown) in shown {
            let shown = match shown {
                Ok(shown) => shown,
                Err(Missed::NoWay(failure)) if !no_way => {
                    rec.evidence(format!("not asked: {failure}"));
                    continue;
                }
                Err(Missed::Failed(failure) | Missed::NoWay(failure)) => {
                    failures.push(failure);
                    continue;
                }
            };
            versions.insert(shown.version);
            ends.extend(shown.chain.iter().map(|facts| facts.not_after));
            let place = self.place(address, several);
            let stale = self.compare(rec, &shown, &candidates, look);
            if let Some((stale, _)) = &stale {
                rec.evidence(format!("{place}: {stale}"));
            }
            if let Some(wrong) = shown.wrong {
                let stale = stale.map(|(stale, _)| format!("; {stale}")).unwrap_or_default();
                failures.push(Failure::new(Reason::Certificate, format!("{place}: {wrong}{stale}")));
            } else if let Some((stale, true)) = stale {
                failures.push(Failure::new(Reason::Mismatch, format!("{place}: {stale}")));
            }
        }
        for version in versions {
            rec.set_with(&TLS_VERSION, &[("version", version)], 1.0);
        }
        if let Some(first) = ends.into_iter().min() {
            rec.set(&EXPIRY, first as f64);
        }
        match failures.as_slice() {
            [] => Ok(()),
            [only] => Err(only.clone()),
            [first, rest @ ..] => Err(Failure::new(first.reason, format!("{first}; and {} more address{}", rest.len(), if rest.len() == 1 { "" } else { "es" }))),
        }
    }

    /// Records whether what is served lies on disk; says what lies there instead, and whether the reload is overdue.
    fn compare(&self, rec: &mut Recorder, shown: &Shown, candidates: &[&Bundle], look: &Look) -> Option<(String, bool)> {
        let leaf = shown.chain.first()?;
        let same = candidates.iter().any(|bundle| bundle.chain[0].der == leaf.der);
        // What may not be read could be the one that is served.
        if candidates.is_empty() || (!same && look.denied.is_some()) {
            return None;
        }
        let newest = candidates.iter().max_by_key(|bundle| bundle.chain[0].not_before)?;
        let (on_disk, path) = (&newest.chain[0], newest.path.display());
        let ip = shown.address.to_string();
        let labels = [("address", ip.as_str())];
        rec.set_with(&MATCHES, &labels, f64::from(u8::from(same)));
        rec.set_with(&NEWER, &labels, (on_disk.not_before - leaf.not_before) as f64);
        if same {
            return None;
        }
        let until = Timestamp::from_secs(on_disk.not_after);
        Some(if on_disk.not_before >= leaf.not_before {
            let overdue = newest.written.is_some_and(|written| tasks::wall_now().since(written) >= RELOAD_WITHIN);
            (format!("{path} holds a newer certificate (valid until {until}) that is not served: the server was not reloaded (nginx -t && systemctl reload nginx)"), overdue)
        } else {
            (format!("a newer certificate is served than the one in {path} (valid until {until}): another server answers, or the file was put back"), false)
        })
    }
}

impl Probe for Served {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        self.ask(rec).boxed()
    }
}

/// What is said of a chain.
struct Judged {
    covers: bool,
    complete: bool,
    wrong: Option<String>,
}

fn lock<'a, 'b>(progress: &'a Mutex<Progress<'b>>) -> std::sync::MutexGuard<'a, Progress<'b>> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether this host itself has no way to such an address.
fn is_no_way(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::certificate::starttls::Upgrade;

    /// Serves a certificate made now on this address; returns the port and the certificate as PEM.
    async fn serve(ip: &str, port: u16) -> (u16, String) {
        let signed = rcgen::generate_simple_self_signed(["a.example.org".to_owned()]).expect("is signed");
        let key = rustls::pki_types::PrivateKeyDer::try_from(signed.signing_key.serialize_der()).expect("is a key");
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![signed.cert.der().clone()], key)
            .expect("fits");
        let listener = tokio::net::TcpListener::bind((ip, port)).await.expect("is free");
        let port = listener.local_addr().expect("is bound").port();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        #[allow(clippy::disallowed_methods, reason = "ends with the test's runtime")]
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shaken = acceptor.accept(stream).await;
                assert!(shaken.is_ok(), "{shaken:?}");
            }
        });
        (port, signed.cert.pem())
    }

    #[tokio::test]
    async fn each_address_of_a_name_is_asked_and_one_that_was_not_reloaded_is_named() {
        let (port, first) = serve("127.0.0.1", 0).await;
        let (_, second) = serve("127.0.0.2", port).await;
        let folder = tempfile::tempdir().expect("a folder");
        let (on_disk, authorities) = (folder.path().join("a.pem"), folder.path().join("ca.pem"));
        std::fs::write(&on_disk, &first).expect("is written");
        std::fs::write(&authorities, first + &second).expect("is written");
        let served = |last: &str| {
            let probe = Served {
                entry: Entry { text: format!("a.example.org:{port}"), name: "a.example.org".to_owned(), port, upgrade: Upgrade::None },
                at: Endpoint::Tcp { host: "a.example.org".to_owned(), port },
                trust: crate::client::secret::trust(Some(&authorities)).expect("is taken"),
                disk: Arc::new(Disk::new(vec![on_disk.display().to_string()])),
            };
            let addresses: BTreeSet<SocketAddr> = ["127.0.0.1", "127.0.0.2", last].iter().map(|ip| SocketAddr::new(ip.parse().expect("ip"), port)).collect();
            async move {
                let mut rec = Recorder::default();
                let outcome = probe.ask_all(&mut rec, &addresses).await;
                (outcome, rec.finish())
            }
        };
        let (outcome, recorded) = served("127.0.0.2").await;
        assert_eq!(outcome, Ok(()), "what each serves is valid");
        let matches = recorded.samples.iter().filter(|sample| sample.family.name == MATCHES.name);
        let matches: Vec<_> = matches.map(|sample| (sample.labels[0].1.to_string(), sample.value)).collect();
        assert_eq!(matches, [("127.0.0.1".to_owned(), 1.0), ("127.0.0.2".to_owned(), 0.0)]);
        assert!(recorded.evidence[0].contains("at 127.0.0.2:") && recorded.evidence[0].contains("a.pem"), "{:?}", recorded.evidence);
        // One that is down is told too, and hides nothing of the others.
        let (outcome, recorded) = served("127.0.0.3").await;
        let failure = outcome.expect_err("one is closed");
        assert!(failure.reason == Reason::Refused && failure.detail.starts_with(&format!("a.example.org:{port} at 127.0.0.3: ")), "{failure}");
        assert_eq!(recorded.samples.iter().filter(|sample| sample.family.name == VALID.name).count(), 2);
    }
}
