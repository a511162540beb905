//! TLS, in exporter-toolkit's keys.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme, SupportedCipherSuite};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::client::net::chain;
use crate::client::secret;
use crate::model::Problems;
use crate::model::decode::{Decode, Spanned};
use crate::model::yaml::Node;

/// The largest chain of certificates, in bytes.
const MAX_CHAIN: u64 = 1024 * 1024;

macro_rules! words {
    ($(#[doc = $doc:literal])* $name:ident, $expected:literal, $($word:literal = $variant:ident),+) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the words say it")]
        pub enum $name { $($variant),+ }

        impl Decode for $name {
            const EXPECTED: &'static str = $expected;
            fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
                let found = String::decode(node, problems)?;
                match found.as_str() {
                    $($word => Some(Self::$variant),)+
                    _ => {
                        problems.push(node.at, format!("expected {}, found {found:?}", $expected));
                        None
                    }
                }
            }
        }
    };
}

words! {
    /// A version of TLS.
    Version, "TLS12 or TLS13", "TLS12" = Tls12, "TLS13" = Tls13
}

words! {
    /// Whether a client must show a certificate, in Go's words.
    ClientAuth, "NoClientCert, VerifyClientCertIfGiven or RequireAndVerifyClientCert",
    "NoClientCert" = No, "VerifyClientCertIfGiven" = IfGiven, "RequireAndVerifyClientCert" = Required
}

/// A cipher suite, by the name that IANA and Go have for it.
#[derive(Clone, Copy, Debug)]
pub struct Cipher(SupportedCipherSuite);

/// Names a suite as Go does; rustls names those of TLS 1.3 a little differently.
fn cipher_name(suite: &SupportedCipherSuite) -> String {
    format!("{:?}", suite.suite()).replace("TLS13_", "TLS_")
}

impl Decode for Cipher {
    const EXPECTED: &'static str = "a cipher suite by Go's name such as TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let found = String::decode(node, problems)?;
        let known = rustls::crypto::ring::ALL_CIPHER_SUITES;
        let suite = known.iter().find(|suite| cipher_name(suite) == found).copied().map(Self);
        if suite.is_none() {
            let known: Vec<String> = known.iter().map(cipher_name).collect();
            problems.push(node.at, format!("expected one of {}; found {found:?}", known.join(", ")));
        }
        suite
    }
}

crate::config_struct! {
    /// TLS, in exporter-toolkit's keys; relative paths are beside that file.
    pub struct TlsConfig {
        /// The certificate and those that vouch for it, as PEM.
        cert_file: PathBuf,
        /// Its key, as PEM; no other user of the host may read it.
        key_file: PathBuf,
        /// Whether clients show a certificate.
        client_auth_type: Spanned<ClientAuth> = "NoClientCert",
        /// The authorities of the clients' certificates, as PEM.
        client_ca_file: Option<PathBuf>,
        /// Names of which a client's certificate must have one: a DNS name, an address, an e-mail address or a URI among its
        /// subject alternative names, letter by letter.
        client_allowed_sans: Option<Vec<String>>,
        /// The oldest version that is spoken.
        min_version: Version = "TLS12",
        /// The newest version that is spoken.
        max_version: Version = "TLS13",
        /// The cipher suites of TLS 1.2, by Go's names; those of TLS 1.3 are all spoken whatever stands here. Default: all
        /// that are known.
        cipher_suites: Vec<Cipher> = "[]",
    }
}

impl TlsConfig {
    /// Says whether every client must show a certificate.
    pub(super) fn asks_certificates(&self) -> bool {
        self.client_auth_type.value == ClientAuth::Required
    }

    /// Returns what is spoken: TLS 1.3 as it is, of TLS 1.2 what is named.
    fn provider(&self) -> CryptoProvider {
        let mut provider = rustls::crypto::ring::default_provider();
        if !self.cipher_suites.is_empty() {
            let named = |suite: &SupportedCipherSuite| self.cipher_suites.iter().any(|cipher| cipher.0 == *suite);
            provider.cipher_suites.retain(|suite| suite.tls13().is_some() || named(suite));
        }
        provider
    }
}

