//! Connecting by phases: resolve, connect, TLS; and bounded reads.
//!
//! Deadlines are the caller's (a probe has one limit for its whole run). What is measured of a phase stands in
//! [`Phases`] at once, so that it survives a timeout in a later phase.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::reach::{self, Attempt, Met};
use crate::model::decode::{self, Decode};
use crate::model::duration::print_measured;
use crate::model::yaml::Node;
use crate::model::{Problems, Reason};

/// How Proctor names itself wherever a protocol has room for it.
pub const USER_AGENT: &str = concat!("Proctor/", env!("CARGO_PKG_VERSION"));

/// Lookups that may wait at once: `getaddrinfo` cannot be cancelled, and a dead resolver must not use up all threads.
const LOOKUPS: usize = 4;

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A host name or address, and a port.
    Tcp {
        /// A name or an address without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A socket in the file system, written `unix:/path`.
    Unix(PathBuf),
}

impl Endpoint {
    /// Parses `host:port`, `[::1]:port` or `unix:/path`.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return path.starts_with('/').then(|| Self::Unix(path.into()));
        }
        let (host, port) = text.rsplit_once(':')?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').filter(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())?,
            None if host.contains(':') => return None,
            None => host,
        };
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || host.len() > 253 || !host.chars().all(valid) {
            return None;
        }
        Some(Self::Tcp { host: host.to_owned(), port: port.parse().ok().filter(|port| *port != 0)? })
    }

    /// Says whether this stays on this host, as far as the name tells.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp { host, .. } => host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Decode for Endpoint {
    const EXPECTED: &'static str = "an address such as 127.0.0.1:8000, [::1]:8000 or unix:/run/app.sock";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let endpoint = String::decode(node, &mut Problems::default()).and_then(|text| Self::parse(&text));
        if endpoint.is_none() {
            decode::mismatch(node, Self::EXPECTED, problems);
        }
        endpoint
    }
}

/// What connecting or reading failed at.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The name does not resolve.
    #[error("cannot resolve {host:?}")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// No address took the connection.
    #[error("cannot connect to {endpoint}")]
    Connect {
        /// Where to.
        endpoint: Endpoint,
        /// What the kernel said of the last address.
        source: io::Error,
    },
    /// The TLS handshake failed.
    #[error("the TLS handshake with {name} failed")]
    Tls {
        /// The name that was asked for.
        name: String,
        /// What rustls said.
        source: io::Error,
    },
    /// The certificate is not valid for this name and now.
    #[error("the certificate that {name} serves is not valid: {verdict}")]
    Certificate {
        /// The name that was asked for.
        name: String,
        /// What is wrong with it.
        verdict: String,
    },
    /// The other side closed before it had answered.
    #[error("the connection was closed after {after} bytes, before the answer was complete")]
    Eof {
        /// How much had come.
        after: usize,
    },
    /// The answer is larger than its limit.
    #[error("the answer is larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// Reading or writing failed.
    #[error("the connection broke")]
    Io(#[from] io::Error),
}

impl NetError {
    /// Returns the reason of the closed set.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Resolve { .. } => Reason::Resolve,
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::TimedOut => Reason::ConnectTimeout,
            // Nobody refused: there is no way there.
            Self::Connect { source, .. } if reach::no_way(source) => Reason::ConnectTimeout,
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => Reason::Forbidden,
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::NotFound => Reason::Missing,
            // Our own fault, and none of the service's: EMFILE, ENFILE.
            Self::Connect { source, .. } if matches!(source.raw_os_error(), Some(23 | 24)) => Reason::Internal,
            // A socket in the file system whose queue is full turns one away at once.
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::WouldBlock => Reason::Saturated,
            Self::Connect { .. } => Reason::Refused,
            Self::Tls { source, .. } if source.kind() == io::ErrorKind::UnexpectedEof => Reason::Eof,
            Self::Tls { source, .. } if source.kind() == io::ErrorKind::ConnectionReset => Reason::Reset,
            Self::Tls { .. } => Reason::Tls,
            Self::Certificate { .. } => Reason::Certificate,
            Self::Eof { .. } => Reason::Eof,
            Self::TooLarge { .. } => Reason::TooLarge,
            Self::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => Reason::Eof,
            Self::Io(_) => Reason::Reset,
        }
    }
}

/// Prints an error with all its causes: `cannot resolve "db1": no such host`. The one place that prints a chain.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        // Some libraries repeat their source in their own text.
        if !text.ends_with(&next_text) {
            text = format!("{text}: {next_text}");
        }
        cause = next.source();
    }
    text
}

