//! Connections: as many as the system has files for, with limits on the time and the bytes of what comes before a request.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::Tls;

/// The most bytes of a request's line and headers.
const HEAD: usize = 64 << 10;
/// The most headers.
const HEADERS: usize = 100;
/// How long after a failure to take a connection the next try is: there may be no more files.
const PAUSE: Duration = Duration::from_millis(200);

/// What a connection may take.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// Connections at once; others wait until one ends.
    pub at_once: usize,
    /// From a connection's start, or from an answer, to the end of the next request's headers.
    pub head: Duration,
    /// How long a client may take nothing of what is sent to it.
    pub stalled: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> ConnectionLimits {
        ConnectionLimits { at_once: files() / 2, head: Duration::from_secs(60), stalled: Duration::from_secs(300) }
    }
}

/// Files that this process may have open, as far as is of use here.
fn files() -> usize {
    #[cfg(unix)]
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    #[cfg(not(unix))]
    let files = 1024;
    (files as usize).clamp(128, 8192)
}

/// Takes connections until `stop`, and lets those that are open end what they do.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    router: Router,
    limits: ConnectionLimits,
    stop: impl Future<Output = ()>,
) {
    let (open, graceful) = (Arc::new(Semaphore::new(limits.at_once)), GracefulShutdown::new());
    let mut stop = pin!(stop);
    loop {
        let next = async {
            // The semaphore is never closed.
            let place = Arc::clone(&open).acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            () = &mut stop => break,
        };
        let (Ok((stream, _)), Some(place)) = (accepted, place) else {
            sleep(PAUSE).await;
            continue;
        };
        // Tokens are small and to be there at once.
        let _ = stream.set_nodelay(true);
        tokio::spawn(one(stream, tls.clone(), router.clone(), limits, graceful.watcher(), place));
    }
    drop(listener);
    graceful.shutdown().await;
}

async fn one(
    stream: TcpStream,
    tls: Option<Arc<Tls>>,
    router: Router,
    limits: ConnectionLimits,
    watcher: Watcher,
    _place: OwnedSemaphorePermit,
) {
    match tls {
        None => talk(stream, router, limits, watcher).await,
        Some(tls) => {
            if let Ok(Ok(stream)) = timeout(limits.head, tls.accept(stream)).await {
                talk(stream, router, limits, watcher).await;
            }
        }
    }
}

async fn talk<S>(stream: S, router: Router, limits: ConnectionLimits, watcher: Watcher)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = TokioIo::new(Taking { stream, limit: limits.stalled, since: None });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(HEAD)
        .max_headers(HEADERS)
        .serve_connection(stream, TowerToHyperService::new(router));
    // Clients go in all manner of ways.
    let _ = watcher.watch(connection).await;
}

/// A stream that ends if its other side takes nothing for too long.
struct Taking<S> {
    stream: S,
    limit: Duration,
    since: Option<Pin<Box<Sleep>>>,
}

impl<S> Taking<S> {
    fn see<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.since = None;
            return written;
        }
        let limit = self.limit;
        let sleep = self.since.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + limit)));
        ready!(sleep.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Taking<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, to)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Taking<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.see(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.see(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.see(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.see(cx, shut)
    }
}