/// Makes the server's side of TLS.
pub(super) fn server(config: &TlsConfig, folder: &Path) -> Result<ServerConfig, String> {
    let from =
        |path: &Path| secret::regular(path, MAX_CHAIN).and_then(|pem| secret::certificates(path, &pem)).map_err(|error| chain(&error));
    let (cert, key) = (folder.join(&config.cert_file), folder.join(&config.key_file));
    let certificates = from(&cert).map_err(|why| format!("cert_file: {why}"))?;
    let pem = secret::read(&key).map_err(|error| format!("key_file: {}", chain(&error)))?;
    let private =
        PrivateKeyDer::from_pem_slice(pem.expose().as_bytes()).map_err(|_| format!("key_file: {} holds no key", key.display()))?;
    let versions: &[&rustls::SupportedProtocolVersion] = match (config.min_version, config.max_version) {
        (Version::Tls12, Version::Tls13) => &[&rustls::version::TLS12, &rustls::version::TLS13],
        (Version::Tls12, Version::Tls12) => &[&rustls::version::TLS12],
        (Version::Tls13, Version::Tls13) => &[&rustls::version::TLS13],
        (Version::Tls13, Version::Tls12) => return Err("max_version: expected at least min_version, which is TLS13".to_owned()),
    };
    match &config.client_allowed_sans {
        Some(_) if !config.asks_certificates() => {
            return Err("client_allowed_sans: expected client_auth_type RequireAndVerifyClientCert as well: a client that shows no \
                        certificate has no name"
                .to_owned());
        }
        Some(names) if names.is_empty() => return Err("client_allowed_sans: expected at least one name: nobody would be let in".to_owned()),
        _ => {}
    }
    let provider = Arc::new(config.provider());
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions).map_err(|error| error.to_string())?;
    let builder = match (config.client_auth_type.value, &config.client_ca_file) {
        (ClientAuth::No, None) => builder.with_no_client_auth(),
        (ClientAuth::No, Some(_)) => {
            return Err("client_ca_file: expected client_auth_type as well, such as RequireAndVerifyClientCert".to_owned());
        }
        (_, None) => return Err("client_auth_type: expected client_ca_file as well".to_owned()),
        (wanted, Some(authorities)) => {
            let mut roots = RootCertStore::empty();
            for certificate in from(&folder.join(authorities)).map_err(|why| format!("client_ca_file: {why}"))? {
                roots.add(certificate).map_err(|error| format!("client_ca_file: {error}"))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if wanted == ClientAuth::IfGiven { verifier.allow_unauthenticated() } else { verifier };
            let verifier = verifier.build().map_err(|error| format!("client_ca_file: {error}"))?;
            builder.with_client_cert_verifier(match config.client_allowed_sans.clone() {
                Some(names) => Arc::new(Named { names, verifier }),
                None => verifier,
            })
        }
    };
    let mut server = builder.with_single_cert(certificates, private).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => format!("key_file: {} is not the key of {}", key.display(), cert.display()),
        error => format!("cert_file and key_file: {error}"),
    })?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(server)
}

/// Lets in whose certificate is right and has one of some names.
#[derive(Debug)]
struct Named {
    names: Vec<String>,
    verifier: Arc<dyn ClientCertVerifier>,
}

/// Returns the names of a certificate as Go writes them.
fn names(certificate: &CertificateDer<'_>) -> Option<Vec<String>> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()??.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(text) | GeneralName::RFC822Name(text) | GeneralName::URI(text) => Some((*text).to_owned()),
        GeneralName::IPAddress(bytes) => address(bytes),
        _ => None,
    });
    Some(names.collect())
}

fn address(bytes: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(bytes).map(std::net::IpAddr::from);
    let address = v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(std::net::IpAddr::from)).ok()?;
    Some(address.to_canonical().to_string())
}

impl ClientCertVerifier for Named {
    fn offer_client_auth(&self) -> bool {
        self.verifier.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.verifier.verify_client_cert(end_entity, intermediates, now)?;
        let has_one = names(end_entity).is_some_and(|names| names.iter().any(|name| self.names.contains(name)));
        if has_one { Ok(verified) } else { Err(rustls::CertificateError::ApplicationVerificationFailure.into()) }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
