//! One HTTP/1.1 request over one connection, by phases, with a bound on everything that comes back.
//!
//! No redirect is followed, no compression is asked for, no connection is kept. hyper writes and parses; its connection
//! is driven inside the call, so a dropped call leaves nothing behind. Deadlines are the caller's.
//!
//! [`send`] does all; a probe that says what it waits for calls the three steps itself: [`net::connect`] to
//! [`Request::endpoint`], [`secure`], [`exchange`].

use std::borrow::Cow;
use std::error::Error as _;
use std::fmt;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

pub use hyper::Method;

use super::net::{self, Endpoint, NetError, Phases, Served, Stream, Trust};
use super::smtp::base64;
use crate::model::decode::{self, Decode};
use crate::model::yaml::Node;
use crate::model::{Problems, Reason, Secret};

/// The largest head of an answer, in bytes.
pub const MAX_HEAD: usize = 64 * 1024;
/// The most header lines of an answer.
pub const MAX_HEADERS: usize = 200;
/// The most bytes until the head of the answer is complete, the interim answers (1xx) before it among them, of which hyper takes
/// any number without a pause.
const MAX_UNTIL_HEAD: usize = 2 * MAX_HEAD;
/// The longest URL that is taken.
const MAX_URL: usize = 4096;

/// An `http` or `https` URL without a password and without a fragment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Url {
    https: bool,
    host: String,
    port: u16,
    path: String,
}

impl Url {
    /// Parses `http://host[:port][/path][?query]`; a fragment is cut, it is not sent anyway.
    ///
    /// # Errors
    /// What is wrong, for people; a refused password is not in it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (https, rest) = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            _ => return Err("expected a URL that begins with http:// or https://".to_owned()),
        };
        if text.len() > MAX_URL {
            return Err(format!("expected a URL of at most {MAX_URL} bytes, found {}", text.len()));
        }
        let rest = rest.split('#').next().unwrap_or(rest);
        let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err("a password in a URL is refused: it would stand in logs and on pages; put it into a file and name that".to_owned());
        }
        let path = if tail.starts_with('/') { tail.to_owned() } else { format!("/{tail}") };
        if let Some(wrong) = path.chars().find(|c| !c.is_ascii_graphic()) {
            return Err(format!("expected a URL without {wrong:?} in its path: write it percent-encoded"));
        }
        // A `:` inside the brackets of an IPv6 address is none before a port.
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
        let full = if has_port { authority.to_owned() } else { format!("{authority}:{}", if https { 443 } else { 80 }) };
        match Endpoint::parse(&full) {
            Some(Endpoint::Tcp { host, port }) if path.parse::<hyper::Uri>().is_ok() => Ok(Self { https, host, port, path }),
            _ => Err("expected a URL such as https://www.example.org/path".to_owned()),
        }
    }

    /// Says whether it is encrypted.
    pub fn is_https(&self) -> bool {
        self.https
    }

    /// Returns the host without brackets: also the name that the certificate must cover.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the port, written or implied.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns path and query, `/` at least.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the same URL with another path and query, which begins with `/`.
    ///
    /// # Errors
    /// As [`Url::parse`].
    pub fn with_path(&self, path: &str) -> Result<Self, String> {
        Self::parse(&format!("{}://{}{path}", self.scheme(), self.authority()))
    }

    /// Returns where it leads.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::Tcp { host: self.host.clone(), port: self.port }
    }

    /// Returns what stands in the `Host` header: the port only where it is not the scheme's own.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == if self.https { 443 } else { 80 } { host } else { format!("{host}:{}", self.port) }
    }

    fn scheme(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme(), self.authority(), self.path)
    }
}

impl Decode for Url {
    const EXPECTED: &'static str = "a URL such as http://127.0.0.1:9200";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let Some(text) = String::decode(node, &mut Problems::default()) else {
            decode::mismatch(node, Self::EXPECTED, problems);
            return None;
        };
        // What was found is not repeated: it may hold a password.
        Self::parse(&text).map_err(|why| problems.push(node.at, why)).ok()
    }
}

/// What is asked. Prints without its path, which may be a secret.
#[derive(Clone)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// What is asked for; also the `Host` header and the name that the certificate must cover.
    pub url: Url,
    /// Where to connect instead of to the URL's host: a unix socket, or one server of several.
    pub at: Option<Endpoint>,
    /// Further headers; one named `host` or `user-agent` stands in place of ours.
    pub headers: Vec<(String, String)>,
    /// The body; empty for none.
    pub body: Vec<u8>,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}://{} at {}", self.method, self.url.scheme(), self.url.authority(), self.endpoint())
    }
}

impl Request {
    /// A `GET`.
    pub fn get(url: Url) -> Self {
        Self { method: Method::GET, url, at: None, headers: Vec::new(), body: Vec::new() }
    }

