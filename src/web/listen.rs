//! Our own accept loop: `axum::serve` has neither a limit on connections nor one on the time that headers may take.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use futures_util::future::BoxFuture;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, getrlimit};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::access::Access;
use super::control::Peer;
use crate::metrics::Metrics;
use crate::tasks::Tasks;

/// The most connections at once; the next one is closed at once.
pub(super) const MAX_CONNECTIONS: usize = 512;
/// What part of the file descriptors they may take, where that is less: probes, mails and the state need theirs.
const PART_OF_DESCRIPTORS: u64 = 4;
/// The time that the request's headers may take: a slow client is closed.
const HEADERS_WITHIN: Duration = Duration::from_secs(5);
/// The time that TLS may take to come about.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// The time that a client may take nothing of its answer.
const TAKEN_WITHIN: Duration = Duration::from_secs(10);
/// The time that a connection may live: Prometheus reconnects without a word, a client that never reads is gone.
const CONNECTION_WITHIN: Duration = Duration::from_secs(600);
/// The largest head of a request.
const MAX_HEAD: usize = 16 * 1024;
/// How long to wait when no file descriptor is left.
const NO_DESCRIPTORS_PAUSE: Duration = Duration::from_millis(100);

/// Something that accepts connections.
pub(super) trait Accept: Send + 'static {
    /// The connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// Who it is, as the kernel says.
    type Peer: Clone + Send + Sync + 'static;
    /// Waits for the next one.
    fn accept(&self) -> BoxFuture<'_, io::Result<(Self::Stream, Self::Peer)>>;
    /// Returns how TLS is spoken on the next one, if it is.
    fn tls(&self) -> Option<Arc<ServerConfig>> {
        None
    }
}

/// A port, with TLS where the gate in force asks for it.
pub(super) struct Tcp {
    pub(super) listener: TcpListener,
    pub(super) access: Access,
}

pub(super) struct Unix(pub(super) UnixListener);

impl Accept for Tcp {
    type Stream = tokio::net::TcpStream;
    type Peer = IpAddr;
    fn accept(&self) -> BoxFuture<'_, io::Result<(Self::Stream, IpAddr)>> {
        Box::pin(async {
            let (stream, from) = self.listener.accept().await?;
            // The answer is one write: Nagle's algorithm would only delay its last packet.
            stream.set_nodelay(true)?;
            Ok((stream, from.ip().to_canonical()))
        })
    }
    fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.access.gate().tls.clone()
    }
}

impl Accept for Unix {
    type Stream = tokio::net::UnixStream;
    type Peer = Peer;
    fn accept(&self) -> BoxFuture<'_, io::Result<(Self::Stream, Peer)>> {
        Box::pin(async {
            let (stream, _) = self.0.accept().await?;
            let peer = stream.peer_cred()?;
            Ok((stream, Peer::Local { uid: peer.uid() }))
        })
    }
}

/// Serves until the tasks are stopped; requests under way may then end within a second.
pub(super) async fn serve(listener: impl Accept, router: Router, metrics: Arc<Metrics>, tasks: Tasks) {
    let descriptors = getrlimit(Resource::Nofile).current.map_or(MAX_CONNECTIONS, |most| (most / PART_OF_DESCRIPTORS) as usize);
    let permits = Arc::new(Semaphore::new(descriptors.clamp(1, MAX_CONNECTIONS)));
    let stop = tasks.token();
    let connections = Tasks::new();
    loop {
        let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else { break };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            // Out of file descriptors, or a connection that died at once: neither may end or spin the loop.
            Err(error) => {
                tracing::debug!(%error, "a connection was not accepted");
                tokio::time::sleep(NO_DESCRIPTORS_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            metrics.http_connections_refused.inc();
            continue;
        };
        metrics.http_connections.inc();
        let (router, metrics, tls) = (router.clone(), metrics.clone(), listener.tls());
        let stop = connections.token();
        connections.spawn("web connection", async move {
            let router = router.layer(axum::Extension(peer));
            let stream = Patient { stream, stalled: None };
            match tls {
                None => converse(stream, router, &stop).await,
                Some(config) => {
                    let shaken = tokio::time::timeout(HANDSHAKE_WITHIN, TlsAcceptor::from(config).accept(stream));
                    match stop.run_until_cancelled(shaken).await {
                        Some(Ok(Ok(stream))) => converse(stream, router, &stop).await,
                        Some(Ok(Err(error))) => tracing::debug!(%error, "TLS did not come about"),
                        Some(Err(_)) | None => {}
                    }
                }
            }
            metrics.http_connections.dec();
            drop(permit);
        });
    }
    connections.stop(Duration::from_secs(1)).await;
}

/// Speaks HTTP on one connection until one side ends it, or a limit does.
async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router, stop: &CancellationToken) {
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN).max_buf_size(MAX_HEAD);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let served = tokio::time::timeout(CONNECTION_WITHIN, async {
        tokio::select! {
            served = connection.as_mut() => served,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    });
    if let Ok(Err(error)) = served.await {
        tracing::debug!(%error, "a connection broke");
    }
}

/// A stream that is given up when its other side takes nothing for [`TAKEN_WITHIN`].
struct Patient<S> {
    stream: S,
    /// Since something waits to be taken.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    fn judge<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(TAKEN_WITHIN)));
        stalled.as_mut().poll(cx).map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.judge(cx, polled)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.judge(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.judge(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
