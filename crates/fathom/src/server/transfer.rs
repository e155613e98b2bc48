//! Bodies too large to hold, between clients and threads that read and write like files.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::time::{Duration, Instant};

use axum::body::{Body, BodyDataStream, Bytes};
use futures_util::{StreamExt, stream};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::desk::PATIENCE;

/// Parts that wait for a client at most.
const PARTS: usize = 4;
/// Bytes that are sent at once.
const PART: usize = 1 << 20;
/// Bytes of a second that a body has to have, on the whole, after a while: each holds a thread.
const SLOWEST: u64 = 64 << 10;

/// A body that `write` writes, on a thread of its own, as fast as the client takes it. An error ends the connection early, so
/// that nobody takes a part for the whole.
pub(super) fn outgoing<E: std::error::Error + Send + Sync + 'static>(
    write: impl FnOnce(&mut io::BufWriter<Parts>) -> Result<(), E> + Send + 'static,
) -> Body {
    let (send, parts) = mpsc::channel::<io::Result<Bytes>>(PARTS);
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || {
        let mut to = io::BufWriter::with_capacity(PART, Parts { send: send.clone(), runtime });
        let written = write(&mut to).map_err(io::Error::other).and_then(|()| to.flush());
        if let Err(e) = written {
            let _ = send.try_send(Err(e));
        }
    });
    Body::from_stream(stream::unfold(parts, |mut parts| async move { Some((parts.recv().await?, parts)) }))
}

/// What is written goes to the client, in parts.
pub(super) struct Parts {
    send: mpsc::Sender<io::Result<Bytes>>,
    runtime: Handle,
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the client has gone");
        let part = Ok(Bytes::copy_from_slice(bytes));
        let sent = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, self.send.send(part)).await });
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing");
        sent.map_err(late)?.map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A client's body, read like a file on a thread that may block.
pub(super) struct Incoming {
    body: Pin<Box<BodyDataStream>>,
    runtime: Handle,
    part: Bytes,
    since: Instant,
    total: u64,
}

impl Incoming {
    pub(super) fn new(body: Body) -> Incoming {
        let body = Box::pin(body.into_data_stream());
        Incoming { body, runtime: Handle::current(), part: Bytes::new(), since: Instant::now(), total: 0 }
    }
}

impl Read for Incoming {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.part.is_empty() {
            let left = (PATIENCE + Duration::from_secs(self.total / SLOWEST)).saturating_sub(self.since.elapsed());
            // A time-out needs the runtime's clock.
            let next = self.runtime.block_on(async { tokio::time::timeout(left, self.body.next()).await });
            match next.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the body took too long to arrive"))? {
                Some(part) => {
                    self.part = part.map_err(io::Error::other)?;
                    self.total += self.part.len() as u64;
                }
                None => return Ok(0),
            }
        }
        let n = to.len().min(self.part.len());
        to[..n].copy_from_slice(&self.part.split_to(n));
        Ok(n)
    }
}
