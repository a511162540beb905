//! What is read of one certificate.

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Certificate;
use x509_parser::x509::X509Name;

use crate::model::Timestamp;

/// The most names of a certificate that are told.
const MAX_NAMES: usize = 5;

/// One certificate. Two are the same if their bytes are.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) der: CertificateDer<'static>,
    /// Seconds since the epoch.
    pub(super) not_before: i64,
    /// Seconds since the epoch.
    pub(super) not_after: i64,
    /// The common name, else the whole name.
    pub(super) subject: String,
    pub(super) issuer: String,
    /// In decimal digits, as x509-certificate-exporter has it.
    pub(super) serial: String,
    raw_subject: Vec<u8>,
    raw_issuer: Vec<u8>,
    /// The first names that it covers.
    names: Vec<String>,
}

impl Facts {
    /// Reads a certificate; nothing where it is none.
    pub(super) fn read(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        Some(Self {
            der: der.clone().into_owned(),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            subject: common_name(certificate.subject()),
            issuer: common_name(certificate.issuer()),
            serial: certificate.tbs_certificate.serial.to_string(),
            raw_subject: certificate.subject().as_raw().to_vec(),
            raw_issuer: certificate.issuer().as_raw().to_vec(),
            names: names(&certificate),
        })
    }

    pub(super) fn is_expired(&self, now: Timestamp) -> bool {
        now > Timestamp::from_secs(self.not_after)
    }

    pub(super) fn is_not_yet_valid(&self, now: Timestamp) -> bool {
        now < Timestamp::from_secs(self.not_before)
    }

    pub(super) fn is_self_signed(&self) -> bool {
        self.raw_subject == self.raw_issuer
    }

    /// Returns how much of the lifetime is left, from 0 to 1.
    pub(super) fn remaining_share(&self, now: Timestamp) -> f64 {
        let lifetime = (self.not_after - self.not_before).max(1) as f64;
        ((self.not_after as f64 - now.as_secs_f64()) / lifetime).clamp(0.0, 1.0)
    }

    /// Says whether it covers a name, as browsers judge it: by the subject alternative names alone.
    pub(super) fn covers(&self, name: &ServerName<'_>) -> bool {
        ParsedCertificate::try_from(&self.der).is_ok_and(|parsed| rustls::client::verify_server_name(&parsed, name).is_ok())
    }

    /// Returns the names that another covers and this one does not.
    pub(super) fn lacks(&self, other: &Self) -> Vec<String> {
        let covers = |name: &str| ServerName::try_from(name).is_ok_and(|name| self.covers(&name));
        other.names.iter().filter(|name| !self.names.contains(name) && !covers(name)).cloned().collect()
    }

    /// Says which names it covers.
    pub(super) fn told_names(&self) -> String {
        told(&self.names)
    }
}

/// Says names: `a, b and 3 more`.
pub(super) fn told(names: &[String]) -> String {
    match names.len() {
        0 => "no name at all".to_owned(),
        n if n > MAX_NAMES => format!("{} and {} more", names[..MAX_NAMES].join(", "), n - MAX_NAMES),
        _ => names.join(", "),
    }
}

/// Follows a chain from its first certificate from issuer to issuer and returns the last that is there.
pub(super) fn top(chain: &[Facts]) -> Option<&Facts> {
    let mut top = chain.first()?;
    // Each step leads to another certificate, so there are fewer steps than certificates.
    for _ in 1..chain.len() {
        if top.is_self_signed() {
            break;
        }
        match chain.iter().find(|other| other.raw_subject == top.raw_issuer) {
            Some(issuer) => top = issuer,
            None => break,
        }
    }
    Some(top)
}

fn common_name(name: &X509Name<'_>) -> String {
    let common = name.iter_common_name().next().and_then(|common| common.as_str().ok());
    common.map_or_else(|| name.to_string(), str::to_owned)
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| std::net::Ipv4Addr::from(bytes).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| std::net::Ipv6Addr::from(bytes).to_string()),
        },
        _ => None,
    };
    extension.value.general_names.iter().filter_map(name).collect()
}

#[cfg(fuzzing)]
impl Facts {
    /// Of a certificate that is valid from and until then, in seconds since the epoch.
    pub(super) fn lasting(not_before: i64, not_after: i64) -> Self {
        let (subject, issuer, serial) = (String::new(), String::new(), String::new());
        let (raw_subject, raw_issuer, names) = (Vec::new(), Vec::new(), Vec::new());
        Self { der: CertificateDer::from(Vec::new()), not_before, not_after, subject, issuer, serial, raw_subject, raw_issuer, names }
    }
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// A certificate.
    pub fn certificate(bytes: &[u8]) {
        let Some(facts) = Facts::read(&CertificateDer::from(bytes)) else { return };
        let now = Timestamp::from_secs(1_800_000_000);
        assert!((0.0..=1.0).contains(&facts.remaining_share(now)));
        facts.covers(&ServerName::try_from("example.org").expect("is a name"));
        drop((facts.is_expired(now), facts.is_not_yet_valid(now), facts.is_self_signed(), facts.told_names()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_share_of_the_lifetime_is_the_same_for_6_45_and_90_days() {
        let begin = 1_900_000_000;
        for days in [6, 45, 90] {
            let mut params = rcgen::CertificateParams::new(vec!["a.example.org".to_owned()]).expect("is a name");
            params.not_before = rcgen::date_time_ymd(2030, 3, 17) + Duration::from_secs(17 * 3600 + 46 * 60 + 40);
            params.not_after = params.not_before + Duration::from_secs(days * 86_400);
            let signed = params.self_signed(&rcgen::KeyPair::generate().expect("a key")).expect("is signed");
            let facts = Facts::read(signed.der()).expect("is a certificate");
            assert_eq!(facts.not_before, begin);
            for (part, share) in [(0.0, 1.0), (0.5, 0.5), (0.75, 0.25), (1.0, 0.0), (2.0, 0.0), (-1.0, 1.0)] {
                let at = Timestamp::from_secs(begin + (part * (days * 86_400) as f64) as i64);
                assert!((facts.remaining_share(at) - share).abs() < 1e-9, "{days} days, {part}");
            }
            assert!(facts.is_self_signed() && facts.told_names() == "a.example.org");
        }
    }
}
