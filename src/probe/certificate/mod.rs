//! Looks at certificates: on disk, as they are served, and whether both are the same.
//!
//! A target per pattern of `files` (`disk`) and one per entry of `served` (`served`). Names are those of
//! x509-certificate-exporter and blackbox_exporter; what neither measures, the share of the lifetime and whether the
//! certificate that is served is the one on disk, is `certificate_*`.

mod disk;
mod facts;
mod renewal;
mod served;
mod starttls;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::http::{self, Host};
use super::{Planned, Recorder, Shared};
use crate::client::net::Endpoint;
use crate::model::decode::{self, Decode};
use crate::model::duration::print;
use crate::model::yaml::Node;
use crate::model::{Family, Problems, Timestamp};

use disk::Disk;
use facts::Facts;
use served::Served;
use starttls::Upgrade;

/// The most entries of `files` and of `served` each.
const MAX_ENTRIES: usize = 100;

static NOT_BEFORE: Family =
    Family::gauge("x509_cert_not_before", "From when the certificate is valid, in seconds since the epoch; with a filepath it lies on disk");
static NOT_AFTER: Family =
    Family::gauge("x509_cert_not_after", "Until when the certificate is valid, in seconds since the epoch; with a filepath it lies on disk");
static EXPIRED: Family = Family::gauge("x509_cert_expired", "Whether the certificate has expired");
static REMAINING: Family =
    Family::gauge("certificate_remaining_seconds", "How long the certificate (of a file: its first) is still valid; negative once it has expired");
static SHARE: Family =
    Family::gauge("certificate_remaining_share", "How much of its lifetime the certificate (of a file: its first) still has, from 0 to 1");

crate::config_struct! {
    /// Looks at certificates: on disk, as they are served, and whether both are the same.
    pub struct CertificateConfig {
        /// PEM files, `*` and `?` allowed: one target per entry. The certificate of the server comes first in each, as
        /// in `fullchain.pem`. At most 100 files.
        files: Vec<Pattern> = "[]",
        /// What is served, one target each: `name:port` for TLS, `smtp://name:25` and `postgres://name:5432` for what
        /// begins in the clear. Each address of the name is asked. A certificate of `files` that covers the name must
        /// be the one that is served: what belongs to other servers belongs into another probe.
        served: Vec<Entry> = "[]",
        /// Host that is asked instead of what the names of `served` lead to, at the port of each.
        address: Option<Host>,
        /// File with the certificates of the authorities that are trusted instead of the host's own.
        ca_file: Option<PathBuf>,
    }
}

/// A path in which the last parts may hold `*` and `?`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Decode for Pattern {
    const EXPECTED: &'static str = "an absolute path such as /etc/letsencrypt/live/*/fullchain.pem";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        // `**` would walk the whole tree in every run.
        let good = |text: &String| text.starts_with('/') && !text.contains("**") && !text.contains('\0') && glob::Pattern::new(text).is_ok();
        let pattern = String::decode(node, &mut Problems::default()).filter(good);
        if pattern.is_none() {
            decode::mismatch(node, Self::EXPECTED, problems);
        }
        pattern.map(Self)
    }
}

/// One place where a certificate is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As it was written: the name of the target.
    text: String,
    /// The name that the certificate must cover.
    name: String,
    port: u16,
    upgrade: Upgrade,
}

impl Decode for Entry {
    const EXPECTED: &'static str = "a name and a port such as www.example.org:443, smtp://mail.example.org:25 or postgres://db.example.org:5432";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let entry = String::decode(node, &mut Problems::default()).and_then(|text| {
            let (upgrade, rest) = match text.split_once("://") {
                Some(("smtp", rest)) => (Upgrade::Smtp, rest),
                Some(("postgres", rest)) => (Upgrade::Postgres, rest),
                Some(_) => return None,
                None => (Upgrade::None, text.as_str()),
            };
            let Some(Endpoint::Tcp { host: name, port }) = Endpoint::parse(rest) else { return None };
            rustls::pki_types::ServerName::try_from(name.as_str()).ok()?;
            Some(Self { name, port, upgrade, text })
        });
        if entry.is_none() {
            decode::mismatch(node, Self::EXPECTED, problems);
        }
        entry
    }
}

