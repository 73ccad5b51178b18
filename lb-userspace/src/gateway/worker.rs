//! Workers: each is a thread with its own runtime and its own listening sockets. There is one per core.
//!
//! Workers are not pinned to cores: if anything else runs on the machine, the connections of a worker on a busy core would
//! wait while another core idles (measured: 0.6 times the new TLS connections per second).

use crate::accept::{BACK_OFF, is_exhaustion};
use crate::arrival::too_many;
use crate::conn::{Accepted, serve};
use crate::reason::RejectReason;
use crate::running::RunningGateway;
use crate::socket::{canonical, reset_on_close};
use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::Instrument as _;

/// A command of the control side to a worker.
pub(super) enum Command {
    /// Accept on this socket.
    Listen(SocketAddr, std::net::TcpListener),
    /// Stop accepting on this address.
    Unlisten(SocketAddr),
    /// Say that all earlier commands are done.
    Answer(oneshot::Sender<()>),
    /// Drop all connections and end.
    Exit,
}

/// A running worker.
pub(super) struct Worker {
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) thread: thread::JoinHandle<()>,
}

/// Starts the worker with this index.
pub(super) fn spawn(gateway: Arc<RunningGateway>, index: usize) -> io::Result<Worker> {
    let (commands, receiver) = mpsc::unbounded_channel();
    let (started, start) = std::sync::mpsc::sync_channel(1);
    let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        // A LocalRuntime: a LocalSet on another runtime would write to an eventfd for each wake-up.
        match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
            Ok(runtime) => {
                let _ = started.send(Ok(()));
                runtime.block_on(obey(gateway, index, receiver));
            }
            Err(error) => _ = started.send(Err(error)),
        }
    })?;
    start.recv().map_err(io::Error::other)??;
    Ok(Worker { commands, thread })
}

async fn obey(gateway: Arc<RunningGateway>, index: usize, mut commands: mpsc::UnboundedReceiver<Command>) {
    let mut accepting: HashMap<SocketAddr, Vec<JoinHandle<()>>> = HashMap::new();
    while let Some(command) = commands.recv().await {
        match command {
            Command::Listen(address, socket) => match TcpListener::from_std(socket) {
                Ok(socket) => {
                    let task = tokio::task::spawn_local(accept(gateway.clone(), index, address, socket));
                    accepting.entry(address).or_default().push(task);
                }
                Err(error) => tracing::error!(%address, %error, "cannot watch the listening socket"),
            },
            Command::Unlisten(address) => {
                let tasks = accepting.remove(&address).unwrap_or_default();
                tasks.iter().for_each(JoinHandle::abort);
                for task in tasks {
                    // An error: it was aborted.
                    let _ = task.await;
                }
            }
            Command::Answer(done) => _ = done.send(()),
            Command::Exit => return,
        }
    }
}

/// accept: accepts connections on one listening socket, for ever.
async fn accept(gateway: Arc<RunningGateway>, worker: usize, address: SocketAddr, socket: TcpListener) {
    let mut exhausted = false;
    loop {
        match socket.accept().await {
            Ok((client, peer)) => {
                exhausted = false;
                admit(&gateway, worker, address, client, canonical(peer));
            }
            Err(error) if is_exhaustion(&error) => {
                if !exhausted {
                    tracing::error!(%address, %error, "cannot accept: waiting for a resource");
                }
                exhausted = true;
                tokio::time::sleep(BACK_OFF).await;
            }
            // The client has gone since its SYN.
            Err(error) => tracing::debug!(%address, %error, "accept"),
        }
    }
}

/// Decides, before a byte is read, whether the connection may go on, and spawns its task.
fn admit(
    gateway: &Arc<RunningGateway>,
    worker: usize,
    address: SocketAddr,
    client: TcpStream,
    peer: SocketAddr,
) {
    let snapshot = gateway.snapshot.load_full();
    let Some(listener) = snapshot.listener(address).cloned() else { return reset_on_close(&client) };
    listener.stats.total.fetch_add(1, Relaxed);
    let permits = || {
        if !listener.acl.permits(peer.ip()) {
            return Err(RejectReason::AddressDenied);
        }
        // The client that a trusted proxy speaks for is not known yet.
        let limit = listener.clients.as_ref().filter(|_| !listener.trusts(peer));
        let of_client = gateway.acquire_for(peer.ip(), limit).map_err(too_many)?;
        let of_gateway = gateway.acquire(&gateway.books.stats.live, Some(snapshot.gateway.max_connections));
        let of_listener = gateway.acquire(&listener.stats.live, listener.max_connections);
        let of_gateway = of_gateway.ok_or(RejectReason::GatewayFull)?;
        Ok(([of_gateway, of_listener.ok_or(RejectReason::ListenerFull)?], of_client))
    };
    let (permits, of_client) = match permits() {
        Ok(permits) => permits,
        Err(reason) => {
            crate::account::Visitor::new(&gateway.books, listener.clone(), peer, crate::clock::now_ms())
                .reject(&gateway.books, reason);
            return reset_on_close(&client);
        }
    };
    // Only if it is enabled: a span takes memory for as long as its task lives.
    let span = tracing::enabled!(tracing::Level::DEBUG)
        .then(|| tracing::debug_span!("connection", listener = %listener.name, client = %peer));
    let task = Rc::new(Cell::new(None));
    let accepted =
        Accepted { worker, client, peer, snapshot, listener, permits, of_client, task: task.clone() };
    // Boxed: it takes kilobytes, which tokio would move several times, also when the task ends.
    let serve = Box::pin(serve(gateway.clone(), accepted));
    let spawned = match span {
        Some(span) => tokio::task::spawn_local(serve.instrument(span)),
        None => tokio::task::spawn_local(serve),
    };
    task.set(Some(spawned.abort_handle()));
}
