//! The packet tier, and a connection's way into it: `plan`, `begin`, `finish`.

use super::grace::Grace;
use super::handover::PendingHandover;
use super::lingering::{Lingering, Pending};
use super::live::Live;
use super::odd::{Losses, OddThread};
use super::spliced;
use super::terms::{Legs, Refusal, Terms};
use super::ticks::now_tick;
use super::ways::Ways;
use crate::account::{Account, ById};
use crate::clock::now_ms;
use crate::close::LegSocket;
use crate::config;
use crate::connect::GatewayPorts;
use crate::kernel::conntrack::Conntrack;
use crate::kernel::packet::FlowInsertError;
use crate::kernel::raw::Injector;
use crate::kernel::tuples::{self, tuple};
use crate::kernel::{KernelError, Packet, tcp};
use crate::reason::{CloseReason, FallbackReason};
use lb_common::packet::{PerDirection, PerLeg, Sighting, Tuple, exit};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Instant;
use tokio::net::TcpStream;

/// The packet tier of a gateway.
pub struct PacketTier {
    pub(super) kernel: Packet,
    pub(super) ports: Arc<GatewayPorts>,
    pub(super) ways: Ways,
    pub(super) grace: Grace,
    pub(super) injector: Injector,
    /// Not set: another process still takes the odd packets.
    pub(super) odd: OnceLock<OddThread>,
    pub(super) losses: Arc<Losses>,
    pub(super) conntrack: Option<Conntrack>,
    pub(super) live: Mutex<Live>,
    /// Connections whose sockets are not closed yet.
    pub(super) handovers: Mutex<ById<HandoverState>>,
    pub(super) lingering: Mutex<Lingering>,
    pub(super) pending: Mutex<Pending>,
    /// Held by the thread that handles the programs' events.
    pub(super) following: Mutex<()>,
    /// The connections that this process keeps while, and after, its successor takes the others over; `None`: it has none.
    pub(super) frozen: RwLock<Option<HashSet<u64>>>,
    /// Flows in the table at the last sweep.
    pub(super) entries: AtomicU64,
    /// Since when ([`now_ms`]) the devices have programs; `None`: the kernel does not take them. Not set: they are being
    /// loaded.
    pub(super) serving: OnceLock<Option<u64>>,
}

/// What a handover is doing, while the sockets of its connection are open.
pub(super) enum HandoverState {
    /// The connection lives.
    UnderWay,
    /// The connection is over. Its slot is freed with the handover, which still reads the track.
    ConnectionOver { slot: u32 },
}

/// The client's side of a connection that may be spliced: its SYN was sighted.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    from_client: Tuple,
    sighting: Sighting,
}

impl Plan {
    /// The client's MSS option; `None` if it sent none.
    pub fn mss(&self) -> Option<u16> {
        (self.sighting.mss != 0).then_some(self.sighting.mss)
    }

    /// Whether the client's leg is IPv4.
    pub fn is_ipv4(&self) -> bool {
        let [client, _] = tuples::ends(&self.from_client);
        client.is_ipv4()
    }
}

impl PacketTier {
    /// Makes the maps, or opens those of an earlier process, with the programs that are pinned with them. Nothing else changes
    /// until [`start`](Self::start). `lock`: that of a process that still uses them.
    pub fn open(
        config: &config::FixedGateway,
        ports: Arc<GatewayPorts>,
        lock: Option<OwnedFd>,
    ) -> anyhow::Result<Self> {
        let kernel = Packet::prepare(&config.bpffs, config.flow_table, lock)?;
        // At once: reading the log takes CAP_SYS_ADMIN, which the thread of `load_aside` does not have.
        #[cfg(feature = "kernel-log")]
        {
            kernel.load()?;
            super::log::follow(&kernel)?;
        }
        Ok(Self {
            kernel,
            ports,
            ways: Ways::open(config.interfaces.clone())?,
            grace: Grace::start()?,
            injector: Injector::open()?,
            odd: OnceLock::new(),
            losses: Arc::default(),
            conntrack: Conntrack::open()?,
            live: Mutex::default(),
            handovers: Mutex::default(),
            lingering: Mutex::default(),
            pending: Mutex::default(),
            following: Mutex::default(),
            frozen: RwLock::default(),
            entries: AtomicU64::new(0),
            serving: OnceLock::new(),
        })
    }

    /// Begins to work, with the programs that are there; those that are missing are loaded by [`load`](Self::load).
    /// `addresses`: of the listeners.
    pub fn start(&self, addresses: impl Iterator<Item = SocketAddr>) -> anyhow::Result<()> {
        self.listen(addresses)?;
        if self.kernel.has_programs() {
            self.ways.follow_devices(&self.kernel)?;
            self.serve(Some(now_ms()));
        }
        self.forget_paths();
        Ok(())
    }

