//! What stands between the two ends.

use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use lb_common::sockmap::DEFAULT_SOCKETS;
use snisplice::kernel::{Kernel, Sockmap};
use snisplice::reason::{CloseReason, FallbackReason};
use snisplice::splice::sockmap::{Outcome, splice};
use snisplice::traffic::Traffic;
use snisplice_tests::NetNs;
use socket2::SockRef;

use crate::peers::{Legs, Peer};

/// What stands between the two ends.
#[derive(Clone)]
pub(crate) struct Gateway {
    pub(crate) sockmap: Arc<Sockmap>,
}

/// How a connection was carried.
pub(crate) struct Carried {
    pub(crate) ended: CloseReason,
    pub(crate) demoted: Option<FallbackReason>,
    pub(crate) by_kernel: u64,
    pub(crate) total: [u64; 2],
}

impl Carried {
    /// From the client, and from the server.
    pub(crate) fn bytes(&self) -> [u64; 2] {
        self.total
    }
}

impl Gateway {
    /// Splices; continues by copying if the tier gives the connection back.
    pub(crate) async fn carry(&self, legs: &[tokio::net::TcpStream]) -> Carried {
        let traffic = Traffic::default();
        let outcome = splice(&self.sockmap, &legs[0], &legs[1], &traffic, None).await;
        let mut total = [&traffic.bytes_in, &traffic.bytes_out].map(|bytes| bytes.load(Relaxed));
        let by_kernel = total.iter().sum();
        let (ended, demoted) = match outcome {
            Outcome::Closed(reason) => (reason, None),
            Outcome::Demoted(reason) => {
                let copied = tokio::try_join!(copy(&legs[0], &legs[1]), copy(&legs[1], &legs[0])).unwrap();
                total = [total[0] + copied.0, total[1] + copied.1];
                (CloseReason::ClientClosed, Some(reason))
            }
        };
        Carried { ended, demoted, by_kernel, total }
    }
}

impl Gateway {
    /// Puts a connection into the kernel's hands; its two ends.
    pub(crate) async fn carry_these(&self, legs: Legs) -> (Peer, Peer, tokio::task::JoinHandle<Carried>) {
        let (gateway, before) = (self.clone(), self.sockmap.entries());
        let carry = tokio::task::spawn_local(async move { gateway.carry(&legs.gateway).await });
        while self.sockmap.entries() < before + 2 {
            tokio::task::yield_now().await;
        }
        (legs.client, legs.server, carry)
    }
}

pub(crate) fn is_orderly(reason: CloseReason) -> bool {
    matches!(reason, CloseReason::ClientClosed | CloseReason::ServerClosed)
}

/// The simplest copy tier there can be.
async fn copy(from: &tokio::net::TcpStream, to: &tokio::net::TcpStream) -> io::Result<u64> {
    let mut buffer = vec![0; 64 << 10];
    let mut copied = 0;
    loop {
        let read = read_some(from, &mut buffer).await?;
        if read == 0 {
            // Not connected: this direction had ended before, and the other too by now.
            return match SockRef::from(to).shutdown(Shutdown::Write) {
                Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
                _ => Ok(copied),
            };
        }
        write_all(to, &buffer[..read]).await?;
        copied += read as u64;
    }
}

/// Reads these bytes, in odd pieces, and writes them.
pub(crate) async fn forward_exactly(
    from: &tokio::net::TcpStream,
    to: &tokio::net::TcpStream,
    mut bytes: usize,
) {
    let mut buffer = [0; 1777];
    while bytes > 0 {
        let part = bytes.min(buffer.len());
        let read = read_some(from, &mut buffer[..part]).await.unwrap();
        write_all(to, &buffer[..read]).await.unwrap();
        bytes -= read;
    }
}

pub(crate) async fn read_some(from: &tokio::net::TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        from.readable().await?;
        match from.try_read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}

async fn write_all(to: &tokio::net::TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Waits until so many bytes lie unread in the socket.
pub(crate) async fn queued(socket: &tokio::net::TcpStream, bytes: usize) {
    let mut buffer = vec![0; bytes];
    while socket.peek(&mut buffer).await.unwrap() < bytes {
        tokio::task::yield_now().await;
    }
}

pub(crate) fn in_a_gateway<F: Future<Output = ()>>(test: impl FnOnce(Gateway) -> F + Send) {
    in_a_gateway_for(DEFAULT_SOCKETS, test);
}

/// Runs a test with its own programs, whose maps take so many sockets.
pub(crate) fn in_a_gateway_for<F: Future<Output = ()>>(sockets: u32, test: impl FnOnce(Gateway) -> F + Send) {
    in_a_namespace(|| {
        let kernel = Kernel::open(Path::new("/nonexistent"), sockets).unwrap();
        let gateway = Gateway { sockmap: kernel.sockmap().clone() };
        runtime(async {
            let events = tokio::task::spawn_local({
                let sockmap = gateway.sockmap.clone();
                async move { sockmap.serve_events().await }
            });
            test(gateway).await;
            events.abort();
        });
    });
}

/// A worker's runtime.
pub(crate) fn runtime(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, work);
}

/// Runs a test on a thread in a network namespace of its own; threads that it starts are inside as well.
pub(crate) fn in_a_namespace(test: impl FnOnce() + Send) {
    NetNs::new("sockmap").expect("the tests of the kernel run as root").run(test);
}