/// How long each phase of connecting took, as far as it came.
#[derive(Clone, Copy, Debug, Default)]
pub struct Phases {
    /// Looking the name up.
    pub resolve: Option<Duration>,
    /// Until the connection stood.
    pub connect: Option<Duration>,
    /// The TLS handshake.
    pub tls: Option<Duration>,
    /// The address that took the connection.
    pub peer: Option<SocketAddr>,
}

impl fmt::Display for Phases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.connect, self.tls) {
            (Some(connect), None) => write!(f, "connected after {}", print_measured(connect)),
            (Some(connect), Some(tls)) => write!(f, "connected after {}, TLS after {}", print_measured(connect), print_measured(tls)),
            (None, _) => f.write_str("not connected"),
        }
    }
}

/// A connection, encrypted or not.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A socket in the file system.
    Unix(UnixStream),
    /// TLS over one of them.
    Tls(Box<tokio_rustls::client::TlsStream<Stream>>),
}

/// A connection that wakes nobody, whatever comes, until [`Quiet::listen`]: the kernel keeps it meanwhile.
#[derive(Debug)]
pub enum Quiet {
    /// Out of the poll.
    Tcp(std::net::TcpStream),
    /// What cannot be taken out stays in it.
    Waking(Stream),
}

impl Stream {
    /// Takes it out of the poll.
    ///
    /// # Errors
    /// The system's.
    pub fn quiet(self) -> io::Result<Quiet> {
        Ok(match self {
            Self::Tcp(stream) => Quiet::Tcp(stream.into_std()?),
            other => Quiet::Waking(other),
        })
    }
}

impl Quiet {
    /// Puts it back: what has come meanwhile is there at once.
    ///
    /// # Errors
    /// The system's.
    pub fn listen(self) -> io::Result<Stream> {
        Ok(match self {
            Self::Tcp(stream) => Stream::Tcp(TcpStream::from_std(stream)?),
            Self::Waking(stream) => stream,
        })
    }
}

macro_rules! each_stream {
    ($self:ident, $inner:ident => $body:expr) => {
        match $self.get_mut() {
            Stream::Tcp($inner) => $body,
            Stream::Unix($inner) => $body,
            Stream::Tls($inner) => $body,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each_stream!(self, inner => Pin::new(inner).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each_stream!(self, inner => Pin::new(inner).poll_write(cx, buf))
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_stream!(self, inner => Pin::new(inner).poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_stream!(self, inner => Pin::new(inner).poll_shutdown(cx))
    }
}

/// Resolves a name; an address is itself. At most four lookups wait at once.
///
/// # Errors
/// [`NetError::Resolve`].
pub async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, NetError> {
    static PERMITS: Semaphore = Semaphore::const_new(LOOKUPS);
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let failed = |source| NetError::Resolve { host: host.to_owned(), source };
    let permit = PERMITS.acquire().await.map_err(|error| failed(io::Error::other(error)))?;
    let name = host.to_owned();
    // The permit travels into the blocking thread: a caller that gave up does not free a thread that still waits.
    let looked_up = tokio::task::spawn_blocking(move || {
        let found = std::net::ToSocketAddrs::to_socket_addrs(&(name.as_str(), port)).map(|all| all.take(16).collect::<Vec<_>>());
        drop(permit);
        found
    });
    match looked_up.await {
        Ok(Ok(addresses)) if addresses.is_empty() => Err(failed(io::Error::new(io::ErrorKind::NotFound, "the name has no address"))),
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(source)) => Err(failed(source)),
        Err(error) => Err(failed(io::Error::other(error))),
    }
}

/// Connects: looks up, then tries each address in the resolver's order.
///
/// # Errors
/// [`NetError::Resolve`] or [`NetError::Connect`] with what the last address said.
pub async fn connect(endpoint: &Endpoint, phases: &mut Phases) -> Result<Stream, NetError> {
    let addresses = lookup(endpoint, phases).await?;
    connect_to(endpoint, &addresses, phases).await
}

/// The first half of [`connect`]: returns the addresses of an endpoint, none for a socket in the file system.
///
/// # Errors
/// [`NetError::Resolve`].
pub async fn lookup(endpoint: &Endpoint, phases: &mut Phases) -> Result<Vec<SocketAddr>, NetError> {
    let Endpoint::Tcp { host, port } = endpoint else { return Ok(Vec::new()) };
    let begin = Instant::now();
    let attempt = Attempt::new(endpoint, Met::Unresolved);
    let resolved = resolve(host, *port).await;
    phases.resolve = resolved.is_ok().then(|| begin.elapsed());
    // Where it went well, connecting says more.
    attempt.came_to(resolved.as_ref().err().map(|error| reach::of_lookup(error)));
    resolved
}

/// The second half of [`connect`]: tries the addresses in their order.
///
/// # Errors
/// [`NetError::Connect`] with what the last address said.
pub async fn connect_to(endpoint: &Endpoint, addresses: &[SocketAddr], phases: &mut Phases) -> Result<Stream, NetError> {
    let failed = |source| NetError::Connect { endpoint: endpoint.clone(), source };
    let begin = Instant::now();
    if let Endpoint::Unix(path) = endpoint {
        let stream = UnixStream::connect(path).await.map_err(failed)?;
        phases.connect = Some(begin.elapsed());
        return Ok(Stream::Unix(stream));
    }
    // A name of this very host says that names resolve, and nothing of the way out.
    let here = addresses.iter().all(|address| address.ip().is_loopback());
    let attempt = Attempt::new(endpoint, if here { Met::Reached } else { Met::Missed });
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                attempt.came_to(Some(Met::Reached));
                phases.connect = Some(begin.elapsed());
                phases.peer = Some(*address);
                // Probes send little and wait for the answer: Nagle's algorithm would only delay them.
                stream.set_nodelay(true).map_err(failed)?;
                return Ok(Stream::Tcp(stream));
            }
            Err(error) => last = error,
        }
    }
    attempt.came_to(if here { Some(Met::Reached) } else { reach::of_connect(&last) });
    Err(failed(last))
}