    /// A `POST` of JSON.
    pub fn post_json(url: Url, body: Vec<u8>) -> Self {
        let headers = vec![(CONTENT_TYPE.as_str().to_owned(), "application/json".to_owned())];
        Self { method: Method::POST, url, at: None, headers, body }
    }

    /// Connects there instead of to the URL's host.
    pub fn at(mut self, endpoint: Endpoint) -> Self {
        self.at = Some(endpoint);
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Logs in by `Basic` (RFC 7617).
    pub fn basic(self, username: &str, password: &Secret) -> Self {
        self.header(AUTHORIZATION.as_str(), format!("Basic {}", base64(format!("{username}:{}", password.expose()).as_bytes())))
    }

    /// Returns where it connects to.
    pub fn endpoint(&self) -> Endpoint {
        self.at.clone().unwrap_or_else(|| self.url.endpoint())
    }

    fn to_hyper(&self) -> Result<hyper::Request<Full<Bytes>>, HttpError> {
        let wrong = |name: &str| HttpError::Request { header: name.chars().take(60).collect() };
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_str(&self.url.authority()).map_err(|_| wrong("host"))?);
        headers.insert(USER_AGENT, HeaderValue::from_static(net::USER_AGENT));
        headers.insert("accept", HeaderValue::from_static("*/*"));
        for (name, value) in &self.headers {
            let value = HeaderValue::from_str(value).map_err(|_| wrong(name))?;
            headers.insert(HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong(name))?, value);
        }
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        let mut request = hyper::Request::new(Full::new(Bytes::from(self.body.clone())));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.url.path.parse().map_err(|_| wrong("path"))?;
        *request.headers_mut() = headers;
        Ok(request)
    }
}

/// What an exchange showed as far as it came: also after an error, and after a timeout that dropped the call.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Resolving, connecting, TLS.
    pub net: Phases,
    /// From the request until the head of the answer.
    pub processing: Option<Duration>,
    /// From there until the end of the body.
    pub transfer: Option<Duration>,
    /// The status of the answer.
    pub status: Option<u16>,
    /// The version of HTTP of the answer, 1.0 or 1.1.
    pub version: Option<f64>,
    /// What the other side of the TLS handshake showed, a certificate that is not valid too.
    pub served: Option<Served>,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// Returns the first header of a name, where it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Returns the body as text; what is not UTF-8 is replaced.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }
}

/// What an exchange failed at.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Connecting or TLS.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The request itself cannot be written.
    #[error("the header {header:?} cannot be sent: it holds characters that HTTP does not allow")]
    Request {
        /// Its name.
        header: String,
    },
    /// Headers or body are larger than their limit.
    #[error("the {what} of the answer is larger than {limit} bytes")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The other side closed before the answer was complete.
    #[error("the connection was closed before the {what} of the answer was complete")]
    Eof {
        /// Which part.
        what: &'static str,
    },
    /// The connection broke.
    #[error("the connection broke within the {what} of the answer")]
    Broken {
        /// Which part.
        what: &'static str,
        /// How.
        source: hyper::Error,
    },
    /// What came is not HTTP/1.1.
    #[error("the answer is not HTTP")]
    Protocol(#[source] hyper::Error),
}

impl HttpError {
    /// Returns the reason of the closed set.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Net(error) => error.reason(),
            Self::Request { .. } => Reason::Internal,
            Self::TooLarge { .. } => Reason::TooLarge,
            Self::Eof { .. } => Reason::Eof,
            Self::Broken { .. } => Reason::Reset,
            Self::Protocol(_) => Reason::Protocol,
        }
    }

    fn of(error: hyper::Error, what: &'static str) -> Self {
        let mut cause = error.source();
        let mut kind = None;
        while let Some(next) = cause {
            kind = kind.or_else(|| next.downcast_ref::<io::Error>().map(io::Error::kind));
            cause = next.source();
        }
        match kind {
            _ if error.is_parse_too_large() || kind == Some(io::ErrorKind::FileTooLarge) => {
                Self::TooLarge { what: "head", limit: MAX_HEAD }
            }
            // Below hyper, an end within a body or without TLS' farewell is this kind.
            Some(io::ErrorKind::UnexpectedEof) => Self::Eof { what },
            Some(io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput) => Self::Protocol(error),
            Some(_) => Self::Broken { what, source: error },
            None if error.is_incomplete_message() || error.is_closed() || error.is_canceled() => Self::Eof { what },
            None => Self::Protocol(error),
        }
    }
}

/// Connects, encrypts where the URL says so, asks, and reads the whole answer of at most `max_body` bytes.
///
/// # Errors
/// [`HttpError`]; any status is an answer, not an error. `seen` keeps what was measured before.
pub async fn send(request: &Request, trust: &Trust, max_body: usize, seen: &mut Seen) -> Result<Answer, HttpError> {
    let stream = net::connect(&request.endpoint(), &mut seen.net).await?;
    let stream = secure(stream, &request.url, trust, seen).await?;
    exchange(stream, request, max_body, seen).await
}