/// Builds a target per pattern and one per place; reads nothing but `ca_file`.
///
/// # Errors
/// Nothing to look at, something that stands twice, a file of authorities that cannot be read.
pub fn plan(config: &CertificateConfig, _: &str, shared: &Shared) -> Result<Vec<Planned>, String> {
    let trust = http::trust(config.ca_file.as_ref())?;
    let patterns = |list: &[Pattern]| Arc::new(Disk::new(list.iter().map(|pattern| pattern.0.clone()).collect()));
    let all = patterns(&config.files);
    let files = config.files.iter().map(|pattern| Planned::one(&pattern.0, disk::Files::new(patterns(std::slice::from_ref(pattern)), shared.changes().clone())));
    let served = config.served.iter().map(|entry| {
        let host = config.address.as_ref().map_or(entry.name.as_str(), Host::name).to_owned();
        let at = Endpoint::Tcp { host, port: entry.port };
        Planned::one(&entry.text, Served { entry: entry.clone(), at, trust: trust.clone(), disk: all.clone() })
    });
    let planned: Vec<Planned> = files.chain(served).collect();
    let mut names = BTreeSet::new();
    if let Some(twice) = planned.iter().filter_map(|planned| planned.target.as_deref()).find(|name| !names.insert(*name)) {
        return Err(format!("{twice} stands here twice"));
    }
    match (config.files.len(), config.served.len()) {
        (0, 0) => Err("expected at least one of files and served, found none".to_owned()),
        (files, served) if files.max(served) > MAX_ENTRIES => {
            Err(format!("expected at most {MAX_ENTRIES} files and {MAX_ENTRIES} served, found {files} and {served}: make several probes of it"))
        }
        _ => Ok(planned),
    }
}

/// Records until when a server's own certificate is valid.
fn record_remaining(rec: &mut Recorder, labels: &[(&'static str, &str)], leaf: &Facts, now: Timestamp) {
    rec.set_with(&REMAINING, labels, leaf.not_after as f64 - now.as_secs_f64());
    rec.set_with(&SHARE, labels, leaf.remaining_share(now));
}

/// Prints a duration in its larger units: `3d`, `5h`.
fn days(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let unit = [86_400, 3600, 60].into_iter().find(|unit| seconds >= *unit).unwrap_or(1);
    print(Duration::from_secs(seconds - seconds % unit))
}

/// Records the dates of a certificate.
fn record_dates(rec: &mut Recorder, labels: &[(&'static str, &str)], certificate: &Facts, now: Timestamp) {
    rec.set_with(&NOT_BEFORE, labels, certificate.not_before as f64);
    rec.set_with(&NOT_AFTER, labels, certificate.not_after as f64);
    rec.set_with(&EXPIRED, labels, f64::from(u8::from(certificate.is_expired(now))));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decode::from_text;

    #[test]
    fn a_configuration_names_what_is_wrong_with_it() {
        for text in [
            "served: [www.example.org]",
            "served: ['https://www.example.org:443']",
            "served: ['smtp://mail.example.org']",
            "served: ['postgres://user:word@db:5432']",
            "served: ['unix:/run/x']",
            "files: [live/fullchain.pem]",
            "files: ['/etc/**/fullchain.pem']",
            "files: ['/etc/[']",
        ] {
            let problems = from_text::<CertificateConfig>("f", text).expect_err(text);
            assert!(problems[0].message.starts_with("expected a"), "{text}: {}", problems[0]);
        }
        for (text, wrong) in [
            ("{}", "expected at least one of files and served"),
            ("files: [/a.pem, /a.pem]", "/a.pem stands here twice"),
            ("served: ['a:443', 'a:443']", "a:443 stands here twice"),
            ("files: [/a.pem]\nca_file: /dev/null", "no regular file"),
        ] {
            let config: CertificateConfig = from_text("f", text).expect(text);
            let why = plan(&config, "", &Shared::default()).err().expect(text);
            assert!(why.contains(wrong), "{text}: {why}");
        }
        let many = (0..=MAX_ENTRIES).map(|n| format!("'a:{}'", n + 1)).collect::<Vec<_>>().join(", ");
        let config: CertificateConfig = from_text("f", &format!("served: [{many}]")).expect("is right");
        assert!(plan(&config, "", &Shared::default()).is_err());
    }
}