    /// Takes the odd packets, in a thread of its own. Takes CAP_PERFMON.
    pub fn take_odd_packets(&self) -> Result<(), KernelError> {
        // The first call counts.
        let _ = self.odd.set(OddThread::start(&self.kernel, self.injector.frames(), self.losses.clone())?);
        Ok(())
    }

    /// Tells the programs on which ports to sight handshakes: those of the listeners, and our source ports.
    pub fn listen(&self, addresses: impl Iterator<Item = SocketAddr>) -> anyhow::Result<()> {
        Ok(self.kernel.sight(addresses.map(|address| address.port()), self.ports.range())?)
    }

    /// Whether this client's connection can be spliced, as far as its SYN tells. `opened_ms`: when it was accepted
    /// ([`now_ms`]).
    pub fn plan(&self, client: &TcpStream, opened_ms: u64) -> Result<Plan, FallbackReason> {
        let since = match self.serving.get() {
            None => return Err(FallbackReason::PacketLoading),
            Some(None) => return Err(FallbackReason::PacketUnavailable),
            Some(Some(since)) => *since,
        };
        let ends = client.peer_addr().and_then(|peer| Ok((peer, client.local_addr()?)));
        let (peer, local) = ends.map_err(|_| FallbackReason::Closing)?;
        let from_client = tuple(peer, local);
        // If it was accepted before the programs were attached, so was its SYN.
        let is_early = opened_ms < since;
        let unseen = if is_early { FallbackReason::PacketLoading } else { FallbackReason::NoSynSeen };
        let sighting = self.kernel.sighting(&from_client).ok_or(unseen)?;
        Ok(Plan { from_client, sighting })
    }

    /// Enters the flows of a connection: from here on the kernel forwards what arrives, and both sockets are in repair
    /// mode. After an error the sockets are as before. `peer`: the server's end. `held`: bytes read from the client and not yet
    /// written to the server.
    pub(crate) fn begin(
        &self,
        plan: &Plan,
        sockets: PerLeg<&TcpStream>,
        peer: SocketAddr,
        held: usize,
        account: &Account,
    ) -> Result<PendingHandover, Refusal> {
        // Until the flows are entered.
        let frozen = self.frozen();
        if frozen.is_some() {
            return Err(FallbackReason::TakenOver.into());
        }
        let local = sockets.server.local_addr().map_err(|_| FallbackReason::Closing)?;
        let from_server = tuple(peer, local);
        if plan.is_ipv4() != peer.is_ipv4() {
            return Err(FallbackReason::MixedFamily.into());
        }
        let connection = &account.connection;
        let has_clients_address =
            connection.upstream.get().is_some_and(|(pool, _)| pool.source == config::SourceAddress::Client);
        if has_clients_address && !self.ways.replays_reach(local.ip()) {
            return Err(FallbackReason::NoMarkRule.into());
        }
        let sighting = self.kernel.sighting(&from_server).ok_or(FallbackReason::NoSynSeen)?;
        let sightings = PerLeg { client: &plan.sighting, server: &sighting };
        let tuples = PerLeg { client: plan.from_client, server: from_server };
        let asked = self.ways.generation();
        let way = |tuple: &Tuple, sighting: &Sighting| {
            let [peer, local] = tuples::ends(tuple);
            self.ways.way(local, peer, sighting.ifindex)
        };
        let ways = PerLeg {
            client: way(&tuples.client, sightings.client)?,
            server: way(&tuples.server, sightings.server)?,
        };
        // Before the sockets enter repair mode, in which they die silently: if this process dies then, the next one finds
        // the record and resets both ends.
        self.kernel
            .announce(connection.id, &spliced::record(&self.kernel, account, tuples))
            .map_err(refusal)?;
        let begin = || -> Result<PendingHandover, Refusal> {
            for socket in sockets.iter() {
                tcp::enter_repair(socket.as_fd()).map_err(|_| FallbackReason::PacketRefused)?;
            }
            let read = |socket: &TcpStream, sighting: &Sighting| {
                tcp::leg_state(socket.as_fd(), sighting.isn).map_err(|_| FallbackReason::PacketRefused)
            };
            let client = read(sockets.client, sightings.client)?;
            let server = read(sockets.server, sightings.server)?;
            // Afterwards: of what comes from here on, the handover notices that it cannot take all.
            match tcp::have_urgent_data([sockets.client.as_fd(), sockets.server.as_fd()]) {
                Ok(false) => {}
                Ok(true) => {
                    // A read has stopped before it, which looked as if nothing was left.
                    sockets.iter().for_each(|socket| _ = tcp::release(socket.as_fd()));
                    return Err(FallbackReason::UrgentData.into());
                }
                Err(_) => return Err(FallbackReason::PacketRefused.into()),
            }
            let states = PerLeg { client: &client, server: &server };
            let passed =
                PerLeg { client: &connection.traffic.bytes_in, server: &connection.traffic.bytes_out };
            let passed = passed.map(|bytes| bytes.load(Relaxed));
            let at = Legs { states, sightings, tuples, ways, held, passed };
            let terms = Terms::new(connection.id, now_tick(), &at)?;
            let inserted = self.kernel.insert(&tuples, terms.flows, &terms.track, &terms.handover);
            let slot = inserted.map_err(refusal)?;
            self.handovers().insert(connection.id, HandoverState::UnderWay);
            Ok(PendingHandover { id: connection.id, slot, tuples, terms, asked })
        };
        begin().inspect_err(|_| {
            for socket in sockets.iter() {
                // An error: the socket is not in repair mode.
                let _ = tcp::end_repair(socket.as_fd());
            }
            self.kernel.forget(connection.id);
        })
    }