/// What the other side of a TLS handshake showed.
#[derive(Clone, Debug)]
pub struct Served {
    /// The certificates as served, leaf first, as DER.
    pub chain: Vec<CertificateDer<'static>>,
    /// What the verification says: the chain leads to a trusted root, is valid now, and covers the name.
    pub verdict: Result<(), String>,
    /// The version, such as `TLS 1.3`.
    pub version: &'static str,
}

impl Default for Served {
    fn default() -> Self {
        Self { chain: Vec::new(), verdict: Err("no certificate was served".to_owned()), version: "unknown" }
    }
}

/// Which roots are trusted.
#[derive(Clone, Debug)]
pub struct Trust(Result<Arc<WebPkiServerVerifier>, String>);

impl Trust {
    /// The host's own trust store, read once.
    pub fn system() -> Self {
        static SYSTEM: OnceLock<Trust> = OnceLock::new();
        SYSTEM
            .get_or_init(|| {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                Self::of(roots)
            })
            .clone()
    }

    /// Only these roots.
    pub fn only(certificates: impl IntoIterator<Item = CertificateDer<'static>>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates);
        Self::of(roots)
    }

    fn of(roots: RootCertStore) -> Self {
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
        Self(verifier.map_err(|error| format!("no trusted root is known on this host ({error}): install ca-certificates")))
    }

    /// Verifies a chain, leaf first: it leads to a trusted root, is valid at that moment, and covers the name. What is
    /// wrong with the chain comes before what is wrong with the name.
    ///
    /// # Errors
    /// [`rustls::Error::InvalidCertificate`] with what is wrong, another where nothing can be verified.
    pub fn verify(&self, chain: &[CertificateDer<'_>], name: &ServerName<'_>, at: UnixTime) -> Result<(), rustls::Error> {
        let verifier = self.0.as_ref().map_err(|why| rustls::Error::General(why.clone()))?;
        let (leaf, intermediates) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        verifier.verify_server_cert(leaf, intermediates, name, &[], at).map(|_| ())
    }
}

/// Says what is wrong with a certificate: rustls names some of it only as its own code does.
pub fn in_words(wrong: &CertificateError) -> String {
    match wrong {
        CertificateError::UnknownIssuer => {
            "it leads to no authority that is trusted here: name its authority in ca_file, or have the server send the certificates between".to_owned()
        }
        CertificateError::BadEncoding => "it cannot be read".to_owned(),
        CertificateError::Revoked => "it was revoked".to_owned(),
        CertificateError::BadSignature => "it is not signed by the authority that it names".to_owned(),
        CertificateError::UnhandledCriticalExtension => "it has an extension marked critical that is not known here".to_owned(),
        // webpki's own errors come without a type of ours.
        CertificateError::Other(other) => match format!("{other:?}") {
            why if why.contains("CaUsedAsEndEntity") => {
                "it is that of an authority (CA:TRUE), which no server's own may be: make one for the server, with basicConstraints=CA:FALSE".to_owned()
            }
            why if why.contains("UnsupportedCertVersion") => "it is not of version 3: make it anew with a subjectAltName".to_owned(),
            why => why,
        },
        other => other.to_string(),
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    static PROVIDER: OnceLock<Arc<rustls::crypto::CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())).clone()
}