/// Encrypts the connection where the URL says so. What was served is in `seen` even if it is not valid.
///
/// # Errors
/// [`NetError::Tls`] or [`NetError::Certificate`].
pub async fn secure(stream: Stream, url: &Url, trust: &Trust, seen: &mut Seen) -> Result<Stream, NetError> {
    if !url.https {
        return Ok(stream);
    }
    let (stream, served) = net::tls_observed(stream, &url.host, trust, &mut seen.net).await?;
    let verdict = served.verdict.clone();
    seen.served = Some(served);
    match verdict {
        Ok(()) => Ok(stream),
        Err(verdict) => Err(NetError::Certificate { name: url.host.clone(), verdict }),
    }
}

/// Asks over a connection that stands, and reads the whole answer of at most `max_body` bytes.
///
/// # Errors
/// [`HttpError`] without [`HttpError::Net`].
pub async fn exchange(stream: Stream, request: &Request, max_body: usize, seen: &mut Seen) -> Result<Answer, HttpError> {
    let mut body = Vec::new();
    let mut keep = |_: u16, piece: &[u8]| {
        if body.len() + piece.len() > max_body {
            return Err(HttpError::TooLarge { what: "body", limit: max_body });
        }
        body.extend_from_slice(piece);
        Ok(())
    };
    let answer = exchange_piecewise(stream, request, &mut keep, seen).await?;
    Ok(Answer { body, ..answer })
}

/// Takes the status of an answer and the next piece of its body; an error ends the exchange.
pub type Take<'a> = dyn FnMut(u16, &[u8]) -> Result<(), HttpError> + Send + 'a;

/// Like [`exchange`], for a body that comes over time, such as a stream of events: each piece is handed on when it is
/// there, an empty one first of all when the head is, and bounds are up to who takes it. The answer comes back without a
/// body, once that has ended.
///
/// # Errors
/// As [`exchange`], or what `take` returned.
pub async fn exchange_piecewise(stream: Stream, request: &Request, take: &mut Take<'_>, seen: &mut Seen) -> Result<Answer, HttpError> {
    let request = request.to_hyper()?;
    let begin = Instant::now();
    let room = Arc::new(AtomicUsize::new(MAX_UNTIL_HEAD));
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .handshake(TokioIo::new(Bounded { stream, room: room.clone() }))
        .await
        .map_err(|error| HttpError::of(error, "head"))?;
    let work = async {
        let answer = sender.send_request(request).await.map_err(|error| HttpError::of(error, "head"))?;
        room.store(usize::MAX, Ordering::Relaxed);
        seen.processing = Some(begin.elapsed());
        seen.status = Some(answer.status().as_u16());
        seen.version = Some(if answer.version() == hyper::Version::HTTP_10 { 1.0 } else { 1.1 });
        let begin = Instant::now();
        let (head, mut incoming) = answer.into_parts();
        take(head.status.as_u16(), &[])?;
        while let Some(frame) = incoming.frame().await {
            let frame = frame.map_err(|error| HttpError::of(error, "body"))?;
            if let Some(bytes) = frame.data_ref() {
                take(head.status.as_u16(), bytes)?;
            }
        }
        seen.transfer = Some(begin.elapsed());
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: Vec::new() })
    };
    // The connection has no task of its own: it moves while this call is polled, and ends with it.
    let (mut work, mut connection, mut open) = (pin!(work), pin!(connection), true);
    loop {
        tokio::select! {
            biased;
            answer = &mut work => return answer,
            ended = &mut connection, if open => {
                open = false;
                if let Err(error) = ended {
                    tracing::trace!(%error, "an HTTP connection ended");
                }
            }
        }
    }
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// All that an HTTP server says.
    pub fn http(bytes: &[u8]) {
        const MOST: usize = 4096;
        let request = Request::get(Url::parse("http://127.0.0.1/").expect("is one"));
        crate::fuzzing::answered(bytes, async |stream| {
            if let Ok(answer) = exchange(Stream::Unix(stream), &request, MOST, &mut Seen::default()).await {
                assert!(answer.body.len() <= MOST);
            }
        });
    }
}

/// A connection over which only so much may still come; `usize::MAX` for any number of bytes.
struct Bounded {
    stream: Stream,
    room: Arc<AtomicUsize>,
}