    /// Delivers what the sockets still hold; afterwards they are to be [closed](Self::close). `held`: as in
    /// [`begin`](Self::begin).
    pub(crate) async fn finish(
        self: &Arc<Self>,
        handover: PendingHandover,
        sockets: PerLeg<&TcpStream>,
        held: Vec<u8>,
    ) -> Result<HandedOver, CloseReason> {
        let under_way = HandingOver { tier: self.clone(), id: handover.id };
        let PerDirection { request, response } = handover.terms.flows;
        // The tuple of each leg's SYN, and how packets leave by the leg.
        let legs =
            [(handover.tuples.client, response.exit), (handover.tuples.server.reversed(), request.exit)];
        handover.finish((&self.kernel, &self.grace, &self.injector), sockets, held).await?;
        Ok(HandedOver { under_way, legs })
    }

    /// Closes the sockets of a connection that was handed over, in another thread, after a grace period.
    pub(crate) fn close(&self, handed_over: HandedOver, sockets: PerLeg<LegSocket>) {
        sockets.iter().for_each(LegSocket::clean);
        let now = Instant::now();
        self.grace.then(move || {
            let HandedOver { under_way, legs } = handed_over;
            if let Some(conntrack) = &under_way.tier.conntrack {
                // Nothing of these legs passes netfilter any more, so conntrack would keep them for days. A leg to an end on
                // this host still passes it, with its FINs.
                let outside = legs.iter().filter(|(_, exit)| *exit != exit::LOCAL);
                conntrack.forget(now, outside.map(|(tuple, _)| tuples::ends(tuple)));
            }
            // The handover is over when they are closed.
            drop(sockets);
            drop(under_way);
        });
    }

    /// The gateway's source ports toward servers.
    pub fn ports(&self) -> &Arc<GatewayPorts> {
        &self.ports
    }

    /// The maps and programs.
    pub fn kernel(&self) -> &Packet {
        &self.kernel
    }

    /// How many connections go on without this process: those without sockets.
    pub fn independent(&self) -> usize {
        self.lock().len().saturating_sub(self.handovers().len())
    }

    /// Flows in the table at the last sweep, with those of closed connections that linger.
    pub fn entries(&self) -> u64 {
        self.entries.load(Relaxed)
    }

    /// The odd packets that this process has lost.
    pub fn losses(&self) -> &Losses {
        &self.losses
    }

    pub(super) fn lingering(&self) -> MutexGuard<'_, Lingering> {
        // The queue is never left half-changed.
        self.lingering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives back the slot of a connection whose flows are gone. It is free for another connection once the handover, if
    /// one is under way, is over, and no program works on a packet of this connection.
    pub(super) fn release(&self, id: u64, slot: u32) {
        match self.handovers().get_mut(&id) {
            Some(state) => *state = HandoverState::ConnectionOver { slot },
            None => self.free(slot),
        }
    }

    pub(super) fn free(&self, slot: u32) {
        self.grace.then(self.kernel.release(slot));
    }

    pub(super) fn handovers(&self) -> MutexGuard<'_, ById<HandoverState>> {
        // The map is never left half-changed: each change is one call.
        self.handovers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pending(&self) -> MutexGuard<'_, Pending> {
        // The queues are never left half-changed.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Live> {
        // Never left half-changed: nothing in there panics.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refusal(error: FlowInsertError) -> FallbackReason {
    match error {
        FlowInsertError::Full => FallbackReason::FlowTableFull,
        FlowInsertError::Taken => FallbackReason::FlowTaken,
        FlowInsertError::Refused(_) | FlowInsertError::Unmapped(_) => {
            tracing::error!(%error, "the kernel refuses a flow");
            FallbackReason::PacketRefused
        }
    }
}

/// A connection whose sockets have delivered everything and are still to be closed.
pub(crate) struct HandedOver {
    under_way: HandingOver,
    /// The tuple of each leg's SYN, and how packets leave by the leg.
    legs: [(Tuple, u8); 2],
}

/// A handover that is under way until this is dropped.
struct HandingOver {
    tier: Arc<PacketTier>,
    id: u64,
}

impl Drop for HandingOver {
    fn drop(&mut self) {
        let state = self.tier.handovers().remove(&self.id);
        if let Some(HandoverState::ConnectionOver { slot }) = state {
            self.tier.free(slot);
        }
    }
}
