//! The running gateway: its configuration, its books, its tiers and its listening sockets. Below the connections, which use
//! it, and the control side, which makes it.

use crate::account::{Books, Connection};
use crate::cancel::Cancels;
use crate::connect::GatewayPorts;
use crate::kernel::{Kernel, Sockmap, tcp};
use crate::reason::{CloseReason, FallbackReason, Tier};
use crate::serving::{
    ClientLimit, ClientPermit, Excess, Limit, Listener, Permit, ServerRecord, Snapshot, Threads,
};
use crate::splice::packet::PacketTier;
use crate::tier::{Choice, choose};
use arc_swap::ArcSwap;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// What everybody shares who carries connections, ends them or shows them.
pub struct RunningGateway {
    /// The present configuration.
    pub snapshot: ArcSwap<Snapshot>,
    /// Where connections are counted and listed.
    pub books: Arc<Books>,
    /// PostgreSQL sessions that can be cancelled.
    pub cancels: Arc<Cancels>,
    /// The numbers of MySQL clients' connections.
    pub threads: Arc<Threads>,
    /// Sent when a reload has changed routes of HTTP, when requests under way are to end, and when the gateway stops.
    pub notice: watch::Sender<Notice>,
    /// The packet tier, or why it is not used.
    packet: Result<Arc<PacketTier>, FallbackReason>,
    /// The programs of the sockmap tier, or why they are not used.
    sockmap: Result<Kernel, FallbackReason>,
    /// Source ports toward servers.
    ports: Arc<GatewayPorts>,
    /// A second descriptor of every listening socket; the workers have the first.
    listening: Mutex<HashMap<SocketAddr, Vec<TcpListener>>>,
}

/// What is told to those who carry requests of HTTP. They look at it, and at what is under way, whenever it is sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Notice {
    /// They are to end as soon as no request is under way.
    pub is_stopping: bool,
}

impl RunningGateway {
    /// A gateway that listens on no address yet.
    pub(crate) fn new(
        snapshot: Snapshot,
        books: Books,
        packet: Result<Arc<PacketTier>, FallbackReason>,
        sockmap: Result<Kernel, FallbackReason>,
        ports: Arc<GatewayPorts>,
    ) -> Self {
        let (snapshot, books) = (ArcSwap::from_pointee(snapshot), Arc::new(books));
        let (cancels, threads, notice) = Default::default();
        Self {
            snapshot,
            books,
            cancels,
            threads,
            notice,
            packet,
            sockmap,
            ports,
            listening: Mutex::default(),
        }
    }

    /// Chooses the tier for a new connection that is passed through. `packet` tries to begin a handover to the packet tier.
    pub fn choose_tier(
        &self,
        order: &[Tier],
        mut packet: impl FnMut() -> Result<(), FallbackReason>,
    ) -> Choice {
        choose(order, |tier| match tier {
            Tier::Copy => None,
            Tier::Ktls => Some(FallbackReason::KtlsLater),
            Tier::Packet => packet().err(),
            Tier::Sockmap => self.sockmap.as_ref().err().copied(),
        })
    }

    /// Makes a listener's next SYN-ACKs announce at most this MSS: a server behind it accepts no larger segments.
    pub fn clamp_mss(&self, listener: &Listener, mss: u16) {
        if !listener.stats.clamp_mss(mss) {
            return;
        }
        let listening = self.listening();
        for socket in listener.bind.iter().filter_map(|address| listening.get(address)).flatten() {
            if let Err(error) = tcp::set_mss(socket.as_fd(), mss) {
                tracing::warn!(listener = %listener.name, mss, %error, "cannot announce a smaller MSS");
            }
        }
        tracing::info!(listener = %listener.name, mss, "a server takes smaller segments: clients are told so");
    }

    /// Takes a place under a limit of `max`. If none is free, handles the programs' events first: a spliced connection may
    /// have ended.
    pub fn acquire(&self, limit: &Arc<Limit>, max: Option<usize>) -> Option<Permit> {
        limit.acquire(max).or_else(|| {
            self.packet().ok()?.follow_events();
            limit.acquire(max)
        })
    }

    /// Takes one of a client's places, if there is a limit. If none is free, handles the programs' events first, as
    /// [`Self::acquire`] does.
    pub fn acquire_for(
        &self,
        client: IpAddr,
        limit: Option<&ClientLimit>,
    ) -> Result<Option<ClientPermit>, Excess> {
        let Some(limit) = limit else { return Ok(None) };
        let again = |excess| {
            if excess == Excess::Open
                && let Ok(packet) = self.packet()
            {
                packet.follow_events();
                return limit.acquire(client);
            }
            Err(excess)
        };
        limit.acquire(client).or_else(again).map(Some)
    }

    /// Ends all connections to these servers, and the requests under way on them.
    pub fn end_connections_to(&self, down: &[Arc<ServerRecord>]) {
        down.iter().for_each(|record| record.epoch.advance());
        self.notice.send_modify(|_| {});
        let down: HashSet<_> = down.iter().map(Arc::as_ptr).collect();
        // Collected first: a connection of the packet tier is taken out of the ledger as it ends.
        let connections: Vec<_> = self.books.ledger.read(|connections| {
            let is_down = |connection: &&Arc<Connection>| {
                let upstream = connection.upstream.get();
                upstream.is_some_and(|(_, server)| down.contains(&Arc::as_ptr(&server.state)))
            };
            connections.filter(is_down).cloned().collect()
        });
        for connection in connections {
            self.end(&connection, CloseReason::ServerDown);
        }
    }

    /// Ends a connection, in whatever tier it is: both legs are reset.
    pub fn end(&self, connection: &Connection, reason: CloseReason) {
        connection.end(reason);
        if let Ok(packet) = self.packet() {
            packet.end(connection.id, reason);
        }
    }

    /// The listening sockets of each address.
    pub(crate) fn listening(&self) -> MutexGuard<'_, HashMap<SocketAddr, Vec<TcpListener>>> {
        // The map is never left half-changed.
        self.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The packet tier, or why it is not used.
    pub fn packet(&self) -> Result<&Arc<PacketTier>, FallbackReason> {
        self.packet.as_ref().map_err(|reason| *reason)
    }

    /// Source ports toward servers, of all tiers.
    pub fn ports(&self) -> &Arc<GatewayPorts> {
        &self.ports
    }

    /// The sockmap tier, if it is used.
    pub fn sockmap(&self) -> Option<&Sockmap> {
        self.sockmap.as_ref().ok().map(|kernel| &**kernel.sockmap())
    }
}