impl AsyncRead for Bounded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let room = self.room.load(Ordering::Relaxed);
        if room < usize::MAX {
            let left = room.checked_sub(buf.filled().len() - before).ok_or(io::ErrorKind::FileTooLarge)?;
            self.room.store(left, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_printed() {
        for (text, endpoint, printed) in [
            ("http://a.example", "a.example:80", "http://a.example/"),
            ("HTTPS://a.example/x?y=1#z", "a.example:443", "https://a.example/x?y=1"),
            ("http://[::1]:8000?q", "[::1]:8000", "http://[::1]:8000/?q"),
            ("http://[::1]/", "[::1]:80", "http://[::1]/"),
            ("https://a.example:443/", "a.example:443", "https://a.example/"),
            ("http://a.example/@x", "a.example:80", "http://a.example/@x"),
        ] {
            let url = Url::parse(text).expect(text);
            assert_eq!((url.endpoint().to_string().as_str(), url.to_string().as_str()), (endpoint, printed));
        }
        for text in
            ["", "a.example", "ftp://a", "http://", "http:///x", "http://a b/", "http://a/b c", "http://a/\r\nHost: b", "http://a:0/"]
        {
            assert!(Url::parse(text).is_err(), "{text:?} is no URL");
        }
        let refused = Url::parse("https://u:hunter2@a.example/").expect_err("holds a password");
        assert!(refused.contains("a password in a URL is refused") && !refused.contains("hunter2"), "{refused}");
    }

    async fn asked(answer: &'static [u8], max_body: usize) -> (Result<Answer, HttpError>, Seen, String) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let serve = async {
            let (mut stream, _) = listener.accept().await.expect("a client comes");
            let mut request = vec![0; 4096];
            let n = stream.read(&mut request).await.expect("a request comes");
            // The client may have had enough before all is written.
            drop(stream.write_all(answer).await);
            String::from_utf8_lossy(&request[..n]).into_owned()
        };
        let url = Url::parse("http://site.example/deep?x=1").expect("is a URL");
        let endpoint = Endpoint::Tcp { host: "127.0.0.1".to_owned(), port };
        let request = Request::get(url).at(endpoint).header("X-Forwarded-Proto", "https");
        let (trust, mut seen) = (Trust::system(), Seen::default());
        let (answer, request) = tokio::join!(send(&request, &trust, max_body, &mut seen), serve);
        (answer, seen, request)
    }

    #[tokio::test]
    async fn a_request_asks_for_the_site_and_nothing_more() {
        let (answer, seen, request) = asked(b"HTTP/1.1 301 Moved\r\nLocation: https://x/\r\nContent-Length: 2\r\n\r\nok", 10).await;
        let answer = answer.expect("is an answer");
        assert_eq!((answer.status, answer.header("location"), answer.text().as_ref()), (301, Some("https://x/"), "ok"));
        assert!(seen.net.connect.is_some() && seen.processing.is_some() && seen.transfer.is_some() && seen.status == Some(301));
        let request = request.to_lowercase();
        assert!(request.starts_with("get /deep?x=1 http/1.1\r\n"), "{request}");
        for line in ["host: site.example", "user-agent: proctor/", "connection: close", "x-forwarded-proto: https"] {
            assert!(request.contains(&format!("\r\n{line}")), "{line} in {request}");
        }
        assert!(!request.contains("accept-encoding"), "{request}");
    }

    #[tokio::test]
    async fn what_is_no_good_answer_has_its_reason() {
        let endless: &'static [u8] = Vec::leak([b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &[b'x'; 300_000]].concat());
        let many: &'static [u8] = Vec::leak([b"HTTP/1.1 200 OK\r\n".to_vec(), b"A: b\r\n".repeat(1000), b"\r\n".to_vec()].concat());
        for (answer, reason) in [
            (b"HTTP/1.1 200 OK\r\n\r\n0123456789x".as_slice(), Reason::TooLarge),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nB\r\n0123456789x\r\n0\r\n\r\n", Reason::TooLarge),
            (endless, Reason::TooLarge),
            (many, Reason::TooLarge),
            (b"", Reason::Eof),
            (b"HTTP/1.1 200 OK\r\nCont", Reason::Eof),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", Reason::Eof),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", Reason::Eof),
            (b"SSH-2.0-OpenSSH_9.2\r\n", Reason::Protocol),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", Reason::Protocol),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", Reason::Protocol),
        ] {
            let (result, ..) = asked(answer, 10).await;
            let error = result.expect_err(&String::from_utf8_lossy(&answer[..answer.len().min(60)]));
            assert_eq!(error.reason(), reason, "{error:?} for {}", String::from_utf8_lossy(&answer[..answer.len().min(60)]));
        }
    }

    #[tokio::test]
    async fn a_header_that_would_smuggle_another_is_not_sent() {
        let (_client, server) = tokio::net::UnixStream::pair().expect("a pair");
        let request = Request::get(Url::parse("http://a/").expect("is a URL")).header("X", "a\r\nB: c");
        let error = exchange(Stream::Unix(server), &request, 10, &mut Seen::default()).await.expect_err("is refused");
        assert_eq!(error.reason(), Reason::Internal);
    }
}