/// Lets every chain through and keeps what it saw, so that an expired certificate can be measured; signatures of the
/// handshake are checked as always.
#[derive(Debug)]
struct Observer {
    trust: Trust,
    seen: Mutex<Served>,
}

impl ServerCertVerifier for Observer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).map(|der| der.clone().into_owned()).collect();
        let verdict = self.trust.verify(&chain, server_name, now).map_err(|error| match error {
            rustls::Error::InvalidCertificate(why) => in_words(&why),
            rustls::Error::General(why) => why,
            error => error.to_string(),
        });
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.chain = chain;
        seen.verdict = verdict;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Encrypts a connection and reports what was served, **whatever the certificate**: for measuring only. To send
/// anything, use [`tls`].
///
/// # Errors
/// [`NetError::Tls`].
pub async fn tls_observed(stream: Stream, name: &str, trust: &Trust, phases: &mut Phases) -> Result<(Stream, Served), NetError> {
    let failed = |source| NetError::Tls { name: name.to_owned(), source };
    let server_name = ServerName::try_from(name.to_owned()).map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    let observer = Arc::new(Observer { trust: trust.clone(), seen: Mutex::default() });
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(io::Error::other(error)))?
        .dangerous()
        .with_custom_certificate_verifier(observer.clone())
        .with_no_client_auth();
    let begin = Instant::now();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(server_name, stream).await.map_err(failed)?;
    phases.tls = Some(begin.elapsed());
    let mut served = observer.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    served.version = match stream.get_ref().1.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLS 1.3",
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLS 1.2",
        _ => "unknown",
    };
    Ok((Stream::Tls(Box::new(stream)), served))
}

/// Encrypts a connection to a server whose certificate is trusted, valid now and covers the name.
///
/// # Errors
/// [`NetError::Tls`] or [`NetError::Certificate`]; then nothing was sent but the handshake.
pub async fn tls(stream: Stream, name: &str, trust: &Trust, phases: &mut Phases) -> Result<(Stream, Served), NetError> {
    let (stream, served) = tls_observed(stream, name, trust, phases).await?;
    match &served.verdict {
        Ok(()) => Ok((stream, served)),
        Err(verdict) => Err(NetError::Certificate { name: name.to_owned(), verdict: verdict.clone() }),
    }
}

/// Reads until `done` says that the answer is complete, or `limit` bytes.
///
/// # Errors
/// [`NetError::Eof`] before that, [`NetError::TooLarge`] at the limit, [`NetError::Io`].
pub async fn read_until(
    stream: &mut (impl AsyncRead + Unpin),
    limit: usize,
    mut done: impl FnMut(&[u8]) -> bool,
) -> Result<Vec<u8>, NetError> {
    let mut buffer = Vec::with_capacity(limit.min(1024));
    let mut chunk = [0u8; 4096];
    while !done(&buffer) {
        if buffer.len() >= limit {
            return Err(NetError::TooLarge { limit });
        }
        let room = chunk.len().min(limit - buffer.len());
        match stream.read(&mut chunk[..room]).await? {
            0 => return Err(NetError::Eof { after: buffer.len() }),
            n => buffer.extend_from_slice(&chunk[..n]),
        }
    }
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_printed() {
        for text in ["127.0.0.1:80", "db-1.example.org:5432", "[::1]:80", "unix:/run/app.sock"] {
            assert_eq!(Endpoint::parse(text).expect(text).to_string(), text);
        }
        for text in ["", "80", ":80", "host", "host:0", "host:x", "::1:80", "unix:relative", "a b:1", "user@host:1"] {
            assert_eq!(Endpoint::parse(text), None, "{text}");
        }
    }

    #[test]
    fn where_there_is_no_way_nobody_has_refused() {
        let reason = |number| {
            let endpoint = Endpoint::parse("192.0.2.1:80").expect("is one");
            NetError::Connect { endpoint, source: io::Error::from_raw_os_error(number) }.reason()
        };
        // ENETUNREACH, EHOSTUNREACH, ECONNREFUSED.
        assert_eq!([101, 113, 111].map(reason), [Reason::ConnectTimeout, Reason::ConnectTimeout, Reason::Refused]);
    }

    #[tokio::test]
    async fn an_endless_answer_ends_at_its_limit() {
        let error = read_until(&mut tokio::io::repeat(b'x'), 10_000, |_| false).await.expect_err("is endless");
        assert_eq!(error.reason(), Reason::TooLarge);
        let error = read_until(&mut &b"half"[..], 10_000, |_| false).await.expect_err("is half");
        assert_eq!(error.reason(), Reason::Eof);
    }
}
